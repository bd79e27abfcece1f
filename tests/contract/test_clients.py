"""One contract for both clients, with a shared table and without one, against a real server.

The suite is synchronous: an ``AsyncTimerClient`` is driven by an event loop of its own, so that the same
lines say what either client must do. What only a coroutine can suffer, cancellation, has a part of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from math import inf, nan
from time import monotonic
from typing import Any, Self

import pytest
import uvloop

from aiotimer import (
    AiotimerError,
    AsyncTimerClient,
    NotConfigured,
    Refused,
    ServerUnavailable,
    TableFull,
    TimerClient,
    TimerRequest,
    expires,
)
from aiotimer._core import wire
from aiotimer._core.layout import SLOTS, is_armed
from aiotimer._core.table import TimerTable
from aiotimer._linux.table_files import create_unnamed_table
from aiotimer.client import waiting
from aiotimer.client.clients import default, default_client
from aiotimer.client.connection import ClientConnection
from aiotimer.client.handshake import greet
from aiotimer.client.mapped_table import TableDescriptor
from aiotimer.client.memory import identity, is_open
from aiotimer.errors import ProtocolError, UnsafePath
from aiotimer.server.server import TimerServer
from tests.fakes.clock import PATIENCE
from tests.fakes.memory import timers_of
from tests.fakes.places import short_socket
from tests.fakes.server import ServerThread, stand_in

LATER = 1000.0
"""Seconds ahead of timers that are not to expire."""


def soon() -> float:
    return monotonic() + LATER


class Client:
    """Either client, with verbs that return when they are done."""

    def __init__(self, client: TimerClient | AsyncTimerClient, runner: asyncio.Runner | None) -> None:
        self.inner = client
        self._runner = runner

    def _do(self, verb: str, *arguments: Any) -> None:
        if self._runner is None:
            getattr(self.inner, verb)(*arguments)
        else:
            verb = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}.get(verb, verb)
            self._runner.run(getattr(self.inner, verb)(*arguments))

    def __getattr__(self, verb: str) -> Callable[..., None]:
        return functools.partial(self._do, verb)

    def connect(self, timeout: float = PATIENCE) -> None:
        self._do("connect", timeout)

    def __enter__(self) -> Self:
        self._do("__enter__")
        return self

    def __exit__(self, *_: object) -> None:
        self._do("__exit__", None, None, None)

    @property
    def table(self) -> TimerTable:
        table = self.inner._queue.table
        assert table is not None
        return table

    def armed_here(self) -> list[str]:
        """Return the names of what is armed in this process's own table, if it has one."""
        table = self.inner._queue.table
        return [] if table is None else sorted(timer.name for timer in timers_of(table))


class Maker:
    """Makes clients of one kind, and closes them."""

    def __init__(self, kind: str, *, shared: bool) -> None:
        loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
            "asyncio": asyncio.new_event_loop,
            "uvloop": uvloop.new_event_loop,
        }
        self._runner = asyncio.Runner(loop_factory=loops[kind]) if kind in loops else None
        self.shared = shared
        self._made: list[Client] = []

    def __call__(self, path: str | None, **options: Any) -> Client:
        kind = TimerClient if self._runner is None else AsyncTimerClient
        client = Client(kind(path, shared=self.shared, **options), self._runner)
        self._made.append(client)
        return client

    def close(self) -> None:
        for client in self._made:
            client.close()
        if self._runner is not None:
            self._runner.close()


@pytest.fixture(
    params=[(kind, shared) for kind in ("sync", "asyncio", "uvloop") for shared in (True, False)],
    ids=lambda param: f"{param[0]}-{'shared' if param[1] else 'socket'}",
)
def make(request: pytest.FixtureRequest) -> Iterator[Maker]:
    kind, shared = request.param
    maker = Maker(kind, shared=shared)
    yield maker
    maker.close()


def deadlines(server: ServerThread) -> dict[str, float]:
    """Return what the server sees armed on this process."""
    (worker,) = (w for w in server.status()["workers"] if w["pid"] == os.getpid())
    return {timer["scope"]: timer["deadline"] for timer in worker["timers"]}


def hellos(server: ServerThread) -> int:
    """Return how many connections the server has welcomed."""
    server.wait_heard(wire.Hello)
    server.status()  # whatever came with or before what we know of has been counted by now
    return server.count_heard(wire.Hello)


