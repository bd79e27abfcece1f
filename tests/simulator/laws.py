"""The laws, and how each of them is checked: after every step; those about signals, at the signal itself.

I1 *An armed timer ends*: by its release, by its worker's death or exec, or by a first signal, in ``TIGHT``
   seconds of virtual time of its effective deadline, which the others of its ladder follow in time. If nobody
   is to be signalled for it, a report comes as soon. On hold it has until it runs again, and had the time to
   leave. It is ``LOOSE`` seconds if server and worker have not been connected all the while, and
   ``RECONNECTS`` more if no server knew the table by then. The time counts
   from when the entering of the block was over, and from when a server has run freely: it has started, was
   not stopped since, and may signal the worker. A thread that is still in the middle of entering may not
   have rung yet: its timer has until the server looks by itself. And at the end of every look: of what was
   visible when the promise was written, and whose entering was over, nothing waits for the later read.
   Whatever stops the server however often: a timer has ended when it has run, in all, for about twice as long
   as was left when the timer was first seen to be overdue.
I2 *No signal goes to any but the pinned process.* Its target is the process that stored the timer which is
   the reason, and runs the program that stored it, at every step of a ladder; and that timer is not one that
   is only observed. (Forgiven is an exec of which the server has not heard: the end of the connection is on
   its way.)
I3 *None before the deadline.* A signal is not sent before the effective deadline of the timer which is the
   reason, computed here from all signs of life that this server has ever shown. What falls due while its
   worker is asked what it is doing is put off by what the answer has taken, if there is one.
I4 *A release stored before the first signal is never reaped for.* The timer which is the reason had not
   been released, visibly, when the server began to look it up again.
I5 *A table affects only itself.* Nobody but its owner changes a slot: every slot of a tame table holds what
   its owner has stored. Garbage in one table is the end of no look and of no server: an exception fails the
   history. I1 to I4 hold for all others meanwhile.
I6 *Bounded state.* What a watch remembers of a table is no more than it has slots; one handle wakes for it,
   and one reads later. Of a worker one wake-up is pending, what is postponed is bounded, and SIGKILL is sent
   once. Stalls are
   forgotten when nothing that they moved is still to come.
I7 *The client never waits.* An operation takes at most ``worker.MOST_STEPS`` steps, and waits for the
   server only while it connects, for its budget at most. ``worker.Thread`` checks this itself.
I8 *Evidence delays no kill* beyond its budget.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from aiotimer._core import layout
from aiotimer._core.ladder import KILL
from aiotimer._core.reaping import CHECKED_EVERY, LAST_RETRY, TO_LEAVE
from aiotimer._core.watch import ADOPTED_EVERY, Due

from .server import BEAT, EVIDENCE, Server, Table
from .worker import BUDGET, LAST_PAUSE
from .world import Armed, Broken, Process, TableFile, World

FINE_BEAT = 0.125
"""``watch.FINE_BEAT``: by so much less is left after each further gap, at least."""

PROMPT = 0.03
"""Seconds for the steps of other callbacks."""

SLACK = 0.1

TIGHT = SLACK + EVIDENCE
"""A ring under way (``DELAY``), the later read, early wakes, evidence, and the steps of other callbacks."""

LOOSE = ADOPTED_EVERY + TIGHT

RECONNECTS = LAST_PAUSE + BUDGET + SLACK
"""Seconds within which a worker says HELLO that could not ring: no server knows its table before."""

TOLERATED = BEAT + 1.0
"""Seconds of silence that are no stall: as ``Lifeline`` has it."""

MOST_POSTPONED = 64


class Gap(NamedTuple):
    """A silence of the server: it stood still."""

    began: float
    ended: float


@dataclass
class Asked:
    """A worker was asked what it is doing, and how long its answer took, if there is one."""

    since: float
    until: float = inf
    took: float = inf


class Laws:
    """Knows what the server has shown of itself, and what it may do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server: Server | None = None
        self.free_since = inf
        self._gaps: list[Gap] = []
        self._last_sign = -inf
        self._epoch = 0
        self._born_at = -inf
        self._observed: set[int] = set()
        self._asked: dict[Process, list[Asked]] = {}
        self._checked_until: dict[int, tuple[int, float]] = {}
        self._next_file = 0
        self._ran = 0.0
        self._overdue: dict[int, tuple[float, float]] = {}

    # -- told by the simulation --------------------------------------------------------------------

    def born(self) -> None:
        """A server comes into being: what an earlier one suffered is of no concern."""
        self._gaps.clear()
        self._observed.clear()
        self._asked.clear()
        self._overdue.clear()
        for process in self.world.processes.values():
            if not process.killed:  # the next server begins anew, if its timers are armed still
                process.signalled, process.last_signal_at = False, inf
        self._last_sign = inf
        self._epoch += 1
        self._born_at = self.world.now
        self.unfree()

    def free(self) -> None:
        """From now on a server runs freely."""
        self.free_since = self.world.now

    def unfree(self) -> None:
        """It does not."""
        self._ran = self.ran()
        self.free_since = inf

    def ran(self) -> float:
        """Return for how long servers have run freely, in all."""
        return self._ran + max(0.0, self.world.now - self.free_since)

    # -- told by the server ------------------------------------------------------------------------

    def alive(self, now: float) -> None:
        """The server shows a sign of life; if the last one is too long ago, it stood still."""
        if now - self._last_sign > TOLERATED:
            self._gaps.append(Gap(self._last_sign, now))
        self._last_sign = now

    def effective(self, deadline: float) -> float:
        """Return when a deadline falls due: what was left before a gap is left again after it, or less."""
        left = inf
        for began, ended in self._gaps:
            if began < deadline <= ended:
                left = max(0.0, min(deadline - began, left - FINE_BEAT))
                deadline = ended + left
        return deadline

    def asks(self, process: Process, now: float) -> Asked:
        """A worker is asked what it is doing."""
        asked = Asked(now)
        self._asked.setdefault(process, []).append(asked)
        return asked

    def put_off(self, process: Process, due: float) -> float:
        """Return until when what falls due at a time is put off by the questions that were there."""
        asked = [one for one in self._asked.get(process, ()) if one.since <= due < one.until]
        return max([due, *(due + one.took for one in asked)])

    def about_to_signal(self, target: Process, table: Table, due: Due, since: int) -> None:
        """The server is about to send the first signal for a timer."""
        file, now = table.truth, self.world.now
        target.reaped_program = target.program
        if target is not file.owner:
            raise Broken("I2", f"{target} is signalled for a timer in {file}")
        if table.line is None and 0 <= file.unmapped_at < since:
            raise Broken("I2", f"{target} is signalled for what an earlier program of it stored in {file}")
        if table.line is None and 0 <= file.left_at < since:
            raise Broken("I4", f"{target} is signalled for what it left in {file} when it closed its client")
        if not file.tame:
            return  # who writes garbage into his own table harms himself
        effective = self.effective(due.deadline)
        if now < effective:
            raise Broken("I3", f"{target} is signalled {effective - now:.6f} s early")
        if now < self.put_off(target, effective):
            raise Broken("I3", f"{target} is signalled for what fell due while it was asked what it is doing")
        armed = file.visible.get(due.slot)
        if armed is not None and armed.deadline == due.deadline:
            assert self.server is not None
            if armed.observed or self.server.policy.observe:  # what the breaker finds under way goes on
                raise Broken("I2", f"{target} is signalled for a timer that is only to be observed")
            return
        gone = file.gone.get((due.slot, due.deadline), -1)
        if file.mapped and gone < since:
            raise Broken(
                "I4", f"{target} is signalled for slot {due.slot} of {file}: released in step {gone}"
            )

    def signalled(self, target: Process, number: int) -> None:
        """A signal is sent."""
        if target.killed == self._epoch:
            raise Broken("I6", f"{target} is signalled again after SIGKILL")
        if target.program != target.reaped_program:
            raise Broken("I2", f"{target} is signalled for what an earlier program of it stored")
        target.signalled = True
        if number == KILL:
            target.killed = self._epoch
        target.last_signal_at = self.world.now

    def observed(self, table: Table, due: Due) -> None:
        """An expired timer is reported, and nobody is to be signalled for it."""
        # It is this arming or the one before it: of a store that is held back the count may be known already.
        for armed in (table.truth.visible.get(due.slot), table.truth.armed.get(due.slot)):
            if armed is not None and armed.deadline == due.deadline:
                self._observed.add(armed.number)

    def gathered(self, asked_at: float) -> None:
        """Evidence is known."""
        if self.world.now - max(asked_at, self.free_since) > EVIDENCE + PROMPT:
            raise Broken(
                "I8", f"evidence has taken {self.world.now - asked_at:.6f} s, its budget is {EVIDENCE}"
            )

    @property
    def _observing(self) -> bool:
        return self.server is not None and bool(self.server.reaper.observing)

    def looked(self, table: Table, wake_at: float, visible: dict[int, object]) -> None:
        """A look is over."""
        file = table.truth
        rung = table.line is not None and any(message.kind == "ring" for message in table.line.to_server)
        if rung or not file.tame or not file.mapped or file.left_at >= 0 or file.owner.signalled:
            return
        for slot, armed in visible.items():
            assert isinstance(armed, Armed)
            still = file.visible.get(slot) is armed and armed.number in file.returned
            if still and table.told.get(slot) != armed.deadline and self.effective(armed.deadline) < wake_at:
                raise Broken("I1", f"a look at {file} has missed slot {slot}, which it will find too late")

    def connection_changed(self, table: Table) -> None:
        """A table has gained or lost its connection."""
        table.truth.stable_since = inf if table.line is None else self.world.now

    # -- after every step --------------------------------------------------------------------------

    def check(self) -> None:
        """Check what can be checked at any time: one table's memory, and every timer's time."""
        files, now = self.world.in_use, self.world.now
        if files and self.world.steps % 8 == 0:
            self._next_file = (self._next_file + 1) % len(files)
            self._check_memory(files[self._next_file])
        if self.world.steps % 16 == 0 and self.server is not None:
            self._check_bounds(self.server)
        if now < self.free_since:
            return
        for process in self.world.processes.values():
            if process.signalled and process.alive and not process.killed:
                self._check_ladder(process, now)
        for file in files:
            if file.armed and file.tame and not file.owner.signalled:
                for armed in file.armed.values():
                    if armed.deadline < now:
                        self._check_time(file, armed, now)

    def _check_ladder(self, process: Process, now: float) -> None:
        assert self.server is not None
        longest = max(step.grace for step in self.server.policy.ladder) + SLACK
        until = max(process.last_signal_at, self.free_since) + longest
        if process.protected_until == -inf and now > until:
            raise Broken("I1", f"{process} was signalled at {process.last_signal_at:.6f}, and that is all")

    def _check_time(self, file: TableFile, armed: Armed, now: float) -> None:
        epoch, until = self._checked_until.get(armed.number, (0, 0.0))
        if epoch == self._epoch and now <= until:
            return
        assert self.server is not None
        if (armed.observed or self._observing) and armed.number in self._observed:
            self._checked_until[armed.number] = (self._epoch, inf)
            return
        over = file.returned.get(armed.number, armed.stored_at + self.server.bound + LOOSE)
        protected = file.owner.protected_until
        effective = self.effective(armed.deadline)
        asked = [one.until for one in self._asked.get(file.owner, ()) if one.since <= effective]
        since = max(self.put_off(file.owner, effective), over, self.free_since, *asked)
        if protected > -inf:
            since = max(since, protected + LAST_RETRY)
        if self.server.policy.stopped == "hold" and file.owner.frozen_until > self._born_at:
            # The server may have held it, and sees that it goes on when it looks, if nothing stops itself.
            since = max(since, max(file.owner.frozen_until, self.free_since) + CHECKED_EVERY + TO_LEAVE)
        if file.linked_at > since:  # no server knew this table by then
            since = min(file.linked_at, max(since, file.owner.frozen_until) + RECONNECTS)
        stable = file.stable_since <= since
        until = since + (TIGHT if stable else LOOSE)
        self._checked_until[armed.number] = (self._epoch, until)
        if now > until:
            raise Broken(
                "I1",
                f"slot {armed.slot} of {file}, due at {armed.deadline:.6f} and by rights at {since:.6f}, "
                f"is still armed, and nobody has been signalled",
            )
        known = file.linked and armed.number in file.returned
        if known and protected == -inf and self.server.policy.stopped != "hold":
            self._check_put_off(file, armed)

    def _check_put_off(self, file: TableFile, armed: Armed) -> None:
        """Nothing is put off for ever: this holds whatever :meth:`effective` says."""
        began, left = self._overdue.setdefault(armed.number, (self.ran(), armed.deadline - armed.stored_at))
        if self.ran() - began > 2 * max(0.0, left) + BEAT + LOOSE:
            raise Broken(
                "I1", f"slot {armed.slot} of {file}, due at {armed.deadline:.6f}, is put off for ever"
            )

    def _check_memory(self, file: TableFile) -> None:
        if not file.tame:
            return
        mark = int(file.words[layout.HIGH_WATER])
        for slot, stored in enumerate(file.words[layout.FIRST_DEADLINE : layout.FIRST_DEADLINE + mark]):
            armed = file.armed.get(slot)
            if stored != (inf if armed is None else armed.deadline):
                raise Broken("I5", f"slot {slot} of {file} holds {stored}, which its owner did not store")

    def _check_bounds(self, server: Server) -> None:
        tables = [table for known in server.workers.values() for table in known.tables]
        for table in tables:
            remembered = sum(len(block.reported) for block in table.watch._blocks)
            if remembered > layout.FIRST_SLOTS and remembered > (slots := len(table.reader.deadlines())):
                raise Broken("I6", f"{remembered} timers of {table} are remembered, of {slots}")
        pending = Counter(handle.what for handle in server.loop.handles if handle.callback is not None)
        for what, count in pending.items():
            if count > 1:
                raise Broken("I6", f"{count} handles are pending to do this: {what}")
        for case in server.reaper._cases.values():
            if len(case.machine.postponed) > MOST_POSTPONED:
                raise Broken("I6", f"{len(case.machine.postponed)} reaps of {case.worker.id} are postponed")
        stalls = server.lifeline.stalls
        if stalls and server.idle and self._forgotten_by(stalls[0]) < self._last_sign - TOLERATED:
            raise Broken("I6", f"{len(stalls)} stalls are remembered, the first for no reason")

    def _forgotten_by(self, stall: tuple[float, float]) -> float:
        """Return when no deadline is to come that a stall moved, and later ones moved on."""
        began, ended = stall
        left = ended - began
        last = ended + left
        for began, ended in self._gaps:
            if stall[1] <= began < last:
                moved = ended + max(0.0, min(min(last, ended) - began, left - FINE_BEAT))
                left = moved - ended if last <= ended else left
                last = moved if last <= ended else max(last, moved)
        return last
