"""The memory of timer tables that are this process's own, and of what may not be this process's any more.

The laws of this file:

* A process's timers are in a table of its own from the first one on, which a server gets with HELLO.
* Scratch is where entries are when there can be none: nobody will ever read it. Its promise is NaN, which
  compares with nothing, so every entry there finds that a server must be told, and looks for a better place.
  A forked child has a copy of its parent's table for scratch: what it releases there stays armed in that.
* What nobody reads takes little: address space may be scarce (RLIMIT_AS). Scratch is one MiB, as all its
  entries share one slot; a table of a socket-only queue has no rows.
* A program may close every descriptor it finds, and a number may by then be another file's; after a fork,
  an address may be another mapping's. Check, or leave it alone.
"""

from __future__ import annotations

import mmap
import os
import weakref
from math import nan
from time import monotonic
from typing import TYPE_CHECKING

from .._core.layout import (
    FIRST_DEADLINE,
    LABEL_SIZE,
    LABELS_OFFSET,
    PROMISE,
    ROWS_OFFSET,
    TABLE_SIZE,
)
from .._core.table import Pool, TimerTable
from .._linux.forks import in_child

if TYPE_CHECKING:
    import socket


def _anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def private_table(pools: dict[str, Pool]) -> TimerTable:
    """Return a new table in memory of this process's own, without rows."""
    table = TimerTable(_anonymous(ROWS_OFFSET), pools=pools, now=monotonic).prepared()
    table.cells[PROMISE] = nan
    _private.add(table)
    return table


class Scratch(TimerTable):
    """A table for entries that nobody watches: there is no place for another one, or it is not known yet."""

    def __init__(self) -> None:
        super().__init__(_anonymous(LABELS_OFFSET + LABEL_SIZE), now=monotonic)
        self.cells[PROMISE] = nan

    def pool(self, scope: str, *, observed: bool = False) -> Pool:
        """Return a pool of a scope. It is not kept: a program may have names without end."""
        return Pool(self, scope, observed=observed)

    def take(self, pool: Pool) -> tuple[Pool, int]:
        """Return the slot that all share."""
        return pool, FIRST_DEADLINE


_private: weakref.WeakSet[TimerTable] = weakref.WeakSet()
mapped: weakref.WeakSet[TimerTable] = weakref.WeakSet()
"""The tables in files (``mapped_table``): a forked child has none of them."""

scratch = Scratch()


def make_private(table: TimerTable) -> None:
    """Put memory of this process's own in the place of a mapped table: what is stored there reaches nobody.

    So it is from one moment on, whatever other threads are in the middle of. Entries find that they are in
    scratch.
    """
    import ctypes  # loaded already, as below

    mmap_at = ctypes.CDLL(None, use_errno=True).mmap
    mmap_at.restype = ctypes.c_void_p
    mmap_at.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 4]
    address = ctypes.addressof(ctypes.c_char.from_buffer(table.raw))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    if mmap_at(address, TABLE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != address:
        raise OSError(ctypes.get_errno(), "the table's memory cannot be replaced")
    table.cells[PROMISE] = nan


_MAP_FIXED = 0x10
"""Of mmap(2), which replaces what is mapped there; the module has no name for it."""


def _let_go_of_tables() -> None:
    for table in list(_private):
        table.unlock()
    for table in list(mapped):
        _immortal(table.raw.obj)
        table.abandon(_anonymous(TABLE_SIZE))
    mapped.clear()


in_child(_let_go_of_tables)


def identity(file: int | str) -> tuple[int, int]:
    """Return what tells a file, by its descriptor or path, from all others: an inode alone is a device's."""
    found = os.stat(file)
    return found.st_dev, found.st_ino


NO_FILE = (0, 0)
"""The identity of no file."""


def is_open(descriptor: int, file: tuple[int, int]) -> bool:
    """Whether a descriptor is still the file it was, by its identity."""
    try:
        return descriptor >= 0 and identity(descriptor) == file
    except OSError:
        return False


def close(sock: socket.socket, file: tuple[int, int]) -> None:
    """Close a socket of ours, unless its number has become somebody else's."""
    if is_open(sock.fileno(), file):
        sock.close()
    else:
        sock.detach()


def _immortal(mapping: object) -> None:
    """Keep a mapping that this process does not have (MADV_DONTFORK) from ever being unmapped.

    Its address may by now be another mapping's, which the destructor would unmap in its place.
    """
    import ctypes  # loaded already where there is such a mapping: that process was connected

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(mapping))
