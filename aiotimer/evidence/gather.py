"""A coordinator of probes, which finds out what a worker is doing with every probe there is, within a budget.

The laws of this file:

* It never takes longer than its budget, never blocks the loop and never raises: a probe that fails, hangs
  or is refused is a word in ``Findings.probes``.
* What does not touch the worker comes first. If every loop of it answers, that is all. Else, while they
  have time to answer, the unwinder of its interpreter, which only reads its memory; then, if that shows more,
  py-spy, which stops it for some milliseconds and lets it go on where it was.
* *No probe may kill what it looks at.* Its dump signal might: it is sent only if there are no stacks yet, and
  SIGKILL comes next. So it never is to a worker that is observed, that is dumped for a person, or that has
  some grace.
* It works on duplicates of the descriptors it is given: they may be closed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from .._linux import procfs
from .._linux.process import is_dead
from ..events import log
from . import children, motion, proc, pyspy, stacks
from .findings import ASK_WITHIN, Answers, Findings, Subject
from .texts import stacks_text, tasks_text
from .threads import TooManyStuck, in_thread
from .verdict import goes_round, runs_loop, verdict

T = TypeVar("T")

PROC_WITHIN = 0.5
"""Seconds for /proc: it takes milliseconds, unless a lock of the worker is held for ever."""

STACKS_WITHIN = 1.0
"""Seconds for the worker to write its stacks."""

HELPER_WITHIN = 2.0
"""Seconds for a helper: py-spy takes 0.2 s, and longer if there are many libraries to read symbols of."""

HEAD_START = 0.02
"""Seconds that the loops of a worker have before it is looked at from outside too, if it is killed next."""

ENOUGH_RUNNING = 0.6
"""Seconds for which the thread of a loop may run without an answer, if it was not seen to go round: an answer
takes half of it (``client.tasks.WITHIN``), and a loop that is starved does not run for as long."""

_MOST_OF_NAME = 15

_SHARE = 0.95
"""Of the budget, what the probes have; the rest is for ending them."""


async def gather(subject: Subject, budget: float) -> Findings:
    """Find out what a worker is doing.

    Args:
        subject: which one.
        budget: seconds; what is known by then is returned.

    Returns:
        What was found: usually within a third of a second.
    """
    probing = _Probing(subject, budget)
    try:
        async with asyncio.timeout(budget):
            await probing.run()
            await probing.children
    except TimeoutError:
        pass  # the words of the probes say so
    except Exception:  # noqa: BLE001 - logged; what has been found is no worse for it
        log.exception("gathering evidence of process %d failed", subject.id.pid)
    finally:
        probing.close()
    return probing.findings()


class _Probing:
    """One worker being looked at by one probe after the other: what is known of it so far."""

    def __init__(self, subject: Subject, budget: float) -> None:
        self._subject = subject
        self._until = monotonic() + budget * _SHARE
        self._pidfd = self._table = -1
        self._process = proc.nothing()
        self._probes: dict[str, str] = {}
        self._tasks: list[dict[str, Any]] = []
        self._stacks: list[dict[str, Any]] = []
        self._raw = ""
        self._asked = self._answered = self._left_out = 0
        self._when_asked: dict[int, motion.Sample] = {}  # its threads, when its loops were
        self._gone = False
        self.children: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.children.set_result(None)

    async def run(self) -> None:
        """Let one probe after the other find out what it can."""
        try:
            self._pidfd = os.dup(self._subject.pidfd)
            if self._subject.table >= 0:
                self._table = os.dup(self._subject.table)
            # It may have been closed, and be something else by now.
            pinned = procfs.pinned_by(self._pidfd) == self._subject.id.pid
        except OSError as error:
            self._probes["proc"] = _words(error)
            return
        if self._is_gone() or not pinned:
            self._gone = True
            return
        await self._probe("proc", self._look_into_proc)  # before a loop is woken to answer
        asking = asyncio.ensure_future(self._probe("tasks", self._ask))
        try:
            head_start = HEAD_START if self._subject.kills_next else ASK_WITHIN
            await asyncio.wait([asking], timeout=min(head_start, self._left()))
            if not self._every_loop_answered():
                await self._look_from_outside()
                await self._wait_for_loops(asking)
        finally:
            asking.cancel()  # what has been answered by then is kept
        await asyncio.wait([asking])
        if self._every_loop_answered():
            for name in ("py-spy", "stacks"):
                self._probes.setdefault(name, "not needed: every loop answered")
            return
        self._subject.seen()
        if not self._is_gone() and not self._stacks:
            await self._probe("stacks", self._have_stacks_written)

    async def _look_from_outside(self) -> None:
        command = pyspy.unwind_command(self._subject.id.pid)
        seen: list[dict[str, Any]] | None = None
        if command is not None and not self._is_gone():
            await self._probe("unwinder", partial(self._unwind, command))
            seen = self._stacks
        if seen and not pyspy.shows_more(seen):
            self._probes["py-spy"] = "not needed: the unwinder saw all that it would"
        elif not self._is_gone():
            standing = seen if seen and any(map(pyspy.stands_with_gil, seen)) else None
            await self._probe("py-spy", partial(self._spy, standing))

    def _every_loop_answered(self) -> bool:
        return self._asked > 0 and self._answered == self._asked and bool(self._stacks)

    async def _wait_for_loops(self, asking: asyncio.Future[None]) -> None:
        """Wait for the answers of the loops as long as the budget allows, unless there will be none.

        A loop of thousands of tasks on a busy machine takes its time, and is alive: it goes round. One that
        has run for longer than an answer takes, sleeps, or waits for a GIL held in C, does not answer.
        """
        pid, before = self._subject.id.pid, dict[int, motion.Sample]()
        loops = [one["tid"] for one in self._stacks if one["tid"] and runs_loop(one["frames"])] or None
        libraries = self._subject.libraries
        alive = any(
            runs_loop(one["frames"]) and goes_round(one, libraries) and one["ran"] for one in self._stacks
        )
        reserve = 0.0 if self._stacks else min(STACKS_WITHIN, self._left() / 3)
        while not asking.done() and self._left() > reserve and not self._is_gone():
            if any(map(motion.holds_gil_in_c, self._stacks)):
                break
            now = await self._in_thread(lambda _given_up: motion.sample(pid, loops), PROC_WITHIN)
            if (
                now
                and not alive
                and all(
                    one.ran_since(before.get(tid)) == 0
                    or (one.ran_since(self._when_asked.get(tid)) or 0) > ENOUGH_RUNNING
                    for tid, one in now.items()
                )
            ):
                break
            before = now
            await asyncio.wait([asking], timeout=min(motion.BETWEEN, self._left()))

    def close(self) -> None:
        """Let go of the descriptors; threads that still run have their own."""
        self.children.cancel()
        self._is_gone()
        for descriptor in (self._pidfd, self._table):
            if descriptor >= 0:
                os.close(descriptor)
        self._pidfd = self._table = -1

    def findings(self) -> Findings:
        """Return what is known by now."""
        process = dict(self._process)  # a thread that hangs may still write to the other one
        process["libraries"] = list(self._subject.libraries)
        _know_threads(self._stacks, process, self._subject.thread)
        said = verdict(
            process,
            self._tasks,
            self._stacks,
            self._subject.scope,
            gone=self._gone,
            asked=self._asked,
            answered=self._answered,
            cancelled=self._subject.cancelled,
            left_out=self._left_out,
        )
        probes = dict(self._probes)
        if self._left_out:
            probes["tasks"] += f"; {self._left_out} tasks left out"
        return Findings(
            said.text,
            said.where,
            self._tasks,
            self._stacks,
            process,
            probes,
            stacks_text(self._stacks, self._raw),
            tasks_text(self._tasks, self._left_out),
        )

    # -- the probes ------------------------------------------------------------------------------

    async def _look_into_proc(self) -> None:
        collect = partial(proc.collect, self._subject.id, self._process, self._subject.thread)
        await self._in_thread(lambda _given_up: collect(), PROC_WITHIN)
        if self._process["state"][:1] == "D":  # it may have been but a moment's wait
            self._process["state"] = procfs.state_of(self._subject.id.pid)
        if self._process["children"] and not self._is_gone():  # beside all that is looked at in the worker
            looking = children.look(
                self._subject.id.pid, self._process["children"], self._left(), self._subject.libraries
            )
            self.children = asyncio.ensure_future(looking)

    async def _ask(self) -> None:
        ask = self._subject.ask
        if ask is None:
            raise _Not("no loop of the worker has said that it would answer")
        answers = Answers([], 1)  # by then, if nothing else is said
        try:
            self._when_asked = await self._in_thread(
                lambda _given_up: motion.sample(self._subject.id.pid), PROC_WITHIN
            )
            await ask(answers)
        finally:
            self._hear(answers)
        if self._answered < self._asked:
            raise _Not(unanswered(self._asked, self._answered))

    def _hear(self, answers: Answers) -> None:
        """Keep what the loops have answered."""
        self._answered, self._asked = len(answers), max(answers.asked, len(answers))
        for answer in answers:
            self._left_out += max(0, answer.left_out)
            self._tasks += [
                {
                    "loop": answer.loop,
                    "thread": answer.thread,
                    "name": task.name,
                    "count": task.count,
                    "own": bool(task.slots),
                    "frames": [list(frame) for frame in task.frames],
                    "waits_for": task.waits_for,
                }
                for task in answer.tasks
            ]
            if answer.stacks and not self._stacks:
                self._raw = answer.stacks
                self._stacks = stacks.parse(answer.stacks)

    async def _unwind(self, command: list[str]) -> None:
        limit, ends_by = self._helper_within()

        def unwind(given_up: threading.Event) -> list[dict[str, Any]]:
            pid, until = self._subject.id.pid, monotonic() + ends_by

            def look() -> list[dict[str, Any]]:
                return pyspy.unwind_once(command, pid, max(0.0, until - monotonic()), given_up)

            return motion.watch(look, pid, given_up.wait)

        self._see(await self._in_thread(unwind, limit))

    async def _spy(self, seen: list[dict[str, Any]] | None) -> None:
        program = pyspy.find_pyspy()
        if program is None:
            raise _Not("not installed")
        limit, ends_by = self._helper_within()

        def spy(pidfd: int, given_up: threading.Event) -> list[dict[str, Any]]:
            return pyspy.collect(program, self._subject.id.pid, pidfd, ends_by, given_up, seen)

        self._see(await self._with_duplicates(spy, limit, self._pidfd))

    def _helper_within(self) -> tuple[float, float]:
        """Return for how long to wait for a helper, and when it is to end by itself, seconds."""
        # A share of what is left is kept for what comes later.
        limit = min(HELPER_WITHIN, self._left() - min(STACKS_WITHIN, self._left() / 3))
        return limit, limit - min(0.1, limit / 5)

    def _see(self, found: list[dict[str, Any]]) -> None:
        """Keep what a helper has seen, unless that was another process, which has the pid by now."""
        if not self._is_gone() and any(one["frames"] for one in found):
            self._stacks = found

    async def _have_stacks_written(self) -> None:
        if not self._subject.kills_next:
            raise _Not("not sent, because SIGKILL is not what comes next")
        if self._table < 0:
            raise _Not("the worker shares no table to write them to")
        limit, subject = min(STACKS_WITHIN, self._left()), self._subject

        def collect(pidfd: int, table: int, given_up: threading.Event) -> tuple[list[dict[str, Any]], str]:
            target = stacks.Target(
                subject.id.pid, pidfd, table, subject.table_inode, subject.connected, subject.confirm
            )
            return stacks.collect(target, limit, given_up)

        found, text = await self._with_duplicates(collect, limit + 0.1, self._pidfd, self._table)
        if not found:
            raise _Not("what the worker wrote is no dump")
        self._raw, self._stacks = text, found

    # -- how they are carried out ----------------------------------------------------------------

    async def _probe(self, name: str, probe: Callable[[], Awaitable[None]]) -> None:
        """Carry out one probe, and note how it went."""
        started = monotonic()
        self._probes[name] = "not finished within the budget"
        try:
            if self._left() <= 0:
                return
            await probe()
            self._probes[name] = f"{monotonic() - started:.3f} s"
        except asyncio.CancelledError:
            if self._asked and name == "tasks":
                self._probes[name] = unanswered(self._asked, self._answered)
            raise
        except TimeoutError:
            self._probes[name] = f"no answer within {monotonic() - started:.1f} s"
        except ProcessLookupError:
            self._probes[name] = "the process is gone"
            self._is_gone()
        except (OSError, _Not, TooManyStuck, stacks.NotSafe, pyspy.HelperFailed) as error:
            self._probes[name] = _words(error)
        except Exception as error:  # noqa: BLE001 - logged: one probe's fault is no other's
            log.exception("the probe %s of process %d failed", name, self._subject.id.pid)
            self._probes[name] = f"failed: {_words(error)}"

    def _left(self) -> float:
        return max(0.0, self._until - monotonic())

    def _is_gone(self) -> bool:
        if self._pidfd >= 0 and is_dead(self._pidfd):
            self._gone = True
        return self._gone

    async def _in_thread(
        self, function: Callable[[threading.Event], T], limit: float, release: Callable[[], object] = int
    ) -> T:
        given_up = threading.Event()
        return await in_thread(partial(function, given_up), min(limit, self._left()), given_up.set, release)

    async def _with_duplicates(self, function: Callable[..., T], limit: float, *descriptors: int) -> T:
        """Call a function in a thread with duplicates of descriptors.

        They are closed when it has returned, however late, or is not called at all.
        """
        with contextlib.ExitStack() as stack:
            duplicates = []
            for descriptor in descriptors:
                duplicates.append(os.dup(descriptor))
                stack.callback(os.close, duplicates[-1])
            close = stack.pop_all().close
        return await self._in_thread(partial(function, *duplicates), limit, close)


class _Not(Exception):
    """There is nothing from a probe; in words, why."""


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def unanswered(asked: int, answered: int) -> str:
    """Say how many of the event loops that were asked have not answered."""
    if asked == 1:
        return "the event loop did not answer"
    return f"{asked - answered} of {asked} event loops did not answer"


def _maybe_cut(name: str) -> str:
    """Return a thread's name as the kernel has it, which keeps 15 bytes of one: then there may be more."""
    cut = len(name.encode()) == _MOST_OF_NAME and name != procfs.UNSENT
    return f"{name}…" if cut else name


def _know_threads(found: list[dict[str, Any]], process: dict[str, Any], entered_by: int) -> None:
    """Add to stacks what /proc says of their threads, and which one entered the block in question."""
    threads = {thread["tid"]: thread for thread in process["threads"]}
    first = next(iter(threads.values()), None)
    for one in found:
        known = threads.get(one["tid"]) if one["tid"] else (first if one["main"] else None)
        one["entered"] = bool(entered_by) and entered_by == one["ident"]
        if known is not None:
            one["tid"] = known["tid"]
            one["entered"] |= one["tid"] == process["entered_by"]
            one.update((key, known[key]) for key in ("state", "syscall", "waits", "holder"))
            # From CPython 3.14 on threads have the names that Python knows them by; before, the program's.
            if not one["thread"] and first is not None and known["name"] != first["name"]:
                one["thread"] = _maybe_cut(known["name"])
