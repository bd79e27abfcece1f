"""What every test of an adapter gets: a runtime directory of its own, and torch as it is at its import.

The laws of this directory: the frameworks are the real ones; a test whose framework is not installed is
skipped, and `make test-integrations` installs them.
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


@pytest.fixture(autouse=True)
def unconfigured_torch() -> Iterator[None]:
    """No client of another test is torch's."""
    from torch.distributed.elastic import timer

    timer.configure(None)
    yield
    timer.configure(None)


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nor is one aiotimer's."""
    from aiotimer import configure

    monkeypatch.delenv("AIOTIMER_SOCKET", raising=False)
    yield
    configure(None)
