"""A bridge from torch's file timer: it reads the named pipe that ``FileTimerClient`` writes requests into.

Programs that use that timer are watched without a change, at their deadline and with evidence. Torch itself
is not needed.

The laws of this file:

* The pipe is this user's own, and nobody else may open it. Whoever may has the rights of this user anyway; so
  a request may name any process of this user, and is refused for every other one, and for the server itself.
* A process is pinned before anything is armed on it, and is signalled as any worker is. One that is gone by
  then is passed over: its timers are moot.
* A line that is no request is refused, which is told as refusals are, and counts for nothing else.
* Of the requests that are read together the newest for each timer counts: a release that was written in time
  is not carried out too late because there is an acquire before it.
* Reading goes on only when what has been read is carried out, a line at a time, in the server's work queue.
  So the pipe holds back who writes too much, and no look waits for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import time
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from .._core.file_timer import FileTimerRequest, LineDecoder, monotonic_deadline
from .._core.ladder import DUMP, KILL, ReapGrant, name_of
from .._core.requests import RELEASE
from .._linux.paths import check_above
from ..errors import AiotimerError, AlreadyServing, UnsafePath
from ..events import Event

if TYPE_CHECKING:
    from typing import Self

    from .server import TimerServer
    from .slices import Steps
    from .worker import Worker

GRACE = 30.0
"""Seconds that a worker has which asks for another signal than SIGKILL, if the server allows so many."""

_MOST_AT_ONCE = 65_536
_CAPACITY = 1_048_576
"""Bytes that the pipe may hold: what an unprivileged process may ask for (/proc/sys/fs/pipe-max-size)."""

_SIGNALLED, _OBSERVED = 0, -1
"""Ordinals of keyed timers: of those for which a worker is reaped, and for which nobody is signalled."""


def open_pipe(path: str) -> int:
    """Return a descriptor of the named pipe at a path, which is made if need be; nobody else may serve it.

    It is open for writing, too: so a pipe that nobody writes into at the moment is not at its end.

    Raises:
        UnsafePath: there is something else, or others could put something else there.
        AlreadyServing: another process serves it.
    """
    try:
        check_above(Path(path))
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise UnsafePath(f"there can be no timer file at {path}: {error.strerror}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISFIFO(facts.st_mode):
            raise UnsafePath(f"{path} is no named pipe, and is left alone")
        if facts.st_uid != os.geteuid():
            raise UnsafePath(f"{path} belongs to uid {facts.st_uid}, not to {os.geteuid()}")
        _claim(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _claim(descriptor: int, path: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyServing(f"another process serves the timer file {path}") from None
    os.fchmod(descriptor, 0o600)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _CAPACITY)
    except OSError:
        pass  # this user has too many pipes: it holds less, and writers are refused sooner


def remove_pipe(descriptor: int, path: str) -> None:
    """Remove the name of a pipe, if it is still that one's, and close it."""
    try:
        if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
            os.unlink(path)
    except OSError:
        pass  # it has been removed already, or may not be
    os.close(descriptor)


