"""A note: what a program says of one entry of a block, beside the label of its slot, for reports.

The laws of this file:

* A note is of one entry. It holds for the count that the slot had when it was written, so that the next entry
  has none without anybody clearing it: entering and leaving do nothing for it.
* It is short, and what does not fit is cut off: it has what a label cell has left behind the scope's text.
* Whatever stands there can be read. While it is written no count is noted for it; who reads in that moment
  finds nothing, or a text that is half another one.

A note begins at the first whole word behind the text: the count, a float64; a uint16, its length; and so many
bytes of UTF-8, ``key=value`` with a NUL between each two.

*Grace.* An entry of a block with grace says so in two words there, and a note begins behind them: the
negative of the count, and its grace, a float64. That becomes negative when its task has been cancelled. It is
two stores, because every such entry pays for them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import inf

from .layout import LABEL_SIZE, SCOPE_BYTES, read_word, word

MOST = 100
"""Characters of a value."""

_LENGTH = struct.Struct("=H")
_COUNT = 8
_HEAD = 8  # of a label: length, flags, ordinal
_GRACE = 16  # of an entry with grace: the count, and that
_END = LABEL_SIZE - 8
"""The last word of a label cell is its thread."""


def grace_at(scope: bytes) -> int:
    """Return at which word of a label cell an entry with grace says so, 0 if there is no room for it."""
    start = _behind(len(scope))
    return start // 8 if start + _GRACE <= _END else 0


def decode_grace(cell: bytes, count: bytes) -> float:
    """Return what an entry with grace says of that, negative: its task has been cancelled; 0.0: nothing.

    Args:
        cell: all of it.
        count: of its slot, as it stands in the table.
    """
    start = _behind(_length(cell)) if len(cell) >= LABEL_SIZE else _END
    if start + _GRACE > _END or not _has_grace(cell, start, count):
        return 0.0
    grace = read_word(cell, start + _COUNT)
    return grace if 0.0 < abs(grace) < inf else 0.0


def start_of(cell: bytes, count: bytes = b"") -> int:
    """Return where in a label cell its note begins; ``count``: of the slot, as it stands in the table."""
    start = _behind(_length(cell))
    return start + _GRACE if _has_grace(cell, start, count) else start


def _length(cell: bytes) -> int:
    return min(int(_LENGTH.unpack_from(cell)[0]), SCOPE_BYTES)


def _behind(length: int) -> int:
    return (_HEAD + length + 7) // 8 * 8


def _has_grace(cell: bytes, start: int, count: bytes) -> bool:
    return len(count) == _COUNT and cell[start : start + _COUNT] == word(-read_word(count))


def encode_note(cell: bytes, values: Mapping[str, str], count: bytes = b"") -> bytes:
    """Return what follows the count of a note in a label cell; b"" if there is no room.

    Args:
        cell: as it is.
        values: what it says.
        count: of the slot, as it stands in the table.
    """
    room = _END - start_of(cell, count) - _COUNT - _LENGTH.size
    if room < 0:
        return b""
    pairs = (f"{key}={value[:MOST]}".replace("\0", "?") for key, value in values.items())
    text = "\0".join(pairs).encode(errors="replace")[:room].decode(errors="ignore").encode()
    return _LENGTH.pack(len(text)) + text


def decode_note(cell: bytes, count: bytes) -> dict[str, str]:
    """Return the note in a label cell.

    Args:
        cell: all of it; one that is cut off has no note.
        count: of its slot, as it stands in the table.
    """
    start = start_of(cell, count) if len(cell) >= LABEL_SIZE else _END
    text_at = start + _COUNT + _LENGTH.size
    if text_at > _END or cell[start : start + _COUNT] != count:
        return {}
    length = _LENGTH.unpack_from(cell, start + _COUNT)[0]
    text = cell[text_at : min(text_at + length, _END)].decode(errors="replace")
    pairs = (pair.partition("=") for pair in text.split("\0") if pair)
    return {key: value for key, _, value in pairs}
