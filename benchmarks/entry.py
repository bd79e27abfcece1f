"""Entering and leaving a block: ``expires`` beside ``asyncio.timeout`` and the least that can be done.

The *floor* is a bare context manager with slots that stores a double into a mapping, and ``inf`` on exit. The
double is ``monotonic() + after``, because a timer that does not read the clock is none; the ratio to one that
stores a constant is printed too. The timed body is empty, and the loop around it (about 10 ns) is in every
number.

``asyncio.timeout`` is given fair conditions: the default loop, a chance to drop its cancelled handles every
hundred blocks, and no other handles in its heap.

The targets against ``asyncio.timeout`` depend on the interpreter. CPython 3.12 made that much faster (4 us
on 3.11, 2.5 us on 3.12 and 3.13), and the floor alone is 0.15 of it there. What is left between the floor and
0.3 pays for less than ``expires`` guards against: an object entered twice, a fork or ``configure`` inside the
block, concurrent entries, an interrupt between any two bytecodes, a server that is late. So 0.3 and 0.4 are
asserted on 3.11, and 0.5 and 0.7 from 3.12 on. The ratio to the floor is the same promise on all of them.
"""

from __future__ import annotations

import asyncio
import mmap
import sys
from collections.abc import Awaitable, Callable, Iterator
from itertools import repeat
from math import inf
from time import monotonic, perf_counter

from aiotimer import AsyncTimerClient, TimerClient, configure, expires

from ._report import Row
from ._server import serving
from ._timing import Candidate, interleave

FAST_TIMEOUT = sys.version_info >= (3, 12)
WITH_LIMIT = 0.5 if FAST_TIMEOUT else 0.3
ASYNC_WITH_LIMIT = 0.7 if FAST_TIMEOUT else 0.4

_BATCH = 100
"""Blocks that are entered and left in a row; then the event loop gets a turn, which is not timed."""

_WORD = 40
_cells = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")


class Floor:
    """The least a timer can do."""

    __slots__ = ("after",)

    def __init__(self, after: float) -> None:
        self.after = after

    def __enter__(self) -> None:
        _cells[_WORD] = monotonic() + self.after

    def __exit__(self, _kind: object, _error: object, _traceback: object) -> None:
        _cells[_WORD] = inf


class Store:
    """Less than that: it does not even read the clock."""

    __slots__ = ("after",)

    def __init__(self, after: float) -> None:
        self.after = after

    def __enter__(self) -> None:
        _cells[_WORD] = self.after

    def __exit__(self, _kind: object, _error: object, _traceback: object) -> None:
        _cells[_WORD] = inf


def with_store() -> None:
    for _ in repeat(None, _BATCH):
        with Store(60):
            pass


def with_floor() -> None:
    for _ in repeat(None, _BATCH):
        with Floor(60):
            pass


def with_expires() -> None:
    for _ in repeat(None, _BATCH):
        with expires(60, scope="s"):
            pass


def with_expires_later() -> None:
    for _ in repeat(None, _BATCH):
        with expires(60, scope="s", first=900):
            pass


def with_expires_here() -> None:
    for _ in repeat(None, _BATCH):
        with expires(60):
            pass


async def async_timeout() -> None:
    for _ in repeat(None, _BATCH):
        async with asyncio.timeout(60):  # noqa: ASYNC100 - an empty body is what is timed
            pass


async def async_expires() -> None:
    for _ in repeat(None, _BATCH):
        async with expires(60, scope="s"):
            pass


async def async_expires_here() -> None:
    for _ in repeat(None, _BATCH):
        async with expires(60):
            pass


