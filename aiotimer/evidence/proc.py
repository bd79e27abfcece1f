"""A probe of ``/proc``: which of what the kernel says about a process is collected, and how much of it.

The laws of this file:

* Nothing is sent to the process, and nothing of it is stopped.
* What is read first cannot block; what takes a lock of the process comes last, and what has been read until
  then is there for the asking while a later read hangs.
* What was read counts only if the process was the pinned one before and after.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .._core.requests import WorkerId
from .._linux import procfs
from . import calls, reasons, waits

MAX_THREADS = 256
MAX_DESCRIPTORS = 256
MAX_CHILDREN = 64
_MAX_COMMAND = 4096
_MAX_CHILDS_COMMAND = 200
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOKS_AT_CALLS = 3
"""How often a thread is asked which call it is in, as long as it is in another one right afterwards."""
_BETWEEN_LOOKS = 0.01
"""Seconds from one such look to the next: who wakes only to sleep again does so, if there is a processor."""
_DESCRIPTOR_OF_THREAD = 1024
"""Bytes of what a C library knows of a thread that are searched for its number (glibc has it at 720)."""


def nothing() -> dict[str, Any]:
    """Return what is known of a process before anything has been read."""
    return {
        "state": "",
        "wchan": "",
        "syscall": "",
        "waits": "",
        "holder": "",
        "kernel_stack": [],
        "threads": [],
        "thread_count": 0,
        "rss_bytes": 0,
        "descriptors": [],
        "descriptor_count": 0,
        "children": [],
        "entered_by": 0,
        "cgroup": "",
        "command": [],
        "tracer": 0,
        "caught": 0,
        "ignored": 0,
        "tracer_name": "",
        "cwd": "",
        "libraries": [],
    }


def collect(worker: WorkerId, found: dict[str, Any], thread: int = 0) -> None:
    """Read what /proc has about a process into ``found``, from what cannot block to what might.

    Args:
        worker: the process.
        found: where it goes, see :func:`nothing`.
        thread: ``threading.get_ident()`` of one of its threads: the one that it calls so is ``entered_by``.

    Raises:
        ProcessLookupError: it is gone; what was found is void.
    """
    pid = worker.pid
    if procfs.start_time(pid) != worker.started:
        raise ProcessLookupError(f"process {pid} is another one by now")
    steps: tuple[Callable[[int, dict[str, Any]], None], ...] = (
        _status, _waits_for, _threads, _children, _cgroup, _descriptors, _syscall, _kernel_stack, _command,
        partial(_entered_by, ident=thread), _cwd, _commands_of_children, _waits,
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
    found["caught"], found["ignored"] = (int(fields.get(name, "0"), 16) for name in ("SigCgt", "SigIgn"))
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
            known = {"tid": tid, **_name_and_state(pid, tid), "wchan": procfs.wchan(pid, tid)}
            threads.append({**known, "syscall": "", "waits": "", "holder": ""})
    found["threads"] = threads


def _children(pid: int, found: dict[str, Any]) -> None:
    pids: list[int] = []
    for thread in found["threads"]:
        with contextlib.suppress(OSError):
            pids += procfs.children_of(pid, thread["tid"])
    children = []
    for child in pids[:MAX_CHILDREN]:
        with contextlib.suppress(OSError):
            known: dict[str, Any] = {
                "pid": child,
                **_name_and_state(child),
                "command": "",
                "exit": reasons.status_in_words(procfs.wait_status(child)),
                "started": procfs.start_time(child) / _TICKS,
                "line": "",
                "role": "",
                "stack": [],
            }
            children.append(known)
    found["children"] = children


def _commands_of_children(_pid: int, found: dict[str, Any]) -> None:
    for child in found["children"]:
        with contextlib.suppress(OSError):
            child["command"] = " ".join(procfs.command_of(child["pid"], _MAX_CHILDS_COMMAND))


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
            thread["syscall"] = calls.syscall_name(procfs.syscall(pid, thread["tid"]))
        if thread["tid"] == pid:
            found["syscall"] = thread["syscall"]


def _kernel_stack(pid: int, found: dict[str, Any]) -> None:
    found["kernel_stack"] = procfs.kernel_stack(pid)


def _command(pid: int, found: dict[str, Any]) -> None:
    found["command"] = procfs.command_of(pid, _MAX_COMMAND)


def _entered_by(pid: int, found: dict[str, Any], ident: int) -> None:
    """Find out which thread is the one of an ident.

    With the C libraries of Linux that is the address of what they know of the thread. Its number is a part
    of that: where, is theirs to know, but no other thread's number is there.
    """
    if not ident:
        return
    numbers = {}
    for thread in found["threads"]:
        with contextlib.suppress(OSError):  # it has ended
            numbers[procfs.inner_tid(pid, thread["tid"])] = thread["tid"]
    words = memoryview(procfs.memory_of(pid, ident, _DESCRIPTOR_OF_THREAD)).cast("i")
    named = {numbers[word] for word in words if word in numbers}
    if len(named) == 1:
        found["entered_by"] = named.pop()


def _cwd(pid: int, found: dict[str, Any]) -> None:
    found["cwd"] = procfs.cwd_of(pid)


def _waits(pid: int, found: dict[str, Any]) -> None:
    """Find out what the threads wait for that are in the same call before and after.

    One that is in another one by then, as who sleeps again and again may be, or has just woken, is asked for
    again.
    """
    threads = {thread["tid"]: thread for thread in found["threads"]}
    slept = {tid for tid, thread in threads.items() if thread["syscall"] not in ("", "running")}
    asked = set(threads)
    for look in range(_LOOKS_AT_CALLS):
        if not asked:
            break
        if look:
            time.sleep(_BETWEEN_LOOKS)
        seen = {}
        for tid in asked:
            with contextlib.suppress(OSError):
                seen[tid] = procfs.syscall(pid, tid)
        parsed = {tid: calls.parse(text) for tid, text in seen.items()}
        asked = set()
        for tid, wait in waits.of_threads(pid, parsed, found["children"]):
            with contextlib.suppress(OSError):
                woken = parsed[tid].name == "running" and tid in slept and look < _LOOKS_AT_CALLS - 1
                if woken or procfs.syscall(pid, tid) != seen[tid]:
                    asked.add(tid)
                    continue
                threads[tid].update(syscall=parsed[tid].name, **wait._asdict())
                if tid == pid:
                    found.update(syscall=parsed[tid].name, **wait._asdict())


def _name_and_state(pid: int, tid: int | None = None) -> dict[str, str]:
    fields = procfs.status(pid, tid)
    return {"name": fields.get("Name", ""), "state": fields.get("State", "")}
