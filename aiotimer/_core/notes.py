"""A note: what a program says of one entry of a block, beside the label of its slot, for reports.

The laws of this file:

* A note is of one entry. It holds for the count that the slot had when it was written, so that the next entry
  has none without anybody clearing it: entering and leaving do nothing for it.
* It is short, and what does not fit is cut off: it has what a label cell has left behind the scope's text.
* Whatever stands there can be read. While it is written no count is noted for it; who reads in that moment
  finds nothing, or a text that is half another one.

A note begins at the first whole word behind the text: the count, a float64; a uint16, its length; and so many
bytes of UTF-8, ``key=value`` with a NUL between each two.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from .layout import LABEL_SIZE, SCOPE_BYTES

MOST = 100
"""Characters of a value."""

_LENGTH = struct.Struct("=H")
_COUNT = 8
_HEAD = 8  # of a label: length, flags, ordinal
_END = LABEL_SIZE - 8
"""The last word of a label cell is its thread."""


def start_of(cell: bytes) -> int:
    """Return where in a label cell its note begins."""
    end = _HEAD + min(int(_LENGTH.unpack_from(cell)[0]), SCOPE_BYTES)
    return (end + 7) // 8 * 8


def encode_note(cell: bytes, values: Mapping[str, str]) -> bytes:
    """Return what follows the count of a note in a label cell; b"" if there is no room."""
    room = _END - start_of(cell) - _COUNT - _LENGTH.size
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
    start = start_of(cell) if len(cell) >= LABEL_SIZE else _END
    text_at = start + _COUNT + _LENGTH.size
    if text_at > _END or cell[start : start + _COUNT] != count:
        return {}
    length = _LENGTH.unpack_from(cell, start + _COUNT)[0]
    text = cell[text_at : min(text_at + length, _END)].decode(errors="replace")
    pairs = (pair.partition("=") for pair in text.split("\0") if pair)
    return {key: value for key, _, value in pairs}