# --- connecting


def test_connected_means_that_the_server_knows_us(make: Maker, server: ServerThread) -> None:
    client = make(server.path)
    assert not client.inner.connected
    client.connect()
    assert client.inner.connected
    (worker,) = server.status()["workers"]
    assert (worker["pid"], worker["connected"], worker["timers"]) == (os.getpid(), True, [])
    client.connect()
    assert hellos(server) == 1, "connecting again is nothing"


def test_a_client_is_a_context_manager(make: Maker, server: ServerThread) -> None:
    with make(server.path) as client:
        assert client.inner.connected
        client.acquire("s", soon())
    assert not client.inner.connected
    server.wait_heard(wire.Bye)
    assert server.armed() == []


def test_an_acquire_connects(make: Maker, server: ServerThread) -> None:
    client = make(server.path)
    client.acquire("s", soon())
    assert client.inner.connected
    assert server.armed() == ["s"]


def test_the_path_may_come_from_the_environment(
    make: Maker, server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotConfigured):
        make(None)
    monkeypatch.setenv("AIOTIMER_SOCKET", server.path)
    client = make(None)
    client.connect()
    assert client.inner.path == server.path


def test_a_default_client_that_another_thread_made_meanwhile_is_kept(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TimerClient] = []

    def making(client: TimerClient, *_: object) -> None:
        really_make(client)
        made.append(client)
        if len(made) == 1:
            assert default_client() is made[1], "the other thread's"

    really_make = TimerClient.__init__
    monkeypatch.setenv("AIOTIMER_SOCKET", server.path)
    monkeypatch.setattr(default, "client", None)
    monkeypatch.setattr(TimerClient, "__init__", making)
    assert default_client() is made[1]
    assert default_client() is made[1]
    with pytest.raises(RuntimeError, match="closed"):
        made[0].connect()
    made[1].close()
    assert len(made) == 2


def test_bad_options_are_refused_at_once(make: Maker, nobody: str) -> None:
    with pytest.raises(ValueError, match="unavailable must be"):
        make(nobody, unavailable="panic")
    with pytest.raises(UnsafePath, match="108 bytes"):
        make("/" + "x" * 107)
    with pytest.raises(UnsafePath, match="empty"):
        make("")


def test_a_client_shows_what_it_is(make: Maker, server: ServerThread) -> None:
    client = make(server.path)
    name = type(client.inner).__name__
    assert repr(client.inner) == f"<{name} {server.path!r}, not connected>"
    client.connect()
    assert repr(client.inner) == f"<{name} {server.path!r}, connected>"
    client.close()
    assert repr(client.inner) == f"<{name} {server.path!r}, closed>"


# --- acquire and release


def test_an_acquire_arms_and_a_release_disarms(make: Maker, server: ServerThread) -> None:
    with make(server.path) as client:
        first, second = soon(), soon() + 1
        client.acquire("a", first)
        client.acquire("b", second)
        assert deadlines(server) == {"a": first, "b": second}
        client.release("a")
        assert deadlines(server) == {"b": second}


def test_zero_has_already_expired(make: Maker, server: ServerThread) -> None:
    with make(server.path) as client:
        client.acquire("s", 0)
        ((worker, scopes),) = server.wait_reaps(1)
        assert (worker.pid, scopes) == (os.getpid(), ["s"])


def test_one_expired_timer_reaps_once_and_clears_all(make: Maker, server: ServerThread) -> None:
    with make(server.path) as client:
        client.acquire("later", soon())
        client.acquire("other", monotonic() + 1.5)
        client.acquire("now", monotonic())
        assert server.wait_reaps(1)[0][1] == ["now"]
        assert server.call(lambda s: s.get_expired_timers(inf)) == {}, "the others are cleared too"
        client.acquire("new", monotonic() + 1.5)
        assert [scopes for _, scopes in server.wait_reaps(2)] == [["now"], ["new"]], (
            "and 'other' is not heard of"
        )


def test_fault_81_the_same_time_again_is_another_timer(make: Maker, server: ServerThread) -> None:
    """What was dealt with is one arming of a slot, and not the number in it."""
    client, deadline = make(server.path), monotonic() - 1.0
    for number in (1, 2, 3):
        client.acquire("job", deadline)
        assert server.wait_reaps(number)[-1][1] == ["job"]
        assert server.call(lambda s: s.get_expired_timers(inf)) == {}, "that reap is over: all is cleared"
        client.release("job")


