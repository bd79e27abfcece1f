"""Descriptors and mappings that may not be ours any more.

A program may close every descriptor it finds, and a number may by then be another file's; after a fork, an
address may be another mapping's. The law of this file: check, or leave it alone.
"""

from __future__ import annotations

import ctypes
import os
import socket


def is_open(descriptor: int, inode: int) -> bool:
    """Whether a descriptor is still the file it was."""
    try:
        return descriptor >= 0 and os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


def close(connection: socket.socket, inode: int) -> None:
    """Close a socket of ours, unless its number has become somebody else's."""
    if is_open(connection.fileno(), inode):
        connection.close()
    else:
        connection.detach()


def immortal(mapping: object) -> None:
    """Keep a mapping that this process does not have (MADV_DONTFORK) from ever being unmapped.

    Its address may by now be another mapping's, which the destructor would unmap in its place.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(mapping))
