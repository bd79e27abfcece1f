"""A dictionary of system calls: what a thread that is in one waits for, in words.

The laws of this file:

* It reads nothing: what ``/proc`` shows of a call, and what is behind its descriptors, is handed in.
* A word is said only if it follows from what was seen. Of a call whose arguments are not shown only its name
  is known; and a futex is a lock, a condition, or whatever C makes of it, unless the frames say which.
* Who holds a lock, or the other end of a pipe, is said only if that was seen; never that nobody does.
"""

from __future__ import annotations

import platform
import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, NamedTuple

from .findings import Frame
from .reasons import OF_A_CHILD, OF_A_FUTURE, OF_POOL, SHARED, child_in_words, in_list

_TABLE = """
read 0 63  readv 19 65  recvfrom 45 207  recvmsg 47 212  recvmmsg 299 243  write 1 64  writev 20 66
sendto 44 206  sendmsg 46 211  poll 7 -1  ppoll 271 73  select 23 -1  pselect6 270 72  epoll_wait 232 -1
epoll_pwait 281 22  epoll_pwait2 441 441  futex 202 98  futex_waitv 449 449  wait4 61 260  waitid 247 95
nanosleep 35 101  clock_nanosleep 230 115  pause 34 -1  connect 42 203  accept 43 202  accept4 288 242
flock 73 32  fcntl 72 25  ioctl 16 29  open 2 -1  openat 257 56  close 3 57  fsync 74 82
fdatasync 75 83  msync 26 227  io_getevents 208 4  io_uring_enter 426 426  rt_sigsuspend 130 133
rt_sigtimedwait 128 137  semtimedop 220 192  semop 65 193  msgrcv 70 188  exit 60 93  exit_group 231 94
mmap 9 222  munmap 11 215  pread64 17 67  pwrite64 18 68  splice 275 76  sendfile 40 71  lseek 8 62
newfstatat 262 79  fstat 5 80  sched_yield 24 124  restart_syscall 219 128
"""
"""System calls that something can wait in: name, number on x86_64, and on machines with the generic table
(include/uapi/asm-generic/unistd.h; -1: it has none)."""

_WORDS = _TABLE.split()
_X86_64 = dict(zip(map(int, _WORDS[1::3]), _WORDS[::3], strict=True))
_GENERIC = dict(zip(map(int, _WORDS[2::3]), _WORDS[::3], strict=True))
_SYSCALLS = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC}

_WRITES = ("write", "writev", "pwrite64", "sendto", "sendmsg")
_EPOLLS = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
_OF_DESCRIPTOR = frozenset(
    (
        *("read", "readv", "pread64", "recvfrom", "recvmsg", "recvmmsg", "accept", "accept4", "connect"),
        *("fsync", "fdatasync", "ioctl", "flock", "fcntl", "close", *_WRITES, *_EPOLLS),
    )
)
"""Calls whose first argument is the descriptor that they wait for."""

_SIGNALS = ("pause", "rt_sigsuspend", "rt_sigtimedwait")
_OF_SYSTEM_V = {"semop": "a semaphore", "semtimedop": "a semaphore", "msgrcv": "a message queue"}
_POLLS = ("poll", "ppoll")
_SELECTS = ("select", "pselect6")
_F_SETLKW = (7, 38)  # F_SETLKW, F_OFD_SETLKW
_P_PID, _P_PIDFD = 1, 3
_TIMER_ABSTIME = 1

MOST_POLLED = 64
"""Descriptors that are looked at of one call that polls."""

_MOST_NAMED = 3


