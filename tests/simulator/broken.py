"""Variants with one rule broken, each of which the laws must catch.

A variant changes as little as can be: one method, one order of two steps. What it would cost a user is in its
docstring.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator
from functools import partial
from math import inf
from typing import NamedTuple

from aiotimer._core import layout
from aiotimer._core.reader import Timer
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Due, Lifeline, Look, Watch

from .server import Known, Server, Steps, Table
from .simulation import Variant
from .worker import Wait, Worker
from .world import Law, Line, Process, TableFile


class NoSecondRead(Server):
    """A timer stored while the server looked is found by the later read, after its deadline."""

    def second_read(self, table: Table, wake_at: float) -> Generator[str, None, bool]:
        return False
        yield


class NoLaterRead(Server):
    """A timer whose store was held back while the server looked is found seconds late."""

    def schedule_later_read(self, table: Table) -> None:
        pass


class LaterReadIfStartedOver(Server):
    """The same, where the later read follows only some looks."""

    def schedule_later_read(self, table: Table) -> None:
        if table.wake_at <= self.world.now:
            super().schedule_later_read(table)


class NoConfirmation(Server):
    """A worker that was in time, if only just, is killed."""

    def confirm(self, table: Table, due: tuple[Due, ...]) -> tuple[Due, Timer] | None:
        return due[0], Timer(due[0].slot, "?", 0, due[0].deadline)


class NoSecondConfirmation(Server):
    """A worker that releases its timer while evidence is gathered is killed."""

    def confirm_again(self, table: Table, due: Due) -> bool:
        return not table.closed


class IgnoresStartTimes(Server):
    """After a restart, a process with a reused pid is killed for a dead one's timer."""

    def is_same(self, file: TableFile, process: Process) -> bool:
        return file.name[0].pid == process.pid and file.name[1] == process.inode

    def is_mapped(self, file: TableFile, process: Process) -> bool:
        return True


class SignalsPids(Server):
    """A process with a reused pid is killed, even by the server that knew the dead one."""

    def target(self, known: Known) -> Process:
        return self.world.processes.get(known.process.pid, known.process)


class WritesSlots(Server):
    """A timer that is armed while the server clears the others is disarmed."""

    def clear(self, known: Known) -> Steps:
        yield from super().clear(known)
        for table in known.tables:
            for slot, deadline in enumerate(table.reader.deadlines()):
                if layout.is_armed(deadline):
                    table.file.pwrite(layout.word(inf), layout.deadline_offset(slot))
        yield "clears the slots, too"


class ReleasesAtTheEnd(Server):
    """A library that closes a socket disarms everything."""

    def ended(self, line: Line, table: Table) -> Steps:
        self.drop(table)
        yield "drops a table because its connection has ended"


class TrustsTheUnconnected(Server):
    """After a restart, a program is killed for what another one armed before it called exec."""

    def is_mapped(self, file: TableFile, process: Process) -> bool:
        return True


class RetriesWithoutEnd(Server):
    """Whenever a reap fails, one more of them is going to be tried again."""

    def try_again(self, known: Known) -> Steps:
        self.call_at(self.world.now + 1.0, partial(self.try_again, known))
        yield from super().try_again(known)


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


class RemembersTooEarly(Worker):
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


class NeverRings(Worker):
    """A short timer waits for the next look."""

    def send_ring(self, deadline: float) -> bool:
        return True


class WaitsForEver(Worker):
    """A server that does not answer holds its workers."""

    def budget(self) -> float:
        return inf


class KeepsItsTableOverAFork(Worker):
    """A child that leaves its parent's block disarms the parent."""

    def abandon(self, copy: TimerTable) -> None:
        pass


class LeavesItsTimersBehind(Worker):
    """A client that is closed while its server is down is reaped for its timers later."""

    def release_all(self, table: TimerTable) -> None:
        pass


def with_watch(kind: type[Watch]) -> type[Server]:
    """Return servers that look in that way."""
    return type(kind.__name__, (Server,), {"watch": kind})


def with_lifeline(kind: type[Lifeline]) -> type[Server]:
    """Return servers that know their own stalls in that way."""
    return type(kind.__name__, (Server,), {"lifeline_kind": kind})


class Case(NamedTuple):
    """A variant, and the law that has to notice."""

    law: Law
    variant: Variant


def _case(
    law: Law, *only: str, server: type[Server] = Server, worker: type[Worker] = Worker, name: str
) -> tuple[str, Case]:
    return name, Case(law, Variant(name, server, worker, only))


CASES: dict[str, Case] = dict(
    (
        _case("I1", name="no-second-read", server=NoSecondRead),
        _case("I1", "interrupt", name="no-later-read", server=NoLaterRead),
        _case("I1", "interrupt", name="later-read-if-started-over", server=LaterReadIfStartedOver),
        _case("I1", "break_line", name="end-of-connection-releases", server=ReleasesAtTheEnd),
        _case("I1", "crash", "break_line", name="unconnected-as-others", server=with_watch(ConnectedForEver)),
        _case("I1", "interrupt", name="ring-remembered-before-sent", worker=RemembersTooEarly),
        _case("I1", name="no-ring", worker=NeverRings),
        _case("I2", "crash", "die", name="start-time-ignored", server=IgnoresStartTimes),
        _case("I2", "stop_server", "die", name="signals-to-pids", server=SignalsPids),
        _case("I2", name="exec-unnoticed", server=TrustsTheUnconnected),
        _case("I3", name="judged-before-the-tick", server=with_watch(JudgesBeforeTheTick)),
        _case("I3", name="a-millisecond-early", server=with_watch(Impatient)),
        _case("I3", name="stalls-forgotten-at-once", server=with_lifeline(ForgetsStallsAtOnce)),
        _case("I4", name="no-reading-before-the-signal", server=NoConfirmation),
        _case("I4", name="no-reading-after-the-evidence", server=NoSecondConfirmation),
        _case("I4", "crash", "break_line", name="timers-left-behind", worker=LeavesItsTimersBehind),
        _case("I5", name="slots-written-on-clear", server=WritesSlots),
        _case("I5", name="table-kept-over-a-fork", worker=KeepsItsTableOverAFork),
        _case("I6", name="retries-without-end", server=RetriesWithoutEnd),
        _case("I6", "stop_server", name="stalls-never-forgotten", server=with_lifeline(NeverForgetsStalls)),
        _case("I7", name="no-budget", worker=WaitsForEver),
    )
)
"""By name."""
