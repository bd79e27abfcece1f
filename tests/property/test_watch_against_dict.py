"""A worker and its watch against a plain dict, in virtual time.

The dict says which timers are armed; the table, the reader and the watch, put together as a server puts them
together, must come to the same: exactly what is due is reported, nothing early, nothing twice, and at
every moment a look is scheduled by the earliest deadline.

A hostile worker stores anything anywhere. There a watch that goes through all slots at every look, and keeps
nothing in mind but what it has dealt with, says what is right.
"""

import struct
from array import array
from collections.abc import Iterable
from math import inf, nan
from typing import TypeAlias

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from aiotimer._core import layout
from aiotimer._core.reader import TableReader, Timer
from aiotimer._core.watch import ADOPTED_EVERY, BLOCK, BOUND, Due, Lifeline, Look, Watch
from tests.fakes.clock import Clock
from tests.fakes.memory import memory_table, reading

Name: TypeAlias = tuple[str, int]
"""Scope and ordinal."""

SCOPES = st.sampled_from(["a", "b", "c", "rollout"])
DELAYS = st.one_of(
    st.floats(min_value=0.0, max_value=0.01),
    st.floats(min_value=0.0, max_value=2 * BOUND),
    st.sampled_from([0.0, 1.0, BOUND, 60.0, 1e6]),
)


