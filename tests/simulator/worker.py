"""A worker: what ``client/block``, ``client/shared_table`` and ``TimerTable.set`` do, in single steps.

The laws of this file:

* The table is a real ``TimerTable``, entries take slots of real pools, ``must_ring`` decides whether to ring.
  What is written out here is the order of the stores, the reads and the ``send``.
* An operation is a generator. Between any two of its steps other threads run, the server runs, time passes;
  or the operation is interrupted, which closes the generator.
* A thread waits for the server only while it connects, and never longer than the budget. A HELLO that has not
  been answered by then is left where it is; another thread, the reconnector, waits on.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Generator
from math import inf, nan
from typing import NamedTuple, Protocol, TypeAlias, cast

from aiotimer._core import layout
from aiotimer._core.layout import COUNT_OF, FIRST_DEADLINE, LATE, PROMISE
from aiotimer._core.requests import RELEASE
from aiotimer._core.table import Pool, TimerTable
from tests.fakes.memory import armed_cells

from .world import Broken, Line, Process, TableFile, World

BUDGET = 0.25
"""``clients.BUDGET``: seconds for which an acquire may hold its thread when its server has to be reached."""

RETRY_EVERY = 1.0
"""``connection.RETRY_EVERY``: seconds between attempts to connect."""

LAST_PAUSE = 1.0
"""``reconnect._LAST_PAUSE``: seconds between two attempts of the reconnector."""

MOST_STEPS = 24
"""What the longest operation takes: it rings, finds the server gone, and reconnects. Waits are apart."""

STORM = 80
"""Blocks of a storm: more than ``reaper.AT_ONCE``."""

SCOPES = ("a", "b", "c")
NAPS = (0.0, 0.0, 0.0, 0.0, 1e-3, 0.1, 3.0)
"""Seconds for which a thread does other things between two operations."""

AFTERS = (5e-324, 1e-9, 1e-4, 0.001, 0.003, 0.02, 0.3, 1.0, 4.0, 7.0, 60.0, 1e6, 1e308)


class Wait(NamedTuple):
    """A step after which a thread goes on when something is ready, or it is too late.

    Attributes:
        text: for what.
        ready: whether it is.
        until: when to give up.
    """

    text: str
    ready: Callable[[], bool]
    until: float


Steps: TypeAlias = Generator["str | Wait", None, None]


class Server(Protocol):
    """What a worker sees of a server."""

    def connect(self, process: Process) -> Line | None:
        """Return a connection, None if nobody listens."""


class Entry(NamedTuple):
    """A block that a thread is in."""

    pool: Pool
    word: int
    after: float


class Thread:
    """One thread of a worker, and the operation that it is at."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.worker = worker
        self.name = name
        self.entries: list[Entry] = []
        self.storm: list[Entry] = []  # many blocks that it is in, and leaves at once
        self.arming: Entry | None = None  # an entry whose __enter__ has not returned
        self._sleeps_until = -inf
        self._operation: Steps | None = None
        self._title = ""
        self._wait: Wait | None = None
        self._steps = 0

    def __str__(self) -> str:
        return f"{self.worker.process}{self.name}"

    @property
    def busy(self) -> bool:
        """Whether it is in an operation."""
        return self._operation is not None

    def runnable(self, now: float) -> bool:
        """Whether it could take a step."""
        wait = self._wait
        if now < self._sleeps_until or now < self.worker.process.frozen_until:
            return False
        return wait is None or now >= wait.until or wait.ready()

    def wakes_at(self) -> float:
        """Return when it goes on whatever happens."""
        if self._wait is not None:
            return self._wait.until
        return self._sleeps_until if self._sleeps_until > self.worker.world.now else inf

    def step(self, rng: random.Random) -> str:
        """Take a step, beginning an operation if need be; say what it was."""
        if self._operation is None:
            self.begin(*self.worker.choose(self, rng))
        self._wait = None
        try:
            done = next(cast(Steps, self._operation))
        except StopIteration:
            self._operation = None
            self._sleeps_until = self.worker.world.now + rng.choice(NAPS) * rng.random()
            return f"{self._title}: done"
        if isinstance(done, Wait):
            self._wait = done
            if done.until > self.worker.world.now + BUDGET:
                raise Broken("I7", f"{self} waits for {done.text} for more than its budget")
            return f"{self._title}: waits for {done.text}"
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Broken("I7", f"{self} has taken {self._steps} steps in {self._title}")
        return f"{self._title}: {done}"

    def begin(self, title: str, operation: Steps) -> None:
        """Begin an operation."""
        self._title, self._operation, self._steps = title, operation, 0

    def interrupt(self) -> str:
        """An exception in the middle of an operation: what it was arming is released."""
        operation, self._operation, self._wait = self._operation, None, None
        assert operation is not None
        operation.close()
        if self.arming is not None:
            self.worker.give_back(self.arming)
            self.arming = None
        return f"{self._title}: is interrupted"


