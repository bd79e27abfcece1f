"""A work queue: what an event loop has to do is done in slices, and looks that are due before all else.

The laws of this file:

* A turn of the loop takes no longer than ``TURN`` for looks, and ``SLICE`` for each of the two other lines,
  but for one piece that takes longer; then timers, which may be due by now, and all other callbacks come.
* First come looks that are due: act first, describe afterwards. Then connections, each one step in its turn;
  then work, in the order in which it was put.
* What is long is a generator, and only its steps are not interrupted. Work keeps its order. A connection goes
  behind all others after each step; and so does what is left of a look, for there may be thousands of timers
  of one worker, and looks for others to come.
* Nothing is done by :meth:`WorkQueue.put`, unless so much waits that whoever puts more has to help.
* An error of one piece of work is logged, and is no other's.
* What waits for others is a task. None outlives the queue: who stops it waits until all have ended.
* An :class:`Alarm` is never early.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from math import ceil, inf
from time import monotonic
from types import GeneratorType
from typing import Any, TypeAlias, TypeVar

from ..events import log

SLICE = 0.002
"""Seconds: the longest that connections keep the loop, and that work does, one long piece apart."""

TURN = 0.005
"""Seconds: the longest that looks keep the loop, but for one piece that takes longer."""

MOST = 10_000
"""Pieces of work that wait: whoever puts one more has the oldest done first."""

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]
"""Something long, one step after the other; in the end it returns its result."""

Job: TypeAlias = Callable[[], object] | Generator[Any, Any, Any]


def finish(steps: Steps[T]) -> T:
    """Take all steps at once, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # it is what the steps return


class Alarm:
    """Calls a function at a moment of a clock, and never before.

    A loop that wakes early (uvloop rounds to whole milliseconds) is sent back to sleep, each time for a
    little more, so that one which is always early wakes a few times, and never spins.

    Attributes:
        at: the moment; ``inf``: none.
    """

    __slots__ = ("_clock", "_handle", "_loop", "_ring", "_rounds", "_spare", "at")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], ring: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._ring = ring
        self._rounds = not isinstance(loop, asyncio.BaseEventLoop)  # uvloop: to the nearest millisecond
        self._spare = 0  # milliseconds to add after the next early wake
        self._handle: asyncio.TimerHandle | None = None
        self.at = inf

    def set(self, at: float) -> None:
        """Ring at another moment, instead of the one before."""
        self.at = at
        self._spare = 0
        self._sleep(0)

    def _sleep(self, spare: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self.at < inf:
            delay = max(0.0, self.at - self._clock())
            if self._rounds:
                delay = ceil(delay * 1000) / 1000
            self._handle = self._loop.call_at(self._loop.time() + delay + spare / 1000, self._woken)

    def _woken(self) -> None:
        self._handle = None
        if self.at > self._clock():  # early
            spare, self._spare = self._spare, 2 * self._spare or 1
            self._sleep(spare)
        else:
            self._ring()


class _Line:
    """Jobs that wait, first come, first served.

    Attributes:
        share: seconds that they may have in a turn of the loop.
        left: seconds of it that are left for what is done at once.
    """

    def __init__(self, share: float) -> None:
        self.share = self.left = share
        self.jobs: deque[Job] = deque()


class WorkQueue:
    """Work that is done soon, in slices; only the loop's own thread puts it.

    Args:
        clock: tells how long a slice takes, seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._looks, self._turns, self._work = _Line(TURN), _Line(SLICE), _Line(SLICE)
        self._scheduled = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def crowded(self) -> bool:
        """Whether so much work waits that whoever can wait with more of it should."""
        return len(self._work.jobs) >= MOST // 2

    def put(self, function: Callable[..., object], *arguments: object) -> None:
        """Have a function called soon, after all that was put before; the steps that it returns are taken."""
        if len(self._work.jobs) >= MOST:
            self._do_next(self._work)
        self._work.jobs.append(partial(function, *arguments))
        self._schedule()

    def do_first(self, function: Callable[[], object]) -> None:
        """Call a function now; or before all else, if the loop has been kept for a while without a turn."""
        self._now_or_next(self._looks, function)

    def take_turn(self, steps: Steps[Any]) -> None:
        """Take these steps, the first one now if nobody waits and the loop has not been kept for a while."""
        self._now_or_next(self._turns, steps)

    async def complete(self, steps: Steps[T]) -> T:
        """Take steps in turns with the connections, and return their result."""
        done: asyncio.Future[T] = self._loop.create_future()

        def to_the_end() -> Steps[None]:
            try:
                result = yield from steps
            except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self.take_turn(to_the_end())
        return await done

    def flush(self) -> None:
        """Do all the work that waits, now; what that brings about as well."""
        while self._work.jobs:
            self._do_next(self._work)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Have a coroutine run beside all this, as a task that ends at the latest in :meth:`end_tasks`."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Do the same where nobody waits for the end."""
        _task = self.start(coroutine)

    async def end_tasks(self) -> None:
        """Cancel the tasks, and wait until they have ended; so with those that they have started."""
        while others := self._tasks - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def _now_or_next(self, line: _Line, job: Job) -> None:
        # That the loop has had a turn is asked for, and paid for, only when a share is used up.
        if self._looks.jobs or line.jobs or line.left <= 0.0:
            line.jobs.append(job)
            self._schedule()
        else:
            began = self._clock()
            self._do(job, line)
            line.left -= self._clock() - began

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._do_slice)

    def _do_slice(self) -> None:
        self._scheduled = False
        for line in (self._looks, self._turns, self._work):
            line.left = line.share
            if line.jobs:
                until = self._clock() + line.share
                while line.jobs:
                    self._do_next(line)
                    if self._clock() >= until:
                        break
            if self._looks.jobs:
                break  # all of them come before anything else
        if self._looks.jobs or self._turns.jobs or self._work.jobs:
            self._schedule()

    def _do_next(self, line: _Line) -> None:
        self._do(line.jobs.popleft(), line)

    def _do(self, job: Job, line: _Line) -> None:
        left: object = job
        try:
            if callable(job):
                left = job()
            else:
                next(job)
        except StopIteration:
            return
        except Exception:  # noqa: BLE001 - logged; what comes after it may fare better
            log.exception("%s failed", job)
            return
        if isinstance(left, GeneratorType):
            if line is self._work:
                line.jobs.appendleft(left)
            else:
                self._turns.jobs.append(left)
                self._schedule()
