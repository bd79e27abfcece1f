"""A scheduler of looks: a snapshot of a table and ``now`` go in; what is due, and the next look, come out.

The server's side of the protocol, per worker (``docs/explanation/the-look.md`` tells why):

    read the table; reap what is due;
    promise = min(earliest deadline, the deadline of a ring until that has passed, about now + bound);
    write the promise, count the look; read again, and start over if an earlier deadline is there;
    wake at the promise; and read once more a little later, after every look.

The laws of this file:

* Nothing is ever written into a slot. What has been reported, and what has been cleared, is remembered as
  (slot, deadline, arming): another value in that slot is a new timer, and so is the same one if the slot has
  been armed again since, which its count of acquisitions tells.
* One look judges slot by slot no more than ``SLOW`` blocks: what is left is due at once, and the next look
  begins there. Meanwhile others have their turns.
* Slots are judged in blocks. One that holds the same bytes as at the last look, or nothing that is past, is
  passed over at the speed of C; slot by slot goes only what is left, so that one expired timer among
  thousands costs one block.
* A timer is expired when its *effective* deadline is not after ``now``; never before, whatever woke us.
* The answer depends on the snapshot, on ``now`` and on what this object was told. All bit patterns are
  legal in a snapshot.

:class:`Lifeline` notices when the server itself stood still, and gives timers back what they lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from math import inf, isfinite, isnan, nan
from operator import attrgetter
from typing import NamedTuple, TypeAlias

BOUND = 5.0
"""The furthest ahead, in seconds, that a server promises to look: the promise is its heartbeat."""

SHARED_WAKES = 256
"""Moments within a bound at which a table is looked at for which there is nothing else to wake. One wake-up
of the server serves all that meet there: thousands of idle workers cost it fifty a second, not one each."""

ADOPTED_EVERY = 1.0
"""Seconds between looks at a table whose owner is not connected: nobody can ring for it."""

LATER_READ = 0.003
"""Seconds after a look at which the table is read once more. A store waits in a core's store buffer for
far less than a microsecond; a thread preempted between its store and its look at the header is no danger,
since it reads the header afterwards. Three milliseconds are ample, and cost one read per look."""

RESTARTS = 4
"""How often one look starts over for a worker that keeps lowering its deadline, before others get a turn."""

BEAT, FINE_BEAT = 0.5, 0.125
"""Seconds between two signs of life of a server; and while it remembers stalls. So much less is left of a
timer at each stall that moves it again, whether or not the server has been seen to run in between."""

BLOCK = 128
"""Slots that are judged together. Half as many would double the cost of passing over a large table, twice as
many that of one expired timer."""

SLOW = 16
"""Blocks that one look judges slot by slot: about two milliseconds if all of their timers are due."""


_NOTHING = array("d", [nan]) * BLOCK
"""What equals no deadline: nothing has been cleared. It is never changed."""

Armings: TypeAlias = Callable[[int, int], "array[int]"]
"""``armings(first, slots)`` returns for each of these slots a number that is another one whenever the slot
has been armed again. It is asked after the deadlines were read: an entry counts, and then stores one. (What
is moved is stored first, for what it was moved from must not pass for new: if it was overdue when stored, and
is counted after a look, it is reported once more.)"""


class Due(NamedTuple):
    """A timer that has expired.

    Attributes:
        slot: its slot.
        deadline: the value found there: if the slot holds another one now, it was released or re-armed.
        effective: when it expired, after what the server's own stalls added.
        arming: of what is reported, which acquisition of the slot it is (see :data:`Armings`).
    """

    slot: int
    deadline: float
    effective: float
    arming: int = 0


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
    counts as b + (d - a): what was left at a is left again at b. If another stall has moved it before, at
    least ``FINE_BEAT`` less is left than then: a server that is stopped again and again, and shows no sign of
    life in between, puts off no deadline for ever. A restart is not a stall.

    Args:
        beat: seconds within which the server shows a sign of life when it runs freely.
        slack: how much longer a silence may be before it counts as a stall.
    """

    __slots__ = ("_beat", "_last", "_tolerated", "_untold", "stalls")

    def __init__(self, now: float, beat: float = BEAT, slack: float = 1.0) -> None:
        self._last = now
        self._beat = beat
        self._tolerated = beat + slack
        self._untold: list[float] = []
        self.stalls: tuple[tuple[float, float], ...] = ()

    @property
    def beat(self) -> float:
        """Seconds until the next sign of life has to be shown."""
        return FINE_BEAT if self.stalls else self._beat

    def tick(self, now: float) -> None:
        """Record a sign of life, and the stall that it ends, if it does."""
        last, self._last = self._last, max(now, self._last)
        if now - last > self._tolerated:
            self.stalls += ((last, now),)
            self._untold.append(now - last)
        if self.stalls:
            self._forget(now)

    def news(self) -> list[float]:
        """Return the lengths, in seconds, of the stalls that have been recorded since the last call."""
        news, self._untold = self._untold, []
        return news

    def effective(self, deadline: float) -> float:
        """Return when a stored deadline really falls due."""
        most = inf
        for a, b in self.stalls:
            if a < deadline <= b:
                left = max(0.0, min(deadline - a, most))
                deadline, most = b + left, left - FINE_BEAT
        return deadline

    def _forget(self, now: float) -> None:
        """Drop the oldest stalls, once nothing that they moved is still to come."""
        while self.stalls and self._moved_until() < now:
            self.stalls = self.stalls[1:]

    def _moved_until(self) -> float:
        """Return when the last deadline that the first stall moved, and later ones moved on, falls due."""
        (a, b), *later = self.stalls
        left = b - a
        last = b + left
        for a, b in later:
            if a < last:
                moved = b + max(0.0, min(min(last, b) - a, left - FINE_BEAT))
                if last <= b:
                    left = moved - b
                last = moved if last <= b else max(last, moved)
        return last


