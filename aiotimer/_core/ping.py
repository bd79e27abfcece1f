"""A codec of PING and PONG alone, because that of all messages takes longer to import than Python to start.

The law of this file: these are the bytes of ``wire``, which a test compares. What cannot be read here is not
judged here: the codec reads it.
"""

from __future__ import annotations

import struct

PING = b"\x00\x00\x00\x06\x91\xa4ping"
"""The frame of ``wire.Ping()``."""

_PONG = b"\x93\xa4pong"
_FLOAT = b"\xcb"

_INTEGERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I"}
"""How MessagePack says of what size an integer is; one below 128 stands for itself."""


def read_pong(frame: bytes) -> tuple[int, float] | None:
    """Return ``pid`` and ``lag_s`` of a ``wire.Pong``; None if the frame is none, or not whole."""
    length, body = frame[:4], frame[4:]
    if len(body) <= len(_PONG) or int.from_bytes(length, "big") != len(body) or not body.startswith(_PONG):
        return None
    first, rest = body[len(_PONG)], body[len(_PONG) + 1 :]
    layout = _INTEGERS.get(first)
    if layout is not None:
        size = struct.calcsize(layout)
        number, rest = rest[:size], rest[size:]
        if len(number) < size:
            return None
        (pid,) = struct.unpack(layout, number)
    elif first < 0x80:
        pid = first
    else:
        return None
    if rest[:1] != _FLOAT or len(rest) != 9:
        return None
    (lag_s,) = struct.unpack(">d", rest[1:])
    return pid, lag_s
