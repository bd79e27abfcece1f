"""Lateness of a reap: from a worker's deadline to the server's first action on it.

200 real workers, forked, each with its own connection and table, arm one timer each and hang; their deadlines
lie at random over four seconds. The deadline is the one that the worker stored; the action is the call of the
server's ``reap_worker``, which then sends SIGKILL. What the server's events call ``late_s`` is compared with
that. The loops take turns.

So that a busy machine can be told from a late server, this process waits meanwhile on a loop of the same kind
for as many moments of its own, with a bare ``call_at``, and its lateness is printed beside. ``uvloop`` may be
early by that measure: it counts in whole milliseconds. The server must not be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from time import monotonic

import uvloop

from ._report import Row
from ._server import serving
from ._timing import percentile
from ._workers import workers

_LEAD = 1.0
"""Seconds from the order to the first deadline: all are armed by then."""

_FACTORIES = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@dataclass
class Sample:
    """Seconds of lateness, of every reap on one loop.

    Attributes:
        reaps: by our own measure.
        errors: how far the server's events are from that.
        bare: of bare ``call_at``s in another process, at the same time.
        lost: workers that were not reaped.
    """

    reaps: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    lost: int = 0


def measure(quick: bool) -> Iterator[Row]:
    """Yield median, 99th percentile and earliness for both loops."""
    count, spread, rounds = (20, 0.5, 1) if quick else (200, 4.0, 3)
    samples = {name: Sample() for name in _FACTORIES}
    for turn in range(rounds):
        for name, sample in samples.items():
            _one_round(name, sample, count, spread, random.Random(turn))
    for name, sample in samples.items():
        yield from _rows(f"{name}, {count} workers", sample)


def _one_round(loop: str, sample: Sample, count: int, spread: float, chance: random.Random) -> None:
    with serving(loop) as server, workers(server.path) as group:
        group.add(count, [chance.uniform(0.0, spread) for _ in range(count)])
        start = monotonic() + _LEAD
        deadlines = group.arm(start)
        moments = [start + chance.uniform(0.0, spread) for _ in range(count)]
        with asyncio.Runner(loop_factory=_FACTORIES[loop]) as runner:
            sample.bare += runner.run(_bare(moments))
            runner.run(asyncio.sleep(0.5))  # those that are late
    acted_at, late_s = server.reaps.acted_at, server.reaps.late_s
    sample.lost += len(deadlines.keys() - acted_at.keys())
    lateness = {pid: acted_at[pid] - deadline for pid, deadline in deadlines.items() if pid in acted_at}
    sample.reaps += lateness.values()
    sample.errors += [abs(late_s[pid] - late) for pid, late in lateness.items() if pid in late_s]


async def _bare(moments: list[float]) -> list[float]:
    """Return how late a loop calls back at each of some moments."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    offset = loop.time() - monotonic()

    def called_back(moment: float) -> None:
        late.append(monotonic() - moment)

    for moment in moments:
        loop.call_at(moment + offset, called_back, moment)
    await asyncio.sleep(max(moments) - monotonic() + 0.1)
    return late


def _rows(where: str, sample: Sample) -> Iterator[Row]:
    reaps = sample.reaps
    yield Row(f"lateness, {where}: median", median(reaps) * 1e3, "ms", 1.5)
    yield Row(f"lateness, {where}: 99th percentile", percentile(reaps, 99) * 1e3, "ms", 5.0)
    yield Row(f"lateness, {where}: worst", max(reaps) * 1e3, "ms")
    note = f"of {len(reaps)}; the nearest was {min(reaps) * 1e3:.3f} ms late"
    yield Row(f"reaped early, {where}", sum(late < 0 for late in reaps), "", 0, exact=True, note=note)
    yield Row(f"not reaped, {where}", sample.lost, "", 0, exact=True)
    note = "largest difference between late_s in an event and the above"
    yield Row(f"reported otherwise, {where}", max(sample.errors) * 1e3, "ms", note=note)
    bare = sample.bare
    note = f"median {median(bare) * 1e3:.2f} ms, early {sum(late < 0 for late in bare)} of {len(bare)}"
    yield Row(f"bare call_at elsewhere, {where}: 99th pct.", percentile(bare, 99) * 1e3, "ms", note=note)
