"""What one character changes in ``_core.table``: boundaries, lengths, and who keeps what.

The law of this file: each test here was written against a mutant of ``_core.table`` that all other
tests let live; ``docs/explanation/testing.md`` tells how to find them, and which ones may live.
"""

import errno
from collections.abc import Callable
from math import inf
from typing import SupportsIndex

import pytest

from aiotimer import TableFull
from aiotimer._core import layout
from aiotimer._core.durations import Durations
from aiotimer._core.layout import FIRST_DEADLINE, LATE
from aiotimer._core.reader import TableReader
from aiotimer._core.table import FIRST_CHUNK, SAMPLE_EVERY, Cell, Pool, TimerTable
from tests.fakes.memory import armed_cells, memory_table, names_of, reading, timers_of

NOW = 1000.0


# --- what a table is made of


def test_a_table_keeps_what_it_is_given() -> None:
    pools: dict[str, Pool] = {}
    table = TimerTable(bytearray(layout.TABLE_SIZE), pools=pools, now=lambda: NOW, offset=3.0)
    assert table.offset == 3.0
    pool = table.pool("s")
    assert pools == {"s": pool}
    assert pool.cells is table.cells
    assert pool.now() == NOW


def test_a_keyed_timer_rings_a_late_server() -> None:
    table = memory_table(NOW - 2 * LATE)
    assert table.set(("s", 0), NOW + 60, NOW)
    table.rang(table.looks(), NOW)
    assert not table.set(("s", 0), NOW + 60, NOW)
    assert table.set(("s", 0), NOW + 60, NOW + LATE)


# --- what is asked for under a name


def entry(table: TimerTable, scope: str, deadline: float) -> int:
    pool, word = table.take(table.pool(scope))
    pool.cells[word] = deadline
    return word


def test_requested_is_what_a_keyed_timer_holds() -> None:
    table = memory_table()
    table.raw[:16] = layout.header()  # which read as deadlines would be armed ones
    assert table.requested("s", 0) == -1.0
    table.set(("s", 0), 7.0, NOW)
    assert table.requested("s", 0) == 7.0
    table.set(("s", 0), 0.0, NOW)
    assert table.requested("s", 0) == 0.0
    table.set(("s", 0), -5.0, NOW)
    assert table.requested("s", 0) == -1.0


def test_requested_is_what_an_entry_holds_while_the_slot_is_its_own() -> None:
    table = memory_table()
    first, second = entry(table, "s", 7.0), entry(table, "s", 8.0)
    assert table.requested("s\0" + "1", first) == 7.0
    assert table.requested("s\0" + "2", second) == 8.0
    table.cells[first] = inf
    assert table.requested("s\0" + "1", first) == -1.0
    assert table.requested("s\0" + "1", second) is None
    assert table.requested("other\0" + "1", first) is None


def test_requested_of_a_keyed_timer_whose_slot_was_given_away() -> None:
    table = refusing_to_grow()
    fill_with_released_keys(table)
    table.set(("new", 0), 5.0, NOW)  # takes the slot of the oldest name
    assert table.requested("0", 0) == -1.0
    assert table.requested("new", 0) == 5.0


# --- the last client leaves


