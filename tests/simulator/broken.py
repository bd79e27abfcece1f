"""Variants with one rule broken, each of which the laws must catch.

A variant changes as little as can be: one method, one order of two steps. What it would cost a user is in its
docstring.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from aiotimer._core import layout, reaping
from aiotimer._core.ladder import KILL
from aiotimer._core.reader import TableReader, Timer
from aiotimer._core.reaping import Reaping, State
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Due, Lifeline, Look, Watch

from .server import Inspector, JudgedReaper, Known, PinnedProcess, Server, Table
from .simulation import Variant
from .worker import Wait
from .worker import Worker as SimulatedWorker
from .world import Law, Process, TableFile

if TYPE_CHECKING:
    from aiotimer.server.reaper import _Case
    from aiotimer.server.watched_table import WatchedTable
    from aiotimer.server.worker import Worker


class ReadsOnce(TableReader):
    """A look's second read is its first one."""

    _first: bytes | None = None

    def snapshot(self) -> bytes:
        """Read every other time."""
        first, self._first = self._first, None
        if first is None:
            first = self._first = super().snapshot()
        return first


class NoSecondRead(Table):
    """A timer stored while the server looked is found by the later read, after its deadline."""

    def look(self) -> None:
        self.reader = ReadsOnce(self.file.read)
        super().look()


class NoLaterRead(Table):
    """A timer whose store was held back while the server looked is found seconds late."""

    def _read_later(self) -> None:
        self._later = None


class LaterReadIfStartedOver(Table):
    """The same, where the later read follows only some looks."""

    __slots__ = ("promises",)

    def look(self) -> None:
        self.promises = 0
        super().look()

    def _write(self, promise: float) -> None:
        self.promises += 1
        super()._write(promise)

    def _read_later(self) -> None:
        if self.promises > 1:
            super()._read_later()


class NoConfirmation(JudgedReaper):
    """A worker that was in time, if only just, is killed."""

    def _read_again(self, case: _Case, action: reaping.ReadAgain) -> reaping.Read:
        read, first = super()._read_again(case, action), action.due[0]
        armed = cast(Table, action.table).truth.armed.get(first.slot)
        if read.armed is not None or self.observing or (armed is not None and armed.observed):
            return read
        case.found = (first, Timer(first.slot, "?", 0, first.deadline))
        return reaping.Read(action.table, action.due, first)

    def _confirm(self, case: _Case, action: reaping.Confirm) -> reaping.Armed | reaping.Released:
        super()._confirm(case, action)
        return reaping.Armed()


class NoSecondConfirmation(JudgedReaper):
    """A worker that releases its timer while evidence is gathered is killed."""

    def _confirm(self, case: _Case, action: reaping.Confirm) -> reaping.Armed | reaping.Released:
        super()._confirm(case, action)
        return reaping.Armed()


class ReapsTheObserved(JudgedReaper):
    """A worker that is only to be observed is killed."""

    def _still_armed(
        self, worker: Worker, table: WatchedTable, due: tuple[Due, ...], observed: list[tuple[Due, Timer]]
    ) -> tuple[Due, Timer] | None:
        found = super()._still_armed(worker, table, due, observed)
        return found or (observed.pop() if observed else None)


class NeverWakes(JudgedReaper):
    """A worker that survives the first signal of its ladder lives for ever."""

    def _woken(self, case: _Case) -> None:
        pass


class HoldsEverybody(PinnedProcess):
    """A worker that runs is taken for stopped, and never reaped."""

    def why_stopped(self) -> str:
        return "it is stopped"


class ForgetsWhatIsPostponed(Reaping):
    """What expired while evidence was gathered about something else is never dealt with."""

    def _go_on(self) -> list[reaping.Action]:
        self.postponed.clear()
        return super()._go_on()


