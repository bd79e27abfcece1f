"""What every recipe's test gets: a runtime directory of its own.

The laws of this directory: the frameworks are the real ones, run as their page shows; a test whose framework
is not installed is skipped, and `make test-services` installs them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.places import private_runtime


@pytest.fixture(autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where the state directories of this test's servers are."""
    with private_runtime() as path:
        yield path
