"""The memory of timer tables that are this process's own, and of what may not be this process's any more.

The laws of this file:

* Whatever is armed in scratch, a table that no server reads, finds that a server must be told: its promise
  is NaN, which compares with nothing. So an entry that finds itself in scratch looks for a server. A forked
  child has a copy: what it releases there stays armed in its parent's.
* What nobody reads takes little: address space may be scarce (RLIMIT_AS). Scratch is half a MiB, as all its
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

from .._core.layout import FIRST_COUNT, FIRST_DEADLINE, PROMISE, ROWS_OFFSET, TABLE_SIZE
from .._core.table import Pool, TimerTable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


def _anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def private_table(pools: dict[str, Pool]) -> TimerTable:
    """Return a new table in memory of this process's own, without rows."""
    table = TimerTable(_anonymous(ROWS_OFFSET), pools=pools, now=monotonic).prepared()
    table.cells[PROMISE] = nan
    _private.add(table)
    return table


class Scratch(TimerTable):
    """A table for entries that nobody watches: there is no server, and the caller goes on."""

    def __init__(self) -> None:
        super().__init__(_anonymous(8 * (FIRST_COUNT + 1)), now=monotonic)
        self.cells[PROMISE] = nan

    def pool(self, scope: str, *, observed: bool = False) -> Pool:
        """Return a pool of a scope. It is not kept: a program may have names without end."""
        return Pool(self, scope, observed=observed)

    def take(self, pool: Pool) -> tuple[Pool, int]:
        """Return the slot that all share."""
        return pool, FIRST_DEADLINE


def mapped_table(
    descriptor: int, grow: Callable[[int], None], pools: dict[str, Pool], offset: float
) -> TimerTable:
    """Map the table that a server has made, which a forked child does not have (MADV_DONTFORK).

    Args:
        descriptor: of its file.
        grow: see ``TimerTable``.
        pools: likewise.
        offset: of its clock to ``CLOCK_MONOTONIC`` here.
    """
    mapping = mmap.mmap(descriptor, TABLE_SIZE)
    mapping.madvise(mmap.MADV_DONTFORK)
    now = monotonic if offset == 0.0 else lambda: monotonic() + offset
    table = TimerTable(mapping, grow, pools, now=now, offset=offset)
    _mapped.add(table)
    return table


_private: weakref.WeakSet[TimerTable] = weakref.WeakSet()
_mapped: weakref.WeakSet[TimerTable] = weakref.WeakSet()
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


def _after_fork_in_child() -> None:
    for table in list(_private):
        table.unlock()
    for table in list(_mapped):
        _immortal(table.raw.obj)
        table.abandon(_anonymous(TABLE_SIZE))
    _mapped.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


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
