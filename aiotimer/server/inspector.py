"""An inspector: it has evidence gathered, for an expiry or for a person who asks, and asks event loops.

The laws of this file:

* An inspection never delays a kill beyond its budget nor harms the server: whatever it does (it raises, it
  takes too long, it does not even end when it is cancelled), whoever asked for it goes on when the budget is
  used up or the worker is dead; few are under way at a time, so that a storm of expiries does not become a
  storm of probes.
* *Everybody is looked at before anybody is killed.* Workers of one job wait for each other, and whoever
  started them ends the rest as soon as one is dead. So nobody's ladder goes on before all whose timers were
  due by then have been seen, as far as that takes no signal, or its own budget is used up.
* An event loop of a worker is asked on an inspection channel, a connection of its own, which it opened with
  ``Attend``; at most one question is on its way on each; who does not answer is told from who has not been
  asked. An answer is untrusted: it is data of the types of :class:`~aiotimer._core.wire.Tasks`, and no longer
  than a frame.
* ``aiotimer dump PID`` signals nothing that could harm the worker; what is found has the shape of the record
  of an expiry, with nothing expired.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .._core import wire
from ..errors import ProtocolError
from ..events import log
from ..evidence import NO_FINDINGS, Answers, Findings, Subject, gather, reasons
from ..evidence.findings import ASK_WITHIN
from ..evidence.record import Record
from .expiry import MAX_TIMERS, Expiry, LookAround, entry_of, record_id
from .worker import Asking

if TYPE_CHECKING:
    from .._core.reader import Timer
    from .slices import WorkQueue
    from .watched_table import WatchedTable
    from .worker import Inspectable, Worker

AT_ONCE = max(2, min(8, len(os.sched_getaffinity(0))))
"""Inspections under way at most: one for each processor, from two to eight.

Each starts threads and a helper process. More of them than processors find out no more in the same time; and
a helper that waits for a processor before its ``exec`` holds up the thread that starts it, and the loop too.
"""

LEAST = 0.5
"""Seconds that there are at least to look at a member of a run that has not expired, if there are so many."""

MAX_CHANNELS = 64
"""Inspection channels of one worker: one for each of its event loops."""

MAX_TASKS = 1000
"""Reports of tasks that are evidence, of all event loops of one worker together."""

Then: TypeAlias = Callable[[], object]


class Call(Protocol):
    """The roll call of a run, as far as an inspector knows one."""

    def inspected(self) -> None:
        """One that has expired has been looked at."""

    async def wait(self) -> None:
        """Wait until all have been called."""


CallOf: TypeAlias = "Callable[[Worker, Expiry, float], Call | None]"
"""Of a worker that has expired, the roll call that it belongs to; see ``Runs.expired``."""


class Turns:
    """Turns to look at somebody, so many at a time. Who has expired comes before who has not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self._loop = loop
        self._free = count
        self._expired: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    @property
    def others(self) -> int:
        """How many wait that have not expired."""
        return len(self._others)

    async def take(self, *, first: bool) -> None:
        """Wait for a turn.

        Args:
            first: it has expired.
        """
        if self._free:
            self._free -= 1
            return
        turn = self._loop.create_future()
        line = self._expired if first else self._others
        line.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it was given to who does not want it any more
            else:
                line.remove(turn)
            raise

    def give_back(self) -> None:
        """It is somebody else's turn."""
        line = self._expired or self._others
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
            line = self._expired or self._others
        self._free += 1


