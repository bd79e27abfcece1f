"""A server: the real reaper, state machine, tables and looks, on a kernel and a loop that are simulated.

The laws of this file:

* ``Reaper``, ``Reaping``, ``WatchedTable``, ``Watch``, ``OverdueTracker``, ``WorkQueue``, ``Asking`` are the
  package's.
  They are handed a file, a process, an inspector, a clock and a loop; nothing of them is replaced.
* At each read, write and signal real code calls :meth:`Server.pause`, in which others take steps.
* One callback runs at a time, to its end: it is a loop. A crash ends it wherever it stands.
* A loop may wake early, by more than a millisecond.

What is written out here is what stands between the kernel and these: the registry's adoption, what handlers
do about HELLO, a ring and BYE, that each answer is given in steps, and when a question to a worker begins and
ends. Not here: tables that the server keeps for others (``register_timers``, peers
without shared memory), owners that reap in their own way, what is in a frame. They have tests of their own.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from aiotimer._core import layout
from aiotimer._core.ladder import KILL
from aiotimer._core.reader import TableReader
from aiotimer._core.reaping import Reaping
from aiotimer._core.requests import WorkerId
from aiotimer._core.watch import Due, Lifeline, Watch
from aiotimer.events import Event
from aiotimer.evidence import NO_FINDINGS
from aiotimer.server import worker as real
from aiotimer.server.policy import Policy
from aiotimer.server.reaper import Reaper
from aiotimer.server.reporter import Reporter
from aiotimer.server.slices import Steps, WorkQueue
from aiotimer.server.watched_table import WatchedTable

from .world import Line, Message, Process, TableFile, World

if TYPE_CHECKING:
    from aiotimer._core import reaping
    from aiotimer.server.expiry import Expiry
    from aiotimer.server.reaper import _Case

    from .laws import Asked, Laws

BEAT = 0.5
"""``server.BEAT``: seconds between signs of life."""

EVIDENCE = 0.05
"""Seconds that evidence takes at most: the budget."""

ASK_WITHIN = 0.5
"""``findings.ASK_WITHIN``: seconds that a worker has to say what it is doing."""

ANSWER, STEP = 8, 0.001
"""Steps that the answer to a client takes at most, and the seconds that each of them does."""

EARLY = 0.0012
"""Seconds by which a loop wakes too early at most."""

LADDERS = ("KILL", "KILL", "dump,KILL", "dump,KILL", "TERM:0.5,KILL", "dump,ABRT:0.2,TERM:1,KILL")


class Crashed(BaseException):
    """Raised in real code where it stands when its server is killed."""


# -- the loop ------------------------------------------------------------------------------------------


@dataclass(order=True, slots=True)
class Handle:
    """A callback at a time."""

    at: float
    number: int
    callback: partial[object] | None

    @property
    def what(self) -> tuple[object, ...]:
        """What it will do, to whom."""
        assert self.callback is not None
        bound = getattr(self.callback.func, "__self__", self.callback.func)
        return (getattr(self.callback.func, "__qualname__", ""), id(bound), *map(id, self.callback.args))

    def cancel(self) -> None:
        """Do not call it."""
        self.callback = None


class Task:
    """``asyncio.Task``, as far as a reaper uses it; an error in it is the end of a history."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._go_on()

    def _go_on(self, _awaited: object = None) -> None:
        try:
            self._coroutine.send(None).add_done_callback(self._go_on)
        except StopIteration:
            return

    def add_done_callback(self, _callback: object) -> None:
        """Nobody counts them."""


