"""A worker as the server knows it: a pinned process, and the tables it has timers in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from math import inf
from mmap import mmap
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from .._core import wire
from .._core.ladder import ReapGrant
from .._core.membership import GROUP_LENGTH, Membership
from .._core.requests import TimerRequest
from .._core.table import TimerTable
from .._core.watch import Due
from .._linux.paths import NAME_LENGTH, RUN_LENGTH
from ..events import Event, printable
from .slices import Steps
from .watched_table import WatchedTable

if TYPE_CHECKING:
    from .pinned_process import PinnedProcess


MAX_LIBRARIES, MAX_LIBRARY = 24, 250
"""Paths of a worker's libraries that are kept, and the characters of one."""


class Inspectable(Protocol):
    """An inspection channel, as far as a worker knows one."""

    async def inspect(self, slots: tuple[int, ...]) -> wire.Tasks:
        """Ask what the tasks of an event loop wait for."""


class Asking:
    """A question to the event loops of a worker, which takes it time that its blocks do not have.

    A timer that falls due meanwhile is put off by as long as it takes: what was left of it is left again when
    the worker has answered. If it does not answer in time, it has lost nothing. No question that is asked
    after a timer fell due puts it off, so a hung worker does not get away by being asked again and again.
    When that is found does not matter: a server that stood still may know the answer before it looks.

    Args:
        since: when the worker is asked, ``CLOCK_MONOTONIC`` seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, since: float) -> None:
        self._loop = loop
        self._since = since
        self._until = self._took = inf
        self._put_off: list[tuple[WatchedTable, tuple[Due, ...]]] = []

    def put_off(self, table: WatchedTable, due: tuple[Due, ...], now: float) -> tuple[Due, ...]:
        """Put off what has fallen due meanwhile, and not for long enough; return the rest."""
        rest: list[Due] = []
        some: list[Due] = []
        for timer in due:
            meanwhile = self._since <= timer.effective < self._until
            (some if meanwhile and timer.effective + self._took > now else rest).append(timer)
        if some and self._until == inf:
            self._put_off.append((table, tuple(some)))
        elif some:
            self._look_again(table, tuple(some), now)
        return tuple(rest)

    def end(self, now: float, *, answered: bool) -> None:
        """It has been answered, or is not going to be: look again at what was put off, in time."""
        self._until, self._took = now, now - self._since if answered else 0.0
        for table, due in self._put_off:
            self._look_again(table, due, now)
        self._put_off.clear()

    def is_over(self, now: float) -> bool:
        """Whether there is nothing any more that it puts off."""
        return self._until + self._took <= now

    def _look_again(self, table: WatchedTable, due: tuple[Due, ...], now: float) -> None:
        when = max(now, due[-1].effective + self._took)  # the longest overdue come first
        self._loop.call_later(when - now, table.look_again, due)


class Worker:
    """One worker process.

    Args:
        process: the process, pinned; owned from here on.
        let_go: gives back what the storing side of a table takes, the mapping with it, now or soon.

    Attributes:
        tables: every table it has timers in.
        own_tables: by kind, the tables that the server itself stores into on its behalf.
        connections: how many are open.
        left: tables whose connections have ended, to be looked at.
        inspection_channels: to its event loops that answer questions.
        askings: the questions to all of these that are on their way, and those that still put something off.
        heard_at: its own clock, seconds, in the latest HELLO that listed its timers.
        reap_grant: how it is to be reaped, of what it asked for.
        run: the job that it belongs to, by its own account; "" if it has not said.
        said_name: what people call it, by its own account, printable; "" if it has not said.
        libraries: how the paths of its libraries begin, by its own account; empty if it has not said.
        membership: which member of which run it is, by its own account.
        joined_at: when it first said so, ``CLOCK_MONOTONIC`` seconds.
    """

    def __init__(
        self,
        process: PinnedProcess,
        let_go: Callable[[TimerTable], object] = lambda cells: unmapped(cells).close(),
    ) -> None:
        self._let_go = let_go
        self._is_buried = False
        self.process = process
        self.id = process.id
        self.tables: list[WatchedTable] = []
        self.own_tables: dict[str, tuple[WatchedTable, TimerTable]] = {}
        self.connections = 0
        self.left: list[WatchedTable] = []
        self.inspection_channels: list[Inspectable] = []
        self.askings: list[Asking] = []
        self.heard_at = -inf
        self.reap_grant = ReapGrant()
        self.run = ""
        self.said_name = ""
        self.libraries: tuple[str, ...] = ()
        self.membership = Membership()
        self.joined_at = inf
        self._death: asyncio.Future[None] | None = None

    @property
    def name(self) -> str:
        """What people call it: by its own account, else the command name of its process."""
        return self.said_name or self.process.name

    @property
    def job(self) -> str:
        """The name of the job that it belongs to: its run if that is known, else its session."""
        return f"job {self.run}" if self.run else f"session {self.process.session}"

    def death(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return what is done when it is dead."""
        if self._death is None:
            self._death = loop.create_future()
        return self._death

    def asks(self, asking: Asking, now: float) -> None:
        """It is being asked what it is doing."""
        self.askings = [*(one for one in self.askings if not one.is_over(now)), asking]

    def has_died(self) -> None:
        """It is dead: whoever waits for that goes on."""
        if self._death is not None and not self._death.done():
            self._death.set_result(None)

    def runs_program_of(self, table: WatchedTable) -> bool | None:
        """Whether it still runs the program that armed what is in one of its tables; None: nobody can tell.

        That is known by what a program cannot keep over an exec: where its code and its stack lie, which is
        not shown of a process that is not dumpable; and its connection. That it does not map its table any
        more is found out by :func:`drop_unmapped`, for that can take a while.

        What the server's owner armed is meant for the process, whatever it runs; but not for another user's,
        which it is by now if it has executed a set-uid program. That it has dropped its uid does not count.
        """
        process = self.process
        if table.file.kind == "owner":
            if not process.is_foreign():
                return True
            # An earlier version noted no program for the owner's timers: then nothing says it is the same.
            return bool(table.program) and process.runs_program(table.program)
        known = process.runs_program(table.program)
        if known is None and table.connection is not None and not table.connection.hung_up():
            return True
        return known

    def table_of(self, inode: int) -> WatchedTable | None:
        """Return its table with that inode."""
        return next((t for t in self.tables if t.file.inode == inode), None)

    def holds_timers(self) -> bool:
        """Whether anything is armed and not dealt with."""
        return any(table.holds_timers() for table in self.tables)

    def gives_account(self, said: wire.Hello | wire.Account, now: float) -> None:
        """Take what it says of itself, or has said to an earlier server, as far as that can be right."""
        self.run = said.run[:RUN_LENGTH]
        self.said_name = printable(said.name[:NAME_LENGTH]).strip()
        self.libraries = tuple(one for one in said.libraries[:MAX_LIBRARIES] if 1 < len(one) <= MAX_LIBRARY)
        group = printable(said.group[:GROUP_LENGTH]).strip()
        member = Membership(group, said.rank, said.size, said.first, said.here)
        self._joins(member.checked() if group else Membership(), now)

    def account(self) -> wire.Account:
        """Return what it has said of itself."""
        said = self.membership._asdict()
        return wire.Account(run=self.run, name=self.said_name, libraries=self.libraries, **said)

    def _joins(self, membership: Membership, now: float) -> None:
        if membership.group != self.membership.group or self.joined_at == inf:
            self.joined_at = now
        self.membership = membership

    def status(self, now: float, pack: Callable[[Any], Any]) -> Steps[tuple[float, dict[str, Any]]]:
        """Return its soonest deadline, and what ``aiotimer status --json`` prints of it: packed timers."""
        timers: list[tuple[float, Any]] = []
        for table in list(self.tables):
            for batch in table.batches():
                timers += [
                    (d, pack({"scope": t.name, "deadline": d, "remaining_s": d - now}))
                    for t in batch
                    for d in (t.deadline,)
                ]
                yield
        if len(self.tables) > 1:
            timers.sort(key=itemgetter(0))
        soonest = timers[0][0] if timers else inf
        told = {"pid": self.id.pid, "name": self.name, "connected": self.connections > 0}
        group, rank, size, *_ = self.membership
        told |= {"group": group, "rank": None if rank < 0 else rank, "size": size or None}
        return soonest, told | {"timers": [timer for _deadline, timer in timers]}

    def is_in(self, group: str) -> bool:
        """Whether it is a member of a run: it has said so, and has not left its server since."""
        return bool(group) and self.membership.group == group and bool(self.connections or self.tables)

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
                self._let_go(cells)
        table.remove()

    @property
    def closed(self) -> bool:
        """Whether the process is dead, which has been told, or let go of."""
        return self._is_buried or self.process.pidfd < 0

    def bury(self) -> Steps[None]:
        """Forget its tables, and let go of it: it is dead, and nothing is due in them any more."""
        self._is_buried = True
        while self.tables:
            self.drop(self.tables[-1])
            yield
        self.close()

    def close(self) -> None:
        """Let go of the process. Its tables are the caller's to remove or to keep."""
        for _own, cells in self.own_tables.values():
            self._let_go(cells)
        self.own_tables.clear()
        self.process.close()


