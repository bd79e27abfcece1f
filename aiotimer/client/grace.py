"""A context manager, a block with grace: its task is cancelled first, and the process reaped later.

The laws of this file:

* The hard limit is the timer; the soft one, the task's alone: a task that swallows a cancellation is reaped.
* The soft limit behaves as ``asyncio.timeout`` does (``asyncio/timeouts.py`` of CPython 3.12): the
  cancellation is ours if the task's count of cancellations, less ours, is what it was on entering.
* This file imports asyncio, so it is imported late.
* An entry stores its grace into the table, and later that its task was cancelled: of a loop that is blocked
  nobody else could tell. What has no grace pays nothing for that.
"""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from .._core.layout import COUNT_OF, LABEL_WORDS
from .arguments import seconds
from .block import IN_USE, Block, nothing
from .clients import configured
from .first_entries import FirstBlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import timedelta
    from types import TracebackType
    from typing import NoReturn, Self

    from .connection import CallLater, Cancellable


class GracefulBlock(Block):
    """A block with grace: first its task is cancelled, then the process is reaped."""

    __slots__ = ("_soft",)

    _soft: SoftLimit

    def __enter__(self) -> NoReturn:
        """Refuse: there is no task to cancel."""
        raise ValueError("grace needs `async with`: a plain `with` has no task to cancel")

    async def __aenter__(self) -> Self:
        """Connect if need be; only then begin the soft limit, and arm the timer."""
        client = self._client or configured()
        queue = client._queue
        if self._pool.table is not queue.watched and not queue.ended:
            await self._connect(client, queue)
        self._soft.start(queue.call_later)
        try:
            await self._enter_connected(client, queue)
            pool, soft, slot = self._pool, self._soft, cast(int, self._slot)
            if pool.grace_at:
                soft.cells, cells = pool.cells, pool.cells
                soft.word = word = pool.grace_at + LABEL_WORDS * slot + 1
                cells[word] = soft.grace
                cells[word - 1] = -cells[slot + COUNT_OF]  # last: it says that the other one holds
        except BaseException as error:
            self._soft.stop()
            if self._soft.was_the_cause(type(error)):  # an acknowledgement took longer than the block may
                await time_out(nothing(), self.scope, self._soft.after, error)
            raise
        return self

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        """Release the timer before anything is awaited, and turn our own cancellation into TimeoutError."""
        released = super().__aexit__(kind, error, traceback)
        self._soft.stop()
        if not self._soft.was_the_cause(kind):
            return released
        return time_out(released, self.scope, self._soft.after, error)

    def __del__(self) -> None:
        """Release what an interruption kept from being left, and cancel nobody for it."""
        try:
            self._soft.stop()
        except AttributeError:
            return  # it was never made
        super().__del__()

    @property
    def deadline(self) -> float:
        """When the task is cancelled, in ``time.monotonic()`` seconds. RuntimeError outside the block."""
        return super().deadline - self._soft.grace

    def remaining(self) -> float:
        """Return the seconds left until the task is cancelled."""
        return super().remaining() - self._soft.grace

    def renew(self, after: float | timedelta | None = None) -> None:
        """Start both limits again, from now; see ``Block.renew``.

        Raises:
            RuntimeError: outside the block, or the task has been cancelled already.
        """
        soft = self._soft
        after = soft.after if after is None else seconds(after, "after")
        if self._slot is not None:
            soft.restart(after)
        super().renew(after + soft.grace)

    def _after_entering(self) -> float:
        return self._soft.after

    def add_grace(self, grace: float) -> None:
        """Complete a block whose ``_after`` is the soft limit."""
        self._soft = SoftLimit(self._after, grace)
        self._after = seconds(self._after + grace, "after + grace")

    def _another(self) -> Self:
        block = super()._another()
        block._after = self._soft.after
        block.add_grace(self._soft.grace)
        return block


class FirstGracefulBlock(FirstBlock, GracefulBlock):
    """A block with grace that may be one of the first of its scope: both of its limits are later then."""

    __slots__ = ()

    def __enter__(self) -> NoReturn:
        """Refuse, as without that."""
        GracefulBlock.__enter__(self)

    def _is_in_use(self) -> bool:
        return self._slot is not None or self._soft.is_in_use

    def _first_limit(self) -> float:
        return self._soft.after

    def _make_ordinary(self, after: float) -> None:
        self._after = after
        self.add_grace(self._soft.grace)
        self.__class__ = GracefulBlock  # type: ignore[assignment]

    def _release_nowait(self) -> None:
        self._soft.stop()
        super()._release_nowait()


def with_grace(block: Block, grace: float) -> GracefulBlock:
    """Return a block like this one, which is complete, but with grace."""
    graceful = FirstGracefulBlock() if isinstance(block, FirstBlock) else GracefulBlock()
    graceful._slot = graceful._exit_state = graceful._deadline = None
    graceful._after, graceful._client, graceful._pool = block._after, block._client, block._pool
    graceful.add_grace(grace)
    return graceful


class SoftLimit:
    """When to cancel the block's task, and what became of it.

    Attributes:
        after: seconds from entering to the cancellation.
        grace: seconds from there to being reaped.
        cells, word: where the entry has said so; None, as long as there is none that has.
        fired: the cancellation has been asked for.
        is_in_use: a block has been entered with it, and not been left.
    """

    def __init__(self, after: float, grace: float) -> None:
        self.after = after
        self.grace = grace
        self.cells: memoryview[float] | None = None
        self.word = 0
        self.fired = self.is_in_use = False
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
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("expires() with grace must be used inside a task")
        if self.is_in_use:  # as in ``Block.__enter__``: from here to the store nothing is called
            raise RuntimeError(IN_USE)
        self.is_in_use, self._loop, self.fired = True, loop, False
        self._call_later = call_later or loop.call_later
        self._task = weakref.ref(task)
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
        handle, self._handle, self.is_in_use = self._handle, None, False
        if handle is not None:
            handle.cancel()

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
        if self.cells is not None:
            with suppress(IndexError):  # a child, which has another place
                if self.cells[self.word] == self.grace:  # else it has been renewed into another table
                    self.cells[self.word] = -self.grace


def _nobody() -> None:
    return None


async def time_out(released: Awaitable[None], scope: str, after: float, cause: BaseException | None) -> None:
    """Leave a block whose ``after`` was over, once it is released."""
    await released
    raise TimeoutError(f"{scope!r} was not done after {after:g} s") from cause
