"""A work queue: what an event loop has to do is done in slices, and looks that are due before all else.

The laws of this file:

* A turn of the loop takes no longer than ``TURN`` for looks, and ``SLICE`` for each of the two other lines,
  one piece that takes longer apart; then timers, which may be due by now, and all other callbacks come.
* First come looks that are due: act first, describe afterwards. Then connections, each one step in its turn,
  for a moment only if there are looks left; then, if there are none, work.
* What is long is a generator, and only its steps are not interrupted. A connection goes behind all others
  after each step; and so does what is left of a look, for there may be thousands of timers of one worker, and
  looks for others to come.
* Work about one worker is done in the order in which it was put. Whoever came first has ``TOGETHER`` pieces
  done, and then others have their turn: thousands of reports of one worker keep no other's waiting.
* Nothing is done by :meth:`WorkQueue.put`, unless so much waits that whoever puts more has to help.
* An error of one piece of work is logged, and is no other's.
* What waits for others is a task. None outlives the queue: who stops it waits until all have ended.
* An :class:`Alarm` is never early.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator, Hashable, Sized
from functools import partial
from math import ceil, inf
from time import monotonic
from types import GeneratorType
from typing import Any, TypeAlias, TypeVar

from ..events import log

TURN = 0.002
"""Seconds: the longest that looks keep the loop."""

SLICE = 0.001
"""Seconds: the longest that connections keep it besides, and as long again does work. These are four
milliseconds in all, and one piece that takes longer."""

BETWEEN = 0.0005
"""Seconds that connections have when there are looks left: in a storm, too, whoever asks is answered."""

MOST = 10_000
"""Pieces of work that wait: whoever puts one more has the oldest done first."""

TOGETHER = 32
"""Pieces of work about one worker, and steps of long ones, that are done before it is the next one's turn."""

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
        left: seconds of this turn of the loop that are left for what is done at once.
    """

    def __init__(self, left: float) -> None:
        self.left = left
        self.jobs: deque[Job] = deque()


class _Work:
    """Jobs that wait, by whom they are about."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Hashable, deque[Job]] = OrderedDict()  # whoever is first has its turn
        self._count = self._together = 0
        self._turn_of: Hashable = self  # nobody's

    def __len__(self) -> int:
        return self._count

    def put(self, whom: Hashable, job: Job) -> None:
        """Add a job behind all others about the same one."""
        self._jobs.setdefault(whom, deque()).append(job)
        self._count += 1

    def take(self) -> tuple[Hashable, Job]:
        """Take out the next job. There has to be one."""
        whom = next(iter(self._jobs))
        if whom == self._turn_of and self._together >= TOGETHER:
            self._jobs.move_to_end(whom)
            whom = next(iter(self._jobs))
            self._together = 0
        if whom != self._turn_of:
            self._turn_of, self._together = whom, 0
        self._together += 1
        self._count -= 1
        jobs = self._jobs[whom]
        job = jobs.popleft()
        if not jobs:
            del self._jobs[whom]
        return whom, job

    def put_back(self, whom: Hashable, left: Job) -> None:
        """Put what is left of a job before all others about the same one, whose turn goes on."""
        if whom not in self._jobs:
            self._jobs[whom] = deque()
            self._jobs.move_to_end(whom, last=False)
        self._jobs[whom].appendleft(left)
        self._count += 1


class WorkQueue:
    """Work that is done soon, in slices; only the loop's own thread puts it.

    Args:
        clock: tells how long a slice takes, seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._looks, self._turns, self._work = _Line(TURN), _Line(SLICE), _Work()
        self._scheduled = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def crowded(self) -> bool:
        """Whether so much work waits that whoever can wait with more of it should."""
        return len(self._work) >= MOST // 2

    def put(self, whom: Hashable, function: Callable[..., object], *arguments: object) -> None:
        """Have a function called soon, after all that was put before; the steps that it returns are taken.

        Args:
            whom: the worker that it is about, see the laws; None: all of them.
            function: called with the arguments.
        """
        if len(self._work) >= MOST:
            self._do_work()
        self._work.put(whom, partial(function, *arguments))
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
        while self._work:
            self._do_work()

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
        ours = asyncio.current_task()
        # One that is done stays in the set until the loop has had a turn, for which nobody may wait here.
        while others := [task for task in self._tasks if task is not ours and not task.done()]:
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
            self._go_on(_do(job))
            line.left -= self._clock() - began

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._do_slice)

    def _do_slice(self) -> None:
        self._scheduled = False
        looks, turns = self._looks, self._turns
        looks.left, turns.left = TURN, SLICE
        self._do_for(TURN, looks.jobs, partial(self._do_next, looks))
        self._do_for(BETWEEN if looks.jobs else SLICE, turns.jobs, partial(self._do_next, turns))
        if not looks.jobs:
            self._do_for(SLICE, self._work, self._do_work)
        if looks.jobs or turns.jobs or self._work:
            self._schedule()

    def _do_for(self, share: float, jobs: Sized, do_next: Callable[[], None]) -> None:
        until = self._clock() + share
        while jobs:
            do_next()
            if self._clock() >= until:
                return

    def _do_next(self, line: _Line) -> None:
        self._go_on(_do(line.jobs.popleft()))

    def _go_on(self, left: Job | None) -> None:
        if left is not None:
            self._turns.jobs.append(left)
            self._schedule()

    def _do_work(self) -> None:
        whom, job = self._work.take()
        left = _do(job)
        if left is not None:
            self._work.put_back(whom, left)


def _do(job: Job) -> Job | None:
    """Do a job, or take a step of it, and return what is left of it. An error is logged."""
    try:
        if callable(job):
            left = job()
            return left if isinstance(left, GeneratorType) else None
        next(job)
    except StopIteration:
        return None
    except Exception:  # noqa: BLE001 - logged; what comes after it may fare better
        log.exception("%s failed", job)
        return None
    return job