class _Block:
    """Neighbouring slots: what the last look found in them, and what has been dealt with.

    Attributes:
        reported: the deadlines that have been reported, by slot.
        armings: which armings those are, by slot.
        cleared: what the slots held when they were cleared, armed or not; NaN, which equals nothing, for
            those that have changed since. Thousands are cleared at once: nothing is done for each of them.
        cleared_armings: which armings those are.
        counted: what they were last compared with, as bytes.
        stored: what they held, as bytes: those are compared in a moment, and NaN equals itself.
        soonest: when the first of their open timers falls due, those that have been neither reported nor
            cleared. It may be too early, and NaN: then nobody knows.
    """

    __slots__ = (
        "_read_armings", "armings", "cleared", "cleared_armings", "counted", "first", "reported", "soonest",
        "stored",
    )  # fmt: skip

    def __init__(self, first: int, armings: Armings) -> None:
        self.first = first
        self._read_armings = armings
        self.reported: dict[int, float] = {}
        self.armings: dict[int, int] = {}
        self.cleared = _NOTHING
        self.cleared_armings = array("q")
        self.counted = b""
        self.stored = b""
        self.soonest = inf

    def is_quiet(self, deadlines: array[float], now: float) -> bool:
        """Whether nothing can be due in a reading, as far as that is seen at the speed of C."""
        stored = deadlines.tobytes()
        if stored != self.stored:
            if self.armings:
                self.reported = self._unchanged(self.reported, deadlines)
                self.armings = {slot: self.armings[slot] for slot in self.reported}
            if self.cleared is not _NOTHING:
                both = zip_longest(self.cleared, deadlines, fillvalue=nan)
                self._keep_cleared(before if before == now else nan for before, now in both)
            self.stored, self.soonest = stored, self._at_first_sight(deadlines)
        return self.soonest > now

    def look(self, deadlines: array[float], now: float, effective: Callable[[float], float]) -> list[Due]:
        """Return what has expired and has not been reported; now it has been."""
        known, cleared, first = self.reported.get, self.cleared, self.first
        past = [  # as ``timers`` has it, in line: they come in thousands. Stalls move only what has passed.
            (slot, deadline, effective(deadline))
            for slot, deadline in enumerate(deadlines, first)
            if 0.0 < deadline <= now and deadline != known(slot) and deadline != cleared[slot - first]
        ]
        expired = [timer for timer in past if timer[2] <= now]
        due: list[Due] = []
        if expired:
            self.reported.update([timer[:2] for timer in expired])
            armings = self._dealt_with([timer[0] for timer in expired])
            due = [Due(slot, deadline, at, armings[slot]) for slot, deadline, at in expired]
        to_come = [d for d in self._open(deadlines) if d > now]
        to_come += [at for _, _, at in past if at > now]
        self.soonest = min(to_come, default=inf)
        return due

    def clear(self, deadlines: array[float]) -> None:
        """Deal with everything that is armed in a reading. What it does not hold is forgotten."""
        self.reported, self.armings, self.cleared = {}, {}, _NOTHING
        if deadlines.count(inf) < len(deadlines):  # else there is nothing to clear
            self.cleared = deadlines + _NOTHING[len(deadlines) :]
            self.cleared_armings, self.counted = self._read_armings(self.first, BLOCK), b""
        self.stored, self.soonest = deadlines.tobytes(), inf

    def holds_any(self, deadlines: array[float]) -> bool:
        """Whether a reading holds any timer that has not been cleared."""
        if deadlines.tobytes() == self.cleared[: len(deadlines)].tobytes():
            return False
        return deadlines.count(inf) < len(deadlines) and any(0.0 < d < inf for d in self._open(deadlines))

    def forget_armed_again(self) -> None:
        """Forget what has been dealt with if its slot has been armed again since."""
        if not self.armings and self.cleared is _NOTHING:  # in line: it is asked of every block at every look
            return
        armings = self._read_armings(self.first, BLOCK)
        counted = armings.tobytes()
        if counted == self.counted:
            return
        self.counted = counted
        for slot in [slot for slot, arming in self.armings.items() if arming != armings[slot - self.first]]:
            self.forget(slot)
        if self.cleared is not _NOTHING and self.cleared_armings != armings:
            both = zip(self.cleared, self.cleared_armings, armings, strict=True)
            self._keep_cleared(d if before == now else nan for d, before, now in both)
            self.soonest = nan

    def forget(self, slot: int) -> None:
        """Forget that the timer in a slot has been reported."""
        self.reported.pop(slot, None)
        del self.armings[slot]
        self.soonest = nan

    def soonest_of(self, deadlines: array[float]) -> float:
        """Return ``soonest`` for a reading that may be another one."""
        return self.soonest if deadlines.tobytes() == self.stored else self._at_first_sight(deadlines)

    def timers(
        self,
        deadlines: array[float],
        until: float,
        effective: Callable[[float], float],
        reported: Mapping[int, float],
    ) -> list[Due]:
        """Return the armed timers with stored deadlines up to ``until``, but none reported or cleared."""
        known, cleared, first = reported.get, self.cleared, self.first
        return [
            Due(slot, deadline, effective(deadline))
            for slot, deadline in enumerate(deadlines, first)
            if deadline <= until and 0.0 < deadline < inf
            if deadline != known(slot) and deadline != cleared[slot - first]
        ]

    def _open(self, deadlines: array[float]) -> Iterable[float]:
        """Return what a reading holds and has not been cleared."""
        if self.cleared is _NOTHING:
            return deadlines
        return (d for d, cleared in zip(deadlines, self.cleared, strict=False) if d != cleared)

    def _keep_cleared(self, cleared: Iterable[float]) -> None:
        """Forget what has been cleared but for these, NaN apart."""
        self.cleared = array("d", cleared)
        if all(map(isnan, self.cleared)):
            self.cleared = _NOTHING

    def _at_first_sight(self, deadlines: array[float]) -> float:
        """Return ``soonest`` for a new reading, as far as C can tell."""
        return nan if self.armings or self.cleared is not _NOTHING else min(deadlines, default=inf)

    def _dealt_with(self, slots: Iterable[int]) -> dict[int, int]:
        """Note which armings in these slots have just been dealt with."""
        armings = self._read_armings(self.first, BLOCK)
        self.armings.update((slot, armings[slot - self.first]) for slot in slots)
        self.counted = b""
        return self.armings

    def _unchanged(self, dealt_with: dict[int, float], deadlines: array[float]) -> dict[int, float]:
        """Return those that a reading still holds."""
        end = self.first + len(deadlines)
        return {s: d for s, d in dealt_with.items() if s < end and deadlines[s - self.first] == d}


