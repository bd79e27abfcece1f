"""Connecting: from the call to WELCOME.

First in real workers, forked one after the other, that do it for the first time; most of that is the price
of touching memory that they share with their parent until then. Then again and again in one process, with a
BYE in between: what client and server have to do. Each time the server pins the worker, makes its table,
looks at it and sends its descriptor. Importing what connecting needs is not in it, but in ``imports``.

Who is a member of a run says so in HELLO, and its server notes it. That is measured in turns with a process
that belongs to none; what finding out takes, from what a launcher has set, is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import median
from time import perf_counter

from aiotimer import TimerClient

from ._report import Row
from ._server import serving
from ._timing import interleave, percentile
from ._workers import workers


def measure(quick: bool) -> Iterator[Row]:
    """Yield how long connecting takes, on both loops."""
    for loop in ("uvloop", "asyncio"):
        with serving(loop) as server:
            with workers(server.path) as group:
                group.add(20 if quick else 200)
                first = group.connect_s[1:]  # the server has then answered once
            again = [_connect(server.path) for _ in range(20 if quick else 200)]
        for what, times in (("a forked worker's first", first), ("again", again)):
            note = f"99th percentile {percentile(times, 99) * 1e3:.2f} ms"
            yield Row(f"connect, {what}, {loop}", median(times) * 1e3, "ms", note=note)
    yield from _of_a_run(quick)


_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "bench",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def _of_a_run(quick: bool) -> Iterator[Row]:
    """Yield what it costs to say which member of a run a process is."""
    with serving() as server:

        def with_labels() -> float:
            os.environ.update(_TORCHRUN)
            try:
                return _connect(server.path)
            finally:
                for variable in _TORCHRUN:
                    del os.environ[variable]

        medians = interleave(
            {"without": lambda: _connect(server.path), "with": with_labels}, 20 if quick else 500
        )
    yield Row("connect, in turns, no run", medians["without"] * 1e3, "ms")
    yield Row("connect, in turns, with a run's labels", medians["with"] * 1e3, "ms")
    yield Row("with a run's labels / without", medians["with"] / medians["without"], "x", 1.15)


def _connect(path: str) -> float:
    client = TimerClient(path, unavailable="raise")
    before = perf_counter()
    client.connect()
    spent = perf_counter() - before
    client.close()
    return spent
