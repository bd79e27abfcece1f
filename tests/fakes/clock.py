"""Clocks: one that stands still until it is told, and how long a test waits on the real one.

The law of this file: nothing waits by sleeping. Whoever waits names an event and gives up, loudly, after
``PATIENCE``.
"""

from __future__ import annotations

from time import monotonic, sleep

PATIENCE = 30.0
"""Seconds after which something that was waited for counts as never coming."""


class Clock:
    """A clock that stands still until it is told.

    Attributes:
        now: seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def clock_passes(deadline: float) -> None:
    """Wait until ``CLOCK_MONOTONIC`` is past a deadline, for a test in which nothing must happen at it."""
    while (left := deadline - monotonic()) > 0:
        sleep(left)
