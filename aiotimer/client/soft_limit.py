"""A timeout, the soft limit of a block with grace: its task is cancelled before the process is reaped.

It behaves as ``asyncio.timeout`` does (``asyncio/timeouts.py`` of CPython 3.12): the cancellation is ours if
the task's count of cancellations, less ours, is what it was on entering. The hard limit is the timer in the
table: a task that swallows its cancellation is reaped. This file imports asyncio, so it is imported late.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable


class Cancellable(Protocol):
    """What has been scheduled."""

    def cancel(self) -> None:
        """Do not do it."""


CallLater: TypeAlias = "Callable[[float, Callable[[], None]], Cancellable]"
"""``call_later(seconds, callback)``, in a loop's thread."""


class SoftLimit:
    """When to cancel the block's task, and what became of it.

    Attributes:
        after: seconds from entering to the cancellation.
        grace: seconds from there to being reaped.
    """

    def __init__(self, after: float, grace: float) -> None:
        self.after = after
        self.grace = grace
        self.fired = False
        # Weakly: the loop keeps this object until the limit, and must not keep an interrupted block alive
        # by way of its task and that one's traceback.
        self._task: Callable[[], asyncio.Task[object] | None] = _nobody
        self._cancelling = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._call_later: CallLater | None = None
        self._handle: Cancellable | None = None

    def start(self, call_later: CallLater | None = None) -> None:
        """Begin to count, in the current task.

        Args:
            call_later: counts on another clock than the loop's.
        """
        self._loop = asyncio.get_running_loop()
        self._call_later = call_later or self._loop.call_later
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("expires() with grace must be used inside a task")
        self._task = weakref.ref(task)
        self.fired = False
        self._cancelling = task.cancelling()
        self._handle = self._call_later(self.after, self._fire)

    def restart(self, after: float) -> None:
        """Count again from now; callable from any thread."""
        if self.fired:
            raise RuntimeError("the block has been cancelled already")
        self.after = after
        assert self._loop is not None
        if asyncio._get_running_loop() is self._loop:
            self._schedule()
        else:
            self._loop.call_soon_threadsafe(self._schedule)

    def stop(self) -> None:
        """Do not cancel any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def was_the_cause(self, kind: type[BaseException] | None) -> bool:
        """Whether the block leaves with a cancellation, and nobody but us had asked for one."""
        if not self.fired:
            return False
        task = self._task()
        assert task is not None  # it is running
        count = task.uncancel()
        return count <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError)

    def _schedule(self) -> None:
        if self._handle is not None and not self.fired:
            assert self._call_later is not None
            self._handle.cancel()
            self._handle = self._call_later(self.after, self._fire)

    def _fire(self) -> None:
        self.fired = True
        self._handle = None
        task = self._task()
        if task is not None:
            task.cancel()


def _nobody() -> None:
    return None
