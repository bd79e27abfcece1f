"""A reaper: it takes an expired timer to a dead worker, or to a spared one.

The laws of this file: the slot is read again just before the first action, and a release that is found there
spares the worker; so does an exec; nothing is awaited in between, and nobody is told before it is done; one
reap of a worker is under way at a time; a reap that did not succeed is tried again, ever more slowly, and one
retry is pending at a time. Whoever is only to be observed is not signalled.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any

from .._core.reader import Timer
from .._core.requests import WorkerId
from .._core.watch import Due
from ..events import Event, log
from ..evidence import Findings
from .expiry import Expiry
from .hold import Holds
from .inspector import Inspector
from .ladder_run import LadderRunner
from .observer import OverdueTracker
from .policy import Breaker, Policy
from .process_state import classified
from .reporter import ExpiryReporter, PathOf, RecordSink
from .watched_table import WatchedTable
from .worker import Worker, drop_after_exec


class Reaper:
    """Deals with the timers that looks have found expired.

    Args:
        loop: the server's.
        reap_worker: how the server's owner reaps a worker.
        emit: takes events.
        policy: how to reap.
        record: takes records of expiries.
        path_of: where they are kept.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reap_worker: Callable[[WorkerId], bool | Awaitable[bool]],
        emit: Callable[[Event], None],
        policy: Policy = Policy(),  # noqa: B008 - it is immutable
        record: RecordSink | None = None,
        path_of: PathOf = lambda _record_id: "",
    ) -> None:
        self._loop = loop
        self._reap_worker = reap_worker
        self._emit = emit
        self._policy = policy
        self._reporter = ExpiryReporter(emit, record, path_of)
        self._inspector = Inspector(loop, policy.evidence_budget)
        self._overdue_tracker = OverdueTracker(loop, self._inspector, self._reporter)
        self._holds = Holds(loop, self.expire, emit)
        self._breaker = Breaker(policy.max_reaps)
        self._ladder_runner = LadderRunner(loop, policy, self._inspector, self._reporter, self.unkillable)
        self._tasks: set[asyncio.Task[None]] = set()
        self._inherited: Findings | None = None

    @property
    def observing(self) -> str:
        """Why this server reaps nobody: ``asked``, ``breaker``; "": it does reap."""
        return "asked" if self._policy.observe else "breaker" if self._breaker.broken else ""

    def expire(self, worker: Worker, table: WatchedTable, due: tuple[Due, ...]) -> None:
        """Timers of a worker have expired: reap it, unless they have been released meanwhile."""
        if worker.killed:
            worker.clear()  # it is dying already
            return
        if worker.has_left(table):
            drop_after_exec(worker, table, self._emit)
            return
        observed: list[tuple[Due, Timer]] = []
        found = self._still_armed(worker, table, due, observed)
        if observed:
            expiries = [self._expiry(worker, table, *one, "observe") for one in observed]
            self._overdue_tracker.track(worker, table, expiries)
        if found is None:
            return
        if worker.reap_under_way or worker.retry_at:
            worker.postponed.append((table, due))
            return
        candidate, timer = found
        if self._policy.stopped == "hold" and self._holds.hold_if_stopped(worker, table, due, timer):
            return
        expiry, worker.failed = worker.failed, None
        if expiry is None or not expiry.is_about(table, candidate):
            if not self._breaker.allows(monotonic()):
                self._break(worker, table, due)
                return
            ladder = str(worker.reap_grant.ladder or self._policy.ladder)
            expiry = self._expiry(worker, table, candidate, timer, ladder)
        worker.postponed.append((table, due))
        self._reap(worker, table, expiry)

    def carry_out_ladder(self, worker: Worker) -> bool | Awaitable[bool]:
        """Reap a worker in the steps of its ladder; see ``TimerServer.reap_worker`` for the result."""
        return self._ladder_runner.carry_out(worker)

    def unkillable(self, worker: Worker) -> None:
        """A worker was sent SIGKILL a while ago, and is still there."""
        self._start(self._report_unkillable(worker))

    def died(self, worker: Worker) -> None:
        """A worker is dead: say so, if that concerns anybody."""
        worker.has_died()
        reported = self._overdue_tracker.died(worker)
        expiry = worker.reaping
        if expiry is not None and not worker.died_first and not expiry.untouched:
            detail = worker.shortfall and f"only the process was signalled: {worker.shortfall}"
            self._reporter.report(expiry, "reaped", "reaped", detail)
        elif expiry is not None:
            self._reporter.report(expiry, "worker_gone", "gone", "by itself, with timers armed")
        elif not reported and any(True for _timer in worker.timers()):
            self._emit(Event("worker_gone", worker.id, worker.name, detail="with timers armed"))

    async def stop(self) -> None:
        """Give up what is under way; the tables tell the next server."""
        await self._overdue_tracker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._inspector.stop()

    # -- what is due -----------------------------------------------------------------------------

    def _still_armed(
        self, worker: Worker, table: WatchedTable, due: tuple[Due, ...], observed: list[tuple[Due, Timer]]
    ) -> tuple[Due, Timer] | None:
        """Read the slots again; return the longest overdue that still holds its deadline.

        Those that nobody is to be signalled for, and that have not been reported, go to ``observed``.
        """
        found = None
        deadlines = table.reader.deadlines()
        for candidate in due:
            armed = candidate.slot < len(deadlines) and deadlines[candidate.slot] == candidate.deadline
            if armed and (found is not None or self._overdue_tracker.knows(table, candidate)):
                continue  # one is enough, and there may be thousands
            timer = table.timer(candidate) if armed else None
            if timer is None:
                late_s = monotonic() - candidate.effective
                detail = "released after its deadline, and before a signal"
                self._emit(Event("late", worker.id, worker.name, "", late_s, detail, "late"))
            elif self._only_observed(worker, timer):
                observed.append((candidate, timer))
            else:
                found = (candidate, timer)
        return found

    def _only_observed(self, worker: Worker, timer: Timer) -> bool:
        return bool(timer.observed or worker.reap_grant.observe or self.observing)

    def _expiry(self, worker: Worker, table: WatchedTable, due: Due, timer: Timer, ladder: str) -> Expiry:
        expiry = Expiry(worker.id, worker.name, table, due, timer, monotonic(), ladder)
        expiry.findings = self._inherited
        return expiry

    def _break(self, worker: Worker, table: WatchedTable, due: tuple[Due, ...]) -> None:
        """There are too many reaps: observe from now on, beginning with these."""
        detail = f"{self._breaker}; until it is started again this server only observes"
        self._emit(Event("breaker", detail=detail))
        armed = tuple(one for one in due if table.reader.deadline(one.slot) == one.deadline)
        self.expire(worker, table, armed)

    # -- the reap --------------------------------------------------------------------------------

    def _reap(self, worker: Worker, table: WatchedTable, expiry: Expiry) -> None:
        table.mark_reaped(monotonic())
        worker.reaping = expiry
        is_first = expiry.kind == "expired"
        try:
            done = self._reap_worker(worker.id)
        except Exception:  # noqa: BLE001 - the owner's code; logged, and it counts as reaped
            log.exception("reap_worker(%s) failed; it counts as reaped", worker.id)
            done = True
        if inspect.isawaitable(done):
            worker.reap_under_way = True
            self._start(self._await_reap(worker, table, done))
        if is_first:
            if self._reporter.recording:
                expiry.look_around(worker.tables)
            self._emit(expiry.event())
        if not inspect.isawaitable(done):
            self._settle(worker, table, bool(done))

    async def _await_reap(self, worker: Worker, table: WatchedTable, done: Awaitable[bool]) -> None:
        try:
            result = await done
        except asyncio.CancelledError:  # this server stops
            if worker.reaping is not None and worker.reaping.untouched and not table.closed:
                table.mark_reaped(0.0)
            raise
        except Exception:  # noqa: BLE001 - as in _reap()
            log.exception("reap_worker(%s) failed; it counts as reaped", worker.id)
            result = True
        worker.reap_under_way = False
        if not worker.closed:
            self._settle(worker, table, bool(result))

    def _settle(self, worker: Worker, table: WatchedTable, done: bool) -> None:
        expiry = worker.reaping
        if done and not worker.spared:
            worker.settle()
            return
        worker.reaping = None
        if not table.closed:
            table.mark_reaped(0.0)
        if worker.spared and expiry is not None:
            worker.spared = False
            detail = "released after its deadline, and before a signal"
            self._reporter.report(expiry, "late", "late", detail)
            self._loop.call_soon(self._go_on_without, worker, expiry)
            return
        worker.failed = expiry
        if not worker.refusal_told:
            detail = worker.refusal or "it will be tried again"
            if expiry is not None:
                self._reporter.report(expiry, "reap_failed", "failed", detail)
            worker.refusal_told = bool(worker.refusal)
        self._loop.call_at(self._loop.time() + worker.back_off(), self._try_again, worker)

    def _go_on_without(self, worker: Worker, spared: Expiry) -> None:
        """A worker was spared for one timer; deal with what expired meanwhile, evidence being at hand."""
        postponed, worker.postponed = worker.postponed, []
        for table, due in postponed:
            rest = tuple(one for one in due if not spared.is_about(table, one))
            if rest and not table.closed:
                self._inherited = spared.findings
                try:
                    self.expire(worker, table, rest)
                finally:
                    self._inherited = None

    def _try_again(self, worker: Worker) -> None:
        worker.retry_at = 0.0
        postponed, worker.postponed = worker.postponed, []
        for table, due in postponed:
            if not table.closed:
                table.watch.reopen(due)
                table.look()

    async def _report_unkillable(self, worker: Worker) -> None:
        why = await classified(worker.id.pid)
        if worker.closed:
            return
        detail = f"SIGKILL was sent, and it is still there: {why}"
        if worker.reaping is None:
            self._emit(Event("unkillable", worker.id, worker.name, detail=detail, outcome="unkillable"))
        else:
            self._reporter.report(worker.reaping, "unkillable", "unkillable", detail)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
