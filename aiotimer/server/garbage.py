"""A collector of garbage for a server's own process: it collects while no timer is due.

The laws of this file:

* CPython visits every object that lives when so many new ones have been made: in a storm that keeps the loop
  for a tenth of a second, and whoever is due waits. Here it does not do so by itself any more.
* It is done when the next timer is due later than it will take, or when so much waits that memory would grow.
* What is there when it begins is never visited: the modules, mostly.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import monotonic

FEW, MANY = 20_000, 1_000_000
"""Objects made and not freed since: fewer are not worth it, and more are not left to wait."""

AT_LEAST = 0.02
"""Seconds that it may take: twice as long as it took the last time, and no less than this."""


class GarbageCollector:
    """Collects the garbage of this process, instead of the interpreter.

    Args:
        due_in: returns in how many seconds the next timer is due.
        made: returns how many objects have been made, less those that were freed, since the last time.
        collect: does it.
    """

    def __init__(
        self,
        due_in: Callable[[], float],
        clock: Callable[[], float] = monotonic,
        made: Callable[[], int] = lambda: gc.get_count()[0],
        collect: Callable[[], object] = gc.collect,
    ) -> None:
        self._due_in = due_in
        self._clock = clock
        self._made = made
        self._collect = collect
        self._takes = AT_LEAST

    def take_over(self) -> None:
        """Do it from now on."""
        gc.freeze()
        gc.disable()

    def tick(self) -> None:
        """Collect, if that is worth it, and nobody waits for it."""
        made = self._made()
        if made >= MANY or (made >= FEW and self._due_in() > self._takes):
            began = self._clock()
            self._collect()
            self._takes = max(AT_LEAST, 2 * (self._clock() - began))
