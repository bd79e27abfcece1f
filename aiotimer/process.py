"""Processes: who they are, whether they live, and the one way to signal them.

The law of this file: a process is held by a pidfd, pinned before anything is believed about it, and a
signal goes through that pidfd. A pid alone may by now be somebody else's; the pair (pid, start time) is
checked while the pidfd is held, so what was read belongs to the process that is pinned.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct

from ._core.requests import WorkerId

SO_PEERPIDFD = 77
"""Linux >= 6.5 (include/uapi/asm-generic/socket.h); not in Python's socket module up to 3.13."""

_UCRED = struct.Struct("=iII")


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: field 22 of proc_pid_stat(5).

    The second field, the name, may contain spaces and parentheses; what follows the *last* ``)`` is
    unambiguous.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def name_of(pid: int) -> str:
    """Return the command name of a process (15 characters at most), "?" if it is gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().decode(errors="backslashreplace").rstrip("\n")
    except OSError:
        return "?"


def pin(pid: int) -> tuple[WorkerId, int]:
    """Pin a living process of ours (a child, or one found in a file name).

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
    return _identify(pid, pidfd), pidfd


def pin_peer(connection: socket.socket) -> tuple[WorkerId, int, int]:
    """Pin the process at the other end of a connected Unix socket, as the kernel knows it.

    Returns:
        Its identity, a pidfd that the caller closes, and its effective uid at ``connect``.

    Raises:
        ProcessLookupError: it is gone, or it is not in this pid namespace (the kernel says pid 0).
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(credentials)
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
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


def _identify(pid: int, pidfd: int) -> WorkerId:
    """Read the start time of a pinned process, sure that it is its own."""
    try:
        worker = WorkerId(pid, start_time(pid))
        send_signal(pidfd, 0)  # still there (or a zombie): so /proc/PID was its own
    except BaseException:
        os.close(pidfd)
        raise
    return worker


def pidfd_inode(pidfd: int) -> int:
    """Return the inode of a pidfd: unique for a process since Linux 6.9 (pidfs), shared before."""
    return os.fstat(pidfd).st_ino


def is_dead(pidfd: int) -> bool:
    """Whether a pinned process is dead, waited for or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def send_signal(pidfd: int, signum: int) -> None:
    """Send a signal to a pinned process.

    Raises:
        ProcessLookupError: it is dead.
        PermissionError: it is not ours to signal.
    """
    signal.pidfd_send_signal(pidfd, signum)


def time_namespace() -> int:
    """Return the inode of this process's time namespace; 0 where there are none (Linux < 5.6)."""
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except OSError:
        return 0


def maps_file(pid: int, inode: int) -> bool | None:
    """Whether a process has a file of this inode mapped; None when it has no memory (it is exiting).

    Raises:
        OSError: its maps cannot be read.
    """
    with open(f"/proc/{pid}/maps", "rb") as file:
        maps = file.read()
    if not maps:
        return None
    # address perms offset dev inode path: the inode is the fifth field (proc_pid_maps(5)).
    wanted = b"%d" % inode
    return any(line.split(None, 5)[4] == wanted for line in maps.splitlines() if line)
