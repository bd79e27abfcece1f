"""The names of the clients: what a user may rely on is what the reference page says, and nothing else."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from aiotimer import AsyncTimerClient, TimerClient

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "api.md"


def documented(name: str) -> set[str]:
    """The members that the reference page lists for a class."""
    listed = re.search(rf"^.. autoclass:: {name}\n   :members: (.*)$", REFERENCE.read_text(), re.MULTILINE)
    assert listed, f"{REFERENCE.name} lists no members of {name}"
    return set(listed[1].split(", "))


@pytest.mark.parametrize("client", [TimerClient, AsyncTimerClient])
def test_a_client_has_the_public_names_that_are_documented(client: type[object]) -> None:
    assert {name for name in dir(client) if not name.startswith("_")} == documented(client.__name__)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("kind", [TimerClient, AsyncTimerClient])
def test_fault_87_a_client_is_not_copied(kind: type[TimerClient | AsyncTimerClient], copied: Any) -> None:
    """Whoever closes the copy would disarm the process."""
    with pytest.raises(TypeError, match="make a new one"):
        copied(kind("/nowhere"))


@pytest.mark.parametrize("client", [TimerClient, AsyncTimerClient])
def test_a_client_has_no_other_attributes(client: type[object]) -> None:
    """Its slots are all there is: an instance has no dict in which more names could stand."""
    assert not hasattr(object.__new__(client), "__dict__")
