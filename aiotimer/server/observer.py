"""A tracker of overdue timers: those for which nobody is signalled, until they are released after all.

The laws of this file: a timer is reported once; while it is overdue its slot is read often enough that what
is said of its end is right to a hundredth, or a tenth of a second; nothing is written, nobody is signalled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from .._core.watch import Due
from .expiry import Expiry
from .slices import Steps, finish
from .watched_table import WatchedTable
from .worker import Worker

if TYPE_CHECKING:
    from .inspector import Inspector
    from .reporter import Reporter

_FINEST, _SHARE = 0.1, 0.01
"""Seconds, and share of the time overdue, to which the end of an overdue timer is reported."""

_STEP = 64
"""Timers that are looked up before others have a turn."""


class _Overdue:
    """The timers of one table that are overdue, by slot.

    Attributes:
        ended_at: when they were seen to be released.
        asks: about those that are to be asked about as soon as their worker has answered for earlier ones.
    """

    def __init__(self, worker: Worker, table: WatchedTable) -> None:
        self.worker = worker
        self.table = table
        self.expiries: dict[int, Expiry] = {}
        self.ended_at: dict[int, float] = {}
        self.check: asyncio.TimerHandle | None = None
        self.asks: list[Expiry] = []
        self.is_asked = False


class OverdueTracker:
    """Tracks what is overdue: reports what was found out about it, and when it ended."""

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
        self._check_in(overdue, _FINEST)
        for expiry in expiries:
            self._reporter.begin(expiry, worker.tables)
        if self._inspector.budget:
            overdue.asks += expiries
            self._ask(overdue)
        else:
            finish(self._report(expiries))

    def _ask(self, overdue: _Overdue) -> None:
        """Have evidence gathered once for all that have expired so far."""
        if overdue.asks and not overdue.is_asked:
            expiries, overdue.asks = overdue.asks, []
            overdue.is_asked = True
            self._inspector.begin(overdue.worker, expiries[0], partial(self._answered, overdue, expiries))

    def _answered(self, overdue: _Overdue, expiries: list[Expiry]) -> Steps[None]:
        overdue.is_asked = False
        yield from self._report(expiries)
        if self._overdue.get(overdue.table) is overdue:
            self._ask(overdue)

    def _report(self, expiries: list[Expiry]) -> Steps[None]:
        for number, expiry in enumerate(expiries, 1):
            if expiry.outcome == "pending":
                expiry.findings = expiries[0].findings
                self._reporter.report(expiry, "observed", "observed")
            if number % _STEP == 0:
                yield
                while self._reporter.queue.crowded:
                    yield

    def _check_in(self, overdue: _Overdue, seconds: float) -> None:
        if overdue.check is None:
            check = partial(self._check, overdue)
            overdue.check = self._loop.call_later(seconds, lambda: self._reporter.queue.take_turn(check()))

    def _check(self, overdue: _Overdue) -> Steps[None]:
        """Read the slots; report what has ended."""
        if self._overdue.get(overdue.table) is not overdue:
            return
        now, youngest = self._clock(), -inf
        deadlines = overdue.table.reader.deadlines()
        for number, (slot, expiry) in enumerate(list(overdue.expiries.items()), 1):
            if number % _STEP == 0:
                yield
            if overdue.expiries.get(slot) is not expiry:
                continue  # meanwhile
            youngest = max(youngest, expiry.due.effective)
            if slot >= len(deadlines) or deadlines[slot] != expiry.due.deadline:
                overdue.ended_at.setdefault(slot, now)
            if slot in overdue.ended_at and expiry.outcome != "pending":  # it is reported in order
                del overdue.expiries[slot]
                self._end(expiry, overdue.ended_at.pop(slot))
        if self._overdue.get(overdue.table) is not overdue:
            return
        overdue.check = None
        if overdue.expiries:
            self._check_in(overdue, max(_FINEST, (now - youngest) * _SHARE))
        else:
            del self._overdue[overdue.table]

    def _end(self, expiry: Expiry, at: float) -> None:
        if expiry.outcome == "pending":
            self._reporter.report(expiry, "observed", "observed")
        after = max(0.0, at - expiry.due.effective)
        self._reporter.report(expiry, "finished", "finished", f"finished {after:.1f} s after its limit")

    def died(self, worker: Worker) -> bool:
        """A worker is dead; return whether anything of it was overdue, which is reported then."""
        still = [table for table in worker.tables if self._gone(worker, table, "")]
        return bool(still)

    def removed(self, table: WatchedTable) -> None:
        """A table is about to be removed: its process has left, or runs another program, or is at its end."""
        overdue = self._overdue.get(table)
        if overdue is not None:
            self._gone(overdue.worker, table, "it left its timers ")

    def _gone(self, worker: Worker, table: WatchedTable, how: str) -> bool:
        """Report what was overdue in a table, while it can be read; return whether anything still is."""
        overdue = self._overdue.pop(table, None)
        if overdue is None:
            return False
        if overdue.check is not None:
            overdue.check.cancel()
        now, deadlines = self._clock(), table.reader.deadlines()
        left = {s for s, e in overdue.expiries.items() if e.due.deadline in deadlines[s : s + 1]}
        for slot in overdue.expiries.keys() - left:  # it was released just before
            self._end(overdue.expiries.pop(slot), overdue.ended_at.get(slot, now))
        self._reporter.queue.put(worker.id, self._report_gone, list(overdue.expiries.values()), now, how)
        return bool(left)

    def _report_gone(self, expiries: list[Expiry], at: float, how: str) -> Steps[None]:
        for expiry in expiries:
            after = max(0.0, at - expiry.due.effective)
            self._reporter.report(expiry, "worker_gone", "gone", f"{how}{after:.1f} s after its limit")
            yield

    def stop(self) -> None:
        """Give up what is under way. The next server reports again what is still overdue."""
        for overdue in self._overdue.values():
            if overdue.check is not None:
                overdue.check.cancel()
        self._overdue.clear()
