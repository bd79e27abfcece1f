"""Variants with one rule broken, each of which the laws must catch.

A variant changes as little as can be: one method, one order of two steps. What it would cost a user is in its
docstring. Above it stands which law has to notice, and which misfortunes alone happen: all, if none is named.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Generator
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from aiotimer._core import layout, reaping
from aiotimer._core.ladder import KILL
from aiotimer._core.reader import TableReader, Timer
from aiotimer._core.reaping import Reaping, State
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Armings, Due, Lifeline, Look, Watch
from aiotimer.server.slices import Steps, finish
from aiotimer.server.worker import Asking

from .server import Client, Inspector, JudgedReaper, Known, PinnedProcess, Server, Table
from .simulation import Variant
from .worker import Wait
from .worker import Worker as SimulatedWorker
from .world import Law, Process, TableFile

if TYPE_CHECKING:
    from aiotimer.server.reaper import _Case
    from aiotimer.server.watched_table import WatchedTable
    from aiotimer.server.worker import Worker


class Case(NamedTuple):
    """A variant, and the law that has to notice."""

    law: Law
    variant: Variant


CASES: dict[str, Case] = {}
"""By name."""

_PARTS: dict[type, str] = {
    Asking: "asking",
    Inspector: "inspector",
    JudgedReaper: "reaper_kind",
    Known: "known",
    Lifeline: "lifeline_kind",
    PinnedProcess: "pinned",
    Reaping: "machine",
    Table: "table",
    Watch: "watch",
}
"""By what a server is made of, the attribute that says of which kind."""

K = TypeVar("K", bound=type)


def breaks(law: Law, *only: str, seed: int = 0) -> Callable[[K], K]:
    """Take the class below as a variant, which breaks a law: a worker, a server, or a part of one.

    Args:
        law: which; after it the misfortunes that happen.
        seed: of a history that has shown it. Should it not any more, the seeds after it are tried.
    """

    def register(kind: K) -> K:
        name = re.sub("(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
        base = kind.__mro__[1]
        if base is SimulatedWorker:
            variant = Variant(name, worker=kind, only=only, seed=seed)
        else:
            server = kind if base is Server else type(kind.__name__, (Server,), {_PARTS[base]: kind})
            variant = Variant(name, server=server, only=only, seed=seed)
        CASES[name] = Case(law, variant)
        return kind

    return register


class ReadsOnce(TableReader):
    """A look's second read is its first one."""

    _first: bytes | None = None

    def snapshot(self) -> bytes:
        """Read every other time."""
        first, self._first = self._first, None
        if first is None:
            first = self._first = super().snapshot()
        return first


@breaks("I1", seed=85)
class NoSecondRead(Table):
    """A timer stored while the server looked is found by the later read, after its deadline."""

    def look(self) -> None:
        self.reader = ReadsOnce(self.file.read)
        super().look()


@breaks("I1", "interrupt", seed=66)
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


@breaks("I4", seed=6)
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


@breaks("I4", seed=29)
class NoSecondConfirmation(JudgedReaper):
    """A worker that releases its timer while evidence is gathered is killed."""

    def _confirm(self, case: _Case, action: reaping.Confirm) -> reaping.Armed | reaping.Released:
        super()._confirm(case, action)
        return reaping.Armed()


@breaks("I2", seed=1)
class ReapsTheObserved(JudgedReaper):
    """A worker that is only to be observed is killed."""

    def _still_armed(
        self, worker: Worker, table: WatchedTable, due: tuple[Due, ...], observed: list[tuple[Due, Timer]]
    ) -> tuple[Due, Timer] | None:
        found = super()._still_armed(worker, table, due, observed)
        return found or (observed.pop() if observed else None)


@breaks("I2", "exec", seed=7)
class LooksAtTheProgramOnce(JudgedReaper):
    """A program that executes another one at SIGTERM has that killed."""

    def _signal(
        self, case: _Case, action: reaping.Signal
    ) -> reaping.Sent | reaping.Gone | reaping.Left | reaping.Refused:
        self.__dict__["_program"] = lambda _case: True
        try:
            return super()._signal(case, action)
        finally:
            del self.__dict__["_program"]


@breaks("I1", seed=19)
class ForgetsWhatIsPostponed(Reaping):
    """What expired while evidence was gathered about something else is never dealt with."""

    def _go_on(self) -> list[reaping.Action]:
        self.postponed.clear()
        return super()._go_on()


@breaks("I6", seed=2)
class KillsAgain(Reaping):
    """A worker that is dying is killed again and again."""

    def handle(self, event: reaping.Event, now: float) -> list[reaping.Action]:
        dying = self.state is State.KILLED and isinstance(event, reaping.Woken | reaping.Expired)
        actions = super().handle(event, now)
        return [*actions, reaping.Signal(KILL, with_cont=False)] if dying else actions


@breaks("I5")
class WritesSlots(Known):
    """A timer that is armed while the server clears the others is disarmed."""

    def clear(self) -> None:
        super().clear()
        for table in self.tables:
            for slot, deadline in enumerate(table.reader.deadlines()):
                if layout.is_armed(deadline):
                    table.file.write(layout.word(inf), layout.deadline_offset(slot))


