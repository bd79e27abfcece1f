"""The exit state of a block: what leaving it needs besides a store. Most blocks have none."""

from __future__ import annotations

import os
from _thread import RLock
from math import nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .connection import WorkerQueue


class ExitState:
    """What leaving a block must mind besides a store. Made once it must mind anything.

    Attributes:
        lock: held by ``renew`` while it stores.
        queue: where the release must be sent, if it is socket-only.
        budget: seconds that this may take: those of the client that entered.
        pid: the process that entered: a forked child sends nothing about its parent's block.
        entered_at: when the block was entered, on its table's clock, if its duration is to be counted.
    """

    __slots__ = ("budget", "entered_at", "lock", "pid", "queue")

    def __init__(self, queue: WorkerQueue | None = None, budget: float = 0.0) -> None:
        self.lock = RLock()  # a signal's handler may renew, too
        self.queue = queue
        self.budget = budget
        self.entered_at = nan
        self.pid = os.getpid() if queue is not None else 0

    @property
    def sends_release(self) -> bool:
        """Whether the release has to be sent."""
        return self.queue is not None and self.pid == os.getpid()


async def nothing() -> None:
    """What ``__aexit__`` returns when there is nothing to wait for."""


async def time_out(released: Awaitable[None], scope: str, after: float, cause: BaseException | None) -> None:
    """Leave a block whose ``after`` was over, once it is released."""
    await released
    raise TimeoutError(f"{scope!r} was not done after {after:g} s") from cause
