"""A caller of rolls: when a timer of a run's member expires, all members on this node are looked at.

The laws of this file:

* A run is who says so: the workers of this server with one group. What they say decides who is looked at and
  shown together, and nothing else.
* *Everybody is called before anybody is signalled*: side by side with whoever has expired, within the budget
  of that expiry. Who has expired goes first; of the others, those that stand where few do.
* A member that is not due is not harmed: it is sent no signal, and what it takes to answer is added to what
  its blocks have left, as for ``aiotimer dump``.
* A run that hangs has its roll called once. Whatever expires of it within ``TOGETHER`` seconds is added to
  the same record, which is kept anew.
* What a member says costs others nothing: the wait of another run's expiry is not longer for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from .._core.membership import Membership
from .._core.reader import Timer
from .._linux import procfs
from ..events import Event, log
from ..evidence import Findings, Subject, motion
from ..evidence.roll_call import Member, Roll, call_roll
from ..evidence.threads import in_thread
from .expiry import Expiry, LookAround, entry_of, run_id
from .inspector import subject_of
from .slices import Steps
from .watched_table import WatchedTable
from .worker import Worker

if TYPE_CHECKING:
    from .inspector import Inspector
    from .reporter import Reporter

TOGETHER = 30.0
"""Seconds in which all that expires of one run belongs to the same roll call."""

MOST_MISSING = 4096
"""Ranks that are named as missing; of a run that says it has more of them on this node nobody is."""

ORDER_WITHIN, CALL_WITHIN = 0.5, 5.0
"""Seconds to find out who stands where few do, and to compare what all of them were doing."""

RUNS, DEAD = 64, 4096
"""Runs of which the dead are remembered, and how many of each."""

_STEP, _FEW = 64, 16
"""Workers that are looked through, and members that are begun with, before others have a turn."""


class _Dead(NamedTuple):
    """A member that has died: when, and as what it is listed."""

    at: float
    member: Member


class _Called:
    """A member that is called.

    Attributes:
        expiry: what of it has expired, None: nothing.
        findings: what was found out, if it has not expired.
        died: it was dead before it was looked at.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.membership = worker.membership
        self.name = worker.name
        self.expiry: Expiry | None = None
        self.findings: Findings | None = None
        self.died = False
        self._timers: list[dict[str, Any]] = []
        self._since_s: float | None = None
        self._soonest: tuple[WatchedTable, Timer] | None = None

    def note(self, around: LookAround) -> None:
        """Note what is armed on it, while that can be read."""
        armed = sorted(around.armed, key=lambda one: one[1].deadline)
        first = armed[:1] if self.expiry is None else [(self.expiry.table, self.expiry.timer)]
        self._timers = around.timers(first)
        if first:
            self._soonest = first[0]
            entered = entry_of(*first[0]).entered
            self._since_s = None if entered is None else max(0.0, around.at - entered)

    def subject(self) -> Subject:
        """Return it as something to find evidence about: a block that it is in is the one in question."""
        if self._soonest is None:
            return subject_of(self.worker)
        table, timer = self._soonest
        slots = (timer.slot,) if table.file.kind == "shared" else ()
        return subject_of(self.worker, timer.name, slots, timer.thread)

    def member(self) -> Member:
        """Return it as it was found."""
        found = self.findings if self.expiry is None else self.expiry.findings
        stacks = [] if found is None else sorted(found.stacks, key=_is_beside)
        state = "expired" if self.expiry is not None else "dead" if self.died else self._state(found)
        return Member(
            rank=None if self.membership.rank < 0 else self.membership.rank,
            pid=self.worker.id.pid,
            node=os.uname().nodename,
            name=self.name,
            state=state,
            moving=any(map(_moves, stacks[:1])),
            since_s=self._since_s,
            timers=self._timers,
            verdict="" if found is None else found.verdict,
            record="" if self.expiry is None else self.expiry.id,
            evidence={} if found is None else {
                "stacks": stacks, "tasks": found.tasks, "process": found.process, "probes": found.probes
            },
        )  # fmt: skip

    def _state(self, found: Findings | None) -> str:
        if found is not None and str(found.process.get("state", ""))[:1] in ("T", "t"):
            return "stopped"
        return "armed" if self._timers else "connected"


def _is_beside(one: dict[str, Any]) -> tuple[bool, bool]:
    return not one["entered"], not one["main"]


def _moves(one: dict[str, Any]) -> bool:
    return one["moves"] not in (None, motion.STANDS) or motion.runs(one)


