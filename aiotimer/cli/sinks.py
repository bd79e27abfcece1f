"""Sinks of a server process: a log and a pipe, which may both be full for ever, and a command.

The laws of this file: the server's loop never waits for a reader. What does not fit into a bounded queue is
dropped and counted, and the count is said as soon as lines are taken again. At the end of the server, what is
queued still gets out, within a bound.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Collection
from time import monotonic

import click

from ..events import KINDS, Event, log
from ..server.sinks import CommandSink

CAPACITY = 1000
"""Lines that wait for the sink: a storm of reaps, in full."""

LEAVE_WITHIN = 1.0
"""Seconds that a server which ends gives its sink to take the last lines."""

COMMAND_WITHIN = 2.0
"""Seconds that it gives the command to take the last events: a supervisor waits five for the server's end."""


class LogSink(logging.Handler):
    """A log handler that queues lines for a thread, which writes them to a descriptor and may be blocked.

    Args:
        descriptor: where to.
        capacity: how many lines may wait.

    Attributes:
        dropped: how many lines were dropped and have not been told of.
    """

    def __init__(self, descriptor: int = 2, capacity: int = CAPACITY) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._capacity = capacity
        self._lines: deque[str | Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._idle = True
        self._ended = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line. Never waits for the sink."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler: logging decides what is said of it
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= self._capacity or self._ended:
                self.dropped += 1
                return
            self._tell_dropped()
            self._lines.append(line)
            self._idle = False
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_lines, name="aiotimer-log", daemon=True)
                self._thread.start()

    def then(self, action: Callable[[], object]) -> None:
        """Do something as soon as every line so far is written: at once, or in the thread that writes."""
        with self._changed:
            if self._idle:
                action()
            else:
                self._lines.append(action)
                self._changed.notify_all()

    def leave(self, within: float = LEAVE_WITHIN) -> bool:
        """Wait until everything is written, for so many seconds at most; return whether it is."""
        until = monotonic() + within
        with self._changed:
            while not self._idle and (left := until - monotonic()) > 0:
                self._changed.wait(left)
            self._ended = True
            return self._idle

    def _tell_dropped(self) -> None:
        if self.dropped:
            self._lines.append(f"aiotimer: {self.dropped} log lines dropped: nobody took them")
            self.dropped = 0

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._tell_dropped()
                    if not self._lines:
                        self._idle = True
                        self._changed.notify_all()
                        self._changed.wait()
                line = self._lines.popleft()
            with contextlib.suppress(OSError):  # the reader is gone: a server is not stopped by that
                if isinstance(line, str):
                    self._write(line.encode(errors="backslashreplace") + b"\n")
                else:
                    line()

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


class PipeSink:
    """A sink that writes events as JSON lines into a pipe, and drops what a full one does not take.

    Args:
        descriptor: of the pipe; it becomes non-blocking.

    Attributes:
        dropped: how many events were dropped and have not been told of.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self.dropped = 0

    def __call__(self, event: Event) -> None:
        """Write one event."""
        line = _as_line(event)
        if len(line) > select.PIPE_BUF:  # a longer one might be written in part
            line = _as_line(event._replace(detail="", verdict=""))
        try:
            os.write(self._descriptor, line)
        except (BlockingIOError, BrokenPipeError):
            self.dropped += 1
            return
        if self.dropped:
            count, self.dropped = self.dropped, 0
            log.warning("%d events dropped: nobody read them", count)


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
        if self._pipe is not None:
            self._pipe(event)
        if self._on_event is not None and event.event in self._events:
            self._on_event(event.as_json())

    def close(self, within: float = COMMAND_WITHIN) -> None:
        """Let the command take what waits, for so many seconds at most."""
        if self._on_event is not None:
            self._on_event.close(within)


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


def _as_line(event: Event) -> bytes:
    return json.dumps(event.as_json()).encode() + b"\n"
