"""Reading a table from outside: what the server, and a queue's consumer, see of it.

The laws of this file: it reads through a function it was given (``pread`` on the file, never a mapping, so
that a worker that truncates its table costs its reader nothing); a label counts only if its slot held
the same deadline before and after it was read; what is read is untrusted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from . import layout
from .durations import Durations, Ran

Read = Callable[[int, int], bytes]
"""``read(size, offset)``: at most ``size`` bytes of the table, fewer at its end."""


_MOST_ENTRIES = 2.0**53
"""A count beyond that is none."""

_BLOCK = 16
"""Labels that are read at once: a page of them."""


class Timer(NamedTuple):
    """One armed timer as found in a table.

    Attributes:
        slot: where.
        scope: the label's text.
        ordinal: 0 for a keyed timer, n for the n-th concurrent entry of its scope, with ``layout.OBSERVED``
            added for one that is observed.
        deadline: the stored value.
        observed: nobody is to be signalled for it.
    """

    slot: int
    scope: str
    ordinal: int
    deadline: float
    observed: bool = False

    @property
    def name(self) -> str:
        """The scope, with ``#n`` from a scope's second concurrent entry on."""
        return layout.timer_name(self.scope, self.ordinal)


class TableReader:
    """Reads one table.

    Args:
        read: see :data:`Read`.
    """

    __slots__ = ("_expected", "_read")

    def __init__(self, read: Read) -> None:
        self._read = read
        self._expected = layout.FIRST_SLOTS

    def snapshot(self) -> bytes:
        """Return the worker's line and every deadline below the high-water mark: usually one read."""
        size = layout.snapshot_size(self._expected)
        data = self._read(size, layout.SNAPSHOT_OFFSET)
        slots = layout.high_water(data)
        if slots > self._expected and len(data) == size:
            self._expected = slots
            data = self._read(layout.snapshot_size(slots), layout.SNAPSHOT_OFFSET)
        return data

    def deadlines(self) -> array[float]:
        """Return every deadline, index = slot."""
        return layout.deadlines(self.snapshot())

    def deadline(self, slot: int) -> float:
        """Return what a slot holds now (-1.0 if the table is too short to have it)."""
        data = self._read(8, layout.deadline_offset(slot))
        return layout.read_word(data) if len(data) == 8 else -1.0

    def counts(self, slots: int) -> array[float]:
        """Return how often each of the first ``slots`` slots was armed under its present label."""
        data = self._read(8 * slots, layout.count_offset(0))
        return array("d", data[: len(data) // 8 * 8])

    def label(self, slot: int) -> tuple[str, int]:
        """Return the scope and the ordinal on a slot's label, whatever the slot holds."""
        return layout.decode_label(self._read(layout.LABEL_SIZE, layout.label_offset(slot)))

    def row(self, slot: int) -> array[float]:
        """Return a slot's row (``_core/durations.py``); fewer words where the table ends."""
        data = self._read(layout.ROW_SIZE, layout.row_offset(slot))
        return array("d", data[: len(data) // 8 * 8])

    def durations(self, most: int = layout.SLOTS) -> dict[str, Ran]:
        """Return, by scope, how often it was entered and how long that took: of the first ``most`` slots."""
        slots = min(len(self.deadlines()), most)
        counts = self.counts(slots)
        cells = self._labels(list(range(slots)))
        found: dict[str, Ran] = {}
        for slot, (count, cell) in enumerate(zip(counts, cells, strict=False)):
            if not 0.0 < count < _MOST_ENTRIES:
                continue
            scope = layout.decode_label(cell)[0]
            ran = found.get(scope) or Ran(0, Durations())
            ran.durations.add(Durations.of_row(self.row(slot)))
            found[scope] = Ran(ran.entries + int(count), ran.durations)
        return found

    def timer(self, slot: int, deadline: float) -> Timer | None:
        """Return the timer in a slot, None if it does not hold ``deadline`` any more."""
        if self.deadline(slot) != deadline:
            return None
        cell = self._read(layout.LABEL_SIZE, layout.label_offset(slot))
        if self.deadline(slot) != deadline:
            return None
        return _timer(slot, cell, deadline)

    def timers(self) -> list[Timer]:
        """Return every armed timer, soonest first."""
        before = self.deadlines()
        slots = [slot for slot, deadline in enumerate(before) if layout.is_armed(deadline)]
        cells = self._labels(slots)
        after = self.deadlines() if slots else before
        there = len(after)
        armed = [
            _timer(slot, cell, before[slot])
            for slot, cell in zip(slots, cells, strict=True)
            if slot < there and after[slot] == before[slot]
        ]
        return sorted(armed, key=_soonest_first)

    def _labels(self, slots: list[int]) -> list[bytes]:
        """Return the label cells of some slots, read many at a time."""
        blocks = {slot // _BLOCK for slot in slots}
        size = _BLOCK * layout.LABEL_SIZE
        read = {block: self._read(size, layout.label_offset(block * _BLOCK)) for block in blocks}
        return [
            read[slot // _BLOCK][start : start + layout.LABEL_SIZE]
            for slot in slots
            for start in (slot % _BLOCK * layout.LABEL_SIZE,)
        ]


def _timer(slot: int, cell: bytes, deadline: float) -> Timer:
    scope, ordinal = layout.decode_label(cell)
    return Timer(slot, scope, ordinal, deadline, bool(ordinal & layout.OBSERVED))


def _soonest_first(timer: Timer) -> float:
    return timer.deadline
