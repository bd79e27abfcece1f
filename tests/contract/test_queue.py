"""One contract, three kinds of queue: what ``RequestQueue`` promises, kept by all of them.

A pair of ends stands for each kind: what the worker puts in at one comes out at the other. At a server
that is an inbox for what comes by socket; of a table it is the look, for which ``TableConsumer`` stands in.
"""

from __future__ import annotations

import functools
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf, nan
from typing import Any

import pytest

from aiotimer import ServerUnavailable, TableFull, TimerRequest, expires
from aiotimer._core import layout, wire
from aiotimer._core.requests import RELEASE
from aiotimer._core.table import TimerTable
from aiotimer.client import waiting
from aiotimer.client.connection import ClientConnection, WorkerQueue
from aiotimer.client.socket_only import Messages, SocketQueue
from aiotimer.errors import ProtocolError
from aiotimer.queue import Inbox, MemoryQueue, RequestQueue
from tests.fakes.clock import PATIENCE, Clock
from tests.fakes.memory import (
    MemoryClient,
    MemoryTableQueue,
    TableConsumer,
    memory_queue,
    memory_table,
    queue_over,
)

ME, OTHER = os.getpid(), os.getppid()
FOR_EVER = 3600.0
"""A timeout that would be noticed: the tests' own patience is shorter."""


class Ends:
    """A queue's two ends.

    Attributes:
        worker: takes requests in.
        server: gives them out.
    """

    def __init__(self, worker: RequestQueue, server: RequestQueue) -> None:
        self.worker = worker
        self.server = server

    def put(self, scope_id: str, expiration_time: float, worker_id: int = ME) -> bool:
        request = TimerRequest(worker_id, scope_id, expiration_time)
        if isinstance(self.worker, WorkerQueue):
            return self.worker.put(request, PATIENCE)
        return self.worker.put(request)

    def get(self, size: int | None = None, timeout: float = 0.0) -> list[tuple[str, float]]:
        requests = self.server.get(self.server.size() if size is None else size, timeout)
        assert all(request.worker_id == ME for request in requests)
        return [(r.scope_id, RELEASE if r.is_release else r.expiration_time) for r in requests]


class BelledQueue(MemoryTableQueue):
    """A queue over a table in memory, whose rings are heard at the other end."""

    def __init__(self, connection: ClientConnection, table: TimerTable) -> None:
        super().__init__(connection, table)
        self._rung = threading.Event()

    def ring(self, deadline: float) -> bool:
        """Ring, before that is remembered."""
        self._rung.set()
        return super().ring(deadline)

    def wait(self, seconds: float) -> None:
        self._rung.wait(seconds)
        self._rung.clear()


@contextmanager
def in_memory() -> Iterator[Ends]:
    queue = MemoryQueue()
    yield Ends(queue, queue)


@contextmanager
def in_a_table() -> Iterator[Ends]:
    table = memory_table()
    worker = queue_over(table, BelledQueue)
    yield Ends(worker, TableConsumer(table, ME, worker.wait))


def connected_queue(sock: socket.socket) -> SocketQueue:
    """Return the queue of a worker that has been welcomed on a socket."""
    queue = ClientConnection("/nowhere", SocketQueue).queue
    assert isinstance(queue, SocketQueue)
    welcome = wire.Welcome(wire.PROTOCOL_VERSION, "test", ME, 0.0, has_table=False)
    waiting.run(queue.follow_up(sock, welcome), PATIENCE)
    queue.settle(sock, welcome, -1)
    return queue


@contextmanager
def by_socket() -> Iterator[Ends]:
    """A real socket; a thread at the server's end takes in what comes, and acknowledges it."""
    left, right = socket.socketpair()
    stop_reading, stop = os.pipe()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        inbox = Inbox(ME)
        pump = threading.Thread(target=deliver_everything, args=(right, inbox, stop_reading))
        pump.start()
        worker = connected_queue(left)
        try:
            yield Ends(worker, inbox)
        finally:
            os.close(stop)
            pump.join(PATIENCE)
            os.close(stop_reading)
            worker.connection.disconnect()
        assert not pump.is_alive()


