"""The command ``aiotimer serve``, and the hidden one that supervises a private server.

The law of this file: whatever could hold up the server's loop is behind a sink of ``server/sinks.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Collection
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from ..events import KINDS, Event, log
from ..server.sinks import CommandSink, LogSink, PipeSink
from .common import resolve_socket, say
from .group import SERVER, cli, socket_option
from .options import policy_options

if TYPE_CHECKING:
    from ..server.file_timer import FileTimerBridge
    from ..server.server import TimerServer

NO_PRIORITY = (
    "this server has no priority over what it watches: when all processors are busy it may be late, too"
    " (it takes a nice value of -10 where it may: as root, with CAP_SYS_NICE or LimitNICE=)"
)


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
def serve(
    socket_path: str | None,
    loop_name: str,
    owner: str | None,
    idle_before_end: float | None,
    ready_fd: int | None,
    events_fd: int | None,
    lock_fd: int | None,
    listener_fd: int | None,
    store_fds: tuple[int, int] | None,
    command_fd: int,
    timer_file: str | None,
    timer_fd: int | None,
    on_event: str | None,
    events: frozenset[str] | None,
    **policy: Any,
) -> None:
    """Run the timer server until SIGTERM or SIGINT.

    Prints one line when it is ready; everything that happens afterwards is a line on standard error.
    Stopping or killing it loses nothing: timers stay armed, the next server on the same socket goes on.
    """
    from .._linux.descriptor_store import DescriptorStore
    from ..server.rights import drop_capabilities, raise_priority
    from ..server.server import IDLE_BEFORE_END, OwnedServer, TimerServer, own_process

    has_priority = raise_priority()
    drop_capabilities()  # before there are threads, that of the log for one
    log_sink = LogSink()
    logging.basicConfig(format="aiotimer: %(message)s", level=logging.INFO, handlers=[log_sink])
    path = resolve_socket(socket_path)
    sinks = EventSinks(events_fd, on_event, events)
    if owner is None:
        server = TimerServer(path, on_event=sinks, **policy)
    else:
        place = None if lock_fd is None else (lock_fd, listener_fd)
        idle = IDLE_BEFORE_END if idle_before_end is None else idle_before_end
        store = DescriptorStore.inherit(*store_fds) if store_fds else None
        server = OwnedServer(path, owner, sinks, log_sink.then, place, idle, store, command_fd, **policy)
    own_process(server)
    factory = asyncio.new_event_loop
    if loop_name == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            note = "" if has_priority else NO_PRIORITY
            bridge = _bridge(server, timer_file, timer_fd)
            runner.run(serve_until_told(server, loop_name, ready_fd, note, bridge, quiet=owner is not None))
    finally:
        sinks.close()
        log_sink.leave(LEAVE_WITHIN)


def _bridge(server: TimerServer, path: str | None, descriptor: int | None) -> FileTimerBridge | None:
    """Return what serves the pipe of torch's file timer, if that is wanted."""
    if path is None and descriptor is None:
        return None
    from ..server.file_timer import FileTimerBridge

    return (
        FileTimerBridge(server, path or "")
        if descriptor is None
        else FileTimerBridge.inherit(server, descriptor)
    )


async def serve_until_told(
    server: TimerServer,
    loop_name: str,
    ready_fd: int | None,
    note: str,
    bridge: FileTimerBridge | None = None,
    *,
    quiet: bool,
) -> None:
    """Run a server until a signal stops it.

    Args:
        server: which has not been started.
        loop_name: of the running event loop's kind.
        ready_fd: of a pipe, told and closed when it serves.
        note: is logged then, unless it is "".
        bridge: serves over it meanwhile.
        quiet: a supervisor has started it: standard output is the command's, and nothing is noted.
    """
    loop = asyncio.get_running_loop()
    async with server, nullcontext() if bridge is None else bridge:
        stopping: list[asyncio.Task[None]] = []
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, lambda: stopping.append(loop.create_task(server.stop())))
        if ready_fd is not None:
            os.write(ready_fd, b"\n")
            os.close(ready_fd)
        if not quiet:
            if note:
                log.info(note)
            say(f"aiotimer: serving on {server.socket_path} (pid {os.getpid()}, {loop_name})")
        await server.serve_forever()


@cli.command(hidden=True)
@click.option("--socket", "socket_path", required=True)
@click.option("--owner", required=True)
@click.option("--ready-fd", type=int, required=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def watchdog(socket_path: str, owner: str, ready_fd: int, arguments: tuple[str, ...]) -> int:
    """Supervise the private server of a process."""
    from .._linux.requirements import check_requirements
    from .supervisor import supervise

    check_requirements()
    return supervise(socket_path, owner, ready_fd, arguments)
