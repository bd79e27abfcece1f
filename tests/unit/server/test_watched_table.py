"""A watched table in memory, by a virtual clock: what it promises, when it wakes, and how it ends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from aiotimer._core import layout, wire
from aiotimer._core.reader import TableReader
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import ADOPTED_EVERY, BLOCK, BOUND, LATER_READ, RESTARTS, SLOW, Due, Lifeline, Watch
from aiotimer.server.watched_table import REST, WatchedTable
from tests.fakes.clock import Clock
from tests.fakes.memory import MemoryFile, memory_table


class HandLoop:
    """A loop that calls nothing by itself; like uvloop, it counts in milliseconds.

    Attributes:
        handles: what it is to call, and when.
    """

    def __init__(self, clock: Clock) -> None:
        self.time = clock
        self.handles: list[_Handle] = []

    def call_at(self, when: float, callback: Callable[[], object]) -> _Handle:
        handle = _Handle(when, callback, self)
        self.handles.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[[], object]) -> _Handle:
        return self.call_at(self.time() + delay, callback)

    def next_at(self) -> float:
        """When there is something to call."""
        return min((handle.when for handle in self.handles), default=inf)

    def call_next(self) -> None:
        """Call whatever is next, whatever time it is."""
        handle = min(self.handles, key=lambda handle: handle.when)
        handle.cancel()
        handle.callback()


class _Handle:
    def __init__(self, when: float, callback: Callable[[], object], loop: HandLoop) -> None:
        self.when = when
        self.callback = callback
        self.cancel: Callable[[], None] = functools.partial(loop.handles.remove, self)


class Connected:
    """A connection."""

    def close(self) -> None:
        """Nobody does."""

    def hung_up(self) -> bool:
        """It is open."""
        return False


class Served:
    """A table, its two sides, and the loop."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.loop = HandLoop(self.clock)
        self.cells: TimerTable = memory_table(now=self.clock)
        self.file = MemoryFile(self.cells)
        self.due: list[Due] = []
        watch = Watch(Lifeline(self.clock.now, beat=inf), connected=True)
        loop: Any = self.loop
        self.table = WatchedTable(self.file, watch, loop, self.expire, self.clock)

    def expire(self, _table: WatchedTable, due: tuple[Due, ...]) -> None:
        self.due += due

    def arm(self, after: float, scope: str = "s") -> float:
        """Arm a timer without ringing; return its deadline."""
        deadline = self.clock.now + after
        self.cells.set((scope, 0), deadline, self.clock.now)
        return deadline

    @property
    def promise(self) -> float:
        """What the worker reads."""
        return self.cells.cells[layout.PROMISE]


@pytest.fixture
def served() -> Served:
    return Served()


def test_a_look_promises_the_next_one_and_reads_once_more(served: Served) -> None:
    deadline = served.arm(2.0)
    served.table.look()
    assert served.promise == deadline
    assert served.cells.looks() == 1.0
    assert sorted(handle.when for handle in served.loop.handles) == [served.clock.now + LATER_READ, deadline]


def test_fault_83_a_table_whose_peer_has_something_to_say_is_not_looked_at_before(served: Served) -> None:
    unsent, table = True, served.table
    table.ask_peer = lambda answered: answered(unsent)
    served.arm(-1.0)
    for _ in range(3):
        table.look()
        assert (served.due, served.cells.looks()) == ([], 0.0)
        assert served.loop.next_at() == served.clock.now + ADOPTED_EVERY
        served.clock.now += ADOPTED_EVERY
        served.loop.call_next()
    unsent = False  # it has given up; or it has just said it, or is at its end
    for _ in range(2):
        table.look()
        assert served.due == []
    served.clock.now += ADOPTED_EVERY
    served.loop.call_next()
    assert [due.slot for due in served.due] == [0]


def test_nobody_waits_while_it_is_found_out_whether_a_peer_has_something_to_say(served: Served) -> None:
    asked: list[Callable[[bool], None]] = []
    table = served.table
    table.ask_peer = asked.append
    served.arm(-1.0)
    for _ in range(3):
        table.look()
    (answered,) = asked
    assert (served.due, served.cells.looks(), served.loop.handles) == ([], 0.0, [])
    answered(False)
    served.clock.now += ADOPTED_EVERY
    served.loop.call_next()
    asked[1](False)
    assert [due.slot for due in served.due] == [0]
    table.look()
    assert len(asked) == 3, "it may have something to say by now"
    table.close()
    asked[2](False)
    assert served.cells.looks() == 1.0


def test_the_word_of_a_peer_has_come_when_it_is_connected(served: Served) -> None:
    served.table.ask_peer = lambda answered: answered(True)
    served.table.connection = Connected()
    served.arm(-1.0)
    served.table.look()
    assert [due.slot for due in served.due] == [0]


def test_what_the_later_read_finds_is_looked_at(served: Served) -> None:
    served.table.look()
    assert served.promise == served.clock.now + BOUND
    deadline = served.arm(1.0)
    served.loop.call_next()
    assert served.promise == deadline
    served.loop.call_next()
    assert served.loop.next_at() == deadline, "it found nothing new, and there is no third one"


