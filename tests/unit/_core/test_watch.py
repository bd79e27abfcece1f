"""The look: what is due and nothing else, a promise that is kept, and stalls that cost nobody a timer.

Time is an argument here, so every test says what time it is.
"""

from array import array
from collections.abc import Iterable
from math import inf, nan

import pytest

from aiotimer._core.layout import SLOTS
from aiotimer._core.watch import (
    ADOPTED_EVERY,
    BEAT,
    BLOCK,
    BOUND,
    FINE_BEAT,
    SHARED_WAKES,
    SLOW,
    Due,
    Lifeline,
    Watch,
)

NOW = 1000.0


def slots(*deadlines: float) -> "array[float]":
    return array("d", deadlines)


def watch(
    *,
    connected: bool = True,
    bound: float = BOUND,
    lifeline: Lifeline | None = None,
    counts: "array[int] | None" = None,
) -> Watch:
    armings = None if counts is None else lambda first, slots: counts[first : first + slots]
    return Watch(lifeline or Lifeline(NOW, beat=inf), connected=connected, bound=bound, armings=armings)


def numbers(due: Iterable[Due]) -> list[int]:
    return [timer.slot for timer in due]


# --- due


def test_a_timer_is_due_at_its_deadline_and_not_before() -> None:
    one = watch()
    assert not one.look(slots(NOW), NOW - 1e-6).due
    assert one.look(slots(NOW), NOW).due == (Due(0, NOW, NOW),)


def test_the_longest_overdue_comes_first() -> None:
    look = watch().look(slots(NOW - 1, inf, NOW - 3, NOW + 1, NOW - 2), NOW)
    assert numbers(look.due) == [2, 4, 0]
    assert look.wake_at == NOW + 1


def test_what_has_been_reported_is_not_reported_again() -> None:
    one = watch()
    assert numbers(one.look(slots(NOW, inf), NOW).due) == [0]
    assert not one.look(slots(NOW, inf), NOW + 1).due
    assert numbers(one.look(slots(NOW, NOW + 1), NOW + 1).due) == [1]


def test_another_value_in_the_slot_is_a_new_timer() -> None:
    one = watch()
    one.look(slots(NOW), NOW)
    assert numbers(one.look(slots(NOW + 1), NOW + 1).due) == [0]
    one.look(slots(inf), NOW + 2)
    assert numbers(one.look(slots(NOW + 1), NOW + 3).due) == [0], "armed again, with the very same deadline"


@pytest.mark.parametrize("quiet", [inf, -inf, 0.0, -0.0, -1.0, nan])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_armed_is_never_due_and_hides_nothing(quiet: float, where: int) -> None:
    deadlines = slots(NOW - 1, NOW + 1)
    deadlines.insert(where, quiet)
    one = watch()
    look = one.look(deadlines, NOW)
    assert [timer.deadline for timer in look.due] == [NOW - 1]
    assert look.promise == NOW + 1
    assert one.overlooked(deadlines, NOW + 1.5)
    assert not one.overlooked(deadlines, NOW + 1)


def test_only_nan() -> None:
    look = watch().look(slots(nan, nan), NOW)
    assert not look.due
    assert look.wake_at == NOW + BOUND


def test_a_deadline_of_a_million_years_harms_nobody() -> None:
    look = watch().look(slots(3e13, 1.7e308, 5e-324), NOW)
    assert numbers(look.due) == [2]
    assert look.wake_at == NOW + BOUND


def test_a_full_table_is_one_look() -> None:
    deadlines = array("d", [NOW + 1 + n for n in range(SLOTS)])
    deadlines[SLOTS - 1] = NOW
    look = watch().look(deadlines, NOW)
    assert numbers(look.due) == [SLOTS - 1]
    assert look.wake_at == NOW + 1


def test_a_storm_in_one_table_takes_many_looks() -> None:
    """Each is bounded, none promises to look later than at once, and nothing is reported twice."""
    deadlines = array("d", [NOW - 1.0]) * SLOTS
    one = watch()
    found: list[int] = []
    while len(found) < SLOTS:
        look = one.look(deadlines, NOW)
        assert 0 < len(look.due) <= SLOW * BLOCK
        found += numbers(look.due)
        assert look.promise == look.wake_at == (NOW if len(found) < SLOTS else NOW + BOUND)
    assert sorted(found) == list(range(SLOTS))


