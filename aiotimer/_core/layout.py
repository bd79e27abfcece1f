"""The layout of a timer table: every byte of it, and how the server reads them.

One layout serves both sides: the worker stores through a ``memoryview`` of the mapped file, the server
reads with ``pread`` and never maps it. ``docs/reference/protocol.md`` documents every byte; the
constants here are the normative ones. All numbers are in the machine's byte order: a table never
leaves its machine. Every word that both sides touch is 8 bytes, 8-byte aligned.

====================  =========  ==========================================================
offset                written by  what
====================  =========  ==========================================================
0                     server     magic, layout version, number of slots (once, at creation)
64  ``PROMISE``       server     float64: when the server looks next
72  ``LOOKS``         server     float64: how many looks there have been
80  ``REAPED_AT``     server     float64: when the server began to reap the worker, or 0.0
88  ``PROGRAM``       server     float64: a mark of the program that the worker runs, or 0.0
96                    (nobody)   reserved: an earlier server may have stored a uid here; never read
112 ``GRANT``         server     80 bytes of ASCII, padded with NUL: its reap grant, how it is to be reaped
192 ``HIGH_WATER``    worker     float64: slots below this are allocated and initialised
200 ``RETIRED``       worker     float64: acquisitions counted in slots that were relabelled since
208 ``DUMP_SIGNAL``   worker     float64: the signal that makes a thread write its stack, or 0.0
216 ``DUMP_FILE``     worker     float64: its descriptor of this file, to which it writes it
224 ``EXIT_SIGNAL``   server     float64: the signal at which a worker that is pid 1 exits, or 0.0
256 deadlines         worker     65,536 x float64; ``inf`` or 0.0 = not armed
524,544 ``ACCOUNT``   server     3,840 bytes, padded with NUL: what the worker has said of itself
528,384 counts        worker     65,536 x float64: acquisitions through this slot; see ``RELABELLED``
1,052,672 labels      worker     65,536 x 256 bytes: length, flags, ordinal, UTF-8 text, a note, thread
17,829,888 rows       worker     65,536 x 64 float64: how long the blocks of this slot took
51,384,320 stacks     worker     what threads wrote when sent ``DUMP_SIGNAL``, one after the other
====================  =========  ==========================================================

What stands in the worker's part is untrusted: any double may be a deadline (NaN, -inf, denormal), any
bytes a label. Everything here accepts every bit pattern. It can harm only its writer.
"""

from __future__ import annotations

import struct
from array import array
from math import inf
from sys import float_info

LAYOUT_VERSION = 1
MAGIC = b"aiotimer"
SLOTS = 65_536

# Indices of float64 words, for a memoryview cast to "d".
PROMISE = 8
LOOKS = 9
REAPED_AT = 10
PROGRAM = 11
HIGH_WATER = 24
RETIRED = 25
DUMP_SIGNAL = 26
DUMP_FILE = 27
EXIT_SIGNAL = 28
FIRST_DEADLINE = 32
FIRST_COUNT = 528_384 // 8
COUNT_OF = FIRST_COUNT - FIRST_DEADLINE
"""A deadline's word index plus this is the word index of its slot's count."""

RELABELLED = 2.0**-16
"""Added to a count when its slot gets another label; then it starts anew, but for what is less than one."""

LABELS_OFFSET = 1_052_672
LABEL_SIZE = 256
LABEL_WORDS = LABEL_SIZE // 8
THREAD_OF = (LABELS_OFFSET + LABEL_SIZE) // 8 - 1 - LABEL_WORDS * FIRST_DEADLINE
"""``LABEL_WORDS`` times a deadline's word index, plus this, is the index of the last word of its slot's
label: a float64, ``threading.get_ident()`` of the thread that made the entry, or 0.0."""

GRANT_OFFSET, GRANT_SIZE = 112, 80

ACCOUNT_OFFSET, ACCOUNT_SIZE = 524_544, 3_840
"""Between the deadlines and the counts: what ``wire.Account`` is there for. All zero: it has said nothing, or
to a server that noted nothing of it."""

ROWS_OFFSET = LABELS_OFFSET + SLOTS * LABEL_SIZE
ROW_WORDS = 64
ROW_SIZE = 8 * ROW_WORDS
FIRST_ROW = ROWS_OFFSET // 8
"""A slot's row: see ``_core/durations.py``."""

TABLE_SIZE = ROWS_OFFSET + SLOTS * ROW_SIZE
STACKS_OFFSET = TABLE_SIZE
"""The file may be longer than the table: stacks are appended there."""

OBSERVED = 1
"""A flag on a label: the timer is observed; nobody is signalled for it."""

SCOPE_BYTES = 240
"""The longest scope, in bytes of UTF-8: what a label cell holds beside its 8-byte head, rounded down."""

