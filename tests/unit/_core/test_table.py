"""The worker's side of a table: slots with one owner each, stores in the right order, rings when due.

Entries are written out here as ``expires`` has them: a slot is popped from its pool (or taken from the
table), counted, a deadline stored into it, and on leaving ``inf``, and the slot goes back where it came from.
"""

import errno
import gc
import threading
from _thread import get_ident
from collections.abc import Callable
from math import inf, nan
from typing import TypeVar

import pytest

from aiotimer import TableFull
from aiotimer._core import layout
from aiotimer._core.layout import (
    COUNT_OF,
    FIRST_DEADLINE,
    HIGH_WATER,
    LABEL_WORDS,
    LATE,
    LOOKS,
    PROMISE,
    SLOTS,
    THREAD_OF,
)
from aiotimer._core.locks import Lock
from aiotimer._core.reader import TableReader
from aiotimer._core.table import FIRST_CHUNK, NOBODYS, Pool, TimerTable
from aiotimer._core.watch import Lifeline, Watch
from tests.fakes.clock import PATIENCE
from tests.fakes.interruptions import at_every_opcode, interruptions, is_ours
from tests.fakes.memory import acquisitions_of, armed_cells, memory_table, names_of, reading, timers_of

T = TypeVar("T")

NOW = 1000.0


class Entry:
    """One entry of a scope, until :meth:`leave`."""

    def __init__(self, table: TimerTable, scope: str, deadline: float = 10.0) -> None:
        pool = table.pool(scope)
        try:
            self.word = pool.pop()
        except IndexError:
            pool, self.word = table.take(pool)
        self.pool: Pool = pool
        pool.cells[self.word + COUNT_OF] += 1.0
        if not pool.owner.is_mine():
            pool.cells[LABEL_WORDS * self.word + THREAD_OF] = get_ident()
            pool.owner = NOBODYS
        pool.cells[self.word] = deadline

    def leave(self) -> None:
        self.pool.cells[self.word] = inf
        self.pool.append(self.word)


def arm(table: TimerTable, scope: str, deadline: float = 10.0) -> bool:
    return table.set((scope, 0), deadline, NOW)


def release(table: TimerTable, scope: str) -> bool:
    return table.set((scope, 0), -1.0, NOW)


def armed(table: TimerTable) -> dict[str, float]:
    return {timer.name: timer.deadline for timer in timers_of(table)}


def threads_of(table: TimerTable) -> dict[str, int]:
    return {timer.name: timer.thread for timer in timers_of(table)}


def by_another(do: Callable[[], T]) -> tuple[int, T]:
    """Have another thread do something; return its number, and what that gave."""
    done: list[tuple[int, T]] = []
    thread = threading.Thread(target=lambda: done.append((get_ident(), do())))
    thread.start()
    thread.join(PATIENCE)
    return done[0]


# --- whose an entry is


def test_an_entry_says_which_thread_has_made_it() -> None:
    table = memory_table()
    mine, again = Entry(table, "s"), Entry(table, "s")
    other, theirs = by_another(lambda: Entry(table, "s"))
    assert threads_of(table) == {"s": get_ident(), "s#2": get_ident(), "s#3": other}
    mine.leave()
    another, _theirs = by_another(lambda: Entry(table, "s"))
    again.leave()
    theirs.leave()
    Entry(table, "s")
    assert threads_of(table) == {"s": another, "s#3": get_ident()}


def test_the_only_thread_that_enters_says_so_once_for_each_slot() -> None:
    """Its entries are told apart from others' by a lock that it has: they store nothing more."""
    table = memory_table()
    Entry(table, "s").leave()
    pool = table.pool("s")
    assert pool.owner.is_mine()
    for slot in pool:
        table.cells[LABEL_WORDS * slot + THREAD_OF] = 7.0
    Entry(table, "s")
    assert threads_of(table) == {"s": 7}


def test_a_pool_without_slots_is_the_next_thread_s() -> None:
    table = memory_table()
    other, entry = by_another(lambda: Entry(table, "s"))
    entry.leave()
    assert not table.pool("s").owner.is_mine()
    table.pool("s").clear()  # as one that has been reclaimed
    table.pool("s").size = 0
    Entry(table, "s")
    assert table.pool("s").owner.is_mine()
    assert other not in threads_of(table).values()


