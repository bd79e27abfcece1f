"""Servers here keep their tables in a directory of the test's own, which goes with it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer._linux import paths
from aiotimer.client import reconnect
from tests.fakes.places import private_runtime
from tests.fakes.worker import Reconnectors

HELD = """
import os, sys
if "--ready-fd" in sys.orig_argv:
    with open({fifo!r}) as fifo:
        if fifo.read() == "fail":
            os.write(2, b"no server today\\n")
            os._exit(70)
"""


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What every server, and who supervises one, reads from before it does anything."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    (tmp_path / "sitecustomize.py").write_text(HELD.format(fifo=str(path)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return path


@pytest.fixture
def no_other_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is seen of this user's other servers, which may be in other bases."""
    monkeypatch.setattr(paths, "bases", lambda: iter([Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer")]))


@pytest.fixture
def reconnectors(monkeypatch: pytest.MonkeyPatch) -> Reconnectors:
    """The threads that try to end this test's outages."""
    made = Reconnectors()
    monkeypatch.setattr(reconnect, "start_new_thread", made.start)
    return made


@pytest.fixture(autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where the state directories of this test's servers are."""
    with private_runtime() as path:
        yield path
