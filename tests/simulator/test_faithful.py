"""What ``server.py`` and ``worker.py`` write out is what the package does: the same reads, writes and rings.

The real ``WatchedTable`` and ``Reaper``, and real blocks and keyed timers, go through random scripts beside
those of the simulator, by one virtual clock. Nothing is interleaved here: the order of the steps is compared.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
import random
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import pytest

from aiotimer import expires
from aiotimer._core import layout
from aiotimer._core.ladder import KILL
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Lifeline, Watch
from aiotimer._linux import signals, table_files
from aiotimer._linux.process import pin
from aiotimer.server import reaper, watched_table, worker
from tests.fakes.clock import Clock
from tests.fakes.memory import MemoryClient, memory_table

from .server import Handle, Server, Steps, Table
from .worker import Worker
from .world import Process, TableFile, World

SLOTS = 8
"""Slots that the server's scripts use."""

SLOTS_COMPARED = 64
"""Slots of which a worker's scripts use no more."""


class Access(NamedTuple):
    """A read or a write of a table; of a read, the size stands for the data."""

    offset: int
    what: int | bytes


class Real:
    """The real shell over a table in memory, on a loop that runs when it is told.

    Attributes:
        log: what it has read and written.
    """

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock
        self.log: list[Access] = []
        self.permitted = True
        self._numbers = itertools.count()
        self._handles: list[_Call] = []
        self._cancelled: set[int] = set()
        for module in (watched_table, reaper, worker):
            monkeypatch.setattr(module, "monotonic", clock)
        monkeypatch.setattr(watched_table, "os", self)
        monkeypatch.setattr(signals, "send_signal", lambda _pidfd, _signal: None)
        self.descriptor = os.memfd_create("table")
        os.truncate(self.descriptor, layout.TABLE_SIZE)
        worker_id, pidfd = pin(os.getpid())
        self.worker = worker.Worker(worker_id, pidfd, self)  # type: ignore[arg-type]  # a loop, as far as need be
        its_reaper = reaper.Reaper(self, self._reap, lambda _event: None)  # type: ignore[arg-type]
        self.table = watched_table.WatchedTable(
            table_files.TableFile(self.descriptor, None, 1, "shared"),
            Watch(Lifeline(clock.now), connected=True),
            self,  # type: ignore[arg-type]
            functools.partial(its_reaper.expire, self.worker),
        )
        self.table.connection = self
        self.table._rounds = False
        self.worker.tables.append(self.table)
        self.log.clear()

    def close(self) -> None:
        """Give back what is open."""
        self.worker.close()
        os.close(self.descriptor)

    def _reap(self, _worker_id: object) -> bool:
        return self.permitted and self.worker.send(KILL, "process", _unkillable)

    # -- as ``os`` ---------------------------------------------------------------------------------

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        self.log.append(Access(offset, size))
        return os.pread(descriptor, size, offset)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self.log.append(Access(offset, data))
        return os.pwrite(descriptor, data, offset)

    # -- as a loop ---------------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.now

    def call_later(self, delay: float, callback: Callable[..., Any], *arguments: Any) -> Any:
        return self.call_at(self.clock.now + delay, callback, *arguments)

    def call_at(self, when: float, callback: Callable[..., Any], *arguments: Any) -> Any:
        number = next(self._numbers)
        if callback is not _unkillable:
            heapq.heappush(self._handles, _Call(when, number, functools.partial(callback, *arguments)))
        return _Cancel(functools.partial(self._cancelled.add, number))

    def next_at(self) -> float:
        while self._handles and self._handles[0].number in self._cancelled:
            heapq.heappop(self._handles)
        return self._handles[0].when if self._handles else inf

    def run(self) -> None:
        while self.next_at() <= self.clock.now:
            heapq.heappop(self._handles).callback()


def _unkillable(_worker: object) -> None:
    """What a kill that takes long would be told; here none does."""


class _Call(NamedTuple):
    when: float
    number: int
    callback: functools.partial[Any]


class _Cancel:
    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


class Unconcerned:
    """A judge."""

    def alive(self, now: float) -> None: ...

    def about_to_signal(self, *_: object) -> None: ...

    def looked(self, *_: object) -> None: ...

    def connection_changed(self, *_: object) -> None: ...


class Punctual(Server):
    """A loop that never wakes early, and serves nothing by itself; its ladder is ``KILL``."""

    evidence = 0.0

    def start(self) -> Steps:
        yield "starts"

    def call_at(self, when: float, callback: Any) -> Handle:
        handle = Handle(when, self.world.number(), callback)
        heapq.heappush(self.handles, handle)
        return handle


