"""Timer tables in memory, and clients over them whose server is the test.

The law of this file: nothing here starts a thread, opens a socket or reads a file; what ``expires`` and
``acquire`` do to a table is all there is.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import cast

import aiotimer
from aiotimer._core import layout
from aiotimer._core.reader import Read, TableReader, Timer
from aiotimer._core.table import TimerTable
from aiotimer._linux.table_files import TableFile
from aiotimer.client.connection import ClientConnection
from tests.fakes.clock import PATIENCE


def memory_table(
    promise: float = inf,
    *,
    now: Callable[[], float] = monotonic,
    grow: Callable[[int], None] = lambda _slots: None,
) -> TimerTable:
    """Return a table in anonymous memory, as a server that has promised ``promise`` would hand it out.

    Args:
        promise: when the server looks next: ``inf`` makes everything ring, 0.0 makes it a late one.
        now: the table's clock; a virtual one for tests of time.
        grow: makes memory for more slots; here there is always enough.
    """
    table = TimerTable(mmap.mmap(-1, layout.TABLE_SIZE), grow, now=now)
    table.cells[layout.PROMISE] = promise
    return table


def reading(table: TimerTable) -> Read:
    """Return how to read a table from outside: ``read(size, offset)``, cut off at its end like ``pread``."""
    raw = table.raw
    return lambda size, offset: bytes(raw[offset : offset + size])


class MemoryFile(TableFile):
    """The file of a table in memory, for a server's side of it.

    Args:
        table: the worker's side.
    """

    __slots__ = ("raw",)

    def __init__(self, table: TimerTable) -> None:
        super().__init__(0, None, 1, "shared")
        self.raw = table.raw

    def read(self, size: int, offset: int) -> bytes:
        """Return what is there, unless it is closed."""
        return b"" if self.descriptor < 0 else bytes(self.raw[offset : offset + size])

    def write(self, data: bytes, offset: int) -> None:
        """Store it."""
        if self.descriptor < 0:
            raise OSError("closed")
        self.raw[offset : offset + len(data)] = data

    def close(self) -> None:
        """Read as empty from now on."""
        self.descriptor = -1


def acquisitions_of(table: TimerTable) -> int:
    """Return how many timers have been armed in a table since it was made."""
    counts = table.cells[layout.FIRST_COUNT : layout.FIRST_COUNT + table.high_water]
    return int(table.cells[layout.RETIRED] + sum(counts))


def timers_of(table: TimerTable) -> list[Timer]:
    """Return what is armed in a table, soonest first, as a server reads it."""
    return TableReader(reading(table)).timers()


def names_of(table: TimerTable) -> list[str]:
    """Return the names of what is armed in a table, in alphabetical order."""
    return sorted(timer.name for timer in timers_of(table))


class MemoryConnection(ClientConnection):
    """A connection whose table is in memory, and whose server is the test.

    Attributes:
        rings: the deadlines that were rung, in order.
    """

    def __init__(self, table: TimerTable) -> None:
        super().__init__("/nowhere")
        table.pools = self.pools
        self.table = self.watched = table
        self.connected = True
        self.next_channel_attempt = inf  # nobody asks
        self.rings: list[float] = []

    def ring(self, deadline: float) -> bool:
        """Record it, as a ring that was sent."""
        assert self.table is not None
        looks = self.table.looks()
        self.rings.append(deadline)
        self.table.rang(looks, self.table.now())
        return True


class MemoryClient(aiotimer.TimerClient):
    """A client of a :class:`MemoryConnection`: what ``expires`` and ``acquire`` do to a table, no more.

    Args:
        table: where its timers are.
        connection: to that table; by default one with a shared table.
    """

    __slots__ = ()

    def __init__(self, table: TimerTable, connection: MemoryConnection | None = None) -> None:
        self._connection = MemoryConnection(table) if connection is None else connection
        self._hook = None
        self._closed = False
        self.pools, self.sites = self._connection.pools, self._connection.sites
        self.unavailable = "raise"
        self.budget = PATIENCE

    @property
    def table(self) -> TimerTable:
        """Where its timers are."""
        assert self._connection.table is not None
        return self._connection.table

    @property
    def rings(self) -> list[float]:
        """The deadlines that were rung, in order."""
        return cast(MemoryConnection, self._connection).rings
