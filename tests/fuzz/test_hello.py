"""Whatever is sent to a server, and whatever comes with it, ends in an answer or a closed connection.

The laws of this file: the server is a real one; no crash, no hang, no descriptor left open; a worker that was
there before stays connected, with its timer armed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiotimer._core import layout, wire
from tests.fakes.clock import PATIENCE
from tests.fakes.places import open_descriptors, private_runtime
from tests.fakes.server import ServerThread
from tests.fakes.worker import spawn_worker

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)

NAMES = st.text(max_size=300) | st.sampled_from(["", "\0", "a\0b", "s\0999", "\x1b[2J", "x" * 9000])

HELLOS = st.tuples(
    st.just("hello"),
    st.just(wire.PROTOCOL_VERSION) | st.integers(-5, 5),
    NAMES,
    st.integers(-1, 2**40),
    st.booleans(),
    st.integers(0, 2**40),
    st.floats(),
    st.booleans(),
    st.lists(st.tuples(NAMES, st.floats()), max_size=4),
)
"""Messages of the right shape, whose values may be anything."""

CHANGED = HELLOS.flatmap(
    lambda hello: st.integers(0, len(hello) - 1).flatmap(
        lambda at: VALUES.map(lambda value: [*hello[:at], value, *hello[at + 1 :]])
    )
)


NEIGHBOUR = """
import sys, time
from aiotimer import TimerClient

client = TimerClient(unavailable="raise", budget=30)
client.acquire("stands", time.monotonic() + 100_000)
print("armed")
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    """A server of this whole file, and a worker whose timer must stand: another process than the attacker."""
    with private_runtime(), ServerThread() as running, spawn_worker(NEIGHBOUR, running.path) as worker:
        worker.wait_line("armed")
        yield running


def talk(path: str, data: bytes, descriptors: list[int]) -> bytes:
    """Send bytes and descriptors, say that this is all, and return the answers until the server hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(path)
        answers = b""
        with contextlib.suppress(ConnectionError):
            socket.send_fds(connection, [data], descriptors)
            connection.shutdown(socket.SHUT_WR)
            while True:
                part, passed, _flags, _address = socket.recv_fds(connection, 65_536, 4)
                for descriptor in passed:
                    os.close(descriptor)
                if not part:
                    break
                answers += part
        return answers


def frame(value: Any) -> bytes:
    """Return a frame with a value, whatever it is."""
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "big") + body


def assert_unharmed(server: ServerThread) -> None:
    """The worker that was there before is as it was."""
    workers = [w for w in server.status()["workers"] if w["pid"] != os.getpid()]
    assert [[timer["scope"] for timer in w["timers"]] for w in workers] == [["stands"]]
    assert all(w["connected"] for w in workers)


quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""In the ordinary suite; the soak profile's number is larger."""
if settings.default is not None and settings.default.max_examples > 1000:
    quick = settings(quick, max_examples=settings.default.max_examples)


@quick
@given(value=CHANGED | HELLOS | VALUES)
def test_values_of_any_shape(server: ServerThread, value: Any) -> None:
    for answer in wire.client_decoder().feed(talk(server.path, frame(value), [])):
        assert isinstance(answer, wire.Welcome | wire.Refused | wire.Pong | wire.Status)
    assert_unharmed(server)


def sealed(content: bytes = b"") -> int:
    """Return a memfd of a table's size that nobody may write to, shrink or grow."""
    descriptor = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, layout.TABLE_SIZE)
    os.pwrite(descriptor, content, 0)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def on_tmpfs(content: bytes, size: int) -> int:
    """Return a file on tmpfs of a size that begins with something."""
    descriptor = os.memfd_create("table")
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, content, 0)
    return descriptor


def opened(path: str, flags: int) -> int:
    """Open a path."""
    return os.open(path, flags)


OFFERS: dict[str, Callable[[], int]] = {
    "pipe": lambda: os.pipe()[0],
    "directory": lambda: opened("/tmp", os.O_RDONLY | os.O_DIRECTORY),
    "null": lambda: opened("/dev/null", os.O_RDWR),
    "path only": lambda: opened("/dev/null", os.O_PATH),
    "socket": lambda: socket.socket().detach(),
    "empty memfd": lambda: os.memfd_create("empty"),
    "zeros": lambda: on_tmpfs(b"", layout.TABLE_SIZE),
    "sealed": sealed,
    "rubbish": lambda: on_tmpfs(os.urandom(8192), layout.TABLE_SIZE),
    "too small": lambda: on_tmpfs(layout.header(), layout.PAGE),
    "disk": lambda: opened("/var/tmp", os.O_RDWR | os.O_TMPFILE),
}
"""What may be offered as a table and is none."""


@pytest.mark.parametrize("kind", OFFERS)
def test_offers_that_are_no_tables(server: ServerThread, kind: str) -> None:
    hello = wire.Hello(wire.PROTOCOL_VERSION, "x", 1, True, 0, 0.0, True)
    offered = OFFERS[kind]()
    try:
        answers = list(wire.client_decoder().feed(talk(server.path, wire.encode(hello), [offered])))
        assert [type(answer) for answer in answers] == [wire.Refused]
    finally:
        os.close(offered)
    assert_unharmed(server)


def test_descriptors_stay_flat(server: ServerThread) -> None:
    def round_trip() -> None:
        for kind in ("null", "rubbish", "socket", "empty memfd"):
            offered = OFFERS[kind]()
            hello = wire.Hello(wire.PROTOCOL_VERSION, "x", 1, True, 0, 0.0, True)
            talk(server.path, wire.encode(hello), [offered])
            os.close(offered)
            talk(server.path, frame(["hello", 1, "x"]), [])

    round_trip()
    before = open_descriptors()
    for _ in range(20):
        round_trip()
    assert_unharmed(server)
    assert open_descriptors() == before


@pytest.mark.parametrize("now", [True, False], ids=["sealed", "sealable"])
def test_a_table_that_can_be_sealed(server: ServerThread, now: bool) -> None:
    """The server could not keep its promise in it, now or later: it is refused, and let go of."""
    before = open_descriptors()
    hello = wire.Hello(wire.PROTOCOL_VERSION, "x", 1, True, 0, 0.0, True)
    for _ in range(3):
        if now:
            offered = sealed(layout.header())
        else:
            offered = os.memfd_create("table", os.MFD_ALLOW_SEALING)
            os.ftruncate(offered, layout.TABLE_SIZE)
            os.pwrite(offered, layout.header(), 0)
        (answer,) = wire.client_decoder().feed(talk(server.path, wire.encode(hello), [offered]))
        os.close(offered)
        assert isinstance(answer, wire.Refused)
        assert "sealed" in answer.reason
        assert_unharmed(server)
    assert open_descriptors() == before
