"""A process as the kernel knows it: who it is, whether it lives, and the one way to signal it.

The law of this file: a process is held by a pidfd, pinned before anything is believed about it, and a
signal goes through that pidfd. A pid alone may by now be somebody else's; the pair (pid, start time) is
checked while the pidfd is held, so what was read belongs to the process that is pinned.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct

from .._core.requests import WorkerId
from ..errors import Refused
from .procfs import start_time, wait_status

PID_1 = 1
"""The pid of a pid namespace's first process, for everybody in there and for nobody outside."""

SO_PEERPIDFD = 77
"""Linux >= 6.5 (include/uapi/asm-generic/socket.h); not in Python's socket module up to 3.13."""

_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 8
_PIDFD_INFO = struct.Struct("=QQ11Ii")
"""Linux >= 6.15 (include/uapi/linux/pidfd.h): mask, cgroup, ids, and the status; 64 bytes."""

_UCRED = struct.Struct("=iII")


def pin(pid: int) -> tuple[WorkerId, int]:
    """Pin a living process (a child, or one found in a file name), whoever's it is by now.

    Returns:
        Its identity, and a pidfd that the caller closes.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # by now it numbers a thread, which is no process
            raise ProcessLookupError(f"no process {pid}") from None
        raise
    return _identify(pid, pidfd, anybodys=True), pidfd


def pin_named(name: str) -> int | None:
    """Return a pidfd of the process that ``pid:start-time`` names, None if it is gone."""
    pid, started = map(int, name.split(":"))
    try:
        found_id, pidfd = pin(pid)
    except ProcessLookupError:
        return None
    if found_id != WorkerId(pid, started):
        os.close(pidfd)
        return None
    return pidfd


def pin_peer(connection: socket.socket) -> tuple[WorkerId, int, int]:
    """Pin the process at the other end of a connected Unix socket, as the kernel knows it.

    Returns:
        Its identity, a pidfd that the caller closes, and its effective uid at ``connect``.

    Raises:
        ProcessLookupError: it is gone, or it is not in this pid namespace (the kernel says pid 0).
        PermissionError: it is not ours to signal by now.
    """
    pid, uid = peer_of(connection)
    if pid <= 0:
        raise ProcessLookupError("the process is not visible in the server's pid namespace")
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        os.set_inheritable(pidfd, False)
    except OSError:  # a kernel before 6.5, or the process has already been waited for
        # Between connect and here the pid may have been reused: then the new process started after
        # the socket was connected. The start times read before and after the pin must agree.
        before = start_time(pid)
        pidfd = os.pidfd_open(pid)
        worker = _identify(pid, pidfd)
        if worker.started != before:
            os.close(pidfd)
            raise ProcessLookupError(f"process {pid} is gone") from None
        return worker, pidfd, uid
    return _identify(pid, pidfd), pidfd, uid


def peer_uid(connection: socket.socket) -> int:
    """Return the effective uid, at ``connect``, of the other end of a connected Unix socket."""
    return peer_of(connection)[1]


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the pid (0 if it is not to be seen from here) and the uid of the other end, at ``connect``."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(credentials)
    return pid, uid


def check_trusted(connection: socket.socket, path: str) -> None:
    """Refuse a server that belongs to neither this user nor root.

    Raises:
        Refused: it does.
    """
    uid = peer_uid(connection)
    if uid not in (os.geteuid(), 0):
        raise Refused(path, f"it belongs to uid {uid}; that server is not trusted")


def _identify(pid: int, pidfd: int, *, anybodys: bool = False) -> WorkerId:
    """Read the start time of a pinned process, sure that it is its own."""
    try:
        worker = WorkerId(pid, start_time(pid))
        try:
            send_signal(pidfd, 0)  # still there (or a zombie): so /proc/PID was its own
        except PermissionError:  # so is it then: the kernel looks for the process first
            if not anybodys:
                raise
    except BaseException:
        os.close(pidfd)
        raise
    return worker


def is_dead(pidfd: int) -> bool:
    """Whether a pinned process is dead, waited for or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def how_it_ended(worker: WorkerId, pidfd: int) -> int | None:
    """Return the status of a dead process as wait(2) tells it, None if it is not to be had.

    Whoever is not its parent sees it while it is a zombie, by /proc, and afterwards, since Linux 6.15, by the
    pidfd: first the one, then the other, because it may be waited for in between.
    """
    with contextlib.suppress(OSError):
        if start_time(worker.pid) == worker.started and (status := wait_status(worker.pid)) is not None:
            return status
    info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
        mask, *_ids, ended = _PIDFD_INFO.unpack(info)
        return int(ended) if mask & _PIDFD_INFO_EXIT else None
    return None


def hung_up(connection: socket.socket) -> bool:
    """Whether nobody has the other end of a connected Unix socket open any more."""
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP is always told
    return bool(poll.poll(0))


def send_signal(pidfd: int, signum: int, flags: int = 0) -> None:
    """Send a signal to a pinned process; or, with the flags of pidfd_send_signal(2), to others of it.

    Raises:
        ProcessLookupError: it is dead.
        PermissionError: it is not ours to signal.
    """
    signal.pidfd_send_signal(pidfd, signum, None, flags)


def let_go_of_stderr() -> None:
    """Hold nobody's pipe open: whoever reads the owner's output waits for its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
