"""A look: what the server does per worker and wake-up, at many armed timers.

Measured is the whole of ``WatchedTable.look`` against a real table file on tmpfs: both reads, the decision,
the write of the promise, and both handles. Beside it: ``min()`` over a list of as many floats, which is what
the decision comes down to, and a number that anybody can reproduce; the read that follows three milliseconds
after every look; a look that finds that one timer has expired; and looks while one that has been reported, or
cleared, is still armed (its worker is dying). Those must not cost much more than a look at healthy timers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, perf_counter

from aiotimer import WorkerId
from aiotimer._core import layout
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Due, Lifeline, Watch
from aiotimer._linux.table_files import allocate, create_table
from aiotimer.server.watched_table import WatchedTable

from ._report import Row
from ._timing import Candidate, interleave

_LIMITS_US = {1_000: 50.0, 10_000: 500.0}
_LIMITS_OF_ONE = {10_000: 1.5}


def measure(quick: bool) -> Iterator[Row]:
    """Yield the time of a look, for several sizes of table."""
    rounds, looks = (5, 20) if quick else (41, 100)
    for timers in (1, 1_000, 10_000):
        with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
            tables = [stack.enter_context(_table(runner.get_loop(), timers)) for _ in range(4)]
            (healthy, _), expiring, (reported, _), (cleared, _) = tables
            for expired in tables[2:]:
                _one_expires(*expired)
            cleared.watch.clear(cleared.reader.deadlines()[:1])
            medians = interleave(
                {
                    "look": _timed(runner, healthy.look, looks),
                    "later": _timed(runner, healthy._read_later, looks),
                    "min": _timed(runner, functools.partial(min, _floats(healthy)), looks),
                    "expires": _timed(runner, functools.partial(_one_expires, *expiring), looks),
                    "is reported": _timed(runner, reported.look, looks),
                    "is cleared": _timed(runner, cleared.look, looks),
                },
                rounds,
            )
        what = f"a look at {timers:,} armed timer{'s' * (timers > 1)}"
        yield Row(what, medians["look"] * 1e6, "us", _LIMITS_US.get(timers))
        if timers > 1:
            yield Row(f"{what} / min() over as many floats", medians["look"] / medians["min"], "x")
        yield Row(f"{what}: the read 3 ms later", medians["later"] * 1e6, "us")
        for one in ("expires", "is reported", "is cleared"):
            ratio = medians[one] / medians["look"]
            yield Row(f"{what}, one of which {one} / none", ratio, "x", _LIMITS_OF_ONE.get(timers))


def _one_expires(table: WatchedTable, cells: TimerTable) -> None:
    cells.cells[layout.FIRST_DEADLINE] = monotonic()
    table.look()


@contextlib.contextmanager
def _table(loop: asyncio.AbstractEventLoop, timers: int) -> Iterator[tuple[WatchedTable, TimerTable]]:
    """Provide a watched table with so many armed timers, and the side that stores into it."""

    def on_due(_table: WatchedTable, _due: tuple[Due, ...]) -> None:
        """The worker is being reaped, which nobody here has to wait for."""

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        file = create_table(Path(directory), WorkerId(1, 1), 1, "shared")
        # A worker of this table would hold a descriptor of its own.
        cells = TimerTable(
            mmap.mmap(file.descriptor, layout.TABLE_SIZE),
            functools.partial(allocate, os.dup(file.descriptor)),
            now=monotonic,
        )
        for number in range(timers):
            cells.set((f"train.py:{number}", 0), monotonic() + 600 + number, monotonic())
        watch = Watch(Lifeline(monotonic()), connected=True)
        table = WatchedTable(file, watch, loop, on_due)
        try:
            yield table, cells
        finally:
            table.remove()


def _floats(table: WatchedTable) -> list[float]:
    return [timer.deadline for timer in table.reader.timers()]


def _timed(runner: asyncio.Runner, function: Callable[[], object], times: int) -> Candidate:
    async def timed() -> float:
        before = perf_counter()
        for _ in range(times):
            function()
        spent = perf_counter() - before
        await asyncio.sleep(0)  # the loop drops the handles that were cancelled
        return spent / times

    return lambda: runner.run(timed())