def test_a_release_before_the_deadline_spares(make: Maker, server: ServerThread) -> None:
    with make(server.path) as client:
        for n in range(20):
            client.acquire(f"s{n}", monotonic() + 1.0)
            client.release(f"s{n}")
        client.acquire("witness", monotonic() + 1.0)
        assert [scopes for _, scopes in server.wait_reaps(1)] == [["witness"]]


def test_the_queue_of_a_client_is_what_acquire_goes_through(make: Maker, server: ServerThread) -> None:
    client = make(server.path)
    with pytest.raises(ServerUnavailable):
        _ = client.inner.queue
    client.connect()
    until = soon()
    client.inner.queue.put(TimerRequest(os.getpid(), "s", until))
    assert deadlines(server) == {"s": until}
    with pytest.raises(ValueError, match=str(os.getppid())):
        client.inner.queue.put(TimerRequest(os.getppid(), "s", until))
    client.inner.queue.put(TimerRequest(os.getpid(), "s", -1.0))
    assert server.armed() == []


# --- what is refused


def test_the_wall_clock_is_noticed(make: Maker, server: ServerThread) -> None:
    with make(server.path) as client:
        with pytest.raises(ValueError, match=r"looks like time\.time\(\); timers use time\.monotonic\(\)"):
            client.acquire("s", time.time() + 60)
        assert client.armed_here() == []
        assert server.armed() == []


@pytest.mark.parametrize("until", [True, "60", None, b"1"], ids=str)
def test_what_is_no_number_is_a_type_error(make: Maker, server: ServerThread, until: Any) -> None:
    with make(server.path) as client:
        with pytest.raises(TypeError, match="expiration_time must be a number"):
            client.acquire("s", until)
        assert server.armed() == []


def test_a_full_table_raises_where_that_is_wanted(make: Maker, server: ServerThread) -> None:
    """Without shared memory it is the server that has no room, and that is never ignored."""
    with make(server.path, unavailable="raise" if make.shared else "ignore", budget=PATIENCE) as client:
        client.acquire("first", soon())

        def fill(s: TimerServer) -> None:
            (worker,) = s._registry.workers.values()
            table = client.table if make.shared else worker.own_tables["socket"][1]
            table._grow = no_memory  # all 65,536 slots are filled by test_fault_30_65537_timers
            with contextlib.suppress(TableFull):
                for n in range(SLOTS):
                    table.set((f"s{n}", 0), 1e9, 0.0)

        def count(s: TimerServer) -> int:
            tables = [table for worker in s._registry.workers.values() for table in worker.tables]
            return sum(map(is_armed, (d for table in tables for d in table.reader.deadlines())))

        server.call(fill)
        full = server.call(count)
        with pytest.raises(TableFull, match="No space left"):
            client.acquire("one more", soon())
        assert server.call(count) == full
        assert "one more" not in client.armed_here()
        client.acquire("first", soon())
        client.release("first")
        client.acquire("one more", soon())
        assert server.call(count) == full, "there was room for it"


