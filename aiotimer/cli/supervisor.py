"""A supervisor: it keeps the server process of ``aiotimer run``, or of ``configure``, alive.

The laws of this file: a server that dies is started again at once, because a restart loses nothing; one that
ends on purpose (exit status 0) or cannot start (a status of :class:`~aiotimer.errors.ServerError`) is not.
A server's socket may be there before the server: see :class:`Place`. What a table without a name is known by,
its descriptor, waits here for the next server.
Children are started with ``posix_spawn``: it restores signals that this process blocks, and it neither
copies this process nor runs Python between fork and exec.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping
from time import monotonic

from .._linux.descriptor_store import DescriptorStore
from .._linux.paths import own_state_directories, remove_if_empty
from .._linux.process import let_go_of_stderr, pin_named
from ..client.launch import python_command, python_environment, wait_ready
from ..errors import AlreadyServing, NewerLayout, UnsafePath
from ..server.listener import BACKLOG, SocketLock, bind

NOT_RESTARTED = frozenset({0, 2, AlreadyServing.exit_code, UnsafePath.exit_code, NewerLayout.exit_code})
"""Exit statuses after which a restart would not help (2: a wrong command line)."""

_CALM = 0.5
"""Seconds that a server lives if it can live at all. The second in a row that does not is not restarted at
once, but after as long a pause."""

_END_WITHIN = 5.0
"""Seconds that a child has to end in when it is asked to."""

_RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals that Python, or a shell's background, may ignore; a child is to find them at their defaults. By
that of SIGTERM a server ends that is still importing."""


def end_child(pid: int) -> None:
    """End a process that is our own child and has not been waited for."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not select.select([pidfd], [], [], _END_WITHIN)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


class Place:
    """The place of a server that is only being started: a socket that is locked, and listens.

    The server inherits both, and goes on with them; from then on this process has neither any more, so that a
    server which dies is noticed, by a refused connection, as ever. The lock is the open file's, not the
    process's: there is no moment between the two in which it is nobody's.

    Raises:
        AlreadyServing, UnsafePath: as for a server.
    """

    def __init__(self, socket_path: str) -> None:
        self._lock = SocketLock(socket_path, inherited=True)
        try:
            self._listener = bind(self._lock, BACKLOG)
        except BaseException:
            self._lock.release()
            raise

    @property
    def descriptors(self) -> dict[str, int]:
        """Of the lock and the listening socket, by the options of ``aiotimer serve``."""
        return {"--lock-fd": self._lock.fileno(), "--listener-fd": self._listener.fileno()}

    def hand_over(self) -> None:
        """The server has taken it."""
        self._listener.close()
        self._lock.release()

    def give_up(self) -> None:
        """No server has taken it, or will: leave nothing behind."""
        self._lock.remove_socket()
        for directory in own_state_directories(self._lock.socket_path):
            remove_if_empty(directory)
        self.hand_over()


class SupervisedServer:
    """A server process, started again when it dies.

    Args:
        socket_path: where it listens.
        arguments: further arguments of ``aiotimer serve``.
        descriptors: what it is to have besides its standard ones.
    """

    def __init__(
        self, socket_path: str, arguments: tuple[str, ...] = (), descriptors: tuple[int, ...] = ()
    ) -> None:
        self.socket_path = socket_path
        self.pid = 0
        self._arguments = arguments
        self._started_at = 0.0
        self._short_lives = 0
        self._store = DescriptorStore.make()
        self._descriptors = descriptors

    def start_under(self, lock: SocketLock) -> None:
        """Start it and wait until it serves.

        Args:
            lock: inherited by it, so that at no moment another server can have the place.

        Raises:
            ServerUnavailable: it does not.
        """
        ready = self.launch({"--lock-fd": lock.fileno()})
        try:
            wait_ready(ready, self.socket_path)
        finally:
            os.close(ready)

    def launch(self, place: Mapping[str, int]) -> int:
        """Start it and do not wait.

        Args:
            place: descriptors for it to take over, by the options of ``aiotimer serve``.

        Returns:
            A descriptor, for the caller to close, from which a byte can be read when it serves; if the stream
            ends without one, it has failed.
        """
        ready, child_end = os.pipe()
        try:
            inherited = {"--ready-fd": child_end, **place}
            options = [text for option, number in inherited.items() for text in (option, str(number))]
            self._spawn(*options, descriptors=tuple(inherited.values()))
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(child_end)
        return ready

    def reaped(self, status: int) -> bool:
        """It has been waited for; start it again unless it ended for good. Returns whether it lives."""
        if status in NOT_RESTARTED:
            self.pid = 0
            return False
        self._short_lives = self._short_lives + 1 if monotonic() - self._started_at < _CALM else 0
        if self._short_lives > 1:
            select.select([], [], [], _CALM)  # it dies as soon as it starts; do not spin
        self._spawn()
        return True

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self.pid:
            pid, self.pid = self.pid, 0
            end_child(pid)

    def _spawn(self, *more: str, descriptors: tuple[int, ...] = ()) -> None:
        self._started_at = monotonic()
        kept = self._store.descriptors
        store = ("--store-fds", *map(str, kept))
        command = python_command("serve", "--socket", self.socket_path, *self._arguments, *store, *more)
        inherited = (*self._descriptors, *kept, *descriptors)
        try:
            for descriptor in inherited:  # only now: what else this process starts must not have them
                os.set_inheritable(descriptor, True)
            self.pid = os.posix_spawn(
                command[0], command, python_environment(), setsigmask=(), setsigdef=_RESET, setsid=True
            )
        finally:
            for descriptor in inherited:
                os.set_inheritable(descriptor, False)


def supervise(socket_path: str, owner: str, ready: int, arguments: tuple[str, ...] = ()) -> int:
    """Supervise a private server: start it, and restart it when it dies.

    Returns:
        The exit status: 0 when the server ended because nobody needs it any more, or another process of the
        tree has started one.
    """
    os.chdir("/")  # keep no file system busy
    try:
        lock = SocketLock(socket_path, inherited=True)
    except AlreadyServing:
        os.write(ready, b"\n")
        return 0
    server = SupervisedServer(socket_path, ("--owner", owner, *arguments))
    server.start_under(lock)
    lock.release()
    os.write(ready, b"\n")
    os.close(ready)
    owner_pidfd = pin_named(owner)
    if owner_pidfd is None:
        let_go_of_stderr()
    while True:
        pidfd = os.pidfd_open(server.pid)
        wanted = [pidfd] if owner_pidfd is None else [pidfd, owner_pidfd]
        readable = select.select(wanted, [], [])[0]
        os.close(pidfd)
        if owner_pidfd is not None and owner_pidfd in readable:
            os.close(owner_pidfd)
            owner_pidfd = None
            let_go_of_stderr()
        if pidfd in readable:
            status = os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1])
            if not server.reaped(status):
                return status