PAGE = 4096
SNAPSHOT_OFFSET = HIGH_WATER * 8
"""A snapshot starts at the worker's own line, so that two snapshots of an idle table are equal bytes."""

DEADLINES_IN_SNAPSHOT = FIRST_DEADLINE * 8 - SNAPSHOT_OFFSET
FIRST_SLOTS = 480
"""As many slots as share the first page with the header: one page is read for nearly every worker."""

LATE = 1.0
"""Seconds after its promise at which a server counts as late: to its workers, which ring then, and to
``aiotimer ping``. It is no byte of the table, but what a promise in it means to both sides."""

EXPIRED_AT_ONCE = 5e-324
"""What a deadline of exactly 0 is stored as: a zero in the table means *not armed*."""

_LARGEST_IDENT = 2**53
"""An address, and any address is less; a float64 holds it exactly."""

_LARGEST = float_info.max  # an int may be finite and yet too large

_HEAD = struct.Struct("=8sII")
_LABEL = struct.Struct("=HHI")
_WORD = struct.Struct("=d")
_SERVER_LINE = struct.Struct("=dd")


def header() -> bytes:
    """Return the first bytes of a new table: magic, version, capacity."""
    return _HEAD.pack(MAGIC, LAYOUT_VERSION, SLOTS)


def layout_version(head: bytes) -> int | None:
    """Return the layout version that ``head`` (at least 16 bytes) declares, None if it is no table."""
    if len(head) < _HEAD.size:
        return None
    magic, version, _slots = _HEAD.unpack_from(head)
    return int(version) if magic == MAGIC else None


def server_line(promise: float, looks: float) -> bytes:
    """Return the two words at ``PROMISE``, to be written with one ``pwrite``: promise, then looks."""
    return _SERVER_LINE.pack(promise, looks)


def word(value: float) -> bytes:
    """Return one float64 as it stands in a table."""
    return _WORD.pack(value)


def read_word(data: bytes, offset: int = 0) -> float:
    """Return the float64 at a byte offset of ``data``."""
    return float(_WORD.unpack_from(data, offset)[0])


def snapshot_size(high_water: int) -> int:
    """Return how many bytes from ``SNAPSHOT_OFFSET`` hold the worker's line and ``high_water`` deadlines."""
    return DEADLINES_IN_SNAPSHOT + 8 * high_water


def high_water(snapshot: bytes) -> int:
    """Return the number of slots a snapshot says are in use, clamped to what a table can have."""
    if len(snapshot) < DEADLINES_IN_SNAPSHOT:
        return 0
    mark: float = _WORD.unpack_from(snapshot)[0]
    if 0.0 <= mark <= SLOTS:
        return int(mark)
    return SLOTS if SLOTS < mark < inf else 0  # 0 for NaN, too


