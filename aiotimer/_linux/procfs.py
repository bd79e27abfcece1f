"""A reader of ``/proc/PID``, the only one: what the kernel says of a process, by its pid.

The laws of this file:

* A pid may by now be another process's. Whoever acts on what is read here holds the pidfd of the process
  meanwhile (see ``process.py``), so that what was read belongs to the process that is pinned.
* What is not there, or not shown to this user, raises ``OSError``; or it is empty, where a function says so.
* Whoever made a process chose its names and its words: no more than 64 KiB of a file are read (of tables of
  all sockets, locks or mounts 8 MiB; its maps are read whole), only ``\\n`` ends a line (the kernel escapes
  no other end in a name), and bytes that are no UTF-8 are escaped.
* Most files are shown at once. ``syscall``, ``stack``, ``cmdline`` and ``maps`` may wait for a lock of the
  process, for ever if it hangs with it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import stat
from collections.abc import Iterator
from operator import itemgetter
from time import monotonic

from ..errors import ServerError

BOOT_ID = "/proc/sys/kernel/random/boot_id"

UNSENT = "aiotimer-unsent"
"""The name of the thread that reconnects a worker to its server. As long as there is one, the worker has
something to say and could not, whatever keeps it from that: what it had armed it may have released since."""

_FACTOR, _LARGEST_MARK = 1_000_003, 2**48 - 59
"""Two primes. A server of another version compares the marks too: they may change with the table's layout."""

_of_program = itemgetter(23, 26, 27, 28)
"""Fields of proc_pid_stat(5): size of memory, begin and end of code, begin of stack."""

EXEC_WITHIN = 0.002
"""Seconds for which the end of another process's exec is waited for. It takes some tens of microseconds, more
if the program has to be read from a disk."""

_FIRST_PID_NAMESPACE = 0xEFFF_FFFC
"""The inode of the machine's own (PROC_PID_INIT_INO of linux/proc_ns.h)."""

_MOST = 65_536
"""Bytes of a file that are read."""

_MOST_OF_TABLES = 8 * 1024 * 1024
"""Bytes of a table of all sockets, locks or mounts that there are."""


class Exiting(ProcessLookupError):
    """A process has no memory any more."""


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: field 22 of proc_pid_stat(5).

    Raises:
        ProcessLookupError: there is no such process.
    """
    return int(_stat(pid)[22])


def is_our_executable(pid: int) -> bool:
    """Whether a process runs the same executable as this one; False if that is not shown.

    Another user's does not show it, as the master of workers that have changed their uid. But a forked
    worker has its command line.
    """
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return _read(pid, "cmdline") == _read("self", "cmdline")
        return os.path.samefile(f"/proc/{pid}/exe", "/proc/self/exe")
    except OSError:
        return False


def program_of(pid: int) -> int:
    """Return a mark of the program that a process runs, another one after every exec; 0: it is not shown.

    It is made of where code and stack lie, which exec draws anew (were address randomisation switched off, a
    program that executes itself with the same arguments would keep its mark). Reading that waits for no lock
    of the process, unlike its maps. A float64 holds it.

    A process in the middle of an exec has a new memory with nothing in it yet. Whoever has just started a
    child finds it there: the parent goes on when the old memory is gone. That is waited for, but not long.

    Raises:
        ProcessLookupError: there is no such process, or it is exiting and has no program.
    """
    memory, code, end_of_code, stack = _of_program(_stat(pid))
    until = monotonic() + EXEC_WITHIN
    while memory != b"0" and code == b"0" and monotonic() < until:
        os.sched_yield()
        memory, code, end_of_code, stack = _of_program(_stat(pid))
    if memory == b"0":  # its first thread has ended; another one may run on
        memory, code, end_of_code, stack = _of_another_thread(pid)
    if code == b"0" or (code, stack) == (b"1", b"0"):
        return 0  # it is still at its exec; or ptrace_may_access() says no: another uid, or not dumpable
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
            Or it tells of nothing but processes.
    """
    try:
        own = os.readlink("/proc/self")
    except OSError as error:
        raise ServerError(f"/proc cannot be read: {error.strerror}") from None
    if own != str(os.getpid()):
        raise ServerError("/proc is another pid namespace's (unshare --mount-proc mounts the right one)")
    try:
        boot_id()
    except OSError as error:
        raise ServerError(
            f"{BOOT_ID} cannot be read, by which tables of this boot are told from older ones: "
            f"{error.strerror}. Is /proc mounted with subset=pid (systemd: ProcSubset=pid)? Mount all of it"
        ) from None


@functools.cache
def boot_id() -> str:
    """Return the first eight hexadecimal digits of this boot's id (random(4))."""
    with open(BOOT_ID) as file:
        return file.read(8)


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


def each_tid(pid: int) -> Iterator[int]:
    """Yield the numbers of a process's threads one after the other: there may be thousands."""
    with os.scandir(f"/proc/{pid}/task") as threads:
        yield from (int(thread.name) for thread in threads)


