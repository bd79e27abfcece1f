"""How long blocks took: a row of numbers beside each slot, and what is made of them.

A worker adds the duration of a sampled entry to its slot's row; a server reads the rows and merges those of
one scope. The laws of this file: a row has one size for ever, whatever is added; a row that was read is
untrusted, and whatever bits it holds, numbers come out.

====== ======================================================================================
word   what
====== ======================================================================================
0      when the latest sampled entry began, on the table's clock
1      its limit, seconds
2      the deadline for which words 0 and 1 hold: if the slot holds it, they are its own
3      the longest of all sampled entries, seconds
4..63  how many of them took so long: 60 buckets of half an octave, the first up to 2**-16 s
====== ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import frexp, inf, isfinite, sqrt
from typing import Any, NamedTuple

ENTERED, LIMIT, DEADLINE, MAXIMUM, FIRST_BUCKET = range(5)
BUCKETS = 60
_LOWEST = -16
"""The first bucket ends at ``2 ** _LOWEST`` seconds, 15 us; the last begins at 2**13.5 s, three hours."""

_HALF_OCTAVE = sqrt(0.5)
_MOST = 2.0**53
"""Counts beyond that are no counts."""


def bucket(seconds: float) -> int:
    """Return the number of the bucket that a duration falls into."""
    if not 0.0 < seconds < inf:
        return BUCKETS - 1 if seconds == inf else 0
    mantissa, exponent = frexp(seconds)  # seconds = mantissa * 2 ** exponent, mantissa in [0.5, 1)
    return min(max(2 * (exponent - _LOWEST) + (mantissa >= _HALF_OCTAVE) - 1, 0), BUCKETS - 1)


def upper(number: int) -> float:
    """Return where a bucket ends, in seconds: it holds what is smaller, down to the end of the one before."""
    return float(2.0 ** (_LOWEST + number / 2))


class Durations:
    """Durations of sampled entries: a histogram, and the exact maximum."""

    __slots__ = ("counts", "maximum")

    def __init__(self, counts: Iterable[float] = (), maximum: float = 0.0) -> None:
        self.counts = [_count(count) for count in counts][:BUCKETS]
        self.counts += [0] * (BUCKETS - len(self.counts))
        self.maximum = maximum if 0.0 < maximum < inf else 0.0

    @classmethod
    def of_row(cls, row: Sequence[float]) -> Durations:
        """Return what a row holds; a short one is empty."""
        return cls(row[FIRST_BUCKET:], row[MAXIMUM]) if len(row) > MAXIMUM else cls()

    @property
    def count(self) -> int:
        """How many entries were sampled."""
        return sum(self.counts)

    def add(self, other: Durations) -> None:
        """Add those of another."""
        self.maximum = max(self.maximum, other.maximum)
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]

    def quantile(self, q: float) -> float:
        """Return the duration that a share ``q`` of the entries did not exceed, right to half an octave.

        Inside a bucket it is interpolated geometrically, and it is never above the maximum. 0.0 if there is
        nothing.
        """
        wanted = q * self.count
        for number, count in enumerate(self.counts):
            if count and wanted <= count:
                share = max(wanted, 0.0) / count
                return min(upper(number) * float(2.0 ** ((share - 1.0) / 2)), self.maximum)
            wanted -= count
        return self.maximum

    def as_json(self) -> dict[str, Any]:
        """Return an object for the history."""
        return {"max_s": self.maximum, "counts": self.counts}

    @classmethod
    def from_json(cls, value: Any) -> Durations:
        """Return what :meth:`as_json` gave; anything else is empty."""
        if not isinstance(value, dict):
            return cls()
        counts, maximum = value.get("counts"), value.get("max_s")
        return cls(
            [c for c in counts if isinstance(c, (int, float))] if isinstance(counts, list) else (),
            maximum if isinstance(maximum, (int, float)) else 0.0,
        )


class Ran(NamedTuple):
    """How often a scope was entered, and how long that took.

    Attributes:
        entries: how often.
        durations: of those that were sampled.
    """

    entries: int
    durations: Durations


def _count(value: float) -> int:
    return int(value) if isfinite(value) and 0.0 < value <= _MOST else 0
