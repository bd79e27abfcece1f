"""A probe of a worker's children: at which line those stand that run Python, as its helpers see it.

The laws of this file:

* A few of them are looked at, side by side, with helpers that cannot harm: the interpreter's own unwinder, or
  py-spy without native stacks. None of them is sent a signal.
* A child is pinned before it is looked at, and what is seen counts if it was the worker's child then, and is
  not dead now.
* What is not found out is left out: it costs the worker's own evidence nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from .._linux import procfs
from .._linux.process import is_dead
from . import pyspy
from .findings import Frame
from .threads import TooManyStuck, in_thread
from .verdict import line_of, thread_of_block, user_frame

MOST = 4
"""Children that are looked at: each takes a helper process, all at the same time."""

WITHIN = 1.0
"""Seconds for all of them."""

_LONGEST = 500

_BOOTSTRAP = re.compile(r"/multiprocessing/process\.py$")
"""Where a process begins that was forked: the frames outside of that are its parent's, and stand still."""

_ROLES = (
    (re.compile(r"/torch/utils/data/_utils/worker\.py$"), "DataLoader worker"),
    (re.compile(r"/(multiprocessing/pool|concurrent/futures/process)\.py$"), "pool worker"),
    (re.compile(r"/multiprocessing/resource_tracker\.py$"), "resource tracker"),
    (re.compile(r"/multiprocessing/forkserver\.py$"), "fork server"),
)
"""What a process is that somebody else's code has started, by a file in its stack."""


def place_of(stacks: list[dict[str, Any]], libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Return the ``line`` of a child, ``in read_shard at train.py:42``, its ``stack``, and its ``role``."""
    chosen = thread_of_block(stacks, "", libraries)
    frames: list[Frame] = chosen["frames"] if chosen else []
    begins = max((n for n, frame in enumerate(frames) if _BOOTSTRAP.search(frame[0])), default=0)
    frames = frames[begins:]
    frame = user_frame(frames, libraries)
    files = [file for file, _line, _function in frames]
    role = next((role for file, role in _ROLES if any(map(file.search, files))), "")
    line = "" if frame is None else f"in {frame[2]} at {line_of(frame)}"[:_LONGEST]
    return {"line": line, "stack": frames, "role": role}


async def look(worker: int, children: list[dict[str, Any]], within: float, libraries: Sequence[str]) -> None:
    """Note at which line the first few children of a worker stand that run Python.

    Args:
        worker: its pid.
        children: as ``evidence/proc.py`` reads them; see ``place_of`` for what is noted in them.
        within: seconds.
        libraries: how the paths of libraries begin; they run what their parent runs, as a rule.
    """
    limit = min(WITHIN, within)
    alive = [child for child in children if child["state"][:1] in ("R", "S", "D")]
    chosen = [child for child in alive if procfs.runs_python(child["pid"])][:MOST]
    await asyncio.gather(*(_look(worker, child, limit, libraries) for child in chosen))


async def _look(worker: int, child: dict[str, Any], limit: float, libraries: Sequence[str]) -> None:
    given_up = threading.Event()
    see = partial(_see, worker, child["pid"], limit * 0.9, given_up)
    with contextlib.suppress(OSError, TimeoutError, TooManyStuck, pyspy.HelperFailed):
        stacks = await in_thread(see, limit, given_up.set)
        child.update(place_of(stacks, libraries))


def _see(worker: int, pid: int, limit: float, given_up: threading.Event) -> list[dict[str, Any]]:
    """Return the stacks of a child; none if it is not, or not any more.

    Raises:
        HelperFailed: it cannot be looked into.
        OSError: it is gone.
    """
    pidfd = os.pidfd_open(pid)
    try:
        if procfs.parent_and_session(pid)[0] != worker or is_dead(pidfd):
            return []
        found: list[dict[str, Any]] = []
        command = pyspy.unwind_command(pid)
        if command is not None:
            with contextlib.suppress(pyspy.HelperFailed):  # it runs another version of Python, say
                found = pyspy.unwind_once(command, pid, limit, given_up)
        program = pyspy.find_pyspy()
        if program is not None and not any(one["frames"] for one in found):
            found = pyspy.look_once(program, pid, pidfd, limit, given_up)
        return [] if is_dead(pidfd) else found
    finally:
        os.close(pidfd)
