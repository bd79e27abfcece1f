"""An expiry, from the first action to its end: its record, and the events that report it.

The laws of this file: what a worker stored is untrusted, and what cannot be right is unknown. Wall time is
for people; what is compared is ``CLOCK_MONOTONIC``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

from .._core.durations import DEADLINE, Durations
from .._core.ladder import name_of
from .._core.reader import Ran, Timer
from .._core.requests import WorkerId
from .._core.watch import Due
from ..events import Event, Kind
from ..evidence import NO_FINDINGS, Findings
from ..evidence.record import Record
from .watched_table import WatchedTable

MAX_TIMERS = 100
"""Timers that a record lists."""

MAX_SLOTS = 1024
"""Slots whose durations are read, on the server's loop: a millisecond or two."""

_serial = itertools.count(1)


class Entry(NamedTuple):
    """What a table tells of one entry into a block.

    Attributes:
        limit_s: the limit of the block, None if that is not known.
        entered: when it was entered, on the table's clock.
        exact: both are this entry's own, and not concluded from another one's.
    """

    limit_s: float | None = None
    entered: float | None = None
    exact: bool = False


NO_ENTRY = Entry()


def entry_of(table: WatchedTable, timer: Timer) -> Entry:
    """Return what a worker noted when it entered the block of a timer."""
    row = table.reader.row(timer.slot)
    return entry(row, timer.deadline) if len(row) > DEADLINE else NO_ENTRY


def entry(row: Sequence[float], deadline: float) -> Entry:
    """Return what the first words of a slot's row tell of the entry with this deadline.

    They are when the last sampled entry was, its limit, and its deadline. Another entry through the same slot
    most likely has the same limit.
    """
    entered, limit, noted_for = row[:3]
    if not 0.0 < limit < inf:
        return NO_ENTRY
    if noted_for == deadline and 0.0 < entered < inf:
        return Entry(limit, entered, exact=True)
    return Entry(limit, deadline - limit)


def timers_as_json(armed: Sequence[tuple[WatchedTable, Timer]], now: float) -> list[dict[str, Any]]:
    """Return what a record says of armed timers: the first of them."""
    listed = armed[:MAX_TIMERS]
    scopes: dict[WatchedTable, set[str]] = {}
    for table, timer in listed:
        scopes.setdefault(table, set()).add(timer.scope)
    runs = {
        (table, scope): _as_json(ran)
        for table, wanted in scopes.items()
        for scope, ran in table.reader.durations(MAX_SLOTS, wanted).items()
    }
    return [
        {
            "scope": timer.name,
            "remaining_s": timer.deadline - now,
            "limit_s": entry_of(table, timer).limit_s,
            "expired": timer.deadline <= now,
            "observed": timer.observed,
            "ran": runs.get((table, timer.scope), _NEVER_RAN),
        }
        for table, timer in listed
    ]


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


class Expiry:
    """One expiry, from the first action on.

    Args:
        worker_id: whom it happened to.
        name: its command name.
        table: where the timer is.
        due: what expired.
        timer: its timer.
        now: when the first action is taken.
        ladder: what is about to happen, as text.

    Attributes:
        late_s: seconds between the deadline and the first action.
        findings: what was found out, None as long as that is nothing.
        outcome: what has become of it.
        detail: the rest, in words.
        evidence: the directory with what was found out, "" if there is none.
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
        self.kind: Kind = "expired"
        self.outcome = "pending"
        self.detail = ""
        self.evidence = ""
        self._began = now
        self._wall = time.time()  # noqa: TID251 - for people
        self._ladder = ladder
        self._signals: list[dict[str, Any]] = []
        self._timers: list[dict[str, Any]] = []
        self._entry = NO_ENTRY
        self.id = record_id(self._wall, worker_id.pid)

    def is_armed(self) -> bool:
        """Whether the timer is still armed."""
        return self.table.reader.deadline(self.due.slot) == self.due.deadline

    def is_about(self, table: WatchedTable, due: Due) -> bool:
        """Whether this is the expiry of that timer."""
        return table is self.table and due[:2] == self.due[:2]

    def signalled(self, number: int, now: float) -> None:
        """A signal has been sent."""
        self._signals.append({"signal": name_of(number), "after_s": now - self._began})

    def look_around(self, tables: Iterable[WatchedTable]) -> None:
        """Note what is armed on the worker, while that can be read."""
        self._entry = entry_of(self.table, self.timer)
        if self._entry.entered is not None and self._entry.entered > self._began:
            self._entry = Entry(self._entry.limit_s)
        others = [
            (table, timer)
            for table in tables
            for timer in table.timers(MAX_TIMERS)
            if table is not self.table or timer.slot != self.timer.slot
        ]
        self._timers = timers_as_json([(self.table, self.timer), *others], self._began)

    def becomes(self, kind: Kind, outcome: str, detail: str = "") -> None:
        """Something has become of it."""
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
            entered=None if ran_s is None else self._wall - ran_s,
            ran_s=ran_s,
            late_s=self.late_s,
            evidence=self.evidence,
            ladder=self._ladder,
            signals=list(self._signals),
            detail=self.detail,
            timers=self._timers,
        ).with_findings(self.findings or NO_FINDINGS)