def test_who_changes_the_first_blocks_all_the_time_does_not_hide_the_others() -> None:
    deadlines = array("d", [NOW - 1.0]) * (3 * SLOW * BLOCK)
    one = watch()
    found: set[int] = set()
    for number in range(6):
        found.update(numbers(one.look(deadlines, NOW).due))
        for slot in range(0, 2 * SLOW * BLOCK, BLOCK):
            deadlines[slot] = NOW - 1.0 - number
    assert found == set(range(3 * SLOW * BLOCK))


def test_one_look_judges_so_many_blocks_and_the_next_one_begins_with_what_is_left() -> None:
    most = SLOW * BLOCK
    one = watch()
    look = one.look(array("d", [NOW - 1.0]) * most, NOW)
    assert (numbers(look.due), look.wake_at) == (list(range(most)), NOW + BOUND)
    for deadline in (NOW - 2.0, NOW - 3.0):
        deadlines = array("d", [deadline]) * (most + 1)
        assert numbers(one.look(deadlines, NOW).due) == list(range(most)), "from the first one on"
        assert numbers(one.look(deadlines, NOW).due) == [most]


def test_what_takes_long_to_judge_may_have_been_overlooked() -> None:
    deadlines = array("d", [NOW]) * ((SLOW + 1) * BLOCK)
    one = watch()
    while one.look(deadlines, NOW).wake_at == NOW:
        pass
    for slot in range(0, len(deadlines), BLOCK):
        deadlines[slot] = inf
    assert one.overlooked(deadlines, NOW + 1), "nobody knows"
    assert not one.look(deadlines[: SLOW * BLOCK], NOW).due
    assert not one.overlooked(deadlines[: SLOW * BLOCK], NOW + 1)
    for slot in range(1, SLOW * BLOCK, BLOCK):
        deadlines[slot] = inf
    assert not one.overlooked(deadlines[: SLOW * BLOCK], NOW + 1), "there is nothing, and that can be seen"
    deadlines[SLOW * BLOCK - 1] = NOW + 0.5
    assert one.overlooked(deadlines[: SLOW * BLOCK], NOW + 1), "in the last one"
    assert not one.overlooked(deadlines[: SLOW * BLOCK], NOW + 0.5), "it will be looked for in time"


def test_a_table_that_shrinks_and_comes_back() -> None:
    one = watch()
    assert numbers(one.look(slots(NOW, NOW), NOW).due) == [0, 1]
    assert not one.look(slots(), NOW + 1).due
    assert numbers(one.look(slots(NOW, NOW), NOW + 2).due) == [0, 1], "it was gone: this is a new timer"


# --- many slots: they are judged in blocks

FULL = array("d", [NOW + 600 + n for n in range(2 * BLOCK + 10)])
EDGES = [0, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 9]


def with_deadlines(deadlines: dict[int, float]) -> "array[float]":
    """Return a table of two full blocks and a bit, in which some slots hold something else."""
    table = FULL[:]
    for slot, deadline in deadlines.items():
        table[slot] = deadline
    return table


@pytest.mark.parametrize("slot", EDGES)
def test_a_timer_is_judged_by_itself_wherever_it_is(slot: int) -> None:
    one = watch(bound=inf)
    one.look(FULL, NOW)
    table = with_deadlines({slot: NOW + 1})
    assert one.overlooked(table, NOW + 2)
    assert not one.overlooked(table, NOW + 1)
    assert one.look(table, NOW) == ((), NOW + 1, NOW + 1)
    due = one.look(table, NOW + 1).due
    assert due == (Due(slot, NOW + 1, NOW + 1),)
    assert one.expired(table, NOW + 1) == [*due]
    rest = min(deadline for other, deadline in enumerate(FULL) if other != slot)
    assert one.look(table, NOW + 2) == ((), rest, rest)
    assert not one.overlooked(table, rest)
    one.reopen(due)
    assert one.look(table, NOW + 3).due == due
    one.clear(table)
    assert one.cleared(slot, NOW + 1)
    assert one.look(table, NOW + 4) == ((), inf, inf)
    assert not one.expired(table, inf)


