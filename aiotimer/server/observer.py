"""A tracker of overdue timers: those for which nobody is signalled, until they are released after all.

The laws of this file: a timer is reported once; while it is overdue its slot is read often enough that what
is said of its end is right to a hundredth, or a tenth of a second; nothing is written, nobody is signalled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from .._core.watch import Due
from .expiry import Expiry
from .watched_table import WatchedTable
from .worker import Worker

if TYPE_CHECKING:
    from .inspector import Inspector
    from .reporter import Reporter

_FINEST, _SHARE = 0.1, 0.01
"""Seconds, and share of the time overdue, to which the end of an overdue timer is reported."""


class _Overdue:
    """The timers of one table that are overdue, by slot, and when they were seen to be released."""

    def __init__(self, worker: Worker, table: WatchedTable) -> None:
        self.worker = worker
        self.table = table
        self.expiries: dict[int, Expiry] = {}
        self.ended_at: dict[int, float] = {}
        self.check: asyncio.TimerHandle | None = None

    def look(self, now: float, *, last: bool = False) -> list[Expiry]:
        """Read the slots; return those whose end can be reported, which are forgotten.

        Args:
            now: the present.
            last: whether there is no later time to report it, after what is still being found out.
        """
        deadlines = self.table.reader.deadlines()
        ended = []
        for slot, expiry in list(self.expiries.items()):
            if slot >= len(deadlines) or deadlines[slot] != expiry.due.deadline:
                self.ended_at.setdefault(slot, now)
            if slot in self.ended_at and (last or expiry.outcome != "pending"):  # it is reported in order
                ended.append(self.expiries.pop(slot))
        return ended

    def next_in(self, now: float) -> float:
        """Return after how many seconds to look again."""
        youngest = max(expiry.due.effective for expiry in self.expiries.values())
        return max(_FINEST, (now - youngest) * _SHARE)


class OverdueTracker:
    """Tracks what is overdue: reports what was found out about it, and when it ended.

    Args:
        loop: the server's.
        inspector: has evidence gathered.
        reporter: reports what becomes of it.
        clock: ``CLOCK_MONOTONIC`` seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inspector: Inspector,
        reporter: Reporter,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._loop = loop
        self._inspector = inspector
        self._reporter = reporter
        self._overdue: dict[WatchedTable, _Overdue] = {}

    def knows(self, table: WatchedTable, due: Due) -> bool:
        """Whether a timer has been reported."""
        overdue = self._overdue.get(table)
        expiry = None if overdue is None else overdue.expiries.get(due.slot)
        return expiry is not None and expiry.is_about(table, due)

    def track(self, worker: Worker, table: WatchedTable, expiries: list[Expiry]) -> None:
        """Timers have expired, and nobody is to be signalled."""
        overdue = self._overdue.setdefault(table, _Overdue(worker, table))
        for expiry in expiries:
            before = overdue.expiries.pop(expiry.due.slot, None)
            if before is not None:  # it was re-armed, and has expired again, between two looks
                self._end(before, overdue.ended_at.pop(expiry.due.slot, self._clock()))
            overdue.expiries[expiry.due.slot] = expiry
        if overdue.check is None:
            overdue.check = self._loop.call_later(_FINEST, self._check, overdue)
        for expiry in expiries:
            self._reporter.begin(expiry, worker.tables)
        if self._inspector.budget:
            self._inspector.begin(worker, expiries[0], partial(self._report, expiries))
        else:
            self._report(expiries)

    def _report(self, expiries: list[Expiry]) -> None:
        for expiry in expiries:
            if expiry.outcome == "pending":
                expiry.findings = expiries[0].findings
                self._reporter.report(expiry, "observed", "observed")

    def _check(self, overdue: _Overdue) -> None:
        now = self._clock()
        overdue.check = None
        for expiry in overdue.look(now):
            self._end(expiry, overdue.ended_at.pop(expiry.due.slot))
        if overdue.expiries:
            overdue.check = self._loop.call_later(overdue.next_in(now), self._check, overdue)
        else:
            self._overdue.pop(overdue.table, None)

    def _end(self, expiry: Expiry, at: float) -> None:
        if expiry.outcome == "pending":
            self._reporter.report(expiry, "observed", "observed")
        after = max(0.0, at - expiry.due.effective)
        if expiry.table.closed:
            self._reporter.report(
                expiry, "worker_gone", "gone", f"it left its timers {after:.1f} s after the limit"
            )
        else:
            self._reporter.report(expiry, "finished", "finished", f"finished {after:.1f} s after its limit")

    def died(self, worker: Worker) -> bool:
        """A worker is dead; return whether anything of it was overdue, which has been reported then."""
        reported = False
        for table in worker.tables:
            overdue = self._overdue.pop(table, None)
            if overdue is None:
                continue
            if overdue.check is not None:
                overdue.check.cancel()
            now = self._clock()
            for expiry in overdue.look(now, last=True):  # it was released just before
                self._end(expiry, overdue.ended_at[expiry.due.slot])
            for expiry in overdue.expiries.values():
                after = max(0.0, now - expiry.due.effective)
                self._reporter.report(expiry, "worker_gone", "gone", f"{after:.1f} s after its limit")
                reported = True
        return reported

    def stop(self) -> None:
        """Give up what is under way. The next server reports again what is still overdue."""
        for overdue in self._overdue.values():
            if overdue.check is not None:
                overdue.check.cancel()
        self._overdue.clear()
