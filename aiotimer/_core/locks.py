"""A re-entrant lock that no interruption leaves held, wherever the interpreter runs a signal's handler.

``with`` does not promise that: CPython 3.14 may run the handler after ``__enter__`` has taken the lock, and
before it knows that ``__exit__`` is to be called (CPython #148874). If the handler raises, every other thread
waits for ever. The laws of this file:

* The lock is taken inside the ``try`` whose ``finally`` gives it back; and that does so with its first call,
  since handlers run after a call and never before one.
* A thread that has the lock does not take it again, so there is nothing to count.
"""

from __future__ import annotations

from _thread import RLock
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Lock(RLock):  # type: ignore[misc]  # it is final in the stubs only
    """A lock. A signal's handler that finds its own thread in there goes in too."""

    __slots__ = ()

    if TYPE_CHECKING:

        def is_mine(self) -> bool:
            """Whether this thread has it."""

    else:
        is_mine = RLock._is_owned

    def holding(self, do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function while this thread has the lock."""
        nested = self.is_mine()
        try:
            if not nested:
                self.acquire()
            return do(*args, **kwargs)
        finally:
            if not nested:
                try:
                    self.release()
                except RuntimeError:
                    pass  # interrupted while it was waiting
