"""The private watchdog: a supervised server for a process that has none configured.

The laws of this file:

* It is nobody's child: an intermediate process starts it and exits, so that its founder's ``os.wait()`` never
  sees it. It has its own session: a terminal's Ctrl-C does not end it.
* It serves its founder and all its descendants, which find it by ``$AIOTIMER_SOCKET``.
* It ends when its founder is gone and no worker has been connected for ten seconds. It writes to its
  founder's standard error, and lets go of that as soon as the founder is gone.
"""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from . import runtime
from ._core.requests import WorkerId
from .errors import ServerUnavailable
from .events import Event
from .process import pin
from .server import TimerServer
from .supervise import SupervisedServer, founder_argument, python_command, python_environment

LINGER = 10.0
"""Seconds without a connected worker, after the founder has gone, before the server ends."""

_FORK_AND_EXEC = "import os, sys; os.fork() or os.execve(sys.argv[1], sys.argv[1:], os.environ)"


def found(arguments: tuple[str, ...] = ()) -> tuple[str, int]:
    """Start a private watchdog for this process and do not wait for it.

    Args:
        arguments: further ones of ``aiotimer serve``.

    Returns:
        Its socket, and a descriptor that becomes readable when it serves (or has failed: end of file).

    Raises:
        ServerUnavailable: it cannot be started.
        UnsafePath: there is no place for its socket.
    """
    name = f"private-{os.getpid()}-{monotonic_ns() % 10**9}.sock"
    socket_path = runtime.check_socket_path(str(runtime.base() / name))
    ready, child_end = os.pipe()
    command = python_command(
        "watchdog", "--socket", socket_path, "--founder", founder_argument(), "--ready-fd", str(child_end),
        "--", *arguments,
    )  # fmt: skip
    try:
        subprocess.run(  # the intermediate is gone when this returns
            [sys.executable, "-I", "-S", "-c", _FORK_AND_EXEC, *command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=python_environment(),
            pass_fds=(child_end,),
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        os.close(ready)
        raise ServerUnavailable(socket_path, f"the private watchdog cannot be started: {error}") from error
    finally:
        os.close(child_end)
    return socket_path, ready


def watch_over(socket_path: str, founder: str, ready: int, arguments: tuple[str, ...] = ()) -> int:
    """Be the watchdog's supervisor: start the server, restart it when it dies.

    Returns:
        The exit status: 0 when the server ended because nobody needs it any more.
    """
    os.chdir("/")  # keep no file system busy
    server = SupervisedServer(socket_path, ("--founder", founder, *arguments))
    server.start()
    os.write(ready, b"\n")
    os.close(ready)
    founder_pidfd = _pin(founder)
    if founder_pidfd is None:
        _let_go_of_stderr()
    while True:
        pidfd = os.pidfd_open(server.pid)
        wanted = [pidfd] if founder_pidfd is None else [pidfd, founder_pidfd]
        readable = select.select(wanted, [], [])[0]
        os.close(pidfd)
        if founder_pidfd is not None and founder_pidfd in readable:
            os.close(founder_pidfd)
            founder_pidfd = None
            _let_go_of_stderr()
        if pidfd in readable:
            status = os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1])
            if not server.reaped(status):
                return status


class FoundedServer(TimerServer):
    """A server that ends when the process it was started for is gone and nobody needs it any more.

    Args:
        socket_path: where to listen.
        founder: ``pid:start-time`` of that process.
        on_event: see ``TimerServer``.
        when_written: calls what it is given as soon as all that has been logged is written.
        policy: see ``TimerServer``.
    """

    def __init__(
        self,
        socket_path: str,
        founder: str,
        on_event: Callable[[Event], object] | None = None,
        when_written: Callable[[Callable[[], object]], object] = lambda action: action(),
        **policy: Any,
    ) -> None:
        super().__init__(socket_path, on_event=on_event, **policy)
        self._when_written = when_written
        self._founder_pidfd = _pin(founder)
        self._ending: asyncio.TimerHandle | asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start, and watch the founder."""
        await super().start()
        if self._founder_pidfd is None:
            self.founder_gone()
        else:
            self._loop.add_reader(self._founder_pidfd, self.founder_gone)

    async def stop(self) -> None:
        """Stop; if nobody is left, leave nothing behind."""
        if isinstance(self._ending, asyncio.TimerHandle):
            self._ending.cancel()
        last = self._founder_pidfd is None and self.idle_s() >= LINGER
        self._close_founder()
        await super().stop()
        if last:
            from . import leftovers  # a worker that founds a server imports this module, and needs none of it

            leftovers.discard(self.socket_path)

    def founder_gone(self) -> None:
        """The founder is dead, or does not want this server any more."""
        self._close_founder()
        self._when_written(_let_go_of_stderr)
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        left = LINGER - self.idle_s()
        if left > 0:
            self._ending = self._loop.call_later(left, self._end_when_idle)
        else:
            self._ending = self._loop.create_task(self.stop())

    def _close_founder(self) -> None:
        if self._founder_pidfd is not None:
            self._loop.remove_reader(self._founder_pidfd)
            os.close(self._founder_pidfd)
            self._founder_pidfd = None


def _pin(founder: str) -> int | None:
    """Return a pidfd of the process that ``pid:start-time`` names, None if it is gone."""
    pid, started = map(int, founder.split(":"))
    try:
        found_id, pidfd = pin(pid)
    except ProcessLookupError:
        return None
    if found_id != WorkerId(pid, started):
        os.close(pidfd)
        return None
    return pidfd


def _let_go_of_stderr() -> None:
    """Hold nobody's pipe open: whoever reads the founder's output waits for its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
