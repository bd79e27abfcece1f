"""A probe for the Python stacks of a worker's threads, and a parser of what it wrote.

They are asked for by the worker's dump signal, and read from its table's file.

A worker registers ``faulthandler`` on a real-time signal and says in its table which one, and which
descriptor the stacks are written to: the table's own file, behind the table. It is C code that writes them,
in the signal's handler: it needs no GIL. A thread writes its own stack and no other's: those of others move
while it would walk them, and that crashes it.

The laws of this file:

* Whoever calls this is about to send SIGKILL. Even a thread's own stack is not whole at every instruction: of
  signals to threads that call functions as fast as they can, one in some ten thousand crashed CPython 3.11.
* The signal's default action is death. It is sent only if the kernel says that the process catches it, that
  the thread does not block it, and that the descriptor it said is the table: so it is still the program
  that registered it. A process that is stopped or traced is not sent anything: it would not answer.
* The signal goes through the thread's own pidfd, to one after the other. Where the kernel has none, it goes
  to the process, and reaches the main thread unless that blocks it.
* What the worker wrote is untrusted: bounded in size, any bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

from .._core import layout
from .._linux import procfs
from .._linux.process import is_dead, send_signal
from .._linux.signals import pin_thread
from .findings import Frame, stack

MAX_SIZE = 1024 * 1024
"""Bytes of stacks that are read: a hundred threads of a hundred frames, which is all that is written."""

MAX_STACKS = 256
MAX_FRAMES = 200
MAX_ASKED = 32
MAX_NAME = 1000
"""Threads and frames of each that are kept; threads that are sent the signal; characters of a file's or
function's name."""

_POLL = 0.002
"""Seconds between two looks at whether a thread has written: there is no event to wait for."""

_QUIET = 5
"""Of these, so many without a trace of the signal mean that the thread has no Python stack."""

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2

_THREAD = re.compile(
    r"(?:(Current thread|Thread) 0x([0-9a-fA-F]{1,16})(?: \[(.*)\])?|Stack) \(most recent call first\):\s*"
)
_FRAME = re.compile(r'  File (?:"(.*)"|\?\?\?), line (\d{1,9}|\?\?\?) in (.*)')

_libc = ctypes.CDLL(None, use_errno=True)


class Target(NamedTuple):
    """A worker, as far as it takes to have its stacks written.

    Attributes:
        pid: its own.
        pidfd: it, pinned.
        table: a descriptor of its table's file.
        table_inode: of that file.
        connected, confirm: see ``Subject``.
    """

    pid: int
    pidfd: int
    table: int
    table_inode: int
    connected: bool
    confirm: Callable[[], bool] = lambda: True


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
                stack((name or "")[:MAX_NAME], frames, current=word != "Thread", ident=int(ident or "0", 16))
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


def collect(worker: Target, limit: float, given_up: threading.Event) -> tuple[list[dict[str, Any]], str]:
    """Have a worker's threads write their stacks, the main one first. Blocks for ``limit`` seconds at most.

    Args:
        worker: whose.
        limit: seconds.
        given_up: set when nobody waits for it any more.

    Returns:
        The stacks, the main thread's last, and what was written, cut off if that had not finished in time.

    Raises:
        NotSafe: nothing was sent.
        OSError: it cannot be sent, or the table not read.
        TimeoutError: nothing was written.
    """
    pid, pidfd, table = worker.pid, worker.pidfd, worker.table
    signum, descriptor = _words(table)
    found: list[dict[str, Any]] = []
    texts: list[str] = []
    why_not: NotSafe | None = None
    confirmed = False
    until = monotonic() + limit
    for tid in sorted(procfs.tids_of(pid), key=lambda tid: tid != pid)[:MAX_ASKED]:
        now = monotonic()
        if now >= until or given_up.is_set():
            break
        try:
            check_safe(worker, tid, signum, descriptor)
            confirmed = confirmed or worker.confirm()
            if not confirmed:
                raise NotSafe("its timer was released just now")
            with _pinned(pid, pidfd, tid) as target:
                # Whoever does not get to run leaves half of the time to the others.
                begins_by = (now + until) / 2
                text = _written(worker, tid, target, signum, begins_by, until, given_up)
        except NotSafe as error:
            why_not = why_not or error
            continue
        except ProcessLookupError:  # the thread has ended
            continue
        texts.append(text)
        for one in parse(text)[-1:]:
            main = tid == pid
            found.append({**one, "tid": tid, "main": main, "thread": "MainThread" if main else ""})
    if not any(texts):
        raise why_not or TimeoutError
    return found[1:] + found[:1], "".join(texts)


