"""The command ``aiotimer serve``, and the hidden one that supervises a private server.

The law of this file: whatever could hold up the server's loop is behind a sink of ``server/sinks.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import click

from .common import resolve_socket
from .group import cli, socket_option
from .options import policy_options
from .sinks import LEAVE_WITHIN, EventSinks, event_options

if TYPE_CHECKING:
    from ..server.server import TimerServer


@cli.command(short_help="Run the timer server.")
@socket_option
@click.option(
    "--loop", "loop_name", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", show_default=True,
    help="The event loop to run on.",
)  # fmt: skip
@policy_options
@event_options
@click.option("--owner", metavar="PID:START", hidden=True)
@click.option("--idle-before-end", type=float, metavar="SECONDS", hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--events-fd", type=int, hidden=True)
@click.option("--lock-fd", type=int, hidden=True)
@click.option("--listener-fd", type=int, hidden=True)
def serve(
    socket_path: str | None,
    loop_name: str,
    owner: str | None,
    idle_before_end: float | None,
    ready_fd: int | None,
    events_fd: int | None,
    lock_fd: int | None,
    listener_fd: int | None,
    on_event: str | None,
    events: frozenset[str] | None,
    **policy: Any,
) -> None:
    """Run the timer server until SIGTERM or SIGINT.

    Prints one line when it is ready; everything that happens afterwards is a line on standard error.
    Stopping or killing it loses nothing: timers stay armed, the next server on the same socket goes on.
    """
    from ..server.rights import drop_capabilities
    from ..server.server import IDLE_BEFORE_END, OwnedServer, TimerServer
    from ..server.sinks import LogSink

    drop_capabilities()  # before there are threads, that of the log for one
    log_sink = LogSink()
    logging.basicConfig(format="aiotimer: %(message)s", level=logging.INFO, handlers=[log_sink])
    path = resolve_socket(socket_path)
    sinks = EventSinks(events_fd, on_event, events)
    if owner is None:
        server = TimerServer(path, on_event=sinks, **policy)
    else:
        place = None if lock_fd is None or listener_fd is None else (lock_fd, listener_fd)
        idle = IDLE_BEFORE_END if idle_before_end is None else idle_before_end
        server = OwnedServer(path, owner, sinks, log_sink.then, place, idle, **policy)
    factory = asyncio.new_event_loop
    if loop_name == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(server, loop_name, ready_fd, quiet=owner is not None))
    finally:
        sinks.close()
        log_sink.leave(LEAVE_WITHIN)


async def _serve(server: TimerServer, loop_name: str, ready_fd: int | None, *, quiet: bool) -> None:
    loop = asyncio.get_running_loop()
    await server.start()
    stopping: list[asyncio.Task[None]] = []
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, lambda: stopping.append(loop.create_task(server.stop())))
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
        os.close(ready_fd)
    if not quiet:  # standard output is the command's, not ours, when a supervisor started us
        click.echo(f"aiotimer: serving on {server.socket_path} (pid {os.getpid()}, {loop_name})")
    await server.serve_forever()


@cli.command(hidden=True)
@click.option("--socket", "socket_path", required=True)
@click.option("--owner", required=True)
@click.option("--ready-fd", type=int, required=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def watchdog(socket_path: str, owner: str, ready_fd: int, arguments: tuple[str, ...]) -> int:
    """Supervise the private server of a process."""
    from .supervisor import supervise

    return supervise(socket_path, owner, ready_fd, arguments)
