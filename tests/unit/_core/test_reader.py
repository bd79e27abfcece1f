"""Reading a table from outside: few reads, labels that belong to their deadlines, and any bytes survived."""

from math import inf, nan

import pytest

from aiotimer._core import durations, layout
from aiotimer._core.layout import FIRST_SLOTS
from aiotimer._core.reader import Read, TableReader, Timer
from aiotimer._core.table import TimerTable
from aiotimer.server.slices import finish
from tests.fakes.memory import memory_table, reading


class Reads:
    """A way to read that counts, and lets something happen before the n-th read."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.calls: list[tuple[int, int]] = []
        self.before: dict[int, tuple[TimerTable, int, float]] = {}

    def __call__(self, size: int, offset: int) -> bytes:
        self.calls.append((size, offset))
        if store := self.before.pop(len(self.calls), None):
            table, slot, value = store
            table.cells[layout.FIRST_DEADLINE + slot] = value
        return self._read(size, offset)


def truncated(table: TimerTable, length: int) -> Read:
    raw = bytes(table.raw[: layout.LABELS_OFFSET + 4 * layout.LABEL_SIZE])[:length]
    return lambda size, offset: raw[offset : offset + size]


def table_of(*timers: tuple[str, float]) -> TimerTable:
    table = memory_table()
    for scope, deadline in timers:
        table.set((scope, 0), deadline, 0.0)
    return table


def test_the_timers_come_soonest_first() -> None:
    table = table_of(("late", 30.0), ("soon", 10.0), ("released", 20.0))
    table.set(("released", 0), -1.0, 0.0)
    pool, word = table.take(table.pool("entry"))
    table.cells[word] = 20.0
    table.cells[table.take(pool)[1]] = 25.0
    found = TableReader(reading(table)).timers()
    assert [timer.name for timer in found] == ["soon", "entry", "entry#2", "late"]
    assert found[0] == Timer(found[0].slot, "soon", 0, 10.0)
    assert [(timer.ordinal, timer.deadline) for timer in found[1:3]] == [(1, 20.0), (2, 25.0)]


def test_an_empty_file_has_no_timers() -> None:
    reader = TableReader(lambda _size, _offset: b"")
    assert reader.snapshot() == b""
    assert not reader.deadlines()
    assert reader.deadline(0) == -1.0
    assert not reader.counts(16)
    assert reader.armings(0, 3).tolist() == [0, 0, 0], "it does not say that anything has been armed again"
    assert reader.key(0) == layout.timer_key("?", 0)
    assert reader.timer(0, 5.0) is None
    assert reader.timers() == []


def test_a_small_table_is_one_read() -> None:
    table = table_of(*((f"s{n}", 10.0 + n) for n in range(100)))
    reads = Reads(reading(table))
    assert len(TableReader(reads).deadlines()) == table.high_water
    assert reads.calls == [(layout.snapshot_size(FIRST_SLOTS), layout.SNAPSHOT_OFFSET)]


def test_a_grown_table_is_two_reads_once_and_then_one() -> None:
    table = table_of(*((f"s{n}", 10.0 + n) for n in range(FIRST_SLOTS + 1)))
    reads = Reads(reading(table))
    reader = TableReader(reads)
    assert sum(map(layout.is_armed, reader.deadlines())) == FIRST_SLOTS + 1
    assert len(reads.calls) == 2
    reader.deadlines()
    assert len(reads.calls) == 3


@pytest.mark.parametrize("read_number", [2, 3])
def test_a_label_counts_only_if_the_deadline_stood_still(read_number: int) -> None:
    table = table_of(("s", 10.0))
    reads = Reads(reading(table))
    slot = TableReader(reading(table)).timers()[0].slot
    reads.before = {read_number: (table, slot, 11.0)}
    assert TableReader(reads).timer(slot, 10.0) is None
    assert TableReader(reads).timer(slot, 11.0) == Timer(slot, "s", 0, 11.0)


def test_counts_tell_how_often_a_slot_was_armed() -> None:
    table = table_of(("s", 10.0), ("s", 11.0), ("t", 12.0))
    reader = TableReader(reading(table))
    assert sorted(reader.counts(table.high_water))[-2:] == [1.0, 2.0]


def test_a_table_truncated_anywhere_gives_what_is_left() -> None:
    table = table_of(*((f"s{n}", 10.0 + n) for n in range(4)))
    lengths = [
        *range(layout.SNAPSHOT_OFFSET, layout.deadline_offset(6)),
        *range(layout.count_offset(0) - 9, layout.count_offset(4) + 9),
        *range(layout.label_offset(0) - 9, layout.label_offset(4)),
    ]
    for length in lengths:
        reader = TableReader(truncated(table, length))
        there = min(table.high_water, max(0, length - layout.deadline_offset(0)) // 8)
        assert len(reader.deadlines()) == there
        assert len(reader.counts(4)) <= 4
        assert {timer.deadline for timer in reader.timers()} <= {10.0, 11.0, 12.0, 13.0}


def test_the_soonest_of_many_are_read_alone() -> None:
    table = TimerTable(bytearray(layout.TABLE_SIZE), now=lambda: 7.0)
    for number in range(5):
        table.set((f"t{number}", 0), 100.0 - number // 2, 5.0)
    reader = TableReader(lambda size, offset: bytes(table.raw[offset : offset + size]))
    every = reader.timers()
    assert [timer.name for timer in every] == ["t4", "t2", "t3", "t0", "t1"]
    assert [reader.timers(most) for most in (0, 3, 5, 9)] == [[], every[:3], every, every]


# --- durations


def test_rows_of_a_scope_are_read_together() -> None:
    table = TimerTable(bytearray(layout.TABLE_SIZE), now=lambda: 7.0)
    reader = TableReader(lambda size, offset: bytes(table.raw[offset : offset + size]))
    for observed in (False, True):
        _pool, word = table.take(table.pool("s", observed=observed))
        table.cells[word + layout.COUNT_OF] = 3.0
        durations.leave(table.cells, layout.row_of(word), 1.0)
    assert reader.key(word - layout.FIRST_DEADLINE) == "s\0001o"
    table.set(("keyed", 0), 9.0, 5.0)
    table.set(("keyed", 0), -1.0, 0.0)
    found = finish(reader.durations())
    assert {scope: (ran.count, ran.durations.count) for scope, ran in found.items()} == {
        "s": (6, 2),
        "keyed": (1, 1),
    }
    assert found["keyed"].durations.maximum == 2.0
    assert finish(reader.durations(most=2)).keys() == {"s"}
    assert list(reader.row(2)[:3]) == [5.0, 4.0, 9.0]


def test_what_is_no_count_counts_for_nobody() -> None:
    """Sums stay small enough to be told: more than 64 bits would fit into no message."""
    table = table_of(*((f"s{n}", 10.0) for n in range(4)))
    for slot, count in enumerate((1e300, 2.0**60, inf, nan)):
        table.cells[layout.FIRST_COUNT + slot] = count
    assert finish(TableReader(reading(table)).durations()) == {}
    pool = table.pool("many")
    for _ in range(5):
        table.cells[table.take(pool)[1] + layout.COUNT_OF] = 2.0**53
    assert finish(TableReader(reading(table)).durations())["many"].count == 2**53


def test_a_row_is_cleared_for_another_scope() -> None:
    table = TimerTable(bytearray(layout.TABLE_SIZE), now=lambda: 7.0)
    table.set(("keyed", 0), 9.0, 5.0)
    word = layout.FIRST_DEADLINE
    assert any(table.cells[layout.row_of(word) : layout.row_of(word + 1)])
    table._label(word, b"other", 1)
    assert not any(table.cells[layout.row_of(word) : layout.row_of(word + 1)])
