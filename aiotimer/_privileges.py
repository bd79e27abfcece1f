"""What a root daemon may do: little more than its work needs.

The law of this file: what is given up is given up by the thread that calls, and by all that it starts
afterwards; so it is called before there are other threads, and once what only root can set up is there.
"""

from __future__ import annotations

import ctypes
import os
import struct

KEPT = {
    "CAP_CHOWN": 0,  # to note with a table whose process it is about
    "CAP_KILL": 5,  # a worker of root's that has become another user
    "CAP_SETUID": 7,  # to signal another user's process with that user's rights
    "CAP_SYS_PTRACE": 19,  # to see whether a worker still maps its table
}
"""The capabilities that a root daemon keeps, with their numbers (linux/capability.h)."""

_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24


def drop_capabilities() -> None:
    """Give up every capability but :data:`KEPT`, for good. Does nothing unless this is root.

    Raises:
        OSError: the kernel refuses.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _check(libc.capget(header, data))
    # Two halves of 32 capabilities each; of each half the effective, permitted and inheritable ones.
    words = struct.unpack("=6I", data.raw)
    permitted = words[1] | words[4] << 32
    kept = permitted & sum(1 << number for number in KEPT.values())
    if permitted & 1 << 8:  # CAP_SETPCAP: also what a program with capabilities of its own could bring back
        for number in sorted(set(range(64)) - set(KEPT.values())):
            if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
                break  # the kernel knows no more
    low, high = kept & 0xFFFFFFFF, kept >> 32
    _check(libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "capabilities cannot be changed")