def deliver_everything(sock: socket.socket, inbox: Inbox, stop: int) -> None:
    decoder = wire.server_decoder()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(stop, select.POLLHUP)
    while True:
        ready = {descriptor for descriptor, _event in poll.poll(PATIENCE * 1000)}
        if stop in ready or not ready:
            return
        for message in decoder.feed(sock.recv(65_536)):
            assert isinstance(message, wire.Acquire)
            inbox.deliver(message)
        sock.sendall(wire.encode(inbox.acknowledgement()))


KINDS: dict[str, Callable[[], AbstractContextManager[Ends]]] = {
    "memory": in_memory,
    "table": in_a_table,
    "socket": by_socket,
}


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with KINDS[request.param]() as pair:
        yield pair


# --- in and out


def test_an_empty_queue_gives_nothing(ends: Ends) -> None:
    assert ends.server.size() == 0
    assert ends.get(0) == []
    assert ends.get(5) == []


def test_what_is_put_comes_out_once(ends: Ends) -> None:
    ends.put("s", 10.0)
    assert ends.server.size() == 1
    assert ends.server.get(1) == [TimerRequest(ME, "s", 10.0)]
    assert ends.server.size() == 0
    assert ends.get(1) == []


@pytest.mark.parametrize("until", [0.0, 1e-300, 5, 1e308])
def test_any_finite_time_arrives_as_it_is(ends: Ends, until: float) -> None:
    ends.put("s", until)
    assert ends.get() == [("s", until)]


@pytest.mark.parametrize("until", [-1, -5e-324, -1e308, -inf])
def test_any_negative_time_is_a_release(ends: Ends, until: float) -> None:
    ends.put("s", 5.0)
    assert ends.get() == [("s", 5.0)]
    ends.put("s", until)
    assert ends.get() == [("s", RELEASE)]


