"""A listener: the lock of a server's socket, and the socket itself.

The laws of this file: one server per socket, which is whoever holds the lock on ``SOCKET.lock``; the kernel
drops it with its holder. It is a POSIX lock, which no child inherits; or the open file's, which the server
takes over from ``aiotimer run``. Stale files are removed only under that lock. Sockets are 0600.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct

from ..errors import AlreadyServing, UnsafePath

BACKLOG = 4096
"""The listen backlog (capped by net.core.somaxconn): as many workers may start at once."""

_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""A ``struct flock`` (fcntl_locking(2))."""


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
        path = socket_path + ".lock"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
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
        lock.socket_path, lock._descriptor = socket_path, descriptor
        os.set_inheritable(descriptor, False)
        return lock

    def fileno(self) -> int:
        """Return the descriptor of the lock file."""
        return self._descriptor

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
    except OSError as error:
        listener.close()
        raise UnsafePath(f"cannot listen on {path}: {error.strerror}") from error
    return listener


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
