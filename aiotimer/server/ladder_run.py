"""A runner of ladders: what ``_core.ladder`` says is to be done is done to a worker.

The laws of this file:

* Nothing is awaited before the first action: a ladder that begins with a signal has sent it when
  :meth:`LadderRunner.carry_out` returns.
* The slot is read again just before the first signal, however long the evidence took; an exec is looked for.
* Between two steps only two things are waited for: the end of the grace, and the worker's death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING

from .._core.ladder import CONT, Done, Dump, LadderRun, Spare, WaitUntil
from .worker import Worker, drop_after_exec

if TYPE_CHECKING:
    from .inspector import Inspector
    from .policy import Policy
    from .reporter import ExpiryReporter

_LEAST = 0.001
"""Seconds: uvloop rounds to whole milliseconds, and may be early by half of one."""


class LadderRunner:
    """Carries out the ladders of workers.

    Args:
        loop: the server's.
        policy: the server's.
        inspector: has evidence gathered.
        reporter: records it.
        on_unkillable: called with a worker that is still there a while after SIGKILL.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        policy: Policy,
        inspector: Inspector,
        reporter: ExpiryReporter,
        on_unkillable: Callable[[Worker], None],
    ) -> None:
        self._loop = loop
        self._policy = policy
        self._inspector = inspector
        self._reporter = reporter
        self._on_unkillable = on_unkillable

    def carry_out(self, worker: Worker) -> bool | Awaitable[bool]:
        """Carry out the ladder of a worker; what comes after the first wait is a coroutine.

        Returns:
            True: it is dead, or dying, or spared. False: the kernel does not let it be signalled.
        """
        run = LadderRun(worker.reap_grant.ladder or self._policy.ladder)
        expiry = worker.reaping
        # A run that begins again finds the evidence of the first one.
        gathered = not self._inspector.budget or expiry is None or expiry.findings is not None
        action = self._act(worker, run, gathered=gathered)
        if isinstance(action, bool):
            return action
        if expiry is not None:
            expiry.untouched = not run.signalled
        return self._go_on(worker, run, action)

    async def _go_on(self, worker: Worker, run: LadderRun, action: bool | Dump | WaitUntil) -> bool:
        expiry = worker.reaping
        while not isinstance(action, bool):
            if isinstance(action, WaitUntil):
                left = max(_LEAST, action.when - monotonic())
                await asyncio.wait({worker.death(self._loop)}, timeout=left)
            elif expiry is not None:
                await self._inspector.gather(worker, expiry)
                self._reporter.record(expiry)
                if not worker.closed and not expiry.table.closed and worker.has_left(expiry.table):
                    drop_after_exec(worker, expiry.table, self._reporter.emit)
            action = self._act(worker, run, gathered=True)
        return action

    def _act(self, worker: Worker, run: LadderRun, *, gathered: bool) -> bool | Dump | WaitUntil:
        """Take every step that nothing is to be waited for before; return what is, or how it ended."""
        expiry = worker.reaping
        while True:
            now = monotonic()
            released = expiry is not None and not run.signalled and not expiry.is_armed()
            action = run.next(now, dead=worker.closed, released=released, gathered=gathered)
            if isinstance(action, Dump | WaitUntil):
                return action
            if isinstance(action, Spare | Done):
                worker.spared = isinstance(action, Spare)
                return True
            if not worker.send(action.number, self._policy.target, self._on_unkillable):
                return False
            if expiry is not None and not worker.died_first:
                expiry.signalled(action.number, now)
            if action.with_cont:
                worker.send(CONT, self._policy.target)