def test_a_keyed_timer_is_no_thread_s_whoever_had_its_slot() -> None:
    table = memory_table()
    arm(table, "first")
    words = [Entry(table, f"s{n}") for n in range(3)]
    for entry in words:
        entry.leave()
        table.pool(entry.pool.scope).clear()
        table._fresh.append(entry.word)
    for n in range(3):
        arm(table, f"keyed {n}")
    assert set(threads_of(table).values()) == {0}


def test_what_has_no_labels_keeps_no_note() -> None:
    """As scratch, which nobody reads."""
    size = layout.LABELS_OFFSET + layout.LABEL_SIZE
    table = TimerTable(bytearray(size), now=lambda: NOW)
    table.note(FIRST_DEADLINE, {"uid": "17"})
    assert bytes(table.raw) == bytes(size)


# --- keyed timers


def test_releasing_what_is_unknown_does_nothing() -> None:
    table = memory_table()
    assert release(table, "s") is False
    assert table.high_water == 0, "not even a slot is made for it"
    arm(table, "t")
    release(table, "t")
    assert release(table, "t") is False


def test_zero_is_armed_and_has_expired() -> None:
    table = memory_table()
    arm(table, "s", 0.0)
    ((_, deadline),) = armed(table).items()
    assert 0.0 < deadline < 1e-300


@pytest.mark.parametrize("until", [nan, inf, 10**400])
def test_an_expiration_that_is_not_finite_changes_nothing(until: float) -> None:
    table = memory_table()
    arm(table, "s", 10.0)
    for scope in ("s", "new"):
        with pytest.raises(ValueError, match="finite"):
            arm(table, scope, until)
    assert armed(table) == {"s": 10.0}


@pytest.mark.parametrize("scope", ["", "a\0b", "\ud800", "x" * 241])
def test_a_scope_that_cannot_be_a_label_is_refused_in_a_release_too(scope: str) -> None:
    table = memory_table()
    for until in (10.0, -1.0):
        with pytest.raises(ValueError, match="scope"):
            arm(table, scope, until)
    with pytest.raises(ValueError, match="scope"):
        table.pool(scope)
    assert table.high_water == 0


def test_a_name_outlives_the_loss_of_its_slot() -> None:
    table = memory_table()
    arm(table, "old")
    release(table, "old")
    for n in range(1000):
        arm(table, f"s{n}")
        release(table, f"s{n}")
    assert ("old", 0) not in table._cells_of, "the slot was never taken: the test is blind"
    assert release(table, "old") is False
    arm(table, "old")
    assert armed(table) == {"old": 10.0}
    release(table, "old")
    assert armed(table) == {}


def test_entries_of_a_peer_are_keyed_by_ordinal() -> None:
    table = memory_table()
    for ordinal in (0, 1, 2):
        table.set(("s", ordinal), 10.0 + ordinal, NOW)
    assert [(t.name, t.deadline) for t in timers_of(table)] == [("s", 10.0), ("s", 11.0), ("s#2", 12.0)]
    assert armed_cells(table) == {("s", 0): 10.0, ("s", 1): 11.0, ("s", 2): 12.0}
    table.set(("s", 1), -1.0, NOW)
    assert armed_cells(table) == {("s", 0): 10.0, ("s", 2): 12.0}


def test_cells_are_adopted_from_an_earlier_process() -> None:
    table = memory_table()
    for n in range(5):
        arm(table, f"s{n}", 10.0 + n)
    release(table, "s1")
    heir = TimerTable(table.raw, now=lambda: NOW)
    heir.adopt_cells((t.slot, t.scope, t.ordinal) for t in timers_of(table))
    assert armed_cells(heir) == {(f"s{n}", 0): 10.0 + n for n in (0, 2, 3, 4)}
    release(heir, "s0")
    for n in range(2 * FIRST_CHUNK):
        arm(heir, f"new{n}", 50.0)
    expected = {"s2": 12.0, "s3": 13.0, "s4": 14.0, **{f"new{n}": 50.0 for n in range(2 * FIRST_CHUNK)}}
    assert armed(heir) == expected, "what was armed keeps its slot, what was not is reused"


