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
from .errors import Refused, ServerError

SO_PEERPIDFD = 77
"""Linux >= 6.5 (include/uapi/asm-generic/socket.h); not in Python's socket module up to 3.13."""

_FACTOR, _LARGEST_MARK = 1_000_003, 2**48 - 59
"""Two primes. A server of another version compares the marks too: they may change with the table's layout."""

_UCRED = struct.Struct("=iII")


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: field 22 of proc_pid_stat(5).

    Raises:
        ProcessLookupError: there is no such process.
    """
    return int(_stat(pid)[22])


def program_of(pid: int) -> int:
    """Return a mark of the program that a process runs, another one after every exec; 0: it is not shown.

    It is made of where code and stack lie, which exec draws anew (were address randomisation switched off, a
    program that executes itself with the same arguments would keep its mark). Reading that waits for no lock
    of the process, unlike its maps. A float64 holds it.

    Raises:
        ProcessLookupError: there is no such process, or it is exiting and has no program.
    """
    stat = _stat(pid)
    memory, code, end_of_code, stack = (stat[n] for n in (23, 26, 27, 28))
    if memory == b"0":
        raise ProcessLookupError(f"process {pid} is exiting")
    if (code, stack) == (b"1", b"0"):  # ptrace_may_access() says no: it has another uid, or is not dumpable
        return 0
    mark = (int(code) * _FACTOR + int(end_of_code)) * _FACTOR + int(stack)
    return mark % _LARGEST_MARK + 1


def runs_another_program(pid: int, mark: int) -> bool:
    """Whether a process has executed another program since :func:`program_of` returned this mark.

    False if it cannot be told; and the caller checks afterwards that the pid was still that process.
    """
    try:
        now = program_of(pid) if mark else 0
        if mark and not now and os.geteuid() != 0:
            # Its memory was shown to us, so all its uids were ours: a program changed them that is set-uid.
            return foreign_uid(pid) is not None
    except OSError:  # it is gone; or there is no descriptor to look with
        return False
    return bool(now) and now != mark


def check_proc() -> None:
    """Check that /proc tells of the processes that this one sees, by the numbers it knows them by.

    Raises:
        ServerError: it is another pid namespace's, or none; what is read there would be of other processes.
    """
    try:
        own = os.readlink("/proc/self")
    except OSError as error:
        raise ServerError(f"/proc cannot be read: {error.strerror}") from None
    if own != str(os.getpid()):
        raise ServerError("/proc is another pid namespace's (unshare --mount-proc mounts the right one)")


def uids_of(pid: int) -> tuple[int, int, int]:
    """Return the real, effective and saved user id of a process.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = next(line for line in file if line.startswith(b"Uid:")).split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    return int(fields[1]), int(fields[2]), int(fields[3])


def foreign_uid(pid: int) -> int | None:
    """Return whose process it is if it is not all this user's, None if it is.

    A process is a user's if its real, effective and saved user ids are: a set-uid program is not, even while
    it has put its privileges aside. The caller checks afterwards that the pid was still that process.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return next((uid for uid in uids_of(pid) if uid != os.geteuid()), None)


def _stat(pid: int) -> list[bytes]:
    """Return the fields of proc_pid_stat(5), each at its number there; 0 to 2 are not given.

    The second field, the name, may contain spaces and parentheses; what follows the *last* ``)`` is
    unambiguous.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    return [b"", b"", b"", *stat[stat.rindex(b")") + 2 :].split()]


def name_of(pid: int) -> str:
    """Return the command name of a process (15 characters at most), "?" if it is gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().decode(errors="backslashreplace").rstrip("\n")
    except OSError:
        return "?"


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


def pidfd_inode(pidfd: int) -> int:
    """Return the inode of a pidfd: unique for a process since Linux 6.9 (pidfs), shared before."""
    return os.fstat(pidfd).st_ino


def is_dead(pidfd: int) -> bool:
    """Whether a pinned process is dead, waited for or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


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
    """Hold nobody's pipe open: whoever reads the founder's output waits for its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


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
