"""A reader of ``/proc/PID``, the only one: what the kernel says of a process, by its pid.

The laws of this file:

* A pid may by now be another process's. Whoever acts on what is read here holds the pidfd of the process
  meanwhile (see ``process.py``), so that what was read belongs to the process that is pinned.
* What is not there, or not shown to this user, raises ``OSError``; or it is empty, where a function says so.
* Whoever made a process chose its names and its words: no more than 64 KiB of a file are read (its maps are
  read whole), only ``\\n`` ends a line (the kernel escapes no other end in a name), and bytes that are no
  UTF-8 are escaped.
* Most files are shown at once. ``syscall``, ``stack``, ``cmdline`` and ``maps`` may wait for a lock of the
  process, for ever if it hangs with it.
"""

from __future__ import annotations

import contextlib
import os
from operator import itemgetter

from ..errors import ServerError

UNSENT = "aiotimer-unsent"
"""The name of the thread that reconnects a worker to its server. As long as there is one, the worker has
something to say and could not, whatever keeps it from that: what it had armed it may have released since."""

_FACTOR, _LARGEST_MARK = 1_000_003, 2**48 - 59
"""Two primes. A server of another version compares the marks too: they may change with the table's layout."""

_of_program = itemgetter(23, 26, 27, 28)
"""Fields of proc_pid_stat(5): size of memory, begin and end of code, begin of stack."""

_MOST = 65_536
"""Bytes of a file that are read."""


class Exiting(ProcessLookupError):
    """A process has no memory any more."""


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
    memory, code, end_of_code, stack = _of_program(_stat(pid))
    if memory == b"0":  # its first thread has ended; another one may run on
        memory, code, end_of_code, stack = _of_another_thread(pid)
    if (code, stack) == (b"1", b"0"):  # ptrace_may_access() says no: it has another uid, or is not dumpable
        return 0
    mark = (int(code) * _FACTOR + int(end_of_code)) * _FACTOR + int(stack)
    return mark % _LARGEST_MARK + 1


def _of_another_thread(pid: int) -> tuple[bytes, ...]:
    with contextlib.suppress(FileNotFoundError):
        for tid in tids_of(pid):
            with contextlib.suppress(ProcessLookupError):
                found: tuple[bytes, ...] = _of_program(_stat(pid, tid))
                if found[0] != b"0":
                    return found
    raise Exiting(f"process {pid} is exiting")


def runs_program(pid: int, mark: int) -> bool | None:
    """Whether a process still runs the program of which :func:`program_of` has returned a mark.

    None if that cannot be told: it is not shown, or was not then. The caller checks afterwards that the pid
    was still that process.
    """
    try:
        now = program_of(pid)
        if not now and os.geteuid() != 0 and foreign_uid(pid) is not None:
            return False  # all its uids were ours: a program changed them that is set-uid
    except Exiting:
        return True  # it will execute no other one
    except OSError:  # it is gone; or there is no descriptor to look with
        return None
    return now == mark if now and mark else None


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
    real, effective, saved, _of_files = map(int, status(pid)["Uid"].split())
    return real, effective, saved


def foreign_uid(pid: int) -> int | None:
    """Return whose process it is if it is not all this user's, None if it is.

    A process is a user's if its real, effective and saved user ids are: a set-uid program is not, even while
    it has put its privileges aside. The caller checks afterwards that the pid was still that process.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return next((uid for uid in uids_of(pid) if uid != os.geteuid()), None)


def status(pid: int, tid: int | None = None) -> dict[str, str]:
    """Return the fields of proc_pid_status(5), of a process or of one of its threads.

    Raises:
        ProcessLookupError: there is no such process, or thread.
    """
    lines = _there(pid, "status", tid).decode(errors="backslashreplace").split("\n")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def state_of(pid: int) -> str:
    """Return the state of a process, ``S (sleeping)``; "" if it is gone."""
    try:
        return status(pid)["State"]
    except OSError:
        return ""


def name_of(pid: int) -> str:
    """Return the command name of a process (15 characters at most), "?" if it is gone."""
    try:
        return _text(pid, "comm").rstrip("\n")
    except OSError:
        return "?"


def tids_of(pid: int) -> list[int]:
    """Return the numbers of a process's threads, in order."""
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))


def children_of(pid: int, tid: int) -> list[int]:
    """Return the pids of the processes that a thread has started and nobody has waited for."""
    return list(map(int, _text(pid, "children", tid).split()))


def has_thread_named(pid: int, name: str) -> bool:
    """Whether a process has a thread of this name; False if it is gone.

    There may be thousands, and the name of each is in a file of its own. One that starts meanwhile counts.
    """
    named: set[int] = set()
    with contextlib.suppress(OSError):  # it is gone; or there is no descriptor to look with
        for _ in range(2):
            new = set(tids_of(pid)) - named
            for tid in sorted(new, reverse=True):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended
                    if _text(pid, "comm", tid).rstrip("\n") == name:
                        return True
            named |= new
    return False


