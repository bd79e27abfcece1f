"""Servers here keep their tables in a directory of the test's own, which goes with it.

Whoever asks a server for its status here is patient: two seconds are for people, not for a loaded machine.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.places import private_runtime


@pytest.fixture(autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where the state directories of this test's servers are."""
    with private_runtime() as path:
        yield path


@pytest.fixture(autouse=True)
def patient_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``aiotimer.client.control`` wait for answers as long as a test waits for anything."""
    monkeypatch.setattr("aiotimer.client.control.ANSWER_WITHIN", PATIENCE)
