"""A report of a server and its workers: the object that ``aiotimer status --json`` prints."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import inf
from time import monotonic
from typing import Any

from .._version import __version__
from .worker import Worker


def report(
    workers: Iterable[Worker], socket_path: str, uptime_s: float, observing: str = ""
) -> dict[str, Any]:
    """Return the status of a server: itself, and its workers, soonest deadline first.

    Args:
        workers: everybody it watches.
        socket_path: where it listens.
        uptime_s: seconds since it started.
        observing: why it reaps nobody, "" if it does.
    """
    now = monotonic()
    server = {
        "pid": os.getpid(),
        "version": __version__,
        "uptime_s": uptime_s,
        "socket": socket_path,
        "observing": observing,
    }
    return {"server": server, "workers": sorted((_worker(w, now) for w in workers), key=_soonest)}


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    timers = sorted(worker.timers(), key=lambda timer: timer.deadline)
    return {
        "pid": worker.id.pid,
        "name": worker.name,
        "connected": worker.connections > 0,
        "timers": [
            {"scope": t.name, "deadline": t.deadline, "remaining_s": t.deadline - now} for t in timers
        ],
    }


def _soonest(worker: dict[str, Any]) -> float:
    return min((timer["deadline"] for timer in worker["timers"]), default=inf)