class Reconnecting(Thread):
    """``Reconnector``'s thread: it connects as long as somebody could not ring."""

    def step(self, rng: random.Random) -> str:
        """Take a step; between two attempts it sleeps."""
        done = super().step(rng)
        if not self.busy:
            self._sleeps_until = self.worker.world.now + rng.uniform(0.25, LAST_PAUSE)
        return done

    def runnable(self, now: float) -> bool:
        """Whether it could take a step: without an outage there is no such thread."""
        if not self.busy and self.worker.is_answered():
            self._sleeps_until = now
        return (self.busy or self.worker.needs_reconnecting()) and super().runnable(now)

    def wakes_at(self) -> float:
        """Return when it goes on whatever happens."""
        return super().wakes_at() if self.busy or self.worker.needs_reconnecting() else inf


class Worker:
    """One program in one process: its connection, its table, its threads.

    Attributes:
        table: the storing side; None before it is needed.
        file: the same as a file.
        unrung: somebody could not ring, and nobody has for them.
    """

    def __init__(self, world: World, process: Process, server: Callable[[], Server | None]) -> None:
        self.world = world
        self.process = process
        self.program = process.program
        self.table: TimerTable | None = None
        self.file: TableFile | None = None
        self.threads = [Thread(self, "A"), Thread(self, "B"), Reconnecting(self, "R")]
        self.line: Line | None = None
        self.greeting: Line | None = None  # on which HELLO has been said, and not answered
        self.unrung = False
        self.connected = False
        self.hostile = False
        self.inherited: list[Entry] = []  # blocks that a forked child is still to leave
        self._server = server
        self._last: dict[str, float] = {}  # when a timer of this name was to expire
        self._afters = world.rng.sample(AFTERS, world.rng.choice((3, 5, len(AFTERS))))
        self._gate: object = None
        self._next_attempt = -inf

    # -- what a thread does next -------------------------------------------------------------------

    def choose(self, thread: Thread, rng: random.Random) -> tuple[str, Steps]:
        """Return an operation and its title."""
        if self.inherited:
            return "leaves its parent's block", self.leave_inherited(self.inherited.pop())
        if self.hostile:
            return "does harm", self.do_harm(rng)
        dice = rng.random()
        if isinstance(thread, Reconnecting) or (self.table is None and dice < 0.5):
            return "connects", self.connect()
        if thread.entries and dice < 0.5:
            entry = thread.entries.pop(rng.randrange(len(thread.entries)))
            return f"leaves {entry.pool.scope}", self.leave(entry)
        if thread.entries and dice < 0.6:
            return "renews", self.renew(rng.choice(thread.entries))
        if dice < 0.8 and len(thread.entries) < 4:
            after = rng.choice(self._afters) * rng.uniform(0.5, 1)
            observed = rng.random() < 0.15
            return f"enters for {after:.3g} s", self.enter(
                thread, rng.choice(SCOPES), after, observed=observed
            )
        scope = rng.choice(SCOPES)
        if dice < 0.86:
            return f"releases {scope}", self.put(scope, RELEASE)
        if dice < 0.92 and scope in self._last:
            return f"acquires {scope} for the same time", self.again(scope)
        if thread.storm:
            return "leaves its storm", self.leave_storm(thread)
        if dice < 0.97 or any(other.entries or other.busy for other in self.threads):
            when = self.world.now + rng.choice(self._afters) * rng.uniform(0.5, 1)
            self._last[scope] = when
            return f"acquires {scope}", self.put(scope, when)
        if dice < 0.98:
            return f"acquires {scope} for 0", self.put(scope, rng.choice((0.0, 5e-324)))
        return "closes its client", self.close()  # when it is done

    # -- entries -----------------------------------------------------------------------------------

    def enter(self, thread: Thread, scope: str, after: float, *, observed: bool = False) -> Steps:
        """``Block.__enter__``."""
        table, file = self._mine()
        pool = table.pool(scope, observed=observed)
        try:
            word = pool.pop()
        except IndexError:
            pool, word = table.take(pool)
        thread.arming = Entry(pool, word, after)
        yield f"takes slot {word - FIRST_DEADLINE}"
        now = self.world.now
        deadline = now + after
        pool.cells[word + COUNT_OF] += 1.0
        yield "counts itself"
        number = self._store(table, word, deadline, observed=observed)
        yield f"stores {deadline:.6f}"
        if not now - LATE <= pool.cells[PROMISE] <= deadline:
            yield "sees that the promise is not good enough"
            yield from self._send(table, deadline, now)
        if file.mapped:
            file.returned[number] = self.world.now
        thread.entries.append(thread.arming)
        thread.arming = None

    def storm(self, thread: Thread, after: float) -> Steps:
        """Enter many blocks that are only observed, and fall due together."""
        table, file = self._mine()
        now = self.world.now
        stored = []
        for _ in range(STORM):
            pool, word = table.take(table.pool("storm", observed=True))
            pool.cells[word + COUNT_OF] += 1.0
            stored.append(self._store(table, word, now + after, observed=True))
            thread.storm.append(Entry(pool, word, after))
        yield f"stores {now + after:.6f} many times"
        yield from self._send(table, now + after, now)
        file.returned.update(dict.fromkeys(stored, self.world.now))

    def leave_storm(self, thread: Thread) -> Steps:
        """Leave them all."""
        while thread.storm:
            self.give_back(thread.storm.pop())
        yield "stores inf many times"

    def leave(self, entry: Entry) -> Steps:
        """``Block.__exit__``."""
        self._store(entry.pool.table, entry.word, inf)
        try:
            yield f"stores inf into slot {entry.word - FIRST_DEADLINE}"
        finally:
            entry.pool.append(entry.word)

    def renew(self, entry: Entry) -> Steps:
        """``Block.renew``."""
        table, file = self._mine()
        now = self.world.now
        deadline = now + entry.after
        number = self._store(entry.pool.table, entry.word, deadline, observed=entry.pool.observed)
        yield f"stores {deadline:.6f} into slot {entry.word - FIRST_DEADLINE}"
        if not now - LATE <= entry.pool.cells[PROMISE] <= deadline:
            yield from self._send(table, deadline, now)
        file.returned[number] = self.world.now

    def give_back(self, entry: Entry) -> None:
        """Release a slot in one go."""
        self._store(entry.pool.table, entry.word, inf)
        entry.pool.append(entry.word)

    def leave_inherited(self, entry: Entry) -> Steps:
        """``Block.__exit__`` in a forked child: ``TimerTable.abandon`` has turned the pool to scratch."""
        entry.pool.cells[entry.word] = inf
        yield "stores inf"
        entry.pool.append(entry.word)

    # -- keyed timers ------------------------------------------------------------------------------

    def put(self, scope: str, expiration_time: float) -> Steps:
        """``WorkerQueue.put``: ``TimerTable.set``, and the ring."""
        table, file = self._mine()
        stored = layout.as_stored(expiration_time)
        if stored == inf and (scope, 0) not in armed_cells(table):
            return
        cell = table._cells_of.get((scope, 0)) or table._new_cell((scope, 0), make_room=True)
        yield "has a cell"
        now = self.world.now
        number = self._store(table, cell.word, stored)
        yield f"stores {stored:.6f} into slot {cell.word - FIRST_DEADLINE}"
        if stored < inf:
            table.cells[cell.word + COUNT_OF] += 1.0
            if table.must_ring(stored, now):
                yield "must ring"
                yield from self._ring_or_reconnect(table, stored)
            file.returned[number] = self.world.now

    def again(self, scope: str) -> Steps:
        """Release a timer, and arm it for the very time for which it was armed last."""
        yield from self.put(scope, RELEASE)
        yield from self.put(scope, self._last[scope])

    # -- the connection ----------------------------------------------------------------------------

    def _send(self, table: TimerTable, deadline: float, now: float) -> Steps:
        if table.must_ring(deadline, now):
            yield "must ring"
            yield from self._ring_or_reconnect(table, deadline)

    def _ring_or_reconnect(self, table: TimerTable, deadline: float) -> Steps:
        """``SharedTableQueue._sending``: who could not ring says so, and asks once more whether it can."""
        for _ in range(2):
            if self.connected:
                sent = yield from self.ring(table, deadline)
                if sent:
                    return
            self.unrung = True
            yield "says that it could not ring"
        if self._gate is not None or self.world.now >= self._next_attempt or self.is_answered():
            yield from self.connect()

    def ring(self, table: TimerTable, deadline: float) -> Generator[str | Wait, None, bool]:
        """``SharedTableQueue.ring``: the count is read before the ``send``, and remembered after it."""
        looks = table.looks()
        yield "reads the look count"
        if not self.send_ring(deadline):
            yield "finds the server gone"
            return False
        yield "rings"
        table.rang(looks, self.world.now)
        yield "remembers the ring"
        return True

    def send_ring(self, deadline: float) -> bool:
        """Send; False: the server is gone."""
        if self.file is not None:
            self.file.land(everything=True)  # a system call fences
        if self.line is not None and self.line.send("ring", deadline, None):
            return True
        self.connected = False
        return False

    def connect(self) -> Steps:
        """``ClientConnection.connect``: within the budget, or not at all."""
        until = self.world.now + self.budget()
        while self._gate is not None:
            yield Wait("another thread that connects", self._gate_is_open, until)
            if self.world.now >= until:
                return
        self._gate = mine = object()
        line: Line | None = None
        try:
            if self.connected:
                return
            self._next_attempt = self.world.now + RETRY_EVERY
            line, self.greeting = self.greeting, None
            if line is None:
                server = self._server()
                line = None if server is None else server.connect(self.process)
                if line is None:
                    yield "finds nobody"
                    return
                line.send("hello", inf, self._mine()[1])
                yield "says HELLO"
            while not line.answered() and self.world.now < until:
                yield Wait("WELCOME", line.answered, until)
            if not line.answered():
                self.greeting, line = line, None  # it may yet be
                return
            if line.welcome is None:
                return
            self._settle(line, line.welcome)
            line = None
        finally:
            if line is not None:
                line.hang_up()
            if self._gate is mine:
                self._gate = None
        yield "is connected"
        yield from self.ring_for_others()

    def ring_for_others(self) -> Steps:
        """The end of ``SharedTableQueue.settle``."""
        if self.unrung and self.table is not None:
            self.unrung = False
            yield "sees that somebody could not ring"
            if not (yield from self.ring(self.table, self.world.now)):
                self.unrung = True

    def is_answered(self) -> bool:
        """Whether WELCOME is there, and nobody has read it."""
        return self.greeting is not None and self.greeting.answered()

    def needs_reconnecting(self) -> bool:
        """``SharedTableQueue.needs_reconnecting``."""
        return self.unrung and not self.connected and self.table is not None and not self.hostile

    def budget(self) -> float:
        """Return for how long to wait for a connection."""
        return BUDGET

    def _gate_is_open(self) -> bool:
        return self._gate is None

    def _settle(self, line: Line, file: TableFile) -> None:
        if file is not self.file:
            line.hang_up()  # the last client has been closed meanwhile
            return
        if self.line is not None:
            self.line.hang_up()
        self.line = line
        self.connected = True
        file.stable_since = self.world.now if line.server_open else inf
        self._mine()[0].forget_rings()

    def close(self) -> Steps:
        """``ClientConnection.leave``: the last client releases what it has armed by name, and says BYE."""
        line, table, file = self.line, *self._mine()
        self.release_all(table)
        if self.greeting is not None:
            self.greeting.hang_up()
        file.land(everything=True)
        if line is not None:
            line.send("bye", inf, None)
            line.hang_up()
        file.disown()
        file.left_at = self.world.steps
        self.table = self.file = self.line = self.greeting = None
        self.connected = self.unrung = False
        self._gate = None
        yield "has said BYE"

    def release_all(self, table: TimerTable) -> None:
        """``TimerTable.clear_cells``."""
        for scope, ordinal in list(armed_cells(table)):
            self._store(table, table._cells_of[scope, ordinal].word, inf)

    # -- life --------------------------------------------------------------------------------------

    def drop_line(self) -> None:
        """Somebody has closed the connection's descriptor; the worker notices when it uses it."""
        if self.line is not None:
            self.line.hang_up()
            if self.file is not None:
                self.file.stable_since = inf

    def forked(self, process: Process) -> Worker:
        """Return the worker in a forked child, which is in the blocks that it was forked in."""
        child = type(self)(self.world, process, self._server)
        if self.table is not None and self.file is not None:
            copy = TimerTable(self.file.memory, now=self.world.clock)  # the same memory until it is abandoned
            pools: dict[str, Pool] = {}
            for thread in self.threads:
                for entry in thread.entries:
                    pool = pools.setdefault(entry.pool.scope, Pool(copy, entry.pool.scope, observed=False))
                    child.inherited.append(Entry(pool, entry.word, entry.after))
            copy.pools = pools
            self.abandon(copy)
        return child

    def abandon(self, copy: TimerTable) -> None:
        """What the fork hook does in the child."""
        copy.abandon(mmap.mmap(-1, layout.TABLE_SIZE))

    # -- abuse -------------------------------------------------------------------------------------

    def do_harm(self, rng: random.Random) -> Steps:
        """Write whatever comes to mind into one's own table, or cut it off."""
        file = self.file
        assert file is not None
        dice = rng.random()
        if dice < 0.2:
            file.size = rng.choice((0, 8, 64, 200, 256, 264, 300, layout.TABLE_SIZE, layout.TABLE_SIZE))
            yield f"truncates its table to {file.size} bytes"
        elif dice < 0.4:
            file.words[layout.HIGH_WATER] = rng.choice((nan, -1.0, inf, 1e300, 3.0, 2000.0, 65_536.0))
            yield "writes its high-water mark"
        elif dice < 0.5:
            word = rng.choice((PROMISE, layout.LOOKS, layout.REAPED_AT))
            file.words[word] = rng.choice((nan, -inf, 0.0, 1e308, self.world.now + 100))
            yield "writes the server's line"
        elif dice < 0.6 and self.line is not None:
            self.line.send("ring", rng.choice((nan, -inf, inf, 0.0, -1.0, self.world.now)), None)
            yield "rings with nonsense"
        else:
            slot = rng.randrange(20)
            value = rng.choice((nan, -nan, -inf, -0.0, 0.0, 5e-324, 1e308, 3e13, self.world.now + 0.01))
            file.words[FIRST_DEADLINE + slot] = value
            start = layout.label_offset(slot)
            file.raw[start : start + 16] = rng.randbytes(16)
            yield f"writes {value} into slot {slot}"

    # -- stores ------------------------------------------------------------------------------------

    def _mine(self) -> tuple[TimerTable, TableFile]:
        """``SharedTableQueue.make_table``: the table of this process, which no server need have yet."""
        if self.table is None or self.file is None:
            self.file = self.world.create_table(self.process)
            self.table = TimerTable(self.file.memory, now=self.world.clock)
        return self.table, self.file

    def _store(self, table: TimerTable, word: int, value: float, *, observed: bool = False) -> int:
        """Store; return the number of the timer, -1 for a release."""
        file = self.file
        if file is None or table is not self.table:
            table.cells[word] = value  # its client has been closed meanwhile
            return -1
        slot = word - FIRST_DEADLINE
        hold = self.world.rng.random() < self.world.holding
        file.store(slot, value, hold=hold, observed=observed)
        armed = file.armed.get(slot)
        return -1 if armed is None else armed.number