def unmapped(cells: TimerTable) -> mmap:
    """Return the mapping behind the storing side of a table, to be closed; it can store no more.

    The descriptor that comes with it does not wait for the collector of cycles then.
    """
    mapping = cells.raw.obj
    assert isinstance(mapping, mmap)
    cells.cells.release()
    cells.raw.release()
    return mapping


def drop_if_left(worker: Worker, table: WatchedTable, emit: Callable[[Event], None]) -> bool:
    """Drop a table if its process surely runs another program by now; return whether."""
    if worker.runs_program_of(table) is not False:
        return False
    drop_after_exec(worker, table, emit)
    return True


async def drop_unmapped(
    worker: Worker, tables: Iterable[WatchedTable], emit: Callable[[Event], None]
) -> None:
    """Drop those of a worker's tables that it shares, and neither has a connection for nor maps any more."""
    mapped = await worker.process.mapped_inodes()
    for table in tables:
        unused = table.file.kind == "shared" and table.connection is None and not table.closed
        if mapped and unused and table.file.inode not in mapped:
            drop_after_exec(worker, table, emit)


def drop_after_exec(worker: Worker, table: WatchedTable, emit: Callable[[Event], None]) -> None:
    """Drop a table that a process has left by an exec; say so if anything is armed in it."""
    if table.holds_timers():
        emit(Event("exec", worker.id, worker.name, detail="its timers are dropped"))
    worker.drop(table)
