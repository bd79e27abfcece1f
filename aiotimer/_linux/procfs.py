"""A reader of ``/proc/PID``: what the kernel says of a process, by its pid.

The law of this file: a pid may by now be another process's. Whoever acts on what is read here holds the pidfd
of the process meanwhile (see ``process.py``), so that what was read belongs to the process that is pinned.
"""

from __future__ import annotations

import os

from ..errors import ServerError

_FACTOR, _LARGEST_MARK = 1_000_003, 2**48 - 59
"""Two primes. A server of another version compares the marks too: they may change with the table's layout."""


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
