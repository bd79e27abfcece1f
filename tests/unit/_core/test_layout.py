"""The bytes of a table: regions that do not touch, and readers that accept every bit pattern.

What a worker writes can harm only that worker: nothing here may raise for what stands in its part, and
nothing may return more than a table can hold.
"""

import os
import random
import struct
from math import inf, nan

import pytest

from aiotimer._core import layout
from aiotimer._core.layout import SCOPE_BYTES, SLOTS

NAN_BITS = (0x7FF8_0000_0000_0000, 0xFFF8_0000_0000_0000, 0x7FF0_0000_0000_0001, 0x7FFF_FFFF_FFFF_FFFF)
NANS = [struct.unpack("=d", struct.pack("=Q", bits))[0] for bits in NAN_BITS]
QUIET = [inf, -inf, 0.0, -0.0, -1.0, -5e-324, -1e308, *NANS]
"""Values of a slot that is not armed."""


def snapshot(mark: float, *deadlines: float) -> bytes:
    line = layout.word(mark).ljust(layout.DEADLINES_IN_SNAPSHOT, b"\xff")
    return line + b"".join(map(layout.word, deadlines))


# --- whose an entry is


@pytest.mark.parametrize(
    "value", [*QUIET, 1e300, float(2**53 + 2), 0.5], ids=lambda value: struct.pack(">d", value).hex()
)
def test_what_is_no_thread_is_none(value: float) -> None:
    cell = layout.encode_label(b"s", 1).ljust(layout.LABEL_SIZE - 8, b"\0") + layout.word(value)
    assert layout.label_thread(cell) == 0
    assert layout.decode_label(cell) == ("s", 1)


def test_a_thread_stands_at_the_end_of_a_label() -> None:
    longest = layout.encode_label(b"x" * SCOPE_BYTES, 1)
    cell = longest.ljust(layout.LABEL_SIZE - 8, b"\0") + layout.word(0x7F12_3456_7740)
    assert layout.label_thread(cell) == 0x7F12_3456_7740
    assert layout.label_thread(cell[:-1]) == layout.label_thread(b"") == 0
    for slot in (0, 1, SLOTS - 1):
        word = layout.LABEL_WORDS * (layout.FIRST_DEADLINE + slot) + layout.THREAD_OF
        assert 8 * word == layout.label_offset(slot + 1) - 8


# --- where things are


def test_regions_follow_each_other_and_do_not_touch() -> None:
    ends = [
        16,  # magic, version, capacity
        8 * layout.PROMISE,
        8 * layout.PROGRAM + 8,
        8 * layout.HIGH_WATER,
        8 * layout.RETIRED + 8,
        layout.deadline_offset(0),
        layout.deadline_offset(SLOTS - 1) + 8,
        layout.ACCOUNT_OFFSET,
        layout.ACCOUNT_OFFSET + layout.ACCOUNT_SIZE,
        layout.count_offset(0),
        layout.count_offset(SLOTS - 1) + 8,
        layout.label_offset(0),
        layout.label_offset(SLOTS),
        layout.row_offset(0),
        8 * layout.row_of(layout.FIRST_DEADLINE + SLOTS),
    ]
    assert ends == sorted(ends)
    assert ends[-1] == layout.TABLE_SIZE


