"""Servers here keep their tables in a directory of the test's own, which goes with it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer._linux import paths
from aiotimer.client import reconnect
from tests.fakes.places import private_runtime
from tests.fakes.worker import Menders


@pytest.fixture
def no_other_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is seen of this user's other servers, which may be in other bases."""
    monkeypatch.setattr(paths, "bases", lambda: iter([Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer")]))


@pytest.fixture
def menders(monkeypatch: pytest.MonkeyPatch) -> Menders:
    """The threads that try to mend this test's outages."""
    made = Menders()
    monkeypatch.setattr(reconnect, "start_new_thread", made.start)
    return made


@pytest.fixture(autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where the state directories of this test's servers are."""
    with private_runtime() as path:
        yield path
