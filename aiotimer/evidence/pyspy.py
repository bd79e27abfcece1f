"""A runner of helpers that look into a worker from outside.

They are py-spy, and from CPython 3.14 on the interpreter's own unwinder: ``unwind.py`` prints the same.

The laws of this file:

* A helper is a process of its own session with a time limit; it is killed when that has passed, through its
  pidfd, and when nobody waits for it any more. What it prints is bounded.
* py-spy stops the worker while it reads, or it might read nonsense; one that is stopped already, traced or in
  uninterruptible sleep is read as it is. Should py-spy leave it stopped because it was killed in between, it
  is continued.
* Plain stacks take milliseconds, but native ones ten times as long, and more the larger the libraries are:
  for so long a worker that lives on would be late for its other timers. It is looked at gently.
* One look is a moment. A thread that is seen holding the GIL in native code may be a loop in Python, caught
  in a call that takes a nanosecond: it is looked at again before anybody says that it holds it.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from .._linux.process import send_signal
from .._linux.procfs import state_of
from . import unwind
from .findings import Frame, stack
from .stacks import MAX_FRAMES, MAX_NAME, MAX_STACKS

MAX_OUTPUT = 4 * 1024 * 1024
"""Bytes of output after which a helper is killed."""

_SHARE = 0.7
"""Of the time, what native stacks have before plain ones are asked for."""

_LOOKS = 4
"""How often a thread must be seen holding the GIL in native code before it is said that it does.

Of looks at a loop in Python, 5 to 8 % find it in native code, on interpreters with a shared library: in
``__tls_get_addr``, which finds the thread's state.
"""

_START = re.compile(r"0x[0-9a-f]+|_*libc_start\w*|start_thread|_*clone\d?")
"""The functions of libc that begin a thread, few of which have a symbol."""

_BEGINNING = re.compile(r"<module>|Thread\.(run|_bootstrap)")
"""The outermost function of a program and of a thread; 3.14 begins with ``run``, which C calls."""

_MAX_ERRORS = 4096
_STANDING = ("T", "t", "D")


class HelperFailed(Exception):
    """A helper did not deliver; in words, why."""


def find_pyspy() -> str | None:
    """Return the path of py-spy: beside this interpreter, else on the PATH; None if it is not installed."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def unwind_command(pid: int) -> list[str] | None:
    """Return the command that reads stacks with the interpreter's own unwinder; None before CPython 3.14."""
    if sys.version_info < (3, 14):
        return None
    return [sys.executable, "-I", "-S", unwind.__file__, str(pid)]


def shows_more(found: list[dict[str, Any]]) -> bool:
    """Whether py-spy can tell more than these stacks, which the interpreter's unwinder has read.

    It can if a thread holds on to the GIL, which it may do in native code; and if a stack does not begin
    where a program or a thread does.
    """
    return not found or any(
        one["gil"] or not one["frames"] or not _BEGINNING.fullmatch(one["frames"][0][2]) for one in found
    )


def run(command: Sequence[str], limit: float, given_up: threading.Event) -> bytes:
    """Run a helper and return what it wrote to its standard output. Blocks for at most ``limit`` seconds.

    Args:
        command: what to run.
        limit: seconds.
        given_up: set when nobody waits for it any more: it is killed then.

    Raises:
        HelperFailed: it could not be run, took too long, wrote too much or did not succeed.
    """
    until = monotonic() + limit
    try:
        helper = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise HelperFailed(f"cannot be run: {error.strerror}") from None
    with helper:
        pidfd = os.pidfd_open(helper.pid)  # our child, and not waited for: it is that one
        try:
            output, errors = _read(helper, until, given_up)
            status = _wait(helper, pidfd, until)
        finally:
            if helper.returncode is None:
                send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    if status != 0:
        raise HelperFailed(f"failed: {_reason(errors) or _end(status)}"[:200])
    return output


def _reason(said: bytes) -> str:
    """Return the line that says why a helper failed: about its rights if there is one, else the last one."""
    said = said.partition(b"Stack backtrace:")[0]  # $RUST_BACKTRACE is set
    lines = said.decode(errors="backslashreplace").splitlines()
    words = [line for line in map(str.strip, lines) if line]
    rights = [line for line in words if "ermission" in line or "ptrace" in line]
    return (rights or words or [""])[-1]


def _end(status: int) -> str:
    """Return how a helper ended, for want of its own words."""
    return f"exit status {status}" if status > 0 else f"killed by signal {-status}"


