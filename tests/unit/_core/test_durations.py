"""Rows of durations, and what is told from them."""

from array import array
from math import inf, nan, sqrt
from typing import Any

import pytest

from aiotimer._core import durations, layout
from aiotimer._core.durations import BUCKETS, Durations

STRANGE = (nan, inf, -inf, -1.0, 0.5, 1e300)


def row(maximum: float = 0.0, **counts: float) -> list[float]:
    cells = [0.0, 0.0, 0.0, maximum] + [0.0] * BUCKETS
    for name, count in counts.items():
        cells[4 + int(name[1:])] = count
    return cells


def cells() -> "memoryview[float]":
    return memoryview(bytearray(2 * layout.ROW_SIZE)).cast("d")


# --- buckets


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(2.0**-17, 0), (2.0**-16.4, 1), (2.0**-16, 2), (1.0, 34), (1.5, 35), (1e9, 59), (1e-9, 0), (0.0, 0)],
)
def test_a_duration_has_a_bucket(seconds: float, expected: int) -> None:
    assert durations.bucket(seconds) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(nan, 59), (inf, 59), (-inf, 0), (-1.0, 0)])
def test_what_is_no_duration_has_a_bucket_too(seconds: float, expected: int) -> None:
    assert durations.bucket(seconds) == expected


@pytest.mark.parametrize("number", range(BUCKETS))
def test_bounds_are_those_of_the_bucket(number: int) -> None:
    low, high = durations.bounds(number)
    assert high / low == pytest.approx(sqrt(2))
    assert durations.bucket(sqrt(low * high)) == number


# --- rows


def test_an_entry_is_stored_and_counted_in_its_row_only() -> None:
    table = cells()
    durations.enter(table, layout.ROW_WORDS, 10.0, 3.0, 13.0)
    durations.renew(table, layout.ROW_WORDS, 5.0, 17.0)
    durations.leave(table, layout.ROW_WORDS, 1.0)
    durations.leave(table, layout.ROW_WORDS, 0.9)
    ours = list(table[layout.ROW_WORDS :])
    assert ours[:4] == [10.0, 5.0, 17.0, 1.0]
    assert (ours[4 + 34], ours[4 + 33], sum(ours[4:])) == (1.0 + durations.FIRST, 1.0, 2.0 + durations.FIRST)
    assert not any(table[: layout.ROW_WORDS])


def test_rows_are_added() -> None:
    together = Durations([row(1.0, b34=2.0), row(3.0, b34=1.0, b37=1.0)])
    assert (together.count, together.maximum) == (4, 3.0)
    more = Durations()
    more.add(together)
    more.add(together)
    assert (more.count, more.maximum) == (8, 3.0)


@pytest.mark.parametrize("value", STRANGE)
def test_what_is_no_count_is_ignored(value: float) -> None:
    assert Durations([row(1.0, b3=value, b4=1.0)]).count == 1


def test_sums_end_where_counts_do() -> None:
    together = Durations([row(1.0, b3=2.0**53), row(1.0, b3=2.0**53)])
    together.add(together)
    assert together.counts[3] == 2**53


@pytest.mark.parametrize("value", [nan, inf, -inf, -1.0])
def test_what_is_no_maximum_is_ignored(value: float) -> None:
    assert Durations([row(2.0), row(value)]).maximum == 2.0


@pytest.mark.parametrize("length", [0, 3, 4, 5, 100])
def test_a_row_of_any_length_is_accepted(length: int) -> None:
    assert Durations([[1.0] * length]).count == min(max(length - 4, 0), BUCKETS)


def test_a_part_of_a_table_is_cut_into_whole_rows() -> None:
    data = array("d", range(130)).tobytes() + b"x"
    assert [(len(found), found[0]) for found in durations.rows_of(data)] == [(64, 0.0), (64, 64.0)]


# --- first ones


