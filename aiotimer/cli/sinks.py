"""The sinks of a server process, as its command line names them."""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic

import click

from ..events import KINDS, Event
from ..server.sinks import CommandSink, PipeSink

LEAVE_WITHIN = 1.0
"""Seconds that a server which ends gives its log to take the last lines."""

EVENTS_WITHIN = 2.0
"""Seconds that it gives the others to take the last events: a supervisor waits five for the server's end."""


class EventSinks:
    """The sinks of a server's events besides the log, as the command line names them.

    Args:
        events_fd: of a pipe for JSON lines; None: no pipe.
        on_event: a command that is run for events; None or "": no command.
        events: for which kinds of them; None: for all.

    Raises:
        click.UsageError: that is no command, or events are chosen and there is none.
    """

    def __init__(
        self, events_fd: int | None, on_event: str | None, events: Collection[str] | None = None
    ) -> None:
        if events is not None and on_event is None:
            raise click.UsageError(
                "--events chooses for which events --on-event runs its command; give that too"
            )
        self._pipe = None if events_fd is None else PipeSink(events_fd)
        self._on_event = _command(on_event, "--on-event")
        self._events = KINDS if events is None else events

    def __call__(self, event: Event) -> None:
        """Tell an event to each of them. Never waits for anybody."""
        told = event.as_json()
        if self._pipe is not None:
            self._pipe(told)
        if self._on_event is not None and event.event in self._events:
            self._on_event(told)

    def close(self, within: float = EVENTS_WITHIN) -> None:
        """Let them take what waits, for so many seconds at most, all of them at the same time."""
        until = monotonic() + within
        if self._on_event is not None:
            self._on_event.close(within)
        if self._pipe is not None:
            self._pipe.close(max(0.0, until - monotonic()))


def event_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add ``--on-event`` and ``--events``, for :class:`EventSinks`."""
    every = "Run COMMAND for every event, with its JSON on standard input."
    which = "Run it only for events of these kinds, such as unkillable,reap_failed [default: all]."
    command = click.option("--events", metavar="NAME,...", callback=_event_names, help=which)(command)
    return click.option("--on-event", metavar="COMMAND", help=every)(command)


def _event_names(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> frozenset[str] | None:
    if value is None:
        return None
    names = frozenset(name.strip() for name in value.split(","))
    if unknown := sorted(names.difference(KINDS)):
        told = ", ".join(map(repr, unknown))
        raise click.BadParameter(f"no such event: {told}; there are {', '.join(KINDS)}")
    return names


def _command(command: str | None, option: str) -> CommandSink | None:
    if not command:
        return None
    try:
        return CommandSink(command)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error