def _read(helper: subprocess.Popen[bytes], until: float, given_up: threading.Event) -> tuple[bytes, bytes]:
    """Return what a helper writes until it closes both of its outputs."""
    assert helper.stdout is not None
    assert helper.stderr is not None
    poll = select.poll()
    output, errors = bytearray(), bytearray()
    open_ends = {helper.stdout.fileno(): output, helper.stderr.fileno(): errors}
    for descriptor in open_ends:
        poll.register(descriptor, select.POLLIN)
    while open_ends:
        if given_up.is_set() or monotonic() >= until:
            raise HelperFailed("took too long")
        for descriptor, _event in poll.poll(10):  # milliseconds: to hear of being given up
            data = os.read(descriptor, 65_536)
            if not data:
                poll.unregister(descriptor)
                del open_ends[descriptor]
                continue
            into = open_ends[descriptor]
            into += data
            if len(output) > MAX_OUTPUT:
                raise HelperFailed("wrote too much")
            del errors[:-_MAX_ERRORS]
    return bytes(output), bytes(errors)


def _wait(helper: subprocess.Popen[bytes], pidfd: int, until: float) -> int:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(max(0.0, until - monotonic()) * 1000):
        raise HelperFailed("took too long")
    return helper.wait()


def collect(
    program: str, pid: int, pidfd: int, limit: float, given_up: threading.Event, *, gently: bool
) -> list[dict[str, Any]]:
    """Return the stacks of a worker's threads as py-spy sees them. Blocks for at most ``limit`` seconds.

    Args:
        program: py-spy.
        pid: the worker's.
        pidfd: it, pinned.
        limit: seconds.
        given_up: set when nobody waits for it any more.
        gently: native stacks are not asked for, unless a thread stands at one line with the GIL.

    Raises:
        HelperFailed: it did not deliver.
    """
    until = monotonic() + limit

    def look(option: str, share: float = 1.0) -> list[dict[str, Any]]:
        command = [program, "dump", "--pid", str(pid), "--json", *option.split()]
        try:
            return parse(run(command, max(0.0, until - monotonic()) * share, given_up), pid)
        finally:
            if not standing and state_of(pid).startswith("T"):
                send_signal(pidfd, signal.SIGCONT)

    standing = state_of(pid)[:1] in _STANDING
    if standing:
        return look("--nonblocking")
    plain: list[dict[str, Any]] = []
    if gently:
        holders: list[Any] = []
        while len(holders) < _LOOKS:
            plain = look("")
            holders.append(next(((one["tid"], one["frames"]) for one in plain if one["gil"]), None))
            if holders[-1] is None or holders[-1] != holders[0]:
                return plain
    try:
        # Native stacks need what plain ones do not, symbols above all, and may take too long.
        found = look("--native", _SHARE)
    except HelperFailed:
        if given_up.is_set():
            raise
        return plain or look("")
    for _again in range(_LOOKS - 1):
        if not _holder_in_native_code(found):
            break
        try:
            found = look("--native")
        except HelperFailed:
            break  # no time is left: what was seen is all that is known
    return found


def _holder_in_native_code(found: list[dict[str, Any]]) -> bool:
    return any(one["gil"] and one["native"] for one in found)


def parse(output: bytes, pid: int) -> list[dict[str, Any]]:
    """Return the stacks in py-spy's JSON, in its order.

    Raises:
        HelperFailed: it is none.
    """
    try:
        traces = json.loads(output)
        return [_stack(trace, pid) for trace in traces[:MAX_STACKS]]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise HelperFailed(f"wrote what is no dump: {type(error).__name__}") from None


def _stack(trace: dict[str, Any], pid: int) -> dict[str, Any]:
    frames: list[Frame] = []
    native: list[tuple[str, str]] = []
    outermost_is_native = False
    for frame in trace["frames"][:MAX_FRAMES]:  # innermost first
        name = str(frame["name"])[:MAX_NAME]
        outermost_is_native = frame.get("module") is not None
        if not outermost_is_native:
            frames.append([str(frame["filename"])[:MAX_NAME], int(frame["line"]), name])
        elif not frames:
            native.append((name, os.path.basename(str(frame["module"]))[:MAX_NAME]))
    if frames and not outermost_is_native:
        native = _called(native)
    tid = int(trace.get("os_thread_id") or 0)
    found = stack(str(trace.get("thread_name") or "")[:MAX_NAME], frames[::-1])
    found.update(
        ident=int(trace.get("thread_id") or 0),
        tid=tid,
        main=tid == pid,
        gil=bool(trace.get("owns_gil")),
        native=[f"{name} ({module})" for name, module in native[::-1]],
    )
    if found["main"] and not found["thread"]:
        found["thread"] = "MainThread"
    return found


def _called(native: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the native frames without those that have called Python, as the outermost ones say.

    Of an interpreter without symbols, as Debian's is, py-spy cannot tell which native frame runs Python: all
    native ones come first, down to the start of the thread, and then all of Python. The tasks of asyncio are
    stepped in C; who else calls Python from C is not known, and counts as called by it.
    """
    end = len(native)
    while end and native[end - 1][1].startswith("libc") and _START.fullmatch(native[end - 1][0]):
        end -= 1
    if end < len(native):  # else it is cut off, and all that is known is innermost
        while end and native[end - 1][1].startswith("_asyncio"):
            end -= 1
    return native[:end]