def no_memory(_slots: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- several clients


def test_clients_share_one_connection_and_one_table(make: Maker, server: ServerThread) -> None:
    one, two = make(server.path), make(server.path)
    one.connect()
    two.connect()
    assert one.inner._queue is two.inner._queue
    assert hellos(server) == 1
    one.acquire("s", soon())
    two.release("s")
    assert server.armed() == []
    two.acquire("t", soon())
    one.close()
    assert two.inner.connected
    assert server.armed() == ["t"]
    assert server.count_heard(wire.Bye) == 0
    two.close()
    server.wait_heard(wire.Bye)
    assert server.armed() == []
    assert server.count_heard(wire.Bye) == 1


def test_both_kinds_of_client_share_too(make: Maker, server: ServerThread) -> None:
    with TimerClient(server.path, shared=make.shared) as sync, make(server.path) as client:
        assert hellos(server) == 1
        sync.acquire("s", soon())
        client.release("s")
        assert server.armed() == []


def test_with_and_without_a_table_are_two_connections(make: Maker, server: ServerThread) -> None:
    with TimerClient(server.path, shared=not make.shared) as other, make(server.path) as client:
        assert hellos(server) == 2
        other.acquire("s", soon())
        client.acquire("s", soon())
        assert server.armed() == ["s", "s"]
        client.release("s")
        assert server.armed() == ["s"]
    server.wait_heard(wire.Bye, 2)
    assert server.armed() == []


def test_closed_is_closed(make: Maker, server: ServerThread) -> None:
    with make(server.path) as other:
        client = make(server.path)
        client.connect()
        client.close()
        client.close()
        assert other.inner.connected, "closing twice does not close for another"
        with pytest.raises(RuntimeError, match="closed"):
            client.connect()
        with pytest.raises(RuntimeError, match="closed"):
            client.acquire("s", soon())
        client.release("s")
        with pytest.raises(RuntimeError, match="closed"):
            with expires(60, scope="s", client=client.inner):
                pytest.fail("the block was entered")
        assert server.armed() == []


def test_after_the_last_one_a_new_client_starts_afresh(make: Maker, server: ServerThread) -> None:
    for round_ in range(1, 4):
        with make(server.path) as client:
            assert client.armed_here() == []
            client.acquire("s", soon())
            with expires(60, scope="s", client=client.inner):
                assert server.armed() == ["s", "s"]
        server.wait_heard(wire.Bye, round_)
        assert server.armed() == []


def test_a_block_outlives_its_client(make: Maker, server: ServerThread) -> None:
    client = make(server.path)
    client.connect()
    with expires(60, scope="s", client=client.inner):
        client.close()
        server.wait_heard(wire.Bye)
        assert server.armed() == []
        with make(server.path) as new:
            new.acquire("t", soon())
    assert new.armed_here() == []


def test_a_table_goes_with_hello_whatever_its_number_is_by_then(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last client is closed while another thread of its process is connecting."""
    client = TimerClient(server.path, unavailable="raise")
    client.acquire("s", soon())
    client._queue.connection.disconnect()
    number = client._queue.descriptor
    table = identity(number)
    offers: list[tuple[int, int]] = []

    def close_first(sock: socket.socket, hello: bytes, offered: list[int], until: float) -> Any:
        client.close()
        with open(os.devnull, "rb") as null:
            others.append(fcntl.fcntl(null, fcntl.F_DUPFD, number))  # it is another file's number now
        offers.extend(map(identity, offered))
        return greet(sock, hello, offered, until)

    others: list[int] = []
    monkeypatch.setattr("aiotimer.client.connection.greet", close_first)
    with pytest.raises(ServerUnavailable, match="the last client was closed meanwhile"):
        waiting.run(client._queue.connection.connecting(), PATIENCE)
    for other in others:
        os.close(other)
    assert offers == [table]
    server.wait_heard(wire.Hello, 2)


def test_the_descriptor_that_goes_with_hello_is_closed(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers: list[tuple[int, tuple[int, int]]] = []

    def fails(_sock: socket.socket, _hello: bytes, offered: list[int], _until: float) -> Any:
        offers.extend((number, identity(number)) for number in offered)
        raise ServerUnavailable(server.path, "gone")
        yield

    client = TimerClient(server.path)
    monkeypatch.setattr("aiotimer.client.connection.greet", fails)
    with pytest.raises(ServerUnavailable, match="gone"):
        client.connect()
    ((number, file),) = offers
    assert number != client._queue.descriptor
    assert not is_open(number, file)
    client.close()


def test_a_table_whose_descriptor_cannot_be_duplicated(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = TableDescriptor(create_unnamed_table())

    def fails(_number: int) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as played:
        played.setattr(os, "dup", fails)
        number = errno.EBADF
        assert descriptor.duplicate() == -1, "another thread has just closed it"
        number = errno.EMFILE
        with pytest.raises(OSError, match="Too many open files"):
            descriptor.duplicate()
    with monkeypatch.context() as played:
        played.setattr(os, "dup", lambda _number: os.open(os.devnull, os.O_RDONLY))
        assert descriptor.duplicate() == -1, "and its number is another file's"
    other = descriptor.duplicate()
    assert is_open(other, descriptor.file)
    os.close(other)
    descriptor.close()
    assert descriptor.duplicate() == -1


# --- no server


@pytest.mark.parametrize("unavailable", ["raise", "warn", "ignore"])
def test_without_a_server_the_policy_decides_and_nothing_stays_armed(
    make: Maker, nobody: str, unavailable: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(nobody, unavailable=unavailable)
    for scope in ("a", "b"):
        if unavailable == "raise":
            with pytest.raises(ServerUnavailable, match="aiotimer serve --socket") as caught:
                client.acquire(scope, soon())
            assert caught.value.path == nobody
        else:
            client.acquire(scope, soon())
    # They are kept here, for the server that comes.
    kept = [] if unavailable == "raise" else ["a", "b"]
    assert client.armed_here() == kept
    client.release("a")
    client.release("never")
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == (1 if unavailable == "warn" else 0), "it says so once"
    assert all("timers are not being watched" in message and nobody in message for message in told)
    with ServerThread(nobody) as server:
        client.connect()
        assert server.armed() == kept[1:]
        client.acquire("c", soon())
        assert server.armed() == [*kept[1:], "c"]


def test_connecting_in_vain_raises_whatever_the_policy(make: Maker, nobody: str) -> None:
    for unavailable in ("raise", "warn", "ignore"):
        with pytest.raises(ServerUnavailable, match="no timer server at"):
            make(nobody, unavailable=unavailable).connect(0.05)


def test_bad_arguments_are_found_without_a_server_too(make: Maker, nobody: str) -> None:
    client = make(nobody, unavailable="ignore")
    with pytest.raises(ValueError, match="finite"):
        client.acquire("s", nan)
    with pytest.raises(ValueError, match="scope"):
        client.acquire("", soon())
    with pytest.raises(ValueError, match="scope"):
        client.release("")


ANSWERS: dict[str, tuple[bytes | None, type[AiotimerError], str | None]] = {
    "silence": (None, ServerUnavailable, "no answer within"),
    "hangs up": (b"", ServerUnavailable, "closed the connection"),
    "refuses": (wire.encode(wire.Refused("no room")), Refused, "no room"),
    "nonsense": (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, None),
    "another message": (wire.encode(wire.Ack(1)), Refused, "nonsense"),
    "half a frame": (wire.encode(wire.Refused("x"))[:-1], ServerUnavailable, "closed the connection"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_server_that_does_not_welcome_us_is_no_server(make: Maker, nobody: str, name: str) -> None:
    answer, kind, words = ANSWERS[name]
    client = make(nobody, unavailable="raise", budget=0.1)
    with stand_in(nobody, answer):
        with pytest.raises(kind, match=words):
            client.acquire("s", soon())
        assert not client.inner.connected
        assert client.armed_here() == []
    with ServerThread(nobody) as server:
        client.connect()
        assert server.armed() == []


# --- a server that comes and goes


def test_who_is_refused_asks_ever_less_often_and_another_server_at_once(
    make: Maker, nobody: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that reconnects wakes up all the time here; what it would ask does not depend on that."""
    napped, asked, naps, kind = threading.Event(), 0, 0, ClientConnection
    connecting, really_nap, served = kind.connecting, kind.nap, threading.Event()

    def asks(connection: ClientConnection) -> Any:
        nonlocal asked
        asked += 1
        yield from connecting(connection)

    def nap(connection: ClientConnection, seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps > 50:
            really_nap(connection, seconds)
        if naps == 50:
            napped.set()
            served.wait(PATIENCE)

    monkeypatch.setattr("aiotimer.client.reconnect._FIRST_REFUSAL", LATER)
    monkeypatch.setattr("aiotimer.client.reconnect._LAST_REFUSAL", LATER)
    monkeypatch.setattr(kind, "connecting", asks)
    monkeypatch.setattr(kind, "nap", nap)
    client = make(nobody, unavailable="warn", budget=PATIENCE)
    with stand_in(nobody, wire.encode(wire.Refused("no room"))):
        client.acquire("s", soon())
        assert napped.wait(PATIENCE)
        assert asked == 1
        assert not client.inner._queue.connection.may_attempt()
        assert len([one for one in caplog.records if "no room" in one.getMessage()]) == 1
    with ServerThread(nobody) as server:
        served.set()
        server.wait_armed(["s"])
        connection, until = client.inner._queue.connection, monotonic() + PATIENCE
        client.close()
        while connection._reconnecting:  # the thread ends before its patches do
            assert monotonic() < until
            time.sleep(0.001)


def test_timers_survive_a_restart_of_the_server(make: Maker, server: ServerThread) -> None:
    with make(server.path, budget=PATIENCE) as client:
        kept = soon()
        client.acquire("kept", kept)
        client.acquire("released", soon())
        server.stop()
        client.release("released")
        server.start()
        client.acquire("new", soon())
        assert server.armed() == ["kept", "new"]
        assert deadlines(server)["kept"] == kept
        client.connect()
        client.release("kept")
        assert server.armed() == ["new"]


def test_without_a_table_a_timer_that_was_not_acknowledged_is_not_armed(server: ServerThread) -> None:
    with TimerClient(server.path, shared=False, unavailable="raise") as client:
        client.acquire("kept", soon())
        server.stop()
        with pytest.raises(ServerUnavailable):
            client.acquire("s", soon())
        server.start()
        client.connect(PATIENCE)
        assert server.armed() == ["kept"]


def test_without_a_table_the_next_server_is_told_of_what_was_armed_meanwhile(server: ServerThread) -> None:
    with TimerClient(server.path, shared=False, unavailable="warn") as client:
        client.acquire("kept", soon())
        client.acquire("released", soon())
        server.stop()
        client.acquire("s", soon())
        client.release("released")
        server.start()
        server.wait_heard(wire.Hello)  # nobody asked for it
        assert server.armed() == ["kept", "s"]


def test_a_server_that_went_raises_nothing_out_of_a_release(make: Maker, server: ServerThread) -> None:
    with make(server.path, unavailable="raise", budget=PATIENCE) as client:
        client.acquire("s", soon())
        with expires(60, scope="block", client=client.inner):
            server.stop()
        client.release("s")
        client.release("never")
        assert client.armed_here() == []
        server.start()
        client.connect()
        assert server.armed() == []


# --- threads and tasks


def test_threads_that_connect_at_once_share_one_connection(make: Maker, server: ServerThread) -> None:
    clients = [TimerClient(server.path, shared=make.shared, budget=PATIENCE) for _ in range(16)]
    threads = [threading.Thread(target=client.acquire, args=("s", soon())) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert hellos(server) == 1
    assert server.armed() == ["s"]
    for client in clients:
        client.close()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_tasks_that_connect_at_once_share_one_connection(server: ServerThread, shared: bool) -> None:
    clients = [AsyncTimerClient(server.path, shared=shared, budget=PATIENCE) for _ in range(50)]
    await asyncio.gather(*(client.acquire(f"s{n}", soon()) for n, client in enumerate(clients)))
    assert await asyncio.to_thread(server.armed) == sorted(f"s{n}" for n in range(50))
    assert hellos(server) == 1
    await asyncio.gather(*(client.release(f"s{n}") for n, client in enumerate(clients)))
    assert await asyncio.to_thread(server.armed) == []
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_49_cancelled_anywhere_in_an_acquire_nothing_is_armed(
    server: ServerThread, shared: bool
) -> None:
    """Cancel at every point where the acquire may be suspended: after 0, 1, 2, ... turns of the loop."""
    finished = 0
    last = 199
    for turns in range(last + 1):
        client = AsyncTimerClient(server.path, shared=shared, budget=PATIENCE)
        if turns % 2:
            await client.connect()
        task = asyncio.create_task(client.acquire("s", soon()))
        for _ in range(turns // 4):
            await asyncio.sleep(0)
        if turns == last:  # on a slow machine none may have been done by then
            await asyncio.wait([task], timeout=PATIENCE)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            table = client._queue.table
            assert table is None or not timers_of(table)
        else:
            finished += 1
            await client.release("s")
        await client.acquire("t", soon())  # in order behind whatever is still on its way
        assert await asyncio.to_thread(server.armed) == ["t"]
        await client.aclose()
    assert finished > 0, "it was never done: the test is blind"


async def test_connecting_does_not_block_the_loop(nobody: str) -> None:
    client = AsyncTimerClient(nobody, budget=PATIENCE)
    with stand_in(nobody, None):
        task = asyncio.create_task(client.acquire("s", soon()))
        turns = 0
        while turns < 1000:
            await asyncio.sleep(0)
            turns += 1
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await client.aclose()


def test_the_socket_path_may_be_as_long_as_the_kernel_takes(make: Maker) -> None:
    with short_socket() as path:
        longest = path + "x" * (107 - len(path))
        with ServerThread(longest) as server, make(longest) as client:
            client.acquire("s", soon())
            assert server.armed() == ["s"]
