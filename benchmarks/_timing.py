"""Side by side: rounds that take turns, and their medians.

The law of this file: a round of one candidate is followed by a round of the next, so that whatever else the
machine does meets all of them; which one comes first changes from turn to turn. Many short rounds follow a
load that comes and goes more evenly than a few long ones.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from statistics import median, quantiles

Candidate = Callable[[], float]
"""Does one round, and returns the seconds that one call took in it."""


def interleave(candidates: Mapping[str, Candidate], rounds: int) -> dict[str, float]:
    """Return the median seconds per call of each candidate.

    Args:
        candidates: by name.
        rounds: of each, after one that does not count.
    """
    names = list(candidates)
    _anchors = _roomy_heap()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        candidates[name]()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()  # nobody pays for another one's garbage
            samples[name].append(candidates[name]())
    return {name: median(values) for name, values in samples.items()}


def _roomy_heap() -> list[object]:
    """Return objects that keep some megabytes of the allocator's arenas from being given back.

    Otherwise a candidate whose working set happens to end at the border of an arena has the kernel map
    it, and clear it, again and again: on one run in three that doubled the time of ``asyncio.timeout``.
    """
    return [object() for _ in range(400_000)][::2000]


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of at least two values, never beyond the largest."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]
