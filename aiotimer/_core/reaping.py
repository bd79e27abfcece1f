"""A state machine, the reaping of one worker: events go in, actions come out, and nothing is done here.

Whoever owns a machine (``server/reaper``) tells it what has happened, carries out what it returns in that
order, and answers at once where an action is a question. When nothing happens by itself until then, it is to
be told :class:`Woken` at :attr:`Reaping.wakes_at`.

The laws of this file:

* *No signal without a reading.* The slot is read again just before the first signal of a ladder, however long
  evidence took: a release that is found there spares the worker. After the first signal there is no way back:
  a worker that was told to end is not trusted to have recovered.
* *One reap at a time.* What falls due meanwhile is postponed, and dealt with when the worker is spared, runs
  again, or is tried again.
* *The same program.* It is looked at before every signal: one that has been executed since is never signalled
  for what an earlier one has armed, not even in the middle of a ladder.
* *Every reap ends*: in SIGKILL, in death or an exec, in sparing, or in a retry; these come ever more slowly.
* *Who is dying is left alone*: one SIGKILL is sent, not a stream of them.

Which transitions there are stands in :data:`TRANSITIONS`; every other one is an error of this package's. The
diagram in the documentation is drawn from that table.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, TypeAlias

from .ladder import CONT, DUMP, KILL, Ladder, Step
from .watch import Due

UNKILLABLE_AFTER = 10.0
"""Seconds after SIGKILL at which a process that is still there is reported as unkillable."""

FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before a reap that failed is tried again: doubled each time, up to the second."""

CHECKED_EVERY = 1.0
"""Seconds between two looks at a worker on hold: no descriptor tells when a process goes on."""

TO_LEAVE = 10.0
"""Seconds that a worker on hold has to leave its block when it runs again."""


class State(Enum):
    """What is the case with one worker; the value is the name for people."""

    WATCHED = "watched"
    """Nothing of it has expired, or everything that has is dealt with."""
    DUE = "due"
    """Something has expired; its slots are being read again."""
    HELD = "held"
    """It is left alone: it is stopped, frozen or in a debugger, or nobody can tell which program it runs."""
    RESUMED = "resumed"
    """It was held, runs again, and has ``TO_LEAVE`` seconds to leave its block."""
    ASKED = "asked"
    """The server's owner has been asked to reap it, and by default carries out its ladder."""
    GATHERING = "gathering"
    """What it is doing is being found out; nothing has been done to it."""
    CONFIRMING = "confirming"
    """The slot is read again, then the first signal goes out."""
    SIGNALLED = "signalled"
    """It was sent a signal, and has the grace of that step to die of it."""
    SPARED = "spared"
    """It was released in time, or it executes another program; the server's owner is told."""
    REFUSED = "refused"
    """It could not be reaped, and will be tried again."""
    KILLED = "killed"
    """It was sent SIGKILL."""
    UNKILLABLE = "unkillable"
    """It was sent SIGKILL a while ago, and is still there."""
    DEAD = "dead"
    """It is dead."""


# -- events ------------------------------------------------------------------------------------------

# Nobody writes into an event or an action. They are not frozen: to make one would cost twice as much, and to
# import this module, as every server does at its start, would take ten milliseconds more. A data class is
# compiled when it is imported: those that hold nothing are none.


