"""The look: a snapshot of a table and ``now`` go in, what to do comes out.

The server's side of the protocol, per worker (``docs/explanation/the-look.md`` tells why):

    read the table; reap what is due;
    promise = min(earliest deadline, the deadline of a ring until that has passed, now + bound);
    write the promise, count the look; read again, and start over if an earlier deadline is there;
    wake at the promise; and read once more a little later, after every look.

The laws of this file:

* Nothing is ever written into a slot. What has been dealt with is remembered as (slot, deadline);
  another value in that slot is a new timer.
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

from .layout import is_armed

BOUND = 5.0
"""The furthest ahead, in seconds, that a server promises to look: the promise is its heartbeat."""

LATE_LOOK = 1.0
"""Seconds by which a server may be late before its workers, and ``aiotimer ping``, call it late."""

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

    __slots__ = ("_last", "_tolerated", "stalls")

    def __init__(self, now: float, beat: float = 0.5, slack: float = 1.0) -> None:
        self._last = now
        self._tolerated = beat + slack
        self.stalls: tuple[tuple[float, float], ...] = ()

    def tick(self, now: float) -> float:
        """Record a sign of life; return for how long the server had stalled, 0.0 if it had not."""
        last, self._last = self._last, max(now, self._last)
        if now - last <= self._tolerated:
            if self.stalls:
                self._forget(now)
            return 0.0
        self.stalls += ((last, now),)
        return now - last

    def effective(self, deadline: float) -> float:
        """Return when a stored deadline really falls due."""
        for a, b in self.stalls:
            if a < deadline <= b:
                deadline = b + (deadline - a)
        return deadline

    def _forget(self, now: float) -> None:
        """Drop stalls whose every deadline has fallen due by now."""
        while self.stalls and self.effective(self.stalls[0][1]) < now:
            self.stalls = self.stalls[1:]


class Watch:
    """What the server knows of one table between looks.

    Args:
        lifeline: shared by all watches of a server.
        connected: whether the table's owner can ring.
        bound: see :data:`BOUND`; ``inf`` lifts it.
    """

    __slots__ = ("_bound", "_handled", "_lifeline", "_rung", "connected", "promise")

    def __init__(self, lifeline: Lifeline, *, connected: bool, bound: float = BOUND) -> None:
        self._lifeline = lifeline
        self._bound = bound
        self._handled: dict[int, float] = {}
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
        due: tuple[Due, ...] = ()
        earliest = min(deadlines, default=inf)
        if not earliest > now or self._handled or self._lifeline.stalls:  # NaN comes here too
            self._forget_changed(deadlines)
            open_timers = self._open(deadlines)
            due = tuple(sorted((d for d in open_timers if d.effective <= now), key=_overdue_first))
            earliest = min((d.effective for d in open_timers if d.effective > now), default=inf)
            self._handled.update((d.slot, d.deadline) for d in due)
        if self._rung <= now:
            self._rung = inf
        wake_at = min(earliest, self._rung, now + (self._bound if self.connected else ADOPTED_EVERY))
        self.promise = wake_at if self.connected else inf
        return Look(due, self.promise, wake_at)

    def overlooked(self, deadlines: array[float], wake_at: float) -> bool:
        """Whether a later reading holds a timer that falls due before the next look."""
        if min(deadlines, default=inf) >= wake_at:
            return False
        return any(timer.effective < wake_at for timer in self._open(deadlines))

    def expired(self, deadlines: Sequence[float], now: float) -> list[Due]:
        """Return what has expired at ``now``, reported before or not, without acting on it."""
        everything = self._timers(deadlines)
        return sorted((d for d in everything if d.effective <= now), key=_overdue_first)

    def clear(self, deadlines: Sequence[float]) -> None:
        """Deal with every timer armed in ``deadlines``: they are cleared, without touching a slot."""
        self._handled.update((t.slot, t.deadline) for t in self._timers(deadlines))

    def cleared(self, slot: int, deadline: float) -> bool:
        """Whether a value found in a slot has been dealt with."""
        return self._handled.get(slot) == deadline

    def reopen(self, due: Iterable[Due]) -> None:
        """Report these again at the next look: reaping their worker did not succeed."""
        for timer in due:
            if self._handled.get(timer.slot) == timer.deadline:
                del self._handled[timer.slot]

    def _timers(self, deadlines: Sequence[float]) -> list[Due]:
        effective = self._lifeline.effective
        return [
            Due(slot, deadline, effective(deadline))
            for slot, deadline in enumerate(deadlines)
            if is_armed(deadline)
        ]

    def _open(self, deadlines: Sequence[float]) -> list[Due]:
        handled = self._handled
        return [t for t in self._timers(deadlines) if handled.get(t.slot) != t.deadline]

    def _forget_changed(self, deadlines: Sequence[float]) -> None:
        there = len(deadlines)
        for slot, deadline in list(self._handled.items()):
            if slot >= there or deadlines[slot] != deadline:
                del self._handled[slot]


def _overdue_first(timer: Due) -> float:
    return timer.effective
