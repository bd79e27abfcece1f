"""A histogram of how long the blocks of one scope take: a row of numbers per slot, and what many rows tell.

A row is ``layout.ROW_WORDS`` float64: when the last sampled entry was made, its limit in seconds, the
deadline for which these two hold, the longest duration, and counts of durations in ``BUCKETS`` half
octaves. The laws of this file: a worker stores without a lock, as the owner of its slot; a reader accepts
every bit pattern, and counts nothing that is not a positive, finite number. The first duration of a row is
told apart, for a first entry often takes longer (it compiles, imports, fills caches): the count of its bucket
is no whole number. Whoever reads whole numbers only reads the same counts. So are all of entries that had a
limit of their own for being the first: their limit is noted negative.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from math import ceil, frexp, inf, isfinite
from typing import Any

from .layout import ROW_WORDS

ENTERED, LIMIT, DEADLINE, MAXIMUM, FIRST_BUCKET = 0, 1, 2, 3, 4
"""Indices in a row."""

BUCKETS = ROW_WORDS - FIRST_BUCKET
_LOWEST = -16
_ROOT_HALF = 0.5**0.5
MOST = 2**53
"""A larger count is none: a worker stored something else. Sums end there: they fit wherever they go."""


FIRST = 2.0**-10
"""What a first duration adds to its count."""

_MOST_FIRST = 0.5
"""Where that ends, for else so many would be an entry more."""


def bucket(seconds: float) -> int:
    """Return the bucket of a duration; what is too short, too long or no number goes into the last ones."""
    if not seconds < inf:
        return BUCKETS - 1
    mantissa, exponent = frexp(seconds)
    return min(max(2 * (exponent - _LOWEST) + (mantissa >= _ROOT_HALF), 0), BUCKETS - 1) if seconds > 0 else 0


def bounds(number: int) -> tuple[float, float]:
    """Return from where to where a bucket reaches, in seconds; the outer ones take what is beyond, too."""
    low = 2.0 ** (_LOWEST - 1 + number / 2)
    return low, low / _ROOT_HALF


def enter(cells: memoryview[float], row: int, entered: float, limit: float, deadline: float) -> None:
    """Say in the row that begins at ``row`` that an entry has been made.

    Args:
        limit: seconds; negative if they are so many because the entry is one of the first of its scope.
    """
    cells[row + ENTERED] = entered
    cells[row + LIMIT] = limit
    cells[row + DEADLINE] = deadline  # last: it says that the others hold


def renew(cells: memoryview[float], row: int, limit: float, deadline: float) -> None:
    """Say that the limit of the entry in this row has been moved."""
    cells[row + LIMIT] = limit
    cells[row + DEADLINE] = deadline


def leave(cells: memoryview[float], row: int, seconds: float) -> None:
    """Count a duration."""
    word = row + FIRST_BUCKET + bucket(seconds)
    is_first = cells[row + LIMIT] < 0 or not cells[row + MAXIMUM]
    cells[word] += 1.0 + FIRST if is_first and cells[word] % 1.0 < _MOST_FIRST else 1.0
    if seconds > cells[row + MAXIMUM]:
        cells[row + MAXIMUM] = seconds


class Durations:
    """Durations of sampled entries of one scope, as a histogram.

    Args:
        rows: of a table, to begin with.

    Attributes:
        maximum: the longest, seconds.
        counts: how many are in each bucket.
        firsts: how many of these were first ones: of a process, or of its entries side by side.
    """

    __slots__ = ("counts", "firsts", "maximum")

    def __init__(self, rows: Iterable[Sequence[float]] = ()) -> None:
        self.maximum = 0.0
        self.counts = [0] * BUCKETS
        self.firsts = [0] * BUCKETS
        for row in rows:
            self.add_row(row)

    @property
    def count(self) -> int:
        """How many entries were sampled."""
        return sum(self.counts)

    def add(self, other: Durations) -> None:
        """Add those of another."""
        self.maximum = max(self.maximum, other.maximum)
        self.counts = [min(sum(both), MOST) for both in zip(self.counts, other.counts, strict=True)]
        self.firsts = [min(sum(both), MOST) for both in zip(self.firsts, other.firsts, strict=True)]

    def add_row(self, row: Sequence[float]) -> None:
        """Add a row of a table; what is no number of entries is ignored, and so is what is cut off."""
        if len(row) > MAXIMUM:
            self.maximum = max(self.maximum, _seconds(row[MAXIMUM]))
        counts = row[FIRST_BUCKET:ROW_WORDS]
        for number, count in enumerate(counts) if any(counts) else ():  # most have not been sampled
            if 1 <= count <= MOST:
                self.counts[number] = min(self.counts[number] + int(count), MOST)
                self.firsts[number] += min(ceil(count % 1.0 / FIRST), int(count))

    def parted(self) -> tuple[Durations, Durations]:
        """Return the first ones, and the others.

        The maximum of a part is that of all if it can be in it; else it is the end of its highest bucket.
        """
        firsts, others = Durations(), Durations()
        firsts.counts = [min(both) for both in zip(self.firsts, self.counts, strict=True)]
        others.counts = [every - first for every, first in zip(self.counts, firsts.counts, strict=True)]
        for part in (firsts, others):
            highest = max((number for number, count in enumerate(part.counts) if count), default=None)
            if highest is not None:
                is_less = part.counts != self.counts and highest < bucket(self.maximum)
                part.maximum = bounds(highest)[1] if is_less else self.maximum
        return firsts, others

    def quantile(self, q: float) -> float:
        """Return what the ``q``-th part of the entries (0 to 1) did not exceed; 0.0 if there are none.

        Inside of a bucket it is interpolated geometrically; it is never more than the maximum.
        """
        wanted = min(max(q, 0.0), 1.0) * self.count
        for number, count in enumerate(self.counts):
            if count and wanted <= count:
                low, high = bounds(number)
                return min(low * float((high / low) ** (wanted / count)), self.maximum)
            wanted -= count
        return self.maximum

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {"max_s": self.maximum, "counts": list(self.counts), "firsts": list(self.firsts)}

    @classmethod
    def from_json(cls, value: Any) -> Durations:
        """Return what :meth:`as_json` gave; whatever is anything else counts as nothing."""
        durations = cls()
        if isinstance(value, dict):
            counts = value.get("counts")
            row = [0.0] * FIRST_BUCKET + list(map(_number, counts if isinstance(counts, list) else ()))
            row[MAXIMUM] = _number(value.get("max_s"))
            durations.add_row(row)
            firsts = value.get("firsts")  # an earlier version did not know them
            known = map(_number, firsts[:BUCKETS] if isinstance(firsts, list) else ())
            durations.firsts = [max(0, int(count)) for count in (*known, *[0.0] * BUCKETS)][:BUCKETS]
        return durations


def rows_of(data: bytes) -> list[array[float]]:
    """Return the whole rows in a part of a table."""
    words = array("d", data[: len(data) // (8 * ROW_WORDS) * (8 * ROW_WORDS)])
    return [words[start : start + ROW_WORDS] for start in range(0, len(words), ROW_WORDS)]


def _seconds(value: float) -> float:
    return value if isfinite(value) and value > 0 else 0.0


def _number(value: Any) -> float:
    number = isinstance(value, (int, float)) and abs(value) <= MOST  # False for NaN, and for long ints
    return float(value) if number else 0.0
