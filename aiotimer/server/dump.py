"""A record of what a live worker is doing, asked for by a person with ``aiotimer dump PID``.

The law of this file: nothing is signalled that could harm the worker; what is found has the shape of the
record of an expiry, with nothing expired.
"""

from __future__ import annotations

import time
from operator import itemgetter
from time import monotonic
from typing import Any

from .._core.reader import Timer
from ..evidence.gather import gather
from ..evidence.record import Record
from .expiry import MAX_TIMERS, record_id, runs_of, timer_as_json
from .worker import Worker

BUDGET = 3.0
"""Seconds that gathering evidence may take, unless a server has been told otherwise."""


async def dump(worker: Worker, budget: float) -> dict[str, Any]:
    """Return, as JSON, a record of what a live worker is doing.

    Args:
        worker: whom; it is not harmed.
        budget: seconds that it may take.
    """
    now, wall = monotonic(), time.time()  # noqa: TID251 - for people; no decision rests on it
    timers = sorted(worker.timers(), key=_soonest_first)
    # Of several timers, the one that would expire first is the one to be asked about.
    soonest = next((timer for table in _shared(worker) for timer in table if timer in timers[:1]), None)
    subject = worker.subject(timers[0].name if timers else "", (soonest.slot,) if soonest else ())
    found = await gather(subject, budget)
    # Nothing says for how long it has been awaiting.
    found = found._replace(verdict=found.verdict.replace("awaiting forever", "awaiting", 1))
    return (
        Record(
            id=record_id(wall, worker.id.pid),
            event="dump",
            outcome="dump",
            time=wall,
            pid=worker.id.pid,
            name=worker.name,
            timers=_timers(worker, now),
        )
        .with_findings(found)
        .as_json()
    )


def _shared(worker: Worker) -> list[list[Timer]]:
    return [table.timers() for table in worker.tables if table.file.kind == "shared"]


def _timers(worker: Worker, now: float) -> list[dict[str, Any]]:
    found = [
        (timer.deadline, timer_as_json(table, timer, now, runs))
        for table in worker.tables
        for runs in (runs_of(table),)
        for timer in table.timers()[:MAX_TIMERS]
    ]
    return [timer for _deadline, timer in sorted(found, key=itemgetter(0))][:MAX_TIMERS]


def _soonest_first(timer: Timer) -> float:
    return timer.deadline
