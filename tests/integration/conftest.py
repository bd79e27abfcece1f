"""Servers here keep their tables in a directory of the test's own, which goes with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import private_runtime


@pytest.fixture(autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where the state directories of this test's servers are."""
    with private_runtime() as path:
        yield path
