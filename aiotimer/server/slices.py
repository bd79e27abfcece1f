"""A work queue: what can wait is done in slices, between everything else that an event loop has to do.

The laws of this file: what is put first is done first; nothing is done by :meth:`WorkQueue.put`, unless so
much waits that whoever puts more has to help; a slice ends after ``SLICE`` seconds, and other callbacks of
the loop come before the next one; an error of one piece of work is logged, and is no other's.
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
        self._scheduled = False

    def put(self, function: Callable[..., object], *arguments: object) -> None:
        """Have a function called soon, after all that was put before; only in the loop's own thread."""
        while len(self._work) >= MOST:
            self._do_next()
        self._work.append(partial(function, *arguments))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._do_slice)

    def flush(self) -> None:
        """Do everything that waits, now; what that brings about as well."""
        while self._work:
            self._do_next()

    def _do_slice(self) -> None:
        self._scheduled = False
        until = self._clock() + SLICE
        while self._work:
            self._do_next()
            if self._clock() >= until:
                break
        if self._work and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._do_slice)

    def _do_next(self) -> None:
        work = self._work.popleft()
        try:
            work()
        except Exception:  # noqa: BLE001 - logged; what comes after it may fare better
            log.exception("%s failed", work.func)
