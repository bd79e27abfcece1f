"""A reaper: it carries out what ``_core/reaping`` decides, with signals, evidence, timers and reports.

The laws of this file:

* Nothing is awaited between an expired timer and the first signal, unless the ladder or the server's owner
  wants it: a ladder that begins with a signal has sent it when :meth:`Reaper.expire` returns.
* Act first, describe afterwards: what is recorded and told of it waits in a work queue, in its order, until
  every table that is due has been looked at.
* Whoever is only to be observed is not signalled.
* What an earlier program has armed goes when another one runs; and *not known* is not *the same*.
* With ``on_expiry="run"`` a worker that is signalled for its timer takes the members of its run along: those
  that have said so with the program that they run. Each is reaped once, for its own timer or with its run.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from .._core import layout, reaping
from .._core.ladder import CONT, KILL
from .._core.reader import Timer
from .._core.requests import WorkerId
from .._core.watch import Due
from .._linux.process import PID_1
from ..events import Event, log
from ..evidence import Findings
from .expiry import Expiry
from .observer import OverdueTracker
from .pinned_process import classified
from .policy import Breaker, Policy
from .reporter import Reporter
from .slices import Alarm, Steps
from .tree import Tree, Trees
from .watched_table import WatchedTable
from .worker import Worker, drop_after_exec, drop_if_left, drop_unmapped

if TYPE_CHECKING:
    from .inspector import Inspector

IN_TIME = "released after its deadline, and before a signal"

AT_ONCE = 64
"""Expired timers of one worker that are dealt with before others have a turn."""

ENDS_ALL = "it is pid 1: it exits at a signal of its own, and all of its pid namespace with it"

ENDS_WITH_IT = "its parent is process 1: perhaps all of the pid namespace ends with it, this server too"

TOLD_WITHIN = 0.25
"""Seconds that the reap of such a worker waits until it is written what is known."""

_AT_EASE = (reaping.State.WATCHED, reaping.State.RESUMED, reaping.State.REFUSED)
"""States in which nothing is under way: only then a member is reaped with its run."""

LEFT = "it runs another program by now, which is not signalled for what an earlier one has armed"
UNKNOWN = "nobody can tell whether it still runs the program that armed its timer"


class _Case:
    """One worker's reaping.

    Attributes:
        found: what has just been read: a timer that is armed, to be reaped for.
        expiry: what it is being reaped for, from the first action on it on.
        failed: the expiry of a reap that is to be tried again.
        shortfall: why only the process itself was signalled, "" if all that was wanted was.
        inherited: what was found out just before, when it was spared for another timer.
        answer: what whoever had its ladder carried out waits for.
        tree: what it has started, pinned, if that is reaped with it.
        pinning: that is being looked for; nothing has been done to the worker.
        taken_along: the expiry for which the other members of its run are reaped, too.
        doomed: why it is to be reaped with its run, as soon as nothing else is under way; "": it is not.
        with_run: that is being done, or has been.
    """

    def __init__(self, worker: Worker, machine: reaping.Reaping, alarm: Alarm) -> None:
        self.worker = worker
        self.machine = machine
        self.found: tuple[Due, Timer] | None = None
        self.expiry: Expiry | None = None
        self.failed: Expiry | None = None
        self.shortfall = ""
        self.inherited: Findings | None = None
        self.answer: asyncio.Future[bool] | None = None
        self.tree: Tree | None = None
        self.pinning = False
        self.taken_along: Expiry | None = None
        self.doomed = self.with_run = ""
        self.alarm = alarm


class Reaper:
    """Deals with the timers that looks have found expired."""

    machine = reaping.Reaping

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reap_worker: Callable[[WorkerId], bool | Awaitable[bool]],
        reporter: Reporter,
        policy: Policy,
        inspector: Inspector,
        clock: Callable[[], float] = monotonic,
        trees: Trees | None = None,
        members: Callable[[str], Steps[list[Worker]]] | None = None,
    ) -> None:
        self._loop = loop
        self._members = members
        self._trees = trees
        self._reap_worker = reap_worker
        self._reporter = reporter
        self._policy = policy
        self._inspector = inspector
        self._clock = clock
        self._overdue_tracker = OverdueTracker(loop, self._inspector, reporter, clock)
        self._breaker = Breaker(policy.max_reaps, policy.resume_after)
        self._cases: dict[Worker, _Case] = {}

    @property
    def observing(self) -> str:
        """Why there is somebody whom this server does not reap: ``asked``, ``breaker``; "": it reaps all."""
        return "asked" if self._policy.observe else "breaker" if self.broken() else ""

    def broken(self) -> dict[str, float | None]:
        """Return the jobs of which it reaps nobody any more: for how many seconds, None for good."""
        return self._breaker.broken(self._clock())

    def resume(self) -> list[str]:
        """Reap again, in every job; return those for which that is new. What is observed stays so."""
        return self._breaker.resume()

    def expire(self, worker: Worker, table: WatchedTable, due: tuple[Due, ...]) -> None:
        """Timers of a worker have expired: reap it, unless they have been released meanwhile.

        What has fallen due while it was being asked what it is doing may be put off.
        """
        for asking in worker.askings:
            due = asking.put_off(table, due, self._clock())
        if not due:
            return
        case = self._case(worker)
        case.inherited = None
        if case.machine.state is reaping.State.SIGNALLED and self._program(case) is False:
            self._tell(case, reaping.Left())  # what the new program has armed does not wait for the next step
        self._tell(case, reaping.Expired(table, due[:AT_ONCE]))
        if len(due) > AT_ONCE:
            self._reporter.queue.take_turn(self._expire_others(worker, table, due[AT_ONCE:]))

    def _expire_others(self, worker: Worker, table: WatchedTable, due: tuple[Due, ...]) -> Steps[None]:
        for first in range(0, len(due), AT_ONCE):
            yield
            while self._reporter.queue.crowded:
                yield
            if worker.closed or table.closed:
                return
            some = due[first : first + AT_ONCE]
            try:
                self._tell(self._case(worker), reaping.Expired(table, some))
            except Exception:  # noqa: BLE001 - logged; they are due again at the next look
                log.exception("expired timers could not be dealt with; they will be tried again")
                table.watch.reopen(some)

    def carry_out_ladder(self, worker: Worker) -> bool | Awaitable[bool]:
        """Reap a worker in the steps of its ladder; see ``TimerServer.reap_worker`` for the result."""
        case = self._case(worker)
        answer = case.answer
        if answer is None or answer.done():
            answer = case.answer = self._loop.create_future()
            ladder = worker.reap_grant.ladder or self._policy.ladder
            # A run that begins again finds the evidence of the first one.
            known = case.expiry is None or case.expiry.findings is not None
            begin = reaping.Begin(ladder, gathered=known or not self._inspector.budget)
            if self._target(worker) == "tree":
                self._reporter.queue.spawn(self._begin_with_tree(case, begin))
            else:
                self._tell(case, begin)
        return answer.result() if answer.done() else answer

    def _target(self, worker: Worker) -> str:
        return worker.reap_grant.target or self._policy.target

    async def _begin_with_tree(self, case: _Case, begin: reaping.Begin) -> None:
        """Pin what a worker has started, then begin: who is dead has no children any more."""
        self._let_go_of_tree(case)
        case.pinning = True
        tree = None if self._trees is None else await self._trees.pin(case.worker.process)
        case.pinning = False
        if tree is not None and self._cases.get(case.worker) is not case:  # it has died meanwhile
            tree.close()
        else:
            case.tree = tree
        self._tell(case, begin)

    def _let_go_of_tree(self, case: _Case) -> None:
        tree, case.tree = case.tree, None
        if tree is not None:
            tree.close()

    def is_reaping(self, worker: Worker) -> bool:
        """Whether something of a worker has expired that is not dealt with: it is ended for that."""
        case = self._cases.get(worker)
        return case is not None and case.machine.state is not reaping.State.WATCHED

    def died(self, worker: Worker) -> None:
        """A worker is dead: say so, if that concerns anybody."""
        case = self._case(worker)
        self._tell(case, reaping.Died())
        case.alarm.set(inf)
        del self._cases[worker]

    def stop(self) -> None:
        """Give up what is under way; the tables tell the next server."""
        self._overdue_tracker.stop()
        if self._trees is not None:
            self._trees.stop()
        for case in self._cases.values():
            case.alarm.set(inf)
            self._let_go_of_tree(case)
            if case.machine.untouched and case.expiry is not None:
                self._unmark(case.expiry.table)

    # -- the machine -----------------------------------------------------------------------------

    def _case(self, worker: Worker) -> _Case:
        case = self._cases.get(worker)
        if case is None:
            alarm = Alarm(self._loop, self._clock, lambda: self._woken(worker))
            machine = self.machine(partial(self._allows, worker))
            case = self._cases[worker] = _Case(worker, machine, alarm)
        return case

    def _allows(self, worker: Worker, now: float) -> bool:
        return self._breaker.allows(worker.job, now)

    def _observes(self, worker: Worker) -> bool:
        """Whether nobody is to be signalled for any timer of a worker."""
        if self._policy.observe or worker.reap_grant.observe:
            return True
        return self._breaker.is_broken(worker.job, self._clock())

    def _tell(self, case: _Case, event: reaping.Event) -> None:
        """Tell a machine what has happened, and carry out what it wants; questions are answered at once."""
        for action in case.machine.handle(event, self._clock()):
            try:
                answer = getattr(self, _CARRY_OUT[type(action)].__name__)(case, action)
            except Exception as error:
                # A question is answered whatever goes wrong, or the machine would wait for ever.
                if isinstance(action, reaping.ReadAgain):
                    self._tell(case, reaping.Read(action.table, action.due, None))
                    raise  # whoever looks will find it due again
                if not isinstance(action, reaping.Confirm | reaping.Signal):
                    raise
                log.exception("worker %d could not be reaped; it will be tried again", case.worker.id.pid)
                answer = reaping.Refused(f"it failed: {type(error).__name__}")
            if answer is not None:
                self._tell(case, answer)
        if case.machine.wakes_at != case.alarm.at:
            case.alarm.set(case.machine.wakes_at)
        if case.doomed and isinstance(event, reaping.Done | reaping.Woken):  # nothing else is left to be done
            self._reap_with_run(case)

    def _woken(self, worker: Worker) -> None:
        case = self._cases[worker]
        case.alarm.at = inf  # it has rung: to be woken at the same moment is to be woken once more
        self._tell(case, reaping.Woken())

    # -- what is due -----------------------------------------------------------------------------

    def _read_again(self, case: _Case, action: reaping.ReadAgain) -> reaping.Read:
        """Read the slots again; report what is not to be reaped for."""
        worker, table, due = case.worker, cast(WatchedTable, action.table), action.due
        case.found = None
        known = None if table.closed else worker.runs_program_of(table)
        if known is False:
            drop_after_exec(worker, table, self._reporter.emit)
        if table.closed:
            return reaping.Read(table, due, None)
        observed: list[tuple[Due, Timer]] = []
        case.found = self._still_armed(worker, table, due, observed)
        if observed:
            self._overdue_tracker.track(
                worker, table, [self._expiry(worker, table, *one, "observe") for one in observed]
            )
        if case.found is None:
            return reaping.Read(table, due, None)
        return reaping.Read(table, due, case.found[0], self._why_held(worker, unknown=known is None))

    def _why_held(self, worker: Worker, *, unknown: bool) -> str:
        """Return why a worker is to be left alone, "" if it is not; ``unknown``: which program it runs."""
        process = worker.process
        stopped = process.why_stopped() if self._policy.stopped == "hold" else ""
        return stopped or (UNKNOWN if unknown and not process.is_dead() else "")

    def _still_armed(
        self, worker: Worker, table: WatchedTable, due: tuple[Due, ...], observed: list[tuple[Due, Timer]]
    ) -> tuple[Due, Timer] | None:
        """Return the longest overdue that still holds its deadline.

        Those that nobody is to be signalled for, and that have not been reported, go to ``observed``.
        """
        found = None
        deadlines = table.reader.deadlines()
        for candidate in due:
            slot, deadline, effective, _arming = candidate
            armed = slot < len(deadlines) and deadlines[slot] == deadline
            if armed and (found is not None or self._is_dealt_with(table, candidate)):
                continue  # one is enough, and there may be thousands
            timer = table.timer(candidate) if armed else None
            if timer is None:
                late_s = self._clock() - effective
                self._reporter.emit(Event("late", worker.id, worker.name, "", late_s, IN_TIME, "late"))
            elif timer.observed or self._observes(worker):
                observed.append((candidate, timer))
            else:
                found = (candidate, timer)
        return found

    def _is_dealt_with(self, table: WatchedTable, due: Due) -> bool:
        return self._overdue_tracker.knows(table, due) or table.watch.cleared(due.slot, due.deadline)

    def _expiry(self, worker: Worker, table: WatchedTable, due: Due, timer: Timer, ladder: str) -> Expiry:
        return Expiry(worker.id, worker.name, table, due, timer, self._clock(), ladder)

    def _break(self, case: _Case, _action: reaping.Break) -> None:
        self._reporter.emit(Event("breaker", detail=self._breaker.why(case.worker.job)))

    def _hold(self, case: _Case, action: reaping.Hold) -> None:
        assert case.found is not None
        worker, timer = case.worker, case.found[1]
        self._reporter.emit(Event("held", worker.id, worker.name, timer.name, detail=action.why))
        if action.why == UNKNOWN:
            self._reporter.queue.spawn(drop_unmapped(worker, list(worker.tables), self._reporter.emit))

    def _check(self, case: _Case, _action: reaping.Check) -> reaping.Checked:
        worker = case.worker
        tables = (cast(WatchedTable, table) for table, _due in case.machine.postponed)
        unknown = any(not table.closed and worker.runs_program_of(table) is None for table in tables)
        return reaping.Checked(self._why_held(worker, unknown=unknown))

    def _look_again(self, _case: _Case, action: reaping.LookAgain) -> None:
        cast(WatchedTable, action.table).look_again(action.due)

    # -- the reap --------------------------------------------------------------------------------

    def _reap(self, case: _Case, action: reaping.Reap) -> reaping.Done | None:
        worker, table = case.worker, cast(WatchedTable, action.table)
        table.mark_reaped(self._clock())
        again, case.failed = case.failed if action.again else None, None
        if again is None:
            assert case.found is not None
            ladder = str(worker.reap_grant.ladder or self._policy.ladder)
            case.expiry = self._expiry(worker, table, *case.found, ladder)
            case.expiry.findings = case.inherited
        else:
            case.expiry = again
        expiry = case.expiry
        try:
            done = self._reap_worker(worker.id)
        except Exception:  # noqa: BLE001 - the owner's code; logged, and it counts as reaped
            log.exception("reap_worker(%s) failed; it counts as reaped", worker.id)
            done = True
        case.found = None
        if again is None:
            self._reporter.begin(expiry, worker.tables)
        if inspect.isawaitable(done):
            self._reporter.queue.spawn(self._await_reap(case, done))
            return None
        return self._done(case, bool(done))

    async def _await_reap(self, case: _Case, awaited: Awaitable[bool]) -> None:
        try:
            done = bool(await awaited)
        except Exception:  # noqa: BLE001 - as in _reap()
            log.exception("reap_worker(%s) failed; it counts as reaped", case.worker.id)
            done = True
        self._tell(case, self._done(case, done))

    def _done(self, case: _Case, done: bool) -> reaping.Done:
        if done and case.machine.state is reaping.State.ASKED:  # by its owner, in another way than ours
            self._take_run_along(case)
        return reaping.Done(done)

    def _gather(self, case: _Case, action: reaping.Gather) -> None:
        assert case.expiry is not None
        case.expiry.kills_next = action.kills_next
        self._inspector.begin(case.worker, case.expiry, partial(self._gathered, case, case.expiry))

    def _gathered(self, case: _Case, expiry: Expiry) -> None:
        if case.worker.process.is_child_of_init():
            self._reporter.queue.spawn(self._tell_first(case, expiry))
            return
        self._tell(case, reaping.Gathered())
        self._reporter.record(expiry)

    async def _tell_first(self, case: _Case, expiry: Expiry) -> None:
        """Have it written what a worker is doing before it is signalled: there may be nobody to do so then.

        That is so in a container with an init: it ends as soon as the command does that it was started with.
        """
        self._reporter.record(expiry)
        log.warning("%s", expiry.event()._replace(detail=ENDS_WITH_IT))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._reporter.told(), TOLD_WITHIN)
        if self._cases.get(case.worker) is case:
            self._tell(case, reaping.Gathered())

    def _confirm(self, case: _Case, _action: reaping.Confirm) -> reaping.Armed | reaping.Released:
        expiry = case.expiry
        assert expiry is not None
        return reaping.Armed() if expiry.woken or expiry.is_armed() else reaping.Released()

    def _signal(
        self, case: _Case, action: reaping.Signal
    ) -> reaping.Sent | reaping.Gone | reaping.Left | reaping.Refused:
        process, target = case.worker.process, self._target(case.worker)
        known = process.is_dead() or self._program(case)
        if not known:
            return reaping.Refused(UNKNOWN) if known is None else reaping.Left()
        if case.tree is not None:
            case.tree.catch_up()
        try:
            case.shortfall = process.signal(target, action.number)
        except ProcessLookupError:
            return reaping.Gone()
        except OSError as error:
            again = f"it will be tried again, soon only every {reaping.LAST_RETRY:g} s"
            return reaping.Refused(f"{error.strerror}; {again}")
        if case.expiry is not None:
            case.expiry.signalled(action.number, self._clock())
            self._take_run_along(case)
        if case.tree is not None and self._trees is not None:
            graces = (case.worker.reap_grant.ladder or self._policy.ladder).total_grace
            kill_at = min(case.tree.kill_at, self._clock() + graces)
            self._trees.signal(case.tree, action.number, kill_at, with_cont=action.with_cont)
        elif target == "tree":
            case.shortfall = "what it has started could not be pinned"
        if action.number == KILL and case.worker.id.pid == PID_1:
            self._reporter.queue.spawn(self._end_init(case, case.expiry))
        if action.with_cont and self._program(case):
            with contextlib.suppress(OSError):
                process.signal(target, CONT)
        return reaping.Sent()

    async def _end_init(self, case: _Case, expiry: Expiry | None) -> None:
        """Have pid 1 of our pid namespace exit by itself: a SIGKILL from inside does not reach it.

        Everything in there ends with it, this server too. So it is told before, and written.
        """
        worker = case.worker
        numbers = (
            table.number(layout.EXIT_SIGNAL) for table in worker.tables
        )  # as the worker may have written it
        number = next((one for one in numbers if signal.SIGRTMIN <= one <= signal.SIGRTMAX), 0)
        if not number:
            return  # why it does not die is told when that is certain
        if expiry is not None:
            self._reporter.report(expiry, "reaped", "reaped", ENDS_ALL)
        await self._reporter.told()
        if not worker.closed and self._program(case):
            with contextlib.suppress(OSError):
                worker.process.signal("process", number)

    def _program(self, case: _Case) -> bool | None:
        """Whether a worker still runs the program that it is being reaped for; None: nobody can tell."""
        if not case.machine.for_a_timer or case.expiry is None:
            # Or its owner just wants it.
            return _runs_program_of_member(case.worker) if case.with_run else True
        return case.worker.runs_program_of(case.expiry.table)

    def _answer(self, case: _Case, action: reaping.Answer) -> None:
        if case.answer is not None and not case.answer.done():
            case.answer.set_result(action.done)

    def _clear(self, case: _Case, _action: reaping.Clear) -> None:
        case.worker.clear()

    def _spare(self, case: _Case, _action: reaping.Spare) -> None:
        expiry, case.expiry = case.expiry, None
        if expiry is not None:
            self._unmark(expiry.table)
            case.inherited = expiry.findings
            self._let_go_of_tree(case)
            self._reporter.report(expiry, "late", "late", IN_TIME)

    def _forget(self, case: _Case, _action: reaping.Forget) -> None:
        worker, expiry, case.expiry = case.worker, case.expiry, None
        self._let_go_of_tree(case)
        for table in list(worker.tables):
            drop_if_left(worker, table, self._reporter.emit)
        if expiry is not None:  # else it was to be reaped with its run
            self._reporter.report(expiry, "worker_gone", "gone", LEFT)

    def _fail(self, case: _Case, action: reaping.Fail) -> None:
        case.failed, case.expiry = case.expiry, None
        self._let_go_of_tree(case)
        if case.failed is not None:
            self._unmark(case.failed.table)
            if action.report:
                detail = action.why or "it will be tried again"
                self._reporter.report(case.failed, "reap_failed", "failed", detail)

    def _unmark(self, table: WatchedTable) -> None:
        if not table.closed:
            table.mark_reaped(0.0)

    # -- with its run ----------------------------------------------------------------------------

    def _take_run_along(self, case: _Case) -> None:
        """A worker is reaped for its timer: have the other members of its run reaped, if that is wanted."""
        worker, expiry = case.worker, case.expiry
        group = worker.membership.group
        wanted = self._policy.on_expiry == "run" and self._members is not None and worker.is_in(group)
        if wanted and case.taken_along is not expiry:
            case.taken_along = expiry
            self._reporter.queue.take_turn(self._doom_others(worker))

    def _doom_others(self, first: Worker) -> Steps[None]:
        assert self._members is not None
        rank, name = first.membership.rank, first.name
        why = f"with its run, for a timer of {name if rank < 0 else f'rank {rank}'}"
        for worker in (yield from self._members(first.membership.group)):
            if worker is not first and not worker.closed:
                case = self._case(worker)
                if not case.with_run and not self._observes(worker):
                    case.doomed = why
                    self._reap_with_run(case)
                yield

    def _reap_with_run(self, case: _Case) -> None:
        """Reap a member as the server's owner would, unless something is under way already."""
        if case.machine.state not in _AT_EASE:
            return
        worker, why, case.doomed = case.worker, case.doomed, ""
        runs_it = _runs_program_of_member(worker)
        if held := self._why_held(worker, unknown=runs_it is None):
            self._reporter.emit(Event("held", worker.id, worker.name, detail=held))
        if held or not runs_it:
            return
        case.with_run = why
        try:
            done = self._reap_worker(worker.id)
        except Exception:  # noqa: BLE001 - the owner's code; logged, and it counts as reaped
            log.exception("reap_worker(%s) failed; it counts as reaped", worker.id)
            done = True
        if inspect.isawaitable(done):
            self._reporter.queue.spawn(self._await_member(worker, done))
        elif done:
            worker.clear()

    async def _await_member(self, worker: Worker, awaited: Awaitable[bool]) -> None:
        try:
            done = bool(await awaited)
        except Exception:  # noqa: BLE001 - as in _reap_with_run()
            log.exception("reap_worker(%s) failed; it counts as reaped", worker.id)
            done = True
        if done and not worker.closed:
            worker.clear()

    # -- the end ---------------------------------------------------------------------------------

    def table_removed(self, table: WatchedTable) -> None:
        """A table is about to be removed."""
        self._overdue_tracker.removed(table)

    def _despair(self, case: _Case, _action: reaping.Despair) -> None:
        self._reporter.queue.spawn(self._report_unkillable(case))

    async def _report_unkillable(self, case: _Case) -> None:
        worker = case.worker
        why = await classified(worker.id.pid)
        if worker.closed:
            return
        detail = f"SIGKILL was sent, and it is still there: {why}"
        if case.expiry is None:
            event = Event("unkillable", worker.id, worker.name, detail=detail, outcome="unkillable")
            self._reporter.emit(event)
        else:
            self._reporter.report(case.expiry, "unkillable", "unkillable", detail)

    def _end(self, case: _Case, action: reaping.End) -> None:
        worker, expiry = case.worker, case.expiry
        was_overdue = self._overdue_tracker.died(worker)
        if case.tree is not None and self._trees is not None:
            self._trees.died(case.tree, self._clock())
        if expiry is not None and action.reaped and not case.pinning:
            detail = case.shortfall and f"only the process was signalled: {case.shortfall}"
            if case.tree is not None and case.tree.shortfall:
                detail = f"not all that it has started was signalled: {case.tree.shortfall}"
            self._reporter.report(expiry, "reaped", "reaped", detail)
        elif case.with_run and action.reaped:
            group = worker.membership.group
            told = Event("reaped", worker.id, worker.name, detail=case.with_run, outcome="reaped", run=group)
            self._reporter.emit(told)
        elif expiry is not None:
            detail = ", ".join(filter(None, (worker.process.how_it_ended(), "with timers armed")))
            self._reporter.report(expiry, "worker_gone", "gone", detail)
        elif not was_overdue and worker.holds_timers():
            self._reporter.emit(Event("worker_gone", worker.id, worker.name, detail="with timers armed"))


def _runs_program_of_member(worker: Worker) -> bool | None:
    """Whether a worker runs the program that has said of which run it is a member; None: nobody can tell."""
    tables = [table for table in worker.tables if table.file.kind != "owner" and not table.closed]
    known = [worker.runs_program_of(table) for table in tables]
    return True if True in known else None if None in known else False


_CARRY_OUT: dict[type[Any], Callable[[Reaper, _Case, Any], reaping.Event | None]] = {
    reaping.ReadAgain: Reaper._read_again,
    reaping.Break: Reaper._break,
    reaping.Reap: Reaper._reap,
    reaping.Gather: Reaper._gather,
    reaping.Confirm: Reaper._confirm,
    reaping.Signal: Reaper._signal,
    reaping.Answer: Reaper._answer,
    reaping.Clear: Reaper._clear,
    reaping.Hold: Reaper._hold,
    reaping.Check: Reaper._check,
    reaping.Spare: Reaper._spare,
    reaping.Forget: Reaper._forget,
    reaping.Fail: Reaper._fail,
    reaping.LookAgain: Reaper._look_again,
    reaping.Despair: Reaper._despair,
    reaping.End: Reaper._end,
}
"""By action, the method that carries it out; it may be overridden."""
