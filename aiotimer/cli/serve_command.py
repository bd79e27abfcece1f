"""A runner of a server in the foreground: what ``aiotimer serve`` does, and who is told of its events.

The laws of this file:

* Whatever could hold up the server's loop is behind a sink of ``server/sinks.py``.
* A server that ``aiotimer run``, a supervisor or a service manager starts needs no click: what is plain is
  parsed here, and means what it means to click. A worker may be waiting for that server.
* The collector of garbage rests while the server is imported: that stays, and then the server has its own.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._linux.paths import OBSERVE_VARIABLE
from ..events import KINDS, Event, log
from ..server.policy import Policy
from ..server.sinks import CommandSink, LogSink, PipeSink
from .common import resolve_socket, say

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
    """The sinks of a server's events besides the log.

    Args:
        events_fd: of a pipe for JSON lines; None: no pipe.
        on_event: runs a command for events; None: no command.
        events: for which kinds of them; None: for all.
    """

    def __init__(
        self, events_fd: int | None, on_event: CommandSink | None, events: Collection[str] | None = None
    ) -> None:
        self._pipe = None if events_fd is None else PipeSink(events_fd)
        self._on_event = on_event
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


_PLAIN: dict[str, tuple[str, Callable[[str], Any], int]] = {
    "--socket": ("socket_path", str, 1),
    "--loop": ("loop_name", {"uvloop": "uvloop", "asyncio": "asyncio"}.__getitem__, 1),
    "--reap": ("reap", str, 1),
    "--target": ("target", str, 1),
    "--on-expiry": ("on_expiry", str, 1),
    "--evidence-dir": ("evidence_dir", str, 1),
    "--owner": ("owner", str, 1),
    "--idle-before-end": ("idle_before_end", float, 1),
    "--ready-fd": ("ready_fd", int, 1),
    "--events-fd": ("events_fd", int, 1),
    "--lock-fd": ("lock_fd", int, 1),
    "--listener-fd": ("listener_fd", int, 1),
    "--store-fds": ("store_fds", int, 2),
    "--command-fd": ("command_fd", int, 1),
    "--torch-timer-fd": ("timer_fd", int, 1),
}
"""The options that are plain: under which name :func:`serve` takes them, as what, and how many values."""

_OF_THE_POLICY = ("reap", "target", "on_expiry", "observe")


def plain(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return what arguments of ``aiotimer serve`` mean, for :func:`serve`; None: that is click's to say."""
    if OBSERVE_VARIABLE in os.environ:  # what of it means yes?
        return None
    found: dict[str, Any] = {}
    left = [*reversed(arguments)]
    try:
        while left:
            option = left.pop()
            if option == "--observe":
                found["observe"] = True
                continue
            name, kind, count = _PLAIN[option]
            if any(text.startswith("-") for text in left[-count:]):
                return None
            values = [kind(left.pop()) for _ in range(count)]
            found[name] = tuple(values) if count > 1 else values[0]
        Policy(**{name: found[name] for name in _OF_THE_POLICY if name in found})
    except (LookupError, ValueError):
        return None
    return None if os.path.isfile(found.get("evidence_dir", "")) else found


def serve(
    socket_path: str | None = None,
    *,
    loop_name: str = "uvloop",
    owner: str | None = None,
    idle_before_end: float | None = None,
    ready_fd: int | None = None,
    events_fd: int | None = None,
    lock_fd: int | None = None,
    listener_fd: int | None = None,
    store_fds: tuple[int, int] | None = None,
    command_fd: int = -1,
    timer_file: str | None = None,
    timer_fd: int | None = None,
    on_event: Callable[[], CommandSink | None] = lambda: None,
    events: Collection[str] | None = None,
    **policy: Any,
) -> None:
    """Run a server until it is told to end.

    Args:
        on_event: makes what runs a command for events.
        policy: the keyword arguments of ``TimerServer``.

    The others are the command's options.
    """
    gc.disable()
    from .._linux.descriptor_store import DescriptorStore
    from ..server.rights import drop_capabilities, raise_priority
    from ..server.server import IDLE_BEFORE_END, OwnedServer, TimerServer, own_process

    has_priority = raise_priority()
    drop_capabilities()  # before there are threads, that of the log for one
    log_sink = LogSink()
    logging.basicConfig(format="aiotimer: %(message)s", level=logging.INFO, handlers=[log_sink])
    path = resolve_socket(socket_path)
    sinks = EventSinks(events_fd, on_event(), events)
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