@pytest.mark.parametrize("until", [nan, inf, 10**400], ids=["nan", "inf", "huge"])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(ends: Ends, until: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ends.put("s", until)
    assert ends.server.size() == 0
    ends.put("s", 5.0)
    assert ends.get() == [("s", 5.0)], "and the queue is as good as before"


def test_a_release_of_what_nobody_acquired_is_at_most_a_release(ends: Ends) -> None:
    ends.put("s", RELEASE)
    assert ends.get() in ([], [("s", RELEASE)])


# --- conflation


def test_a_later_request_replaces_an_earlier_one(ends: Ends) -> None:
    for until in (10.0, 5.0, 20.0):
        ends.put("s", until)
        assert ends.server.size() == 1
    assert ends.get() == [("s", 20.0)]


def test_scopes_do_not_replace_each_other(ends: Ends) -> None:
    for n in range(50):
        ends.put(f"s{n}", 10.0 + n)
    assert sorted(ends.get()) == sorted((f"s{n}", 10.0 + n) for n in range(50))


def test_a_release_replaces_an_acquire_and_does_not_annihilate_it(ends: Ends) -> None:
    ends.put("s", 10.0)
    assert ends.server.size() == 1
    ends.put("s", RELEASE)
    assert ends.server.size() == 1
    assert ends.get() == [("s", RELEASE)]


def test_an_acquire_and_its_release_between_two_readings_come_out_as_a_release(ends: Ends) -> None:
    ends.put("s", 10.0)
    ends.put("s", RELEASE)
    assert ends.get() == [("s", RELEASE)]
    ends.put("s", 10.0)
    ends.put("s", RELEASE)
    assert ends.get() == [("s", RELEASE)]


def test_an_acquire_replaces_a_release(ends: Ends) -> None:
    ends.put("s", 10.0)
    ends.get()
    ends.put("s", RELEASE)
    assert ends.server.size() == 1
    ends.put("s", 20.0)
    assert ends.get() == [("s", 20.0)]


# --- size and get


def test_size_does_not_shrink_until_a_get(ends: Ends) -> None:
    sizes = []
    chance = random.Random(8)
    for _ in range(100):
        ends.put(f"s{chance.randrange(10)}", chance.choice([10.0, 20.0, RELEASE]))
        sizes.append(ends.server.size())
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(ends.get())


def test_what_comes_between_size_and_get_waits_for_the_next(ends: Ends) -> None:
    for scope in ("a", "b"):
        ends.put(scope, 10.0)
        size = ends.server.size()
    ends.put("c", 10.0)
    ends.put("a", RELEASE)
    first = ends.get(size)
    assert [scope for scope, _until in first] == ["a", "b"]
    assert dict(first + ends.get()) == {"a": RELEASE, "b": 10.0, "c": 10.0}


def test_get_of_size_is_exactly_that_many(ends: Ends) -> None:
    chance = random.Random(9)
    for _ in range(50):
        for _ in range(chance.randrange(6)):
            ends.put(f"s{chance.randrange(10)}", chance.choice([10.0, 20.0, RELEASE]))
        size = ends.server.size()
        for _ in range(chance.randrange(3)):
            ends.put(f"s{chance.randrange(10)}", 30.0)
        assert len(ends.server.get(size, timeout=0)) == size


def test_get_takes_no_more_than_it_was_asked_for(ends: Ends) -> None:
    for scope in ("a", "b", "c"):
        ends.put(scope, 10.0)
        ends.server.size()
    assert ends.get(2) == [("a", 10.0), ("b", 10.0)]
    assert ends.server.size() == 1
    assert ends.get(5) == [("c", 10.0)]


def test_the_longest_pending_comes_first(ends: Ends) -> None:
    for scope in ("b", "a", "c"):
        ends.put(scope, 10.0)
        ends.server.size()
    ends.put("b", 20.0)
    assert ends.get() == [("b", 20.0), ("a", 10.0), ("c", 10.0)]
    ends.put("c", 30.0)
    ends.server.size()
    ends.put("b", 30.0)
    assert [scope for scope, _until in ends.get()] == ["c", "b"]


def test_get_returns_what_is_there_when_its_time_is_over(ends: Ends) -> None:
    ends.put("a", 10.0)
    ends.put("b", 10.0)
    assert ends.get(5, timeout=0.02) == [("a", 10.0), ("b", 10.0)]
    assert ends.get(1, timeout=0.02) == []


def test_get_sees_a_release_that_comes_while_it_waits(ends: Ends) -> None:
    ends.put("s", 10.0)
    ends.get()
    with getting(ends, 2, timeout=0.3) as got:
        ends.put("s", RELEASE)
    assert got + ends.get() == [("s", RELEASE)], "at the latest when the time was over"


# --- waiting and waking


@contextmanager
def getting(ends: Ends, size: int, timeout: float = FOR_EVER) -> Iterator[list[tuple[str, float]]]:
    """Get in a thread; what it got is in the list when the ``with`` is over."""
    got: list[tuple[str, float]] = []
    thread = threading.Thread(target=lambda: got.extend(ends.get(size, timeout)), daemon=True)
    thread.start()
    yield got
    thread.join(PATIENCE)
    assert not thread.is_alive(), "get was not woken"


def test_a_get_that_waits_is_woken(ends: Ends) -> None:
    for round_ in range(20):
        with getting(ends, 1) as got:
            ends.put(f"s{round_}", 10.0 + round_)
        assert got == [(f"s{round_}", 10.0 + round_)]


def test_a_get_waits_for_as_many_as_it_was_asked_for(ends: Ends) -> None:
    for round_ in range(20):
        with getting(ends, 3) as got:
            for scope in ("a", "b", "a", "c"):
                ends.put(scope, 10.0 + round_)
        assert sorted(got) == [(scope, 10.0 + round_) for scope in ("a", "b", "c")]


def test_nothing_is_lost_between_a_producer_and_a_consumer(ends: Ends) -> None:
    """Names come and go, so that a table gives its slots to other names under the reader's eyes.

    Who has read waits for the next one to be put: it would take the table's lock again at once, and always
    before the thread that waits for it.
    """
    armed: dict[str, float] = {}
    seen: dict[str, float] = {}
    puts, done = threading.Semaphore(0), threading.Event()

    def produce() -> None:
        chance = random.Random(10)
        for n in range(1500):
            scope = f"s{chance.randrange(10)}" if n % 2 else f"once-{n // 40}"
            until = RELEASE if scope in armed and chance.random() < 0.6 else 10.0 + n
            ends.put(scope, until)
            puts.release()
            if until < 0:
                armed.pop(scope)
            else:
                armed[scope] = until
        for scope in [scope for scope in armed if scope.startswith("once")]:
            ends.put(scope, RELEASE)
            del armed[scope]
        done.set()
        puts.release()

    def note(requests: list[tuple[str, float]]) -> None:
        for scope, until in requests:
            if until < 0:
                seen.pop(scope, None)
            else:
                seen[scope] = until

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    while not done.is_set():
        assert puts.acquire(timeout=PATIENCE)
        size = ends.server.size()
        got = ends.get(size)
        assert len(got) == size
        note(got)
    thread.join(PATIENCE)
    note(ends.get())
    assert seen == armed


# --- what only some kinds can do


def test_a_queue_in_memory_holds_requests_of_many_workers() -> None:
    queue = MemoryQueue()
    for worker_id in (ME, OTHER):
        for until in (10.0, 20.0 + worker_id):
            queue.put(TimerRequest(worker_id, "s", until))
    assert queue.size() == 2
    assert queue.get(2) == [TimerRequest(ME, "s", 20.0 + ME), TimerRequest(OTHER, "s", 20.0 + OTHER)]


@pytest.mark.parametrize("kind", ["table", "socket"])
def test_a_workers_queue_takes_requests_on_nobody_else(kind: str) -> None:
    with KINDS[kind]() as ends:
        with pytest.raises(ValueError, match=str(OTHER)):
            ends.put("s", 10.0, worker_id=OTHER)
        assert ends.server.size() == 0


def test_put_in_memory_says_whether_anybody_had_to_be_told() -> None:
    queue = MemoryQueue()
    assert queue.put(TimerRequest(ME, "a", 10.0)) is True
    assert queue.put(TimerRequest(ME, "b", 10.0)) is False
    queue.get(2)
    assert queue.put(TimerRequest(ME, "a", RELEASE)) is True


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def table(clock: Clock) -> TimerTable:
    return memory_table(promise=1005.0, now=clock)


def test_put_in_a_table_rings_only_before_the_promise(table: TimerTable) -> None:
    queue = memory_queue(table)
    assert queue.put(TimerRequest(ME, "far", 1060.0)) is False
    assert queue.put(TimerRequest(ME, "near", 1001.0)) is True
    assert queue.put(TimerRequest(ME, "nearer", 1000.5)) is False, "it has rung since the last look"
    assert queue.put(TimerRequest(ME, "near", RELEASE)) is False
    assert queue.rings == [1001.0]


def test_nothing_comes_out_at_the_workers_end(ends: Ends) -> None:
    ends.put("s", 10.0)
    if ends.worker is not ends.server:
        assert ends.worker.size() == 0
        assert ends.worker.get(1, FOR_EVER) == []
    assert ends.get() == [("s", 10.0)]


@pytest.mark.parametrize(
    ("offset", "until", "stored"), [(50.0, 10.0, 60.0), (-50.0, 60.0, 10.0), (-50.0, 0.0, 0.0)]
)
def test_put_translates_into_the_servers_time(offset: float, until: float, stored: float) -> None:
    table = TimerTable(bytearray(layout.TABLE_SIZE), now=lambda: 1000.0, offset=offset)
    ends = Ends(memory_queue(table), TableConsumer(table, ME))
    ends.put("s", until)
    assert ends.get() == [("s", stored)]
    ends.put("s", RELEASE)
    assert ends.get() == [("s", RELEASE)]


def test_entries_and_keyed_timers_of_one_name_come_out_apart() -> None:
    client = MemoryClient(memory_table())
    ends = Ends(client.queue, TableConsumer(client.table, ME))
    ends.put("s", 10.0)
    with expires(60, scope="s", client=client) as first, expires(60, scope="s", client=client) as second:
        assert dict(ends.get()) == {"s": 10.0, "s\x001": first.deadline, "s\x002": second.deadline}
    assert sorted(ends.get()) == [("s\x001", RELEASE), ("s\x002", RELEASE)]


# --- the socket


class Interrupted(socket.socket):
    """A socket that is interrupted while it sends, once, by a signal's handler."""

    handler: Callable[[], object] | None = None

    def send(self, *arguments: Any) -> int:
        """Let the handler run first."""
        handler, self.handler = self.handler, None
        if handler is not None:
            handler()
        return super().send(*arguments)


def test_a_handler_that_puts_in_the_middle_of_a_send_does_not_wait_for_its_own_thread() -> None:
    """It needs another connection, and so does what it has interrupted; here there is none."""
    left, right = socket.socketpair()
    with right, Interrupted(fileno=left.detach()) as interrupted:
        interrupted.setblocking(False)
        queue = connected_queue(interrupted)
        failed: list[str] = []

        def put(scope_id: str) -> None:
            try:
                queue.put(TimerRequest(ME, scope_id, 10.0), PATIENCE)
            except ServerUnavailable:
                failed.append(scope_id)

        interrupted.handler = functools.partial(put, "of the handler")
        put("interrupted")
        assert failed == ["of the handler", "interrupted"]
        assert set(queue._pending) == set(failed), "both are sent as soon as there is one"
        assert right.recv(1000) == b"", "nothing was sent in the middle of something else"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    with left, right:
        yield left, right


def acknowledge(server: socket.socket, number: int, error: str = "") -> None:
    server.sendall(wire.encode(wire.Ack(number, error)))


def test_requests_are_numbered_and_arrive_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    worker = Messages(pair[0])
    assert [worker.send(scope, 10.0, PATIENCE) for scope in "abc"] == [1, 2, 3]
    received = list(wire.server_decoder().feed(pair[1].recv(65_536)))
    assert received == [wire.Acquire(n, scope, 10.0) for n, scope in enumerate("abc", start=1)]


def test_an_acknowledgement_covers_all_before_it(pair: tuple[socket.socket, socket.socket]) -> None:
    worker = Messages(pair[0])
    numbers = [worker.send(scope, 10.0, PATIENCE) for scope in "abc"]
    acknowledge(pair[1], 2)
    worker.wait(numbers[0], 0.0)
    worker.wait(numbers[1], 0.0)
    with pytest.raises(ConnectionError, match="in time"):
        worker.wait(numbers[2], 0.0)
    acknowledge(pair[1], 3)
    worker.wait(numbers[2], PATIENCE)


def test_an_error_is_everybodys_that_it_acknowledges(pair: tuple[socket.socket, socket.socket]) -> None:
    worker = Messages(pair[0])
    numbers = [worker.send(scope, 10.0, PATIENCE) for scope in "abcd"]
    acknowledge(pair[1], 1)
    acknowledge(pair[1], 3, "no slot is left")
    acknowledge(pair[1], 4)
    worker.wait(numbers[0], PATIENCE)
    for number in numbers[1:3]:  # one of the two failed, and nobody can tell which
        with pytest.raises(TableFull, match="no slot is left"):
            worker.wait(number, PATIENCE)
    worker.wait(numbers[3], PATIENCE)


@pytest.mark.parametrize("end", [0, 1], ids=["ours", "the peer's"])
def test_an_end_that_is_closed_is_a_connection_error(
    pair: tuple[socket.socket, socket.socket], end: int
) -> None:
    worker = Messages(pair[0])
    number = worker.send("s", 10.0, PATIENCE)
    pair[end].close()
    with pytest.raises(ConnectionError):
        worker.wait(number, PATIENCE)
    with pytest.raises(ConnectionError if end else OSError):
        worker.send("s", 10.0, PATIENCE)


def test_a_peer_that_never_reads_costs_no_more_than_the_budget(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    worker = Messages(pair[0])
    sent = 0
    with pytest.raises(ConnectionError, match="in time"):
        while sent < 100_000:
            sent = worker.send("s" * 200, 10.0, 0.01)
    assert 0 < sent < 100_000


def test_a_number_out_of_turn_is_a_protocol_error() -> None:
    server = Inbox(ME)
    server.deliver(wire.Acquire(1, "s", 10.0))
    for number in (1, 3, 0, -1):
        with pytest.raises(ProtocolError, match=f"request {number} after request 1"):
            server.deliver(wire.Acquire(number, "s", 20.0))
    assert server.get(5) == [TimerRequest(ME, "s", 10.0)]
    assert server.acknowledgement() == wire.Ack(1)


@pytest.mark.parametrize("until", [nan, inf])
def test_a_time_that_is_not_finite_is_a_protocol_error(until: float) -> None:
    server = Inbox(ME)
    with pytest.raises(ProtocolError, match="finite"):
        server.deliver(wire.Acquire(1, "s", until))
    assert server.acknowledgement("why") == wire.Ack(0, "why")