def measure(quick: bool) -> Iterator[Row]:
    """Yield the medians, and the ratios that were promised."""
    batches, rounds = (5, 5) if quick else (5, 150)

    with (
        serving() as server,
        serving(reap="KILL") as bare,
        serving() as server_of_run,
        asyncio.Runner() as runner,
        TimerClient(server.path) as client,
        TimerClient(bare.path) as client_of_bare,
        TimerClient(bare.path) as unsampled,
        TimerClient(server_of_run.path) as member,
    ):
        keyed_async = AsyncTimerClient(server.path)

        def keyed_pairs() -> None:
            for _ in repeat(None, _BATCH):
                client.acquire("k", monotonic() + 60)
                client.release("k")

        async def keyed_pairs_async() -> None:
            for _ in repeat(None, _BATCH):
                await keyed_async.acquire("k", monotonic() + 60)
                await keyed_async.release("k")

        def blocks_of(some: TimerClient, scope: str) -> Candidate:
            def blocks() -> None:
                for _ in repeat(None, _BATCH):
                    with expires(60, scope, some):
                        pass

            return _blocking(blocks, batches)

        with expires(60, "never sampled", unsampled):
            pass
        unsampled._pools["never sampled"].sample_at = inf
        configure(None, group="bench", rank=5, size=8)
        member.connect()
        configure(client)
        medians = interleave(
            {
                "store": _blocking(with_store, batches),
                "floor": _blocking(with_floor, batches),
                "timeout": _awaiting(runner, async_timeout, batches),
                "with": _blocking(with_expires, batches),
                "later": _blocking(with_expires_later, batches),
                "with, default scope": _blocking(with_expires_here, batches),
                "async with": _awaiting(runner, async_expires, batches),
                "async with, default scope": _awaiting(runner, async_expires_here, batches),
                "evidence": blocks_of(client, "s"),
                "member": blocks_of(member, "s"),
                "bare": blocks_of(client_of_bare, "s"),
                "unsampled": blocks_of(unsampled, "never sampled"),
                "keyed": _blocking(keyed_pairs, batches),
                "keyed, async": _awaiting(runner, keyed_pairs_async, batches),
            },
            rounds,
        )
        configure(None)
        runner.run(keyed_async.aclose())
    yield from _rows(medians)


def _rows(medians: dict[str, float]) -> Iterator[Row]:
    names = {
        "store": "floor that stores a constant",
        "floor": "floor",
        "timeout": "async with asyncio.timeout(60)",
        "with": 'with expires(60, scope="s")',
        "later": 'with expires(60, scope="s", first=900), later entries',
        "with, default scope": "with expires(60)",
        "async with": 'async with expires(60, scope="s")',
        "async with, default scope": "async with expires(60)",
        "evidence": 'with expires(60, "s", client)',
        "member": "the same, of a member of a run",
        "bare": "the same, beside a server with a bare KILL",
        "unsampled": "the same, no entry sampled",
        "keyed": "TimerClient: acquire and release",
        "keyed, async": "AsyncTimerClient: acquire and release",
    }
    for name, what in names.items():
        yield Row(what, medians[name] * 1e6, "us")

    def ratio(a: str, b: str, limit: float | None = None, note: str = "") -> Row:
        return Row(
            f"{names[a]} / {names[b].removeprefix('async with ')}",
            medians[a] / medians[b],
            "x",
            limit,
            note=note,
        )

    aside = "0.3 x on CPython 3.11; see benchmarks/entry.py" if FAST_TIMEOUT else ""
    yield ratio("with", "timeout", WITH_LIMIT, aside)
    yield ratio("with", "floor", 3.2)
    yield ratio("with", "store")
    yield ratio("evidence", "bare", 1.05)
    yield ratio("member", "evidence", 1.03)
    # A round is 500 blocks, one of them sampled; of a loop that only enters blocks it is one in some 9,000.
    yield ratio("evidence", "unsampled")
    yield ratio("floor", "timeout")
    aside = "0.4 x on CPython 3.11" if FAST_TIMEOUT else ""
    yield ratio("async with", "timeout", ASYNC_WITH_LIMIT, aside)
    yield ratio("later", "with", 1.1, "one argument more")
    yield ratio("with, default scope", "with", 1.4)
    yield ratio("async with, default scope", "async with", 1.4)


def _blocking(batch: Callable[[], None], batches: int) -> Candidate:
    def once() -> float:
        before = perf_counter()
        for _ in range(batches):
            batch()
        return (perf_counter() - before) / (batches * _BATCH)

    return once


def _awaiting(runner: asyncio.Runner, batch: Callable[[], Awaitable[None]], batches: int) -> Candidate:
    async def timed() -> float:
        spent = 0.0
        for _ in range(batches):
            before = perf_counter()
            await batch()
            spent += perf_counter() - before
            await asyncio.sleep(0)
        return spent / (batches * _BATCH)

    return lambda: runner.run(timed())