class RunCall:
    """The roll call of one run.

    Args:
        first: the member that expired first.
        until: when all have been called, on the loop's clock, whether or not they answer.
        finished: called whenever nobody is being looked at any more.

    Attributes:
        members: who is called, as soon as that is known.
        verdict: what has been told of it, None before.
    """

    def __init__(self, first: Worker, until: float, finished: Callable[[RunCall], object]) -> None:
        self.first = first.membership
        self.until = until
        self.members: dict[Worker, _Called] = {}
        self.mustered = False
        self.began = monotonic()
        self.wall = time.time()  # noqa: TID251 - for people
        self.id = run_id(self.wall)
        self.verdict: str | None = None
        self._finished = finished
        self._under_way = 1  # the call itself
        self._all_called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def takes(self, worker: Worker, now: float) -> bool:
        """Whether an expiry of a worker belongs to it."""
        return now < self.began + TOGETHER and (not self.mustered or worker in self.members)

    def expired(self, worker: Worker, expiry: Expiry) -> bool:
        """A member has expired, and is going to be looked at; return whether that is news."""
        called = self.members.setdefault(worker, _Called(worker))
        if called.expiry is not None:
            return False
        called.expiry = expiry
        self._under_way += 1
        return True

    def inspected(self) -> None:
        """One that has expired has been looked at; or all others have been."""
        self._under_way -= 1
        if not self._under_way:
            self._finished(self)

    def all_called(self) -> None:
        """Whoever waits for that goes on."""
        if not self._all_called.done():
            self._all_called.set_result(None)

    async def wait(self) -> None:
        """Wait until all have been called."""
        await asyncio.wait([self._all_called])


