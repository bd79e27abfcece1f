"""The memory of timer tables that are this process's own, and of what may not be this process's any more.

The laws of this file:

* Whatever is armed in scratch, a table that no server reads, finds that a server must be told: its promise
  is NaN, which compares with nothing. So an entry that finds itself in scratch looks for a server. A forked
  child has a copy: what it releases there stays armed in its parent's.
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

from .._core.layout import PROMISE, TABLE_SIZE
from .._core.table import Pool, TimerTable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


def scratch_table(pools: dict[str, Pool] | None = None) -> TimerTable:
    """Return a new table in memory of this process's own."""
    memory = mmap.mmap(-1, TABLE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    table = TimerTable(memory, pools=pools, now=monotonic).prepared()
    table.cells[PROMISE] = nan
    _tables.add(table)
    return table


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


_tables: weakref.WeakSet[TimerTable] = weakref.WeakSet()
_mapped: weakref.WeakSet[TimerTable] = weakref.WeakSet()
_scratch: TimerTable | None = None


def scratch() -> TimerTable:
    """Return the table for entries that nobody watches: there is no server, and the caller goes on."""
    global _scratch
    if _scratch is None:
        _scratch = scratch_table()
    return _scratch


def _after_fork_in_child() -> None:
    for table in list(_tables):
        table.unlock()
    for table in list(_mapped):
        _immortal(table.raw.obj)
        table.abandon(mmap.mmap(-1, TABLE_SIZE))
    _mapped.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def is_open(descriptor: int, inode: int) -> bool:
    """Whether a descriptor is still the file it was."""
    try:
        return descriptor >= 0 and os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


def close(sock: socket.socket, inode: int) -> None:
    """Close a socket of ours, unless its number has become somebody else's."""
    if is_open(sock.fileno(), inode):
        sock.close()
    else:
        sock.detach()


def _immortal(mapping: object) -> None:
    """Keep a mapping that this process does not have (MADV_DONTFORK) from ever being unmapped.

    Its address may by now be another mapping's, which the destructor would unmap in its place.
    """
    import ctypes  # loaded already where there is such a mapping: that process was connected

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(mapping))
