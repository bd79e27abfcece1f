"""A work queue: what can wait is done in slices, between everything else that an event loop has to do.

The laws of this file:

* What is put first is done first; nothing is done by :meth:`WorkQueue.put`, unless so much waits that whoever
  puts more has to help. A slice ends after ``SLICE`` seconds, and other callbacks of the loop come before the
  next one.
* What is urgent is done at once; but when thousands of it are due in one moment, the loop has a turn every
  ``TURN`` seconds. All of it is done before any work: act first, describe afterwards.
* An error of one piece of work is logged, and is no other's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic

from ..events import log

SLICE = 0.002
"""Seconds: the longest that the loop is kept, but for one piece of work that takes longer."""

TURN = 0.005
"""Seconds: the longest that urgent work keeps the loop, but for one piece that takes longer."""

MOST = 10_000
"""Pieces of work that wait: whoever puts one more has the oldest done first."""


class WorkQueue:
    """Work that is done soon, in slices.

    Args:
        loop: does it.
        clock: tells how long a slice takes, seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._work: deque[partial[object]] = deque()
        self._urgent: deque[Callable[[], object]] = deque()
        self._turn_ends: float | None = None  # of the turn of the loop in which something urgent was done
        self._scheduled = False

    def put(self, function: Callable[..., object], *arguments: object) -> None:
        """Have a function called soon, after all that was put before; only in the loop's own thread."""
        while len(self._work) >= MOST:
            _do(self._work.popleft())
        self._work.append(partial(function, *arguments))
        self._schedule()

    def do_first(self, function: Callable[[], object]) -> None:
        """Call a function now; or before any work, if the loop has been kept for a while without a turn."""
        now = self._clock()
        if self._turn_ends is None:
            self._turn_ends = now + TURN
            self._schedule()
        if self._urgent or now >= self._turn_ends:
            self._urgent.append(function)
        else:
            function()

    def flush(self) -> None:
        """Do everything that waits, now; what that brings about as well."""
        while self._work:
            _do(self._work.popleft())

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._do_slice)

    def _do_slice(self) -> None:
        self._scheduled = False
        self._turn_ends = None
        if self._urgent:
            until = self._clock() + TURN
            while self._urgent and self._clock() < until:
                _do(self._urgent.popleft())
            self._schedule()
            return
        until = self._clock() + SLICE
        while self._work:
            _do(self._work.popleft())
            if self._clock() >= until:
                break
        if self._work:
            self._schedule()


def _do(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001 - logged; what comes after it may fare better
        log.exception("%s failed", work)