class Runs:
    """The runs of a server's workers.

    Args:
        workers: all that there are.
        adopting: whether more are coming that an earlier server knew.
        inspector: finds out what they are doing.
        reporter: takes the records.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        workers: Callable[[], Iterable[Worker]],
        adopting: Callable[[], bool],
        inspector: Inspector,
        reporter: Reporter,
    ) -> None:
        self._loop = loop
        self._workers = workers
        self._adopting = adopting
        self._inspector = inspector
        self._reporter = reporter
        self._queue = reporter.queue
        self._calls: dict[str, RunCall] = {}
        self._dead: OrderedDict[str, dict[int, _Dead]] = OrderedDict()
        inspector.call_of = self.expired

    def expired(self, worker: Worker, expiry: Expiry, until: float) -> RunCall | None:
        """A worker has expired, and is going to be looked at: call its run, unless that has been done.

        Args:
            until: when that is over, on the loop's clock.

        Returns:
            The call that the worker's ladder has to wait for; to be told when it has been looked at. None: it
            belongs to no run, or all of it has been noted.
        """
        group, now = worker.membership.group, monotonic()
        if not worker.is_in(group):
            return None
        expiry.run = group
        call = self._calls.get(group)
        if call is None or not call.takes(worker, now):
            self._calls = {name: one for name, one in self._calls.items() if now < one.began + TOGETHER}
            call = self._calls[group] = RunCall(worker, until, self._finished)
            # Not before all that is due has been looked at, as for who has expired.
            self._queue.put(worker.id, self._start, call)
        return call if call.expired(worker, expiry) else None

    def members(self, group: str) -> Steps[list[Worker]]:
        """Return the workers that are members of a run, when all are there that an earlier server knew."""
        while self._adopting():  # the time of one was up while no server ran: who comes after it counts, too
            yield
        found = []
        for number, worker in enumerate(list(self._workers()), 1):
            if worker.is_in(group) and not worker.closed:
                found.append(worker)
            if number % _STEP == 0:
                yield
        return found

    def died(self, worker: Worker) -> None:
        """A worker is dead: should its run miss it, it is known what has become of it."""
        group, rank = worker.membership.group, worker.membership.rank
        if not group or rank < 0:
            return
        of_run = self._dead.setdefault(group, {})
        self._dead.move_to_end(group)
        while len(self._dead) > RUNS:
            self._dead.popitem(last=False)
        if len(of_run) < DEAD or rank in of_run:
            how = worker.process.how_it_ended()
            dead = Member(rank, worker.id.pid, os.uname().nodename, worker.name, "dead", verdict=how)
            of_run[rank] = _Dead(monotonic(), dead)

    # -- the call --------------------------------------------------------------------------------

    def _start(self, call: RunCall) -> None:
        self._queue.spawn(self._call(call))

    async def _call(self, call: RunCall) -> None:
        try:
            await self._queue.complete(self._muster(call))
            looks = []
            for number, one in enumerate(await self._in_order(call), 1):
                looks.append(self._queue.start(self._look(call, one)))
                if number % _FEW == 0:
                    await asyncio.sleep(0)  # a turn for others
            if looks:
                await asyncio.wait(looks)
        finally:
            call.all_called()
            call.inspected()

    def _muster(self, call: RunCall) -> Steps[None]:
        for worker in (yield from self.members(call.first.group)):
            call.members.setdefault(worker, _Called(worker))
        call.mustered = True

    async def _in_order(self, call: RunCall) -> list[_Called]:
        """Return the members, first those that have expired, then those that stand where few do."""
        called = list(call.members.values())
        pids = [one.worker.id.pid for one in called]
        stands: dict[int, str] = {}
        with contextlib.suppress(Exception):  # then they come by rank
            await in_thread(partial(_stand, pids, stands), ORDER_WITHIN, lambda: None)
        many = Counter(stands.values())

        def place(one: _Called) -> tuple[bool, int, int]:
            there = many[stands.get(one.worker.id.pid, "")]
            return one.expiry is None, there, one.membership.rank

        return sorted(called, key=place)

    async def _look(self, call: RunCall, one: _Called) -> None:
        around = LookAround(one.worker.tables, monotonic())
        with contextlib.suppress(OSError, ValueError):  # a table is gone, with its worker
            await self._queue.complete(around.read())
        one.note(around)
        if one.expiry is None:
            one.findings = await self._inspector.look(one.worker, one.subject, call.until, first=False)
            one.died = one.findings is None or one.worker.closed

    # -- what is told ----------------------------------------------------------------------------

    def _finished(self, call: RunCall) -> None:
        self._queue.spawn(self._tell(call))

    async def _tell(self, call: RunCall) -> None:
        """Compare what all of them were doing; keep the record, and tell of it if it says something new."""
        members = await self._queue.complete(_found(call))
        members += self._absent(call, {member.rank for member in members})
        roll = Roll(members, [], "")
        try:
            size = len(call.first.ranks_here())
            whole = size if size == call.first.size and size <= MOST_MISSING else None
            compare = partial(call_roll, members, whole)
            roll = await in_thread(compare, CALL_WITHIN, lambda: None)
        except Exception:  # noqa: BLE001 - logged; who was found, and doing what, is kept all the same
            log.exception("the members of a run could not be compared")
        culprit = f"rank{'s' * (len(roll.culprits) > 1)} {', '.join(map(str, roll.culprits))}"
        event = Event(
            "run", detail=_detail(roll.members, call.first), verdict=roll.verdict, run=call.first.group,
            culprit=culprit * bool(roll.culprits),
        )  # fmt: skip
        is_news, call.verdict = roll.verdict != call.verdict, roll.verdict
        record, listed = self._record(call, roll), [member.as_json() for member in roll.members]
        self._reporter.called(record, listed, event if is_news else None)

    def _absent(self, call: RunCall, found: set[int | None]) -> list[Member]:
        """Return those that ought to be on this node, and are not: dead ones, and those that are missing."""
        since = min((one.worker.joined_at for one in call.members.values()), default=inf)
        dead = self._dead.get(call.first.group, {})
        gone = [one.member for rank, one in dead.items() if rank not in found and one.at >= since]
        found = found | {one.rank for one in gone}
        here = call.first.ranks_here()
        if not call.first.here or len(here) > MOST_MISSING:
            return gone  # perhaps some are on other nodes; who is missing is counted where it is compared
        node = os.uname().nodename
        return gone + [Member(rank, node=node, state="missing") for rank in here if rank not in found]

    def _record(self, call: RunCall, roll: Roll) -> dict[str, Any]:
        expiries = [one.expiry.id for one in call.members.values() if one.expiry is not None]
        return {
            "id": call.id,
            "event": "run",
            "run": call.first.group,
            "size": call.first.size or None,
            "time": call.wall,
            "host": os.uname().nodename,
            "boot_id": procfs.boot_id(),
            "monotonic": call.began,
            "expired": expiries,
            "culprits": roll.culprits,
            "verdict": roll.verdict,
        }


def _found(call: RunCall) -> Steps[list[Member]]:
    """Return the members as they were found."""
    members = []
    for one in list(call.members.values()):
        members.append(one.member())
        yield
    return members


def _stand(pids: Iterable[int], found: dict[int, str]) -> None:
    """Find out in which state and system call the main threads of some processes are. May block."""
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):  # it is gone
            found[pid] = f"{procfs.state_of(pid)} {procfs.syscall(pid, pid)}"


def _detail(members: Iterable[Member], said: Membership) -> str:
    counted = Counter(member.state for member in members)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counted.items()))
    return f"of {said.size} members {states}" if said.size else states
