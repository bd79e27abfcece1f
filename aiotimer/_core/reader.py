"""A reader of timer tables: what the server, and a queue's consumer, see of one from outside.

The laws of this file: a reader reads through a function that it was given (``pread`` on the file, never a
mapping, so that a worker that truncates its table costs its reader nothing); a label counts only if its slot
held the same deadline before and after it was read; what is read is untrusted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from heapq import nsmallest
from math import inf
from typing import NamedTuple

from . import durations, layout

Read = Callable[[int, int], bytes]
"""``read(size, offset)``: at most ``size`` bytes of the table, fewer at its end."""


_BLOCK = 16
"""Labels that are read at once: a page of them."""

_LONGEST = 1e9
"""Seconds; a limit beyond that is none."""

_ROWS = 512
"""Rows that are read at once: a quarter of a megabyte."""


class Timer(NamedTuple):
    """One armed timer as found in a table.

    Attributes:
        slot: where.
        scope: the label's text.
        ordinal: 0 for a keyed timer, n for the n-th concurrent entry of its scope.
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

    @property
    def key_ordinal(self) -> int:
        """The ordinal as in a ``layout.timer_key``: negative for an observed entry."""
        return -self.ordinal if self.observed else self.ordinal


class Ran(NamedTuple):
    """What is known of how long the blocks of one scope took.

    Attributes:
        count: entries, whether or not they were sampled.
        durations: of those that were.
        limit: of one that was, the latest in its slot, seconds; None: it is not known.
    """

    count: int  # type: ignore[assignment]  # tuples have a method of that name
    durations: durations.Durations
    limit: float | None = None


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

    def key(self, slot: int) -> str:
        """Return the ``layout.timer_key`` on a slot's label, whatever the slot holds."""
        return layout.label_key(self._read(layout.LABEL_SIZE, layout.label_offset(slot)))

    def row(self, slot: int) -> array[float]:
        """Return a slot's row (see ``_core/durations.py``); it is short if the table is cut off."""
        data = self._read(layout.ROW_SIZE, layout.row_offset(slot))
        return array("d", data[: len(data) // 8 * 8])

    def durations(self, most: int = layout.SLOTS, scopes: Collection[str] | None = None) -> dict[str, Ran]:
        """Return how long the blocks of every scope took, read many slots at a time.

        Args:
            most: slots that are read, the first ones.
            scopes: only of these.
        """
        found: dict[str, Ran] = {}
        counts = self.counts(min(layout.high_water(self.snapshot()), most))
        for first in range(0, len(counts), _ROWS):
            slots = min(_ROWS, len(counts) - first)
            labels = self._read(layout.LABEL_SIZE * slots, layout.label_offset(first))
            rows = self._read(layout.ROW_SIZE * slots, layout.row_offset(first))
            for number in range(len(rows) // layout.ROW_SIZE):
                count = counts[first + number]
                if not 1 <= count < inf:
                    continue  # it has never been armed under this label
                start = number * layout.LABEL_SIZE
                scope = layout.decode_label(labels[start : start + layout.LABEL_SIZE])[0]
                if scopes is not None and scope not in scopes:
                    continue
                start = number * layout.ROW_SIZE
                (row,) = durations.rows_of(rows[start : start + layout.ROW_SIZE])
                known = found.get(scope) or Ran(0, durations.Durations())
                known.durations.add_row(row)
                noted = row[durations.LIMIT]
                limit = noted if 0.0 < noted < _LONGEST else known.limit
                found[scope] = Ran(known.count + int(count), known.durations, limit)
        return found

    def timer(self, slot: int, deadline: float) -> Timer | None:
        """Return the timer in a slot, None if it does not hold ``deadline`` any more."""
        if self.deadline(slot) != deadline:
            return None
        cell = self._read(layout.LABEL_SIZE, layout.label_offset(slot))
        if self.deadline(slot) != deadline:
            return None
        return _timer(slot, cell, deadline)

    def timers(self, most: int = layout.SLOTS) -> list[Timer]:
        """Return the armed timers, soonest first: so many of them at most."""
        before = self.deadlines()
        slots = [slot for slot, deadline in enumerate(before) if layout.is_armed(deadline)]
        if len(slots) > most:
            slots = sorted(nsmallest(most, slots, key=before.__getitem__))
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
    observed = bool(layout.label_flags(cell) & layout.OBSERVED)
    return Timer(slot, *layout.decode_label(cell), deadline, observed)


def _soonest_first(timer: Timer) -> float:
    return timer.deadline
