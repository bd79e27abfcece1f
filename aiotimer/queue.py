"""Request queues: what workers ask for goes in on one side, what a server must know comes out on the other.

:class:`RequestQueue` is a *conflating* queue: of all requests for one (worker, scope) it holds the newest.
That is what lets a timer table be a queue: a slot holds the newest request by being a number in memory.

Kinds:

* :class:`TableQueue`, the default: the producer stores into a table, the consumer reads it.
* :class:`SocketQueue`: each request is a message that is acknowledged, for peers that cannot map memory.
* :class:`MemoryQueue`: within one process, for tests and embedding; also where the server collects what came
  in by socket.

One contract suite, ``tests/contract/test_queue.py``, runs over all of them.
"""

from __future__ import annotations

import select
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic
from typing import NamedTuple

from ._core import layout, wire
from ._core.reader import TableReader
from ._core.requests import RELEASE, TimerRequest, WorkerId
from ._core.table import Cell, TimerTable
from .errors import ProtocolError, TableFull


class RequestQueue(ABC):
    """A conflating queue of :class:`TimerRequest`, with the contract of torch's ``RequestQueue``.

    * ``put`` never blocks on the consumer. A later request for the same (worker, scope) replaces an
      earlier one that is pending; a release replaces an acquire, it does not annihilate it: the
      consumer still gets the release.
    * ``size`` is the number of requests that have changed since the last ``get``. It may grow between a
      ``size`` and a ``get``, and never shrinks until a ``get`` takes requests out.
    * ``get(size(), timeout=0)`` returns exactly that many requests.
    * ``get`` waits at most ``timeout`` seconds, and returns what is there when that time is over, possibly
      fewer than asked for, or none.
    """

    @abstractmethod
    def put(self, request: TimerRequest) -> bool:
        """Add a request.

        Returns:
            Whether the consumer had to be told; of a table, whether the doorbell was due.

        Raises:
            ValueError: the expiration time is not finite, or the request is on another worker.
        """

    @abstractmethod
    def size(self) -> int:
        """Return how many requests are pending for :meth:`get`."""

    @abstractmethod
    def get(self, size: int, timeout: float = 0.0) -> list[TimerRequest]:
        """Take up to ``size`` requests out, waiting at most ``timeout`` seconds for so many.

        Args:
            size: the most to return.
            timeout: seconds, relative.

        Returns:
            Requests, one per (worker, scope), the longest pending first.
        """


class MemoryQueue(RequestQueue):
    """A request queue within one process. Safe from any thread."""

    def __init__(self) -> None:
        self._pending: dict[tuple[WorkerId | int, str], TimerRequest] = {}
        self._changed = threading.Condition(threading.Lock())

    def put(self, request: TimerRequest) -> bool:
        """Add a request; the consumer is told if it waits."""
        layout.as_stored(request.expiration_time)  # refuses what cannot be a deadline
        with self._changed:
            first = not self._pending
            self._pending[request.worker_id, request.scope_id] = request
            self._changed.notify()
        return first

    def size(self) -> int:
        """Return how many (worker, scope) have a new request."""
        return len(self._pending)

    def get(self, size: int, timeout: float = 0.0) -> list[TimerRequest]:
        """Take up to ``size`` requests out, waiting at most ``timeout`` seconds for so many."""
        until = monotonic() + timeout
        with self._changed:
            while len(self._pending) < size and (left := until - monotonic()) > 0:
                self._changed.wait(left)
            keys = list(self._pending)[:size]
            return [self._pending.pop(key) for key in keys]


class _Seen(NamedTuple):
    """What a consumer found in a slot when it last read it."""

    deadline: float
    acquired: float
    key: str | None


_NEVER_USED = _Seen(inf, 0.0, None)