class WatchedWorker(RuleBasedStateMachine):
    """One worker and its server. ``model`` is what ought to be armed, ``done`` what has been dealt with."""

    entries = Bundle("entries")

    @initialize(bound=st.sampled_from([BOUND, inf]))
    def start(self, bound: float) -> None:
        self.clock = Clock()
        self.table = memory_table(now=self.clock)
        self.reader = TableReader(reading(self.table))
        self.watch = Watch(Lifeline(self.clock.now, beat=inf), connected=True, bound=bound)
        self.bound = bound
        self.model: dict[Name, float] = {}
        self.done: set[tuple[Name, float]] = set()
        self.last_due: tuple[Due, ...] = ()
        self.last_names: set[tuple[Name, float]] = set()
        self.serial = 0
        self.wake_at = -inf
        self.rung = inf
        self.look()

    # -- the worker --------------------------------------------------------------------------------

    def deadline(self, delay: float) -> float:
        """Return a deadline that no other timer has: an equal value in one slot would be one timer."""
        self.serial += 1
        return self.clock.now + delay + self.serial * 1e-7

    def stored(self, name: Name, deadline: float, *, must_ring: bool) -> None:
        """A timer has been stored: ring if need be, and reconnect if that fails, as a connection does."""
        self.model[name] = deadline
        if not must_ring:
            return
        looks = self.table.looks()
        if self.watch.connected:
            self.table.rang(looks, self.clock.now)
        else:
            self.watch.connected = True
            self.table.forget_rings()
        self.rung = min(self.rung, deadline)
        self.watch.ring(deadline)
        self.look()

    @rule(scope=SCOPES, delay=DELAYS)
    def acquire(self, scope: str, delay: float) -> None:
        deadline = self.deadline(delay)
        must_ring = self.table.set((scope, 0), deadline, self.clock.now)
        self.stored((scope, 0), deadline, must_ring=must_ring)

    @rule(scope=SCOPES)
    def release(self, scope: str) -> None:
        assert not self.table.set((scope, 0), -1.0, self.clock.now)
        self.model.pop((scope, 0), None)

    @rule(target=entries, scope=SCOPES, delay=DELAYS)
    def enter(self, scope: str, delay: float) -> tuple[Name, int]:
        pool, word = self.table.take(self.table.pool(scope))
        _, ordinal = layout.split_key(self.table.key_of(word))
        deadline = self.deadline(delay)
        pool.cells[word] = deadline
        self.stored((scope, ordinal), deadline, must_ring=self.table.must_ring(deadline, self.clock.now))
        return (scope, ordinal), word

    @rule(entry=consumes(entries))
    def leave(self, entry: tuple[Name, int]) -> None:
        name, word = entry
        self.table.cells[word] = inf
        self.table.pool(name[0]).append(word)
        del self.model[name]

    @rule(entry=entries, delay=DELAYS)
    def renew(self, entry: tuple[Name, int], delay: float) -> None:
        name, word = entry
        deadline = self.deadline(delay)
        self.table.cells[word] = deadline
        self.stored(name, deadline, must_ring=self.table.must_ring(deadline, self.clock.now))

    # -- the server --------------------------------------------------------------------------------

    def look(self) -> None:
        """Look as a server does, and compare what it decides with the model."""
        now = self.clock.now
        deadlines = self.reader.deadlines()
        look = self.watch.look(deadlines, now)
        self.table.cells[layout.PROMISE] = look.promise
        self.table.cells[layout.LOOKS] += 1.0
        assert not self.watch.overlooked(self.reader.deadlines(), look.wake_at)
        self.wake_at = look.wake_at

        reported = {self.name_of(due) for due in look.due}
        expected = {(name, d) for name, d in self.open().items() if d <= now}
        assert len(reported) == len(look.due)
        assert reported == expected
        assert [due.effective for due in look.due] == sorted(due.deadline for due in look.due)
        self.done |= reported
        if look.due:
            self.last_due, self.last_names = look.due, reported
        assert look.promise == (look.wake_at if self.watch.connected else inf)
        if self.rung <= now:
            self.rung = inf
        limit = self.bound if self.watch.connected else ADOPTED_EVERY
        assert look.wake_at == min([now + limit, self.rung, *self.open().values()])
        assert look.wake_at > now

    def name_of(self, due: Due) -> tuple[Name, float]:
        timer = self.reader.timer(due.slot, due.deadline)
        assert isinstance(timer, Timer)
        return (timer.scope, timer.ordinal), timer.deadline

    def open(self) -> dict[Name, float]:
        """Return what is armed and has not been dealt with."""
        return {name: d for name, d in self.model.items() if (name, d) not in self.done}

    @rule(delay=DELAYS)
    def time_passes(self, delay: float) -> None:
        until = self.clock.now + delay
        looks = 0
        while self.wake_at <= until and looks < 20:
            self.clock.now = max(self.clock.now, self.wake_at)
            looks += 1
            self.look()
        if self.wake_at > until:
            self.clock.now = until

    @rule()
    def look_for_no_reason(self) -> None:
        self.look()

    @rule()
    def reap_fails(self) -> None:
        self.watch.reopen(self.last_due)
        self.done -= self.last_names
        self.last_due, self.last_names = (), set()
        self.look()

    @rule()
    def clear(self) -> None:
        self.watch.clear(self.reader.deadlines())
        self.done |= set(self.model.items())
        self.last_due, self.last_names = (), set()
        assert not self.watch.expired(self.reader.deadlines(), inf)
        self.look()

    @rule()
    def connection_lost(self) -> None:
        self.watch.connected = False
        self.look()
        assert self.wake_at <= self.clock.now + ADOPTED_EVERY

    # -- always ------------------------------------------------------------------------------------

    @invariant()
    def every_armed_timer_has_a_look_scheduled(self) -> None:
        if self.watch.connected:
            assert self.wake_at <= min(self.open().values(), default=inf)
        else:
            assert self.wake_at <= self.clock.now + ADOPTED_EVERY

    @invariant()
    def the_table_holds_what_the_model_holds(self) -> None:
        found = {(timer.scope, timer.ordinal): timer.deadline for timer in self.reader.timers()}
        assert found == self.model


WatchedWorker.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestWatchAgainstDict = WatchedWorker.TestCase


