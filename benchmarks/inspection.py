"""The pause of a worker's event loop while it is looked at: what ``aiotimer dump PID`` costs a healthy one.

A real worker has so many tasks, which all wait, and a block that it never leaves. Its loop goes round without
a rest and notes the longest time that a turn took, while this process has its server dump it, again and
again. What counts is the time of its thread's on a processor: on the clock, a busy machine makes a pause of
any turn. That is printed beside, and what it is while nobody asks.

In the worst case a thousand tasks share a list of a million objects. Garbage is collected before, once: what
a program owes its collector is not the look's.

From CPython 3.14 on ``asyncio.all_tasks`` alone can list tasks, in one piece. What it takes by itself is
measured in the same worker, printed, and granted: nobody can divide it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from time import monotonic, perf_counter, thread_time
from typing import Any

from aiotimer import AsyncTimerClient, expires
from aiotimer.client import control

from ._report import Row
from ._server import serving

_CASES = ((100, 0), (10_000, 0), (100_000, 0), (100, 1_000_000), (1_000, 1_000_000))
"""How many tasks, and how many objects are in a list that all of them refer to."""

_MOST = 10.0
"""Milliseconds."""

_PATIENCE = 30.0


def measure(quick: bool) -> Iterator[Row]:
    """Yield the pause with few tasks and with many."""
    for tasks, shared in _CASES[:1] if quick else _CASES:
        with serving("asyncio") as server, _worker(server.path, tasks, shared) as worker:
            *_, listing = _pause(worker)  # when it is ready
            pauses: list[float] = []
            clock: list[float] = []
            took: list[float] = []
            told = 0
            for _ in range(2 if quick else 7):
                before = perf_counter()
                report = control.dump(server.path, worker.pid, _PATIENCE)
                took.append(perf_counter() - before)
                on_processor, on_clock, _ = _pause(worker)
                pauses.append(on_processor)
                clock.append(on_clock)
                told = sum(task["count"] for task in report["tasks"])
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(median(took))
            _, idle, _ = _pause(worker)
        what = f"a loop of {tasks:,} tasks" + (f" that share {shared:,} objects" if shared else "")
        note = f"longest of {len(pauses)}; on the clock {median(clock):.1f} ms, {idle:.1f} while nobody asks"
        granted = listing if sys.version_info >= (3, 14) else 0.0
        yield Row(f"pause of {what}", max(pauses), "ms", _MOST + granted, note=note)
        if granted:
            yield Row("  asyncio.all_tasks() alone", listing, "ms")
        note = f"{median(took):.2f} s from the question to the record"
        yield Row("  tasks that the answer tells of", told, note=note)


@contextlib.contextmanager
def _worker(path: str, tasks: int, shared: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.inspection", path, str(tasks), str(shared)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _pause(worker: subprocess.Popen[str]) -> tuple[float, float, float]:
    """Return the longest turn since this was last asked, milliseconds on a processor and on the clock.

    The third number is what ``asyncio.all_tasks`` takes there, milliseconds on a processor.
    """
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("?\n")
    worker.stdin.flush()
    on_processor, on_clock, listing = map(float, worker.stdout.readline().split())
    return on_processor, on_clock, listing


async def _work(path: str, tasks: int, shared: int) -> None:
    """Be a worker, until it is killed."""
    loop = asyncio.get_running_loop()
    event, data = asyncio.Event(), [object() for _ in range(shared)]

    async def inner(*_held: Any) -> None:
        await event.wait()

    async def outer(held: Any) -> None:
        await inner(held, {"some": ["more"]})

    clocks = thread_time, monotonic
    longest, last = [0.0, 0.0], [clock() for clock in clocks]

    def turn() -> None:
        nonlocal longest, last
        now = [clock() for clock in clocks]
        longest = [max(most, here - there) for most, here, there in zip(longest, now, last, strict=True)]
        last = now
        loop.call_soon(turn)

    def tell() -> None:
        nonlocal longest
        sys.stdin.readline()
        print(*(most * 1e3 for most in (*longest, listing)), flush=True)
        longest = [0.0, 0.0]

    async with AsyncTimerClient(path) as client, expires(3600, "block", client):
        kept = [asyncio.create_task(outer(data)) for _ in range(tasks)]
        await asyncio.sleep(0)
        gc.collect()
        gc.freeze()
        listing = median(_listing() for _ in range(5))
        loop.call_soon(turn)
        loop.add_reader(0, tell)
        await asyncio.gather(*kept)


def _listing() -> float:
    before = thread_time()
    asyncio.all_tasks()
    return thread_time() - before


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
