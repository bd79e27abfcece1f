"""A server, step by step: what ``watched_table``, ``reaper``, ``registry`` and ``handlers`` do.

The laws of this file:

* Every decision is made by the real ``Watch``, ``Lifeline`` and ``TableReader``. What is written out here is
  the order of the reads, the writes and the signal, with a pause after each of them; ``test_faithful.py``
  compares it with the real order.
* One callback runs at a time, to its end: it is a loop. A crash drops it wherever it is.
* A loop may wake early, by more than a millisecond, and then it goes on sleeping.

Not here: tables that the server keeps for others (``register_timers``, peers without shared memory), the
coroutine kind of ``reap_worker``, and what is in a frame. They have tests of their own.
"""

from __future__ import annotations

import asyncio
import heapq
from array import array
from collections.abc import Generator
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from aiotimer._core import layout
from aiotimer._core.ladder import ReapGrant
from aiotimer._core.reader import TableReader, Timer
from aiotimer._core.requests import WorkerId
from aiotimer._core.watch import LATER_READ, RESTARTS, Due, Lifeline, Look, Watch
from aiotimer.server.reaper import Reaper

from .world import Line, Message, Process, TableFile, World

if TYPE_CHECKING:
    from aiotimer.server.watched_table import WatchedTable
    from aiotimer.server.worker import Worker as RealWorker

BEAT = 0.5
"""``server.BEAT``: seconds between signs of life."""

FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""As in ``server/worker``: seconds before a reap that failed is tried again."""

EVIDENCE = 0.05
"""Seconds that evidence takes at most. It is not gathered for every reap: there are ladders without."""

EARLY = 0.0012
"""Seconds by which a loop wakes too early at most."""

Steps: TypeAlias = Generator[str, None, None]


class Judge(Protocol):
    """What the laws want to be told."""

    def alive(self, now: float) -> None:
        """The server shows a sign of life."""

    def about_to_signal(self, target: Process, table: Table, due: Due, since: int) -> None:
        """The server sends SIGKILL for a timer that it has looked up again after step ``since``."""

    def looked(self, table: Table, wake_at: float, visible: dict[int, object]) -> None:
        """A look is over. What was ``visible`` when it promised, its second read has found."""

    def connection_changed(self, table: Table) -> None:
        """A table has gained or lost its connection."""


class Handle:
    """A callback at a time."""

    def __init__(self, at: float, number: int, callback: partial[Steps]) -> None:
        self.at = at
        self.number = number
        self.callback: partial[Steps] | None = callback

    @property
    def what(self) -> str:
        """What it will do, to whom."""
        assert self.callback is not None
        return " ".join([self.callback.func.__name__, *map(str, self.callback.args)])

    def __lt__(self, other: Handle) -> bool:
        return (self.at, self.number) < (other.at, other.number)

    def cancel(self) -> None:
        """Do not call it."""
        self.callback = None


class Table:
    """``WatchedTable``: a table that is looked at.

    Attributes:
        told: the timers that looks have reported or reaps have dealt with, by slot.
    """

    def __init__(self, file: TableFile, watch: Watch, owner: Known) -> None:
        self.file = file
        self.watch = watch
        self.owner = owner
        self.reader = TableReader(file.read)
        self.wake: Handle | None = None
        self.later: Handle | None = None
        self.wake_at = inf
        self.spare = 0
        self.line: Line | None = None
        self.closed = False
        self.told: dict[int, float] = {}
        stored = file.read(8, 8 * layout.LOOKS)
        count = layout.read_word(stored) if len(stored) == 8 else 0.0
        self.looks = count if 0.0 <= count < 2.0**52 else 0.0

    def __str__(self) -> str:
        return str(self.file)

    def timer(self, due: Due) -> Timer | None:
        """``WatchedTable.timer``."""
        return self.reader.timer(due.slot, due.deadline)


class Known:
    """``Worker``: a process that is pinned, its tables, its reaping."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.id = process.id
        self.name = "worker"
        self.reap_grant = ReapGrant()
        self.tables: list[Table] = []
        self.killed = False
        self.ladder_run: Handle | None = None
        self.has_evidence = False
        self.retry_at = 0.0
        self.postponed: list[tuple[Table, tuple[Due, ...]]] = []
        self.backoff = FIRST_RETRY

    def __str__(self) -> str:
        return str(self.process)


