"""A worker as the server knows it: a pinned process, the tables it has timers in, and its reaping.

The laws of this file: signals go through the pidfd (``_linux/signals`` tells to whom besides); one SIGKILL is
sent, not a stream of them; only a readable pidfd means dead. Signals go out with the server's own rights: the
process was its user's when it was pinned, and it counts as such as long as it runs the same program.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from math import inf
from mmap import mmap
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._core.ladder import KILL, ReapGrant
from .._core.reader import Timer
from .._core.requests import TimerRequest, WorkerId
from .._core.table import TimerTable
from .._core.watch import Due
from .._linux.process import is_dead
from .._linux.procfs import foreign_uid, maps_file, name_of, runs_another_program
from .._linux.signals import signal_target
from ..events import Event
from ..evidence import Subject
from .inspection_channel import InspectionChannel, inspect_loops
from .watched_table import WatchedTable

if TYPE_CHECKING:
    from .expiry import Expiry

UNKILLABLE_AFTER = 10.0
"""Seconds after SIGKILL at which a process that is still there is reported as unkillable."""

_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0
"""Seconds before a reap that failed is tried again: doubled each time, up to the second."""


class Worker:
    """One worker process.

    Attributes:
        id: who it is.
        pidfd: the process, pinned.
        pidfd_inode: unique to the process since Linux 6.9 (pidfs), shared by all before.
        name: its command name.
        tables: every table it has timers in.
        own_tables: by kind, the tables that the server itself stores into on its behalf.
        connections: how many are open.
        inspection_channels: to its event loops that answer questions.
        heard_at: its own clock, seconds, in the latest HELLO that listed its timers.
        reap_grant: how it is to be reaped, of what it asked for.
        reaping: the expiry it is being reaped for, from the first action on it on.
        failed: the expiry of a reap that is to be tried again.
        spared: the last run of its ladder ended without a signal.
        shortfall: why only the process itself was signalled, "" if all that was wanted was.
        signalled: a signal has been sent.
        killed: SIGKILL has been sent.
        died_first: it was dead already when it was to be sent.
        refusal: why the kernel does not let it be killed, "" if that has not been tried or has worked.
        refusal_told: that has been reported.
        retry_at: ``CLOCK_MONOTONIC``; when a reap that has failed is tried again. 0.0: none is pending.
        reap_under_way: a coroutine of the server's owner is reaping it.
        postponed: what has expired and is not dealt with.
        on_hold: what has expired while it could not run, as long as the hold lasts.
    """

    def __init__(self, worker_id: WorkerId, pidfd: int, loop: asyncio.AbstractEventLoop) -> None:
        self.id = worker_id
        self.pidfd = pidfd
        self.pidfd_inode = os.fstat(pidfd).st_ino
        self.name = name_of(worker_id.pid)
        self.tables: list[WatchedTable] = []
        self.own_tables: dict[str, tuple[WatchedTable, TimerTable]] = {}
        self.connections = 0
        self.inspection_channels: list[InspectionChannel] = []
        self.heard_at = -inf
        self.reap_grant = ReapGrant()
        self.reaping: Expiry | None = None
        self.failed: Expiry | None = None
        self.spared = False
        self.shortfall = ""
        self.signalled = False
        self.killed = False
        self.died_first = False
        self.refusal = ""
        self.refusal_told = False
        self.retry_at = 0.0
        self.reap_under_way = False
        self.postponed: list[tuple[WatchedTable, tuple[Due, ...]]] = []
        self.on_hold: list[tuple[WatchedTable, tuple[Due, ...]]] = []
        self._backoff = _FIRST_RETRY
        self._loop = loop
        self._unkillable: asyncio.TimerHandle | None = None
        self._death: asyncio.Future[None] | None = None

    def send(self, number: int, target: str, on_unkillable: Any = None) -> bool:
        """Send a signal. Returns True: that is done, or it is dead; False: it cannot be, see ``refusal``.

        Args:
            number: which; SIGKILL once.
            target: to whom, see ``_linux/signals``.
            on_unkillable: called with this worker if it is there ``UNKILLABLE_AFTER`` seconds after SIGKILL.
        """
        try:
            if is_dead(self.pidfd):  # a zombie would take the signal, and it would prove nothing
                raise ProcessLookupError
            self.shortfall = signal_target(target, self.id.pid, self.pidfd, number)
        except ProcessLookupError:
            self.died_first = not self.signalled  # by itself, just before
            return True
        except OSError as error:
            again = f"it will be tried again, soon only every {_LAST_RETRY:g} s"
            self.refusal = f"{error.strerror}; {again}"
            return False
        self.signalled = True
        if number == KILL:
            self.killed = True
            self._unkillable = self._loop.call_later(UNKILLABLE_AFTER, on_unkillable, self)
        return True

    def death(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return what is done when it is dead."""
        if self._death is None:
            self._death = loop.create_future()
        return self._death

    def has_died(self) -> None:
        """It is dead: whoever waits for that goes on."""
        if self._death is not None and not self._death.done():
            self._death.set_result(None)

    def settle(self) -> None:
        """It has been reaped, as far as its server is concerned: what is armed from now on is new."""
        self.postponed.clear()
        self.clear()
        self._backoff = _FIRST_RETRY
        self.refusal, self.refusal_told = "", False

    def back_off(self) -> float:
        """A reap failed: return after how many seconds to try again."""
        pause, self._backoff = self._backoff, min(2 * self._backoff, _LAST_RETRY)
        self.retry_at = monotonic() + pause
        return pause

    def has_left(self, table: WatchedTable, *, maps: bool = False) -> bool:
        """Whether it runs another program by now than the one that armed what is in a table.

        What the server's owner armed is meant for the process, whatever it runs; but not for another user's,
        which it is by now if it has executed a set-uid program. That it has dropped its uid does not count.

        Args:
            table: one of its tables.
            maps: look into its memory too, which can take a while: whether it still maps the table.
        """
        kind = table.file.kind
        if kind == "owner" and not self._is_foreign():
            return False
        # An earlier version noted no program for the owner's timers: then nothing says that it is the same.
        unknown = kind == "owner" and not table.program
        left = unknown or runs_another_program(self.id.pid, table.program)
        if not left and maps and kind == "shared":
            with contextlib.suppress(OSError):  # it is not shown
                left = maps_file(self.id.pid, table.file.inode) is False
        return left and not is_dead(self.pidfd)  # else the pid may be another's by now

    def _is_foreign(self) -> bool:
        try:
            return foreign_uid(self.id.pid) is not None
        except OSError:  # it is gone; or there is no descriptor to look with
            return False

    def table_of(self, inode: int) -> WatchedTable | None:
        """Return its table with that inode."""
        return next((t for t in self.tables if t.file.inode == inode), None)

    def timers(self) -> Iterator[Timer]:
        """Yield its armed timers, soonest first within each table."""
        for table in self.tables:
            yield from table.timers()

    def subject(self, scope: str = "", slots: tuple[int, ...] = ()) -> Subject:
        """Return it as something to find evidence about.

        Args:
            scope: the timer in question.
            slots: where that is in the table that it shares.
        """
        shared = next((table.file for table in self.tables if table.file.kind == "shared"), None)
        return Subject(
            self.id,
            self.pidfd,
            self.name,
            scope,
            slots,
            -1 if shared is None else shared.descriptor,
            0 if shared is None else shared.inode,
            functools.partial(inspect_loops, self.inspection_channels, slots)
            if self.inspection_channels
            else None,
        )

    def clear(self) -> None:
        """Deal with everything that is armed now."""
        for table in self.tables:
            table.watch.clear(table.reader.deadlines())

    def expired(self, deadline: float) -> list[TimerRequest]:
        """Return what has expired by ``deadline`` and has not been cleared."""
        return [
            TimerRequest(self.id, timer.name, due.deadline)
            for table in self.tables
            for due in table.watch.expired(table.reader.deadlines(), deadline)
            if not table.watch.cleared(due.slot, due.deadline) and (timer := table.timer(due))
        ]

    def drop(self, table: WatchedTable) -> None:
        """Forget a table and delete its file."""
        self.tables.remove(table)
        for kind, (own, cells) in list(self.own_tables.items()):
            if own is table:
                del self.own_tables[kind]
                _unmap(cells)
        table.remove()

    @property
    def closed(self) -> bool:
        """Whether the process is dead, or let go of."""
        return self.pidfd < 0

    def close(self) -> None:
        """Let go of the process. Its tables are the caller's to remove or to keep."""
        if self._unkillable is not None:
            self._unkillable.cancel()
            self._unkillable = None
        self.unmap()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def unmap(self) -> None:
        """Give back the memory of the server's own tables. The files stay."""
        for _own, cells in self.own_tables.values():
            _unmap(cells)
        self.own_tables.clear()


def drop_after_exec(worker: Worker, table: WatchedTable, emit: Callable[[Event], None]) -> None:
    """Drop a table that a process has left by an exec; say so if anything is armed in it."""
    if table.timers():
        # Or it is an interpreter that has unmapped everything at its end.
        emit(Event("exec", worker.id, worker.name, detail="its timers are dropped"))
    worker.drop(table)


def _unmap(cells: TimerTable) -> None:
    """Close a mapping, and the descriptor that comes with it, without waiting for the collector of cycles."""
    mapping = cells.raw.obj
    assert isinstance(mapping, mmap)
    cells.cells.release()
    cells.raw.release()
    mapping.close()
