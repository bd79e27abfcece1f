"""Notes beside labels: whatever stands there can be read, and none is taken for another entry's."""

import random
import struct
from math import inf, isfinite, nan

from aiotimer._core import layout
from aiotimer._core.notes import decode_grace, decode_note, encode_note, grace_at, start_of

COUNT = layout.word(7.0)
END = layout.LABEL_SIZE - 8


def label(scope: bytes) -> bytes:
    return layout.encode_label(scope, 1)


def cell(scope: bytes, note: bytes, count: bytes = COUNT) -> bytes:
    text = label(scope)
    return (text.ljust(start_of(text), b"x") + count + note).ljust(END, b"\0")[:END] + bytes(8)


def test_a_note_is_read_as_it_was_written() -> None:
    told = {"uid": "17", "formula": "a=b", "empty": ""}
    note = encode_note(label(b"s"), told)
    assert note == b"\x19\0uid=17\0formula=a=b\0empty="
    assert decode_note(cell(b"s", note), COUNT) == told
    assert decode_note(cell(b"s", note), layout.word(8.0)) == {}, "it is of another entry"
    assert decode_note(cell(b"s", note)[:-1], COUNT) == {}, "it is cut off"
    assert decode_note(b"", COUNT) == decode_note(b"", b"") == {}


def test_a_note_begins_at_a_word_behind_the_scope_and_ends_before_the_thread() -> None:
    assert [start_of(label(b"s" * length)) for length in (1, 8, 9, 240)] == [16, 16, 24, 248]
    for length in range(1, layout.SCOPE_BYTES + 1):
        scope = label(b"s" * length)
        note = encode_note(scope, {"key": "v" * 100, "more": "v" * 100, "yet": "v" * 100})
        assert start_of(scope) + 8 + len(note) == END if note else start_of(scope) >= 240


def test_what_does_not_fit_is_cut_off_between_characters() -> None:
    room_for_six = label(b"s" * 220)
    assert encode_note(room_for_six, {"k": "aaü"}) == struct.pack("=H", 6) + "k=aaü".encode()
    assert encode_note(room_for_six, {"k": "aaaü"}) == struct.pack("=H", 5) + b"k=aaa"
    assert encode_note(room_for_six, {}) == b"\0\0"
    assert encode_note(label(b"s" * 240), {"k": "a"}) == b""


def test_an_entry_with_grace_says_so_before_its_note() -> None:
    text = label(b"s" * 9)
    words = layout.word(-7.0) + layout.word(0.5)
    said = text.ljust(24, b"x") + words
    assert (start_of(said), start_of(said, COUNT), start_of(said, layout.word(8.0))) == (24, 40, 24)
    note = encode_note(said, {"uid": "17"}, COUNT)
    whole = (said + COUNT + note).ljust(layout.LABEL_SIZE, b"\0")
    assert (decode_grace(whole, COUNT), decode_note(whole, COUNT)) == (0.5, {"uid": "17"})
    later = layout.word(8.0)
    assert (decode_grace(whole, later), decode_note(whole, later)) == (0.0, {}), "it is of another entry"
    assert decode_grace(whole[:-1], COUNT) == decode_grace(b"", b"") == 0.0, "it is cut off"


def test_there_is_room_for_the_grace_before_the_thread() -> None:
    assert [grace_at(b"s" * length) for length in (1, 8, 9, 224, 225, 240)] == [2, 2, 3, 29, 0, 0]
    words = layout.word(-7.0) + layout.word(0.5)
    for length, grace in ((224, 0.5), (225, 0.0), (240, 0.0)):
        text = label(b"s" * length)
        assert decode_grace((text.ljust(start_of(text)) + words)[:256].ljust(256), COUNT) == grace


def test_a_grace_that_cannot_be_is_none() -> None:
    for garbage in (nan, inf, -inf, 0.0):
        words = layout.word(-7.0) + layout.word(garbage)
        assert decode_grace((label(b"s").ljust(16) + words).ljust(256), COUNT) == 0.0
    cancelled = layout.word(-7.0) + layout.word(-0.5)
    assert decode_grace((label(b"s").ljust(16) + cancelled).ljust(256), COUNT) == -0.5


def test_a_length_that_cannot_be_is_none() -> None:
    lying = cell(b"s", b"\xff\xffk=v")
    assert decode_note(lying, COUNT)["k"].startswith("v")
    assert len(decode_note(lying, COUNT)["k"]) < layout.LABEL_SIZE


def test_any_bytes_can_be_read() -> None:
    source = random.Random(7)
    for _ in range(2000):
        garbage = source.randbytes(source.choice([0, 7, 8, 255, 256, 300]))
        start = start_of(garbage) if len(garbage) >= 2 else 0
        found = decode_note(garbage, garbage[start : start + 8])
        assert isfinite(decode_grace(garbage, garbage[start : start + 8]))
        assert sum(len(key) + len(value) for key, value in found.items()) < layout.LABEL_SIZE