def test_a_loop_that_wakes_early_sleeps_on_each_time_a_little_longer(served: Served) -> None:
    deadline = served.arm(1.0)
    served.table.look()
    served.loop.call_next()  # the later read
    served.clock.now = deadline - 0.0004
    spare = []
    for _ in range(4):
        served.loop.call_next()
        spare.append(round(1000 * (served.loop.next_at() - served.clock.now)))
    assert spare == [1, 2, 3, 5], "a millisecond, and 0, 1, 2, 4 more"
    assert not served.due
    served.clock.now = deadline
    served.loop.call_next()
    assert [due.deadline for due in served.due] == [deadline]


def test_a_worker_that_keeps_lowering_its_deadline_holds_the_loop_up_for_a_few_rounds(served: Served) -> None:
    class Lowering(MemoryFile):
        __slots__ = ()
        after = 4.0

        def write(self, data: bytes, offset: int) -> None:
            super().write(data, offset)
            if offset == 8 * layout.PROMISE:
                Lowering.after /= 2
                served.arm(Lowering.after)

    loop: Any = served.loop
    watch = served.table.watch
    table = WatchedTable(Lowering(served.cells), watch, loop, served.expire, served.clock)
    table.look()
    assert served.cells.looks() == RESTARTS
    assert served.loop.next_at() == served.clock.now, "others get a turn, then it goes on"


def test_what_could_not_be_dealt_with_is_due_again(served: Served) -> None:
    loop: Any = served.loop

    def fail(_table: WatchedTable, due: tuple[Due, ...]) -> None:
        served.due += due
        raise RuntimeError("no memory")

    served.arm(0.0)
    table = WatchedTable(served.file, served.table.watch, loop, fail, served.clock)
    table.look()
    table.look()
    assert len(served.due) == 2


def test_a_table_that_is_closed_is_read_and_looked_at_no_more(served: Served) -> None:
    served.arm(1.0)
    served.table.look()
    served.table.suspend()
    assert served.promise == inf
    assert not served.loop.handles
    assert served.table.closed
    assert not [timer for batch in served.table.batches() for timer in batch]
    assert served.table.number(layout.LOOKS) == 0
    served.table.note_program(7)
    assert MemoryFile(served.cells).read(8, 8 * layout.PROGRAM) == layout.word(0.0)
    served.table.close()


def test_what_is_noted_is_there_for_the_next_server(served: Served) -> None:
    served.table.look()
    served.table.note_program(7)
    served.table.note_reap_grant("KILL process")
    served.table.mark_reaped(1000.5)
    assert served.table.account() is None
    served.table.note_account(said := wire.Account("job-7", "train.py rank 2/4", "4711", 2, 4))
    served.table.suspend()
    loop: Any = served.loop
    after = WatchedTable(MemoryFile(served.cells), served.table.watch, loop, served.expire, served.clock)
    assert (after.program, after.reap_grant(), after.account()) == (7, "KILL process", said)
    assert after.number(layout.REAPED_AT) == 1000
    after.look()
    assert served.cells.looks() == 3.0, "one look, the end, and another look"


TAKES = 0.001


class SlowFile(MemoryFile):
    """A large table: reading it takes a while.

    Attributes:
        clock: what it takes time of.
        reads: how often it was read.
    """

    __slots__ = ("clock", "reads")

    def __init__(self, table: TimerTable, clock: Clock) -> None:
        super().__init__(table)
        self.clock = clock
        self.reads = 0

    def read(self, size: int, offset: int) -> bytes:
        if offset == layout.SNAPSHOT_OFFSET:
            self.clock.now += TAKES
            self.reads += 1
        return super().read(size, offset)


def fill(served: Served, deadline: float) -> None:
    """Let all slots that a table has hold the same."""
    served.cells.cells[layout.HIGH_WATER] = layout.SLOTS
    for slot in range(layout.SLOTS):
        served.cells.cells[layout.FIRST_DEADLINE + slot] = deadline


def test_who_rings_all_the_time_for_a_large_table_has_a_share_of_the_loop(served: Served) -> None:
    fill(served, inf)
    file = SlowFile(served.cells, served.clock)
    served.table.file = file
    served.table.reader = TableReader(file.read)
    began, looks = served.clock.now, served.cells.looks()
    for _ in range(2_000):
        served.table.rung(served.clock.now + 1.0)
        served.clock.now += 1e-4
        while served.loop.next_at() <= served.clock.now:
            served.loop.call_next()
    passed = served.clock.now - began
    assert served.cells.looks() > looks + 2
    assert file.reads * TAKES < 0.5 * passed
    assert served.loop.next_at() <= served.clock.now + REST * TAKES, "it is looked at as soon as that is over"


def test_a_storm_in_one_table_lets_others_have_their_turns(served: Served) -> None:
    fill(served, served.clock.now - 1.0)
    served.table.look()
    looks = 1
    while len(served.due) < layout.SLOTS:
        assert len(served.due) == looks * SLOW * BLOCK
        assert served.loop.next_at() == served.clock.now
        served.loop.call_next()
        looks += 1
    assert served.promise == served.clock.now + BOUND
