"""The command ``aiotimer history``: the events that servers have recorded."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click

from .._linux.paths import check_socket_path, state_directories
from ..errors import HistoryUnreadable
from ..events import KINDS, printable
from ..server import recorded
from . import rows
from .common import moment, reader_has_gone, say, seconds, warn
from .filters import EVERYTHING, Wanted, filter_options
from .group import RECORDED, cli, socket_option

LINES = 20
"""How many are printed if nothing is said."""

_AGAIN = 0.2
"""Seconds between two looks for new events."""


@cli.command(short_help="Show what has happened.")
@socket_option(RECORDED)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, one for each event.")
@click.option("--full", is_flag=True, help="Print every event, in whole lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=LINES, help="How many; twenty by default.")
@click.option("--pid", type=int, help="Only this worker.")
@filter_options
def history(
    socket_path: str | None, as_json: bool, full: bool, follow: bool, lines: int, **wanted: Any
) -> None:
    """Print what happened, one line for each expiry, the newest last.

    Of all servers of this user, living or not, unless --socket names one.
    """
    path = None if socket_path is None else check_socket_path(socket_path)
    reader = Reader(path, Wanted(**wanted))
    if as_json or full:
        words = json.dumps if as_json else _line
        for event in reader.follow(lines) if follow else reader.read(lines):
            say(words(event))
        return
    width = get_terminal_size().columns
    for line in rows.lines(reader.rows(lines), width):
        say(line)
    for event in reader.follow(None) if follow else ():
        if event["event"] != "expired" or reader.wanted.events:  # what becomes of it follows
            say(*rows.lines([event], width, rows.COLUMNS))


def wait_beside_reader() -> None:
    """Wait a little.

    Raises:
        BrokenPipeError: whoever reads our output has gone, which else the next event would tell.
    """
    if reader_has_gone(_AGAIN):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Reader:
    """Reads every event of some databases once.

    Args:
        socket_path: only that server's.
        wanted: only these.
    """

    def __init__(self, socket_path: str | None, wanted: Wanted = EVERYTHING) -> None:
        self._socket_path = socket_path
        self.wanted = wanted
        self._read: dict[tuple[Path, int], int] = {}
        self._complained: set[Path] = set()

    def read(self, lines: int) -> list[dict[str, Any]]:
        """Return what has not been returned before, in order of time; at most the newest so many."""
        found = self._all(lines if self.wanted == EVERYTHING else recorded.EVENTS)
        wanted = [event for event in found if self.wanted.takes(event)]
        return wanted[max(0, len(wanted) - lines) :]

    def rows(self, lines: int) -> list[dict[str, Any]]:
        """Return that merged: the newest rows, so many at most."""
        about = [event for event in self._all(recorded.EVENTS) if self.wanted.is_about(event)]
        kinds = self.wanted.events or KINDS
        wanted = [row for row in rows.merged(about) if not {*kinds}.isdisjoint(row["events"])]
        return wanted[max(0, len(wanted) - lines) :]

    def follow(
        self, lines: int | None, wait: Callable[[], object] = wait_beside_reader
    ) -> Iterator[dict[str, Any]]:
        """Yield the newest events, and then new ones, for ever.

        Args:
            lines: how many to begin with; None if they have been read.
            wait: called before every further look. Readers of a database are not told of changes.
        """
        if lines is not None:
            yield from self.read(lines)
        while True:
            wait()
            yield from self.read(recorded.EVENTS)

    def _all(self, lines: int) -> list[dict[str, Any]]:
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
                warn(str(error))
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
    words += [f"{key}={event[key]}" for key in ("run", "culprit") if event.get(key)]
    if event.get("late_s") is not None:
        words.append(f"late={seconds(event['late_s'])}")
    words += [str(event[key]) for key in ("verdict", "detail") if event.get(key)]
    return printable("  ".join(words))
