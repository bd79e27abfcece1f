"""A dictionary of coroutines of libraries: what a task that awaits one of them waits for, in words.

The laws of this file:

* It reads nothing: what a loop has told of its tasks is handed in.
* A word is said only if it follows from what the program itself has called: ``Queue.join`` waits for a queue
  to be done, though it awaits an event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .findings import Frame

OF_A_CHILD = "a child process"

_KNOWN: Mapping[str, tuple[tuple[str, str], ...]] = {
    "asyncio/locks.py": (
        (r"Lock\.acquire", "a lock"), (r"(Bounded)?Semaphore\.acquire", "a semaphore"),
        (r"Event\.wait", "an event"), (r"Condition\.wait(_for)?", "a condition"),
        (r"Barrier\.(wait|__aenter__)", "a barrier"),
    ),
    "asyncio/queues.py": (
        (r"Queue\.get", "a queue"), (r"Queue\.put", "room in a queue"),
        (r"Queue\.join", "a queue to be done"),
    ),
    "asyncio/streams.py": (
        (r"StreamReader\.\w+", "data of a stream"), (r"StreamWriter\.drain", "room in a stream"),
        (r"StreamWriter\.wait_closed", "a stream to be closed"), (r"open_\w+", "a connection"),
    ),
    "asyncio/subprocess.py": ((r"Process\.(wait|communicate)", OF_A_CHILD),),
    "asyncio/tasks.py": ((r"(as_completed\.|_AsCompletedIterator\.).*", "the next one of several"),),
    "asyncio/base_events.py": (
        (r"BaseEventLoop\.getaddrinfo", "the address of a host"),
        (r"BaseEventLoop\.create_\w*connection", "a connection"),
        (r"Server\.\w+", "a server to end"),
    ),
    "asyncio/selector_events.py": (
        (r"BaseSelectorEventLoop\.sock_recv\w*", "data of a socket"),
        (r"BaseSelectorEventLoop\.sock_send\w*", "room in a socket"),
        (r"BaseSelectorEventLoop\.sock_(connect|accept)", "a connection"),
    ),
    "anyio/streams/memory.py": (
        (r"MemoryObjectReceiveStream\.receive", "a memory stream"),
        (r"MemoryObjectSendStream\.send", "room in a memory stream"),
    ),
}  # fmt: skip
"""By file of a library, its functions, and what a task that has called one of them waits for."""

_IN_THREAD = re.compile(r"run_in_executor|(asyncio\.)?(to_thread)")
_TO_THREAD = re.compile(r"/anyio/to_thread\.py$")


def of_frames(frames: Sequence[Frame]) -> str:
    """Return in words what a task waits for, "" if that is not known.

    Args:
        frames: of libraries, below the innermost of the user's own, outermost first.
    """
    for file, _line, function in frames:
        known = next((waits for name, waits in _KNOWN.items() if file.endswith(f"/{name}")), ())
        for functions, words in known:
            if re.fullmatch(functions, function):
                return words
    return ""


def of_thread(waits_for: str, frames: Sequence[Frame]) -> str:
    """Return the name of the call that a task waits for if that is done in a thread or a process, else "".

    Args:
        waits_for: as its loop has told it.
        frames: of the task.
    """
    if found := _IN_THREAD.fullmatch(waits_for):
        return found[2] or found[0]
    called = (function for file, _line, function in frames if _TO_THREAD.search(file))
    return f"to_thread.{name}" if (name := next(called, "")) else ""