_REAPER = Reaper(cast(asyncio.AbstractEventLoop, None), lambda _worker_id: False, lambda _event: None)


class Server:
    """One server, from its start to its crash.

    Attributes:
        evidence: the longest that it gathers evidence before a signal; 0.0: it gathers none.
        started: it has adopted what was there, and serves.
        frozen_until: SIGSTOP until then.
    """

    watch: type[Watch] = Watch
    lifeline_kind: type[Lifeline] = Lifeline
    evidence = EVIDENCE

    def __init__(self, world: World, judge: Judge, bound: float) -> None:
        self.world = world
        self.judge = judge
        self.bound = bound
        self.started = False
        self.stopping = False
        self.frozen_until = -inf
        self.workers: dict[WorkerId, Known] = {}
        self.lines: list[Line] = []
        self.tables_of: dict[Line, Table] = {}
        self.lifeline = self.lifeline_kind(world.now, beat=BEAT)
        judge.alive(world.now)
        self.handles: list[Handle] = []
        self._running: Steps | None = self.start()

    # -- the loop ----------------------------------------------------------------------------------

    def next_at(self) -> float:
        """Return when there is something to do (-inf: at once)."""
        if self._running is not None:
            return -inf
        handles = self.handles
        while handles and handles[0].callback is None:
            heapq.heappop(handles)
        at = handles[0].at if handles else inf
        for line in self.lines:
            at = min(at, line.next_at())
        for known in self.workers.values():
            if not known.process.alive:
                return -inf
        return at

    def step(self) -> str:
        """Take a step; say what it was."""
        if self._running is None:
            self._running = self._choose()
        try:
            return next(self._running)
        except StopIteration:
            self._running = None
            return "is done with that"

    def _choose(self) -> Steps:
        now = self.world.now
        ready = [partial(self.unregister, k) for k in self.workers.values() if not k.process.alive]
        ready += [
            partial(self.hear, li) for li in self.lines if li.to_server and li.to_server[0].arrives_at <= now
        ]
        timers = self.handles
        if timers and timers[0].at <= now and (not ready or self.world.rng.random() < 0.5):
            callback = heapq.heappop(timers).callback
            if callback is not None:
                return callback()
        return self.world.rng.choice(ready)() if ready else self._nothing()

    def _nothing(self) -> Steps:
        yield "finds nothing to do"

    def call_at(self, when: float, callback: partial[Steps]) -> Handle:
        """Schedule a callback; it may come early."""
        rng = self.world.rng
        early = rng.uniform(0, EARLY) if rng.random() < 0.2 else 0.0
        handle = Handle(max(self.world.now, when - early), self.world.number(), callback)
        heapq.heappush(self.handles, handle)
        return handle

    # -- the look ----------------------------------------------------------------------------------

    def look(self, table: Table) -> Steps:
        """``WatchedTable.look``."""
        table.spare = 0
        wake_at = 0.0
        for _ in range(RESTARTS):
            snapshot = table.reader.snapshot()
            yield f"reads {table}"
            decision = self.decide(table, layout.deadlines(snapshot))
            yield f"decides: {len(decision.due)} due, wake at {decision.wake_at:.6f}"
            if decision.due:
                table.told.update((due.slot, due.deadline) for due in decision.due)
                yield from self.expire(table, decision.due)
                if table.closed:
                    return
            self.write(table, decision.promise)
            visible: dict[int, object] = dict(table.file.visible)
            yield f"promises {decision.promise:.6f}"
            wake_at = decision.wake_at
            overlooked = yield from self.second_read(table, wake_at)
            if not overlooked:
                self.judge.looked(table, wake_at, visible)
                break
        else:
            wake_at = 0.0
        self.schedule(table, wake_at)
        self.schedule_later_read(table)

    def decide(self, table: Table, deadlines: array[float]) -> Look:
        """Let the watch decide."""
        self.judge.alive(self.world.now)
        return table.watch.look(deadlines, self.world.now)

    def second_read(self, table: Table, wake_at: float) -> Generator[str, None, bool]:
        """Read again; return whether there is something that the promise is too late for."""
        deadlines = table.reader.deadlines()
        yield f"reads {table} again"
        return table.watch.overlooked(deadlines, wake_at)

    def write(self, table: Table, promise: float) -> None:
        """Write the promise and count the look."""
        table.looks += 1.0
        table.file.pwrite(layout.server_line(promise, table.looks), 8 * layout.PROMISE)

    def schedule(self, table: Table, wake_at: float, spare: int = 0) -> None:
        """Wake at the promise."""
        table.wake_at = wake_at
        if table.wake is not None:
            table.wake.cancel()
            table.wake = None
        if wake_at < inf:
            when = max(self.world.now, wake_at) + spare / 1000
            table.wake = self.call_at(when, partial(self.woken, table))

    def schedule_later_read(self, table: Table) -> None:
        """Read once more, after every look."""
        if table.later is not None:
            table.later.cancel()
        table.later = self.call_at(self.world.now + LATER_READ, partial(self.later_read, table))

    def woken(self, table: Table) -> Steps:
        """``WatchedTable._woken``."""
        table.wake = None
        if table.wake_at > self.world.now:
            spare, table.spare = table.spare, 2 * table.spare or 1
            self.schedule(table, table.wake_at, spare)
            yield f"wakes early for {table}"
        else:
            yield from self.look(table)

    def later_read(self, table: Table) -> Steps:
        """``WatchedTable._read_later``."""
        table.later = None
        deadlines = table.reader.deadlines()
        yield f"reads {table} later"
        if table.watch.overlooked(deadlines, table.wake_at):
            yield from self.look(table)

    def beat(self) -> Steps:
        """``TimerServer._show_life``."""
        self.judge.alive(self.world.now)
        self.lifeline.tick(self.world.now)
        self.lifeline.news()
        self.call_at(self.world.now + BEAT, partial(self.beat))
        yield "shows life"

    # -- the reaper --------------------------------------------------------------------------------

    def expire(self, table: Table, due: tuple[Due, ...]) -> Steps:
        """``Reaper.expire``."""
        known, since = table.owner, self.world.steps
        if known.killed:
            yield from self.clear(known)
            return
        found = self.confirm(table, due)
        if found is None:
            yield "finds that it was released in time"
            return
        yield "finds it still armed"
        if table.line is None and not self.is_mapped(table.file, known.process):
            self.drop(table)
            yield f"drops {table}: another program runs there"
            return
        known.postponed.append((table, due))
        if known.retry_at > 0.0 or known.ladder_run is not None:
            return
        table.file.pwrite(layout.word(self.world.now), 8 * layout.REAPED_AT)
        yield "notes that it reaps"
        rng = self.world.rng
        if self.evidence and not known.has_evidence and rng.random() < 0.3:
            gathered = partial(self.evidence_gathered, table, found[0])
            known.ladder_run = self.call_at(self.world.now + rng.uniform(0.0, self.evidence), gathered)
            yield f"gathers evidence of {known.process}"
            return
        yield from self.first_signal(table, found[0], since)

    def evidence_gathered(self, table: Table, due: Due) -> Steps:
        """``LadderRunner._go_on``: before the first signal the slot is read once more."""
        known, since = table.owner, self.world.steps
        known.ladder_run = None
        armed = self.confirm_again(table, due)
        yield "has gathered evidence"
        if armed and table.line is None and not self.is_mapped(table.file, known.process):
            self.drop(table)
            armed = False
            yield f"drops {table}: another program runs there"
        if armed:
            yield from self.first_signal(table, due, since)
            return
        if not table.closed:
            table.file.pwrite(layout.word(0.0), 8 * layout.REAPED_AT)
        yield "finds that it was released meanwhile"
        postponed, known.postponed = known.postponed, []
        known.has_evidence = True
        for other, more in postponed:
            rest = tuple(one for one in more if (other, *one[:2]) != (table, *due[:2]))
            if rest and not other.closed:
                yield from self.expire(other, rest)
        known.has_evidence = False

    def confirm_again(self, table: Table, due: Due) -> bool:
        """``Expiry.is_armed``."""
        return not table.closed and table.reader.deadline(due.slot) == due.deadline

    def first_signal(self, table: Table, due: Due, since: int) -> Steps:
        """``Worker.send`` and ``Reaper._settle``."""
        known = table.owner
        if self.signal(table, due, since):
            yield f"has signalled {known.process}"
            known.postponed.clear()
            known.backoff = FIRST_RETRY
            yield from self.clear(known)
            return
        table.file.pwrite(layout.word(0.0), 8 * layout.REAPED_AT)
        pause, known.backoff = known.backoff, min(2 * known.backoff, LAST_RETRY)
        known.retry_at = self.world.now + pause
        self.call_at(known.retry_at, partial(self.try_again, known))
        yield f"may not signal {known.process}"

    def confirm(self, table: Table, due: tuple[Due, ...]) -> tuple[Due, Timer] | None:
        """``Reaper._still_armed``, the real one: read the slots again."""
        worker, watched = cast("RealWorker", table.owner), cast("WatchedTable", table)
        return _REAPER._still_armed(worker, watched, due, [])

    def signal(self, table: Table, due: Due, since: int) -> bool:
        """``Worker.send``, of SIGKILL: False if it is not permitted."""
        known = table.owner
        target = self.target(known)
        if not target.alive:
            return True
        if self.world.now < target.protected_until:
            return False
        self.judge.about_to_signal(target, table, due, since)
        known.killed = target.signalled = True
        rng = self.world.rng
        target.dies_at = self.world.now + (rng.uniform(0, 3) if rng.random() < 0.1 else 1e-4)
        return True

    def target(self, known: Known) -> Process:
        """Return the process that a signal goes to: the one that is pinned."""
        return known.process

    def clear(self, known: Known) -> Steps:
        """``Worker.clear``: deal with everything that is armed now."""
        for table in known.tables:
            deadlines = table.reader.deadlines()
            table.watch.clear(deadlines)
            table.told.update(enumerate(deadlines))
            yield f"clears {table}"

    def try_again(self, known: Known) -> Steps:
        """``Reaper._try_again``."""
        known.retry_at = 0.0
        postponed, known.postponed = known.postponed, []
        for table, due in postponed:
            if not table.closed:
                table.watch.reopen(due)
                for timer in due:
                    if table.told.get(timer.slot) == timer.deadline:
                        del table.told[timer.slot]
                yield f"tries again to reap for {table}"
                yield from self.look(table)

    # -- the registry ------------------------------------------------------------------------------

    def start(self) -> Steps:
        """``TimerServer.start``: adopt, then listen."""
        yield "starts"
        for file in self.world.linked():
            yield from self.adopt(file)
        for known in list(self.workers.values()):
            for table in list(known.tables):
                yield from self.look(table)
        self.started = True
        self.call_at(self.world.now + BEAT, partial(self.beat))
        yield "serves"

    def adopt(self, file: TableFile) -> Steps:
        """``Registry._adopt_one``."""
        head = file.read(16, 0)
        if file.size != layout.TABLE_SIZE or layout.layout_version(head) != layout.LAYOUT_VERSION:
            self.world.unlink(file)
            yield f"removes {file}: it is no table"
            return
        try:
            process = self.world.pin(file.name[0].pid)
        except ProcessLookupError:
            process = None
        yield f"pins {file.name[0]}"
        if process is None or not self.is_same(file, process):
            self.world.unlink(file)
            yield f"removes {file}: its process is gone"
            return
        self.watch_table(self.register(process), file, connected=False)
        yield f"adopts {file}"

    def is_same(self, file: TableFile, process: Process) -> bool:
        """Whether a table's name says that it belongs to a process."""
        return file.name == (process.id, process.inode)

    def is_mapped(self, file: TableFile, process: Process) -> bool:
        """Whether a process maps a table (``/proc/PID/maps``)."""
        return file.owner is process and file.mapped

    def register(self, process: Process) -> Known:
        """Return the worker of a process."""
        known = self.workers.get(process.id)
        if known is None:
            known = self.workers[process.id] = Known(process)
        return known

    def watch_table(self, known: Known, file: TableFile, *, connected: bool) -> Table:
        """Begin to watch a table."""
        watch = self.watch(self.lifeline, connected=connected, bound=self.bound)
        table = Table(file, watch, known)
        known.tables.append(table)
        return table

    def drop(self, table: Table) -> None:
        """Forget a table and delete its file."""
        for handle in (table.wake, table.later):
            if handle is not None:
                handle.cancel()
        table.closed = True
        table.owner.tables.remove(table)
        self.world.unlink(table.file)

    def unregister(self, known: Known) -> Steps:
        """A pidfd is readable."""
        for table in list(known.tables):
            self.drop(table)
        if known.ladder_run is not None:
            known.ladder_run.cancel()
        self.workers.pop(known.process.id, None)
        yield f"unregisters {known.process}"

    # -- connections -------------------------------------------------------------------------------

    def connect(self, process: Process) -> Line | None:
        """Accept a connection: the kernel does, even while this process is stopped."""
        line = Line(self.world, process)
        self.lines.append(line)
        return line

    def hear(self, line: Line) -> Steps:
        """Read what has arrived on a connection; of several rings the earliest counts."""
        rung = None
        while line.to_server and line.to_server[0].arrives_at <= self.world.now:
            message = line.to_server.popleft()
            if message.kind == "ring":
                rung = message.deadline if rung is None else min(rung, message.deadline)
                yield f"hears a ring for {message.deadline:.6f}"
                continue
            yield f"hears {message.kind.upper()} of {line.process}"
            if message.kind == "hello":
                yield from self.greet(line, message)
            else:
                if message.kind == "bye" and line in self.tables_of:
                    self.forget(self.tables_of[line])
                yield from self.hang_up(line)
            if not line.server_open:
                return
        table = self.tables_of.get(line)
        if rung is not None and table is not None and not table.closed:
            table.watch.ring(rung)
            yield from self.look(table)

    def greet(self, line: Line, message: Message) -> Steps:
        """``handlers._handle_hello``: WELCOME comes last."""
        if line.process.id in self.workers and self.workers[line.process.id].process is not line.process:
            raise AssertionError("two processes of one identity")
        known = self.register(line.process)
        offered = message.offered
        if offered is None:
            for other in list(known.tables):
                if not other.watch.connected and not self.is_mapped(other.file, line.process):
                    self.drop(other)
            file = self.world.create_table(line.process)
            table = self.watch_table(known, file, connected=True)
        else:
            found = next((t for t in known.tables if t.file is offered), None)
            if found is None and offered.size != layout.TABLE_SIZE:
                yield "refuses a table that is cut off"
                yield from self.hang_up(line)
                return
            table = found or self.watch_table(known, offered, connected=True)
        self.tables_of[line] = table
        table.line = line
        table.watch.connected = True
        yield f"greets {line.process} with {table}"
        yield from self.look(table)
        if table.closed or not line.server_open:
            return
        line.welcome = table.file
        self.judge.connection_changed(table)
        yield f"welcomes {line.process}"

    def forget(self, table: Table) -> None:
        """``handlers.forget``."""
        if table in table.owner.tables:
            self.drop(table)

    def hang_up(self, line: Line) -> Steps:
        """``ServerConnection.close`` and ``TimerServer.connection_closed``."""
        line.server_open = False
        line.to_server.clear()
        self.lines.remove(line)
        table = self.tables_of.pop(line, None)
        if table is None or table.closed or table.line is not line:
            return
        table.line = None
        self.judge.connection_changed(table)
        yield from self.ended(line, table)

    def ended(self, line: Line, table: Table) -> Steps:
        """A connection has ended without BYE: that releases nothing, but an ``exec`` does."""
        if line.process.alive and not self.is_mapped(table.file, line.process):
            self.drop(table)
            yield f"drops {table}: another program runs there"
            return
        table.watch.connected = False
        yield from self.look(table)

    # -- the end -----------------------------------------------------------------------------------

    def crash(self) -> None:
        """SIGKILL: what was under way is gone, and so is what it knew."""
        self._running = None
        for line in self.lines:
            line.server_open = False
            line.to_server.clear()
        self.lines.clear()

    def stop(self) -> None:
        """SIGTERM, in between two callbacks: promise nothing, keep the files."""
        for known in self.workers.values():
            for table in known.tables:
                self.write(table, inf)
        self.crash()

    @property
    def idle(self) -> bool:
        """Whether it is between two callbacks."""
        return self._running is None
