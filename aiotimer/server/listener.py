"""A listener: the lock of a server's socket, the socket itself, and what stays of a private one.

The laws of this file:

* One server per socket, which is whoever holds the lock on ``SOCKET.lock``; the kernel drops it with its
  holder. It is a POSIX lock, which no child inherits; or the open file's, which the server takes over from
  ``aiotimer run``. Stale files are removed only under that lock. Sockets are 0600.
* Lock and socket may be removed under a server, and another one may start: whoever removes a socket checks
  that it is its own.
* Private servers (of ``aiotimer run``, of ``configure()``) leave no socket, no lock and no tables. If a timer
  expired, their history and evidence stay, so that ``aiotimer why`` works at 3 a.m. At most :data:`KEEP` such
  directories stay per user; the oldest go.
* What others left is touched only if its server cannot come back: its owner is gone and no worker of it
  lives, or there is no place for its socket any more. POSIX locks are the process's: one that serves a
  private socket itself must not remove what is orphaned.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
from pathlib import Path

from .._linux import paths, table_files
from .._linux.process import peer_of, pin
from .._linux.procfs import is_taken
from ..errors import AlreadyServing, HistoryUnreadable, ServerError, UnsafePath

BACKLOG = 4096
"""The listen backlog (capped by net.core.somaxconn): as many workers may start at once."""

_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""A ``struct flock`` (fcntl_locking(2))."""

KEEP = 20
"""Directories of ended servers that are kept per user."""

_PRIVATE = re.compile(r"(?:run|private)-(\d{1,9})\b.*\.sock", re.ASCII)
"""The sockets of private servers, in the runtime directory, and the pid of their owner."""


