"""A record of what a live worker is doing, asked for by a person with ``aiotimer dump PID``.

The law of this file: nothing is signalled that could harm the worker; what is found has the shape of the
record of an expiry, with nothing expired.
"""

from __future__ import annotations

import time
from time import monotonic
from typing import Any

from ..evidence.gather import gather
from ..evidence.record import Record
from .expiry import record_id, timers_as_json
from .worker import Worker


async def dump(worker: Worker, budget: float) -> dict[str, Any]:
    """Return, as JSON, a record of what a live worker is doing.

    Args:
        worker: whom; it is not harmed.
        budget: seconds that it may take.
    """
    now, wall = monotonic(), time.time()  # noqa: TID251 - for people; no decision rests on it
    found = ((table, timer) for table in worker.tables for timer in table.timers())
    armed = sorted(found, key=lambda one: one[1].deadline)
    # Of several timers, the one that would expire first is the one to be asked about; only slots of the
    # own table of the worker mean anything to it.
    scope, slots = "", tuple[int, ...]()
    for table, timer in armed[:1]:
        scope, slots = timer.name, (timer.slot,) if table.file.kind == "shared" else ()
    record = Record(
        id=record_id(wall, worker.id.pid),
        event="dump",
        outcome="dump",
        time=wall,
        pid=worker.id.pid,
        name=worker.name,
        timers=timers_as_json(armed, now),
    )
    findings = await gather(worker.subject(scope, slots), budget)
    # Nothing says for how long it has been awaiting.
    verdict = findings.verdict.replace("awaiting forever", "awaiting", 1)
    return record.with_findings(findings._replace(verdict=verdict)).as_json()