def test_the_longest_overdue_of_all_blocks_comes_first() -> None:
    table = with_deadlines({slot: NOW - number for number, slot in enumerate(EDGES)})
    one = watch()
    assert numbers(one.look(table, NOW).due) == EDGES[::-1]
    assert numbers(one.expired(table, NOW)) == EDGES[::-1]


def test_what_has_been_dealt_with_in_a_block_hides_nothing_new_there() -> None:
    one = watch(bound=inf)
    table = with_deadlines({BLOCK: NOW})
    assert numbers(one.look(table, NOW).due) == [BLOCK]
    one.clear(table)
    table[BLOCK + 1] = NOW + 1
    assert one.overlooked(table, NOW + 2)
    assert one.look(table, NOW).wake_at == NOW + 1
    table[0] = NOW + 0.5
    assert one.look(table, NOW).wake_at == NOW + 0.5
    assert numbers(one.expired(table, NOW + 1)) == [0, BLOCK + 1]
    assert numbers(one.look(table, NOW + 1).due) == [0, BLOCK + 1]
    assert one.look(table, NOW + 1).wake_at == inf


class Counting(Lifeline):
    """A lifeline that counts the timers it is asked about; it stood still for a minute."""

    def __init__(self) -> None:
        super().__init__(NOW)
        self.tick(NOW + 60)
        self.asked = 0

    def effective(self, deadline: float) -> float:
        self.asked += 1
        return super().effective(deadline)


def test_slots_that_have_not_changed_are_not_judged_again() -> None:
    lifeline = Counting()
    one = watch(lifeline=lifeline)
    table = with_deadlines({0: NOW + 3, BLOCK: NOW + 4})
    assert one.look(table, NOW + 60).wake_at == NOW + 63
    assert lifeline.asked == 2
    table[BLOCK + 1] = NOW + 5
    assert one.look(table, NOW + 61).wake_at == NOW + 63
    assert lifeline.asked == 4, "those of the second block"
    assert not one.overlooked(table, NOW + 63)
    assert not one.expired(table, NOW + 62)
    assert lifeline.asked == 4
    assert one.look(table, NOW + 62).wake_at == NOW + 63
    one.clear(table)
    assert one.look(table, NOW + 65).wake_at == NOW + 65 + BOUND
    assert not one.expired(table, inf)
    assert lifeline.asked == 4, "nothing is left of what has been cleared"


def test_what_lies_behind_the_end_of_a_table_is_forgotten() -> None:
    one = watch(bound=inf)
    table = with_deadlines({BLOCK: NOW, 2 * BLOCK: NOW})
    one.look(table, NOW)
    assert one.look(table[:BLOCK], NOW).wake_at == NOW + 600
    assert numbers(one.look(table, NOW).due) == [BLOCK, 2 * BLOCK]
    one.clear(table)
    one.clear(table[: BLOCK + 1])
    assert one.cleared(BLOCK, NOW)
    assert not one.cleared(2 * BLOCK, NOW)
    assert not one.cleared(SLOTS, NOW), "there never was such a slot"
    assert numbers(one.look(table, NOW).due) == [2 * BLOCK]


# --- the promise


def test_an_idle_table_is_looked_at_within_the_bound() -> None:
    look = watch().look(slots(), NOW)
    assert look.promise == look.wake_at == NOW + BOUND


def test_the_promise_is_the_earliest_deadline() -> None:
    assert watch().look(slots(NOW + 4, NOW + 2, NOW + 3), NOW).promise == NOW + 2
    assert watch().look(slots(NOW + 60), NOW).promise == NOW + BOUND


def test_a_timer_that_was_reported_makes_no_promise() -> None:
    one = watch()
    one.look(slots(NOW, NOW + 2), NOW)
    assert one.look(slots(NOW, NOW + 2), NOW + 1).promise == NOW + 2
    assert one.look(slots(NOW, inf), NOW + BOUND).promise == NOW + 2 * BOUND


