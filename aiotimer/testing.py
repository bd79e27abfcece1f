"""Virtual timers, to test your own code's deadlines: in memory, with a clock that you move, and with a reaper
that keeps a record.

The laws of this file:

* What decides is the real code of ``_core``: the table, the look, and what has been dealt with. Only the
  clock, the memory and the kill are replaced.
* Time passes in :meth:`VirtualTimers.advance` and nowhere else. What falls due on the way happens at its own
  time, in order. Nobody is killed.
* Nothing leaves the process: no socket, no server, no file. A forked child has a copy of it all.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, isfinite
from time import monotonic
from typing import NamedTuple

from ._core import layout
from ._core.table import TimerTable
from ._core.watch import Lifeline, Look, Watch
from ._linux.paths import SOCKET_VARIABLE
from .client.clients import AsyncTimerClient, TimerClient, default
from .client.connection import ClientConnection, _connections, reader_of
from .client.first_entries import entries
from .client.shared_table import SharedTableQueue
from .client.socket_only import SocketQueue

__all__ = ["Expiry", "VirtualTimers", "virtual"]


class Expiry(NamedTuple):
    """A kill that would have been: this process, because a timer expired.

    Attributes:
        scope: the timer's name, as reports show it (``"step"``; ``"step#2"`` for a second concurrent entry).
        at: when, in seconds of :attr:`VirtualTimers.now`.
        late: seconds by which the deadline had passed by then. 0.0, unless it had passed when it was armed.
    """

    scope: str
    at: float
    late: float = 0.0


class VirtualTimers:
    """Timers on a virtual clock, and a record of what they would have done. Made by :func:`virtual`.

    It stands for one worker and its server. As there, one expired timer reaps the worker once, and deals with
    all that was armed then; but here the code goes on, and what it arms afterwards counts again. Safe from
    any thread.

    Attributes:
        reaped: each kill that would have been, in order.
        client: a client for what takes one; it is also the default client.
        async_client: the same for coroutines.
    """

    def __init__(self) -> None:
        self.reaped: list[Expiry] = []
        self._began = monotonic()
        self._now = layout.EXPIRED_AT_ONCE  # the first moment at which a deadline of 0 is over
        self._lock = threading.RLock()
        self._soft_limits: list[_SoftLimit] = []
        self._wake_at = inf
        self._path = f"/dev/null/virtual-timers-{next(_numbers)}"  # no process can ever connect there
        memory = mmap.mmap(-1, layout.TABLE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._table = table = TimerTable(memory, now=lambda: self._now, offset=-self._began)
        table.cells[layout.PROMISE] = inf
        self._reader = reader_of(table)
        still = Lifeline(0.0, beat=inf)  # we never stand still
        self._watch = Watch(still, connected=True, bound=inf, armings=self._reader.armings)
        self._connection = connection = ClientConnection(self._path, lambda one: _VirtualQueue(one, self))
        connection.queue.watched = table
        connection.connected = connection.welcomed = True
        with _registered(connection):
            self.client = TimerClient(self._path, unavailable="raise")
            self.async_client = AsyncTimerClient(self._path, unavailable="raise")

    def __repr__(self) -> str:
        return f"<VirtualTimers, {self.now:g} s old: armed {self.armed}, reaped {self.reaped}>"

    @property
    def now(self) -> float:
        """Seconds since this object was made: the sum of what the clock was advanced by."""
        return self._now - layout.EXPIRED_AT_ONCE

    def monotonic(self) -> float:
        """Return what ``time.monotonic()`` would return by the virtual clock.

        Give it to code that computes the deadlines for ``acquire``. ``Block.deadline`` is on the same clock.
        """
        return self._began + self._now

    @property
    def armed(self) -> list[str]:
        """The names of the timers that are armed and not dealt with, the soonest to expire first."""
        with self._lock:
            timers = self._reader.timers()
            return [t.name for t in timers if not self._watch.cleared(t.slot, t.deadline)]

    def advance(self, seconds: float) -> None:
        """Let time pass.

        An event loop does not run meanwhile, as if it were blocked for so long: a task that ``grace`` has
        cancelled gets to know when it is awaited next.

        Args:
            seconds: how long; 0 or more.

        Raises:
            ValueError: it is negative, or not finite.
        """
        if not (isfinite(seconds) and seconds >= 0):
            raise ValueError(f"time advances by a finite number of seconds, 0 or more, not by {seconds!r}")
        with self._lock:
            until = self._now + seconds
            while (then := min(self._wake_at, self._next_soft_limit())) <= until:
                self._now = max(self._now, then)
                while self._next_soft_limit() <= self._now:
                    heapq.heappop(self._soft_limits).fire()
                if self._wake_at <= self._now:
                    self._look()
            self._now = until

    # -- the server's part -----------------------------------------------------------------------

    def _rung(self, deadline: float) -> None:
        """The worker rings: look at once."""
        with self._lock:
            self._watch.ring(deadline)
            self._look()

    def _look(self) -> None:
        while True:
            look = self._watch.look(self._reader.deadlines(), self._now)
            self._reap(look)
            self._table.cells[layout.PROMISE] = look.promise
            self._table.cells[layout.LOOKS] += 1.0
            self._wake_at = look.wake_at
            if not self._watch.overlooked(self._reader.deadlines(), look.wake_at):
                return  # else another thread has stored meanwhile

    def _reap(self, look: Look) -> None:
        for due in look.due:
            timer = self._reader.timer(due.slot, due.deadline)
            if timer is not None:
                self.reaped.append(Expiry(timer.name, self.now, self._now - due.effective))
                self._forget()
                return

    def _forget(self) -> None:
        self._watch.clear(self._reader.deadlines())

    # -- soft limits -----------------------------------------------------------------------------

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> _SoftLimit:
        loop = asyncio.get_running_loop()
        with self._lock:
            limit = _SoftLimit(self._now + seconds, next(_numbers), loop, callback)
            heapq.heappush(self._soft_limits, limit)
        return limit

    def _next_soft_limit(self) -> float:
        limits = self._soft_limits
        while limits and limits[0].callback is None:
            heapq.heappop(limits)
        return limits[0].at if limits else inf


@contextmanager
def virtual() -> Iterator[VirtualTimers]:
    """Run a block, or a decorated function, on virtual timers.

    In it, ``expires`` and every client that names no server (``configure()`` makes one, too) use a table in
    memory and a clock that stands still until you advance it, and no scope has had its first entry. What was
    configured before is so again afterwards. One such block at a time is in force in a process, the innermost
    one.

    Yields:
        The timers: the clock, and the record.
    """
    timers = VirtualTimers()
    former_path = os.environ.get(SOCKET_VARIABLE)
    former_client = default.client
    with _registered(timers._connection), entries.anew():
        os.environ[SOCKET_VARIABLE] = timers._path
        default.client = timers.client
        try:
            yield timers
        finally:
            default.client = former_client
            if former_path is None:
                os.environ.pop(SOCKET_VARIABLE, None)
            else:
                os.environ[SOCKET_VARIABLE] = former_path


_numbers = itertools.count(1)


class _SoftLimit:
    """A callback at a time, in a loop. Of two at one time the older comes first."""

    def __init__(
        self, at: float, number: int, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]
    ) -> None:
        self.at = at
        self.number = number
        self.loop = loop
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: _SoftLimit) -> bool:
        return (self.at, self.number) < (other.at, other.number)

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is None or self.loop.is_closed():
            return
        if asyncio._get_running_loop() is self.loop:
            callback()
        else:
            self.loop.call_soon_threadsafe(callback)


class _VirtualQueue(SharedTableQueue):
    """The queue to a server that is an object of this process. It is connected from its first day on."""

    def __init__(self, connection: ClientConnection, timers: VirtualTimers) -> None:
        super().__init__(connection)
        self.call_later = timers._call_later
        self._timers = timers

    def _first_table(self) -> TimerTable:
        table = self._timers._table
        table.pools = self.pools
        return table

    def must_connect(self, *, insist: bool) -> bool:
        return False

    def make_table(self) -> TimerTable:
        return self.table or self._first_table()

    def ring(self, deadline: float) -> bool:
        table = self._timers._table
        looks = table.looks()
        self._timers._rung(deadline)
        table.rang(looks, table.now())
        return True

    def depart(self) -> None:
        self._timers._table.disarm()
        self._timers._forget()  # the last client has left: the server forgets it all


@contextmanager
def _registered(connection: ClientConnection) -> Iterator[None]:
    """Make clients of either kind at the connection's path use that connection, whatever their number."""
    keys = [(connection.path, SharedTableQueue), (connection.path, SocketQueue)]
    _connections.update(dict.fromkeys(keys, connection))
    try:
        yield
    finally:
        for key in keys:
            _connections.pop(key, None)
