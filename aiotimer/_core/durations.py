"""How long the entries of one scope took: a histogram (a stand-in, to be replaced by the worker's side)."""

from __future__ import annotations

from typing import Any

BUCKETS = 60


class Durations:
    """Durations of sampled entries."""

    def __init__(self) -> None:
        self.maximum = 0.0
        self.counts = [0] * BUCKETS

    @property
    def count(self) -> int:
        """How many entries were sampled."""
        return sum(self.counts)

    def add(self, other: Durations) -> None:
        """Add those of another."""
        self.maximum = max(self.maximum, other.maximum)
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]

    def quantile(self, q: float) -> float:
        """Return an upper bound of a quantile."""
        wanted = q * self.count
        for bucket, count in enumerate(self.counts):
            wanted -= count
            if count and wanted <= 0:
                return min(float(2.0 ** ((bucket + 1) / 2 - 17)), self.maximum)
        return self.maximum

    def as_json(self) -> Any:
        """Return it as an object."""
        return {"max_s": self.maximum, "counts": self.counts}

    @classmethod
    def from_json(cls, value: Any) -> Durations:
        """Return what :meth:`as_json` gave; anything else is empty."""
        durations = cls()
        if isinstance(value, dict):
            durations.maximum = float(value.get("max_s", 0.0))
            durations.counts = [*value.get("counts", ()), *durations.counts][:BUCKETS]
        return durations