def test_idle_tables_are_looked_at_together() -> None:
    """Four hundred a second would be four hundred wake-ups, and as many to read each once more."""
    moments = [watch().look(slots(), NOW + n / 400).wake_at for n in range(4000)]
    assert all(NOW + n / 400 < at <= NOW + n / 400 + BOUND for n, at in enumerate(moments))
    assert min(at - n / 400 for n, at in enumerate(moments)) > NOW + BOUND * (1 - 1 / SHARED_WAKES)
    assert len(set(moments)) <= 10 / BOUND * SHARED_WAKES + 1


def test_with_the_bound_lifted_nothing_is_promised_for_nothing() -> None:
    one = watch(bound=inf)
    assert one.look(slots(inf), NOW) == ((), inf, inf)
    assert one.look(slots(NOW + 1e6), NOW).promise == NOW + 1e6


def test_a_ring_is_promised_until_its_deadline_has_passed_even_if_nothing_is_armed() -> None:
    one = watch(bound=inf)
    one.ring(NOW + 2)
    assert one.look(slots(inf), NOW).promise == NOW + 2
    assert one.look(slots(inf), NOW + 1).promise == NOW + 2
    assert one.look(slots(inf), NOW + 2).promise == inf


def test_of_several_rings_the_earliest_is_promised() -> None:
    one = watch(bound=inf)
    for deadline in (NOW + 3, NOW + 2, NOW + 4):
        one.ring(deadline)
    assert one.look(slots(inf), NOW).promise == NOW + 2


@pytest.mark.parametrize("deadline", [nan, inf, -inf, -1.0, 0.0, 1e308])
def test_a_nonsensical_ring_only_causes_a_look(deadline: float) -> None:
    one = watch()
    one.ring(deadline)
    assert one.look(slots(NOW + 1), NOW) == ((), NOW + 1, NOW + 1)
    one.ring(NOW + 0.5)
    assert one.look(slots(NOW + 1), NOW).promise == NOW + 0.5


def test_an_owner_that_cannot_ring_is_promised_nothing_and_looked_at_every_second() -> None:
    one = watch(connected=False)
    look = one.look(slots(NOW + 60), NOW)
    assert (look.promise, look.wake_at) == (inf, NOW + ADOPTED_EVERY)
    assert one.look(slots(NOW + 0.5), NOW).wake_at == NOW + 0.5
    assert numbers(one.look(slots(NOW + 0.5), NOW + 0.5).due) == [0], "armed is armed"
    one.connected = True
    assert one.look(slots(), NOW).promise == NOW + BOUND


def test_the_promise_can_be_read_afterwards() -> None:
    one = watch()
    assert one.promise == inf
    look = one.look(slots(NOW + 1), NOW)
    assert one.promise == look.promise == NOW + 1


# --- overlooked


def test_a_timer_stored_behind_the_lookers_back_is_overlooked() -> None:
    one = watch()
    wake_at = one.look(slots(inf, NOW + 3), NOW).wake_at
    assert not one.overlooked(slots(inf, NOW + 3), wake_at)
    assert not one.overlooked(slots(NOW + 3, NOW + 4), wake_at), "it falls due at the look, not before"
    assert one.overlooked(slots(NOW + 2.5, NOW + 3), wake_at)
    assert one.overlooked(slots(inf, NOW + 3, NOW + 1), wake_at), "in a slot that was not there"


def test_what_has_been_reported_or_cleared_is_not_overlooked() -> None:
    one = watch()
    wake_at = one.look(slots(NOW, NOW + 3), NOW).wake_at
    assert not one.overlooked(slots(NOW, NOW + 3), wake_at)
    one.clear(slots(NOW, NOW + 2))
    assert not one.overlooked(slots(NOW, NOW + 2), wake_at)