class TableQueue(RequestQueue):
    """A timer table seen as a request queue: requests of one worker, on itself.

    The producer uses :meth:`put` or :meth:`cell`; a consumer, which may be another object over the same
    table in another process, uses :meth:`size` and :meth:`get`. It also gets the entries of ``expires``, each
    under a key of its own (``layout.timer_key``). A table shows what has changed since it was last read, not
    in which order: *longest pending* is by reading.

    Args:
        table: the table.
        worker_id: the worker that all requests are on.
        ring: called with a deadline that the consumer has not promised to look for.
        wait: called with seconds; returns when rung or when they are over.
        read: how to read the table, ``read(size, offset)``; by default from the table's own buffer.
    """

    def __init__(
        self,
        table: TimerTable,
        worker_id: WorkerId | int,
        ring: Callable[[float], object] = lambda _deadline: None,
        wait: Callable[[float], object] | None = None,
        read: Callable[[int, int], bytes] | None = None,
    ) -> None:
        self._table = table
        self._worker_id = worker_id
        self._ring = ring
        self._wait = wait
        self._reader = TableReader(read or self._read_own)
        self._pending: dict[str, TimerRequest] = {}
        self._seen: dict[int, _Seen] = {}
        self._slot_of: dict[str, int] = {}  # where the newest acquire of a key was found

    # -- the producer ----------------------------------------------------------------------------

    def cell(self, scope_id: str) -> Cell:
        """Return the cell of a scope: ``cell(s).set(t, now)`` is what ``put`` does, without the ring."""
        return self._table.cell(scope_id)

    def put(self, request: TimerRequest) -> bool:
        """Store a request, and ring if the consumer has to be told."""
        if request.worker_id != self._worker_id:
            raise ValueError(f"a request on {request.worker_id!r} in the table of {self._worker_id!r}")
        table = self._table
        until = layout.shifted(request.expiration_time, table.offset)
        if not table.set((request.scope_id, 0), until, table.now()):
            return False
        self._ring(until)
        return True

    # -- the consumer ----------------------------------------------------------------------------

    def size(self) -> int:
        """Return how many timers have changed, by comparing the table with what was seen last."""
        self._read()
        return len(self._pending)

    def get(self, size: int, timeout: float = 0.0) -> list[TimerRequest]:
        """Take up to ``size`` requests out, waiting for the bell at most ``timeout`` seconds."""
        until = monotonic() + timeout
        while len(self._pending) < size:
            self._promise()
            self._read()  # after the promise: the second read of a look
            left = until - monotonic()
            if len(self._pending) >= size or left <= 0 or self._wait is None:
                break
            self._wait(left)
        scopes = list(self._pending)[:size]
        return [self._pending.pop(scope) for scope in scopes]

    def _promise(self) -> None:
        """Promise nothing, so that every acquire rings."""
        cells = self._table.cells
        cells[layout.PROMISE] = inf
        cells[layout.LOOKS] += 1.0

    def _read(self) -> None:
        """Note what has changed since the last reading.

        A slot that changes again meanwhile is left for the next one: its label may belong to either value.
        Releases come first, since a key that has lost its slot may have been acquired again in another.
        """
        changed = {
            slot: _Seen(*now, self._reader.key(slot))
            for slot, now in self._words()
            if now != self._seen.get(slot, _NEVER_USED)[:2]
        }
        still = dict(self._words()) if changed else {}
        settled = [(slot, now) for slot, now in changed.items() if still.get(slot) == now[:2]]
        for slot, now in settled:
            before = self._seen.get(slot, _NEVER_USED)
            if before.key != now.key and layout.is_armed(before.deadline):
                self._released(before.key, slot)
            if not layout.is_armed(now.deadline) and (now.acquired or now.key == before.key):
                # An acquire and a release between two readings leave only a count: the release is passed on.
                self._released(now.key, slot)
            self._seen[slot] = now
        for slot, now in settled:
            if now.key is not None and layout.is_armed(now.deadline):
                self._slot_of[now.key] = slot
                self._changed(now.key, layout.as_requested(now.deadline))

    def _words(self) -> Iterator[tuple[int, tuple[float, float]]]:
        """Yield every slot with its deadline and its count."""
        deadlines = self._reader.deadlines()
        counts = self._reader.counts(len(deadlines))
        return enumerate(zip(deadlines, counts, strict=False))

    def _released(self, key: str | None, slot: int) -> None:
        if key is not None and self._slot_of.get(key, slot) == slot:
            self._slot_of.pop(key, None)
            self._changed(key, RELEASE)

    def _changed(self, scope_id: str, expiration_time: float) -> None:
        self._pending[scope_id] = TimerRequest(self._worker_id, scope_id, expiration_time)

    def _read_own(self, size: int, offset: int) -> bytes:
        return bytes(self._table.raw[offset : offset + size])