def test_disarm_releases_everything_and_nothing_else() -> None:
    table = memory_table()
    for n in range(FIRST_CHUNK // 2):
        table.set((f"k{n}", 0), 10.0 + n, NOW)
        entry(table, "e", 20.0 + n)
    mark = table.high_water
    table.cells[FIRST_DEADLINE + mark] = 77.0  # not in use
    table.disarm()
    assert names_of(table) == []
    assert list(TableReader(reading(table)).deadlines()) == [inf] * mark
    assert table.high_water == mark
    assert table.cells[FIRST_DEADLINE + mark] == 77.0
    assert table.cells[layout.HIGH_WATER] == mark
    table.set(("k0", 0), 1.0, NOW)
    assert names_of(table) == ["k0"]


# --- adoption, and a fork


def test_an_adopted_cell_is_the_timer_of_its_name() -> None:
    before = memory_table()
    for n in range(3):
        before.set((f"k{n}", 0), 10.0 + n, NOW)
    before.set(("k0", 0), -1.0, NOW)
    after = TimerTable(before.raw.obj, now=lambda: NOW)  # type: ignore[arg-type]  # the same mapping
    after.adopt_cells((t.slot, t.scope, t.ordinal) for t in TableReader(reading(before)).timers())
    after.set(("k1", 0), 50.0, NOW)
    assert armed_cells(after) == {("k1", 0): 50.0, ("k2", 0): 12.0}
    mark = after.high_water
    after.set(("new", 0), 60.0, NOW)
    assert after.high_water == mark, "there were idle slots"


def test_an_abandoned_table_has_no_slots() -> None:
    table = memory_table()
    table.set(("s", 0), 10.0, NOW)
    table.abandon(bytearray(layout.TABLE_SIZE))
    assert table.high_water == 0


# --- who loses slots when there is no memory for more


def refusing_to_grow() -> TimerTable:
    grown = 0

    def grow(slots: int) -> None:
        nonlocal grown
        grown += 1
        if grown > 1:
            raise OSError("no memory")

    return memory_table(grow=grow)


def fill_with_released_keys(table: TimerTable) -> None:
    for n in range(FIRST_CHUNK):
        for until in (10.0, -1.0):
            table.set((str(n), 0), until, NOW)


def test_for_one_new_name_keyed_timers_lose_one_slot_and_a_spare_one() -> None:
    table = refusing_to_grow()
    fill_with_released_keys(table)
    table.set(("new", 0), 10.0, NOW)
    kept = [(str(n), 0) in table._cells_of for n in range(FIRST_CHUNK)]
    assert kept == [False] * 2 + [True] * (FIRST_CHUNK - 2)


def test_for_one_new_name_a_scope_loses_one_idle_slot_and_a_spare_one() -> None:
    table = refusing_to_grow()
    pool = table.pool("old")
    words = [table.take(pool)[1] for _ in range(FIRST_CHUNK)]
    for word in words:
        table.cells[word] = inf
        pool.append(word)
    table.set(("new", 0), 10.0, NOW)
    assert len(pool) == FIRST_CHUNK - 2
    assert pool.size == FIRST_CHUNK - 2


def test_a_prepared_table_has_its_first_slots_once_and_if_there_is_memory() -> None:
    def no_memory(_slots: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert memory_table(grow=no_memory).prepared().high_water == 0
    table = memory_table().prepared()
    assert table.high_water == FIRST_CHUNK
    table.set(("s", 0), 10.0, NOW)
    assert table.prepared() is table
    assert names_of(table) == ["s"]


def test_a_keyed_timer_that_has_expired_already_is_not_taken_for_a_first_entry() -> None:
    table = memory_table()
    table.set(("s", 0), NOW - 5.0, NOW)
    row = layout.row_of(table._cells_of["s", 0].word)
    assert list(table.cells[row : row + 3]) == [NOW, 0.0, NOW - 5.0]


def test_a_keyed_timer_is_sampled_again_when_it_is_time() -> None:
    table = memory_table()
    for now in (NOW, NOW + SAMPLE_EVERY / 2, NOW + SAMPLE_EVERY):
        table.set(("s", 0), now + 10.0, now)
        table.set(("s", 0), -1.0, now)
    row = layout.row_of(FIRST_DEADLINE)
    assert Durations([table.cells[row : row + layout.ROW_WORDS]]).count == 2


def sets(table: TimerTable, name: str) -> None:
    table.set((name, 0), 10.0, NOW)


def enters(table: TimerTable, name: str) -> None:
    pool, word = table.take(table.pool(name))
    pool.cells[word] = 10.0


@pytest.mark.parametrize("handler", [sets, enters])
@pytest.mark.parametrize("interrupted", [sets, enters])
def test_a_handler_that_runs_while_a_table_grows_has_one_spare_slot(
    interrupted: Callable[[TimerTable, str], None], handler: Callable[[TimerTable, str], None]
) -> None:
    def grow(slots: int) -> None:
        grown.append(slots)
        if len(grown) == 2:
            handler(table, "handler's")
            with pytest.raises(TableFull) as caught:
                handler(table, "too many")
            assert caught.value.armed == FIRST_CHUNK
            assert caught.value.reason == "a signal's handler wants more than is spare"

    grown: list[int] = []
    table = memory_table(grow=grow)
    for n in range(4 * FIRST_CHUNK):
        interrupted(table, str(n))
    handler(table, "afterwards")
    assert sorted(names_of(table)) == sorted(["handler's", "afterwards", *map(str, range(4 * FIRST_CHUNK))])
    assert grown == [FIRST_CHUNK << n for n in range(len(grown))], "no growth inside another"


def test_a_key_that_a_handler_makes_meanwhile_is_one_timer() -> None:
    def grow(_slots: int) -> None:
        table.set(("both", 0), 20.0, NOW)

    table = memory_table()
    for n in range(FIRST_CHUNK - 1):
        table.set((str(n), 0), 10.0, NOW)
        table.set((str(n), 0), -1.0 if n else 10.0, NOW)
    table._grow = grow
    table.set(("both", 0), 30.0, NOW)
    assert {timer.name: timer.deadline for timer in timers_of(table)} == {"0": 10.0, "both": 30.0}
    table.set(("both", 0), -1.0, NOW)
    assert [timer.name for timer in timers_of(table)] == ["0"]
    words = [*table._fresh, *(cell.word for cell in table._cells_of.values())]
    assert sorted(words) == list(range(FIRST_DEADLINE, FIRST_DEADLINE + 2 * FIRST_CHUNK)), "none is lost"


def test_a_slot_that_a_handler_takes_last_is_made_up_for() -> None:
    class Raced(list[int]):
        """What is free; somebody is quicker the first time."""

        def pop(self, index: SupportsIndex = -1) -> int:
            taken.append(super().pop(index))
            if len(taken) == 1:
                raise IndexError
            return taken[-1]

    taken: list[int] = []
    table = memory_table()
    table._fresh = Raced()
    table.set(("s", 0), 10.0, NOW)
    assert len(taken) == 2


def test_an_idle_key_that_a_handler_arms_while_it_is_taken_away_keeps_its_slot() -> None:
    class Armed(dict[tuple[str, int], Cell]):
        """The keyed timers, of which one is armed as it is about to be taken away."""

        def __delitem__(self, key: tuple[str, int]) -> None:
            if key == ("0", 0):
                table.set(key, 20.0, NOW)
            super().__delitem__(key)

    table = refusing_to_grow()
    fill_with_released_keys(table)
    table._cells_of = Armed(table._cells_of)
    table.set(("new", 0), 10.0, NOW)
    assert {timer.name: timer.deadline for timer in timers_of(table)} == {"0": 20.0, "new": 10.0}
    table.set(("0", 0), -1.0, NOW)
    assert [timer.name for timer in timers_of(table)] == ["new"]


def test_a_scope_with_an_entry_inside_keeps_its_pool_and_its_numbers() -> None:
    """Or a later entry would be given the number, and so the name, of the one that is inside."""
    table = refusing_to_grow()
    pool = table.pool("s")
    words = [table.take(pool)[1] for _ in range(FIRST_CHUNK)]
    for word in words:
        table.cells[word] = 10.0
    for word in words[:2]:
        table.cells[word] = inf
        pool.append(word)
    table.set(("one", 0), 10.0, NOW)
    table.set(("two", 0), 10.0, NOW)
    assert pool.size == FIRST_CHUNK - 2
    assert table.pool("s") is pool
    table.set(("one", 0), -1.0, NOW)
    _pool, word = table.take(pool)
    assert table.key_of(word) == f"s\0{FIRST_CHUNK + 1}"
    with pytest.raises(TableFull):
        table.take(pool)