class FileTimerBridge:
    """Serves the named pipe of ``torch.distributed.elastic.timer.FileTimerClient``, over a timer server.

    Use it in ``async with``, inside that of the server and in its loop. It replaces ``FileTimerServer``, and
    does not end its own process after a worker's.

    A request with the signal SIGKILL, which is the client's default, has its worker reaped as the server does
    it; one with another signal, in the steps ``dump,SIGNAL:30,KILL``; one with the signal 0 or a negative one
    is observed: nobody is signalled.

    Args:
        server: which has been started.
        path: of the pipe, as in ``$TORCHELASTIC_TIMER_FILE``; it is made if it is not there, and removed at
            the end.

    Attributes:
        path: of the pipe.

    Raises:
        UnsafePath: there is something else at that path, or others could put something else there.
        AlreadyServing: another process serves that pipe.
    """

    def __init__(self, server: TimerServer, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self._server = server
        self._decoder = LineDecoder()
        self._descriptor = -1
        self._is_inherited = False
        self._loop: asyncio.AbstractEventLoop

    @classmethod
    def inherit(cls, server: TimerServer, descriptor: int) -> Self:
        """Return one for a pipe that is there already, and is removed by whoever made it."""
        bridge = cls(server, "")
        bridge._descriptor, bridge._is_inherited = descriptor, True
        return bridge

    async def __aenter__(self) -> Self:
        """Make the pipe, and read from it."""
        if self._descriptor < 0:
            self._descriptor = open_pipe(self.path)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)
        return self

    async def __aexit__(self, *_raised: object) -> None:
        """Remove the pipe. What has been armed stays so."""
        self._loop.remove_reader(self._descriptor)
        descriptor, self._descriptor = self._descriptor, -1
        if self._is_inherited:
            os.close(descriptor)
        else:
            remove_pipe(descriptor, self.path)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _MOST_AT_ONCE)
        except BlockingIOError:
            return
        wall, now = time.time(), monotonic()  # noqa: TID251 - the file timer's clock; from here on it is ours
        self._loop.remove_reader(self._descriptor)
        self._server._queue.take_turn(self._carry_out(data, wall, now))

    def _carry_out(self, data: bytes, wall: float, now: float) -> Steps[None]:
        """Carry out what has been read, then read on.

        Args:
            wall, now: when it was read, on the wall clock and on ours.
        """
        newest: dict[tuple[int, str], FileTimerRequest] = {}
        for found in self._decoder.feed(data):
            if isinstance(found, str):
                self._refuse(found)
            else:
                newest.pop((found.pid, found.scope), None)
                newest[found.pid, found.scope] = found
            yield
        for request in newest.values():
            if self._descriptor < 0 or self._server._lock is None:
                return  # one of the two has been stopped
            try:
                self._apply(request, monotonic_deadline(request.expiration_time, wall=wall, now=now))
            except (AiotimerError, OSError) as error:
                self._refuse(f"no timer of a file timer is armed: {error}")
            yield
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._read)

    def _refuse(self, reason: str) -> None:
        self._server._reporter.refused(None, Event("refused", detail=reason))

    def _apply(self, request: FileTimerRequest, deadline: float) -> None:
        """Arm or release a timer.

        Raises:
            PermissionError: it is on a process of another user's, or on this one.
            AiotimerError, OSError: it cannot be armed.
        """
        registry = self._server._registry
        if deadline < 0.0:
            worker = registry.find(request.pid)
            if worker is not None and "owner" in worker.own_tables:
                self._set(worker, request.scope, _SIGNALLED, deadline)
                self._set(worker, request.scope, _OBSERVED, deadline)
            return
        if request.pid == os.getpid():
            raise PermissionError("the request names the server itself")
        worker = registry.register_for_owner([request.pid]).get(request.pid)
        if worker is None:
            return
        is_signalled = request.signal > 0
        if is_signalled:
            self._ask_for(worker, request.signal)
        self._set(worker, request.scope, _SIGNALLED if is_signalled else _OBSERVED, deadline)
        self._set(worker, request.scope, _OBSERVED if is_signalled else _SIGNALLED, RELEASE)

    def _set(self, worker: Worker, scope: str, ordinal: int, deadline: float) -> None:
        table, cells = self._server._registry.own_table(worker, "owner")
        if cells.set((scope, ordinal), deadline, monotonic()):
            table.rung(deadline)

    def _ask_for(self, worker: Worker, number: int) -> None:
        """Have a worker sent that signal before SIGKILL, unless it has a client of ours, which asks."""
        if any(table.file.kind != "owner" for table in worker.tables):
            return
        policy = self._server._policy
        worker.reap_grant = ReapGrant()
        if number != KILL:
            first = "dump," if DUMP in policy.ladder else ""
            try:
                ladder = f"{first}{name_of(number)}:{min(GRACE, policy.max_grace):g},KILL"
                worker.reap_grant = policy.reap_grant(ladder, observe=False)
            except (KeyError, ValueError):
                pass  # no ladder has such a step, or this server gives no grace
