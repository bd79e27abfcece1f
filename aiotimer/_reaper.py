"""From an expired timer to a dead worker.

The laws of this file: the slot is read again just before the first action, and a release that is found there
spares the worker; so does an exec; nothing is awaited in between; one reap of a worker is under way at a
time; a reap that did not succeed is tried again, ever more slowly, and one retry is pending at a time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from time import monotonic

from ._core.reader import Timer
from ._core.requests import WorkerId
from ._core.watch import Due
from ._watched import WatchedTable
from ._worker import Reaping, Worker, leave_behind
from .events import Event, log


class Reaper:
    """Carries out what looks decide.

    Args:
        loop: the server's.
        reap_worker: the owner's way to reap a worker.
        emit: takes events.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reap_worker: Callable[[WorkerId], bool | Awaitable[bool]],
        emit: Callable[[Event], None],
    ) -> None:
        self._loop = loop
        self._reap_worker = reap_worker
        self._emit = emit
        self._tasks: set[asyncio.Task[None]] = set()

    def expire(self, worker: Worker, table: WatchedTable, due: tuple[Due, ...]) -> None:
        """Timers of a worker have expired: reap it, unless they have been released meanwhile."""
        if worker.killed:
            worker.clear()  # it is dying already
            return
        if worker.has_left(table):
            leave_behind(worker, table, self._emit)
            return
        found = self._still_armed(worker, table, due)
        if found is None:
            return
        if worker.reap_under_way or worker.retry_at:
            worker.postponed.append((table, due))
            return
        worker.postponed.append((table, due))
        table.mark_reaped(monotonic())
        candidate, timer = found
        worker.reaping = Reaping(timer, monotonic() - candidate.effective)
        try:
            done = self._reap_worker(worker.id)
        except Exception:  # noqa: BLE001 - the owner's code; logged, and it counts as reaped
            log.exception("reap_worker(%s) failed; it counts as reaped", worker.id)
            done = True
        if inspect.isawaitable(done):
            worker.reap_under_way = True
            task = self._loop.create_task(self._await_reap(worker, table, done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._settle(worker, table, bool(done))

    def unkillable(self, worker: Worker) -> None:
        """A worker was sent SIGKILL a while ago, and is still there."""
        scope = worker.reaping.timer.name if worker.reaping else ""
        detail = "SIGKILL was sent, and it is still there"
        self._emit(Event("unkillable", worker.id, worker.name, scope, detail=detail))

    def died(self, worker: Worker) -> None:
        """A worker is dead: say so, if that concerns anybody."""
        if worker.reaping is not None and not worker.died_first:
            timer, late_s = worker.reaping
            self._emit(Event("reaped", worker.id, worker.name, timer.name, late_s))
        elif worker.died_first or any(True for _timer in worker.timers()):
            self._emit(Event("worker_gone", worker.id, worker.name, detail="with timers armed"))

    async def stop(self) -> None:
        """Give up what is under way; the tables tell the next server."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _still_armed(
        self, worker: Worker, table: WatchedTable, due: tuple[Due, ...]
    ) -> tuple[Due, Timer] | None:
        """Read the slots again; return the longest overdue that still holds its deadline."""
        found = None
        deadlines = table.reader.deadlines()
        for candidate in due:
            held = candidate.slot < len(deadlines) and deadlines[candidate.slot] == candidate.deadline
            if held and found is not None:
                continue  # one is enough, and there may be thousands
            timer = table.timer(candidate) if held else None
            if timer is None:
                late_s = monotonic() - candidate.effective
                detail = "released after its deadline, and before a signal"
                self._emit(Event("late", worker.id, worker.name, late_s=late_s, detail=detail))
            elif found is None:
                found = (candidate, timer)
        return found

    async def _await_reap(self, worker: Worker, table: WatchedTable, done: Awaitable[bool]) -> None:
        try:
            result = await done
        except Exception:  # noqa: BLE001 - as in expire()
            log.exception("reap_worker(%s) failed; it counts as reaped", worker.id)
            result = True
        worker.reap_under_way = False
        if not worker.closed:
            self._settle(worker, table, bool(result))

    def _settle(self, worker: Worker, table: WatchedTable, done: bool) -> None:
        if done:
            worker.settle()
            return
        worker.reaping = None
        if not table.closed:
            table.mark_reaped(0.0)
        if not worker.refusal_told:
            detail = worker.refusal or "it will be tried again"
            self._emit(Event("reap_failed", worker.id, worker.name, detail=detail))
            worker.refusal_told = bool(worker.refusal)
        self._loop.call_at(self._loop.time() + worker.back_off(), self._try_again, worker)

    def _try_again(self, worker: Worker) -> None:
        worker.retry_at = 0.0
        postponed, worker.postponed = worker.postponed, []
        for table, due in postponed:
            if not table.closed:
                table.watch.reopen(due)
                table.look()