class _Bare:
    """What says all by its kind."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@dataclass(slots=True)
class Expired:
    """A look has found expired timers in a table."""

    table: Hashable
    due: tuple[Due, ...]


@dataclass(slots=True)
class Read:
    """The answer to :class:`ReadAgain`.

    Attributes:
        table: which.
        due: what was asked about.
        armed: the longest overdue that is still armed and to be reaped for; None: there is none.
        held: why the worker is to be left alone, "" if it is not.
    """

    table: Hashable
    due: tuple[Due, ...]
    armed: Due | None
    held: str = ""


@dataclass(slots=True)
class Begin:
    """The server's owner wants the ladder to be carried out.

    Attributes:
        ladder: which.
        gathered: the evidence is known already, or not wanted.
    """

    ladder: Ladder
    gathered: bool


class Gathered(_Bare):
    """The evidence is known, as far as it can be: the answer to :class:`Gather`, in time."""


class Armed(_Bare):
    """The timer in question is still armed: an answer to :class:`Confirm`."""


class Released(_Bare):
    """It is not: the other answer to :class:`Confirm`."""


class Sent(_Bare):
    """The signal has been sent: an answer to :class:`Signal`."""


class Gone(_Bare):
    """The worker was dead already: an answer to :class:`Signal`."""


class Left(_Bare):
    """It runs another program by now: an answer to :class:`Signal`, if that was for a timer."""


@dataclass(slots=True)
class Refused:
    """It cannot be signalled: an answer to :class:`Signal`."""

    why: str


@dataclass(slots=True)
class Done:
    """The server's owner has finished: the answer to :class:`Reap`, in time.

    Attributes:
        done: whether the worker has been reaped, in whichever way.
    """

    done: bool


class Woken(_Bare):
    """It is :attr:`Reaping.wakes_at`; if it is not yet, nothing happens."""


@dataclass(slots=True)
class Checked:
    """The answer to :class:`Check`: why the worker is to be left alone, "" if it is not."""

    held: str


class Died(_Bare):
    """The worker is dead."""


Event: TypeAlias = (
    Expired
    | Read
    | Begin
    | Gathered
    | Armed
    | Released
    | Sent
    | Gone
    | Left
    | Refused
    | Done
    | Woken
    | Checked
    | Died
)


# -- actions -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class ReadAgain:
    """Read these slots again, report what has been released, and answer with :class:`Read`."""

    table: Hashable
    due: tuple[Due, ...]


class Break(_Bare):
    """There are too many reaps: from now on the server only observes."""


@dataclass(slots=True)
class Reap:
    """Ask the server's owner to reap the worker, and say :class:`Done` when that has an end.

    Attributes:
        table, due: for which timer.
        again: it has been tried before.
    """

    table: Hashable
    due: Due
    again: bool


@dataclass(slots=True)
class Gather:
    """Find out what the worker is doing, then say :class:`Gathered`.

    Attributes:
        kills_next: the only thing that is done to it afterwards is SIGKILL.
    """

    kills_next: bool


class Confirm(_Bare):
    """Read the slot of the timer in question, and answer :class:`Armed` or :class:`Released`."""


@dataclass(slots=True)
class Signal:
    """Send a signal, and answer :class:`Sent`, :class:`Gone`, :class:`Left` or :class:`Refused`.

    Attributes:
        number: which.
        with_cont: send SIGCONT after it: a stopped process sees no other signal but SIGKILL.
    """

    number: int
    with_cont: bool


@dataclass(slots=True)
class Answer:
    """Tell whoever had the ladder carried out how that ended.

    Attributes:
        done: True: it is dead, or dying, or spared. False: it cannot be signalled.
    """

    done: bool


class Clear(_Bare):
    """Everything that is armed now is dealt with."""


@dataclass(slots=True)
class Hold:
    """Report that the worker is left alone, and why."""

    why: str


class Check(_Bare):
    """Find out whether the worker is to be left alone, and answer :class:`Checked`."""


class Spare(_Bare):
    """Report that the timer was released after its deadline, and before a signal."""


class Forget(_Bare):
    """Report that it runs another program by now; what an earlier one has armed goes."""


@dataclass(slots=True)
class Fail:
    """The reap has failed, and will be tried again.

    Attributes:
        why: the kernel's reason, "" if it is the owner's.
        report: nobody has been told yet.
    """

    why: str
    report: bool


@dataclass(slots=True)
class LookAgain:
    """Look at a table again, and find these due once more."""

    table: Hashable
    due: tuple[Due, ...]


class Despair(_Bare):
    """Report that the worker does not die."""


@dataclass(slots=True)
class End:
    """Report the worker's end.

    Attributes:
        reaped: something had been done to it; else it died by itself.
    """

    reaped: bool


Action: TypeAlias = (
    ReadAgain
    | Break
    | Reap
    | Gather
    | Confirm
    | Signal
    | Answer
    | Clear
    | Hold
    | Check
    | Spare
    | Forget
    | Fail
    | LookAgain
    | Despair
    | End
)


# -- the table ---------------------------------------------------------------------------------------

_S = State
_OVER = (_S.KILLED, _S.UNKILLABLE, _S.DEAD)
_LADDER = (_S.GATHERING, _S.CONFIRMING, _S.SIGNALLED)

MOVES: dict[State, dict[type[Any], tuple[State, ...]]] = {
    _S.WATCHED: {
        Expired: (_S.DUE,),
        Read: (_S.WATCHED, _S.DUE, _S.HELD, _S.ASKED),
        Begin: (_S.CONFIRMING,),
    },
    _S.DUE: {Read: (_S.WATCHED, _S.DUE, _S.HELD, _S.ASKED)},
    _S.HELD: {Checked: (_S.HELD, _S.RESUMED), Begin: (_S.CONFIRMING,)},
    _S.RESUMED: {Checked: (_S.HELD, _S.DUE), Begin: (_S.CONFIRMING,)},
    _S.ASKED: {Begin: (_S.GATHERING, _S.CONFIRMING), Done: (_S.WATCHED, _S.REFUSED)},
    _S.GATHERING: {Gathered: (_S.CONFIRMING,)},
    _S.CONFIRMING: {
        Armed: (_S.CONFIRMING,),
        Released: (_S.SPARED, _S.WATCHED, _S.DUE),
        Sent: (_S.SIGNALLED, _S.KILLED),
        Gone: (_S.DEAD,),
        Left: (_S.SPARED, _S.WATCHED, _S.DUE),
        Refused: (_S.ASKED, _S.REFUSED, _S.WATCHED),
    },
    _S.SIGNALLED: {
        Sent: (_S.SIGNALLED, _S.KILLED),
        Gone: (_S.DEAD,),
        Left: (_S.SPARED, _S.WATCHED, _S.DUE),
        Refused: (_S.ASKED, _S.REFUSED, _S.WATCHED),
    },
    _S.SPARED: {Done: (_S.WATCHED, _S.DUE)},
    _S.REFUSED: {Woken: (_S.REFUSED, _S.WATCHED), Begin: (_S.CONFIRMING,)},
    _S.KILLED: {Woken: (_S.KILLED, _S.UNKILLABLE)},
    _S.UNKILLABLE: {},
    _S.DEAD: {},
}
"""By state and event, the states that may follow. :class:`Died` leads from every state to ``DEAD``."""

STAYS: dict[State, tuple[type[Any], ...]] = {
    _S.WATCHED: (Done,),
    _S.DUE: (),
    _S.HELD: (Expired, Read, Woken, Done),
    _S.RESUMED: (Expired, Read, Woken, Done),
    _S.ASKED: (Expired, Read),
    _S.GATHERING: (Expired, Read, Begin, Done),
    _S.CONFIRMING: (),
    _S.SIGNALLED: (Expired, Read, Begin, Woken, Done),
    _S.SPARED: (Expired, Read, Begin),
    _S.REFUSED: (Expired, Read, Done),
    _S.KILLED: (Expired, Read, Begin, Done),
    _S.UNKILLABLE: (Expired, Begin, Done),
    _S.DEAD: (Expired, Read, Begin, Gathered, Done),
}
"""The events that change no state."""

TRANSITIONS = {state: {**dict.fromkeys(STAYS[state], (state,)), **moves} for state, moves in MOVES.items()}
"""Both. Whatever is not here has no place."""


class OutOfPlace(RuntimeError):
    """An event has no place in a state: an error of this package's."""