def taken(*seconds: float) -> list[float]:
    """The row of a slot whose entries took so long, in this order."""
    table = cells()
    for one in seconds:
        durations.leave(table, 0, one)
    return list(table[: layout.ROW_WORDS])


def test_the_first_duration_of_each_row_is_told_apart() -> None:
    together = Durations([taken(4.6, *[0.02] * 30), taken(3.0, 0.02, 0.021)])
    firsts, others = together.parted()
    assert (together.count, firsts.count, others.count) == (34, 2, 32)
    assert firsts.maximum == 4.6
    assert 0.021 <= others.maximum < 0.03, "the end of its bucket"
    assert others.quantile(0.99) < 0.03
    again = Durations.from_json(together.as_json())
    again.add(together)
    assert [part.count for part in again.parted()] == [4, 64]


def test_one_that_took_longest_later_is_none_of_them() -> None:
    firsts, others = Durations([taken(0.02, 4.6, 0.02)]).parted()
    assert (others.maximum, firsts.count) == (4.6, 1)
    assert 0.02 <= firsts.maximum < 0.03


def test_those_of_entries_whose_limit_says_so_are_told_apart_too() -> None:
    table = cells()
    for limit, seconds in ((-60.0, 4.6), (-60.0, 4.7), (1.0, 0.02), (-60.0, 4.5), (1.0, 4.6)):
        durations.enter(table, 0, 10.0, limit, 10.0 + abs(limit))
        durations.leave(table, 0, seconds)
    firsts, others = Durations([table[: layout.ROW_WORDS]]).parted()
    assert (firsts.count, others.count) == (3, 2)


def test_so_many_are_told_apart_that_they_never_make_one_entry_more() -> None:
    table = cells()
    durations.enter(table, 0, 10.0, -60.0, 70.0)
    for _ in range(2000):
        durations.leave(table, 0, 1.0)
    together = Durations([table[: layout.ROW_WORDS]])
    assert (together.count, together.parted()[0].count) == (2000, 512)


@pytest.mark.parametrize("firsts", [None, [], [-1.0, 9.0], [nan], ["x"], [3.0] * 1000, {}])
def test_what_an_earlier_version_or_somebody_else_noted_of_them_counts_no_more_than_there_are(
    firsts: Any,
) -> None:
    known = Durations([row(1.0, b1=2.0)]).as_json()
    parts = Durations.from_json(known | {"firsts": firsts}).parted()
    assert sum(part.count for part in parts) == 2
    assert min(min(part.counts) for part in parts) == 0
    before = {key: value for key, value in known.items() if key != "firsts"}
    assert Durations.from_json(before).parted()[0].count == 0


# --- quantiles


def test_without_entries_every_quantile_is_zero() -> None:
    assert Durations().quantile(0.5) == 0.0


def test_a_quantile_is_interpolated_in_its_bucket() -> None:
    found = Durations([row(100.0, b34=2.0)])
    low, high = durations.bounds(34)
    assert found.quantile(0.5) == pytest.approx(sqrt(low * high))
    assert found.quantile(1.0) == pytest.approx(high)


def test_a_quantile_never_exceeds_the_maximum() -> None:
    found = Durations([row(1.0, b34=1.0)])
    assert found.quantile(1.0) == 1.0
    assert found.quantile(7.0) == 1.0


def test_quantiles_go_from_bucket_to_bucket() -> None:
    found = Durations([row(10.0, b10=99.0, b36=1.0)])
    assert found.quantile(0.5) < durations.bounds(10)[1] < found.quantile(0.999)


# --- JSON


def test_durations_read_back_from_json() -> None:
    found = Durations([row(3.0, b34=2.0, b59=1.0)])
    again = Durations.from_json(found.as_json())
    assert (again.counts, again.maximum) == (found.counts, found.maximum)


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, {"counts": 3, "max_s": "x"}, {"counts": [None, nan, -1, 10**400], "max_s": 10**400}],
)
def test_what_is_no_durations_reads_as_none(value: object) -> None:
    assert Durations.from_json(value).count == 0
