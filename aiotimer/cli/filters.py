"""A filter of what was recorded: by worker, scope, name, time and event; and its options.

The law of this file: a text is meant exactly, or as a pattern of a shell; a scope such as ``a[0]`` is both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import click

from .._core.ladder import seconds
from ..events import KINDS


class Wanted(NamedTuple):
    """What is wanted of what was recorded; by default everything.

    Attributes:
        pid: of a worker.
        scope, name: exactly, or a pattern with ``*`` and ``?``.
        since: wall time.
        events: the kinds of events, all of them if it is empty.
    """

    pid: int | None = None
    scope: str | None = None
    name: str | None = None
    since: float = 0.0
    events: tuple[str, ...] = ()

    def is_about(self, found: Mapping[str, Any]) -> bool:
        """Whether an event, or a record, is about what is wanted, whatever its kind."""
        return (
            self.pid in (None, found.get("pid"))
            and _matches(self.scope, found.get("scope"))
            and _matches(self.name, found.get("name"))
            and (found.get("time") or 0.0) >= self.since
        )

    def takes(self, found: Mapping[str, Any]) -> bool:
        """Whether an event, or a record, is wanted."""
        return (not self.events or found.get("event") in self.events) and self.is_about(found)


EVERYTHING = Wanted()


def _matches(wanted: str | None, text: Any) -> bool:
    return wanted is None or (isinstance(text, str) and (text == wanted or fnmatchcase(text, wanted)))


def moment_of(text: str, now: float) -> float:
    """Return the moment that is meant, wall time: so long ago (``2h``), or at a time in ISO 8601.

    Raises:
        ValueError: it is neither.
    """
    try:
        return now - seconds(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()  # local time, if it names no zone
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is neither a duration such as 2h nor a time such as 2026-11-23T03:12"
        ) from None


def _since(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float:
    try:
        now = time.time()  # noqa: TID251 - compared with what is recorded for people
        return 0.0 if text is None else moment_of(text, now)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _events(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text is not None else ()
    for name in names:
        if name not in KINDS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(KINDS)}")
    return names


def filter_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add them to a command; the function gets ``scope``, ``name``, ``since`` and ``events``."""
    for add in (
        click.option(
            "--event",
            "events",
            metavar="NAME,...",
            callback=_events,
            help="Only events with these names.",
        ),
        click.option(
            "--since",
            metavar="WHEN",
            callback=_since,
            help="Only what is younger: 2h, or a time in ISO 8601.",
        ),
        click.option("--name", metavar="NAME", help="Only workers of this name; * and ? as in a shell."),
        click.option("--scope", metavar="SCOPE", help="Only this scope; * and ? as in a shell."),
    ):
        command = add(command)
    return command