class Watch:
    """What the server knows of one table between looks.

    Args:
        lifeline: shared by all watches of a server.
        connected: whether the table's owner can ring.
        bound: see :data:`BOUND`; ``inf`` lifts it.
        armings: tells one arming of a slot from the next; by default only its deadline does.
    """

    __slots__ = (
        "_armings", "_blocks", "_bound", "_first", "_lifeline", "_rung", "connected", "earliest", "promise",
    )  # fmt: skip

    def __init__(
        self, lifeline: Lifeline, *, connected: bool, bound: float = BOUND, armings: Armings | None = None
    ) -> None:
        self._lifeline = lifeline
        self._bound = bound
        self._armings = armings or _not_counted
        self._blocks: list[_Block] = []
        self.earliest = inf  # of the timers that the latest look found
        self._first = 0  # block that the next look begins with
        self._rung = inf
        self.connected = connected
        self.promise = inf

    def ring(self, deadline: float) -> None:
        """The owner rang: promise to look by ``deadline`` even if its timer is released at once.

        Otherwise a loop of short blocks would ring at every entry. Nonsense only causes a look.
        """
        if isfinite(deadline):
            self._rung = min(self._rung, deadline)

    @property
    def has_dealt(self) -> bool:
        """Whether anything has been dealt with: then equal deadlines are not all there is to compare."""
        return any(block.armings or block.cleared is not _NOTHING for block in self._blocks)

    def look(self, deadlines: array[float], now: float) -> Look:
        """Decide what is due, what to promise, and when to look next."""
        self._lifeline.tick(now)  # before anything is judged: what passed while we stood still is moved
        effective = self._lifeline.effective
        due: list[Due] = []
        parts = list(self._parts(deadlines))
        first, self._first = min(self._first, len(parts)), 0
        slow = 0
        for number, (block, part) in enumerate(parts[first:] + parts[:first], first):
            if not block.is_quiet(part, now):
                slow += 1
                if slow > SLOW:
                    self._first = number % len(parts)
                    break
                due += block.look(part, now, effective)
        # Of what is left nothing is known: it may be due.
        self.earliest = now if slow > SLOW else min([block.soonest for block in self._blocks], default=inf)
        if self._rung <= now:
            self._rung = inf
        wake_at = min(self.earliest, self._rung, self._at_the_latest(now))
        self.promise = wake_at if self.connected else inf
        return Look(tuple(sorted(due, key=_overdue_first)), self.promise, wake_at)

    def _at_the_latest(self, now: float) -> float:
        """Return when to look though nothing is due: in a bound; a little before, together with others."""
        if not self.connected:
            return now + ADOPTED_EVERY
        until = now + self._bound
        return until - until % (self._bound / SHARED_WAKES) if until < inf else until

    def overlooked(self, deadlines: array[float], wake_at: float, *, same: bool = False) -> bool:
        """Whether a later reading holds a timer that falls due before the next look, or may do so.

        Args:
            deadlines: the reading.
            wake_at: when the next look is.
            same: it is the reading that the latest look was at. Then there is nothing new in it but what has
                been dealt with and armed again.
        """
        effective = self._lifeline.effective
        slow = 0
        for block, part in self._parts(deadlines, dealt_with=same):
            if not block.soonest_of(part) >= wake_at:
                slow += 1
                timers = block.timers(part, wake_at, effective, block.reported) if slow <= SLOW else ()
                if slow > SLOW or any(timer.effective < wake_at for timer in timers):
                    return True
        return False

    def expired(self, deadlines: array[float], now: float) -> list[Due]:
        """Return what has expired at ``now`` and is not cleared, reported before or not; act on nothing."""
        effective = self._lifeline.effective
        timers = (
            timer
            for block, part in self._parts(deadlines)
            if block.reported or not block.soonest_of(part) > now
            for timer in block.timers(part, now, effective, {})
        )
        return sorted((timer for timer in timers if timer.effective <= now), key=_overdue_first)

    def clear(self, deadlines: array[float]) -> None:
        """Deal with every timer armed in ``deadlines``: they are cleared, without touching a slot."""
        for block, part in self._parts(deadlines):
            block.clear(part)

    def cleared(self, slot: int, deadline: float) -> bool:
        """Whether the timer of this value in this slot has been cleared."""
        number, within = divmod(slot, BLOCK)
        is_known = number < len(self._blocks) and 0.0 < deadline < inf
        return is_known and self._blocks[number].cleared[within] == deadline

    def holds_any(self, deadlines: array[float]) -> bool:
        """Whether there is any timer in ``deadlines`` that has not been cleared."""
        return any(block.holds_any(part) for block, part in self._parts(deadlines))

    def reopen(self, due: Iterable[Due]) -> None:
        """Report these again at the next look: reaping their worker did not succeed."""
        for timer in due:
            block = self._blocks[timer.slot // BLOCK]
            if block.reported.get(timer.slot) == timer.deadline:
                block.forget(timer.slot)

    def _parts(
        self, deadlines: array[float], *, dealt_with: bool = False
    ) -> Iterator[tuple[_Block, array[float]]]:
        """Go through a reading by blocks: also through those beyond its end, which hold nothing in it.

        Args:
            deadlines: the reading.
            dealt_with: only through those in which something has been dealt with, or is to be once more.
        """
        for first in range(len(self._blocks) * BLOCK, len(deadlines), BLOCK):
            self._blocks.append(_Block(first, self._armings))
        for block in self._blocks:
            if dealt_with and not block.armings and block.cleared is _NOTHING and not isnan(block.soonest):
                continue
            block.forget_armed_again()
            yield block, deadlines[block.first : block.first + BLOCK]


def _not_counted(_first: int, slots: int) -> array[int]:
    return array("q", bytes(8 * slots))


_overdue_first = attrgetter("effective")