class PlainWatch:
    """What a :class:`Watch` has to decide, slot by slot."""

    def __init__(self, lifeline: Lifeline, bound: float) -> None:
        self.lifeline = lifeline
        self.bound = bound
        self.connected = True
        self.reported: dict[int, float] = {}
        self.cleared: dict[int, float] = {}
        self.rung = inf

    def look(self, deadlines: "array[float]", now: float) -> Look:
        self.lifeline.tick(now)
        self.forget_changed(deadlines)
        open_ = self.open(deadlines)
        due = self.sorted(timer for timer in open_ if timer.effective <= now)
        self.reported.update((timer.slot, timer.deadline) for timer in due)
        to_come = [timer.effective for timer in open_ if timer.effective > now]
        if self.rung <= now:
            self.rung = inf
        wake_at = min([*to_come, self.rung, now + (self.bound if self.connected else ADOPTED_EVERY)])
        return Look(due, wake_at if self.connected else inf, wake_at)

    def overlooked(self, deadlines: "array[float]", wake_at: float) -> bool:
        return any(timer.effective < wake_at for timer in self.open(deadlines))

    def expired(self, deadlines: "array[float]", now: float) -> list[Due]:
        timers = [t for t in self.armed(deadlines) if self.cleared.get(t.slot) != t.deadline]
        return list(self.sorted(timer for timer in timers if timer.effective <= now))

    def clear(self, deadlines: "array[float]") -> None:
        self.forget_changed(deadlines)  # it reads the table, as a look does
        self.cleared.update((timer.slot, timer.deadline) for timer in self.armed(deadlines))

    def reopen(self, due: Iterable[Due]) -> None:
        for timer in due:
            if self.reported.get(timer.slot) == timer.deadline:
                del self.reported[timer.slot]

    def forget_changed(self, deadlines: "array[float]") -> None:
        there = dict(enumerate(deadlines))
        for dealt_with in (self.reported, self.cleared):
            for slot in [slot for slot, deadline in dealt_with.items() if there.get(slot) != deadline]:
                del dealt_with[slot]

    def open(self, deadlines: "array[float]") -> list[Due]:
        done = {*self.reported.items(), *self.cleared.items()}
        return [timer for timer in self.armed(deadlines) if (timer.slot, timer.deadline) not in done]

    def armed(self, deadlines: "array[float]") -> list[Due]:
        return [
            Due(slot, deadline, self.lifeline.effective(deadline))
            for slot, deadline in enumerate(deadlines)
            if layout.is_armed(deadline)
        ]

    @staticmethod
    def sorted(timers: Iterable[Due]) -> tuple[Due, ...]:
        return tuple(sorted(timers, key=lambda timer: timer.effective))


OTHER_NAN = struct.unpack("=d", b"\xff" * 8)[0]
NONSENSE = st.sampled_from([nan, OTHER_NAN, inf, -inf, 0.0, -0.0, -1.0, -5e-324, 5e-324, 1.7e308, 3e13])
CORNERS = [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 50]
ANY_SLOT = st.sampled_from(CORNERS)
ANY_SIZE = st.sampled_from([0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 51])
AWAY = st.one_of(st.floats(-8.0, 8.0), st.sampled_from([0.0, 1.0, 2.0, 2.0, 60.0]))
"""How far a deadline is from now."""