# --- entries


def test_thousands_of_keyed_timers_are_adopted_and_forgotten_in_steps() -> None:
    table = memory_table()
    for n in range(3000):
        arm(table, f"s{n}", 10.0 + n)
    heir = TimerTable(table.raw, now=lambda: NOW)
    timers = [(t.slot, t.scope, t.ordinal) for t in timers_of(table)]
    assert len(list(heir.adopt_batches([timers[:1000], timers[1000:]]))) > 2
    assert armed_cells(heir) == armed_cells(table)
    known = []
    for _ in heir.forget_cells():
        known.append(len(heir._cells_of))
    assert known[-1] == 0
    assert len(known) > 2, "others have their turns in between"


def test_entries_of_one_scope_are_timers_of_their_own() -> None:
    table = memory_table()
    first, second, third = (Entry(table, "s", 10.0 + n) for n in range(3))
    assert armed(table) == {"s": 10.0, "s#2": 11.0, "s#3": 12.0}
    second.leave()
    assert armed(table) == {"s": 10.0, "s#3": 12.0}
    again = Entry(table, "s", 20.0)
    assert again.word == second.word
    first.leave()
    third.leave()
    assert armed(table) == {"s#2": 20.0}


def test_entries_and_keyed_timers_of_one_name_never_meet() -> None:
    table = memory_table()
    arm(table, "s", 10.0)
    entry = Entry(table, "s", 20.0)
    assert [timer.deadline for timer in timers_of(table)] == [10.0, 20.0]
    release(table, "s")
    assert [timer.deadline for timer in timers_of(table)] == [20.0]
    arm(table, "s", 30.0)
    entry.leave()
    assert [timer.deadline for timer in timers_of(table)] == [30.0]


def test_a_known_scope_writes_no_label_and_takes_no_lock() -> None:
    table = memory_table()
    Entry(table, "s").leave()
    label = slice(layout.LABELS_OFFSET, layout.label_offset(table.high_water))
    before = bytes(table.raw[label])
    with table.lock:
        for _ in range(100):
            Entry(table, "s").leave()
    assert bytes(table.raw[label]) == before


def test_the_key_of_a_slot_names_its_timer() -> None:
    table = memory_table()
    entries = [Entry(table, "s"), Entry(table, "s")]
    assert [table.key_of(entry.word) for entry in entries] == ["s\x001", "s\x002"]
    arm(table, "s")
    assert table.key_of(table._cells_of["s", 0].word) == "s"


# --- growth


def test_a_new_table_has_no_slots() -> None:
    assert memory_table().high_water == 0


def test_growth_makes_memory_then_infinity_then_the_mark() -> None:
    grown: list[int] = []
    marks: list[float] = []

    def grow(slots: int) -> None:
        grown.append(slots)
        marks.append(table.cells[HIGH_WATER])
        for slot in range(int(marks[-1]), slots):  # memory may hold anything
            table.cells[FIRST_DEADLINE + slot] = 5.0

    def reads_only_infinity_below_the_mark() -> None:
        seen.update(TableReader(reading(table)).deadlines())

    table = memory_table(grow=grow)
    seen: set[float] = set()
    with at_every_opcode(reads_only_infinity_below_the_mark, is_ours):
        for n in range(FIRST_CHUNK + 1):
            table.take(table.pool(f"s{n}"))
    assert seen == {inf}
    assert grown == [FIRST_CHUNK, 2 * FIRST_CHUNK]
    assert marks == [0.0, FIRST_CHUNK], "the mark passes the slots after their memory is there"


