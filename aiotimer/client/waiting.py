"""Drivers of steps: one way to talk to a server, two ways to wait.

A handshake, or a request and its acknowledgement, is written once, as a generator that yields what it waits
for (:class:`Wait`) and never waits itself. :func:`run` drives it by blocking the thread in ``poll``;
:func:`run_async` by suspending the task on the running loop, whichever loop that is. When the time is over,
TimeoutError is raised where it waits; interrupted, the generator is closed, which undoes what it had begun.
A wait with a limit of its own is not taken from the budget, unless that is asked for. The idea is psycopg's
(``psycopg/generators.py``, ``waiting.py``).
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Generator
from math import inf
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from ..errors import AiotimerError

if TYPE_CHECKING:
    from asyncio import Future


class Wait(NamedTuple):
    """Wait until a descriptor is ready, for a while, or in a function that waits itself.

    Attributes:
        descriptor: -1 for none. Of those who wait at once in one event loop, each needs another one.
        write: wait until it can be written (else: read).
        seconds: with no descriptor: how long.
        call: called instead with the seconds that it may take; in a thread of its own, not to hold up a loop.
        until: a moment (``CLOCK_MONOTONIC``) until which this may last whatever the budget, and is not part
            of it.
    """

    descriptor: int = -1
    write: bool = False
    seconds: float = 0.0
    call: Callable[[float], object] | None = None
    until: float = -inf


T = TypeVar("T")
Steps: TypeAlias = Generator[Wait, None, T]


def run(steps: Steps[T], budget: float, *, patient: bool = True) -> T:
    """Drive ``steps`` to the end by blocking this thread.

    Args:
        steps: what to do.
        budget: seconds that this may take.
        patient: a wait with a limit of its own is not part of the budget.

    Raises:
        TimeoutError: it took longer, and the steps did not make another error of it.
    """
    time = _Time(budget, patient=patient)
    try:
        wait = next(steps)
        while True:
            try:
                _block(wait, time)
            except (AiotimerError, OSError) as error:
                wait = steps.throw(error)
            else:
                wait = next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # a generator's return value is untyped here
    finally:
        steps.close()


def _block(wait: Wait, time: _Time) -> None:
    left = time.left(wait)
    if wait.call is not None:
        wait.call(left)
    elif wait.descriptor < 0:
        sleep(min(wait.seconds, left))
    else:
        poll = select.poll()
        poll.register(wait.descriptor, select.POLLOUT if wait.write else select.POLLIN)
        if not poll.poll(left * 1000):
            raise time.over(left)


async def run_async(steps: Steps[T], budget: float, *, patient: bool = True) -> T:
    """Drive ``steps`` to the end by suspending this task; as :func:`run`."""
    time = _Time(budget, patient=patient)
    try:
        wait = next(steps)
        while True:
            try:
                await _suspend(wait, time)
            except (AiotimerError, OSError) as error:
                wait = steps.throw(error)
            else:
                wait = next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # as above
    finally:
        steps.close()


async def _suspend(wait: Wait, time: _Time) -> None:
    import asyncio

    left = time.left(wait)
    loop = asyncio.get_running_loop()
    if wait.call is not None:
        await loop.run_in_executor(None, wait.call, left)
        return
    if wait.descriptor < 0:
        await asyncio.sleep(min(wait.seconds, left))
        return
    ready: asyncio.Future[bool] = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if wait.write else (loop.add_reader, loop.remove_reader)
    )
    timer = loop.call_later(left, _set, ready, False)
    add(wait.descriptor, _set, ready, True)
    try:
        if not await ready:
            raise time.over(left)
    finally:
        timer.cancel()
        remove(wait.descriptor)


class _Time:
    """How long steps may still take."""

    __slots__ = ("_apart_since", "_budget", "_patient", "_until")

    def __init__(self, budget: float, *, patient: bool) -> None:
        self._budget = budget
        self._patient = patient
        self._until = monotonic() + budget
        self._apart_since: float | None = None

    def left(self, wait: Wait) -> float:
        """Return how long a wait may take at most.

        Raises:
            TimeoutError: the time is over.
        """
        now = monotonic()
        if self._apart_since is not None:  # the last wait was not part of the budget
            self._until += now - self._apart_since
        apart = self._patient and wait.until > now
        self._apart_since = now if apart else None
        left = (max(self._until, wait.until) if apart else self._until) - now
        if left <= 0:
            raise self.over(left)
        return left

    def over(self, left: float) -> TimeoutError:
        """Return the error that the last wait, which could take so many seconds, was in vain."""
        seconds = self._budget if self._apart_since is None else left
        return TimeoutError(f"no answer within {seconds:.2g} s")


def _set(future: Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


class Turn:
    """Somebody's turn at what one may do at a time. It ends when :attr:`over` is set.

    Make it before the ``try``, take it inside, and end it in the ``finally``: an interruption between any
    two bytecodes then leaves nothing taken, which no lock can promise that is not held by a ``with``.
    """

    __slots__ = ("next", "over")

    def __init__(self) -> None:
        self.over = False
        self.next: dict[None, Turn] = {}  # whose turn is next, once this one is over


class Turns:
    """One turn at a time. Who is next is decided by ``dict.setdefault``, which is atomic: no lock."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = Turn()
        self._turn.over = True

    def take(self, turn: Turn) -> bool:
        """Try to take the turn; return whether it is taken, by this one."""
        last = self._turn
        while last.over:
            last = last.next.setdefault(None, turn)
        if last is not turn:
            return False
        self._turn = turn
        return True

    @property
    def taken(self) -> bool:
        """Whether it is somebody's turn."""
        return not self._turn.over


BUDGET = 0.25
"""Seconds for which a request may hold the worker when its server has to be reached, unless it is told."""

BUDGET_ON_LOOP = 0.005
"""Seconds for which a synchronous call may hold a running event loop when a server has to be reached."""


def within(budget: float) -> float:
    """Return ``budget``, or what is left of it for a synchronous call on a running event loop."""
    return min(budget, BUDGET_ON_LOOP) if loop_is_running() else budget


def loop_is_running() -> bool:
    """Whether this thread is inside a running event loop (without importing asyncio to find out)."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None