class Loop:
    """An event loop in virtual time."""

    get_debug = bool
    create_task = Task

    def __init__(self, world: World) -> None:
        self._world = world
        self.handles: list[Handle] = []

    def time(self) -> float:
        """Return the present."""
        return self._world.now

    def call_at(self, when: float, callback: Callable[..., object], *arguments: object) -> Handle:
        """Schedule a callback; it may come early."""
        rng = self._world.rng
        early = rng.uniform(0, EARLY) if rng.random() < 0.2 else 0.0
        return self._add(max(self._world.now, when - early), callback, *arguments)

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: object) -> Handle:
        """Schedule a callback in some seconds."""
        return self.call_at(self._world.now + delay, callback, *arguments)

    def call_soon(
        self, callback: Callable[..., object], *arguments: object, context: object = None
    ) -> Handle:
        """Schedule a callback now."""
        return self._add(self._world.now, callback, *arguments)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a new future."""
        return asyncio.Future(loop=cast(asyncio.AbstractEventLoop, self))

    def _add(self, when: float, callback: Callable[..., object], *arguments: object) -> Handle:
        handle = Handle(when, self._world.number(), partial(callback, *arguments))
        heapq.heappush(self.handles, handle)
        return handle


class Client(NamedTuple):
    """A client that asks without end, until it goes."""

    until: float


# -- what real code is handed --------------------------------------------------------------------------


class OpenFile:
    """``TableFile`` of ``_linux``: a table as the server has it open."""

    kind = "shared"
    path = None

    def __init__(self, truth: TableFile, server: Server) -> None:
        self.truth = truth
        self.descriptor = 1
        self.inode = truth.number
        self._server = server

    def read(self, size: int, offset: int) -> bytes:
        """``pread``; nothing of a file that is closed."""
        if self.descriptor < 0:
            return b""
        data = self.truth.read(size, offset)
        self._server.pause(f"reads {self.truth}")
        return data

    def write(self, data: bytes, offset: int) -> None:
        """``pwrite``."""
        if self.descriptor < 0:
            raise OSError(9, "closed")
        self._server.check()
        self.truth.pwrite(data, offset)
        what = {layout.PROMISE: "promises in", layout.REAPED_AT: "marks"}.get(offset // 8, "notes in")
        self._server.pause(f"{what} {self.truth}")

    def close(self, _close: object = None) -> None:
        """Close it."""
        self.descriptor = -1


class Table(WatchedTable):
    """The real table.

    Attributes:
        told: the timers that looks have reported or reaps have dealt with, by slot.
    """

    __slots__ = ("judge", "told", "visible")

    def __init__(self, file: OpenFile, watch: Watch, server: Server, known: Known) -> None:
        self.told: dict[int, float] = {}
        self.visible: dict[int, object] = {}
        self.judge = server.judge

        def on_due(table: WatchedTable, due: tuple[Due, ...]) -> None:
            self.told.update((one.slot, one.deadline) for one in due)
            server.reaper.expire(known, table, due)

        super().__init__(
            cast(Any, file),
            watch,
            cast(asyncio.AbstractEventLoop, server.loop),
            on_due,
            server.world.clock,
            server.queue.do_first,
        )
        self._alarm._rounds = False
        self.before_removal = lambda _table: server.world.unlink(file.truth)

    def __str__(self) -> str:
        return str(self.truth)

    @property
    def truth(self) -> TableFile:
        """The table as its owner knows it."""
        return cast(OpenFile, self.file).truth

    @property
    def line(self) -> Line | None:
        """Its connection."""
        return cast("Line | None", self.connection)

    def look(self) -> None:
        """Look, and be judged."""
        super().look()
        if not self.closed and self._alarm.at > 0.0:
            self.judge.looked(self, self._alarm.at, self.visible)

    def _report(self, due: tuple[Due, ...]) -> None:
        self._on_due(self, due)  # an error is the end of a history, and not of a look

    def _write(self, promise: float) -> None:
        self.visible = dict(self.truth.visible)
        super()._write(promise)


class PinnedProcess:
    """``PinnedProcess`` of the server: a process that is pinned."""

    pidfd = 1
    name = "worker"

    def __init__(self, process: Process, server: Server) -> None:
        self.process = process
        self.session = 1  # one job: its breaker is the server's
        self.id = process.id
        self.inode = process.inode
        self.reason: tuple[Table, Due, int] | None = None
        self._server = server

    def target(self) -> Process:
        """Return the process that a signal goes to: the one that is pinned."""
        return self.process

    def is_dead(self) -> bool:
        """A readable pidfd."""
        return not self.process.alive

    def is_child_of_init(self) -> bool:
        """There are no containers."""
        return False

    def how_it_ended(self) -> str:
        """Nothing: that is for people."""
        return ""

    def signal(self, _target: str, number: int) -> str:
        """Send a signal."""
        server, target = self._server, self.target()
        now, rng = server.world.now, server.world.rng
        if not target.alive:
            raise ProcessLookupError
        if now < target.protected_until:
            raise PermissionError(1, "may not")
        if self.reason is not None:
            server.judge.about_to_signal(target, *self.reason)
            self.reason = None
        server.judge.signalled(target, number)
        if number == KILL:
            target.dies_at = now + (rng.uniform(0, 3) if rng.random() < 0.1 else 1e-4)
        elif rng.random() < 0.5:
            target.dies_at = min(target.dies_at, now + rng.uniform(0, 2))
        elif rng.random() < 0.5:
            target.execs_at = now + rng.uniform(0, 0.3)
        server.pause(f"signals {target}: {number}")
        return ""

    def runs_program(self, program: int) -> bool | None:
        """Whether it has not called ``exec`` since it was marked so."""
        return self.process.program + 1 == program if self.process.alive else None

    def is_foreign(self) -> bool:
        """Nobody is."""
        return False

    def why_stopped(self) -> str:
        """Why it cannot run."""
        return "it is stopped" if self._server.world.now < self.process.frozen_until else ""

    def close(self) -> None:
        """Let go of it."""
        self.pidfd = -1


class Known(real.Worker):
    """The real worker."""

    process: PinnedProcess  # type: ignore[assignment]  # the simulated one

    def clear(self) -> None:
        """Deal with everything that is armed now."""
        for table in self.tables:
            cast(Table, table).told.update(enumerate(table.reader.deadlines()))
        super().clear()


class Inspector:
    """An inspector that finds nothing, within its budget.

    Attributes:
        budget: seconds.
        takes: how long it takes at most.
    """

    budget = EVIDENCE
    takes = EVIDENCE

    def __init__(self, server: Server) -> None:
        self._server = server

    def begin(self, _worker: real.Worker, expiry: Expiry, then: Callable[[], None]) -> None:
        """Call ``then`` within the budget."""
        world, asked_at = self._server.world, self._server.world.now

        def found() -> None:
            self._server.judge.gathered(asked_at)
            expiry.findings = NO_FINDINGS
            self._server.queue.do_first(then)

        late = partial(self._server.queue.do_first, found)
        self._server.loop.call_later(world.rng.uniform(0.0, self.takes), late)


class JudgedReporter(Reporter):
    """The real reporter; of what is only observed it is noted that it was."""

    judge: Laws

    def begin(self, expiry: Expiry, tables: Iterable[WatchedTable]) -> None:
        """The first action on an expired timer has been taken."""
        if expiry.record().ladder == "observe":
            self.judge.observed(cast(Table, expiry.table), expiry.due)
        super().begin(expiry, tables)


class JudgedReaper(Reaper):
    """The real reaper: for each signal it is noted what for, and since when that is known."""

    def _confirm(self, case: _Case, action: reaping.Confirm) -> reaping.Armed | reaping.Released:
        process, expiry = cast(Known, case.worker).process, case.expiry
        assert expiry is not None
        process.reason = (cast(Table, expiry.table), expiry.due, process._server.world.steps)
        return super()._confirm(case, action)

    def _look_again(self, case: _Case, action: reaping.LookAgain) -> None:
        told = cast(Table, action.table).told
        for timer in action.due:
            if told.get(timer.slot) == timer.deadline:
                del told[timer.slot]
        super()._look_again(case, action)

    async def _report_unkillable(self, _case: _Case) -> None:
        """Nobody asks /proc."""


class Server:
    """One server, from its start to its crash.

    Attributes:
        options: of its policy.
        started: it has adopted what was there, and serves.
        frozen_until: SIGSTOP until then.
        events: how often it has told what.
    """

    watch: type[Watch] = Watch
    lifeline_kind: type[Lifeline] = Lifeline
    table: type[Table] = Table
    reaper_kind: type[JudgedReaper] = JudgedReaper
    inspector: type[Inspector] = Inspector
    pinned: type[PinnedProcess] = PinnedProcess
    known: type[Known] = Known
    machine: type[Reaping] = Reaping
    asking: type[real.Asking] = real.Asking

    def __init__(
        self,
        world: World,
        judge: Laws,
        bound: float,
        options: dict[str, Any],
        others: Callable[[Server, str], None],
    ) -> None:
        self.world = world
        self.judge = judge
        self.bound = bound
        self._others = others
        self._job: Callable[[], object] | None = self.start
        self._runs = self._crashed = False
        self.loop = Loop(world)
        self.started = False
        self.frozen_until = -inf
        self.workers: dict[WorkerId, Known] = {}
        self.lines: list[Line] = []
        self.events: list[Event] = []
        self.policy = Policy(**options)
        self.lifeline = self._new_lifeline()
        judge.alive(world.now)
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.queue = WorkQueue(loop, world.clock)
        reporter = JudgedReporter(self.queue, None, self.events.append, clock=world.clock)
        reporter.judge = judge
        self.reaper = self.reaper_kind(
            loop, self.reap_worker, reporter, self.policy, cast(Any, self.inspector(self)), world.clock
        )
        self.reaper.machine = self.machine
        self._tables: dict[Line, Table] = {}
        self._buried: set[WorkerId] = set()

    def _new_lifeline(self) -> Lifeline:
        judge, kind = self.judge, self.lifeline_kind

        class Judged(kind):  # type: ignore[misc, valid-type]
            def tick(self, now: float) -> None:
                judge.alive(now)
                super().tick(now)

        return Judged(self.world.now, beat=BEAT)

    def reap_worker(self, worker_id: WorkerId) -> Any:
        """``TimerServer.reap_worker``."""
        return self.reaper.carry_out_ladder(self.workers[worker_id])

    # -- the loop ----------------------------------------------------------------------------------

    def next_at(self) -> float:
        """Return when there is something to do (-inf: at once)."""
        if self._job is not None:
            return -inf
        handles = self.loop.handles
        while handles and handles[0].callback is None:
            heapq.heappop(handles)
        at = handles[0].at if handles else inf
        for line in self.lines:
            at = min(at, line.next_at())
        for known in self.workers.values():
            if not known.process.process.alive and known.id not in self._buried:
                return -inf
        return at

    def step(self) -> None:
        """Do what there is to do, to its end: one callback, with the steps of others in between."""
        self._job = self._job or self._choose()
        self._runs = True
        self._job()
        self._runs, self._job = False, None

    def pause(self, text: str) -> None:
        """Real code has done something: others take steps. If one of them is a crash, it goes no further."""
        self.check()
        if self._runs:
            self._runs = False
            self._others(self, text)
            self.check()
            self._runs = True

    def check(self) -> None:
        """Go no further after a crash."""
        if self._crashed:
            raise Crashed

    def _choose(self) -> Callable[[], object]:
        now, rng = self.world.now, self.world.rng
        ready: list[Callable[[], object]] = [
            partial(self.unregister, known)
            for known in self.workers.values()
            if not known.process.process.alive and known.id not in self._buried
        ]
        ready += [
            partial(self.hear, li) for li in self.lines if li.to_server and li.to_server[0].arrives_at <= now
        ]
        handles = self.loop.handles
        if handles and handles[0].at <= now and (not ready or rng.random() < 0.5):
            callback = heapq.heappop(handles).callback
            if callback is not None:
                return callback
        return rng.choice(ready) if ready else bool

    @property
    def idle(self) -> bool:
        """Whether it is between two callbacks."""
        return self._job is None

    # -- the registry ------------------------------------------------------------------------------

    def start(self) -> None:
        """``TimerServer.start``: adopt, then listen."""
        self.pause("starts")
        for file in self.world.linked():
            self.adopt(file)
        for known in list(self.workers.values()):
            for table in list(known.tables):
                table.look()
        self.started = True
        self.loop.call_later(self.lifeline.beat, self.beat)
        self.pause("serves")

    def beat(self) -> None:
        """``TimerServer._show_life``."""
        self.lifeline.tick(self.world.now)
        self.lifeline.news()
        self.loop.call_later(self.lifeline.beat, self.beat)
        self.pause("shows life")

    def adopt(self, file: TableFile) -> None:
        """``Registry._adopt_one``."""
        head = file.read(16, 0)
        if file.size != layout.TABLE_SIZE or layout.layout_version(head) != layout.LAYOUT_VERSION:
            self.world.unlink(file)
            self.pause(f"removes {file}: it is no table")
            return
        try:
            process = self.world.pin(file.name[0].pid)
        except ProcessLookupError:
            process = None
        self.pause(f"pins {file.name[0]}")
        if process is None or not self.is_same(file, process):
            self.world.unlink(file)
            self.pause(f"removes {file}: its process is gone")
            return
        known = self.register(process)
        table = self.watch_table(known, file, connected=False)
        if known.runs_program_of(table) is False:
            known.drop(table)
        self.pause(f"adopts {file}")

    def is_same(self, file: TableFile, process: Process) -> bool:
        """Whether a table's name says that it belongs to a process."""
        return file.name == (process.id, process.inode)

    def register(self, process: Process) -> Known:
        """``Registry.register``."""
        known = self.workers.get(process.id)
        if known is None:
            known = self.workers[process.id] = self.known(cast(Any, self.pinned(process, self)))
        return known

    def watch_table(self, known: Known, file: TableFile, *, connected: bool) -> Table:
        """``Registry.watch``."""
        opened = OpenFile(file, self)
        armings = TableReader(opened.read).armings
        watch = self.watch(self.lifeline, connected=connected, bound=self.bound, armings=armings)
        table = self.table(opened, watch, self, known)
        known.tables.append(table)
        return table

    def unregister(self, known: Known) -> None:
        """``Registry._dead``."""
        self._buried.add(known.id)
        self.queue.put(known.id, self._bury, known)
        self.pause(f"hears of the death of {known.process.process}")

    def _bury(self, known: Known) -> None:
        self.reaper.died(known)
        for table in list(known.tables):
            known.drop(table)
        known.close()
        self.workers.pop(known.id, None)
        self._buried.discard(known.id)
        self.pause(f"unregisters {known.process.process}")

    # -- connections -------------------------------------------------------------------------------

    def connect(self, process: Process) -> Line | None:
        """Accept a connection: the kernel does, even while this process is stopped."""
        line = Line(self.world, process)
        self.lines.append(line)
        return line

    def hear(self, line: Line) -> None:
        """Read what has arrived on a connection; of several rings the earliest counts."""
        rung = None
        while line.to_server and line.to_server[0].arrives_at <= self.world.now:
            message = line.to_server.popleft()
            self.pause(f"hears {message.kind.upper()} of {line.process}")
            if message.kind == "ring":
                rung = message.deadline if rung is None else min(rung, message.deadline)
            elif message.kind == "hello":
                self.greet(line, message)
            else:
                if message.kind == "bye" and line in self._tables:
                    self.forget(self._tables[line])
                self.hang_up(line)
            if not line.server_open:
                return
        table = self._tables.get(line)
        if rung is not None and table is not None and not table.closed:
            table.rung(rung)

    def greet(self, line: Line, message: Message) -> None:
        """``handlers._handle_hello``: WELCOME comes last."""
        known = self.register(line.process)
        assert known.process.process is line.process, "two processes of one identity"
        program = line.process.program + 1
        if line.hung_up():  # by an exec perhaps
            self.hang_up(line)
            return
        offered = message.offered
        assert offered is not None
        for other in list(known.tables):
            if other.connection is None and known.runs_program_of(other) is False:
                known.drop(other)
        found = next((t for t in known.tables if cast(Table, t).truth is offered), None)
        if found is None and offered.size != layout.TABLE_SIZE:
            self.pause("refuses a table that is cut off")
            self.hang_up(line)
            return
        table = cast("Table | None", found) or self.watch_table(known, offered, connected=True)
        self._tables[line] = table
        table.connection = cast(Any, line)
        table.note_program(program)
        self.world.link(offered)
        table.watch.connected = True
        self.pause(f"greets {line.process} with {table}")
        table.look()
        if table.closed or not line.server_open:
            return
        line.welcome = table.truth
        self.judge.connection_changed(table)
        self.pause(f"welcomes {line.process}")

    def forget(self, table: Table) -> None:
        """``handlers.forget``."""
        known = self.owner(table)
        if known is not None:
            known.drop(table)

    def owner(self, table: Table) -> Known | None:
        """Return whose table it is."""
        return next((known for known in self.workers.values() if table in known.tables), None)

    def hang_up(self, line: Line) -> None:
        """``ServerConnection.close`` and what a session does then."""
        line.server_open = False
        line.to_server.clear()
        self.lines.remove(line)
        table = self._tables.pop(line, None)
        if table is None or table.closed or table.line is not line:
            return
        table.connection = None
        self.judge.connection_changed(table)
        known = self.owner(table)
        if known is not None:
            self.ended(known, table)

    def ended(self, known: Known, table: Table) -> None:
        """A connection has ended without BYE: that releases nothing, but an ``exec`` does."""
        if known.runs_program_of(table) is False or not table.truth.mapped:
            known.drop(table)
        else:
            table.connection_lost()

    # -- questions ---------------------------------------------------------------------------------

    def readable(self, client: Client) -> None:
        """``ServerConnection._readable``."""
        self.queue.take_turn(self.turn(client))

    def turn(self, client: Client) -> Steps[None]:
        """``ServerConnection._turn``: answer what has been read; there is more by then."""
        for _ in range(self.world.rng.randint(1, ANSWER)):
            self.world.now += STEP * self.world.rng.random()
            self.pause("answers a client that asks without end")
            yield
        if self.world.now < client.until:
            self.loop.call_soon(self.readable, client)

    def ask(self, known: Known) -> None:
        """``inspector.inspect_loops``: ask a worker what it is doing; it does not always answer in time."""
        now, rng = self.world.now, self.world.rng
        if known.closed:
            return
        asking = self.asking(cast(asyncio.AbstractEventLoop, self.loop), now)
        known.asks(asking, now)
        asked = self.judge.asks(known.process.process, now)
        answered = rng.random() < 0.7
        within = ASK_WITHIN * rng.random() if answered else ASK_WITHIN
        self.loop.call_later(within, self._answered, known, asking, asked, answered)
        self.pause(f"asks {known.process.process}")

    def _answered(self, known: Known, asking: real.Asking, asked: Asked, answered: bool) -> None:
        now = self.world.now
        asked.until, asked.took = now, now - asked.since if answered else 0.0
        asking.end(now, answered=answered)
        self.pause(f"has {'an' if answered else 'no'} answer of {known.process.process}")

    # -- the end -----------------------------------------------------------------------------------

    def crash(self) -> None:
        """SIGKILL: what was under way is gone, and so is what it knew."""
        self._crashed = True
        for line in self.lines:
            line.server_open = False
            line.to_server.clear()
        self.lines.clear()

    def stop(self) -> None:
        """SIGTERM, in between two callbacks: promise nothing, keep the files."""
        for known in self.workers.values():
            for table in known.tables:
                table.suspend()
        self.crash()