def test_a_reader_never_meets_a_half_made_timer() -> None:
    table = memory_table()
    for n in range(100):  # so that slots are relabelled
        Entry(table, f"old{n}").leave()
    names: set[str] = set()
    steps = 0

    def read() -> None:
        nonlocal steps
        steps += 1
        names.update(names_of(table))

    with at_every_opcode(read, lambda code: is_ours(code) and code.co_filename.endswith("table.py")):
        for n in range(60):
            arm(table, f"key{n}")
            release(table, f"key{n}")
            Entry(table, f"entry{n}").leave()
    assert steps > 1000
    assert len(names) >= 60, "the timers were hardly ever armed: the test is blind"
    assert names <= {f"{kind}{n}" for kind in ("key", "entry") for n in range(60)}


def test_when_there_is_no_memory_for_more_idle_slots_are_reused() -> None:
    table = memory_table()
    entries = [Entry(table, f"s{n}") for n in range(FIRST_CHUNK)]
    table._grow = no_memory
    entries[3].leave()
    replacement = Entry(table, "new")
    assert names_of(table) == sorted([*(f"s{n}" for n in range(FIRST_CHUNK) if n != 3), "new"])
    replacement.leave()


def test_when_there_is_no_memory_at_all_the_others_stand() -> None:
    table = memory_table()
    Entry(table, "entry")
    table._grow = no_memory
    for n in range(FIRST_CHUNK - 1):
        arm(table, f"s{n}")
    before = armed(table)
    for attempt in (lambda: arm(table, "new"), lambda: Entry(table, "new")):
        with pytest.raises(TableFull, match="No space left") as caught:
            attempt()
        assert caught.value.armed == FIRST_CHUNK
        assert isinstance(caught.value.__cause__, OSError)
    assert armed(table) == before
    arm(table, "s0", 99.0)
    assert armed(table)["s0"] == 99.0, "known timers are as good as ever"
    table._grow = lambda _slots: None
    arm(table, "new")
    assert "new" in armed(table)


