"""Retries of a reap that failed, on a loop that only notes what it was asked for.

The law of this file: however late the loop is, and whatever falls due, a worker has one retry pending.
"""

from __future__ import annotations

import asyncio
import functools
import mmap
import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, cast

from aiotimer._core import layout
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Lifeline, Watch
from aiotimer._linux import table_files
from aiotimer._linux.process import pin
from aiotimer.server.reaper import Reaper
from aiotimer.server.watched_table import WatchedTable
from aiotimer.server.worker import Worker
from tests.fakes.clock import clock_passes


class Noting:
    """A loop that never calls anything.

    Attributes:
        calls: what it was asked to call later, and has not been asked to forget.
    """

    def __init__(self) -> None:
        self.calls: list[Callable[..., object]] = []

    def time(self) -> float:
        return monotonic()

    def call_at(self, _when: float, callback: Callable[..., object], *_arguments: object) -> Noting:
        self.calls.append(callback)
        return self

    call_later = call_at

    def cancel(self) -> None:
        """Handles are not told apart here."""


class Nobody:
    """A connection."""

    def close(self) -> None:
        pass


def test_one_retry_is_pending_whatever_falls_due(tmp_path: Path) -> None:
    loop = Noting()
    asyncio_loop = cast(asyncio.AbstractEventLoop, loop)
    reaper = Reaper(asyncio_loop, lambda _worker_id: False, lambda _event: None)
    worker_id, pidfd = pin(os.getpid())
    worker = Worker(worker_id, pidfd, asyncio_loop)
    file = table_files.create_table(tmp_path, worker_id, worker.pidfd_inode, "shared")
    watch = Watch(Lifeline(monotonic(), beat=inf), connected=True)
    table = WatchedTable(file, watch, asyncio_loop, functools.partial(reaper.expire, worker))
    table.connection = Nobody()
    worker.tables.append(table)
    cells = TimerTable(mmap.mmap(file.descriptor, layout.TABLE_SIZE), now=monotonic)

    def retries() -> list[Any]:
        return [callback for callback in loop.calls if callback == reaper._try_again]

    cells.set(("first", 0), monotonic(), monotonic())
    table.look()
    assert len(retries()) == 1
    clock_passes(worker.retry_at)  # the loop is late
    cells.set(("second", 0), monotonic(), monotonic())
    table.look()
    assert len(retries()) == 1
    reaper._try_again(worker)
    assert len(retries()) == 2, "the one that was pending has been made, and failed again"
    table.close()
    worker.close()
