"""Tables in private memory, for timers that no server reads.

The law of this file: everything armed in scratch asks to be told of, because its promise is NaN, which
compares with nothing. So an entry that finds itself in scratch looks for a server.
"""

from __future__ import annotations

import mmap
from math import nan
from time import monotonic

from ._core.layout import PROMISE, TABLE_SIZE
from ._core.table import Pool, TimerTable


def scratch_table(pools: dict[str, Pool] | None = None) -> TimerTable:
    """Return a new table in memory of this process's own."""
    table = TimerTable(mmap.mmap(-1, TABLE_SIZE), pools=pools, now=monotonic)
    table.cells[PROMISE] = nan
    return table


_scratch: TimerTable | None = None


def scratch() -> TimerTable:
    """Return the table for entries that nobody watches: there is no server, and the caller goes on."""
    global _scratch
    if _scratch is None:
        _scratch = scratch_table()
    return _scratch
