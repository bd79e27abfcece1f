"""The two processes of the lost wake-up stress: a server that takes its time, and a worker that lies in wait.

Run as ``python storm.py serve|work ...``; ``test_lost_wakeup.py`` starts both. They share a page of memory,
the *stage*, by which the server shows where it is in a look, and the worker lets it go on: so the worker's
stores fall between the server's reads and writes every time, and not once in a million.

The promise has no bound here. A timer that a look has missed is not looked for again, ever: that is what
makes a lost wake-up visible.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import select
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic

from aiotimer import TimerClient, TimerServer, WorkerId, expires
from aiotimer._core.layout import PROMISE
from aiotimer._core.reader import TableReader
from aiotimer._core.watch import Watch
from aiotimer.server import registry, watched_table
from aiotimer.server.worker import Worker

NUMBER, ANSWER, PLACE = 0, 1, 2
"""Words of the stage: which pause the server is in, the last that the worker has answered, where that is."""

PLACES = ("first read", "write", "second read", "later read")
"""After what in a look a pause comes."""

PAUSE = 0.002
"""Seconds for which the server waits for a worker that does not answer."""

LEFT = (0.0005, 0.001, 0.003)
"""Seconds to the deadlines of the timers that are left armed."""

WILD = (60.0, 0.001, 600.0, 0.0007, 60.0, 0.002, 90.0, 0.0015, 3600.0) * 10
"""Those of blocks that are left in time: some never ring, some ring the server awake all the time.

None is between some milliseconds and a minute: the server would look then, because it was rung for it, and
find by chance what it had lost.
"""

CALM = (0.001, *[60.0] * 60_000)
"""Others, which leave it in peace for long enough to come to its later read.

The next ring, with the first block of the next pass, puts that read off. A pass takes some forty
milliseconds; one of eight left no time to a server that waited for a processor, again and again.
"""


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def stage_of(descriptor: int) -> memoryview[int]:
    return memoryview(mmap.mmap(descriptor, mmap.PAGESIZE)).cast("q")


# -- the server -------------------------------------------------------------------------------------------


class Stage:
    """Where the server is in a look."""

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words
        self.place = 0

    def pause(self) -> None:
        """Show where we are, and go on when the worker has seen it, or does not care."""
        words = self._words
        words[PLACE] = self.place
        number = words[NUMBER] + 1
        words[NUMBER] = number
        until = monotonic() + PAUSE
        while words[ANSWER] != number and monotonic() < until:
            os.sched_yield()


stage: Stage


class SlowReader(TableReader):
    """A reader that pauses after every snapshot."""

    __slots__ = ()

    def snapshot(self) -> bytes:
        data = super().snapshot()
        stage.pause()
        stage.place = 0
        return data


class SlowTable(watched_table.WatchedTable):
    """A table that pauses after every promise, and knows which snapshot is which."""

    __slots__ = ()

    def look(self) -> None:
        stage.place = 0
        super().look()

    def _write(self, promise: float) -> None:
        super()._write(promise)
        stage.place = 1
        stage.pause()
        stage.place = 2

    def _read_later(self) -> None:
        stage.place = 3
        super()._read_later()


class ReportingServer(TimerServer):
    """Reaps nobody, and writes the deadlines that have expired into a pipe."""

    report: int

    def reap_worker(self, worker_id: WorkerId) -> bool:
        expired = self.get_expired_timers(monotonic()).get(worker_id, [])
        os.write(self.report, b"".join(struct.pack("d", request.expiration_time) for request in expired))
        return True


def nothing_overlooked(watch: Watch, deadlines: array[float], wake_at: float, *, same: bool = False) -> bool:
    """What the second and the later read find when they are left out."""
    return False


def clear_nothing(worker: Worker) -> None:
    """One timer that expires would clear all: those left armed must not be cleared for one of the storm's."""