def test_in_the_reading_of_the_look_only_what_was_armed_again_can_be_overlooked() -> None:
    counts = array("q", bytes(8 * 3 * BLOCK))
    one = watch(counts=counts)
    table = slots(*[NOW + 9] * (3 * BLOCK))
    table[1], table[BLOCK + 1], table[2 * BLOCK + 1] = NOW, NOW + 1, NOW + 3
    wake_at = one.look(table, NOW).wake_at
    assert wake_at == NOW + 1
    assert not one.overlooked(table, wake_at, same=True)
    counts[1] += 1
    assert one.overlooked(table, wake_at, same=True), "for the same time, which has passed"
    assert one.look(table, NOW).due[0].slot == 1
    one.clear(table)
    counts[2 * BLOCK + 1] += 1
    assert not one.overlooked(table, NOW + 2, same=True)
    assert one.overlooked(table, NOW + 4, same=True)


# --- reported, cleared, expired, reopened


def test_clearing_deals_with_all_that_is_armed_now() -> None:
    one = watch()
    table = slots(NOW, NOW + 1, inf, NOW + 100)
    one.clear(table)
    assert one.look(table, NOW + 200) == ((), NOW + 200 + BOUND, NOW + 200 + BOUND)
    assert [one.cleared(slot, deadline) for slot, deadline in enumerate(table)] == [True, True, False, True]
    table[1] = NOW + 150
    assert numbers(one.look(table, NOW + 200).due) == [1], "armed after the clearing"


def test_what_was_cleared_and_then_released_may_come_again() -> None:
    one = watch()
    one.clear(slots(NOW))
    one.look(slots(inf), NOW)
    assert numbers(one.look(slots(NOW), NOW + 1).due) == [0]


def test_even_the_smallest_deadline_is_cleared() -> None:
    one = watch()
    one.clear(slots(5e-324))
    assert not one.look(slots(5e-324), NOW).due


def test_clearing_reads_the_table_as_a_look_does() -> None:
    one = watch()
    one.clear(slots(NOW))
    one.clear(slots(inf))
    assert not one.cleared(0, NOW)
    assert numbers(one.look(slots(NOW), NOW).due) == [0], "armed again, with the very same deadline"


def test_asking_for_what_has_expired_acts_on_nothing() -> None:
    one = watch()
    table = slots(NOW - 1, NOW - 2, NOW + 1)
    assert numbers(one.expired(table, NOW)) == [1, 0]
    assert numbers(one.look(table, NOW).due) == [1, 0]


def test_what_has_been_reported_has_expired_until_it_is_cleared() -> None:
    one = watch()
    table = slots(NOW - 1, NOW + 1)
    one.look(table, NOW)
    assert numbers(one.expired(table, NOW)) == [0], "a reap_worker that asks for the reason gets it"
    assert not one.cleared(0, NOW - 1)
    one.clear(table)
    assert not one.expired(table, NOW)
    assert one.cleared(0, NOW - 1)


def test_a_reap_that_failed_is_reported_again() -> None:
    one = watch()
    table = slots(NOW, NOW + 60)
    due = one.look(table, NOW).due
    one.reopen(due)
    again = one.look(table, NOW + 1)
    assert again.due == due
    assert not one.look(table, NOW + 2).due


def test_only_the_timer_that_was_reported_is_reopened() -> None:
    one = watch()
    due = one.look(slots(NOW), NOW).due
    assert not one.look(slots(NOW + 60), NOW + 1).due, "re-armed meanwhile"
    one.reopen(due)
    assert not one.look(slots(NOW + 60), NOW + 2).due


def test_what_was_cleared_meanwhile_is_not_reopened() -> None:
    one = watch()
    table = slots(NOW)
    due = one.look(table, NOW).due
    one.clear(table)
    one.reopen(due)
    assert not one.look(table, NOW + 1).due


# --- the same deadline again

COUNTS = array("q", [1] * 3 * BLOCK)


