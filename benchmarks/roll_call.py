"""The roll call of a run: how long all of its members are looked at before the first of them is signalled.

So many light processes say that they are the ranks of one run, and are in blocks. That of rank 0 expires; all
others have an hour left. What counts is when rank 0 is dead: its server has looked at all of them by then, or
the budget was over. Printed beside: of how many the record has stacks, and the longest that anybody waited
for an answer of the server meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from time import monotonic, sleep
from typing import Any

from aiotimer._linux.paths import state_directory
from aiotimer.client import control
from aiotimer.evidence.store import runs
from aiotimer.server.policy import Policy

from ._report import Row
from ._server import serving
from ._workers import workers

_AFTER = 0.5
"""Seconds from the order to the deadline of rank 0."""

_PATIENCE = 30.0


def measure(quick: bool) -> Iterator[Row]:
    """Yield the roll call of a few ranks and of many."""
    for count in (8,) if quick else (8, 64):
        with serving("uvloop") as server, workers(server.path) as group:
            said = [_said(rank, count) for rank in range(count)]
            group.add(count, [_AFTER] + [3600.0] * (count - 1), said)
            first = group.pids[0]
            with _asking(server.path) as waits, contextlib.closing(_Pinned(first)) as rank_0:
                deadline = group.arm(monotonic())[first]
                rank_0.wait()
                took = monotonic() - deadline
                record = _record(server.path)
            looks = [len(one["evidence"].get("stacks", ())) > 0 for one in record["members"]]
            yield Row(
                f"roll call of {count} ranks, to the first signal", took, "s", Policy.evidence_budget + 0.2
            )
            yield Row("  members of which there are stacks", sum(looks), note=f"of {len(looks)}")
            yield Row("  longest wait for an answer of the server", max(waits) * 1e3, "ms")


def _said(rank: int, size: int) -> dict[str, str]:
    return {"TORCHELASTIC_RUN_ID": "bench", "RANK": str(rank), "WORLD_SIZE": str(size)}


class _Pinned:
    """A process whose end is waited for."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(_PATIENCE * 1000):
            raise TimeoutError("rank 0 is still there")

    def close(self) -> None:
        os.close(self._pidfd)


@contextlib.contextmanager
def _asking(path: str) -> Iterator[list[float]]:
    """Ask the server again and again whether it is there; yield how long each answer took, seconds."""
    took: list[float] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            before = monotonic()
            control.ping(path)
            took.append(monotonic() - before)
            sleep(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join(_PATIENCE)


def _record(path: str) -> dict[str, Any]:
    until = monotonic() + _PATIENCE
    while monotonic() < until:
        for record in runs(state_directory(path) / "evidence"):
            return record
        sleep(0.01)
    raise TimeoutError("there is no record of the roll call")