class Unseen:
    """Those who are being looked at and have not been seen, in the order in which they began; O(1)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._latest = 0
        self._unseen: dict[int, None] = {}
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def begin(self) -> int:
        """Somebody is going to be looked at; return the number to be given to :meth:`seen`."""
        self._latest += 1
        self._unseen[self._latest] = None
        return self._latest

    def seen(self, number: int) -> None:
        """Somebody has been seen, or will not be; saying so again does nothing."""
        self._unseen.pop(number, None)
        first = next(iter(self._unseen), inf)
        while self._waiting and self._waiting[0][0] < first:
            future = self._waiting.popleft()[1]
            if not future.done():
                future.set_result(None)

    async def all_seen(self) -> None:
        """Wait until all who have begun by now have been seen."""
        if self._unseen:
            future = self._loop.create_future()
            self._waiting.append((self._latest, future))
            await future


def nothing(why: str) -> Findings:
    """Return the findings of whoever found nothing."""
    return NO_FINDINGS._replace(probes={"all": why})


class Inspector:
    """Has evidence gathered, within a budget.

    Args:
        budget: seconds that one inspection may take, the wait for its turn included; 0: none is made.
        queue: where it waits until all that is due has been looked at.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, budget: float, queue: WorkQueue) -> None:
        self.budget = budget
        self._queue = queue
        self._loop = loop
        self._turns = Turns(loop, AT_ONCE)
        self._unseen = Unseen(loop)
        self.call_of: CallOf = lambda _worker, _expiry, _until: None

    def begin(self, worker: Worker, expiry: Expiry, then: Then) -> None:
        """Begin to find out what a worker is doing; when that is noted, within the budget, call ``then``."""
        until = self._loop.time() + self.budget
        seen = functools.partial(self._unseen.seen, self._unseen.begin())
        call = self.call_of(worker, expiry, until)
        # Not before all that is due has been looked at: threads and helpers keep the loop from it.
        self._queue.put(worker.id, self._start, worker, expiry, until, seen, call, then)

    def _start(self, *inspection: Any) -> None:
        self._queue.spawn(self._inspect(*inspection))

    async def _inspect(
        self, worker: Worker, expiry: Expiry, until: float, seen: Then, call: Call | None, then: Then
    ) -> None:
        try:
            expiry.findings = await self.look(
                worker, lambda: _subject(worker, expiry)._replace(seen=seen), until
            )
        finally:
            seen()
            if call is not None:
                call.inspected()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._unseen.all_seen()
                if call is not None:
                    await call.wait()
        self._queue.do_first(then)  # when the budgets of hundreds end in one moment

    async def look(
        self, worker: Worker, subject: Callable[[], Subject], until: float, *, first: bool = True
    ) -> Findings | None:
        """Find out what a worker is doing; None: it was dead before.

        Args:
            worker: whom.
            subject: returns it as something to find evidence about, when it is its turn.
            until: when that is over, on the loop's clock.
            first: it has expired, and comes before those that have not; these share what time is left.
        """
        try:
            async with asyncio.timeout_at(until):
                await self._turns.take(first=first)
        except TimeoutError:
            return nothing("too many at once")
        if worker.closed:
            self._turns.give_back()
            return None
        left = min(self.budget, max(0.0, until - self._loop.time()))
        if not first:
            left = min(left, max(LEAST, left * AT_ONCE / (1 + self._turns.others)))
        task = self._queue.start(gather.gather(subject(), left))
        task.add_done_callback(self._done)
        awaited: set[asyncio.Future[Any]] = {task, worker.death(self._loop)}
        try:
            await asyncio.wait(awaited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
        if task.done() and not task.cancelled():
            error = task.exception()
            return task.result() if error is None else nothing(f"failed: {type(error).__name__}")
        died = worker.death(self._loop).done()
        return nothing("it died" if died else f"no answer within {self.budget if first else left:.3g} s")

    def _done(self, task: asyncio.Task[Findings]) -> None:
        self._turns.give_back()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("evidence could not be gathered", exc_info=error)


def _subject(worker: Worker, expiry: Expiry) -> Subject:
    """Only slots of the worker's own table mean anything to the worker."""
    shared = expiry.table.file.kind == "shared"
    timer = expiry.timer
    subject = subject_of(worker, timer.name, (timer.slot,) if shared else (), timer.thread)
    subject = subject._replace(cancelled=_cancelled(expiry.table, timer))
    return subject._replace(kills_next=expiry.kills_next, confirm=expiry.confirm)


def _cancelled(table: WatchedTable, timer: Timer) -> str:
    """Return what became of the soft limit of a timer's block, in words."""
    entry = entry_of(table, timer)
    limit = entry.limit_s if entry.exact else None
    return reasons.of_grace(table.reader.grace(timer.slot), timer.deadline - monotonic(), limit)


def subject_of(worker: Worker, scope: str = "", slots: tuple[int, ...] = (), thread: int = 0) -> Subject:
    """Return a worker as something to find evidence about.

    Args:
        worker: whom.
        scope: the timer in question.
        slots: where that is in the table that it shares.
        thread: that entered its block, as ``Timer`` has it.
    """
    shared = next((table.file for table in worker.tables if table.file.kind == "shared"), None)
    return Subject(
        worker.id,
        worker.process.pidfd,
        worker.name,
        scope,
        slots,
        -1 if shared is None else shared.descriptor,
        0 if shared is None else shared.inode,
        functools.partial(inspect_loops, worker, slots, None) if worker.inspection_channels else None,
        worker.connections > 0,
        thread=thread,
        libraries=worker.libraries,
    )


async def dump(worker: Worker, budget: float, queue: WorkQueue) -> dict[str, Any]:
    """Return, as JSON, a record of what a live worker is doing.

    Args:
        budget: seconds that it may take.
        queue: where its tables are read.
    """
    wall = time.time()  # noqa: TID251 - for people; no decision rests on it
    around = await queue.complete(LookAround(worker.tables, monotonic()).read())
    armed = sorted(around.armed, key=lambda one: one[1].deadline)
    # Of several timers, the one that would expire first is the one to be asked about; only slots of the
    # own table of the worker mean anything to it.
    scope, slots, thread, cancelled = "", tuple[int, ...](), 0, ""
    for table, timer in armed[:1]:
        scope, slots = timer.name, (timer.slot,) if table.file.kind == "shared" else ()
        thread, cancelled = timer.thread, _cancelled(table, timer)
    record = Record(
        id=record_id(wall, worker.id.pid),
        event="dump",
        outcome="dump",
        time=wall,
        pid=worker.id.pid,
        name=worker.name,
        timers=around.timers(armed[:MAX_TIMERS]),
        host=os.uname().nodename,
        run=worker.membership.group,
    )
    subject = subject_of(worker, scope, slots, thread)._replace(cancelled=cancelled)
    findings = await gather.gather(subject, budget)
    return record.with_findings(findings).as_json()


# -- inspection channels -----------------------------------------------------------------------------------


class InspectionChannel:
    """The channel to one event loop of a worker.

    Args:
        channels: of the same worker, where this one is from now on until it is closed.
        send: sends it a message.

    Raises:
        ProtocolError: that worker has too many.
    """

    def __init__(self, channels: list[Inspectable], send: Callable[[wire.Inspect], None]) -> None:
        if len(channels) >= MAX_CHANNELS:
            raise ProtocolError(f"more than {MAX_CHANNELS} event loops of one process")
        channels.append(self)
        self._channels = channels
        self._send = send
        self._number = 0
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[wire.Tasks] | None = None  # of the question on its way
        self._closed = False

    async def inspect(self, slots: tuple[int, ...]) -> wire.Tasks:
        """Ask what the loop's tasks wait for, as soon as an earlier question has been answered.

        Raises:
            ConnectionError: the connection is closed.
        """
        async with self._turn:
            if self._answer is not None:
                # Whoever asked has not waited for it.
                await asyncio.wait([self._answer])
            if self._closed:
                raise ConnectionResetError
            self._number += 1
            self._answer = asyncio.get_running_loop().create_future()
            self._send(wire.Inspect(self._number, slots))
            await asyncio.wait([self._answer])  # which does not cancel it: it stays to be answered
            answer, self._answer = self._answer, None
            if answer.cancelled():
                raise ConnectionResetError
            return answer.result()

    def answered(self, answer: wire.Tasks) -> None:
        """The loop has answered.

        Raises:
            ProtocolError: nobody had asked.
        """
        waiting = self._answer
        if waiting is None or waiting.done() or answer.number != self._number:
            raise ProtocolError("an answer that nobody asked for")
        waiting.set_result(answer)

    def close(self) -> None:
        """The connection is closed: whoever waits need not."""
        self._closed = True
        self._channels.remove(self)
        if self._answer is not None and not self._answer.done():
            self._answer.cancel()


async def inspect_loops(
    worker: Worker, slots: tuple[int, ...] = (), within: float | None = None, answers: Answers | None = None
) -> Answers:
    """Ask every loop of a worker that has a channel what its tasks wait for.

    Args:
        worker: whom. What falls due meanwhile is put off, for ``ASK_WITHIN`` seconds at most.
        within: seconds to wait for the answers; None: until it is cancelled.
        answers: what is answered is put in here as it comes, so that whoever cancels this has it.

    Returns:
        The answers of those that did, and how many were asked.
    """
    channels = list(worker.inspection_channels)
    answers = Answers([], 0) if answers is None else answers
    answers.asked = len(channels)
    if not channels:
        return answers
    loop, now = asyncio.get_running_loop(), monotonic()
    asking = Asking(loop, now)
    worker.asks(asking, now)
    end = contextlib.ExitStack()  # it is called once, by whoever comes first
    end.callback(lambda: asking.end(monotonic(), answered=len(answers) == answers.asked))
    timer = loop.call_later(ASK_WITHIN, end.close)
    questions = [asyncio.ensure_future(channel.inspect(slots)) for channel in channels]
    pending, until = set(questions), None if within is None else now + within
    try:
        while pending:
            left = None if until is None else max(0.0, until - monotonic())
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for question in filter(done.__contains__, questions):  # of those that come together, in order
                with contextlib.suppress(ConnectionError):
                    _keep(question.result(), answers)
    finally:
        for question in questions:
            question.cancel()
        timer.cancel()
        end.close()
    return answers


def _keep(answer: wire.Tasks, answers: Answers) -> None:
    """Keep an answer, as far as there is room for its tasks."""
    left = MAX_TASKS - sum(len(one.tasks) for one in answers)
    left_out = answer.left_out + len(answer.tasks[left:])  # or more: some stand for several
    number, loop, thread, tasks = answer.number, answer.loop, answer.thread, answer.tasks[:left]
    answers.append(wire.Tasks(number, loop, thread, tasks, left_out, answer.stacks))
