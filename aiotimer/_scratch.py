"""Tables in private memory, for timers that no server reads.

The law of this file: everything armed in scratch asks to be told of, because its promise is NaN, which
compares with nothing. So an entry that finds itself in scratch looks for a server. A forked child has a copy:
what it releases there stays armed in its parent's.
"""

from __future__ import annotations

import mmap
import os
import weakref
from math import nan
from time import monotonic

from ._core.layout import PROMISE, TABLE_SIZE
from ._core.table import Pool, TimerTable


def scratch_table(pools: dict[str, Pool] | None = None) -> TimerTable:
    """Return a new table in memory of this process's own."""
    memory = mmap.mmap(-1, TABLE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    table = TimerTable(memory, pools=pools, now=monotonic).prepared()
    table.cells[PROMISE] = nan
    _tables.add(table)
    return table


_tables: weakref.WeakSet[TimerTable] = weakref.WeakSet()
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


os.register_at_fork(after_in_child=_after_fork_in_child)
