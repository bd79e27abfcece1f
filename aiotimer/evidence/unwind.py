"""A program that reads the stacks of another process with the interpreter's own unwinder, and prints them.

CPython has one since 3.14, in a module of the standard library without a public name. It reads a process of
the same minor version through ``process_vm_readv``: in a millisecond, without a signal, and without stopping
it; also one that is stopped, holds the GIL for ever, or has none.

The laws of this file:

* It is run by its path, in a process of its own: what it does to whoever imports the module, and how it
  fails, is nobody else's trouble. It imports nothing of this package.
* It prints what py-spy prints (``py-spy dump --json``), so that there is one reader of both.
* What it reads goes on meanwhile. Whatever cannot be right is read again, a number of times.
* The unwinder of 3.14 ends a stack where C has called Python; that of 3.15 does not. py-spy never does.
* A thread counts as the GIL's holder if every look finds it so, for longer than a loop in Python keeps it
  from the others. Whether it is in native code is not known from here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

LOOKS = 4
"""How often a thread must be seen holding the GIL before it is said that it does."""

_BETWEEN = 0.005
"""Seconds between two looks: the interpreter's switch interval, after which others may have the GIL."""

_TRIES = 20
"""How often a look is taken that fails, as some do while a worker pushes and pops frames."""


def stacks_of(unwinder: Any, pid: int, wait: Callable[[float], object] = time.sleep) -> list[dict[str, Any]]:
    """Return the stacks of a process as py-spy has them, and who held the GIL all the time.

    Args:
        unwinder: the class of it.
        pid: whose.
        wait: sleeps for so many seconds.

    Raises:
        OSError, RuntimeError: it cannot be read, by this interpreter or by this user, or never stands still.
    """
    holder = _holder(unwinder, pid)
    for _ in range(LOOKS - 1):
        if not holder:
            break
        wait(_BETWEEN)
        holder = holder if _holder(unwinder, pid) == holder else 0
    traces = []
    for thread in _threads(unwinder, pid, all_threads=True):
        frames = [
            {"name": frame.funcname, "filename": frame.filename, "line": _line(frame), "module": None}
            for frame in thread.frame_info
        ]
        holds = thread.thread_id == holder
        traces.append({"os_thread_id": thread.thread_id, "owns_gil": holds, "frames": frames})
    return traces


def _holder(unwinder: Any, pid: int) -> int:
    """Return which thread holds the GIL at this moment, 0 if none does."""
    holders = [thread.thread_id for thread in _threads(unwinder, pid, only_active_thread=True)]
    return holders[0] if len(holders) == 1 else 0


def _threads(unwinder: Any, pid: int, **which: bool) -> list[Any]:
    """Return the threads of a process: since 3.15 of all its interpreters, in a list for each."""
    for left in reversed(range(_TRIES)):
        reader = unwinder(pid, **which)  # what raises here will do so again: it is not ours to read
        try:
            found = reader.get_stack_trace()
        except (RuntimeError, OSError, UnicodeDecodeError):
            if not left:
                raise
        else:
            break
    return [thread for one in found for thread in (one.threads if hasattr(one, "threads") else [one])]


def _line(frame: Any) -> int:
    """Return the number of a frame's line; since 3.15 it is a part of the frame's location."""
    number = getattr(frame.location, "lineno", 0) if hasattr(frame, "location") else frame.lineno
    return int(number or 0)


def main() -> int:
    """Print the stacks of the process with the pid that is given, or why they cannot be read."""
    try:
        from _remote_debugging import RemoteUnwinder  # type: ignore[import-not-found, unused-ignore]

        print(json.dumps(stacks_of(RemoteUnwinder, int(sys.argv[1]))))  # noqa: T201 - a program
    except Exception as error:  # noqa: BLE001 - said to whoever has started it
        print(error, file=sys.stderr)  # noqa: T201 - a program
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
