"""A report on what the tasks of an event loop wait for, made from inside of it.

The laws of this file: it runs in the loop's thread, between two steps of its tasks, so nothing moves; it
looks and changes nothing; chains may be cyclic and long, so everything is bounded; texts are a
program's own and may be anything. This file imports asyncio, so it is imported late.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import threading
from collections import deque
from contextlib import AsyncExitStack, ExitStack
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType, MethodType
from typing import Any

from .._core import wire
from .._core.layout import FIRST_DEADLINE
from .._core.table import TimerTable

_MOST_LINKS, _MOST_FRAMES = 1000, 100
_MOST_STACKS = 16 * 1024
_ROOM = wire.MAX_FRAME - _MOST_STACKS - 8 * 1024
"""Bytes for what is said of tasks."""

_DEPTH = 6
"""From a frame to a block that it has entered: by a stack of contexts, its queue, a pair, a bound method."""

_MOST_LOOKED_AT = 2000
_CONTAINERS = (MethodType, tuple, list, dict, deque, ExitStack, AsyncExitStack)
_SUSPENDED = (CoroutineType, GeneratorType, AsyncGeneratorType)
_INSPECTING = tuple(f'  File "{os.path.dirname(__file__)}/{name}"' for name in ("inspection.py", "tasks.py"))
"""What is on the stack only because somebody asked."""


def report_tasks(
    loop: asyncio.AbstractEventLoop, question: wire.Inspect, table: TimerTable | None, block_type: type[Any]
) -> bytes:
    """Return the frame of the answer to an inspector's question.

    Args:
        loop: the loop, whose thread this is.
        question: what is asked.
        table: whose slots are asked for; None: it is not known whose they are.
        block_type: what is entered.
    """
    asked = frozenset(question.slots) if table is not None else frozenset()
    groups: dict[Any, tuple[str, int]] = {}
    for task in asyncio.all_tasks(loop):
        links = _chain(task.get_coro())
        slots = _slots_of(links, asked, table, block_type) if asked else ()
        key = (slots, _frames(links), _waits_for(task, links))
        name, count = groups.get(key, (_cut(task.get_name(), 100), 0))
        groups[key] = name, count + 1
    reports = [
        wire.TaskReport(name, count, slots, frames, waits)
        for (slots, frames, waits), (name, count) in sorted(
            groups.items(), key=lambda item: (not item[0][0], -item[1][1], item[1][0])
        )
    ]
    kept, room = [], _ROOM
    for report in reports:
        room -= _size(report)
        if room < 0:
            break
        kept.append(report)
    left_out = sum(report.count for report in reports[len(kept) :])
    thread = _cut(threading.current_thread().name, 100)
    answered = wire.Tasks(
        question.number, _cut(repr(loop), 200), thread, tuple(kept), left_out, _stacks_of_threads()
    )
    return wire.encode(answered)


def _chain(link: Any) -> list[Any]:
    """Return coroutines and generators, each waiting for the next, outermost first."""
    links: list[Any] = []
    seen: set[int] = set()
    while link is not None and id(link) not in seen and len(seen) < _MOST_LINKS:
        seen.add(id(link))
        if isinstance(link, _SUSPENDED):
            links.append(link)
            link = _awaited(link)
        elif isinstance(link, asyncio.Future):
            break
        else:  # what wraps a coroutine, or a step of an asynchronous generator
            link = next((x for x in gc.get_referents(link) if isinstance(x, _SUSPENDED)), None)
    return links


def _awaited(link: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(link, name):
            return getattr(link, name)
    return None


def _frame(link: Any) -> FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        if hasattr(link, name):
            frame: FrameType | None = getattr(link, name)
            return frame
    return None


def _frames(links: list[Any]) -> tuple[tuple[str, int, str], ...]:
    found = [frame for frame in map(_frame, links) if frame is not None]
    if len(found) > _MOST_FRAMES:  # the ends say most
        found = found[: _MOST_FRAMES // 2] + found[-_MOST_FRAMES // 2 :]
    return tuple(
        (_cut(frame.f_code.co_filename, 200), frame.f_lineno or 0, _cut(frame.f_code.co_qualname, 100))
        for frame in found
    )


def _waits_for(task: asyncio.Task[Any], links: list[Any]) -> str:
    """Return in words what a task waits for, "" if it is about to run."""
    waiter = getattr(task, "_fut_waiter", None)
    if waiter is None or waiter.done():
        return ""
    if isinstance(waiter, asyncio.Task):
        return _cut(f"task {waiter.get_name()!r}", 300)
    children = getattr(waiter, "_children", None)
    if isinstance(children, list):
        names = [child.get_name() if isinstance(child, asyncio.Task) else "future" for child in children[:10]]
        more = f" and {len(children) - 10} more" if len(children) > 10 else ""
        return _cut(f"gather of {', '.join(map(repr, names))}{more}", 300)
    frame = _frame(links[-1]) if links else None
    if frame is not None and os.path.basename(os.path.dirname(frame.f_code.co_filename)) == "asyncio":
        return _cut(f"asyncio.{frame.f_code.co_qualname}", 300)
    return _cut(repr(waiter), 200)


def _slots_of(
    links: list[Any], asked: frozenset[int], table: TimerTable | None, block_type: type[Any]
) -> tuple[int, ...]:
    """Return which slots belong to blocks that the frames of these coroutines refer to."""
    found: set[int] = set()
    seen: set[int] = set()
    level: list[Any] = list(links)
    for _ in range(_DEPTH):
        below: list[Any] = []
        for thing in gc.get_referents(*level):
            if id(thing) in seen or len(seen) >= _MOST_LOOKED_AT:
                continue
            if isinstance(thing, block_type):
                word = thing._slot
                if word is not None and thing._pool.table is table and word - FIRST_DEADLINE in asked:
                    found.add(word - FIRST_DEADLINE)
            elif type(thing) in _CONTAINERS:
                seen.add(id(thing))
                below.append(thing)
        level = below
        if not level:
            break
    return tuple(sorted(found))


def _stacks_of_threads() -> str:
    """Return the stacks of all threads, as ``faulthandler`` writes them; "" if it cannot."""
    try:
        memory = os.memfd_create("aiotimer-stacks")
    except OSError:
        return ""
    try:
        faulthandler.dump_traceback(memory, all_threads=True)
        text = os.pread(memory, _MOST_STACKS, 0).decode(errors="replace")[: _MOST_STACKS // 2]
    finally:
        os.close(memory)
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_INSPECTING))


def _cut(text: str, most: int) -> str:
    """Return a text that can be sent, and is at most so many bytes long."""
    return text.encode(errors="backslashreplace")[:most].decode(errors="ignore")


def _size(report: wire.TaskReport) -> int:
    """Return at least as many bytes as a report takes in a frame."""
    texts = sum(len(file.encode()) + len(function.encode()) + 16 for file, _, function in report.frames)
    return texts + len(report.name.encode()) + len(report.waits_for.encode()) + 9 * len(report.slots) + 48
