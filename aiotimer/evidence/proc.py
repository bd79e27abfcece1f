"""A probe of ``/proc``: which of what the kernel says about a process is collected, and how much of it.

The laws of this file:

* Nothing is sent to the process, and nothing of it is stopped.
* What is read first cannot block; what takes a lock of the process comes last, and what has been read until
  then is there for the asking while a later read hangs.
* What was read counts only if the process was the pinned one before and after.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from typing import Any

from .._core.requests import WorkerId
from .._linux import procfs

MAX_THREADS = 256
MAX_DESCRIPTORS = 256
MAX_CHILDREN = 64
_MAX_COMMAND = 4096

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


def nothing() -> dict[str, Any]:
    """Return what is known of a process before anything has been read."""
    return {
        "state": "",
        "wchan": "",
        "syscall": "",
        "kernel_stack": [],
        "threads": [],
        "thread_count": 0,
        "rss_bytes": 0,
        "descriptors": [],
        "descriptor_count": 0,
        "children": [],
        "cgroup": "",
        "command": [],
        "tracer": 0,
        "tracer_name": "",
    }


def syscall_name(text: str, machine: str | None = None) -> str:
    """Return in words what a ``syscall`` file of /proc says: a call's name, its number, or ``running``."""
    first = text.split()[0] if text.split() else ""
    if not (first.isascii() and first.removeprefix("-").isdigit()):
        return first[:16]
    if int(first) < 0:
        return "no system call"
    known = _SYSCALLS.get(platform.machine() if machine is None else machine, {})
    return known.get(int(first), f"system call {int(first)}")


def collect(worker: WorkerId, found: dict[str, Any]) -> None:
    """Read what /proc has about a process into ``found``, from what cannot block to what might.

    Raises:
        ProcessLookupError: it is gone; what was found is void.
    """
    pid = worker.pid
    if procfs.start_time(pid) != worker.started:
        raise ProcessLookupError(f"process {pid} is another one by now")
    steps: tuple[Callable[[int, dict[str, Any]], None], ...] = (
        _status, _waits_for, _threads, _children, _cgroup, _descriptors, _syscall, _kernel_stack, _command,
    )  # fmt: skip
    for step in steps:
        try:
            step(pid, found)
        except (OSError, ValueError):  # not shown to us, or not by this kernel
            continue
    if procfs.start_time(pid) != worker.started:
        found.update(nothing())
        raise ProcessLookupError(f"process {pid} is another one by now")


def _status(pid: int, found: dict[str, Any]) -> None:
    fields = procfs.status(pid)
    found["state"] = fields.get("State", "")
    found["tracer"] = int(fields.get("TracerPid", "0"))
    found["rss_bytes"] = int(fields.get("VmRSS", "0 kB").split()[0]) * 1024
    if found["tracer"]:
        found["tracer_name"] = procfs.name_of(found["tracer"])


def _waits_for(pid: int, found: dict[str, Any]) -> None:
    found["wchan"] = procfs.wchan(pid)


def _threads(pid: int, found: dict[str, Any]) -> None:
    tids = procfs.tids_of(pid)
    found["thread_count"] = len(tids)
    threads = []
    for tid in tids[:MAX_THREADS]:
        with contextlib.suppress(OSError):  # it has ended
            known = {"tid": tid, **_name_and_state(pid, tid), "wchan": procfs.wchan(pid, tid), "syscall": ""}
            threads.append(known)
    found["threads"] = threads


def _children(pid: int, found: dict[str, Any]) -> None:
    pids: list[int] = []
    for thread in found["threads"]:
        with contextlib.suppress(OSError):
            pids += procfs.children_of(pid, thread["tid"])
    children = []
    for child in pids[:MAX_CHILDREN]:
        with contextlib.suppress(OSError):
            children.append({"pid": child, **_name_and_state(child)})
    found["children"] = children


def _cgroup(pid: int, found: dict[str, Any]) -> None:
    unified = procfs.cgroup_of(pid)
    several = " ".join(map(":".join, procfs.cgroups_of(pid)))[:_MAX_COMMAND]
    found["cgroup"] = procfs.escaped(several if unified is None else unified)


def _descriptors(pid: int, found: dict[str, Any]) -> None:
    numbers = procfs.descriptors_of(pid)
    found["descriptor_count"] = len(numbers)
    links = []
    for number in numbers[:MAX_DESCRIPTORS]:
        with contextlib.suppress(OSError):
            links.append([str(number), procfs.link_of(pid, number)])
    found["descriptors"] = links


def _syscall(pid: int, found: dict[str, Any]) -> None:
    for thread in found["threads"]:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            thread["syscall"] = syscall_name(procfs.syscall(pid, thread["tid"]))
        if thread["tid"] == pid:
            found["syscall"] = thread["syscall"]


def _kernel_stack(pid: int, found: dict[str, Any]) -> None:
    found["kernel_stack"] = procfs.kernel_stack(pid)


def _command(pid: int, found: dict[str, Any]) -> None:
    found["command"] = procfs.command_of(pid, _MAX_COMMAND)


def _name_and_state(pid: int, tid: int | None = None) -> dict[str, str]:
    fields = procfs.status(pid, tid)
    return {"name": fields.get("Name", ""), "state": fields.get("State", "")}