class SocketLock:
    """The right to serve a socket, held until :meth:`release` or the end of the process.

    Args:
        socket_path: the socket's.
        inherited: hold it by an open file (``F_OFD_SETLK``), which a child may inherit: until nobody has it
            open any more. Locks of the two kinds exclude one another.

    Raises:
        AlreadyServing: another server holds it.
        UnsafePath: the socket's directory cannot be used.
    """

    def __init__(self, socket_path: str, *, inherited: bool = False) -> None:
        self.socket_path = socket_path
        self._socket: tuple[int, ...] | None = None
        path = socket_path + ".lock"
        try:
            paths.make_directories(Path(path).parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise UnsafePath(f"cannot use {path}: {error.strerror}") from error
        try:
            if inherited:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
            else:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise AlreadyServing(f"another timer server is serving {socket_path}") from None
            raise UnsafePath(f"cannot lock {path}: {error.strerror}") from error

    @classmethod
    def inherit(cls, socket_path: str, descriptor: int) -> SocketLock:
        """Return a lock that this process has inherited."""
        lock = cls.__new__(cls)
        lock.socket_path, lock._descriptor, lock._socket = socket_path, descriptor, None
        os.set_inheritable(descriptor, False)
        return lock

    def fileno(self) -> int:
        """Return the descriptor of the lock file."""
        return self._descriptor

    def is_in_place(self) -> bool:
        """Whether the lock file is still the one at its path."""
        there, ours = _file_at(self.socket_path + ".lock"), os.fstat(self._descriptor)
        return there is not None and there[:2] == (ours.st_dev, ours.st_ino)

    def claim(self) -> None:
        """What is at the path now is the socket of whoever holds this lock."""
        self._socket = _file_at(self.socket_path)

    def owns_socket(self) -> bool:
        """Whether the socket at the path is still the one that was claimed."""
        there = _file_at(self.socket_path)
        if there is None or self._socket is None or there == self._socket:
            return there is not None and there == self._socket
        if there[:2] != self._socket[:2] or not _is_our_own(self.socket_path):
            return False
        self._socket = there  # somebody has touched it
        return True

    def remove_socket(self) -> None:
        """Remove the socket, if it is still the one that was claimed."""
        if self.owns_socket():
            with contextlib.suppress(OSError):
                os.unlink(self.socket_path)

    def release(self) -> None:
        """Give the lock up. The lock file stays: removing it would let two servers hold 'the' lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def bind(lock: SocketLock, backlog: int) -> socket.socket:
    """Return the listening socket of the lock's path, replacing a stale file there.

    Raises:
        AlreadyServing: somebody listens there.
        UnsafePath: the path is something else than a socket, or cannot be bound.
    """
    path = lock.socket_path
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(backlog)
        lock.claim()
    except OSError as error:
        listener.close()
        raise UnsafePath(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _file_at(path: str) -> tuple[int, ...] | None:
    """Return what tells a file from the next one at its path, which may be given the same number."""
    try:
        file = os.lstat(path)
    except OSError:
        return None
    return file.st_dev, file.st_ino, file.st_mtime_ns


def _is_our_own(path: str) -> bool:
    """Whether this process listens at a path; True if that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
            return peer_of(probe)[0] == os.getpid()
        except BlockingIOError:  # alive, with a full backlog
            return True
        except OSError:
            return False


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UnsafePath(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:  # EAGAIN: alive, with a full backlog
                raise UnsafePath(f"cannot tell who owns {path}: {error.strerror}") from error
    raise AlreadyServing(f"somebody else is listening on {path}")


# -- cleanup -----------------------------------------------------------------------------------------------


def clean_up(socket_path: str) -> None:
    """Remove what belongs to a private socket that nobody will serve again, but what was found out.

    If its directory was removed under the server, that has made another one since, and the former again.
    """
    own = paths.own_state_directories(socket_path)
    former = [one for one in paths.state_directories(socket_path) if one not in own and _is_orphaned(one)]
    _clean_up(socket_path, own + former)
    remove_orphaned()


def _clean_up(socket_path: str, directories: list[Path]) -> None:
    """Remove what belongs to a socket, unless somebody serves there."""
    if not os.path.isdir(os.path.dirname(socket_path)):
        return
    try:
        lock = SocketLock(socket_path)
    except ServerError:
        return  # it is about to end, or another one has begun there
    try:
        for directory in directories:
            _keep_records_only(directory)
        for file in (socket_path, socket_path + ".lock"):
            with contextlib.suppress(OSError):
                os.unlink(file)
    finally:
        lock.release()


def remove_orphaned() -> None:
    """Remove what servers that died left and nobody needs, and what was kept for long enough."""
    for directory in filter(_is_orphaned, paths.state_directories()):
        _remove_unless_served(directory)
    ended = [d for d in paths.state_directories() if (d / paths.ENDED).exists()]
    ended.sort(key=_ended_at)
    for directory in ended[: max(0, len(ended) - KEEP)]:
        paths.remove_directory(directory)


def tells_of_expiries(directory: Path) -> bool:
    """Whether a state directory has something to say about an expiry."""
    if not any((directory / name).exists() for name in paths.RECORDED):
        return False
    with contextlib.suppress(OSError):
        # Each expiry has a directory that begins with its date; what is unfinished begins with a dot.
        if any(name[:1].isdigit() for name in os.listdir(directory / "evidence")):
            return True
    from . import recorded  # only now: most commands of `aiotimer run` do without

    try:
        return recorded.any_expiry(directory)
    except HistoryUnreadable:
        return False


def _keep_records_only(directory: Path) -> None:
    """Keep what a directory tells, and remove everything else."""
    if not tells_of_expiries(directory):
        paths.remove_directory(directory)
        return
    for path in directory.iterdir():
        if path.name not in paths.NOTES and not path.name.startswith(paths.RECORDED):
            paths.remove(path)
    with contextlib.suppress(OSError):
        paths.end(directory)


def _is_orphaned(directory: Path) -> bool:
    """Whether it is a server's that has not ended in order, and of which no worker is alive."""
    is_marked = (directory / paths.SOCKET).exists()
    return is_marked and paths.can_be_judged(directory) and not _has_living_workers(directory)


def _remove_unless_served(directory: Path) -> None:
    path = paths.socket_of(directory)
    if not path:
        return
    parent, name = os.path.split(path)
    if not os.path.isdir(parent):  # nobody can listen there
        _keep_records_only(directory)
        return
    private = _PRIVATE.match(name)
    if private is None or directory.parent != Path(parent) or is_taken(private[1]):
        return  # one that dies is started again, and must not find its lock taken by us at that moment
    _clean_up(path, [one for one in paths.own_state_directories(path) if one == directory])


def _has_living_workers(directory: Path) -> bool:
    try:
        found, _ = table_files.find_tables(directory)
    except (ServerError, OSError):
        return True  # of a newer aiotimer, perhaps: not ours to judge
    return any(entry.of_this_boot and _lives(entry) for entry in found)


def _lives(entry: table_files.Found) -> bool:
    try:
        worker, pidfd = pin(entry.worker.pid)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    os.close(pidfd)
    return worker == entry.worker


def _ended_at(directory: Path) -> float:
    try:
        return (directory / paths.ENDED).stat().st_mtime
    except OSError:
        return 0.0
