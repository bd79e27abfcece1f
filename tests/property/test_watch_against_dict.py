"""A watch against a plain dict, in virtual time, whatever stands in the slots.

A hostile worker stores anything anywhere. A watch that goes through all slots at every look, and keeps
nothing in mind but a dict of what it has dealt with, says what is right: exactly what is due is reported,
nothing early, nothing twice, and the next look is by the earliest deadline. That real tables, watches and
rings together lose no timer is shown by the simulator.
"""

import struct
from array import array
from collections.abc import Iterable
from math import inf, nan

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiotimer._core import layout
from aiotimer._core.watch import (
    ADOPTED_EVERY,
    BLOCK,
    BOUND,
    FINE_BEAT,
    SHARED_WAKES,
    Due,
    Lifeline,
    Look,
    Watch,
)
from tests.fakes.clock import Clock


class PlainWatch:
    """What a :class:`Watch` has to decide, slot by slot."""

    def __init__(self, lifeline: Lifeline, bound: float, counts: "array[int]") -> None:
        self.lifeline = lifeline
        self.bound = bound
        self.connected = True
        self.reported: dict[int, float] = {}
        self.cleared: dict[int, float] = {}
        self.counts = counts
        self.armings: dict[int, int] = {}
        self.rung = inf

    def look(self, deadlines: "array[float]", now: float) -> Look:
        self.lifeline.tick(now)
        self.forget_changed(deadlines)
        open_ = self.open(deadlines)
        due = self.sorted(
            timer._replace(arming=self.counts[timer.slot]) for timer in open_ if timer.effective <= now
        )
        self.reported.update((timer.slot, timer.deadline) for timer in due)
        self.armings.update((timer.slot, timer.arming) for timer in due)
        to_come = [timer.effective for timer in open_ if timer.effective > now]
        if self.rung <= now:
            self.rung = inf
        wake_at = min([*to_come, self.rung, self.latest(now)])
        return Look(due, wake_at if self.connected else inf, wake_at)

    def latest(self, now: float) -> float:
        if not self.connected:
            return now + ADOPTED_EVERY
        until = now + self.bound
        return until if self.bound == inf else until - until % (self.bound / SHARED_WAKES)

    def overlooked(self, deadlines: "array[float]", wake_at: float) -> bool:
        self.forget_armed_again()
        return any(timer.effective < wake_at for timer in self.open(deadlines))

    def expired(self, deadlines: "array[float]", now: float) -> list[Due]:
        self.forget_armed_again()
        timers = [t for t in self.armed(deadlines) if self.cleared.get(t.slot) != t.deadline]
        return list(self.sorted(timer for timer in timers if timer.effective <= now))

    def clear(self, deadlines: "array[float]") -> None:
        self.forget_changed(deadlines)  # it reads the table, as a look does
        self.cleared.update((timer.slot, timer.deadline) for timer in self.armed(deadlines))
        self.armings.update((timer.slot, self.counts[timer.slot]) for timer in self.armed(deadlines))

    def reopen(self, due: Iterable[Due]) -> None:
        for timer in due:
            if self.reported.get(timer.slot) == timer.deadline:
                del self.reported[timer.slot]

    def forget_armed_again(self) -> None:
        for dealt_with in (self.reported, self.cleared):
            for slot in [slot for slot in dealt_with if self.counts[slot] != self.armings[slot]]:
                del dealt_with[slot]

    def forget_changed(self, deadlines: "array[float]") -> None:
        self.forget_armed_again()
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
        self.counts = array("q", bytes(8 * 3 * BLOCK))
        self.watch = Watch(
            self.lifelines[0],
            connected=True,
            bound=bound,
            armings=lambda first, slots: self.counts[first : first + slots],
        )
        self.plain = PlainWatch(self.lifelines[1], bound, self.counts)
        self.words = array("d", [inf] * (2 * BLOCK + 51))
        self.size = size
        self.stored = [inf]
        self.due: tuple[Due, ...] = ()
        self.wake_at = -inf
        self.looked_at: array[float] | None = None

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

    @rule(slots=st.lists(ANY_SLOT, min_size=1, max_size=3))
    def arms_for_the_same_time(self, slots: list[int]) -> None:
        for slot in slots:
            self.counts[slot] += 1

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
        self.look()

    def look(self) -> None:
        look = self.watch.look(self.deadlines(), self.clock.now)
        assert look == self.plain.look(self.deadlines(), self.clock.now)
        self.due, self.wake_at = look.due or self.due, look.wake_at
        self.looked_at = self.deadlines()

    @rule(passed=st.sampled_from([0.5, 1.5, 4.0]))
    def shows_a_sign_of_life(self, passed: float) -> None:
        self.clock.now += passed
        for lifeline in self.lifelines:
            lifeline.tick(self.clock.now)

    @precondition(lambda self: self.clock.now <= self.wake_at)  # else it is about to look
    @rule()
    def reads_again(self) -> None:
        same = self.deadlines() == self.looked_at
        overlooked = self.watch.overlooked(self.deadlines(), self.wake_at, same=same)
        assert overlooked == self.plain.overlooked(self.deadlines(), self.wake_at)
        if overlooked:  # it looks at once: blocks behind the one that was overlooked have not been read
            self.look()

    @rule(away=st.one_of(AWAY, st.just(inf)))
    def asks_what_has_expired(self, away: float) -> None:
        until = self.clock.now + away
        assert self.watch.expired(self.deadlines(), until) == self.plain.expired(self.deadlines(), until)

    @rule()
    def clears(self) -> None:
        self.looked_at = None
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
    """But for the least that has to be less at each further stall."""
    lifeline = Lifeline(0.0)
    expected = {deadline: deadline for deadline in deadlines}
    most = dict.fromkeys(deadlines, inf)
    now = 0.0
    for step in steps:
        a, now = now, now + step
        lifeline.tick(now)
        for stored, due in expected.items():
            if step > 1.5 and a < due <= now:
                left = max(0.0, min(due - a, most[stored]))
                expected[stored], most[stored] = now + left, left - FINE_BEAT
        for stored, due in expected.items():
            if due >= now:
                assert lifeline.effective(stored) == due
            else:
                assert lifeline.effective(stored) < now, "what has expired stays expired"
