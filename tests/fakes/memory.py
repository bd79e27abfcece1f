"""Timer tables in memory, and clients over them whose server is the test.

The law of this file: nothing here starts a thread, opens a socket or reads a file; what ``expires`` and
``acquire`` do to a table is all there is.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from math import inf, nan
from time import monotonic
from typing import TypeVar, cast

import aiotimer
from aiotimer import RequestQueue, TimerRequest
from aiotimer._core import layout
from aiotimer._core.reader import Read, TableReader, Timer
from aiotimer._core.table import TimerTable
from aiotimer._linux.table_files import TableFile
from aiotimer.client.connection import ClientConnection, WorkerQueue
from aiotimer.client.shared_table import SharedTableQueue
from aiotimer.client.socket_only import SocketQueue
from aiotimer.client.waiting import Steps, Wait
from tests.fakes.clock import PATIENCE

Q = TypeVar("Q", bound=WorkerQueue)


def memory_table(
    promise: float = inf,
    *,
    now: Callable[[], float] = monotonic,
    grow: Callable[[int], None] = lambda _slots: None,
) -> TimerTable:
    """Return a table in anonymous memory, as a server that has promised ``promise`` would hand it out.

    Args:
        promise: when the server looks next: ``inf`` makes everything ring, 0.0 makes it a late one.
        now: the table's clock; a virtual one for tests of time.
        grow: makes memory for more slots; here there is always enough.
    """
    table = TimerTable(mmap.mmap(-1, layout.TABLE_SIZE), grow, now=now)
    table.cells[layout.PROMISE] = promise
    return table


def reading(table: TimerTable) -> Read:
    """Return how to read a table from outside: ``read(size, offset)``, cut off at its end like ``pread``."""
    raw = table.raw
    return lambda size, offset: bytes(raw[offset : offset + size])


class MemoryFile(TableFile):
    """The file of a table in memory, for a server's side of it.

    Args:
        table: the worker's side.
    """

    __slots__ = ("raw",)

    def __init__(self, table: TimerTable) -> None:
        super().__init__(0, None, 1, "shared")
        self.raw = table.raw

    def read(self, size: int, offset: int) -> bytes:
        """Return what is there, unless it is closed."""
        return b"" if self.descriptor < 0 else bytes(self.raw[offset : offset + size])

    def write(self, data: bytes, offset: int) -> None:
        """Store it."""
        if self.descriptor < 0:
            raise OSError("closed")
        self.raw[offset : offset + len(data)] = data

    def close(self, _close: object = None) -> None:
        """Read as empty from now on."""
        self.descriptor = -1


def acquisitions_of(table: TimerTable) -> int:
    """Return how many timers have been armed in a table since it was made."""
    counts = table.cells[layout.FIRST_COUNT : layout.FIRST_COUNT + table.high_water]
    return int(table.cells[layout.RETIRED]) + sum(map(int, counts))


def armed_cells(table: TimerTable) -> dict[tuple[str, int], float]:
    """Return the keyed timers that are armed in a table, and their deadlines."""
    armed = {key: table.cells[cell.word] for key, cell in table._cells_of.copy().items()}
    return {key: deadline for key, deadline in armed.items() if layout.is_armed(deadline)}


def timers_of(table: TimerTable) -> list[Timer]:
    """Return what is armed in a table, soonest first, as a server reads it."""
    return TableReader(reading(table)).timers()


def names_of(table: TimerTable) -> list[str]:
    """Return the names of what is armed in a table, in alphabetical order."""
    return sorted(timer.name for timer in timers_of(table))


class TableConsumer(RequestQueue):
    """The other end of a worker's queue, in the same process: what has changed in its table.

    It also gets the entries of ``expires``, each under a key of its own (``layout.timer_key``). A table shows
    what has changed since it was last read, not in which order: *longest pending* is by reading.

    Args:
        table: the table.
        worker_id: the worker whose it is.
        wait: called with seconds; returns when rung or when they are over.
    """

    def __init__(
        self, table: TimerTable, worker_id: int, wait: Callable[[float], object] | None = None
    ) -> None:
        self._table = table
        self._worker_id = worker_id
        self._wait = wait
        self._reader = TableReader(reading(table))
        self._pending: dict[str, TimerRequest] = {}
        self._seen: dict[str, tuple[float, float]] = {}

    def put(self, request: TimerRequest) -> bool:
        """Refuse: only the worker stores."""
        raise NotImplementedError

    def size(self) -> int:
        """Return how many timers have changed, by comparing the table with what was seen last."""
        self._read()
        return len(self._pending)

    def get(self, size: int, timeout: float = 0.0) -> list[TimerRequest]:
        """Take up to ``size`` requests out, waiting for the bell at most ``timeout`` seconds."""
        until = monotonic() + timeout
        while len(self._pending) < size:
            # Promise nothing, so that every acquire rings; then read: the second read of a look.
            self._table.cells[layout.PROMISE] = inf
            self._table.cells[layout.LOOKS] += 1.0
            self._read()
            left = until - monotonic()
            if len(self._pending) >= size or left <= 0 or self._wait is None:
                break
            self._wait(left)
        scopes = list(self._pending)[:size]
        return [self._pending.pop(scope) for scope in scopes]

    def _read(self) -> None:
        """Note what has changed: the deadline of a key, or how often it was armed."""
        never = inf, 0.0
        now: dict[str, tuple[float, float]] = {}
        with self._table.lock:  # so that nobody is putting
            deadlines = self._reader.deadlines()
            counts = self._reader.counts(len(deadlines))
            for slot, words in enumerate(zip(deadlines, counts, strict=True)):
                key = self._reader.key(slot)
                if key not in now or layout.is_armed(words[0]):
                    now[key] = words  # a name may have moved, and have left its label behind
        for key in self._seen | now:
            words, before = now.get(key, never), self._seen.get(key, never)
            if words != before and (key in now or layout.is_armed(before[0])):
                self._pending[key] = TimerRequest(self._worker_id, key, layout.as_requested(words[0]))
        self._seen = now


class MemoryTableQueue(SharedTableQueue):
    """A queue whose table is in memory, and whose server is the test.

    Attributes:
        rings: the deadlines that were rung, in order.
    """

    def __init__(self, connection: ClientConnection, table: TimerTable) -> None:
        super().__init__(connection)
        self.rings: list[float] = []
        self._in_memory = table
        self.next_channel_attempt = inf  # nobody asks

    def _first_table(self) -> TimerTable:
        self._in_memory.pools = self.pools
        return self._in_memory

    def must_connect(self, *, insist: bool) -> bool:
        """Return False."""
        return False

    def make_table(self) -> TimerTable:
        """Return the table."""
        return self._in_memory

    def ring(self, deadline: float) -> bool:
        """Record it, as a ring that was sent."""
        looks = self._in_memory.looks()
        self.rings.append(deadline)
        self._in_memory.rang(looks, self._in_memory.now())
        return True


class SentQueue(SocketQueue):
    """A queue without a shared table, over one in memory; each request is acknowledged when it is sent.

    Attributes:
        sent: each request, as (key, expiration time, the seconds that it might have taken).
    """

    def __init__(self, connection: ClientConnection, table: TimerTable) -> None:
        super().__init__(connection)
        self._in_memory = table
        table.cells[layout.PROMISE] = nan
        self.sent: list[tuple[str, float, float]] = []

    def _first_table(self) -> TimerTable:
        self._in_memory.pools = self.pools
        return self._in_memory

    def _sending(self, key: str, deadline: float, word: int, *, blocks_loop: bool) -> Steps[None]:
        def send(seconds: float) -> None:
            self.sent.append((key, self._requested(key, word), seconds))

        yield Wait(call=send)


def queue_over(table: TimerTable, kind: Callable[[ClientConnection, TimerTable], Q]) -> Q:
    """Return a queue over a table in memory, whose connection is connected to nobody."""
    made: list[Q] = []

    def make(connection: ClientConnection) -> WorkerQueue:
        made.append(kind(connection, table))
        return made[0]

    connection = ClientConnection("/nowhere", make)
    connection.connected = connection.welcomed = True
    made[0].watched = table if made[0].shared else None
    return made[0]


def memory_queue(table: TimerTable) -> MemoryTableQueue:
    """Return the usual one, which has a shared table."""
    return queue_over(table, MemoryTableQueue)


class MemoryClient(aiotimer.TimerClient):
    """A client of a queue in memory: what ``expires`` and ``acquire`` do to a table, no more.

    Args:
        table: where its timers are.
        queue: over that table; by default one with a shared table.
    """

    __slots__ = ("table",)

    def __init__(self, table: TimerTable, queue: WorkerQueue | None = None) -> None:
        self.table = table
        self._queue = memory_queue(table) if queue is None else queue
        self._hook = None
        self._closed = False
        self._pools, self._sites = self._queue.pools, self._queue.sites
        self._unavailable = "raise"
        self._budget = PATIENCE

    @property
    def rings(self) -> list[float]:
        """The deadlines that were rung, in order."""
        return cast(MemoryTableQueue, self._queue).rings
