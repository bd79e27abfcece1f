"""A scheduler of looks: a snapshot of a table and ``now`` go in; what is due, and the next look, come out.

The server's side of the protocol, per worker (``docs/explanation/the-look.md`` tells why):

    read the table; reap what is due;
    promise = min(earliest deadline, the deadline of a ring until that has passed, now + bound);
    write the promise, count the look; read again, and start over if an earlier deadline is there;
    wake at the promise; and read once more a little later, after every look.

The laws of this file:

* Nothing is ever written into a slot. What has been reported, and what has been cleared, is remembered as
  (slot, deadline); another value in that slot is a new timer.
* A timer is expired when its *effective* deadline is not after ``now``; never before, whatever woke us.
* The answer depends on the snapshot, on ``now`` and on what this object was told. All bit patterns are
  legal in a snapshot.

:class:`Lifeline` notices when the server itself stood still, and gives timers back what they lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from math import inf, isfinite
from typing import NamedTuple

BOUND = 5.0
"""The furthest ahead, in seconds, that a server promises to look: the promise is its heartbeat."""

ADOPTED_EVERY = 1.0
"""Seconds between looks at a table whose owner is not connected: nobody can ring for it."""

LATER_READ = 0.003
"""Seconds after a look at which the table is read once more. A store waits in a core's store buffer for
far less than a microsecond; a thread preempted between its store and its look at the header is no danger,
since it reads the header afterwards. Three milliseconds are ample, and cost one read per look."""

RESTARTS = 4
"""How often one look starts over for a worker that keeps lowering its deadline, before others get a turn."""


class Due(NamedTuple):
    """A timer that has expired.

    Attributes:
        slot: its slot.
        deadline: the value found there: if the slot holds another one now, it was released or re-armed.
        effective: when it expired, after what the server's own stalls added.
    """

    slot: int
    deadline: float
    effective: float


class Look(NamedTuple):
    """What one look decided.

    Attributes:
        due: expired timers not reported before, the longest overdue first.
        promise: what to write into the header.
        wake_at: when to look next (``inf``: when rung).
    """

    due: tuple[Due, ...]
    promise: float
    wake_at: float


class Lifeline:
    """When the server was last alive, and for which intervals it stood still.

    A stall is (a, b]: the last sign of life before it and the first after it. A deadline d in there
    counts as b + (d - a): what was left at a is left again at b. A restart is not a stall.

    Args:
        beat: seconds within which the server shows a sign of life when it runs freely.
        slack: how much longer a silence may be before it counts as a stall.
    """

    __slots__ = ("_last", "_tolerated", "_untold", "stalls")

    def __init__(self, now: float, beat: float = 0.5, slack: float = 1.0) -> None:
        self._last = now
        self._tolerated = beat + slack
        self._untold: list[float] = []
        self.stalls: tuple[tuple[float, float], ...] = ()

    def tick(self, now: float) -> None:
        """Record a sign of life, and the stall that it ends, if it does."""
        last, self._last = self._last, max(now, self._last)
        if now - last <= self._tolerated:
            if self.stalls:
                self._forget(now)
            return
        self.stalls += ((last, now),)
        self._untold.append(now - last)

    def news(self) -> list[float]:
        """Return the lengths, in seconds, of the stalls that have been recorded since the last call."""
        news, self._untold = self._untold, []
        return news

    def effective(self, deadline: float) -> float:
        """Return when a stored deadline really falls due."""
        for a, b in self.stalls:
            if a < deadline <= b:
                deadline = b + (deadline - a)
        return deadline

    def _forget(self, now: float) -> None:
        """Drop the oldest stalls, once nothing that they moved is still to come."""
        while self.stalls and self._moved_until() < now:
            self.stalls = self.stalls[1:]

    def _moved_until(self) -> float:
        """Return when the last deadline that the first stall moved, and later ones moved on, falls due."""
        (a, b), *later = self.stalls
        last = b + (b - a)
        for a, b in later:
            if a < last:
                last = max(last, b + (b - a))
        return last


class Watch:
    """What the server knows of one table between looks.

    Args:
        lifeline: shared by all watches of a server.
        connected: whether the table's owner can ring.
        bound: see :data:`BOUND`; ``inf`` lifts it.
    """

    __slots__ = ("_bound", "_cleared", "_lifeline", "_reported", "_rung", "connected", "promise")

    def __init__(self, lifeline: Lifeline, *, connected: bool, bound: float = BOUND) -> None:
        self._lifeline = lifeline
        self._bound = bound
        self._reported: dict[int, float] = {}
        self._cleared: dict[int, float] = {}
        self._rung = inf
        self.connected = connected
        self.promise = inf

    def ring(self, deadline: float) -> None:
        """The owner rang: promise to look by ``deadline`` even if its timer is released at once.

        Otherwise a loop of short blocks would ring at every entry. Nonsense only causes a look.
        """
        if isfinite(deadline):
            self._rung = min(self._rung, deadline)

    def look(self, deadlines: array[float], now: float) -> Look:
        """Decide what is due, what to promise, and when to look next."""
        self._lifeline.tick(now)  # before anything is judged: what passed while we stood still is moved
        due: tuple[Due, ...] = ()
        earliest = min(deadlines, default=inf)
        _forget_changed(self._reported, deadlines)
        _forget_changed(self._cleared, deadlines)
        if not earliest > now or self._cleared:  # NaN comes here too
            past = self._open(deadlines, now)  # stalls move only what has passed
            due = tuple(sorted((d for d in past if d.effective <= now), key=_overdue_first))
            moved = min((d.effective for d in past if d.effective > now), default=inf)
            cleared = self._cleared.get
            to_come = (d for slot, d in enumerate(deadlines) if d > now and d != cleared(slot))
            earliest = min(moved, min(to_come, default=inf))
            self._reported.update((d.slot, d.deadline) for d in due)
        if self._rung <= now:
            self._rung = inf
        wake_at = min(earliest, self._rung, now + (self._bound if self.connected else ADOPTED_EVERY))
        self.promise = wake_at if self.connected else inf
        return Look(due, self.promise, wake_at)

    def overlooked(self, deadlines: array[float], wake_at: float) -> bool:
        """Whether a later reading holds a timer that falls due before the next look."""
        if min(deadlines, default=inf) >= wake_at:
            return False
        return any(timer.effective < wake_at for timer in self._open(deadlines, wake_at))

    def expired(self, deadlines: Sequence[float], now: float) -> list[Due]:
        """Return what has expired at ``now`` and is not cleared, reported before or not; act on nothing."""
        timers = self._timers(deadlines, now)
        expired = (t for t in timers if t.effective <= now and not self.cleared(t.slot, t.deadline))
        return sorted(expired, key=_overdue_first)

    def clear(self, deadlines: Sequence[float]) -> None:
        """Deal with every timer armed in ``deadlines``: they are cleared, without touching a slot."""
        self._cleared.update((t.slot, t.deadline) for t in self._timers(deadlines, inf))

    def cleared(self, slot: int, deadline: float) -> bool:
        """Whether the timer of this value in this slot has been cleared."""
        return self._cleared.get(slot) == deadline

    def reopen(self, due: Iterable[Due]) -> None:
        """Report these again at the next look: reaping their worker did not succeed."""
        for timer in due:
            if self._reported.get(timer.slot) == timer.deadline:
                del self._reported[timer.slot]

    def _timers(self, deadlines: Sequence[float], until: float) -> list[Due]:
        """Return the armed timers with stored deadlines up to ``until``."""
        effective = self._lifeline.effective
        return [
            Due(slot, deadline, effective(deadline))
            for slot, deadline in enumerate(deadlines)
            if 0.0 < deadline <= until and deadline < inf
        ]

    def _open(self, deadlines: Sequence[float], until: float) -> list[Due]:
        """Return those of them that have been neither reported nor cleared."""
        reported, cleared = self._reported.get, self._cleared.get
        timers = self._timers(deadlines, until)
        return [t for t in timers if t.deadline != reported(t.slot) and t.deadline != cleared(t.slot)]


def _forget_changed(dealt_with: dict[int, float], deadlines: Sequence[float]) -> None:
    there = len(deadlines)
    for slot, deadline in list(dealt_with.items()):
        if slot >= there or deadlines[slot] != deadline:
            del dealt_with[slot]


def _overdue_first(timer: Due) -> float:
    return timer.effective