@contextlib.contextmanager
def _pinned(pid: int, pidfd: int, tid: int) -> Iterator[int]:
    """Yield a descriptor through which a signal reaches a thread."""
    try:
        thread = pin_thread(pid, pidfd, tid)
    except ProcessLookupError:
        raise
    except OSError:
        if tid != pid:
            raise NotSafe("this kernel sends no signal to a thread") from None
        thread = os.dup(pidfd)  # it reaches the main thread, which does not block it
    try:
        yield thread
    finally:
        os.close(thread)


def check_safe(worker: Target, tid: int, signum: int, descriptor: int) -> None:
    """Check that a thread of a worker can be sent its dump signal without harm.

    Raises:
        NotSafe: it cannot.
    """
    if not signal.SIGRTMIN <= signum <= signal.SIGRTMAX:
        raise NotSafe("the worker has no dump signal")
    try:
        fields = procfs.status(worker.pid, tid)
        state = fields.get("State", "")
        if fields.get("TracerPid", "0") != "0":
            raise NotSafe("not sent to a process that is traced")
        if state[:1] in ("T", "t"):
            raise NotSafe("not sent to a process that is stopped")
        if state[:1] == "D":
            raise NotSafe("not sent to a thread in uninterruptible sleep")
        if not _has(fields, signum, "SigCgt"):
            raise NotSafe("the worker does not catch its dump signal any more")
        if _has(fields, signum, "SigBlk"):
            raise NotSafe("the thread blocks the dump signal")
        if not _is_table(worker, descriptor):
            raise NotSafe("the descriptor for its stacks is another file by now")
    except (OSError, ValueError) as error:
        raise NotSafe(f"it cannot be told whether it is safe: {error}") from None
    if is_dead(worker.pidfd):
        raise NotSafe("the worker is gone")


def _is_table(worker: Target, descriptor: int) -> bool:
    """Whether a descriptor of a worker is of its table's file.

    Who is not dumpable, because it has changed its uid perhaps, does not show that to its own user. Then it
    counts as if it were as long as the worker's connection stands: who closes descriptors that are not its
    own has closed that one, too.
    """
    try:
        there = procfs.inode_of(worker.pid, descriptor)
    except PermissionError:
        return worker.connected
    return there == (os.fstat(worker.table).st_dev, worker.table_inode)


def _written(
    worker: Target,
    tid: int,
    target: int,
    signum: int,
    begins_by: float,
    until: float,
    given_up: threading.Event,
) -> str:
    """Send one thread the signal, and return what is written until its handler has ended, in whole lines."""
    pid, table = worker.pid, worker.table
    start = size = max(layout.STACKS_OFFSET, os.fstat(table).st_size)
    send_signal(target, signum)
    quiet = 0
    while quiet < (_QUIET if size == start else 1) and monotonic() < (begins_by if size == start else until):
        if given_up.wait(_POLL) or is_dead(target):
            break
        # Its handler runs with the signal blocked; but for a moment before, it is neither that nor pending.
        busy = _has(procfs.status(pid, tid), signum, "SigPnd", "ShdPnd", "SigBlk")
        former, size = size, os.fstat(table).st_size
        quiet = 0 if busy or size != former else quiet + 1
    text = os.pread(table, min(size - start, MAX_SIZE), start)
    _give_back(table, start, size - start)
    # NUL: stacks that somebody else had asked for at the same time, and has given back already.
    whole = text.lstrip(b"\0")
    return whole[: whole.rfind(b"\n") + 1].decode(errors="backslashreplace")


def _words(table: int) -> tuple[int, int]:
    """Return the dump signal and the descriptor that a worker announced, 0 if that is nonsense."""
    head = os.pread(table, layout.PAGE, 0)
    found = []
    for index in (layout.DUMP_SIGNAL, layout.DUMP_FILE):
        value = layout.read_word(head, 8 * index) if len(head) >= 8 * index + 8 else 0.0
        found.append(int(value) if 0 <= value < 2**31 else 0)  # False for NaN
    return found[0], found[1]


def _has(fields: dict[str, str], signum: int, *names: str) -> bool:
    return any(int(fields.get(name, "0"), 16) >> (signum - 1) & 1 for name in names)


def _give_back(table: int, start: int, size: int) -> None:
    """Free the memory of what has been read; if that cannot be, it goes with the table."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    with contextlib.suppress(AttributeError):
        _libc.fallocate(table, mode, ctypes.c_int64(start), ctypes.c_int64(size))