@breaks("I6")
class WakesWithoutEnd(JudgedReaper):
    """Whenever it is to be woken, a worker's machine is woken once more besides."""

    def _tell(self, case: _Case, event: reaping.Event) -> None:
        super()._tell(case, event)
        if case.alarm.at < inf:
            self._loop.call_at(case.alarm.at + 1.0, case.alarm._woken)


@breaks("I3", seed=117)
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


@breaks("I3", seed=8)
class Impatient(Watch):
    """A loop that wakes early kills early."""

    def look(self, deadlines: array[float], now: float) -> Look:
        return super().look(deadlines, now + 0.001)


@breaks("I3", seed=117)
class ForgetsStallsAtOnce(Lifeline):
    """A timer that a stall moved is reaped as soon as the server has shown life again."""

    def tick(self, now: float) -> None:
        known = self.stalls
        super().tick(now)
        if self.stalls == known:
            self.stalls = ()


@breaks("I1", "interrupt", seed=135)
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


@breaks("I1", "flood", seed=2)
class ReadsToTheEnd(Server):
    """Nobody is reaped as long as somebody asks without end."""

    def turn(self, client: Client) -> Steps[None]:
        while self.world.now < client.until:
            finish(super().turn(client._replace(until=-inf)))
        yield


# --- those that are one line


def _nothing(*_: object) -> None:
    pass


def _has_its_pid(_server: Server, file: TableFile, process: Process) -> bool:
    return file.name[0].pid == process.pid and file.name[1] == process.inode


def _who_has_its_pid(pinned: PinnedProcess) -> Process:
    return pinned._server.world.processes.get(pinned.process.pid, pinned.process)


def _without_armings(self: Watch, lifeline: Lifeline, *, armings: Armings, **rest: Any) -> None:
    _init_watch(self, lifeline, **rest)


_init_watch = Watch.__init__


def _all_that_was_left(self: Lifeline, deadline: float) -> float:
    for a, b in self.stalls:
        if a < deadline <= b:
            deadline = b + (deadline - a)
    return deadline


def broken(law: Law, name: str, base: type, *only: str, seed: int = 0, **members: object) -> None:
    """Take a part with other members as a variant."""
    breaks(law, *only, seed=seed)(type(name, (base,), members))


# A timer whose store was held back while the server looked is found seconds late.
broken("I1", "NoLaterRead", Table, "interrupt", seed=12, _read_later=_nothing)
# A library that closes a socket disarms everything.
broken("I1", "ReleasesAtTheEnd", Server, "break_line", ended=lambda _self, known, table: known.drop(table))
# A short timer waits for the next look.
broken("I1", "NeverRings", SimulatedWorker, seed=76, send_ring=lambda *_: True)
# A worker that survives the first signal of its ladder lives for ever.
broken("I1", "NeverWakes", JudgedReaper, seed=7, _woken=_nothing)
# A worker that runs is taken for stopped, and never reaped.
broken("I1", "HoldsEverybody", PinnedProcess, why_stopped=lambda _self: "it is stopped")
# After a restart, a process with a reused pid is killed for a dead one's timer.
broken("I2", "IgnoresStartTimes", Server, "crash", "die", seed=136, is_same=_has_its_pid)
# A process with a reused pid is killed, even by the server that knew the dead one.
broken("I2", "SignalsPids", PinnedProcess, "stop_server", "die", seed=85, target=_who_has_its_pid)
# After a restart, a program is killed for what another one armed before it called exec.
broken("I2", "TrustsTheUnconnected", PinnedProcess, seed=281, runs_program=lambda *_: True)
# A client that is closed while its server is down is reaped for its timers later.
broken("I4", "LeavesItsTimersBehind", SimulatedWorker, "crash", "break_line", seed=8, release_all=_nothing)
# A child that leaves its parent's block disarms the parent.
broken("I5", "KeepsItsTableOverAFork", SimulatedWorker, seed=4, abandon=_nothing)
# A server that is often suspended grows.
broken("I6", "NeverForgetsStalls", Lifeline, "stop_server", seed=4, _forget=_nothing)
# A server that does not answer holds its workers.
broken("I7", "WaitsForEver", SimulatedWorker, budget=lambda _self: inf)
# A worker whose evidence is slow to come lives on.
broken("I8", "TakesItsTime", Inspector, seed=201, takes=0.13)
# What is armed again for the very same time is never reaped.
broken("I1", "KnowsOnlyNumbers", Watch, "stop_worker", seed=26, __init__=_without_armings)
# A server that is stopped again and again puts deadlines off for ever.
broken("I1", "GivesBackEverything", Lifeline, "stop_and_go", seed=117, effective=_all_that_was_left)
# Of thousands of timers that fall due together some are never dealt with.
broken("I1", "ForgetsTheOthers", JudgedReaper, "storm", seed=37, _expire_others=lambda *_: (None for _ in ()))
# A worker is reaped for the time that it took to say what it is doing.
broken("I3", "ReapsWhoAnswers", Asking, "ask", put_off=lambda _self, _table, due, _now: due)
# A worker that hangs while it is asked what it is doing hangs for ever.
broken("I1", "WaitsForAnAnswer", Asking, "ask", seed=146, end=lambda *_, **__: None)
