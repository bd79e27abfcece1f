"""An inspector: it has evidence gathered; that never delays a kill beyond its budget nor harms the server.

The laws of this file: whatever an inspection does (it raises, it takes too long, it does not even end when it
is cancelled), whoever asked for it goes on when the budget is used up or the worker is dead; few are under
way at a time, so that a storm of expiries does not become a storm of probes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..events import log
from ..evidence import NO_FINDINGS, Findings, Subject, gather

if TYPE_CHECKING:
    from .expiry import Expiry
    from .slices import WorkQueue
    from .worker import Worker

AT_ONCE = max(2, min(8, len(os.sched_getaffinity(0))))
"""Inspections under way at most: one for each processor, from two to eight.

Each starts threads and a helper process. More of them than processors find out no more in the same time; and
a helper that waits for a processor before its ``exec`` holds up the thread that starts it, and the loop too.
"""


def nothing(why: str) -> Findings:
    """Return the findings of whoever found nothing."""
    return NO_FINDINGS._replace(probes={"all": why})


class Inspector:
    """Has evidence gathered, within a budget.

    Args:
        loop: the server's.
        budget: seconds that one inspection may take, the wait for its turn included; 0: none is made.
        queue: where it waits until all that is due has been looked at.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, budget: float, queue: WorkQueue) -> None:
        self.budget = budget
        self._queue = queue
        self._loop = loop
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[Findings]] = set()
        self._inspections: set[asyncio.Task[None]] = set()

    def begin(self, worker: Worker, expiry: Expiry, then: Callable[[], None]) -> None:
        """Begin to find out what a worker is doing; when that is noted, within the budget, call ``then``."""
        until = self._loop.time() + self.budget
        # Not before all that is due has been looked at: threads and helpers keep the loop from it.
        self._queue.put(self._start, worker, expiry, until, then)

    def _start(self, worker: Worker, expiry: Expiry, until: float, then: Callable[[], None]) -> None:
        task = self._loop.create_task(self._inspect(worker, expiry, until, then))
        self._inspections.add(task)
        task.add_done_callback(self._inspections.discard)

    async def _inspect(self, worker: Worker, expiry: Expiry, until: float, then: Callable[[], None]) -> None:
        await self._gather(worker, expiry, until)
        self._queue.do_first(then)  # when the budgets of hundreds end in one moment

    async def _gather(self, worker: Worker, expiry: Expiry, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._turns.acquire()
        except TimeoutError:
            expiry.findings = nothing("too many at once")
            return
        if worker.closed:
            self._turns.release()
            return
        left = min(self.budget, max(0.0, until - self._loop.time()))
        task = self._loop.create_task(gather.gather(_subject(worker, expiry), left))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        awaited: set[asyncio.Future[Any]] = {task, worker.death(self._loop)}
        try:
            await asyncio.wait(awaited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
        if task.done() and not task.cancelled():
            error = task.exception()
            expiry.findings = task.result() if error is None else nothing(f"failed: {type(error).__name__}")
        else:
            died = worker.death(self._loop).done()
            expiry.findings = nothing("it died" if died else f"no answer within {self.budget:g} s")

    def stop(self) -> None:
        """Give up what is under way."""
        for task in (*self._inspections, *self._tasks):
            task.cancel()

    def _done(self, task: asyncio.Task[Findings]) -> None:
        self._tasks.discard(task)
        self._turns.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("evidence could not be gathered", exc_info=error)


def _subject(worker: Worker, expiry: Expiry) -> Subject:
    """Only slots of the worker's own table mean anything to the worker."""
    shared = expiry.table.file.kind == "shared"
    return worker.subject(expiry.timer.name, (expiry.timer.slot,) if shared else ())
