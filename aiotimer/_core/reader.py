"""A reader of timer tables: what the server, and a queue's consumer, see of one from outside.

The laws of this file: a reader reads through a function that it was given (``pread`` on the file, never a
mapping, so that a worker that truncates its table costs its reader nothing); a label counts only if its slot
held the same deadline before and after it was read; what is read is untrusted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator
from heapq import merge
from itertools import islice
from math import inf
from typing import NamedTuple

from . import durations, layout
from .notes import decode_grace, decode_note

Read = Callable[[int, int], bytes]
"""``read(size, offset)``: at most ``size`` bytes of the table, fewer at its end."""


_BLOCK = 16
"""Labels that are read at once: a page of them."""

_PART, _BATCH = 1024, 256
"""Deadlines that are sorted at once, and timers whose labels are read at once."""

_LONGEST = 1e9
"""Seconds; a limit beyond that is none."""

_ROWS = 64
"""Rows that are read at once."""


class Timer(NamedTuple):
    """One armed timer as found in a table.

    Attributes:
        slot: where.
        scope: the label's text.
        ordinal: 0 for a keyed timer, n for the n-th concurrent entry of its scope.
        deadline: the stored value.
        observed: nobody is to be signalled for it.
        thread: ``threading.get_ident()`` of the thread that made this entry, 0 if that is not known.
    """

    slot: int
    scope: str
    ordinal: int
    deadline: float
    observed: bool = False
    thread: int = 0

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

    __slots__ = ("_expected", "_read", "_size")

    def __init__(self, read: Read) -> None:
        self._read = read
        self._expected = layout.FIRST_SLOTS
        self._size = layout.snapshot_size(self._expected)

    def snapshot(self) -> bytes:
        """Return the worker's line and every deadline below the high-water mark: usually one read."""
        data = self._read(self._size, layout.SNAPSHOT_OFFSET)
        slots = layout.high_water(data)
        if slots > self._expected and len(data) == self._size:
            self._expected, self._size = slots, layout.snapshot_size(slots)
            data = self._read(self._size, layout.SNAPSHOT_OFFSET)
        return data

    def deadlines(self) -> array[float]:
        """Return every deadline, index = slot."""
        return layout.deadlines(self.snapshot())

    def deadline(self, slot: int) -> float:
        """Return what a slot holds now (-1.0 if the table is too short to have it)."""
        data = self._read(8, layout.deadline_offset(slot))
        return layout.read_word(data) if len(data) == 8 else -1.0

    def counts(self, slots: int) -> array[float]:
        """Return the counts of the first ``slots`` slots: whole parts, under their present labels."""
        return self._words(slots, layout.count_offset(0))

    def armings(self, first: int, slots: int) -> array[int]:
        """Return the counts of some slots as the bits they are: a worker may store what equals nothing."""
        data = self._read(8 * slots, layout.count_offset(first))
        return array("q", data.ljust(8 * slots, b"\0"))

    def key(self, slot: int) -> str:
        """Return the ``layout.timer_key`` on a slot's label, whatever the slot holds."""
        return layout.label_key(self._read(layout.LABEL_SIZE, layout.label_offset(slot)))

    def row(self, slot: int) -> array[float]:
        """Return a slot's row (see ``_core/durations.py``); it is short if the table is cut off."""
        return self._words(layout.ROW_WORDS, layout.row_offset(slot))

    def note(self, slot: int) -> dict[str, str]:
        """Return what its program says of the entry in a slot, see ``_core/notes.py``."""
        return decode_note(*self._cell_and_count(slot))

    def grace(self, slot: int) -> float:
        """Return the grace of the entry in a slot, negative: its task was cancelled; 0.0: it has none."""
        return decode_grace(*self._cell_and_count(slot))

    def _cell_and_count(self, slot: int) -> tuple[bytes, bytes]:
        cell = self._read(layout.LABEL_SIZE, layout.label_offset(slot))
        return cell, self._read(8, layout.count_offset(slot))

    def durations(self, most: int = layout.SLOTS) -> Generator[None, None, dict[str, Ran]]:
        """Read how long the blocks of every scope took, of the first slots; yield after every few of them."""
        found: dict[str, Ran] = {}
        counts = self.counts(min(layout.high_water(self.snapshot()), most))
        for first in range(0, len(counts), _ROWS):
            slots = min(_ROWS, len(counts) - first)
            labels = self._read(layout.LABEL_SIZE * slots, layout.label_offset(first))
            rows = self._read(layout.ROW_SIZE * slots, layout.row_offset(first))
            for number in range(len(rows) // layout.ROW_SIZE):
                count = counts[first + number]
                if not 1 <= count <= durations.MOST:
                    continue  # it has never been armed under this label, or that is no count
                scope = layout.decode_label(_cell(labels, number))[0]
                start = number * layout.ROW_SIZE
                (row,) = durations.rows_of(rows[start : start + layout.ROW_SIZE])
                known = found.get(scope) or Ran(0, durations.Durations())
                known.durations.add_row(row)
                noted = row[durations.LIMIT]
                limit = noted if 0.0 < noted < _LONGEST else known.limit
                together = min(known.count + int(count), durations.MOST)
                found[scope] = Ran(together, known.durations, limit)
            yield
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
        return [timer for batch in self.batches(most) for timer in batch]

    def batches(self, most: int = layout.SLOTS) -> Iterator[list[Timer]]:
        """Yield the armed timers in batches, soonest first: so many of them at most.

        What is done for one batch takes a millisecond or two; some are empty.
        """
        before = self.deadlines()
        parts: list[list[tuple[float, int]]] = []
        for first in range(0, len(before), _PART):
            part = enumerate(before[first : first + _PART], first)
            parts.append(sorted((deadline, slot) for slot, deadline in part if 0.0 < deadline < inf)[:most])
            if len(before) > _PART:
                yield []
        soonest = islice(merge(*parts), most)
        while batch := list(islice(soonest, _BATCH)):
            cells = self._labels([slot for _deadline, slot in batch])
            after = self.deadlines()
            yield [
                _timer(slot, cell, deadline)
                for (deadline, slot), cell in zip(batch, cells, strict=True)
                if slot < len(after) and after[slot] == deadline
            ]

    def _words(self, number: int, offset: int) -> array[float]:
        data = self._read(8 * number, offset)
        return array("d", data[: len(data) // 8 * 8])

    def _labels(self, slots: list[int]) -> list[bytes]:
        """Return the label cells of some slots, read many at a time."""
        blocks = {slot // _BLOCK for slot in slots}
        size = _BLOCK * layout.LABEL_SIZE
        read = {block: self._read(size, layout.label_offset(block * _BLOCK)) for block in blocks}
        return [_cell(read[slot // _BLOCK], slot % _BLOCK) for slot in slots]


def _cell(labels: bytes, number: int) -> bytes:
    return labels[number * layout.LABEL_SIZE : (number + 1) * layout.LABEL_SIZE]


def _timer(slot: int, cell: bytes, deadline: float) -> Timer:
    observed = bool(layout.label_flags(cell) & layout.OBSERVED)
    return Timer(slot, *layout.decode_label(cell), deadline, observed, layout.label_thread(cell))