class Simulated:
    """The simulator's server over a table of its own.

    Attributes:
        log: what it has read and written.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.log: list[Access] = []
        self.server = Punctual(world, Unconcerned(), 5.0)
        self.server.crash()  # it has nothing to adopt
        process = Process(1, 1, 1)
        self.file = TableFile(world, process, 1)
        self._read, self._write = self.file.read, self.file.pwrite
        self.file.read = self._logged_read  # type: ignore[method-assign]
        self.file.pwrite = self._logged_write  # type: ignore[method-assign]
        self.known = self.server.register(process)
        self.table = self.server.watch_table(self.known, self.file, connected=True)
        self.table.line = object()  # type: ignore[assignment]  # connected
        self.log.clear()

    def _logged_read(self, size: int, offset: int) -> bytes:
        self.log.append(Access(offset, size))
        return self._read(size, offset)

    def _logged_write(self, data: bytes, offset: int) -> None:
        self.log.append(Access(offset, data))
        self._write(data, offset)

    def do(self, steps: Steps) -> None:
        """Take all the steps of a callback."""
        for _ in steps:
            pass

    def next_at(self) -> float:
        while self.server.handles and self.server.handles[0].callback is None:
            heapq.heappop(self.server.handles)
        return self.server.handles[0].at if self.server.handles else inf

    def run(self) -> None:
        while self.next_at() <= self.world.now:
            callback = heapq.heappop(self.server.handles).callback
            assert callback is not None
            self.do(callback())


def ring(table: Table, server: Server, deadline: float) -> Steps:
    """What ``Server.hear`` does about a ring."""
    table.watch.ring(deadline)
    yield from server.look(table)


@pytest.mark.parametrize("seed", range(40))
def test_the_server_is_the_real_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    world = World(rng)
    clock = Clock(world.now)
    real, simulated = Real(clock, monkeypatch), Simulated(world)
    try:
        for _ in range(60):
            happens = rng.random()
            if happens < 0.4:
                slot, value = (
                    rng.randrange(SLOTS),
                    rng.choice((inf, world.now + rng.uniform(-0.1, 3), 5e-324)),
                )
                data = layout.word(value)
                os.pwrite(real.descriptor, layout.word(SLOTS), 8 * layout.HIGH_WATER)
                os.pwrite(real.descriptor, data, layout.deadline_offset(slot))
                simulated.file.words[layout.HIGH_WATER] = SLOTS
                simulated.file.words[layout.FIRST_DEADLINE + slot] = value
            elif happens < 0.6:
                deadline = world.now + rng.uniform(-0.1, 3)
                real.table.rung(deadline)
                simulated.do(ring(simulated.table, simulated.server, deadline))
            elif happens < 0.7:
                real.permitted = rng.random() < 0.2
                simulated.known.process.protected_until = -inf if real.permitted else inf
            else:
                assert real.next_at() == simulated.next_at()
                leap, late = rng.choice((1e-3, 0.1, 3.0)) * rng.random(), rng.choice((0.0, 0.0, 0.2))
                clock.now = world.now = max(world.now, min(world.now + leap, real.next_at() + late))
                real.run()
                simulated.run()
            assert real.log == simulated.log
            assert real.worker.killed == simulated.known.killed
            assert real.table.watch.promise == simulated.table.watch.promise
        assert len(real.log) > 20
    finally:
        real.close()


@pytest.mark.parametrize("seed", range(20))
def test_the_worker_is_the_real_one(seed: int) -> None:
    """The same blocks and keyed timers leave the same bytes in the table, and ring the same rings."""
    rng = random.Random(seed)
    world = World(rng)
    world.holding = 0.0
    clock = Clock(world.now)
    client = MemoryClient(memory_table(now=clock))
    worker = Worker(world, Process(1, 1, 1), lambda: None)
    line = Line(world)
    worker.line, worker.connected = line, True  # type: ignore[assignment]
    worker.file = TableFile(world, worker.process, 1)
    worker._settle(line, worker.file)  # type: ignore[arg-type]
    table, thread = worker._mine()[0], worker.threads[0]
    blocks: list[Any] = []

    def do(steps: Any) -> None:
        for _ in steps:
            pass

    for _ in range(200):
        happens, scope = rng.random(), rng.choice("abc")
        clock.now = world.now = world.now + rng.random()
        if happens < 0.2:
            promise = world.now + rng.uniform(-3, 3)
            for one in (client.table, table):
                one.cells[layout.PROMISE] = promise
                one.cells[layout.LOOKS] += 1.0
        elif happens < 0.5:
            after = rng.choice((1e-9, 0.3, 2.0, 1e6))
            blocks.append(expires(after, scope, client).__enter__())
            do(worker.enter(thread, scope, after))
        elif happens < 0.7 and blocks:
            number = rng.randrange(len(blocks))
            blocks.pop(number).__exit__(None, None, None)
            do(worker.leave(thread.entries.pop(number)))
        elif happens < 0.8 and blocks:
            number = rng.randrange(len(blocks))
            blocks[number].renew()
            do(worker.renew(thread.entries[number]))
        elif happens < 0.9:
            until = world.now + rng.uniform(-1, 3)
            client.acquire(scope, until)
            do(worker.put(scope, until))
        else:
            client.release(scope)
            do(worker.put(scope, -1.0))
        assert stored(client.table) == stored(table)
        assert client.rings == line.rings
    assert client.rings


class Line:
    """A connection that notes rings."""

    server_open = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.rings: list[float] = []

    def send(self, _kind: str, deadline: float, _offered: object) -> bool:
        self.rings.append(deadline)
        return True

    def hang_up(self) -> None:
        """A reconnect closes the former one."""


def stored(table: TimerTable) -> list[bytes]:
    """Return all that a worker stores for its first slots: the line, deadlines, counts, labels."""
    extents = [
        (layout.SNAPSHOT_OFFSET, layout.snapshot_size(SLOTS_COMPARED)),
        (layout.count_offset(0), 8 * SLOTS_COMPARED),
        (layout.label_offset(0), layout.LABEL_SIZE * SLOTS_COMPARED),
    ]
    return [bytes(table.raw[offset : offset + size]) for offset, size in extents]