def serve(path: str, loop: str, stage_descriptor: int, report: int, reads: str) -> None:
    """Serve for ever.

    Args:
        path: the socket.
        loop: "asyncio" or "uvloop".
        stage_descriptor: of the stage.
        report: of the pipe.
        reads: "all" of them, or "first": without the second and the later read.
    """
    global stage
    stage = Stage(stage_of(stage_descriptor))
    vars(watched_table)["TableReader"] = SlowReader
    vars(registry)["WatchedTable"] = SlowTable
    if reads == "first":
        Watch.overlooked = nothing_overlooked  # type: ignore[method-assign, assignment]
    Worker.clear = clear_nothing  # type: ignore[method-assign, assignment]

    async def main() -> None:
        server = ReportingServer(path, bound=inf, max_reaps=(10**9, 1.0))
        server.report = report
        await server.start()
        say("ready")
        await server.serve_forever()

    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


# -- the worker -------------------------------------------------------------------------------------------


class Reports:
    """The deadlines that the server has reported."""

    def __init__(self, descriptor: int, words: memoryview[int]) -> None:
        self._descriptor = descriptor
        self._words = words
        self._seen: set[float] = set()

    def wait(self, deadline: float, patience: float) -> bool:
        """Wait for a report of a deadline, and answer the server's pauses meanwhile."""
        until = monotonic() + patience
        while deadline not in self._seen:
            self._words[ANSWER] = self._words[NUMBER]
            if select.select([self._descriptor], [], [], 0.0005)[0]:
                data = os.read(self._descriptor, 65_536)  # whole numbers: writes to pipes are atomic
                self._seen.update(number for (number,) in struct.iter_unpack("d", data))
            elif monotonic() > until:
                return False
        self._seen.clear()
        return True


def work(path: str, stage_descriptor: int, report: int, entries: int, rounds: int, patience: float) -> None:
    """Enter and leave blocks; now and then stay in one, until the server has noticed.

    Args:
        path: the socket.
        stage_descriptor: of the stage.
        report: of the pipe.
        entries, rounds: how many at least; the first timer that is lost ends it.
        patience: seconds after which a timer counts as lost.
    """
    words = stage_of(stage_descriptor)
    reports = Reports(report, words)
    chance = random.Random(entries)
    client = TimerClient(path, unavailable="raise")
    client.connect(30)
    table = client._queue.table
    assert table is not None
    done = {"entries": 0, "rounds": 0, "lost": 0, "unwatched": 0, "slowest_ms": 0, **dict.fromkeys(PLACES, 0)}
    while done["entries"] < entries or done["rounds"] < rounds:
        place = chance.randrange(len(PLACES))
        blocks = CALM if PLACES[place] == "later read" else WILD
        done["entries"] += storm(client, words, blocks, place, chance.randrange(1, 4))
        here = words[NUMBER]
        left = expires(chance.choice(LEFT), "left", client)
        left.__enter__()
        done[PLACES[place]] += words[NUMBER] == here  # the server has not moved
        deadline = left.deadline
        assert deadline is not None
        words[ANSWER] = here
        noticed = reports.wait(deadline, patience)
        done["slowest_ms"] = max(done["slowest_ms"], int(1000 * (monotonic() - deadline)))
        left.__exit__(None, None, None)
        done["rounds"] += 1
        if not noticed:
            done["lost"] = 1
            done["unwatched"] = int(table.cells[PROMISE] > deadline)  # not late: nobody is going to look
            break
    say("done " + json.dumps(done))


def storm(
    client: TimerClient, words: memoryview[int], blocks: Sequence[float], place: int, pauses: int
) -> int:
    """Enter and leave blocks until the server is in its n-th pause at a place; return how many."""
    entries = 0
    seen = words[NUMBER]
    while True:
        for after in blocks:
            with expires(after, "storm", client):
                entries += 1
            here = words[NUMBER]
            if here != seen:
                is_there = words[PLACE] == place
                pauses -= is_there
                if not pauses:
                    return entries
                words[ANSWER] = seen = here
                if is_there and blocks is CALM:
                    break  # there is no other later read before the next ring


if __name__ == "__main__":
    if sys.argv[2] == "serve":
        serve(sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]), sys.argv[7])
    else:
        stage_descriptor, report, entries, rounds = map(int, sys.argv[4:8])
        work(sys.argv[3], stage_descriptor, report, entries, rounds, float(sys.argv[8]))