class Call(NamedTuple):
    """A system call that a thread is in.

    Attributes:
        name: ``recvfrom``, as :func:`syscall_name` returns it.
        arguments: its six arguments, none if they are not known.
    """

    name: str
    arguments: tuple[int, ...] = ()

    @property
    def descriptor(self) -> int | None:
        """The descriptor that it waits for, None if it is not about one."""
        if self.name not in _OF_DESCRIPTOR or not self.arguments:
            return None
        if self.name == "fcntl" and self.arguments[1] not in _F_SETLKW:
            return None
        return _as_int(self.arguments[0])

    @property
    def epoll(self) -> int | None:
        """The descriptor of the epoll instance that it waits for, None if there is none."""
        return self.descriptor if self.name in _EPOLLS else None

    @property
    def polls(self) -> tuple[int, int] | None:
        """Address and length of the ``struct pollfd`` array that it waits for, None if there is none."""
        return (self.arguments[0], self.arguments[1] * 8) if self.name in _POLLS and self.arguments else None

    @property
    def selects(self) -> tuple[tuple[int, ...], int] | None:
        """Addresses of the sets of descriptors that it waits for, and the bytes of each; None: of none."""
        if self.name not in _SELECTS or not self.arguments:
            return None
        size = (min(max(_as_int(self.arguments[0]), 0), 1024) + 63) // 64 * 8
        return tuple(address for address in self.arguments[1:4] if address), size

    @property
    def polls_nothing(self) -> bool:
        """Whether it polls no descriptor, and is no more than a sleep."""
        polls, selects = self.polls, self.selects
        return (polls is not None and not polls[1]) or (selects is not None and not selects[1])

    @property
    def opens(self) -> int:
        """The address of the path that it opens, 0 if it opens none."""
        which = {"open": 0, "openat": 1}.get(self.name)
        return self.arguments[which] if which is not None and self.arguments else 0

    @property
    def child(self) -> int | None:
        """The pid that it waits for; 0: any; None: it waits for no child, or by a descriptor."""
        if self.name == "wait4" and self.arguments:
            return max(0, _as_int(self.arguments[0]))
        if self.name == "waitid" and self.arguments and self.arguments[0] != _P_PIDFD:
            return _as_int(self.arguments[1]) if self.arguments[0] == _P_PID else 0
        return None

    @property
    def pidfd(self) -> int | None:
        """The descriptor of the process that it waits for, None if it waits for none by a descriptor."""
        pinned = self.name == "waitid" and self.arguments and self.arguments[0] == _P_PIDFD
        return _as_int(self.arguments[1]) if pinned else None

    @property
    def is_c_sleep(self) -> bool:
        """Whether it sleeps as libc's ``usleep`` and ``sleep`` do, and Python's own ``time.sleep`` never."""
        if self.name == "nanosleep":
            return True  # time.sleep has used clock_nanosleep since 3.11
        return self.name == "clock_nanosleep" and self.arguments[1:2] == (0,)


class Thing(NamedTuple):
    """What is behind a descriptor.

    Attributes:
        kind: in words, ``socket``, ``pipe``, ``terminal``; "" if it is not known.
        name: which one: the other end's address, a path.
        holders: children that hold the other end of a pipe, in words.
        own: the process itself holds the other end of a pipe.
        listens: it is a socket that connections are accepted from.
    """

    kind: str = ""
    name: str = ""
    holders: tuple[str, ...] = ()
    own: bool = False
    listens: bool = False


class Wait(NamedTuple):
    """What a thread waits for.

    Attributes:
        waits: ``waits for a pipe (read)``, "" if there is no more to say than the name of its call.
        holder: who was seen to hold what it waits for, in words; "" if nobody was.
    """

    waits: str = ""
    holder: str = ""


def syscall_name(text: str, machine: str | None = None) -> str:
    """Return in words what a ``syscall`` file of /proc says: a call's name, its number, or ``running``."""
    first = text.split()[0] if text.split() else ""
    if not (first.isascii() and first.removeprefix("-").isdigit()):
        return first[:16]
    if int(first) < 0:
        return "no system call"
    known = _SYSCALLS.get(platform.machine() if machine is None else machine, {})
    return known.get(int(first), f"system call {int(first)}")


def parse(text: str, machine: str | None = None) -> Call:
    """Return the call that a ``syscall`` file of /proc shows."""
    words = text.split()[1:7]
    try:
        arguments = tuple(int(word, 16) for word in words)
    except ValueError:
        arguments = ()
    return Call(syscall_name(text, machine), arguments if len(arguments) == 6 else ())


