"""Connecting: from the call to WELCOME, in workers that do it for the first time.

Real, forked workers, one after the other: the server pins each, makes its table, looks at it and sends its
descriptor. The modules that connecting needs are loaded already; ``imports`` has their price.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from ._report import Row
from ._server import serving
from ._timing import percentile
from ._workers import workers


def measure(quick: bool) -> Iterator[Row]:
    """Yield how long connecting takes, on both loops."""
    for loop in ("uvloop", "asyncio"):
        with serving(loop) as server, workers(server.path) as group:
            group.add(20 if quick else 200)
            times = group.connect_s[1:]  # the server has then answered once
        note = f"99th percentile {percentile(times, 99) * 1e3:.2f} ms"
        yield Row(f"connect, HELLO to WELCOME, {loop}", median(times) * 1e3, "ms", note=note)