def deadlines(snapshot: bytes) -> array[float]:
    """Return the deadlines in a snapshot, index = slot. Truncated input gives the slots that are there."""
    stored = snapshot[DEADLINES_IN_SNAPSHOT : DEADLINES_IN_SNAPSHOT + 8 * high_water(snapshot)]
    return array("d", stored[: len(stored) // 8 * 8])


def is_armed(deadline: float) -> bool:
    """Whether a slot with this value holds a timer (NaN, infinities, zero and below do not)."""
    return 0.0 < deadline < inf


def deadline_offset(slot: int) -> int:
    """Return the byte offset of a slot's deadline."""
    return 8 * (FIRST_DEADLINE + slot)


def count_offset(slot: int) -> int:
    """Return the byte offset of a slot's count of acquisitions."""
    return 8 * (FIRST_COUNT + slot)


def label_offset(slot: int) -> int:
    """Return the byte offset of a slot's label."""
    return LABELS_OFFSET + LABEL_SIZE * slot


def row_of(word: int) -> int:
    """Return the word index of the row of the slot whose deadline is at a word index."""
    return FIRST_ROW + ROW_WORDS * (word - FIRST_DEADLINE)


def row_offset(slot: int) -> int:
    """Return the byte offset of a slot's row of durations."""
    return ROWS_OFFSET + ROW_SIZE * slot


def encode_scope(scope: str) -> bytes:
    """Check a scope and return its UTF-8 bytes.

    Raises:
        TypeError: it is not a str.
        ValueError: it is empty, longer than ``SCOPE_BYTES``, contains a NUL, or is not encodable (lone
            surrogates).
    """
    if not isinstance(scope, str):
        raise TypeError(f"scope must be a str, not {type(scope).__name__}")
    try:
        text = scope.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"scope is not valid Unicode ({error.reason} at {error.start})") from None
    if not text:
        raise ValueError("scope must not be empty")
    if b"\0" in text:
        raise ValueError("scope must not contain a NUL character")
    if len(text) > SCOPE_BYTES:
        raise ValueError(f"scope is {len(text)} bytes long; at most {SCOPE_BYTES} fit")
    return text


def encode_label(text: bytes, ordinal: int, flags: int = 0) -> bytes:
    """Return a label cell: ordinal 0 for a keyed timer, n >= 1 for the n-th of a scope's entries."""
    return _LABEL.pack(len(text), flags, ordinal & 0xFFFF_FFFF) + text


def decode_label(cell: bytes) -> tuple[str, int]:
    """Return ``(scope, ordinal)`` of a label cell; undecodable bytes become backslash escapes."""
    if len(cell) < _LABEL.size:
        return "?", 0
    length, _flags, ordinal = _LABEL.unpack_from(cell)
    text = cell[_LABEL.size : _LABEL.size + min(length, SCOPE_BYTES)]
    return text.decode(errors="backslashreplace") or "?", int(ordinal)


def label_flags(cell: bytes) -> int:
    """Return the flags of a label cell, 0 of a cell that is cut off."""
    return int(_LABEL.unpack_from(cell)[1]) if len(cell) >= _LABEL.size else 0


def label_thread(cell: bytes) -> int:
    """Return ``threading.get_ident()`` of the thread that made the entry with this label, 0: not known."""
    thread = read_word(cell, LABEL_SIZE - 8) if len(cell) >= LABEL_SIZE else 0.0
    return int(thread) if 0.0 < thread <= _LARGEST_IDENT else 0


def label_key(cell: bytes) -> str:
    """Return the :func:`timer_key` of the timer with this label."""
    scope, ordinal = decode_label(cell)
    return timer_key(scope, -ordinal if label_flags(cell) & OBSERVED else ordinal)


def encode_grant(text: str) -> bytes:
    """Return a reap grant, as it stands in a table.

    Raises:
        ValueError: it is not ASCII, or too long.
    """
    data = text.encode("ascii")
    if len(data) > GRANT_SIZE:
        raise ValueError(f"a ladder of {len(data)} bytes; at most {GRANT_SIZE} fit")
    return data.ljust(GRANT_SIZE, b"\0")


def decode_grant(data: bytes) -> str:
    """Return what :func:`encode_grant` stored; a worker may have written anything else there."""
    return data.partition(b"\0")[0].decode("ascii", errors="replace")


def timer_name(scope: str, ordinal: int) -> str:
    """Return the name of one timer: the scope, and ``#n`` from a scope's second concurrent entry on."""
    return scope if ordinal <= 1 else f"{scope}#{ordinal}"


def timer_key(scope: str, ordinal: int) -> str:
    """Return the name of a timer in messages: the scope; for an entry, a NUL and its ordinal follow.

    The ordinal of an observed entry is negative here; in a message an ``o`` follows it.
    """
    if ordinal < 0:
        return f"{scope}\0{-ordinal}o"
    return f"{scope}\0{ordinal}" if ordinal else scope


def split_key(key: str) -> tuple[str, int]:
    """Return the scope and the ordinal of a :func:`timer_key`: negative for an observed entry.

    Raises:
        ValueError: what follows the NUL is not a small number.
    """
    scope, separator, ordinal = key.partition("\0")
    if not separator:
        return scope, 0
    observed = ordinal.endswith("o")
    ordinal = ordinal.removesuffix("o")
    if not (ordinal.isascii() and ordinal.isdigit() and len(ordinal) <= 9):
        raise ValueError("a timer key whose ordinal is not a small number")
    return scope, -int(ordinal) if observed else int(ordinal)


def shifted(expiration_time: float, offset: float) -> float:
    """Return a request's ``expiration_time`` on a clock that is ``offset`` seconds ahead (or, < 0, behind).

    An acquire stays an acquire, even if that other clock started after its time.
    """
    if not (offset and 0 <= expiration_time <= _LARGEST):
        return expiration_time
    return max(0.0, expiration_time + offset)


def as_stored(expiration_time: float) -> float:
    """Return how a request's ``expiration_time`` stands in a slot.

    Raises:
        ValueError: NaN or infinite.
    """
    if expiration_time < 0:
        return inf
    if not expiration_time <= _LARGEST:
        raise ValueError(f"expiration_time must be finite, not {expiration_time}")
    return expiration_time or EXPIRED_AT_ONCE


def as_requested(stored: float) -> float:
    """Return the ``expiration_time`` that a slot's value stands for (the inverse of ``as_stored``)."""
    if not is_armed(stored):
        return -1.0
    return 0.0 if stored == EXPIRED_AT_ONCE else stored