def polled(array: bytes) -> list[int]:
    """Return the descriptors in an array of ``struct pollfd``; poll(2) leaves out those below 0, too."""
    return [fd for fd, _, _ in struct.iter_unpack("=ihH", array[: len(array) // 8 * 8]) if fd >= 0]


def selected(sets: Iterable[bytes]) -> list[int]:
    """Return the descriptors in sets of them, as select(2) takes them."""
    found: set[int] = set()
    for one in sets:
        bits = int.from_bytes(one, "little")
        found.update(number for number in range(len(one) * 8) if bits >> number & 1)
    return sorted(found)


def address(text: str) -> str:
    """Return ``127.0.0.1:80`` for ``0100007F:0050``, as /proc/net has it: words in this machine's order."""
    host, _, port = text.partition(":")
    packed = b"".join(int(host[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(host), 8))
    if len(packed) == 16 and packed.startswith(b"\0" * 10 + b"\xff\xff"):
        packed = packed[12:]
    if len(packed) == 4:
        return f"{inet_ntop(AF_INET, packed)}:{int(port, 16)}"
    return f"[{inet_ntop(AF_INET6, packed)}]:{int(port, 16)}"


def socket_of(table: str, fields: Sequence[str]) -> Thing:
    """Return what a line of a table in /proc/net tells of a socket, without its own number.

    Args:
        table: ``tcp``, ``udp6``, ``unix`` and so on.
        fields: of the line.
    """
    if table == "unix":
        listens = int(fields[3], 16) & 0x10000 != 0  # __SO_ACCEPTCON
        return Thing("socket", fields[7] if len(fields) > 7 else "unix", listens=listens)
    local, remote, state = fields[1:4]
    if state == "0A" and table.startswith("tcp"):
        return Thing("socket", address(local), listens=True)
    if remote.endswith(":0000"):  # a datagram may come from anywhere
        return Thing("socket", f"{table} at {address(local)}")
    return Thing("socket", address(remote))


def is_elsewhere(file_system: str) -> bool:
    """Whether the files of a kind of file system are on another machine, or another process answers for them.

    To ask for one may hang.
    """
    return _ELSEWHERE.match(file_system) is not None


def of_call(call: Call, things: Sequence[Thing] = (), path: str = "") -> Wait:
    """Return what a thread that is in a call does.

    Args:
        call: which one.
        things: what is behind the descriptors that it waits for.
        path: which file it opens.
    """
    name = call.name
    if name in ("nanosleep", "clock_nanosleep"):
        return Wait("sleeps in C code" if call.is_c_sleep else "sleeps")
    if name in _SIGNALS:
        return Wait(f"waits for a signal ({name})")
    if name in _OF_SYSTEM_V:
        return Wait(f"waits for {_OF_SYSTEM_V[name]} ({name})")
    if path:
        return Wait(f"waits for {path} to be opened ({name})")
    if call.polls_nothing:
        return Wait("sleeps")
    if len(things) > 1:
        named = [thing.name or f"{_article(thing.kind)} {thing.kind}" for thing in things if thing.kind]
        told = ", ".join(named[:_MOST_NAMED]) + (" ..." if len(named) > _MOST_NAMED else "")
        return Wait(f"waits for one of {len(things)} descriptors ({name}{': ' * bool(told)}{told})")
    return _of_thing(call, things[0]) if things and things[0].kind else Wait()


def _of_thing(call: Call, thing: Thing) -> Wait:
    told = f" ({call.name}{', ' * bool(thing.name)}{thing.name})"
    if thing.kind == "socket" and (thing.listens or call.name == "connect"):
        return Wait("waits for a connection" + told)
    first = "room in " if call.name in _WRITES else "standard input, " * (call.descriptor == 0)
    words = f"waits for {first}{_article(thing.kind)} {thing.kind}{told}"
    if thing.holders:
        return Wait(words, f"its other end is held by {in_list(thing.holders)}")
    return Wait(words, "its other end is held by the process itself" if thing.own else "")


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeio" else "a"


def of_file_lock(call: Call, path: str, holders: Sequence[str] = ()) -> Wait:
    """Return that a thread waits for a lock on a file, which processes hold that were seen to."""
    words = f"waits for a file lock on {path} ({call.name})"
    return Wait(words, f"it is held by {in_list(holders)}" if holders else "")


def of_children(call: Call, children: Sequence[Mapping[str, Any]], wanted: int) -> Wait:
    """Return that a thread waits for a child.

    Args:
        call: the call that does.
        children: of the process, as ``evidence/proc.py`` reads them.
        wanted: the pid that is waited for, 0 for any.
    """
    if not wanted and len(children) == 1:
        wanted = children[0]["pid"]
    if wanted:
        chosen = next((child for child in children if child["pid"] == wanted), {"pid": wanted})
        return Wait(f"waits for {child_in_words(chosen)}")
    return Wait(f"waits for one of {len(children)} children ({call.name})" if children else "")


OF_ANY_FUTEX = "waits for a lock or a condition (futex)"

_KNOWN: dict[str, tuple[tuple[frozenset[str], str], ...]] = {
    file: tuple((frozenset(functions.split()), words) for functions, words in waits)
    for file, *waits in (
        ("queue.py", ("get", "waits for a queue"), ("put", "waits for room in a queue"),
         ("join", "waits for a queue to be done")),
        ("threading.py", ("join _wait_for_tstate_lock _shutdown", "waits for a thread to end"),
         ("acquire", "waits for a semaphore"), ("_wait", "waits for a barrier")),
        ("multiprocessing/queues.py", ("get", "waits for a queue"), ("put", "waits for room in a queue")),
        ("multiprocessing/pool.py", ("get wait next __next__", OF_POOL),
         ("join _terminate_pool", "waits for a process pool to end")),
        ("multiprocessing/process.py", ("join", OF_A_CHILD)),
        ("multiprocessing/synchronize.py", ("__enter__", f"waits for a lock {SHARED}"),
         ("wait wait_for", f"waits for a condition {SHARED}")),
        ("concurrent/futures/_base.py",
         ("result exception wait as_completed result_iterator", OF_A_FUTURE)),
        ("concurrent/futures/thread.py", ("shutdown", "waits for a pool to end")),
        ("concurrent/futures/process.py", ("shutdown", "waits for a pool to end")),
    )
}  # fmt: skip
"""By file of the standard library and function, what a call of it waits for, whatever it calls for that."""

_OF_CONDITION = {("wait", "wait"): "waits for an event", ("wait",): "waits for a condition",
                 ("wait_for", "wait"): "waits for a condition"}  # fmt: skip
"""The same by the names of all functions in threading.py: those of its classes are called alike."""

_ELSEWHERE = re.compile(r"nfs|cifs|smb|fuse|ceph|9p|afs|lustre|gpfs|beegfs|glusterfs|orangefs|ocfs2|gfs2")

_LOCK = re.compile(r"_?Py(Thread_acquire_lock|Mutex_Lock)|r?lock_(PyThread_)?acquire|acquire_timed")
"""Functions of the interpreter that wait for one of its locks."""


def of_frames(frames: Sequence[Frame], native: Collection[str] = ()) -> str:
    """Return in words what a thread that is in a futex waits for.

    Args:
        frames: of libraries, below the innermost of the user's own, outermost first.
        native: functions of C, innermost first; none if they are not known.
    """
    for file, _line, function in frames:
        known = next((waits for name, waits in _KNOWN.items() if file.endswith(f"/{name}")), ())
        for functions, words in known:
            if _last(function) in functions:
                return words
    in_threading = tuple(_last(frame[2]) for frame in frames if frame[0].endswith("/threading.py"))
    if in_threading in _OF_CONDITION:
        return _OF_CONDITION[in_threading]
    if frames and "importlib._bootstrap" in frames[-1][0]:
        return "waits for another thread to import"
    if frames and frames[-1][0].endswith("/logging/__init__.py"):
        return "waits for a lock of logging"
    if any(_LOCK.match(one) for one in native):
        return "waits for a lock"
    return OF_ANY_FUTEX


def _last(function: str) -> str:
    """Return ``get`` of ``Queue.get``: some probes know the class, and some do not."""
    return function.rpartition(".")[2]


def in_words(syscall: str, waits: str, frames: Sequence[Frame], native: Collection[str] = ()) -> str:
    """Return in words what a thread waits for, "" if it is not known to wait.

    Args:
        syscall: the call that it is in.
        waits: the words of :class:`Wait`, of that call.
        frames: see :func:`of_frames`.
        native: see :func:`of_frames`.
    """
    if syscall in ("futex", "futex_waitv"):
        return of_frames(frames, native)
    if waits and any(file.endswith("/pdb.py") for file, _line, _function in frames):
        return f"at a prompt of pdb: {waits}"
    if waits == "sleeps" and any(
        file.endswith("/subprocess.py") and _last(function) == "_wait" for file, _line, function in frames
    ):
        return OF_A_CHILD  # with a limit, it asks again and again
    return waits


def _as_int(register: int) -> int:
    """Return the C ``int`` in a register."""
    return (register & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