def test_the_two_sides_write_into_different_cache_lines() -> None:
    by_server = {8 * word // 64 for word in (layout.PROMISE, layout.LOOKS, layout.REAPED_AT, layout.PROGRAM)}
    by_worker = {8 * word // 64 for word in (layout.HIGH_WATER, layout.RETIRED, layout.FIRST_DEADLINE)}
    assert not by_server & by_worker


def test_words_are_aligned_and_labels_do_not_straddle_pages() -> None:
    assert layout.count_offset(0) == 8 * layout.FIRST_COUNT
    assert layout.count_offset(5) == layout.deadline_offset(5) + 8 * layout.COUNT_OF
    assert layout.label_offset(0) % layout.PAGE == 0
    assert layout.PAGE % layout.LABEL_SIZE == 0


def test_promise_and_looks_are_written_together() -> None:
    line = layout.server_line(12.5, 3.0)
    assert layout.LOOKS == layout.PROMISE + 1
    assert (layout.read_word(line), layout.read_word(line, 8)) == (12.5, 3.0)


def test_the_first_page_holds_the_header_and_the_first_slots() -> None:
    assert layout.deadline_offset(layout.FIRST_SLOTS) == layout.PAGE


def test_the_header_declares_its_layout() -> None:
    assert layout.layout_version(layout.header()) == layout.LAYOUT_VERSION
    newer = layout.MAGIC + struct.pack("=II", 99, SLOTS)
    assert layout.layout_version(newer.ljust(layout.PAGE, b"\0")) == 99


@pytest.mark.parametrize(
    "head", [b"", b"aiotimer", layout.header()[:15], b"\0" * 16, b"AIOTIMER" + b"\0" * 8]
)
def test_what_is_no_header_has_no_version(head: bytes) -> None:
    assert layout.layout_version(head) is None


# --- snapshots


def test_a_snapshot_gives_the_deadlines_below_the_mark() -> None:
    assert layout.deadlines(snapshot(2, 5.0, inf, 7.0)).tolist() == [5.0, inf]
    assert len(snapshot(2, 5.0, inf)) == layout.snapshot_size(2)


CLAMPED = {
    0: 0,
    2.9: 2,
    SLOTS: SLOTS,
    SLOTS + 1: SLOTS,
    1e308: SLOTS,
    -1: 0,
    -1e308: 0,
    inf: 0,
    -inf: 0,
    nan: 0,
}


@pytest.mark.parametrize(("mark", "slots"), CLAMPED.items())
def test_the_mark_is_clamped_to_what_a_table_can_have(mark: float, slots: int) -> None:
    assert layout.high_water(snapshot(mark)) == slots


def test_a_snapshot_truncated_anywhere_gives_the_slots_that_are_there() -> None:
    whole = snapshot(3, 5.0, 6.0, 7.0)
    for length in range(len(whole) + 1):
        there = max(0, (length - layout.DEADLINES_IN_SNAPSHOT) // 8)
        assert layout.deadlines(whole[:length]).tolist() == [5.0, 6.0, 7.0][:there]


@pytest.mark.parametrize("value", QUIET, ids=lambda value: struct.pack(">d", value).hex())
def test_what_no_timer_stores_is_not_armed(value: float) -> None:
    assert not layout.is_armed(value)
    assert layout.as_requested(value) < 0, "it stands for a release"


@pytest.mark.parametrize("value", [5e-324, 1e-9, 1.0, 1.7976931348623157e308])
def test_what_a_timer_stores_is_armed(value: float) -> None:
    assert layout.is_armed(value)


# --- requests as numbers


@pytest.mark.parametrize("until", [0.0, 1e-300, 5.0, 1e308, 7])
def test_a_stored_acquire_reads_back(until: float) -> None:
    stored = layout.as_stored(until)
    assert layout.is_armed(stored)
    assert layout.as_requested(stored) == until


@pytest.mark.parametrize("until", [-1, -5e-324, -1e308, -inf])
def test_a_release_is_stored_as_infinity(until: float) -> None:
    assert layout.as_stored(until) == inf


@pytest.mark.parametrize("until", [nan, inf, 10**400])
def test_what_is_not_finite_is_refused(until: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        layout.as_stored(until)


@pytest.mark.parametrize("offset", [0.0, 50.0, -50.0, 1e9, -1e9])
def test_on_another_clock_a_release_is_a_release_and_an_acquire_an_acquire(offset: float) -> None:
    assert layout.shifted(60.0, offset) == max(0.0, 60.0 + offset)
    assert layout.shifted(0.0, offset) >= 0
    assert layout.shifted(-1.0, offset) < 0
    for until in (nan, inf, 10**400):
        with pytest.raises(ValueError, match="finite"):
            layout.as_stored(layout.shifted(until, offset))


# --- scopes and labels


@pytest.mark.parametrize(
    "scope", ["s", "train.py:42", "a b", "\n", "\x1b[31m", "ü" * 120, "🚀" * 60, "x" * SCOPE_BYTES]
)
def test_a_label_reads_back(scope: str) -> None:
    text = layout.encode_scope(scope)
    for ordinal in (0, 1, 2, 2**32 - 1):
        cell = layout.encode_label(text, ordinal)
        assert len(cell) <= layout.LABEL_SIZE
        assert layout.decode_label(cell.ljust(layout.LABEL_SIZE, b"\xff")) == (scope, ordinal)


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("x" * (SCOPE_BYTES + 1), "241 bytes long; at most 240"),
        ("ü" * 121, "242 bytes"),
        ("x" * 10_240, "10240 bytes"),
        ("\ud800", "not valid Unicode"),
        (os.fsdecode(b"\xff"), "not valid Unicode"),
    ],
    ids=["empty", "NUL", "long", "long-utf8", "10KiB", "surrogate", "undecodable-filename"],
)
def test_what_cannot_be_a_label_is_refused(scope: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        layout.encode_scope(scope)


@pytest.mark.parametrize("scope", [None, b"s", 7, ["s"]])
def test_a_scope_is_a_str(scope: object) -> None:
    with pytest.raises(TypeError, match="scope must be a str"):
        layout.encode_scope(scope)  # type: ignore[arg-type]


def test_any_bytes_are_a_label() -> None:
    chance = random.Random(5)
    for size in (0, 3, 7, 8, 9, layout.LABEL_SIZE):
        for _ in range(200):
            scope, ordinal = layout.decode_label(chance.randbytes(size))
            assert scope
            assert len(scope.encode()) <= 4 * SCOPE_BYTES, "an undecodable byte becomes four characters"
            assert 0 <= ordinal < 2**32


def test_undecodable_labels_are_shown_escaped() -> None:
    assert layout.decode_label(layout.encode_label(b"a\xffb", 1)) == (r"a\xffb", 1)
    assert layout.decode_label(layout.encode_label(b"", 1)) == ("?", 1)


def test_the_ordinal_shows_from_the_second_on() -> None:
    assert [layout.timer_name("s", n) for n in range(4)] == ["s", "s", "s#2", "s#3"]


@pytest.mark.parametrize("ordinal", [0, 1, 2, 999_999_999, -1, -999_999_999])
def test_a_key_reads_back(ordinal: int) -> None:
    assert layout.split_key(layout.timer_key("s#2", ordinal)) == ("s#2", ordinal)


@pytest.mark.parametrize(
    "key", ["s\0", "s\0x", "s\0-1", "s\0" + "1" * 10, "s\0\u0661", "s\0001\0001", "s\0o", "s\0001oo"]
)
def test_a_key_with_a_strange_ordinal_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="ordinal"):
        layout.split_key(key)
