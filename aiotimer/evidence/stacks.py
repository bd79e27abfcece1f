"""A probe for the Python stacks of a worker's threads, and a parser of what it wrote.

They are asked for by the worker's dump signal, and read from its table's file.

A worker registers ``faulthandler`` on a real-time signal and says in its table which one, and which
descriptor the stacks are written to: the table's own file, behind the table. It is C code that writes them,
in the signal's handler: it needs no GIL.

The laws of this file:

* The signal's default action is death. It is sent only if the kernel says that the process catches it, that
  some thread does not block it, and that the descriptor it said is the table: so it is still the program
  that registered it. A process that is stopped or traced is not sent anything: it would not answer.
* The signal goes through the pidfd.
* What the worker wrote is untrusted: bounded in size, any bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import threading
from time import monotonic
from typing import Any

from .._core import layout
from .._linux import procfs
from .._linux.process import is_dead, send_signal
from .findings import Frame, stack

MAX_SIZE = 1024 * 1024
"""Bytes of stacks that are read: a hundred threads of a hundred frames, which is all that is written."""

MAX_STACKS = 256
MAX_FRAMES = 200
MAX_NAME = 1000
"""Threads, frames of each, and characters of a file's or function's name that are kept."""

_POLL = 0.004
"""Seconds between two looks at the size of what is written: there is no event to wait for."""

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2

_THREAD = re.compile(
    r"(Current thread|Thread) 0x([0-9a-fA-F]{1,16})(?: \[(.*)\])? \(most recent call first\):\s*"
)
_FRAME = re.compile(r'  File (?:"(.*)"|\?\?\?), line (\d{1,9}|\?\?\?) in (.*)')

_libc = ctypes.CDLL(None, use_errno=True)


class NotSafe(Exception):
    """The signal was not sent; in words, why."""


def parse(text: str) -> list[dict[str, Any]]:
    """Return the stacks in what ``faulthandler`` wrote, in its order: the main thread is the last one.

    Args:
        text: any text; what is not of that form is passed over. Of several dumps, the threads of all.
    """
    stacks: list[dict[str, Any]] = []
    frames: list[Frame] = []
    for line in text.splitlines():
        if header := _THREAD.fullmatch(line):
            if len(stacks) == MAX_STACKS:
                break
            word, ident, name = header.groups()
            frames = []
            stacks.append(
                stack((name or "")[:MAX_NAME], frames, current=word != "Thread", ident=int(ident, 16))
            )
        elif stacks and len(frames) < MAX_FRAMES and (found := _FRAME.fullmatch(line)):
            file, number, function = found.groups()
            place = int(number) if number.isdecimal() else 0
            frames.append([(file or "?")[:MAX_NAME], place, function[:MAX_NAME]])
        elif not line:
            frames = []  # what follows belongs to no thread until the next header
    for one in stacks:
        one["frames"] = one["frames"][::-1]
    if stacks and len(stacks) < 100:  # of a hundred and more, faulthandler leaves out the last
        stacks[-1]["main"] = True
        stacks[-1]["thread"] = "MainThread"  # from CPython 3.14 on the kernel's name: the program's
    return stacks


def collect(
    pid: int, pidfd: int, table: int, table_inode: int, limit: float, given_up: threading.Event
) -> str:
    """Have a worker write its stacks, and return them. Blocks for ``limit`` seconds, or a little more.

    Args:
        pid: the worker's.
        pidfd: it, pinned.
        table: a descriptor of its table's file.
        table_inode: of that file.
        limit: seconds.
        given_up: set when nobody waits for it any more.

    Returns:
        What it wrote; cut off if it had not finished in time.

    Raises:
        NotSafe: nothing was sent.
        OSError: it cannot be sent, or the table not read.
        TimeoutError: it wrote nothing.
    """
    signum, descriptor = _words(table)
    check_safe(pid, pidfd, table, table_inode, signum, descriptor)
    blocked_before = _threads_blocking(pid, signum)
    start = max(layout.STACKS_OFFSET, os.fstat(table).st_size)
    send_signal(pidfd, signum)
    until = monotonic() + limit
    size = last = start
    while monotonic() < until and not given_up.wait(_POLL) and not is_dead(pidfd):
        last, size = size, os.fstat(table).st_size
        # Its handler runs with the signal blocked, in the thread that was interrupted.
        if size == last > start and not _threads_blocking(pid, signum) - blocked_before:
            break
    if size <= start:
        raise TimeoutError
    text = os.pread(table, min(size - start, MAX_SIZE), start)
    _give_back(table, start, size - start)
    # NUL: stacks that somebody else had asked for at the same time, and has given back already.
    return text.lstrip(b"\0").decode(errors="backslashreplace")


def check_safe(pid: int, pidfd: int, table: int, table_inode: int, signum: int, descriptor: int) -> None:
    """Check that a worker's dump signal can be sent to it without harm.

    Raises:
        NotSafe: it cannot.
    """
    if not signal.SIGRTMIN <= signum <= signal.SIGRTMAX:
        raise NotSafe("the worker has no dump signal")
    try:
        fields = procfs.status(pid)
        state = fields.get("State", "")
        if fields.get("TracerPid", "0") != "0":
            raise NotSafe("not sent to a process that is traced")
        if state[:1] in ("T", "t"):
            raise NotSafe("not sent to a process that is stopped")
        if state[:1] == "D":
            raise NotSafe("not sent to a process in uninterruptible sleep")
        if not _has(fields, "SigCgt", signum):
            raise NotSafe("the worker does not catch its dump signal any more")
        if len(_threads_blocking(pid, signum)) == len(procfs.tids_of(pid)):
            raise NotSafe("every thread blocks the dump signal")
        if procfs.inode_of(pid, descriptor) != (os.fstat(table).st_dev, table_inode):
            raise NotSafe("the descriptor for its stacks is another file by now")
    except (OSError, ValueError) as error:
        raise NotSafe(f"it cannot be told whether it is safe: {error}") from None
    if is_dead(pidfd):
        raise NotSafe("the worker is gone")


def _words(table: int) -> tuple[int, int]:
    """Return the dump signal and the descriptor that a worker announced, 0 if that is nonsense."""
    head = os.pread(table, layout.PAGE, 0)
    found = []
    for index in (layout.DUMP_SIGNAL, layout.DUMP_FILE):
        value = layout.read_word(head, 8 * index) if len(head) >= 8 * index + 8 else 0.0
        found.append(int(value) if 0 <= value < 2**31 else 0)  # False for NaN
    return found[0], found[1]


def _has(fields: dict[str, str], name: str, signum: int) -> bool:
    return bool(int(fields.get(name, "0"), 16) >> (signum - 1) & 1)


def _threads_blocking(pid: int, signum: int) -> set[int]:
    """Return the threads of a process that block a signal."""
    blocking = set()
    with contextlib.suppress(OSError):
        for tid in procfs.tids_of(pid):
            with contextlib.suppress(OSError, ValueError):
                if _has(procfs.status(pid, tid), "SigBlk", signum):
                    blocking.add(tid)
    return blocking


def _give_back(table: int, start: int, size: int) -> None:
    """Free the memory of what has been read; if that cannot be, it goes with the table."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    with contextlib.suppress(AttributeError):
        _libc.fallocate(table, mode, ctypes.c_int64(start), ctypes.c_int64(size))
