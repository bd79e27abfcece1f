"""Workers that cannot run, and are not reaped for it: stopped ones, and those in a debugger.

The laws of this file: a worker is held as long as it cannot run, and gets ten seconds to leave its block when
it can again; it is told once; no descriptor tells when a process goes on, so it is looked at every second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from .._core.reader import Timer
from ..events import Event
from .process_state import held
from .worker import Worker

if TYPE_CHECKING:
    from .._core.watch import Due
    from .watched_table import WatchedTable

LOOKED_AT_EVERY = 1.0
"""Seconds between two looks at a worker that is held."""

TO_LEAVE = 10.0
"""Seconds that a worker has to leave its block when it runs again."""


class Holder:
    """Holds workers.

    Args:
        loop: the server's.
        expire: called with a worker, a table and what has expired, when it is not held any more.
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

    def holds(self, worker: Worker, table: WatchedTable, due: tuple[Due, ...], timer: Timer) -> bool:
        """Whether a worker is not to be reaped now. What has expired is dealt with later."""
        if not worker.held:
            why = held(worker.id.pid)
            if not why:
                return False
            self._emit(Event("held", worker.id, worker.name, timer.name, detail=why))
            self._loop.call_later(LOOKED_AT_EVERY, self._look, worker)
        worker.held.append((table, due))
        return True

    def _look(self, worker: Worker) -> None:
        if worker.closed:
            return
        if held(worker.id.pid):
            self._loop.call_later(LOOKED_AT_EVERY, self._look, worker)
        else:
            self._loop.call_later(TO_LEAVE, self._let_go, worker)

    def _let_go(self, worker: Worker) -> None:
        if worker.closed or held(worker.id.pid):
            self._look(worker)
            return
        waiting, worker.held = worker.held, []
        for table, due in waiting:
            if not table.closed:
                self._expire(worker, table, due)