@pytest.mark.parametrize("slot", EDGES)
def test_a_slot_that_was_armed_again_for_the_same_time_is_a_new_timer(slot: int) -> None:
    counts = COUNTS[:]
    one = watch(counts=counts, bound=inf)
    table = with_deadlines({slot: NOW})
    assert one.look(table, NOW).due == (Due(slot, NOW, NOW, 1),)
    counts[slot - 1] += 1
    assert not one.look(table, NOW + 1).due, "only its neighbour was"
    assert not one.overlooked(table, NOW + 2)
    counts[slot] += 1
    assert one.overlooked(table, NOW + 2), "a ring is not the only way to find out"
    assert one.look(table, NOW + 1).due == (Due(slot, NOW, NOW, 2),)
    assert not one.look(table, NOW + 2).due


def test_what_was_cleared_and_is_armed_again_for_the_same_time_is_a_new_timer() -> None:
    counts = COUNTS[:]
    one, table = watch(counts=counts), slots(NOW, NOW)
    one.clear(table)
    assert one.has_dealt
    counts[1] += 1
    assert one.expired(table, NOW) == [Due(1, NOW, NOW)]
    assert not one.cleared(1, NOW)
    assert one.cleared(0, NOW)
    assert one.look(table, NOW).due == (Due(1, NOW, NOW, 2),)


def test_what_is_cleared_is_so_with_its_latest_arming() -> None:
    counts = COUNTS[:]
    one, table = watch(counts=counts), slots(NOW)
    one.look(table, NOW)
    counts[0] += 1
    one.clear(table)
    assert not one.look(table, NOW).due


def test_nothing_is_remembered_of_what_was_released() -> None:
    one = watch(counts=COUNTS)
    one.look(slots(NOW), NOW)
    assert one.has_dealt
    one.look(slots(inf), NOW)
    assert not one.has_dealt


def test_a_reap_that_failed_is_reported_again_as_the_arming_that_it_was() -> None:
    counts = COUNTS[:]
    one, table = watch(counts=counts), slots(NOW)
    due = one.look(table, NOW).due
    one.reopen(due)
    assert not one.has_dealt
    assert one.look(table, NOW + 1).due == due


# --- stalls


def lifeline_after(*times: float) -> Lifeline:
    lifeline = Lifeline(times[0])
    for now in times[1:]:
        lifeline.tick(now)
    return lifeline


def test_regular_signs_of_life_are_no_stall() -> None:
    lifeline = lifeline_after(*(n / 2 for n in range(20)), 10.9)
    assert lifeline.stalls == ()
    assert lifeline.news() == []
    assert lifeline.effective(5.0) == 5.0


def test_what_was_left_when_the_server_stopped_is_left_again_when_it_goes_on() -> None:
    lifeline = lifeline_after(0.0, 10.0)
    assert lifeline.stalls == ((0.0, 10.0),)
    assert lifeline.effective(3.0) == 13.0
    assert lifeline.effective(10.0) == 20.0
    assert lifeline.effective(10.001) == 10.001, "it had not come when the server was back"
    assert lifeline.effective(0.0) == 0.0, "it had come before the server stopped"
    assert lifeline.effective(-5.0) == -5.0


def test_a_stall_is_news_once() -> None:
    lifeline = lifeline_after(0.0, 10.0, 10.5)
    assert lifeline.news() == [10.0]
    assert lifeline.news() == []


def test_a_stall_may_hit_what_an_earlier_one_moved() -> None:
    lifeline = lifeline_after(0.0, 10.0, 11.0, 20.0)
    assert lifeline.effective(3.0) == 22.0, "13, of which 2 were left at 11, when it stopped again"
    assert lifeline.effective(0.5) == 10.5, "it fell due between the two"


def test_a_stall_that_begins_when_the_last_deadline_moved_by_another_falls_due_moves_none_of_those() -> None:
    lifeline = Lifeline(0.0, beat=0.5, slack=1.0)
    lifeline.tick(10.0)
    for n in range(20, 41):
        lifeline.tick(n / 2)
    assert lifeline.stalls == ((0.0, 10.0),), "a deadline of 10 falls due at 20, which is now"
    lifeline.tick(25.0)
    assert lifeline.stalls == ((20.0, 25.0),), "nothing of the first is still to come"


