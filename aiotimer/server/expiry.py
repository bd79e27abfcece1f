"""An expiry, from the first action to its end: its record, and the events that report it.

The laws of this file: what a worker stored is untrusted, and what cannot be right is unknown. Wall time is
for people; what is compared is ``CLOCK_MONOTONIC``.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple, Self

from .._core.durations import DEADLINE, Durations
from .._core.ladder import KILL, name_of
from .._core.reader import Ran, Timer
from .._core.requests import WorkerId
from .._core.watch import Due
from ..events import Event, Kind
from ..evidence import NO_FINDINGS, Findings
from ..evidence.record import Record
from .slices import Steps
from .watched_table import WatchedTable

MAX_TIMERS = 100
"""Timers that a record lists."""

MAX_SLOTS = 1024
"""Slots whose durations are read."""

_serial = itertools.count(1)


class Entry(NamedTuple):
    """What a table tells of one entry into a block.

    Attributes:
        limit_s: the limit of the block, None if that is not known.
        entered: when it was entered, on the table's clock.
        exact: both are this entry's own, and not concluded from another one's.
        first: the limit is what it is because the entry is one of the first of its scope.
    """

    limit_s: float | None = None
    entered: float | None = None
    exact: bool = False
    first: bool = False


NO_ENTRY = Entry()


def entry_of(table: WatchedTable, timer: Timer) -> Entry:
    """Return what a worker noted when it entered the block of a timer."""
    row = table.reader.row(timer.slot)
    return entry(row, timer.deadline) if len(row) > DEADLINE else NO_ENTRY


def entry(row: Sequence[float], deadline: float) -> Entry:
    """Return what the first words of a slot's row tell of the entry with this deadline.

    They are when the last sampled entry was, its limit, and its deadline. Another entry through the same slot
    most likely has the same limit, unless that was one of a first entry.
    """
    entered, limit, noted_for = row[:3]
    if noted_for == deadline and 0.0 < entered < inf and 0.0 < abs(limit) < inf:
        return Entry(abs(limit), entered, exact=True, first=limit < 0.0)
    return Entry(limit, deadline - limit) if 0.0 < limit < inf else NO_ENTRY


class LookAround:
    """What is armed on a worker, and how long its blocks took: read once for all of its expiries of a moment.

    Attributes:
        at: when it was made.
        armed: the soonest timers of each table.
    """

    def __init__(self, tables: Iterable[WatchedTable], now: float) -> None:
        self.at = now
        self.armed: list[tuple[WatchedTable, Timer]] = []
        self._tables = [table for table in tables if not table.closed]
        self._runs: dict[tuple[WatchedTable, str], dict[str, Any]] = {}
        self._told: dict[tuple[WatchedTable, int], dict[str, Any]] = {}

    def read(self) -> Steps[Self]:
        """Read the tables; return this look-around."""
        for table in self._tables:
            for batch in table.batches(MAX_TIMERS):
                self.armed += [(table, timer) for timer in batch]
                yield
            ran = yield from table.reader.durations(MAX_SLOTS)
            for scope, its in ran.items():
                self._runs[table, scope] = _as_json(its)
                yield
        for table, timer in self.armed[:MAX_TIMERS]:
            self._told[table, timer.slot] = self._tell(table, timer)
            yield
        return self

    def timers(self, first: Sequence[tuple[WatchedTable, Timer]] = ()) -> list[dict[str, Any]]:
        """Return what a record says of timers: of these, and of others that are armed."""
        left_out = {(table, timer.slot) for table, timer in first}
        listed = [self._tell(*one) for one in first]
        for table, timer in self.armed:
            if len(listed) == MAX_TIMERS:
                break
            if (table, timer.slot) not in left_out:
                listed.append(self._told.get((table, timer.slot)) or self._tell(table, timer))
        return listed

    def _tell(self, table: WatchedTable, timer: Timer) -> dict[str, Any]:
        return {
            "scope": timer.name,
            "remaining_s": timer.deadline - self.at,
            "limit_s": entry_of(table, timer).limit_s,
            "expired": timer.deadline <= self.at,
            "observed": timer.observed,
            "ran": self._runs.get((table, timer.scope), _NEVER_RAN),
            "note": table.reader.note(timer.slot),
        }


def _as_json(ran: Ran) -> dict[str, Any]:
    took = ran.durations
    known = took.count > 0
    return {
        "count": ran.count,
        "sampled": took.count,
        "median_s": took.quantile(0.5) if known else None,
        "p99_s": took.quantile(0.99) if known else None,
        "max_s": took.maximum if known else None,
    }


_NEVER_RAN = _as_json(Ran(0, Durations()))


def record_id(wall: float, pid: int) -> str:
    """Return the name of a new record: UTC, the worker's pid, and a number that no other one here has."""
    utc = time.strftime("%Y%m%dT%H%M%S", time.gmtime(wall))
    return f"{utc}-{pid}-{next(_serial)}"


def run_id(wall: float) -> str:
    """Return the name of a new record of a run, as :func:`record_id` that of an expiry."""
    utc = time.strftime("%Y%m%dT%H%M%S", time.gmtime(wall))
    return f"{utc}-run-{next(_serial)}"


