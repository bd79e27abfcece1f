"""The verdict, which says in words what a worker was doing: a pure function of what the probes found.

The laws of this file:

* A word is said only if a probe has seen it; a worker that could be told nothing about gets the words of
  /proc, and no guess. Whatever a worker sent or wrote gives a verdict, and raises nothing.
* Which files of a stack are a library's, and which are the user's, is decided here and nowhere else, so that
  the verdict of a server and the page that is printed from its record agree; and by the text of the path
  alone, because the page may be printed on another machine. A file is the user's unless its path says that
  it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .findings import Frame

_LOOP = re.compile(r"/(asyncio/(base_events|runners)\.py|uvloop/__init__\.py)$")
_LOOP_INSIDE = re.compile(r"/asyncio/[a-z_]+\.py$|/selectors\.py$|/uvloop/[^/]*$")
_JOINING = re.compile(r"/(threading|queue)\.py$|/concurrent/futures/[a-z_]+\.py$")

_LIBRARY = re.compile(
    r"<frozen "  # what the interpreter has built in, such as the import system
    r"|(.*/)?lib(64)?/python3\.\d+t?/"  # the standard library: the system's, pyenv's, conda's
    r"|(.*/)?lib(64)?/python3\d+\.zip/"  # the same, zipped
    r"|(.*/)?(site|dist)-packages/"  # what pip or the distribution has installed, zipped or not
    r"|.*\.(pyx|px[di])\Z",  # Cython: where it was when somebody compiled it, most likely elsewhere
    re.DOTALL,
)

_OURS = str(Path(__file__).parent.parent) + "/"
"""This package, which is no library by its path when it is installed as editable."""

_LONGEST = 500


class Verdict(NamedTuple):
    """What a worker was doing.

    Attributes:
        text: in words.
        where: the line of the user's code, "" if it is not known.
    """

    text: str
    where: str


def verdict(
    process: dict[str, Any],
    tasks: list[dict[str, Any]],
    stacks: list[dict[str, Any]],
    scope: str = "",
    *,
    gone: bool = False,
    asked: int = 0,
    answered: int = 0,
) -> Verdict:
    """Say what a worker was doing.

    Args:
        process: what /proc says of it.
        tasks: of its loops.
        stacks: of its threads.
        scope: the timer in question; one like ``train.py:42`` names a line.
        gone: it is dead.
        asked: how many of its loops were asked.
        answered: how many answered: these are alive.
    """
    state = process["state"][:1]
    if gone or state in ("Z", "X"):
        return Verdict("gone", "")
    chosen = _thread(stacks, scope)
    frame = _user_frame(chosen["frames"]) if chosen else None
    if process["tracer"]:
        debugger = f"{process['tracer_name']}, pid {process['tracer']}".lstrip(", ")
        return _at(f"in a debugger ({debugger})", frame)
    if state in ("T", "t"):
        return _at("stopped", frame)
    if state == "D" or (chosen and chosen["state"][:1] == "D"):
        wchan = f" ({process['wchan']})" if process["wchan"] else ""
        return _at("in uninterruptible sleep" + wchan, frame)
    return (
        _of_own_task(tasks)
        or _of_gil(stacks, chosen)
        or (_of_loop_alive(tasks, chosen, scope) if answered and answered >= asked else None)
        or _of_stack(process, chosen, frame, silent=asked > answered)
        or _of_process(process)
    )


def is_users(file: str) -> bool:
    """Whether a file is the user's: no library's, and not aiotimer's.

    Args:
        file: as a frame has it: absolute, relative (``train.py``, of a script), inside a zip file, or no file
            at all (``<string>``, which is the user's code in nearly every case).
    """
    return not file.startswith(_OURS) and _LIBRARY.match(file) is None


def line_of(frame: Frame) -> str:
    """Return the line of a frame for people: ``train.py:42``."""
    return f"{frame[0].rsplit('/', 1)[-1]}:{frame[1]}"


def runs_loop(frames: Iterable[Frame]) -> bool:
    """Whether a thread runs an event loop, as its stack shows it."""
    return any(_LOOP.search(file) and function != "close" for file, _line, function in frames)


def _of_own_task(tasks: list[dict[str, Any]]) -> Verdict | None:
    own = [task for task in tasks if task["own"]]
    return _awaiting(own) if own else None


def _of_gil(stacks: list[dict[str, Any]], chosen: dict[str, Any] | None) -> Verdict | None:
    """Say so if native code holds the GIL, and it is the thread in question or that one waits for the GIL."""
    for one in stacks:
        if one["gil"] is not True or not one["native"]:
            continue
        waited_for = chosen is not None and any(name.startswith("take_gil") for name in chosen["native"])
        if one is chosen or waited_for:
            return _at("holding the GIL in native code, called", _user_frame(one["frames"]))
    return None


def _of_loop_alive(tasks: list[dict[str, Any]], chosen: dict[str, Any] | None, scope: str) -> Verdict | None:
    """Of a worker whose loops are all alive, with a block that none of their tasks is known to be in."""
    named = _in_scope(chosen["frames"], scope) if chosen else None
    if chosen and named is not None and not runs_loop(chosen["frames"]):
        return None  # a thread beside the loops
    likely = sorted(tasks, key=lambda task: _distance(task["frames"], scope))
    waiting = [task for task in likely if task["waits_for"] and _user_frame(task["frames"], strict=True)]
    return _awaiting(waiting or likely)


def _awaiting(tasks: list[dict[str, Any]]) -> Verdict:
    frames: list[Frame] = next((task["frames"] for task in tasks if task["frames"]), [])
    return _at("awaiting forever (loop alive)", _user_frame(frames))


def _of_stack(
    process: dict[str, Any], chosen: dict[str, Any] | None, frame: Frame | None, *, silent: bool
) -> Verdict | None:
    if chosen is None or frame is None:
        return None
    loop = runs_loop(chosen["frames"])
    if loop and not silent and _LOOP_INSIDE.search(chosen["frames"][-1][0]):
        return _at("awaiting forever (loop idle), run", frame)
    if loop or (silent and chosen["main"]):
        return _at("event loop blocked in Python", frame)
    syscall = chosen["syscall"] or (process["syscall"] if chosen["main"] else "")
    return _at("blocked in Python", frame, f" ({_doing(syscall)})" if syscall else "")


def _of_process(process: dict[str, Any]) -> Verdict:
    if not process["state"]:
        return Verdict("nothing is known", "")
    syscall = process["syscall"]
    doing = _doing(syscall) if syscall else process["state"]
    return Verdict(f"no Python stack; the main thread is {doing}"[:_LONGEST], "")


def _doing(syscall: str) -> str:
    return "running" if syscall in ("running", "no system call") else f"in {syscall}"


def _at(words: str, frame: Frame | None, after: str = "") -> Verdict:
    if frame is None:
        return Verdict((words.removesuffix(", called").removesuffix(", run") + after)[:_LONGEST], "")
    where = line_of(frame)
    return Verdict(f"{words} at {where} in {frame[2]}{after}"[:_LONGEST], where[:_LONGEST])


def _user_frame(frames: list[Frame], *, strict: bool = False) -> Frame | None:
    """Return the innermost frame of the user's code; if there is none, of any, unless ``strict``."""
    users = next((frame for frame in reversed(frames) if is_users(frame[0])), None)
    return users or (frames[-1] if frames and not strict else None)


def _thread(stacks: list[dict[str, Any]], scope: str) -> dict[str, Any] | None:
    """Return the thread in question: in the scope's lines, else in a loop, else the main one.

    A main thread that only waits for another one gives way to it, if there is but one.
    """
    with_frames = [one for one in stacks if one["frames"]]
    named = [one for one in with_frames if _in_scope(one["frames"], scope) is not None]
    if named:
        return min(named, key=lambda one: _distance(one["frames"], scope))
    loops = [one for one in with_frames if runs_loop(one["frames"])]
    main = next((one for one in with_frames if one["main"]), None)
    if loops:
        return main if main in loops else loops[0]
    if main is not None and _JOINING.search(main["frames"][-1][0]):
        others = [one for one in with_frames if one is not main and _user_frame(one["frames"], strict=True)]
        return others[0] if len(others) == 1 else main
    current = next((one for one in with_frames if one["current"]), None)
    return main or current or (with_frames[-1] if with_frames else None)


def _in_scope(frames: list[Frame], scope: str) -> int | None:
    """Return how many lines after the one that a scope names a stack is; None if it is not in that file.

    The block is entered on that line, and what hangs in it is usually on a later one.
    """
    name, _, rest = scope.rpartition(":")
    digits = rest.partition("#")[0]
    if not name or not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        return None
    first = int(digits)
    after = [line - first for file, line, _ in frames if file.rsplit("/", 1)[-1] == name and line >= first]
    return min(after, default=None)


def _distance(frames: list[Frame], scope: str) -> float:
    found = _in_scope(frames, scope)
    return float("inf") if found is None else found