class HostileTable(RuleBasedStateMachine):
    """Slots that hold anything, and a server that may stand still: a watch and a plain one must agree."""

    @initialize(bound=st.sampled_from([BOUND, inf]), size=ANY_SIZE)
    def start(self, bound: float, size: int) -> None:
        self.clock = Clock()
        self.lifelines = Lifeline(self.clock.now), Lifeline(self.clock.now)
        self.watch = Watch(self.lifelines[0], connected=True, bound=bound)
        self.plain = PlainWatch(self.lifelines[1], bound)
        self.words = array("d", [inf] * (2 * BLOCK + 51))
        self.size = size
        self.stored = [inf]
        self.due: tuple[Due, ...] = ()
        self.wake_at = -inf

    def deadlines(self) -> "array[float]":
        return self.words[: self.size]

    # -- the worker --------------------------------------------------------------------------------

    @rule(slots=st.lists(ANY_SLOT, min_size=1, max_size=3), away=AWAY)
    def arms(self, slots: list[int], away: float) -> None:
        self.store(slots, self.clock.now + away)

    @rule(slots=st.lists(ANY_SLOT, min_size=1, max_size=3), word=NONSENSE)
    def stores_nonsense(self, slots: list[int], word: float) -> None:
        self.store(slots, word)

    @rule(slots=st.lists(ANY_SLOT, min_size=1, max_size=3), which=st.integers(1, 4))
    def stores_what_it_has_stored_before(self, slots: list[int], which: int) -> None:
        self.store(slots, self.stored[-min(which, len(self.stored))])

    @rule(block=st.integers(0, 2), away=AWAY, apart=st.sampled_from([0.0, 1e-3, -1e-3, 1.0]))
    def arms_many(self, block: int, away: float, apart: float) -> None:
        for slot in range(block * BLOCK, min((block + 1) * BLOCK, len(self.words))):
            self.words[slot] = self.clock.now + away + slot * apart

    @rule(size=ANY_SIZE)
    def stores_another_size(self, size: int) -> None:
        self.size = size

    @rule(deadline=st.one_of(AWAY.map(lambda away: 1000.0 + away), NONSENSE))
    def rings(self, deadline: float) -> None:
        self.watch.ring(deadline)
        if -inf < deadline < inf:
            self.plain.rung = min(self.plain.rung, deadline)

    def store(self, slots: list[int], word: float) -> None:
        self.stored.append(word)
        for slot in slots:
            self.words[slot] = word

    # -- the server --------------------------------------------------------------------------------

    @rule(passed=st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 7.0]))
    def looks(self, passed: float) -> None:
        self.clock.now += passed
        look = self.watch.look(self.deadlines(), self.clock.now)
        assert look == self.plain.look(self.deadlines(), self.clock.now)
        self.due, self.wake_at = look.due or self.due, look.wake_at

    @rule(passed=st.sampled_from([0.5, 1.5, 4.0]))
    def shows_a_sign_of_life(self, passed: float) -> None:
        self.clock.now += passed
        for lifeline in self.lifelines:
            lifeline.tick(self.clock.now)

    @precondition(lambda self: self.clock.now <= self.wake_at)  # else it is about to look
    @rule()
    def reads_again(self) -> None:
        overlooked = self.watch.overlooked(self.deadlines(), self.wake_at)
        assert overlooked == self.plain.overlooked(self.deadlines(), self.wake_at)

    @rule(away=st.one_of(AWAY, st.just(inf)))
    def asks_what_has_expired(self, away: float) -> None:
        until = self.clock.now + away
        assert self.watch.expired(self.deadlines(), until) == self.plain.expired(self.deadlines(), until)

    @rule()
    def clears(self) -> None:
        for watch in (self.watch, self.plain):
            watch.clear(self.deadlines())

    @rule()
    def fails_to_reap(self) -> None:
        for watch in (self.watch, self.plain):
            watch.reopen(self.due)

    @rule(connected=st.booleans())
    def is_connected(self, connected: bool) -> None:
        for watch in (self.watch, self.plain):
            watch.connected = connected

    # -- always ------------------------------------------------------------------------------------

    @invariant()
    def they_agree_on_what_is_cleared(self) -> None:
        for slot in CORNERS:
            for word in self.stored[-4:]:
                assert self.watch.cleared(slot, word) == (self.plain.cleared.get(slot) == word)


HostileTable.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestWatchAgainstPlainWatch = HostileTable.TestCase


@settings(max_examples=300)
@given(
    steps=st.lists(st.one_of(st.sampled_from([0.5, 1.4]), st.floats(1.6, 100.0)), max_size=30),
    deadlines=st.lists(st.floats(0.001, 300.0), min_size=1, max_size=8),
)
def test_a_stall_takes_nothing_from_a_timer_and_gives_it_nothing(
    steps: list[float], deadlines: list[float]
) -> None:
    lifeline = Lifeline(0.0)
    expected = dict.fromkeys(deadlines, 0.0) | {deadline: deadline for deadline in deadlines}
    now = 0.0
    for step in steps:
        a, now = now, now + step
        lifeline.tick(now)
        for stored, due in expected.items():
            if step > 1.5 and a < due <= now:
                expected[stored] = now + (due - a)
        for stored, due in expected.items():
            if due >= now:
                assert lifeline.effective(stored) == due
            else:
                assert lifeline.effective(stored) < now, "what has expired stays expired"
