"""Holds: workers that are left alone because they are stopped or in a debugger.

The laws of this file: a hold lasts as long as the worker cannot run, and ten seconds more for it to leave its
block; a hold is reported once; no descriptor tells when a process goes on, so it is looked at every second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from .._core.reader import Timer
from ..events import Event
from .process_state import why_stopped
from .worker import Worker

if TYPE_CHECKING:
    from .._core.watch import Due
    from .watched_table import WatchedTable

LOOKED_AT_EVERY = 1.0
"""Seconds between two looks at a worker on hold."""

TO_LEAVE = 10.0
"""Seconds that a worker has to leave its block when it runs again."""


class Holds:
    """The holds of a server.

    Args:
        loop: the server's.
        expire: called with a worker, a table and what has expired, when the hold is over.
        emit: takes events.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        expire: Callable[[Worker, WatchedTable, tuple[Due, ...]], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._loop = loop
        self._expire = expire
        self._emit = emit

    def hold_if_stopped(
        self, worker: Worker, table: WatchedTable, due: tuple[Due, ...], timer: Timer
    ) -> bool:
        """Hold a worker that cannot run; return whether it is on hold, and will be dealt with later."""
        if not worker.on_hold:
            why = why_stopped(worker.id.pid)
            if not why:
                return False
            self._emit(Event("held", worker.id, worker.name, timer.name, detail=why))
            self._loop.call_later(LOOKED_AT_EVERY, self._look, worker)
        worker.on_hold.append((table, due))
        return True

    def _look(self, worker: Worker) -> None:
        if worker.closed:
            return
        if why_stopped(worker.id.pid):
            self._loop.call_later(LOOKED_AT_EVERY, self._look, worker)
        else:
            self._loop.call_later(TO_LEAVE, self._end, worker)

    def _end(self, worker: Worker) -> None:
        if worker.closed or why_stopped(worker.id.pid):
            self._look(worker)
            return
        waiting, worker.on_hold = worker.on_hold, []
        for table, due in waiting:
            if not table.closed:
                self._expire(worker, table, due)
