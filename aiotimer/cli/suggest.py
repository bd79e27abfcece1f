"""The command ``aiotimer suggest``: the limit that each scope should have, from how long it took.

The laws of this file:

* A proposal is made of what was measured, by one rule, or not at all: the greater of three times the 99th
  percentile and one and a half times the maximum, rounded up to two digits, at least a second.
* The first entry of a process, which may compile or fill caches, says nothing of the others: it is told
  apart if there are enough others, and needs a limit of its own if theirs does not do. Both are proposed, as
  ``expires`` takes them.
* A row fits into a terminal's width, and no two scopes look alike in it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from shutil import get_terminal_size
from typing import Any

import click
from rich.cells import cell_len, set_cell_size

from .._core.durations import Durations
from .._core.reader import Ran
from .._linux.paths import SOCKET_VARIABLE, check_socket_path, known_sockets, state_directories
from ..errors import HistoryUnreadable
from ..events import printable
from ..server import recorded
from .common import say, seconds, warn
from .group import cli, socket_option
from .rows import fitted
from .servers import reports_of

ENOUGH = 20
"""Sampled entries below which nothing is proposed."""

_OF_P99, _OF_MAXIMUM, _LEAST = 3.0, 1.5, 1.0


@cli.command(short_help="Propose limits, from how long blocks took.")
@socket_option(
    f"Only what this server recorded [default: ${SOCKET_VARIABLE}, then every server of this user]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def suggest(socket_path: str | None, as_json: bool) -> None:
    """Print for every scope how long it took, what its limit leaves, and the limit that it should have.

    From what all servers of this user have recorded, living or not, unless --socket or $AIOTIMER_SOCKET
    names one. A worker that is alive counts as soon as its server tells of it.
    """
    path = socket_path or os.environ.get(SOCKET_VARIABLE)
    rows = [_row(*found) for found in _scopes(None if path is None else check_socket_path(path))]
    if as_json:
        say(json.dumps(rows))
    elif rows:
        programs = sorted({row["program"] for row in rows})
        for program in programs:
            if len(programs) > 1:
                say(f"{printable(program) or 'recorded by an earlier version'}:")
            for line in table(
                [row for row in rows if row["program"] == program], get_terminal_size().columns
            ):
                say(line)
    else:
        say("no durations have been recorded")


def proposal(p99: float, maximum: float) -> float:
    """Return a limit in seconds that entries like those measured keep."""
    wanted = max(_OF_P99 * p99, _OF_MAXIMUM * maximum, _LEAST)
    digits = 1 - math.floor(math.log10(wanted))
    scaled = math.ceil(round(wanted * 10.0**digits, 6))  # 1.1 * 10 is a little more than 11
    return round(scaled / 10.0**digits, max(0, digits))


def _scopes(socket_path: str | None) -> list[tuple[tuple[str, str], Ran]]:
    """Return what is known of each program's scopes, of all servers together."""
    scopes: dict[tuple[str, str], Ran] = {}
    for found in (*_recorded(socket_path), *_living(socket_path)):
        key = found.get("program") or "", found["scope"]
        known = scopes.get(key) or Ran(0, Durations())
        known.durations.add(Durations.from_json(found["durations"]))
        limit = known.limit if found["limit_s"] is None else found["limit_s"]
        scopes[key] = Ran(known.count + found["count"], known.durations, limit)
    return sorted(scopes.items())


def _recorded(socket_path: str | None) -> Iterator[dict[str, Any]]:
    for directory in state_directories(socket_path):
        try:
            yield from recorded.scopes(directory)
        except HistoryUnreadable as error:
            warn(str(error))


def _living(socket_path: str | None) -> Iterator[dict[str, Any]]:
    """Yield what the workers that are alive have done, if their server tells: ``scopes`` of its status."""
    for report in reports_of(known_sockets() if socket_path is None else [socket_path], scopes=True):
        yield from report.get("scopes", ())


def _row(key: tuple[str, str], ran: Ran) -> dict[str, Any]:
    limit = ran.limit
    firsts, durations = ran.durations.parted()
    if durations.count < ENOUGH <= ran.durations.count:  # most processes enter it once
        firsts, durations = Durations(), ran.durations
    sampled = durations.count
    p99 = durations.quantile(0.99) if sampled else None
    proposed = proposal(p99, durations.maximum) if p99 is not None and sampled >= ENOUGH else None
    first = firsts.maximum if firsts.count else None
    of_first = None if first is None or proposed is None else proposal(0.0, first)
    return {
        "program": key[0],
        "scope": key[1],
        "count": ran.count,
        "sampled": sampled,
        "median_s": durations.quantile(0.5) if sampled else None,
        "p99_s": p99,
        "max_s": durations.maximum if sampled else None,
        "first_s": first,
        "limit_s": limit,
        "limit_per_p99": limit / p99 if limit is not None and p99 else None,
        "spare_s": limit - durations.maximum if limit is not None and sampled else None,
        "proposed_s": proposed,
        "proposed_first_s": None if of_first is None else max(of_first, proposed or 0.0),
    }


_HEADINGS = ("COUNT", "MEDIAN", "P99", "MAX", "FIRST", "LIMIT", "PROPOSED")
_TIMES = ("median_s", "p99_s", "max_s", "first_s", "limit_s")


def table(rows: list[dict[str, Any]], width: int) -> Iterator[str]:
    """Yield the lines of a table, and what is to be noticed, for a terminal of so many columns."""
    cells: list[tuple[str, ...]] = [_HEADINGS]
    for row in rows:
        proposed = "too few" if row["proposed_s"] is None else f"{row['proposed_s']:g} s"
        times = ("-" if row[key] is None else seconds(row[key]) for key in _TIMES)
        cells.append((str(row["count"]), *times, proposed))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    scopes = ["SCOPE", *(printable(row["scope"]) for row in rows)]
    left = max(width - sum(widths) - 2 * len(widths), len("SCOPE"))
    shown = fitted(scopes, min(left, max(map(cell_len, scopes))))
    longest = max(map(cell_len, shown.values()))
    for scope, words in zip(scopes, cells, strict=True):
        numbers = "".join(f"  {word:>{wide}}" for word, wide in zip(words, widths, strict=True))
        yield set_cell_size(shown[scope], longest) + numbers
    for row in rows:
        yield from _notes(row, shown[printable(row["scope"])])
    if any(row["proposed_s"] is None for row in rows):
        yield f"too few: nothing is proposed from fewer than {ENOUGH} entries that were sampled"


def _notes(row: dict[str, Any], scope: str) -> Iterator[str]:
    if row["spare_s"] is not None and row["spare_s"] < 0:
        yield f"{scope}: its limit is {seconds(-row['spare_s'])} less than the longest entry took"
    if row["proposed_first_s"] is not None and row["proposed_first_s"] > row["proposed_s"]:
        both = f"after={row['proposed_s']:g}, first={row['proposed_first_s']:g}"
        need = f"need {row['proposed_first_s']:g} s: {both}"
        yield f"{scope}: first entries of processes take longer, and {need}"