def test_repeated_stalls_cannot_put_a_deadline_off_for_ever() -> None:
    lifeline = Lifeline(0.0)
    now, stalls = 0.0, 0
    while stalls < 100:
        stalls += 1
        now += 5.0
        lifeline.tick(now)  # it stood still
        now += 0.5
        lifeline.tick(now)  # it ran
        if lifeline.effective(3.0) <= now:
            break
    assert stalls == 6, "each time it runs for half a second, and so much less is left of the 3 s"


@pytest.mark.parametrize("ran", [0.0, 0.001, FINE_BEAT])
def test_stalls_between_which_it_is_not_seen_to_run_cannot_either(ran: float) -> None:
    """It is stopped for 2 s and runs for a moment, again and again, and shows life when it goes on."""
    lifeline = Lifeline(0.0)
    now, stalls = 0.0, 0
    while lifeline.effective(1.0) > now:
        now += 2.0
        lifeline.tick(now)
        stalls += 1
        assert len(lifeline.stalls) == stalls
        if ran:
            now += ran
            lifeline.tick(now)
    assert 1.0 / FINE_BEAT <= stalls <= 1.0 / FINE_BEAT + 1
    alive_until(lifeline, now, now + 2.5)
    assert not lifeline.stalls, "nothing that they moved is still to come"


def test_a_server_that_has_stood_still_shows_life_more_often() -> None:
    lifeline = Lifeline(0.0)
    assert lifeline.beat == BEAT
    lifeline.tick(10.0)
    assert lifeline.beat == FINE_BEAT
    alive_until(lifeline, 10.0, 20.5)
    assert lifeline.beat == BEAT


def test_a_clock_that_seems_to_go_back_is_no_stall() -> None:
    lifeline = lifeline_after(10.0, 9.0, 10.4, 11.0)
    assert lifeline.stalls == ()


def test_a_stall_is_forgotten_when_all_it_moved_has_fallen_due() -> None:
    lifeline = lifeline_after(0.0, 10.0)
    now = 10.0
    while now < 20.0:
        now += 0.5
        lifeline.tick(now)
        assert lifeline.stalls, "a deadline of 10 falls due at 20"
    lifeline.tick(20.5)
    assert lifeline.stalls == ()


def test_a_stall_is_remembered_while_a_later_one_has_moved_its_deadlines_on() -> None:
    # What the first moved to 199 the second moves to 288; what the first moved to 200 it does not touch.
    lifeline = Lifeline(0.0)
    lifeline.tick(100.0)
    for now in range(101, 111):
        lifeline.tick(float(now))
    lifeline.tick(199.0)
    assert (lifeline.effective(99.0), lifeline.effective(100.0)) == (288.0, 200.0)
    for now in range(200, 289):
        lifeline.tick(float(now))
        assert lifeline.effective(99.0) == 288.0, f"at {now} the timer would be reaped early"
    lifeline.tick(289.0)
    assert lifeline.stalls == ()


def test_a_look_judges_by_the_stall_that_it_ends() -> None:
    one = watch(lifeline=Lifeline(NOW))
    table = slots(NOW + 3)
    assert not one.look(table, NOW).due
    look = one.look(table, NOW + 60)
    assert not look.due, "it passed while nobody looked, and its 3 s are left again"
    assert look.wake_at == NOW + 63
    for half in range(1, 6):
        assert not one.look(table, NOW + 60 + half / 2).due
    assert one.look(table, NOW + 63).due == (Due(0, NOW + 3, NOW + 63),)


def test_a_release_during_the_stall_counts() -> None:
    one = watch(lifeline=Lifeline(NOW))
    one.look(slots(NOW + 3), NOW)
    assert not one.look(slots(inf), NOW + 60).due


def test_a_moved_deadline_is_not_overlooked() -> None:
    one = watch(lifeline=Lifeline(NOW), bound=inf)
    table = slots(NOW + 3)
    one.look(table, NOW)
    wake_at = one.look(table, NOW + 60).wake_at
    assert not one.overlooked(table, wake_at)
    assert one.overlooked(slots(NOW + 2), wake_at)


def test_a_restart_grants_nothing() -> None:
    assert numbers(watch(lifeline=Lifeline(NOW + 60)).look(slots(NOW + 3), NOW + 60).due) == [0]


