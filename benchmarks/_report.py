"""Rows: what was measured, what it had to be, and how that is printed and written down."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        what: what was measured.
        value: the number.
        unit: of the number; ``x`` for a ratio of medians, empty for a count.
        limit: the most it may be; None if it is only shown.
        exact: a count, or a ratio of counts: it means the same on a busy machine and in a short run.
        note: where the number comes from, or what else to know.
    """

    what: str
    value: float
    unit: str = ""
    limit: float | None = None
    exact: bool = False
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether it is not what it had to be (NaN never is)."""
        return self.limit is not None and not self.value <= self.limit

    @property
    def verdict(self) -> str:
        """``ok``, ``MISSED``, or nothing if there was no target."""
        return "" if self.limit is None else "MISSED" if self.missed else "ok"


def number(value: float, unit: str = "") -> str:
    """Return a number with three significant digits and its unit."""
    if abs(value) >= 100 or (value == int(value) and not unit):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{2 if abs(value) < 10 else 1}f}"
    return f"{text} {unit}".rstrip()


def lines(rows: Iterable[Row]) -> list[str]:
    """Return the table of some rows, a line each, with its notes."""
    table = [
        (
            row.what,
            "" if row.limit is None else f"<= {number(row.limit, row.unit)}",
            number(row.value, row.unit),
            row.verdict,
            row.note,
        )
        for row in rows
    ]
    return [
        f"  {what:<64} {target:>12} {measured:>12}  {verdict:<6}  {note}".rstrip()
        for what, target, measured, verdict, note in table
    ]


def heading() -> str:
    """Return the line above the table."""
    return f"  {'':<64} {'target':>12} {'measured':>12}"


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


def write(path: Path, results: Mapping[str, Sequence[Row]], *, quick: bool, host: dict[str, Any]) -> None:
    """Write every row, by measure, as JSON."""
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": host,
        "quick": quick,
        "measures": {
            name: [{**asdict(row), "verdict": row.verdict} for row in rows] for name, rows in results.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()
