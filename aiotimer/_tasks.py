"""What the tasks of an event loop wait for, told from inside the loop.

The laws of this file: it looks and changes nothing; what it returns fits into one frame, the tasks that were
asked for first. A suspended coroutine shows its frame and what it awaits, so the way from a task to the
future that is not done is a walk along ``cr_await`` and its relatives.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import gc
import os
from collections import deque
from collections.abc import Iterator
from pathlib import PurePath
from types import AsyncGeneratorType, CellType, CoroutineType, FrameType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any

from ._core import wire
from ._core.layout import FIRST_DEADLINE
from ._leaving import Entered

if TYPE_CHECKING:
    from ._core.table import TimerTable

_ROOM = 40 * 1024
"""Bytes for the tasks in an answer; ``wire.MAX_FRAME`` has room for the stacks too."""

_STACKS_ROOM = 16 * 1024
_DEEPEST = 1000
"""Coroutines that await each other, at most: there may be a cycle."""

_SHOWN = 60
"""Frames of a task in an answer: the outermost ones and the innermost ones."""

_LONGEST = 200
"""Characters of a name, of a path, of what is waited for."""

_FOLLOWED = (MethodType, functools.partial, tuple, deque, CellType, GeneratorType, AsyncGeneratorType)
"""Kinds of objects between a coroutine and a block that it has entered, besides those of contextlib."""

_NODES = 300
"""Objects looked at in one coroutine."""

_ASYNCIO = str(PurePath(asyncio.__file__).parent)


def describe(
    loop: asyncio.AbstractEventLoop, table: TimerTable | None, words: set[int], number: int, thread: str
) -> wire.Tasks:
    """Return what the tasks of the running loop wait for.

    Args:
        loop: the loop.
        table: the table in which ``words`` are, None if there is none.
        words: word indices of the deadlines of interest.
        number: of the question.
        thread: the name of the loop's thread.
    """
    grouped: dict[tuple[Any, ...], wire.TaskReport] = {}
    for task in asyncio.all_tasks(loop):
        found = _report(task, table, words)
        key = (found.frames, found.waits_for, found.slots)
        known = grouped.get(key)
        grouped[key] = found if known is None else _one_more(known)
    reports = sorted(grouped.values(), key=lambda report: (not report.slots, -report.count, report.name))
    fitting: list[wire.TaskReport] = []
    room = _ROOM
    for report in reports:
        room -= wire.size(report)
        if room < 0:
            break
        fitting.append(report)
    left_out = sum(report.count for report in reports[len(fitting) :])
    return wire.Tasks(number, _cut(repr(loop)), _cut(thread), tuple(fitting), left_out, _stacks())


def _one_more(report: wire.TaskReport) -> wire.TaskReport:
    return wire.TaskReport(report.name, report.count + 1, report.slots, report.frames, report.waits_for)


def _report(task: asyncio.Task[Any], table: TimerTable | None, words: set[int]) -> wire.TaskReport:
    frames: list[tuple[str, int, str]] = []
    slots: set[int] = set()
    where = ""
    for awaited in _chain(task.get_coro()):
        frame = _frame_of(awaited)
        if frame is not None:
            code = frame.f_code
            frames.append((_cut(code.co_filename), frame.f_lineno or 0, _cut(code.co_qualname)))
            if code.co_filename.startswith(_ASYNCIO):
                where = where or f"asyncio.{code.co_qualname}"
            else:
                where = ""
        if table is not None and words:
            slots |= {word - FIRST_DEADLINE for word in _entered(awaited, table) & words}
    shown = frames if len(frames) <= _SHOWN else frames[: _SHOWN // 4] + frames[-3 * _SHOWN // 4 :]
    waits_for = _cut(_waits_for(task, where))
    return wire.TaskReport(_cut(task.get_name()), 1, tuple(sorted(slots)), tuple(shown), waits_for)


def _chain(awaited: Any) -> Iterator[Any]:
    """Yield a task's coroutine, what that awaits, and so on."""
    for _ in range(_DEEPEST):
        if awaited is None:
            return
        yield awaited
        if isinstance(awaited, CoroutineType):
            awaited = awaited.cr_await
        elif isinstance(awaited, GeneratorType):
            awaited = awaited.gi_yieldfrom
        elif isinstance(awaited, AsyncGeneratorType):
            awaited = awaited.ag_await
        else:  # asend() of an asynchronous generator, __await__() of a coroutine: they hide it
            inside = gc.get_referents(awaited)
            kinds = (CoroutineType, AsyncGeneratorType, GeneratorType)
            awaited = next((thing for thing in inside if isinstance(thing, kinds)), None)


def _frame_of(awaited: Any) -> FrameType | None:
    for attribute in ("cr_frame", "gi_frame", "ag_frame"):
        frame = getattr(awaited, attribute, None)
        if isinstance(frame, FrameType):
            return frame
    return None


def _waits_for(task: asyncio.Task[Any], where: str) -> str:
    """Say what a task waits for; ``where`` is the function of asyncio's in which it does."""
    future = getattr(task, "_fut_waiter", None)
    if isinstance(future, asyncio.Task):
        return f"task {future.get_name()!r}"
    children = getattr(future, "_children", None)
    if isinstance(children, list):
        names = [
            c.get_name() if isinstance(c, asyncio.Task) else "a future" for c in children if not c.done()
        ]
        return f"asyncio.gather, of which {len(names)} are not done: {', '.join(names)}"
    if where:
        return where
    return "" if future is None else f"a {type(future).__name__} that is not done"


def _entered(awaited: Any, table: TimerTable) -> set[int]:
    """Return where the deadlines stand of the blocks that a suspended coroutine has entered.

    It holds them: the method that is to leave a block waits on the frame's stack, or in an ExitStack.
    """
    words: set[int] = set()
    seen: set[int] = set()
    nodes = deque(gc.get_referents(awaited))
    while nodes and len(seen) < _NODES:
        node = nodes.popleft()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Entered):
            with contextlib.suppress(AttributeError):
                if node._slot is not None and node._pool.table is table:
                    words.add(node._slot)
        elif isinstance(node, _FOLLOWED) or type(node).__module__ == "contextlib":
            nodes.extend(gc.get_referents(node))
        elif isinstance(node, dict) and len(node) <= 16:  # the attributes of such a thing
            nodes.extend(value for value in node.values() if isinstance(value, (*_FOLLOWED, Entered)))
    return words


def _stacks() -> str:
    """Return the stacks of all threads, as ``faulthandler`` writes them; "" if it cannot."""
    try:
        file = os.memfd_create("stacks", os.MFD_CLOEXEC)
    except OSError:
        return ""
    try:
        faulthandler.dump_traceback(file, all_threads=True)
        return os.pread(file, _STACKS_ROOM, 0).decode(errors="backslashreplace")
    except (OSError, RuntimeError, ValueError):
        return ""
    finally:
        os.close(file)


def _cut(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST else "..." + text[-_LONGEST:]