class Reaping:
    """The reaping of one worker.

    Args:
        allows: whether one more reap may begin at a time; it is counted then (the breaker).

    Attributes:
        state: what is the case.
        wakes_at: when to say ``Woken``; ``inf``: never.
        postponed: what has expired and is not dealt with, by table.
    """

    __slots__ = (
        "_acted",
        "_allows",
        "_asked",
        "_backoff",
        "_current",
        "_failed",
        "_left",
        "_refusal",
        "_steps",
        "_told",
        "postponed",
        "state",
        "wakes_at",
    )

    def __init__(self, allows: Callable[[float], bool]) -> None:
        self.state = State.WATCHED
        self.wakes_at = inf
        self.postponed: list[tuple[Hashable, tuple[Due, ...]]] = []
        self._allows = allows
        self._current: tuple[Hashable, Due] | None = None  # what it is being reaped for
        self._failed: tuple[Hashable, Due] | None = None  # what that has failed for
        self._asked = False  # the owner has not said that it is done
        self._acted = False  # something may have been done to it
        self._left = False  # it runs another program than the one that it was to be reaped for
        self._steps: list[Step] = []  # what is left of the ladder
        self._backoff = FIRST_RETRY
        self._refusal, self._told = "", False

    @property
    def for_a_timer(self) -> bool:
        """Whether it is being reaped for a timer; else its owner just wants it."""
        return self._current is not None

    @property
    def untouched(self) -> bool:
        """Whether a reap is under way that has not done anything to the worker yet."""
        return self.state in (State.GATHERING, State.CONFIRMING, State.SPARED)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event; return what is to be done, in this order.

        Args:
            event: what has happened.
            now: ``CLOCK_MONOTONIC`` seconds.

        Raises:
            OutOfPlace: that cannot happen in this state.
        """
        if isinstance(event, Died):
            return self._on_died()
        before = self.state
        after = TRANSITIONS[before].get(type(event))
        if after is None:
            raise OutOfPlace(f"{type(event).__name__} of a worker that is {before.value}")
        actions = _HANDLERS[type(event)](self, event, now)
        if self.state not in after:
            raise OutOfPlace(f"{type(event).__name__} led from {before.value} to {self.state.value}")
        return actions

    # -- what is due -----------------------------------------------------------------------------

    def _on_expired(self, event: Expired, _now: float) -> list[Action]:
        if self.state in _OVER:
            return [Clear()]
        if self.state is State.WATCHED:
            self.state = State.DUE
        return [ReadAgain(event.table, event.due)]

    def _on_read(self, event: Read, now: float) -> list[Action]:
        table, due, armed, held = event.table, event.due, event.armed, event.held
        if self.state in _OVER:
            return [Clear()]
        if self.state not in (State.WATCHED, State.DUE):
            if armed is not None:
                self.postponed.append((table, due))
            return []
        if armed is None:
            self.state = State.WATCHED
            return []
        if held:
            self.postponed.append((table, due))
            self._go_to(State.HELD, now + CHECKED_EVERY)
            return [Hold(held)]
        again = self._failed == (table, armed)
        if not again and not self._allows(now):
            self.state = State.DUE
            return [Break(), ReadAgain(table, due)]
        self.postponed.append((table, due))
        self._current, self._failed = (table, armed), None
        self._asked = self._acted = True
        self.state = State.ASKED
        return [Reap(table, armed, again)]

    def _on_done(self, event: Done, now: float) -> list[Action]:
        self._asked = False
        if self.state is State.SPARED:
            return self._go_on()
        if self.state is not State.ASKED:
            return []  # the owner has not waited for the ladder
        if event.done:
            self.state = State.WATCHED
            return self._settled()
        return [self._fail(now)]

    def _go_on(self) -> list[Action]:
        """It was spared for one timer, or has left it; deal with what has expired meanwhile."""
        spared, self._current = self._current, None
        actions: list[Action] = [Forget() if self._left else Spare()]
        self._left = False
        for table, due in self._taken():
            rest = tuple(one for one in due if (table, one) != spared)
            if rest:
                actions.append(ReadAgain(table, rest))
        self.state = State.DUE if len(actions) > 1 else State.WATCHED
        return actions

    def _on_woken(self, _event: Woken, now: float) -> list[Action]:
        if now < self.wakes_at:
            return []
        if self.state is State.SIGNALLED:
            return [self._next_signal()]
        if self.state is State.KILLED:
            self._go_to(State.UNKILLABLE)
            return [Despair()]
        if self.state is State.REFUSED:
            self._go_to(State.WATCHED)
            return [LookAgain(table, due) for table, due in self._taken()]
        self.wakes_at = inf
        return [Check()]

    def _on_checked(self, event: Checked, now: float) -> list[Action]:
        if event.held:
            self._go_to(State.HELD, now + CHECKED_EVERY)
            return []
        if self.state is State.HELD:
            self._go_to(State.RESUMED, now + TO_LEAVE)
            return []
        self._go_to(State.DUE)
        return [ReadAgain(table, due) for table, due in self._taken()]

    # -- the ladder ------------------------------------------------------------------------------

    def _on_begin(self, event: Begin, _now: float) -> list[Action]:
        if self.state in (*_OVER, State.SPARED):
            return [Answer(True)]
        if self.state in _LADDER:
            return []  # it is being carried out
        self._steps = [step for step in event.ladder if step != DUMP]
        asked = self.state is State.ASKED
        self._go_to(State.CONFIRMING)
        if not asked:  # by the owner alone: there is nothing that could be released
            return [self._next_signal()]
        self._acted = False
        if DUMP in event.ladder and not event.gathered:
            self.state = State.GATHERING
            return [Gather(event.ladder.kills_at_once)]
        return [Confirm()]

    def _on_gathered(self, _event: Gathered, _now: float) -> list[Action]:
        if self.state is State.DEAD:
            return []
        self.state = State.CONFIRMING
        return [Confirm()]

    def _on_armed(self, _event: Armed, _now: float) -> list[Action]:
        return [self._next_signal()]

    def _on_released(self, _event: Released, _now: float) -> list[Action]:
        self.state = State.SPARED
        return [Answer(True)] if self._asked else [Answer(True), *self._go_on()]

    def _on_left(self, _event: Left, now: float) -> list[Action]:
        self._left, self._acted, self.wakes_at = True, False, inf
        return self._on_released(Released(), now)

    def _next_signal(self) -> Signal:
        number = self._steps[0].signal
        return Signal(number, number not in (KILL, CONT))

    def _on_sent(self, _event: Sent, now: float) -> list[Action]:
        self._acted = True
        step = self._steps.pop(0)
        if step.signal == KILL:
            self._go_to(State.KILLED, now + UNKILLABLE_AFTER)
            return [Answer(True), *self._settled()]
        self._go_to(State.SIGNALLED, now + step.grace)
        return []

    def _on_gone(self, _event: Gone, _now: float) -> list[Action]:
        self._go_to(State.DEAD)
        return [Answer(True), *self._settled()]

    def _on_refused(self, event: Refused, now: float) -> list[Action]:
        self._refusal = event.why
        if self._asked:
            self._go_to(State.ASKED)
            return [Answer(False)]
        if self.postponed:
            return [Answer(False), self._fail(now)]
        self._go_to(State.WATCHED)
        return [Answer(False)]

    # -- the end ---------------------------------------------------------------------------------

    def _on_died(self) -> list[Action]:
        answer: list[Action] = [Answer(True)] if self.state in _LADDER else []
        self._go_to(State.DEAD)
        self.postponed.clear()
        return [*answer, End(self._acted)]

    def _settled(self) -> list[Action]:
        """It has been reaped: what is armed from now on is new."""
        for_a_timer, self._current = self.for_a_timer, None
        self.postponed.clear()
        self._backoff = FIRST_RETRY
        self._refusal, self._told = "", False
        return [Clear()] if for_a_timer else []

    def _fail(self, now: float) -> Fail:
        self._failed, self._current, self._acted = self._current, None, False
        fail = Fail(self._refusal, report=not self._told)
        self._told = bool(self._refusal)
        self._go_to(State.REFUSED, now + self._backoff)
        self._backoff = min(2 * self._backoff, LAST_RETRY)
        return fail

    def _go_to(self, state: State, wakes_at: float = inf) -> None:
        self.state, self.wakes_at = state, wakes_at

    def _taken(self) -> list[tuple[Hashable, tuple[Due, ...]]]:
        taken, self.postponed = self.postponed, []
        return taken


_HANDLERS: dict[type[Any], Callable[[Reaping, Any, float], list[Action]]] = {
    Expired: Reaping._on_expired,
    Read: Reaping._on_read,
    Begin: Reaping._on_begin,
    Gathered: Reaping._on_gathered,
    Armed: Reaping._on_armed,
    Released: Reaping._on_released,
    Sent: Reaping._on_sent,
    Gone: Reaping._on_gone,
    Left: Reaping._on_left,
    Refused: Reaping._on_refused,
    Done: Reaping._on_done,
    Woken: Reaping._on_woken,
    Checked: Reaping._on_checked,
}
