"""A runner of helpers that look into a worker from outside.

They are py-spy, and from CPython 3.14 on the interpreter's own unwinder: ``unwind.py`` prints the same.

The laws of this file:

* A helper is a process of its own session with a time limit; it is killed when that has passed, through its
  pidfd, and when nobody waits for it any more. What it prints is bounded.
* py-spy stops the worker while it reads, or it might read nonsense; one that is stopped already, traced or in
  uninterruptible sleep is read as it is. Should py-spy leave it stopped because it was killed in between, it
  is continued.
* Plain stacks take milliseconds, but native ones several times as long, a second with large libraries. They
  are asked for only if a thread stands at one line with the GIL, at every look (``motion``).
* One look is a moment. A thread that is seen holding the GIL in native code may be a loop in Python, caught
  in a call that takes a nanosecond: it is looked at again before anybody says that it holds it. One that has
  not run at all between two looks is no loop.
* A frame in memory that belongs to no file is what a compiler made at run time: it is native, and nobody's.
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
from . import motion, unwind
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

_ADDRESS = re.compile(r"0x[0-9a-f]+")

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


def unwind_once(
    command: Sequence[str], pid: int, limit: float, given_up: threading.Event
) -> list[dict[str, Any]]:
    """Return the stacks of a process's threads as the interpreter's own unwinder sees them in one look.

    Args:
        command: what :func:`unwind_command` returned.
        pid: the process.
        limit, given_up: as for :func:`run`.

    Raises:
        HelperFailed: it did not deliver.
    """
    return parse(run(command, limit, given_up), pid)


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
    program: str,
    pid: int,
    pidfd: int,
    limit: float,
    given_up: threading.Event,
    seen: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return the stacks of a worker's threads as py-spy sees them. Blocks for at most ``limit`` seconds.

    Args:
        program: py-spy.
        pid: the worker's.
        pidfd: it, pinned.
        limit: seconds.
        given_up: set when nobody waits for it any more.
        seen: what another helper, which knows of no native code, has seen, if a thread stands with the GIL.

    Raises:
        HelperFailed: it did not deliver.
    """
    until = monotonic() + limit

    def look(option: str = "", share: float = 1.0) -> list[dict[str, Any]]:
        return look_once(program, pid, pidfd, max(0.0, until - monotonic()) * share, given_up, option)

    if state_of(pid)[:1] in _STANDING:
        return look()
    plain = seen or motion.watch(look, pid, given_up.wait)
    if not any(stands_with_gil(one) for one in plain):
        return plain
    native: list[list[dict[str, Any]]] = []
    for number in range(_LOOKS):
        try:
            # Native stacks need what plain ones do not, symbols above all, and may take too long.
            native.append(look("--native", 1.0 if number else _SHARE))
        except HelperFailed:
            break  # what was seen is all that is known
        if not any(one["gil"] and one["native"] and one["ran"] != 0 for one in _together(plain, native)):
            break
    return _together(plain, native)


def look_once(
    program: str, pid: int, pidfd: int, limit: float, given_up: threading.Event, option: str = ""
) -> list[dict[str, Any]]:
    """Return the stacks of a process's threads as py-spy sees them in one look.

    Args:
        program, pid, pidfd, limit, given_up: as for :func:`collect`.
        option: of py-spy's, if it may stop the process: who stands already is read as it is.

    Raises:
        HelperFailed: it did not deliver.
    """
    standing = state_of(pid)[:1] in _STANDING
    options = ["--nonblocking"] if standing else option.split()
    try:
        return parse(run([program, "dump", "--pid", str(pid), "--json", *options], limit, given_up), pid)
    finally:
        if not standing and state_of(pid).startswith("T"):  # it was killed before it let it go on
            send_signal(pidfd, signal.SIGCONT)


def stands_with_gil(one: dict[str, Any]) -> bool:
    """Whether a thread was seen at one place with the GIL at every look: it may be in native code."""
    return bool(one["gil"]) and motion.stands(one)


def _together(plain: list[dict[str, Any]], native: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the last look at native code, with what was known of who moves before; without one, that."""
    if not native:
        return plain
    known = {one["tid"]: one for one in plain}
    found = motion.compare([*native[:-1], [dict(one) for one in native[-1]]])
    for one in found:
        former = known.get(one["tid"])
        if former is not None:
            one["ran"], one["awake"] = former["ran"], former["awake"]
            if one["moves"] in (None, motion.STANDS):
                one["moves"], one["lines"] = former["moves"], former["lines"]
    return found


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
        outermost_is_native = frame.get("module") is not None or _is_anonymous(frame)
        if not outermost_is_native:
            frames.append([str(frame["filename"])[:MAX_NAME], int(frame["line"]), name])
        elif not frames:
            native.append((name, os.path.basename(str(frame.get("module") or "no file"))[:MAX_NAME]))
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


def _is_anonymous(frame: dict[str, Any]) -> bool:
    """Whether a frame is in memory that belongs to no file: a compiler made it, and it has but an address."""
    return frame["filename"] == "?" or _ADDRESS.fullmatch(str(frame["name"])) is not None


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