def outlived(sent: Sequence[tuple[int, float]], process: Mapping[str, Any]) -> str:
    """Say why the last signal before SIGKILL may not have ended a worker, "" if that is not known.

    Whether a handler in Python was called cannot be seen from outside: that is done when C code returns, or
    when it asks for it.

    Args:
        sent: the numbers of the signals, each with when it was sent, on one clock.
        process: the worker, as ``evidence/proc.py`` reads it.
    """
    killed_at = next((at for number, at in sent if number == KILL), None)
    before = [(number, at) for number, at in sent if number != KILL]
    if killed_at is None or not before:
        return ""
    number, at = before[-1]
    if process.get("ignored", 0) >> number - 1 & 1:
        return f"{name_of(number)} is ignored by it"
    if process.get("caught", 0) >> number - 1 & 1:
        took = f"did not end it within {killed_at - at:.1f} s"
        return f"{name_of(number)} was caught, and {took}: a handler in Python waits for C code to return"
    return ""


class Expiry:
    """One expiry, from the first action on.

    Args:
        now: when the first action is taken.
        ladder: what is about to happen, as text.

    Attributes:
        late_s: seconds between the deadline and the first action.
        findings: what was found out, None as long as that is nothing.
        woken: the worker was sent its dump signal, which may have ended the call that it was in. That it is
            released after that does not spare the worker.
        kills_next: SIGKILL is what comes when that is known; never of an expiry that is only observed.
        evidence: the directory with what was found out, "" if there is none.
        run: of which run its worker is a member, "" if it is of none.
    """

    def __init__(
        self,
        worker_id: WorkerId,
        name: str,
        table: WatchedTable,
        due: Due,
        timer: Timer,
        now: float,
        ladder: str,
    ) -> None:
        self.worker_id = worker_id
        self.name = name
        self.table = table
        self.due = due
        self.timer = timer
        self.late_s = now - due.effective
        self.findings: Findings | None = None
        self.kills_next = self.woken = False
        self.kind: Kind = "expired"
        self.outcome = "pending"
        self.detail = ""
        self.evidence = self.run = ""
        self._began = now
        self._wall = time.time()  # noqa: TID251 - for people
        self._ladder = ladder
        self._signals: list[dict[str, Any]] = []
        self._sent: list[tuple[int, float]] = []
        self._timers: list[dict[str, Any]] = []
        self._entry = NO_ENTRY
        self.id = record_id(self._wall, worker_id.pid)

    def is_armed(self) -> bool:
        """Whether the timer is still armed."""
        return self.table.reader.deadline(self.due.slot) == self.due.deadline

    def confirm(self) -> bool:
        """Whether it is still armed, and may be sent its dump signal; it counts as sent from here on."""
        try:
            self.woken = self.is_armed()
        except (OSError, ValueError):  # its table is closed
            return False
        return self.woken

    def is_about(self, table: WatchedTable, due: Due) -> bool:
        """Whether this is the expiry of that timer."""
        mine = self.due
        return table is self.table and (due.slot, due.deadline, due.arming) == (
            mine.slot,
            mine.deadline,
            mine.arming,
        )

    def signalled(self, number: int, now: float) -> None:
        """A signal has been sent."""
        self._signals.append({"signal": name_of(number), "after_s": now - self._began})
        self._sent.append((number, now))

    def look_around(self, around: LookAround) -> None:
        """Note what is armed on the worker, while that can be read."""
        self._entry = entry_of(self.table, self.timer)
        if self._entry.entered is not None and self._entry.entered > self._began:
            self._entry = Entry(self._entry.limit_s, first=self._entry.first)
        self._timers = around.timers([(self.table, self.timer)])

    def becomes(self, kind: Kind, outcome: str, detail: str = "") -> None:
        """Something has become of it."""
        if outcome == "reaped" and self.findings is not None:
            said = outlived(self._sent, self.findings.process)
            detail = "; ".join(filter(None, (detail, said)))
        self.kind, self.outcome, self.detail = kind, outcome, detail

    def event(self) -> Event:
        """Return the event that says what has become of it."""
        verdict = "" if self.findings is None else self.findings.verdict
        return Event(
            self.kind, self.worker_id, self.name, self.timer.name, self.late_s, self.detail,
            self.outcome, verdict, self.evidence,
        )  # fmt: skip

    def record(self) -> Record:
        """Return what is kept of it."""
        entered = self._entry.entered
        ran_s = None if entered is None else self._began - entered
        return Record(
            id=self.id,
            event=self.kind,
            outcome=self.outcome,
            time=self._wall,
            pid=self.worker_id.pid,
            name=self.name,
            scope=self.timer.name,
            limit_s=self._entry.limit_s,
            exact=self._entry.exact,
            first=self._entry.first,
            entered=None if ran_s is None else self._wall - ran_s,
            ran_s=ran_s,
            late_s=self.late_s,
            evidence=self.evidence,
            ladder=self._ladder,
            signals=list(self._signals),
            detail=self.detail,
            timers=self._timers,
            host=os.uname().nodename,
            run=self.run,
        ).with_findings(self.findings or NO_FINDINGS)
