"""Run the benchmarks, print a table, write JSON; exit 1 if an asserted target is missed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from . import (
    _report,
    ancestor,
    commands,
    connect,
    entry,
    evidence,
    imports,
    inspection,
    lateness,
    load,
    look,
    memory,
    neighbours,
    rings,
    roll_call,
)
from ._report import Row

MEASURES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "entry": entry.measure,
    "rings": rings.measure,
    "look": look.measure,
    "inspect": inspection.measure,
    "evidence": evidence.measure,
    "roll_call": roll_call.measure,
    "imports": imports.measure,
    "commands": commands.measure,
    "memory": memory.measure,
    "connect": connect.measure,
    "lateness": lateness.measure,
    "load": load.measure,
    "neighbours": neighbours.measure,
    "ancestor": ancestor.measure,
}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for and return the exit status."""
    options = _parser().parse_args(arguments)
    host = _report.machine()
    print(f"{host['python']}, {host['kernel']}, {host['cpus']} CPUs, load {host['load']:.2f}")
    print(_report.heading())
    results: dict[str, list[Row]] = {}
    for name in options.only or MEASURES:
        print(name, flush=True)
        rows = results[name] = []
        for row in MEASURES[name](options.quick):
            rows.append(row)
            print(*_report.lines([row]), sep="\n", flush=True)
    _report.write(options.json, results, quick=options.quick, host=host)
    return _judge([row for rows in results.values() for row in rows], options)


def _judge(rows: list[Row], options: argparse.Namespace) -> int:
    missed = [row for row in rows if row.missed]
    counted = [row for row in missed if row.exact or not options.quick]
    judged = [row for row in rows if row.limit is not None]
    print(f"{len(judged) - len(missed)} of {len(judged)} targets reached; written to {options.json}")
    if len(counted) < len(missed):
        print("quick: too few rounds to judge times by; only counts decide the exit status")
    return 1 if counted and not options.no_assert else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds; only counts are asserted")
    parser.add_argument("--only", action="append", choices=MEASURES, help="one measure; may be repeated")
    parser.add_argument("--no-assert", action="store_true", help="print, and exit 0 whatever was missed")
    path = Path("build", "bench.json")
    parser.add_argument("--json", type=Path, default=path, metavar="PATH", help=f"(default: {path})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
