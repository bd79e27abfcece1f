"""The command ``aiotimer serve``, as click parses it; ``serve_command`` carries it out."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import click

from ..events import KINDS
from ..server.sinks import CommandSink
from . import serve_command
from .group import SERVER, cli, socket_option
from .options import policy_options


def event_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add ``--on-event`` and ``--events``, for ``aiotimer serve``."""
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


def command_sink(command: str | None, option: str) -> CommandSink | None:
    """Return what runs a command for events; None: there is none to run.

    Raises:
        click.BadParameter: that is no command.
    """
    if not command:
        return None
    try:
        sink = CommandSink(command)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error
    if shutil.which(sink.name) is None:
        raise click.BadParameter(f"there is no command {sink.name!r} to run", param_hint=option)
    return sink


@cli.command(short_help="Run the timer server.")
@socket_option(SERVER)
@click.option(
    "--loop", "loop_name", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", show_default=True,
    help="The event loop to run on.",
)  # fmt: skip
@policy_options
@click.option(
    "--torch-timer-file", "timer_file", type=click.Path(), metavar="PATH",
    help="Serve the named pipe of torch's FileTimerClient, too.",
)  # fmt: skip
@event_options
@click.option("--owner", metavar="PID:START", hidden=True)
@click.option("--idle-before-end", type=float, metavar="SECONDS", hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--events-fd", type=int, hidden=True)
@click.option("--lock-fd", type=int, hidden=True)
@click.option("--listener-fd", type=int, hidden=True)
@click.option("--store-fds", type=int, nargs=2, hidden=True)
@click.option("--command-fd", type=int, default=-1, hidden=True)
@click.option("--torch-timer-fd", "timer_fd", type=int, hidden=True)
def serve(on_event: str | None, events: frozenset[str] | None, **options: Any) -> None:
    """Run the timer server until SIGTERM or SIGINT.

    Prints one line when it is ready; everything that happens afterwards is a line on standard error.
    Stopping or killing it loses nothing: timers stay armed, the next server on the same socket goes on.
    """
    if events is not None and on_event is None:
        raise click.UsageError("--events chooses for which events --on-event runs its command; give that too")
    serve_command.serve(on_event=partial(command_sink, on_event, "--on-event"), events=events, **options)
