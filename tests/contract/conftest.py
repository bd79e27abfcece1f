"""Fixtures of the contract suites: a place for the servers of each test; no default client, no old one."""

from collections.abc import Iterator

import pytest

from aiotimer.client import waiting
from aiotimer.client.clients import default
from aiotimer.client.connection import _every_connection
from tests.fakes.clock import PATIENCE
from tests.fakes.places import private_runtime, short_socket
from tests.fakes.server import ServerThread


@pytest.fixture(autouse=True)
def _runtime() -> Iterator[None]:
    """A server that starts looks at what earlier ones have left: not at that of hundreds of other tests."""
    with private_runtime():
        yield


@pytest.fixture(autouse=True)
def _patient_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synchronous call on a running loop waits for its acknowledgement as long as one elsewhere.

    Five milliseconds are for programs; a loaded machine needs more for a round trip.
    """
    monkeypatch.setattr(waiting, "BUDGET_ON_LOOP", PATIENCE)


@pytest.fixture(autouse=True)
def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("AIOTIMER_SOCKET", raising=False)
    former, default.client = default.client, None
    yield
    default.client = former


@pytest.fixture(autouse=True)
def _disconnected() -> Iterator[None]:
    """Leave no connection to a test's server, and no thread that looks for it, to the tests after it."""
    yield
    for connection in list(_every_connection):
        connection.disconnect()
        connection.reset()


@pytest.fixture
def server() -> Iterator[ServerThread]:
    """A real server, in a thread; it spares this process."""
    with ServerThread() as thread:
        yield thread


@pytest.fixture
def nobody() -> Iterator[str]:
    """A socket path that nobody serves."""
    with short_socket() as path:
        yield path
