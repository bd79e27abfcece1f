"""The command ``aiotimer suggest``: the limit that each scope should have, from how long it took.

The law of this file: a proposal is made of what was measured, by one rule, or not at all: the greater of
three times the 99th percentile and one and a half times the maximum, rounded up to two digits, at least a
second.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import click

from .._core.durations import Durations
from .._core.reader import Ran
from .._linux.paths import SOCKET_VARIABLE, check_socket_path, known_sockets, state_directories
from ..client import control
from ..errors import AiotimerError, HistoryUnreadable
from ..events import printable
from ..server import history
from .common import seconds
from .group import cli, socket_option

ENOUGH = 20
"""Sampled entries below which nothing is proposed."""

_OF_P99, _OF_MAXIMUM, _LEAST = 3.0, 1.5, 1.0


@cli.command(short_help="Propose limits, from how long blocks took.")
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def suggest(socket_path: str | None, as_json: bool) -> None:
    """Print for every scope how long it took, what its limit leaves, and the limit that it should have.

    From what all servers of this user have recorded, living or not, unless --socket or $AIOTIMER_SOCKET
    names one. A worker that is alive counts as soon as its server tells of it.
    """
    path = socket_path or os.environ.get(SOCKET_VARIABLE)
    rows = [_row(*found) for found in _scopes(None if path is None else check_socket_path(path))]
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        _print(rows)
    else:
        click.echo("no durations have been recorded")


def proposal(p99: float, maximum: float) -> float:
    """Return a limit in seconds that entries like those measured keep."""
    wanted = max(_OF_P99 * p99, _OF_MAXIMUM * maximum, _LEAST)
    digits = 1 - math.floor(math.log10(wanted))
    scaled = math.ceil(round(wanted * 10.0**digits, 6))  # 1.1 * 10 is a little more than 11
    return round(scaled / 10.0**digits, max(0, digits))


def _scopes(socket_path: str | None) -> list[tuple[str, Ran]]:
    """Return what is known of each scope, of all servers together."""
    scopes: dict[str, Ran] = {}
    for found in (*_recorded(socket_path), *_living(socket_path)):
        known = scopes.get(found["scope"]) or Ran(0, Durations())
        known.durations.add(Durations.from_json(found["durations"]))
        limit = known.limit if found["limit_s"] is None else found["limit_s"]
        scopes[found["scope"]] = Ran(known.count + found["count"], known.durations, limit)
    return sorted(scopes.items())


def _recorded(socket_path: str | None) -> Iterator[dict[str, Any]]:
    for directory in state_directories(socket_path):
        try:
            yield from history.scopes(directory)
        except HistoryUnreadable as error:
            click.echo(f"aiotimer: {error}", err=True)


def _living(socket_path: str | None) -> Iterator[dict[str, Any]]:
    """Yield what the workers that are alive have done, if their server tells: ``scopes`` of its status."""
    for path in known_sockets() if socket_path is None else [socket_path]:
        try:
            yield from control.status(path, scopes=True)["scopes"]
        except AiotimerError:
            continue


def _row(scope: str, ran: Ran) -> dict[str, Any]:
    durations, limit = ran.durations, ran.limit
    sampled = durations.count
    p99 = durations.quantile(0.99) if sampled else None
    return {
        "scope": scope,
        "count": ran.count,
        "sampled": sampled,
        "median_s": durations.quantile(0.5) if sampled else None,
        "p99_s": p99,
        "max_s": durations.maximum if sampled else None,
        "limit_s": limit,
        "limit_per_p99": limit / p99 if limit is not None and p99 else None,
        "spare_s": limit - durations.maximum if limit is not None and sampled else None,
        "proposed_s": proposal(p99, durations.maximum) if p99 is not None and sampled >= ENOUGH else None,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .page import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("SCOPE", "COUNT", "MEDIAN", "P99", "MAX", "LIMIT", "HEADROOM", "PROPOSED"):
        table.add_column(heading, justify="left" if heading == "SCOPE" else "right")
    for row in rows:
        times = [_seconds(row[key]) for key in ("median_s", "p99_s", "max_s", "limit_s")]
        ratio, spare = row["limit_per_p99"], row["spare_s"]
        headroom = "-" if ratio is None else f"{ratio:.3g} × p99, {spare:+.3g} s"
        proposed = row["proposed_s"]
        advice = f"too few (n < {ENOUGH})" if proposed is None else f"{proposed:g} s"
        table.add_row(Text(printable(row["scope"])), str(row["count"]), *times, headroom, advice)
    console().print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else seconds(value)