def no_memory(_slots: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_last_slot_and_the_one_after_it() -> None:
    table = memory_table()
    grown: list[int] = []
    table._grow = grown.append
    for n in range(SLOTS):
        arm(table, f"s{n}", 10.0 + n)
    assert table.high_water == SLOTS
    assert grown[-1] == SLOTS
    for attempt in (lambda: arm(table, "one more"), lambda: Entry(table, "one more")):
        with pytest.raises(TableFull, match="65,536 slots") as caught:
            attempt()
        assert caught.value.armed == SLOTS
    deadlines = TableReader(reading(table)).deadlines()
    assert sorted(deadlines) == [10.0 + n for n in range(SLOTS)], "the others stand"
    release(table, "s7")
    entry = Entry(table, "one more", 5.0)
    assert min(TableReader(reading(table)).deadlines()) == 5.0
    entry.leave()
    arm(table, "and a keyed one", 6.0)
    assert min(TableReader(reading(table)).deadlines()) == 6.0


# --- labels come back


def uses_entries(table: TimerTable, scope: str) -> Callable[[], object]:
    return Entry(table, scope).leave


def uses_keys(table: TimerTable, scope: str) -> Callable[[], object]:
    arm(table, scope)
    return lambda: release(table, scope)


@pytest.mark.parametrize("use", [uses_entries, uses_keys])
def test_scopes_that_are_used_once_do_not_fill_the_table(
    use: Callable[[TimerTable, str], Callable[[], object]],
) -> None:
    table = memory_table()
    standing = {f"standing{n}": 50.0 + n for n in range(20)}
    for scope, deadline in standing.items():
        arm(table, scope, deadline)
    rounds = SLOTS + 1  # more than there are slots
    for n in range(rounds):
        use(table, f"rollout-{n}")()
    assert table.high_water <= 256
    assert len(table.pools) + len(table._cells_of) <= 300
    assert armed(table) == standing
    assert acquisitions_of(table) == rounds + len(standing)


def test_the_oldest_names_go_first_and_small_tables_grow_instead() -> None:
    table = memory_table()
    for n in range(FIRST_CHUNK):
        Entry(table, f"s{n}").leave()
    Entry(table, "one more").leave()
    assert table.high_water == 2 * FIRST_CHUNK
    assert len(table.pools) == FIRST_CHUNK + 1, "idle call sites keep their labels"
    for n in range(200):
        Entry(table, f"t{n}").leave()
    assert "s0" not in table.pools
    assert "t199" in table.pools


def test_pools_that_were_never_entered_go_too() -> None:
    table = memory_table()
    for n in range(500):
        table.pool(f"unused{n}")
    for n in range(200):
        Entry(table, f"s{n}").leave()
    assert not [scope for scope in table.pools if scope.startswith("unused")]


def test_an_entry_whose_pool_was_retired_comes_back() -> None:
    table = memory_table()
    old = table.pool("old")
    Entry(table, "old").leave()
    for n in range(200):
        Entry(table, f"s{n}").leave()
    assert "old" not in table.pools
    new = table.pool("old")
    assert new is not old
    pool, word = table.take(old)
    assert pool is new, "both names meet in one pool again"
    table.cells[word] = 10.0
    assert names_of(table) == ["old"]


def test_slots_in_use_keep_their_labels_while_others_are_reclaimed() -> None:
    table = memory_table()
    entries = [Entry(table, "held", 20.0 + n) for n in range(3)]
    arm(table, "held", 30.0)
    for n in range(1000):
        Entry(table, f"s{n}").leave()
        arm(table, f"k{n}")
        release(table, f"k{n}")
    assert [(t.name, t.deadline) for t in timers_of(table)] == [
        ("held", 20.0),
        ("held#2", 21.0),
        ("held#3", 22.0),
        ("held", 30.0),
    ]
    for entry in entries:
        entry.leave()
    release(table, "held")
    assert armed(table) == {}


@pytest.mark.parametrize("use", [uses_entries, uses_keys])
def test_an_interrupted_reclaim_gives_no_slot_two_owners(
    use: Callable[[TimerTable, str], Callable[[], object]],
) -> None:
    for interruption in interruptions():
        table = memory_table()
        for n in range(FIRST_CHUNK):
            use(table, f"s{n}")()
        table._grow = no_memory
        with interruption:
            arm(table, "new")
        idle = [word for pool in table.pools.values() for word in pool]
        owned = [*(cell.word for cell in table._cells_of.values()), *table._fresh, *idle]
        assert len(owned) == len(set(owned)), f"interrupted at bytecode {interruption.number}"
        assert len(owned) >= FIRST_CHUNK - 1, "at most the slot on its way is lost"
    assert interruption.number > 200, "it was hardly interrupted: the test is blind"


@pytest.mark.parametrize("by_handler", [uses_entries, uses_keys])
@pytest.mark.parametrize("use", [uses_entries, uses_keys])
@pytest.mark.parametrize("memory", [True, False])
def test_a_signal_handler_arms_timers_in_the_middle_of_all(
    use: Callable[[TimerTable, str], Callable[[], object]],
    by_handler: Callable[[TimerTable, str], Callable[[], object]],
    memory: bool,
) -> None:
    """It finds its own thread in the middle of making a slot, and neither waits for it nor spoils it."""
    tables: list[TimerTable] = []

    def handler() -> None:
        table = tables[-1]
        try:
            leave = by_handler(table, "of the handler")
        except TableFull:
            assert not memory
            return
        assert armed(table).keys() & {"of the handler", "of the handler#2"}
        if by_handler is uses_entries:
            leave()  # what has a key is released by whoever knows the key

    for interruption in interruptions(handler, by_signals=True):
        table = memory_table()
        tables.append(table)
        held = [use(table, f"held{n}") for n in range(FIRST_CHUNK // 2)]
        for n in range(FIRST_CHUNK // 2 - 2):
            use(table, f"idle{n}")()
        if not memory:
            table._grow = no_memory
        with interruption:
            held += [use(table, "new"), use(table, "another"), use(table, "of the handler")]
        names = {*(f"held{n}" for n in range(FIRST_CHUNK // 2)), "new", "another", "of the handler"}
        assert {name.removesuffix("#2") for name in armed(table)} == names, (
            f"interrupted at bytecode {interruption.number}"
        )
        idle = [word for pool in table.pools.values() for word in pool]
        owned = [*(cell.word for cell in table._cells_of.values()), *table._fresh, *idle]
        assert len(owned) == len(set(owned)), f"interrupted at bytecode {interruption.number}"
        for leave in held:
            leave()
        release(table, "of the handler")
        assert not armed(table)
    assert interruption.number > 50, "it was hardly interrupted: the test is blind"


def test_an_entry_may_take_the_last_idle_slot_while_labels_are_taken_away() -> None:
    class Meanwhile(list[int]):
        """What is free; whoever asks how much that is gives an entry time to come and take the last slot."""

        def __len__(self) -> int:
            taken.extend(pool.pop() for _ in list(pool))
            return super().__len__()

    table = memory_table()
    taken: list[int] = []
    Entry(table, "s").leave()
    pool = table.pool("s")
    table._fresh = Meanwhile()
    with table.lock:
        table._reclaim(1)
    assert len(taken) == 1
    assert list(table._fresh) == []
    assert table.pools["s"] is pool, "its slot is in use, and comes back to it"


def test_who_is_interrupted_while_waiting_for_the_table_arms_nothing() -> None:
    class Interrupted(Lock):  # type: ignore[misc]
        __slots__ = ()

        def acquire(self, *_: object) -> bool:
            raise KeyboardInterrupt

    table = memory_table()
    table.lock, lock = Interrupted(), table.lock
    with pytest.raises(KeyboardInterrupt):
        arm(table, "s", 10.0)
    table.lock = lock
    assert armed(table) == {}
    arm(table, "s", 10.0)
    assert armed(table) == {"s": 10.0}


# --- counters


def test_every_acquire_is_counted_and_no_release() -> None:
    table = memory_table()
    for n in range(3):
        arm(table, "s", 10.0 + n)
    release(table, "s")
    Entry(table, "s").leave()
    assert acquisitions_of(table) == 4


def test_counts_start_anew_with_a_label_and_the_sum_is_kept() -> None:
    table = memory_table()
    for n in range(300):
        Entry(table, f"s{n}").leave()
    counts = [int(count) for count in TableReader(reading(table)).counts(table.high_water)]
    assert set(counts) <= {0, 1}
    assert sum(counts) < 300
    assert acquisitions_of(table) == 300


def test_a_slot_that_is_armed_as_often_under_another_label_is_armed_again() -> None:
    table = memory_table()
    reader = TableReader(reading(table))
    watch = Watch(Lifeline(NOW, beat=inf), connected=True, armings=reader.armings)
    for names in ([f"a{n}" for n in range(200)], [f"b{n}" for n in range(200)]):
        for name in names:
            arm(table, name, NOW)
        due = watch.look(reader.deadlines(), NOW).due
        assert sorted(reader.key(timer.slot) for timer in due) == sorted(names)
        for name in names:
            release(table, name)
    assert table.cells[layout.RETIRED], "some have taken the slots of others"


# --- the doorbell


def test_a_deadline_earlier_than_the_promise_must_ring() -> None:
    table = memory_table(promise=NOW + 5)
    assert table.must_ring(NOW + 4.999, NOW)
    assert not table.must_ring(NOW + 5, NOW)
    assert not table.must_ring(NOW + 60, NOW)


def test_set_says_whether_to_ring() -> None:
    table = memory_table(promise=NOW + 5)
    assert arm(table, "s", NOW + 4) is True
    assert arm(table, "s", NOW + 60) is False
    assert release(table, "s") is False


def test_after_a_ring_that_was_sent_none_is_needed_until_the_next_look() -> None:
    table = memory_table(promise=NOW + 5)
    looks = table.looks()
    assert table.must_ring(NOW + 1, NOW), "deciding to ring is not having rung"
    table.rang(looks, NOW)
    assert not table.must_ring(NOW + 0.5, NOW)
    table.cells[LOOKS] += 1.0
    assert table.must_ring(NOW + 0.5, NOW)


def test_a_look_between_reading_the_count_and_the_send_is_not_a_ring_answered() -> None:
    table = memory_table(promise=NOW + 5)
    looks = table.looks()
    table.cells[LOOKS] += 1.0  # the server looks, and has not seen what is stored after this
    table.rang(looks, NOW)
    assert table.must_ring(NOW + 1, NOW)


def test_a_ring_without_an_answer_is_repeated_once_a_second() -> None:
    table = memory_table(promise=NOW + 5)
    table.rang(table.looks(), NOW)
    assert not table.must_ring(NOW + 1, NOW + 0.99)
    assert table.must_ring(NOW + 1, NOW + LATE)
    table.rang(table.looks(), NOW + LATE)
    assert not table.must_ring(NOW + 1, NOW + LATE + 0.99)


def test_a_broken_promise_is_rung_about_whatever_the_deadline() -> None:
    table = memory_table(promise=NOW)
    assert not table.must_ring(NOW + 60, NOW + LATE), "up to a second it is only busy"
    assert table.must_ring(NOW + 60, NOW + LATE + 0.001)
    table.rang(table.looks(), NOW + LATE + 0.001)
    assert not table.must_ring(NOW + 60, NOW + LATE + 0.5)


def test_a_new_connection_forgets_the_rings_on_the_old_one() -> None:
    table = memory_table(promise=NOW + 5)
    table.rang(table.looks(), NOW)
    table.forget_rings()
    assert table.must_ring(NOW + 1, NOW)


def test_a_table_without_a_server_always_rings() -> None:
    assert memory_table(promise=inf).must_ring(NOW + 1e9, NOW), "adopted: its owner is not connected"
    assert memory_table(promise=nan).must_ring(NOW + 1e9, NOW), "scratch"


def test_a_server_is_late_when_it_broke_its_promise_or_left_a_ring_unanswered() -> None:
    table = memory_table(promise=NOW + 5)
    assert not table.is_late(NOW + 6)
    assert table.is_late(NOW + 6.001)
    table.rang(table.looks(), NOW)
    assert not table.is_late(NOW + LATE)
    assert table.is_late(NOW + LATE + 0.001)
    table.cells[LOOKS] += 1.0
    assert not table.is_late(NOW + LATE + 0.001)
    assert not memory_table(promise=inf).is_late(NOW)


# --- fork


def test_an_abandoned_table_takes_its_entries_along_and_touches_nothing() -> None:
    table = memory_table(promise=NOW + 5)
    entry = Entry(table, "s", 10.0)
    arm(table, "k", 20.0)
    shared = table.raw
    table.abandon(bytearray(layout.TABLE_SIZE))
    entry.leave()
    release(table, "k")
    assert shared.cast("d")[entry.word] == 10.0, "the parent's timer stands"
    assert entry.pool.cells is table.cells
    assert table.pools == {}
    assert table.must_ring(NOW + 1e9, NOW), "whoever arms here finds out"


def test_the_lock_that_another_thread_held_is_left_with_the_parent() -> None:
    table = memory_table()
    table.lock.acquire()
    table.abandon(bytearray(layout.TABLE_SIZE))
    arm(table, "s")
    Entry(table, "t").leave()
    assert names_of(table) == ["s"]


def test_a_retired_pool_does_not_lead_back_to_the_parents_memory() -> None:
    table = memory_table()
    retired = table.pool("old")
    for n in range(200):
        Entry(table, f"s{n}").leave()
    assert "old" not in table.pools
    shared = bytes(table.raw)
    parents = table.raw
    table.abandon(bytearray(layout.TABLE_SIZE))
    pool, word = table.take(retired)
    pool.cells[word] = 10.0
    assert pool.cells[PROMISE] != pool.cells[PROMISE], "this is scratch, where the promise is NaN"
    assert bytes(parents) == shared


def test_an_abandoned_table_does_not_ask_the_parents_file_for_memory() -> None:
    grown: list[int] = []
    table = memory_table(grow=grown.append)
    table.abandon(bytearray(layout.TABLE_SIZE))
    for n in range(100):
        arm(table, f"s{n}")
    assert grown == []
    assert len(armed(table)) == 100


def test_an_entry_keeps_its_table_alive() -> None:
    entry = Entry(memory_table(), "s")
    gc.collect()
    entry.leave()
    assert entry.pool.cells[entry.word] == inf
