"""Ranks of a real job: what was found out about each of four, of which one was not where the others were.

The law of this file: nothing in it is made up. A program with DistributedDataParallel over gloo (torch 2.13,
CPython 3.11) was run under a server, with one rank that hung in one of the ways named here, and each rank
was looked at with ``aiotimer dump``. In ``ranks.json`` is what that found, with other paths, and without what
is nowhere used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aiotimer.evidence.findings import stack
from aiotimer.evidence.roll_call import Member

FOUND: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
LIBRARIES = ["/usr/lib/python3.11/", "/srv/venv/lib/python3.11/site-packages/", "/srv/aiotimer/aiotimer/"]

SEVEN = ("loader", "loop", "gil", "future", "stop", "swallow", "other")
"""The ways of which people ask most: a read, a loop in Python, the GIL held in C, a future that nobody sets,
SIGSTOP, an exception swallowed, another collective than the rest."""


def ranks(kind: str) -> list[Member]:
    """Return the four members of a job, as a server has found them."""
    return [
        Member(
            rank,
            1000 + rank,
            "node7",
            "train.py",
            "expired" if one["armed"] else "connected",
            since_s=61.0 if one["armed"] else None,
            timers=[{"scope": "step", "limit_s": 60.0, "remaining_s": -1.0}] if one["armed"] else [],
            verdict=one["verdict"],
            evidence=evidence(one),
        )
        for rank, one in enumerate(FOUND[kind]["ranks"])
    ]


def culprit(kind: str) -> int:
    """Return the rank that was not where the others were."""
    return int(FOUND[kind]["culprit"])


def evidence(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was found out of one rank, as findings have it."""
    stacks = [stack() | one for one in found["stacks"]]
    return {"stacks": stacks, "tasks": found["tasks"], "process": found["process"] | {"libraries": LIBRARIES}}