class SocketQueue(MemoryQueue):
    """Requests as numbered messages on a connected socket, each acknowledged. Safe from any thread.

    One object stands at each end. The worker's end is :meth:`put` (or :meth:`send`, then :meth:`wait`);
    at the server's end whoever reads the socket calls :meth:`deliver`, takes the requests out with
    ``get(size())``, applies them, and answers with :meth:`acknowledgement`.

    Args:
        sock: a non-blocking stream socket.
        worker_id: the worker that all requests are on.
        budget: seconds that ``put`` may take.
    """

    def __init__(self, sock: socket.socket, worker_id: WorkerId | int, budget: float = 1.0) -> None:
        super().__init__()
        self._socket = sock
        self._worker_id = worker_id
        self._budget = budget
        self._number = 0  # of the last request: sent at one end, delivered at the other
        self._acknowledged = 0
        self._errors: dict[int, str] = {}
        self._reading = threading.Lock()  # held by the thread that reads
        self._decoder = wire.client_decoder()

    # -- the worker's end ------------------------------------------------------------------------

    def put(self, request: TimerRequest) -> bool:
        """Send a request and wait for its acknowledgement.

        Raises:
            ConnectionError: it was not acknowledged within the budget, or the connection is gone.
            TableFull: the server has no room for it.
        """
        if request.worker_id != self._worker_id:
            raise ValueError(f"a request on {request.worker_id!r} by {self._worker_id!r}")
        self.wait(self.send(request.scope_id, request.expiration_time), self._budget)
        return True

    def send(self, key: str, expiration_time: float, budget: float | None = None) -> int:
        """Send a request for the timer of a key (see ``layout.timer_key``) and return its number.

        Interrupted or failed, it leaves a connection on which nothing more can be sent.

        Args:
            key: whose.
            expiration_time: as in a :class:`TimerRequest`.
            budget: seconds this may take, by default the queue's.

        Raises:
            ConnectionError: it could not be sent within the budget.
        """
        layout.as_stored(expiration_time)
        until = monotonic() + (self._budget if budget is None else budget)
        with self._changed:
            number = self._number + 1
            frame = wire.encode(wire.Acquire(number, key, expiration_time))
            while True:
                try:
                    sent = self._socket.send(frame, socket.MSG_NOSIGNAL)
                    break
                except BlockingIOError:
                    self._wait_ready(select.POLLOUT, until)
            if sent != len(frame):
                self._socket.close()  # half a frame: nothing more can be sent on this connection
                raise ConnectionError("the connection took only a part of a request")
            self._number = number
        return number

    @property
    def sent(self) -> int:
        """The number of the last request sent."""
        return self._number

    @property
    def acknowledged(self) -> bool:
        """Whether all that was sent has been acknowledged, as far as anybody has read."""
        return self._acknowledged >= self._number

    def ready(self) -> bool:
        """Whether a request can be sent without waiting."""
        return bool(self._poll(select.POLLOUT, 0.0))

    def wait(self, number: int, timeout: float) -> None:
        """Wait until a request is acknowledged; one waiting thread at a time reads for all of them.

        Raises:
            ConnectionError: it was not within ``timeout`` seconds.
            TableFull: the server has no room for it.
        """
        until = monotonic() + timeout
        while self._acknowledged < number:
            if not self._reading.acquire(timeout=max(0.0, until - monotonic())):
                raise ConnectionError(f"no acknowledgement within {timeout:g} s")
            try:
                if self._acknowledged < number:
                    for message in self._receive(until):
                        self._note(message)
            finally:
                self._reading.release()
        error = self._errors.pop(number, None)
        if error:
            raise TableFull(layout.SLOTS, error)

    def _note(self, message: wire.Ack) -> None:
        """An error may be of any request that it acknowledges: nobody may take his own for armed."""
        if message.error:
            last = min(message.number, self._number + 1)  # one more may just have been sent
            self._errors.update(dict.fromkeys(range(self._acknowledged + 1, last + 1), message.error))
        self._acknowledged = message.number

    def _receive(self, until: float) -> list[wire.Ack]:
        self._wait_ready(select.POLLIN, until)
        try:
            data = self._socket.recv(65_536)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionError("the server closed the connection")
        return [m for m in self._decoder.feed(data) if isinstance(m, wire.Ack)]

    def _wait_ready(self, event: int, until: float) -> None:
        if not self._poll(event, max(0.0, until - monotonic())):
            raise ConnectionError("the server did not answer in time")

    def _poll(self, event: int, timeout: float) -> object:
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise ConnectionError("the connection has been closed")
        poll = select.poll()
        poll.register(descriptor, event)
        return poll.poll(timeout * 1000)

    # -- the server's end ------------------------------------------------------------------------

    def deliver(self, message: wire.Acquire) -> None:
        """Take in a message that arrived.

        Raises:
            ProtocolError: its number is not the next one, or it cannot be a timer.
        """
        if message.number != self._number + 1:
            raise ProtocolError(f"request {message.number} after request {self._number}")
        try:
            super().put(TimerRequest(self._worker_id, message.key, message.expiration_time))
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        self._number = message.number

    def acknowledgement(self, error: str = "") -> wire.Ack:
        """Return the acknowledgement of everything delivered so far."""
        return wire.Ack(self._number, error)
