"""A context manager, a block with grace: its task is cancelled first, and the process reaped later.

The law of this file: the hard limit is the timer; the soft one is the task's alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import seconds
from .block import Block
from .clients import configured
from .exit_state import nothing, time_out

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType
    from typing import NoReturn, Self

    from .soft_limit import SoftLimit


class GracefulBlock(Block):
    """A block with grace: first its task is cancelled, then the process is reaped."""

    __slots__ = ("_soft",)

    _soft: SoftLimit

    def __enter__(self) -> NoReturn:
        """Refuse: there is no task to cancel."""
        raise ValueError("grace needs `async with`: a plain `with` has no task to cancel")

    async def __aenter__(self) -> Self:
        """Begin the soft limit, then arm the timer."""
        if self._slot is None:
            self._soft.start((self._client or configured())._queue.call_later)
        try:
            return await super().__aenter__()
        except BaseException as error:
            if self._slot is None:
                self._soft.stop()
                if self._soft.was_the_cause(type(error)):  # connecting took longer than the block may
                    await time_out(nothing(), self.scope, self._soft.after, error)
            raise

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

    def renew(self, after: float | None = None) -> None:
        """Start both limits again, from now; see ``Block.renew``.

        Raises:
            RuntimeError: outside the block, or the task has been cancelled already.
        """
        soft = self._soft
        after = soft.after if after is None else seconds(after, "after")
        if self._slot is not None:
            soft.restart(after)
        super().renew(after + soft.grace)

    def add_grace(self, grace: float) -> None:
        """Complete a block whose ``_after`` is the soft limit."""
        from .soft_limit import SoftLimit

        self._soft = SoftLimit(self._after, grace)
        self._after = seconds(self._after + grace, "after + grace")

    def _another(self) -> Self:
        block = super()._another()
        block._after = self._soft.after
        block.add_grace(self._soft.grace)
        return block