class KillsAgain(Reaping):
    """A worker that is dying is killed again and again."""

    def handle(self, event: reaping.Event, now: float) -> list[reaping.Action]:
        dying = self.state is State.KILLED and isinstance(event, reaping.Woken | reaping.Expired)
        actions = super().handle(event, now)
        return [*actions, reaping.Signal(KILL, with_cont=False)] if dying else actions


class IgnoresStartTimes(Server):
    """After a restart, a process with a reused pid is killed for a dead one's timer."""

    def is_same(self, file: TableFile, process: Process) -> bool:
        return file.name[0].pid == process.pid and file.name[1] == process.inode


class SignalsPids(PinnedProcess):
    """A process with a reused pid is killed, even by the server that knew the dead one."""

    def target(self) -> Process:
        return self._server.world.processes.get(self.process.pid, self.process)


class WritesSlots(Known):
    """A timer that is armed while the server clears the others is disarmed."""

    def clear(self) -> None:
        super().clear()
        for table in self.tables:
            for slot, deadline in enumerate(table.reader.deadlines()):
                if layout.is_armed(deadline):
                    table.file.write(layout.word(inf), layout.deadline_offset(slot))


class ReleasesAtTheEnd(Server):
    """A library that closes a socket disarms everything."""

    def ended(self, known: Known, table: Table) -> None:
        known.drop(table)


class TrustsTheUnconnected(PinnedProcess):
    """After a restart, a program is killed for what another one armed before it called exec."""

    def runs_another_program(self, program: int) -> bool:
        return False

    def has_unmapped(self, inode: int) -> bool:
        return False


class WakesWithoutEnd(JudgedReaper):
    """Whenever it is to be woken, a worker's machine is woken once more besides."""

    def _schedule(self, case: _Case) -> None:
        super()._schedule(case)
        if case.wakes_at < inf:
            self._loop.call_at(case.wakes_at + 1.0, self._woken, case)


class TakesItsTime(Inspector):
    """A worker whose evidence is slow to come lives on."""

    takes = 0.13


class JudgesBeforeTheTick(Watch):
    """When the server goes on after a stall, workers are killed for the time that it stood still."""

    def look(self, deadlines: array[float], now: float) -> Look:
        lifeline = self._lifeline
        self._lifeline = _NoTick(lifeline)
        try:
            return super().look(deadlines, now)
        finally:
            self._lifeline = lifeline
            lifeline.tick(now)


class _NoTick(Lifeline):
    def __init__(self, real: Lifeline) -> None:
        super().__init__(inf)
        self.stalls = real.stalls

    def tick(self, now: float) -> None:
        pass


class Impatient(Watch):
    """A loop that wakes early kills early."""

    def look(self, deadlines: array[float], now: float) -> Look:
        return super().look(deadlines, now + 0.001)


class ConnectedForEver(Watch):
    """A table whose owner cannot ring is looked at every five seconds: what it arms meanwhile is late."""

    def __init__(self, lifeline: Lifeline, *, connected: bool, bound: float) -> None:
        super().__init__(lifeline, connected=True, bound=bound)


class ForgetsStallsAtOnce(Lifeline):
    """A timer that a stall moved is reaped as soon as the server has shown life again."""

    def tick(self, now: float) -> None:
        known = self.stalls
        super().tick(now)
        if self.stalls == known:
            self.stalls = ()


class NeverForgetsStalls(Lifeline):
    """A server that is often suspended grows."""

    def _forget(self, now: float) -> None:
        pass


class RemembersTooEarly(SimulatedWorker):
    """A thread that is interrupted between the two keeps all others from ringing."""

    def ring(self, table: TimerTable, deadline: float) -> Generator[str | Wait, None, bool]:
        looks = table.looks()
        yield "reads the look count"
        table.rang(looks, self.world.now)
        yield "remembers a ring"
        if not self.send_ring(deadline):
            yield "finds the server gone"
            return False
        yield "rings"
        return True


class NeverRings(SimulatedWorker):
    """A short timer waits for the next look."""

    def send_ring(self, deadline: float) -> bool:
        return True


