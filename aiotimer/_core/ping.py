"""A codec of PING and PONG alone, because that of all messages takes longer to import than Python to start.

The law of this file: these are the bytes of ``wire``, which a test compares. What cannot be read here is not
judged here: the codec reads it.
"""

from __future__ import annotations

import struct

PING = b"\x00\x00\x00\x06\x91\xa4ping"
"""The frame of ``wire.Ping()``."""

_PONG, _FLOAT = b"\x93\xa4pong", b"\xcb"

_INTEGERS = {2: b"\xcc", 3: b"\xcd", 5: b"\xce"}
"""How MessagePack begins an integer of so many bytes; one below 128 stands for itself."""


def read_pong(frame: bytes) -> tuple[int, float] | None:
    """Return ``pid`` and ``lag_s`` of a ``wire.Pong``; None if the frame is none, or not whole."""
    name, number, lag_s = frame[4:10], frame[10:-9], frame[-9:]
    if int.from_bytes(frame[:4], "big") != len(frame) - 4 or name != _PONG or lag_s[:1] != _FLOAT:
        return None
    if len(number) == 1 and number[0] < 0x80:
        pid = number[0]
    elif number and number[:1] == _INTEGERS.get(len(number)):
        pid = int.from_bytes(number[1:], "big")
    else:
        return None
    return pid, struct.unpack(">d", lag_s[1:])[0]