def wchan(pid: int, tid: int | None = None) -> str:
    """Return the function of the kernel that a process or thread waits in; "": in none, or not shown."""
    try:
        where = _text(pid, "wchan", tid)
    except OSError:
        return ""
    return "" if where == "0" else where


def syscall(pid: int, tid: int) -> str:
    """Return what proc_pid_syscall(5) says of a thread: a call's number and arguments, or ``running``."""
    return _text(pid, "syscall", tid)


def kernel_stack(pid: int) -> list[str]:
    """Return the functions of the kernel that a process is in, innermost first; it is shown to root."""
    return [line.partition("] ")[2] or line for line in _text(pid, "stack").splitlines()]


def command_of(pid: int, most: int) -> list[str]:
    """Return the words of a process's command line, of so many bytes of it."""
    words = _read(pid, "cmdline")[:most].rstrip(b"\0").split(b"\0")
    return [word.decode(errors="backslashreplace") for word in words]


def cgroups_of(pid: int | str) -> list[tuple[str, str, str]]:
    """Return the hierarchy, the controllers and the path of each cgroup of a process (cgroups(7)).

    A system may have none. The path can be opened; whoever shows it calls :func:`escaped`.
    """
    lines = os.fsdecode(_read(pid, "cgroup")).split("\n")
    return [(number, which, path) for number, which, path in (line.split(":", 2) for line in lines if line)]


def cgroup_of(pid: int | str) -> str | None:
    """Return the path of a process's cgroup of version 2, the line ``0::/path``; None if it has none."""
    return next((path for number, which, path in cgroups_of(pid) if (number, which) == ("0", "")), None)


def escaped(path: str) -> str:
    """Return a path as a text: bytes of it that are no UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def descriptors_of(pid: int) -> list[int]:
    """Return the numbers of a process's descriptors, in order."""
    return sorted(map(int, os.listdir(f"/proc/{pid}/fd")))


def link_of(pid: int, descriptor: int) -> str:
    """Return the name of what a descriptor of a process stands for: a path, ``socket:[7]``, and so on."""
    return escaped(os.readlink(f"/proc/{pid}/fd/{descriptor}"))


def inode_of(pid: int, descriptor: int) -> tuple[int, int]:
    """Return the device and the inode of the file that a descriptor of a process stands for."""
    file = os.stat(f"/proc/{pid}/fd/{descriptor}")
    return file.st_dev, file.st_ino


def pinned_by(pidfd: int) -> int:
    """Return the pid of the process that a descriptor pins; 0: it is no pidfd, -1: of one waited for."""
    lines = _text("self", f"fdinfo/{pidfd}").splitlines()
    return next((int(line[4:]) for line in lines if line.startswith("Pid:")), 0)


def members_of(session: int) -> list[int]:
    """Return the pids of the living processes of a session, as far as they can be seen."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            stat = _stat(pid)
        except OSError:
            continue
        if int(stat[6]) == session and stat[3] not in (b"Z", b"X"):
            found.append(pid)
    return found


def is_taken(pid: int | str) -> bool:
    """Whether a pid is some process's."""
    return os.path.exists(f"/proc/{pid}")


def time_namespace() -> int:
    """Return the inode of this process's time namespace; 0 where there are none (Linux < 5.6)."""
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except OSError:
        return 0


def mapped_path(inode: int) -> str:
    """Return the path under which this process has mapped a file with that inode.

    Raises:
        FileNotFoundError: it has not.
    """
    for line in _read("self", "maps", most=-1).split(b"\n"):
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[4] == b"%d" % inode:
            return os.fsdecode(fields[5])
    raise FileNotFoundError(inode)


def mapped_inodes(pid: int) -> set[int]:
    """Return the inodes of the files that a process has mapped; none of one without memory: it is exiting.

    There may be tens of thousands of mappings, and the process may hold the lock that guards them.

    Raises:
        OSError: they cannot be read.
    """
    # address perms offset dev inode path: the inode is the fifth field (proc_pid_maps(5)).
    return {int(line.split(None, 5)[4]) for line in _read(pid, "maps", most=-1).split(b"\n") if line}


def _stat(pid: int, tid: int | None = None) -> list[bytes]:
    """Return the fields of proc_pid_stat(5), each at its number there; 0 to 2 are not given.

    The second field, the name, may contain spaces and parentheses; what follows the *last* ``)`` is
    unambiguous.
    """
    stat = _there(pid, "stat", tid)
    return [b"", b"", b"", *stat[stat.rindex(b")") + 2 :].split()]


def _there(pid: int, name: str, tid: int | None = None) -> bytes:
    """Return what is in a file that every process has, and every thread."""
    try:
        return _read(pid, name, tid)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None


def _text(pid: int | str, name: str, tid: int | None = None) -> str:
    return _read(pid, name, tid).decode(errors="backslashreplace")


def _read(pid: int | str, name: str, tid: int | None = None, most: int = _MOST) -> bytes:
    with open(f"/proc/{pid}/{name}" if tid is None else f"/proc/{pid}/task/{tid}/{name}", "rb") as file:
        return file.read(most)