def states_of(pid: int, most: int = 32) -> set[str]:
    """Return the states, each a letter, that the threads of a process are in, so many; none: it is gone."""
    states = set()
    with contextlib.suppress(OSError):
        for tid in itertools.islice(each_tid(pid), most):
            with contextlib.suppress(OSError):
                states.add(_stat(pid, tid)[3].decode())
    return states


def parent_and_session(pid: int) -> tuple[int, int]:
    """Return the pids of a process's parent and of the leader of its session.

    Raises:
        ProcessLookupError: there is no such process.
    """
    stat = _stat(pid)
    return int(stat[4]), int(stat[6])


def is_first_pid_namespace() -> bool:
    """Whether the pid namespace here is the machine's own, or that is not known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return True


def children_of(pid: int, tid: int) -> list[int]:
    """Return the pids of the processes that a thread has started and nobody has waited for."""
    return list(map(int, _text(pid, "children", tid).split()))


def runs_python(pid: int) -> bool:
    """Whether a process runs Python, by the name of its executable; False if it is not shown."""
    try:
        return "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False


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


def inner_tid(pid: int, tid: int) -> int:
    """Return the number by which a thread knows itself: the one in the innermost of its pid namespaces."""
    return int(status(pid, tid).get("NSpid", str(tid)).split()[-1])


def memory_of(pid: int, address: int, size: int) -> bytes:
    """Return so many bytes of a process's memory, fewer if there are not so many, in whole words.

    Raises:
        OSError: there is none at that address; or it is not shown: it takes the right to trace the process.
    """
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, size, address)
    except OverflowError:
        raise OSError(errno.EIO, "no address") from None
    finally:
        os.close(descriptor)
    return data[: len(data) // 8 * 8]


def ran_for(pid: int, tid: int) -> int:
    """Return for how many nanoseconds a thread has run on a processor."""
    return int(_read(pid, "schedstat", tid).split()[0])


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


def cwd_of(pid: int) -> str:
    """Return the directory that a process is in."""
    return escaped(os.readlink(f"/proc/{pid}/cwd"))


def inode_of(pid: int, descriptor: int) -> tuple[int, int]:
    """Return the device and the inode of the file that a descriptor of a process stands for."""
    file = os.stat(f"/proc/{pid}/fd/{descriptor}")
    return file.st_dev, file.st_ino


def descriptor_info(pid: int, descriptor: int) -> dict[str, str]:
    """Return what the kernel says of a descriptor of a process: ``flags`` (octal), ``ino``, ``mnt_id``.

    The file itself is not asked, so that nothing waits for a disk or another machine.
    """
    lines = _text(pid, f"fdinfo/{descriptor}").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_fifo(pid: int, descriptor: int) -> bool:
    """Whether a descriptor of a process is a pipe, with a name or none. This asks the file."""
    return stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/{descriptor}").st_mode)


def polled_by(pid: int, descriptor: int) -> list[int]:
    """Return the descriptors that an epoll instance of a process watches."""
    lines = _text(pid, f"fdinfo/{descriptor}").splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("tfd:")]


def mounts_of(pid: int) -> dict[str, tuple[str, str]]:
    """Return the device, as ``8:1``, and the kind of each file system that a process sees, by ``mnt_id``."""
    found = {}
    for line in _read(pid, "mountinfo", most=_MOST_OF_TABLES).decode(errors="backslashreplace").split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 2 and after:
            found[fields[0]] = fields[2], after.split()[0]
    return found


def sockets_of(pid: int, table: str) -> Iterator[list[str]]:
    """Yield the fields of each line of a table of sockets, such as ``tcp``, of a process's network namespace.

    There may be hundreds of thousands: no more than 8 MiB of them are read, piece by piece.
    """
    with open(f"/proc/{pid}/net/{table}", "rb", buffering=0) as file:
        rest, room = b"", _MOST_OF_TABLES
        while room > 0 and (piece := file.read(_MOST)):
            room -= len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode(errors="backslashreplace").split(None, 9)


def file_locks() -> list[list[str]]:
    """Return the fields of each lock of a file that somebody holds, or waits for (proc_locks(5))."""
    with open("/proc/locks", "rb") as file:
        return [line.split() for line in file.read(_MOST_OF_TABLES).decode().splitlines()]


def wait_status(pid: int) -> int | None:
    """Return how a process ended that nobody has waited for, as wait(2) tells it.

    None: it lives, or that is not shown, as of another user's (there it is 0).
    """
    fields = _stat(pid)
    if fields[3] not in (b"Z", b"X") or (os.geteuid() != 0 and foreign_uid(pid) is not None):
        return None
    return int(fields[52])


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
    return namespace("time")


def namespace(kind: str) -> int:
    """Return the inode of this process's namespace of a kind, see namespaces(7); 0 where there are none."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


def maps_root() -> bool:
    """Whether this process's user namespace has a root: it maps uid 0; True if it does not say."""
    try:
        return any(int(line.split()[0]) == 0 for line in _read("self", "uid_map").splitlines())
    except (OSError, ValueError, IndexError):
        return True


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