class WaitsForEver(SimulatedWorker):
    """A server that does not answer holds its workers."""

    def budget(self) -> float:
        return inf


class KeepsItsTableOverAFork(SimulatedWorker):
    """A child that leaves its parent's block disarms the parent."""

    def abandon(self, copy: TimerTable) -> None:
        pass


class LeavesItsTimersBehind(SimulatedWorker):
    """A client that is closed while its server is down is reaped for its timers later."""

    def release_all(self, table: TimerTable) -> None:
        pass


def server(**parts: Any) -> type[Server]:
    """Return servers with other parts: ``watch``, ``lifeline_kind``, ``table``, ``reaper_kind``, ..."""
    return type("Variant", (Server,), parts)


def machine(kind: type[Reaping]) -> type[Server]:
    """Return servers with another state machine."""
    return server(reaper_kind=type("VariantReaper", (JudgedReaper,), {"machine": kind}))


class Case(NamedTuple):
    """A variant, and the law that has to notice."""

    law: Law
    variant: Variant


def _case(
    law: Law,
    *only: str,
    of: type[Server] = Server,
    worker: type[SimulatedWorker] = SimulatedWorker,
    name: str,
) -> tuple[str, Case]:
    return name, Case(law, Variant(name, of, worker, only))


CASES: dict[str, Case] = dict(
    (
        _case("I1", name="no-second-read", of=server(table=NoSecondRead)),
        _case("I1", "interrupt", name="no-later-read", of=server(table=NoLaterRead)),
        _case("I1", "interrupt", name="later-read-if-started-over", of=server(table=LaterReadIfStartedOver)),
        _case("I1", "break_line", name="end-of-connection-releases", of=ReleasesAtTheEnd),
        _case("I1", "crash", "break_line", name="unconnected-as-others", of=server(watch=ConnectedForEver)),
        _case("I1", "interrupt", name="ring-remembered-before-sent", worker=RemembersTooEarly),
        _case("I1", name="no-ring", worker=NeverRings),
        _case("I1", name="never-woken", of=server(reaper_kind=NeverWakes)),
        _case("I1", name="everybody-held", of=server(pinned=HoldsEverybody)),
        _case("I1", name="postponed-forgotten", of=machine(ForgetsWhatIsPostponed)),
        _case("I2", "crash", "die", name="start-time-ignored", of=IgnoresStartTimes),
        _case("I2", "stop_server", "die", name="signals-to-pids", of=server(pinned=SignalsPids)),
        _case("I2", name="exec-unnoticed", of=server(pinned=TrustsTheUnconnected)),
        _case("I2", name="the-observed-reaped", of=server(reaper_kind=ReapsTheObserved)),
        _case("I3", name="judged-before-the-tick", of=server(watch=JudgesBeforeTheTick)),
        _case("I3", name="a-millisecond-early", of=server(watch=Impatient)),
        _case("I3", name="stalls-forgotten-at-once", of=server(lifeline_kind=ForgetsStallsAtOnce)),
        _case("I4", name="no-reading-before-the-signal", of=server(reaper_kind=NoConfirmation)),
        _case("I4", name="no-reading-after-the-evidence", of=server(reaper_kind=NoSecondConfirmation)),
        _case("I4", "crash", "break_line", name="timers-left-behind", worker=LeavesItsTimersBehind),
        _case("I5", name="slots-written-on-clear", of=server(known=WritesSlots)),
        _case("I5", name="table-kept-over-a-fork", worker=KeepsItsTableOverAFork),
        _case("I6", name="woken-without-end", of=server(reaper_kind=WakesWithoutEnd)),
        _case("I6", name="killed-again", of=machine(KillsAgain)),
        _case(
            "I6", "stop_server", name="stalls-never-forgotten", of=server(lifeline_kind=NeverForgetsStalls)
        ),
        _case("I7", name="no-budget", worker=WaitsForEver),
        _case("I8", name="no-budget-for-evidence", of=server(inspector=TakesItsTime)),
    )
)
"""By name."""