# --- to the last operator: each was written against a mutant that all other tests let live


def alive_until(lifeline: Lifeline, start: float, end: float) -> None:
    """Show a sign of life every half second."""
    now = start
    while now < end:
        now = min(end, now + 0.5)
        lifeline.tick(now)


def test_a_silence_of_just_the_tolerated_length_is_no_stall() -> None:
    lifeline = Lifeline(0.0, beat=0.5, slack=1.0)
    lifeline.tick(1.5)
    assert not lifeline.stalls
    lifeline.tick(3.0 + 2**-40)
    assert lifeline.stalls == ((1.5, 3.0 + 2**-40),)


def test_the_news_are_lengths() -> None:
    lifeline = Lifeline(100.0)
    lifeline.tick(107.0)
    assert lifeline.news() == [7.0]
    assert lifeline.news() == []


def test_stalls_are_forgotten_one_by_one() -> None:
    lifeline = Lifeline(0.0)
    lifeline.tick(10.0)  # what it moved falls due by 20
    alive_until(lifeline, 10.0, 20.0)
    lifeline.tick(25.0)  # the second one
    lifeline.tick(26.0)  # the first is of no more use
    assert lifeline.stalls == ((20.0, 25.0),)
    assert lifeline.effective(21.0) == 26.0


@pytest.mark.parametrize(
    ("stalls", "until"),
    [
        ([(19.5, 30.0)], 30.5),
        ([(10.0, 30.0)], 40.0 - FINE_BEAT),
        ([(19.5, 30.0), (30.125, 50.0)], 50.375),
        ([(19.5, 30.0), (30.0, 50.0)], 50.5 - FINE_BEAT),
        ([(11.0, 20.0), (20.0, 40.0)], 49.0 - FINE_BEAT),
    ],
)
def test_a_stall_is_remembered_exactly_until_what_it_moved_has_fallen_due(
    stalls: list[tuple[float, float]], until: float
) -> None:
    lifeline, now = Lifeline(0.0), 10.0
    lifeline.tick(now)
    for began, ended in stalls:
        alive_until(lifeline, now, began)
        lifeline.tick(ended)
        now = ended
    alive_until(lifeline, now, until)
    assert lifeline.stalls[0] == (0.0, 10.0)
    lifeline.tick(until + 2**-20)
    assert (0.0, 10.0) not in lifeline.stalls


def test_expired_includes_what_expires_just_now() -> None:
    watch = Watch(Lifeline(NOW), connected=True)
    assert [due.slot for due in watch.expired(array("d", [NOW, NOW + 1]), NOW)] == [0]


def test_what_is_cleared_is_not_looked_for() -> None:
    watch = Watch(Lifeline(NOW), connected=True)
    deadlines = array("d", [NOW + 3, NOW + 4])
    watch.clear(deadlines)
    assert watch.look(deadlines, NOW).promise == NOW + BOUND
    deadlines[1] = NOW + 3  # a new timer
    assert watch.look(deadlines, NOW).promise == NOW + 3


def test_what_is_not_cleared_is_held() -> None:
    one, table = watch(), slots(inf, NOW, -1.0, nan)
    assert one.holds_any(table)
    assert not one.holds_any(slots(inf, -1.0, 0.0, nan))
    one.clear(table)
    assert not one.holds_any(table)
    table[0] = NOW + 1
    assert one.holds_any(table)
    one.clear(table)
    assert not one.holds_any(table)


def test_a_table_that_grows_after_the_clearing_holds_what_is_new() -> None:
    one = watch()
    one.clear(slots(NOW))
    assert one.holds_any(slots(NOW, NOW))
    assert numbers(one.look(slots(NOW, NOW), NOW).due) == [1]


def test_whether_the_smallest_deadline_is_held_and_cleared_is_known_and_of_other_slots_it_is_not() -> None:
    one, table = watch(), slots(0.5, 0.0)
    assert one.holds_any(table)
    one.clear(table)
    assert one.cleared(0, 0.5)
    assert not one.cleared(1, 0.0), "which was not armed"
    assert not one.cleared(BLOCK, 0.5), "nobody has seen that one"
