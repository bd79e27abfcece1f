"""The command ``aiotimer history``: the events that servers have recorded."""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from .._linux.paths import check_socket_path, state_directories
from ..errors import HistoryUnreadable
from ..events import printable
from ..server import history as recorded
from .common import moment, seconds
from .group import cli, socket_option

LINES = 20
"""How many are printed if nothing is said."""

_AGAIN = 0.2
"""Seconds between two looks for new events."""


@cli.command(short_help="Show what has happened.")
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=LINES, help="How many; twenty by default.")
def history(socket_path: str | None, as_json: bool, follow: bool, lines: int) -> None:
    """Print the newest events, the oldest of them first.

    Of all servers of this user, living or not, unless --socket names one.
    """
    path = None if socket_path is None else check_socket_path(socket_path)
    words = json.dumps if as_json else _line
    for event in follow_events(path, lines) if follow else _Reader(path).read(lines):
        click.echo(words(event))


def follow_events(
    socket_path: str | None,
    lines: int,
    wait: Callable[[], object] = lambda: select.select([], [], [], _AGAIN),
) -> Iterator[dict[str, Any]]:
    """Yield the newest events, and then new ones, for ever.

    Args:
        socket_path: only that server's.
        lines: how many to begin with.
        wait: called before every further look. Readers of a database are not told of changes.
    """
    reader = _Reader(socket_path)
    yield from reader.read(lines)
    while True:
        wait()
        yield from reader.read(recorded.EVENTS)


class _Reader:
    """Reads every event of some databases once."""

    def __init__(self, socket_path: str | None) -> None:
        self._socket_path = socket_path
        self._read: dict[tuple[Path, int], int] = {}
        self._complained: set[Path] = set()

    def read(self, lines: int) -> list[dict[str, Any]]:
        """Return what has not been returned before, in order of time; at most the newest so many."""
        found = [
            event
            for directory in state_directories(self._socket_path)
            for event in self._events(directory, lines)
        ]
        found.sort(key=lambda event: event.get("time") or 0.0)
        return found[max(0, len(found) - lines) :]

    def _events(self, directory: Path, lines: int) -> Iterable[dict[str, Any]]:
        try:
            database = directory / recorded.DATABASE, (directory / recorded.DATABASE).stat().st_ino
            events = recorded.events(directory, self._read.get(database, 0), max(1, lines))
        except FileNotFoundError:
            return ()
        except (HistoryUnreadable, OSError) as error:
            if directory not in self._complained:
                click.echo(f"aiotimer: {error}", err=True)
            self._complained.add(directory)
            return ()
        if events:
            self._read[database] = events[-1][0]
        return [event for _, event in events]


def _line(event: dict[str, Any]) -> str:
    """Return an event as a line for people."""
    words = [moment(event.get("time") or 0.0), f"{event.get('event', ''):<11}"]
    if event.get("pid") is not None:
        words.append(f"pid={event['pid']}")
    if event.get("scope"):
        words.append(f"scope={event['scope']}")
    if event.get("late_s") is not None:
        words.append(f"late={seconds(event['late_s'])}")
    words += [str(event[key]) for key in ("verdict", "detail") if event.get(key)]
    return printable("  ".join(words))
