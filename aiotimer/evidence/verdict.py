"""The verdict, which says in words what a worker was doing: a pure function of what the probes found.

The laws of this file:

* A word is said only if a probe has seen it; a worker that could be told nothing about gets the words of
  /proc, and no guess. Whatever a worker sent or wrote gives a verdict, and raises nothing.
* Which files of a stack are a library's, and which are the user's, is decided here and nowhere else, so that
  the verdict of a server and the page that is printed from its record agree; and by the text of the path
  alone, because the page may be printed on another machine. A file is the user's if it lies outside the
  directories that the worker's interpreter has its libraries in, which are in the record. Of a worker that
  has not named them, it is the user's unless its path looks like a library's.
* A thread that was seen once is told as blocked. That it stands, runs or loops takes two looks (``motion``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import awaits, calls, reasons
from .findings import Frame
from .motion import holds_gil_in_c, runs, stands

_LOOP = re.compile(r"/(asyncio/(base_events|runners)\.py|uvloop/__init__\.py)$")
_LOOP_RUNS = re.compile(r"/asyncio/(base_events|runners|events)\.py$|/uvloop/[^/]*$|uvloop/loop\.pyx$")
_LOOP_INSIDE = re.compile(r"/asyncio/[a-z_]+\.py$|/selectors\.py$|/uvloop/[^/]*$")
_POOL = re.compile(r"/(concurrent/futures/thread|anyio/_backends/_asyncio)\.py$")
_HUB = re.compile(r"/gevent/hub\.py$")
_PROXY = re.compile(r"/multiprocessing/managers\.py$")
_JOINING = re.compile(r"/(threading|queue)\.py$|/concurrent/futures/[a-z_]+\.py$")

_NOBODYS = re.compile(
    r"<frozen "  # what the interpreter has built in, such as the import system
    r"|.*\.(pyx|px[di])\Z",  # Cython: where it was when somebody compiled it, most likely elsewhere
    re.DOTALL,
)

_LIBRARY = re.compile(
    r"(.*/)?lib(64)?/python3\.\d+t?/"  # the standard library: the system's, pyenv's, conda's
    r"|(.*/)?lib(64)?/python3\d+\.zip/"  # the same, zipped
    r"|(.*/)?(site|dist)-packages/",  # what pip or the distribution has installed, zipped or not
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
    cancelled: str = "",
    left_out: int = 0,
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
        cancelled: what became of the block's soft limit, in words, if it had one.
        left_out: how many tasks of theirs are not among ``tasks``.
    """
    state = process["state"][:1]
    if gone or state in ("Z", "X"):
        return Verdict("gone", "")
    said = _of_living(process, tasks, stacks, scope, asked=asked, answered=answered, left_out=left_out)
    if not cancelled or "; cancelled after" in said.text:  # its task has said so
        return said
    after = f"; {cancelled}"
    return said._replace(text=said.text[: _LONGEST - len(after)] + after)


def _of_living(
    process: dict[str, Any],
    tasks: list[dict[str, Any]],
    stacks: list[dict[str, Any]],
    scope: str,
    *,
    asked: int,
    answered: int,
    left_out: int,
) -> Verdict:
    state = process["state"][:1]
    libraries = process.get("libraries") or ()
    chosen = thread_of_block(stacks, scope, libraries)
    frame = user_frame(chosen["frames"], libraries) if chosen else None
    if process["tracer"]:
        debugger = f"{process['tracer_name']}, pid {process['tracer']}".lstrip(", ")
        return _at(f"in a debugger ({debugger})", frame)
    if state in ("T", "t"):
        return _at("stopped", frame)
    if state == "D" or (chosen and chosen["state"][:1] == "D"):
        wchan = f" ({process['wchan']})" if process["wchan"] else ""
        return _at("in uninterruptible sleep" + wchan, frame)
    return (
        _of_own_task(tasks, stacks, process)
        or _of_gil(stacks, chosen, libraries, silent=asked > answered)
        or (
            _of_loop_alive(tasks, stacks, chosen, scope, process, left_out)
            if answered and answered >= asked
            else None
        )
        or _with_children(
            _of_stack(process, stacks, chosen, libraries, silent=asked > answered), process, chosen, libraries
        )
        or _of_process(process)
    )


def is_users(file: str, libraries: Sequence[str] = ()) -> bool:
    """Whether a file is the user's: no library's, and not aiotimer's.

    Args:
        file: as a frame has it: absolute, relative (``train.py``, of a script), inside a zip file, or no file
            at all (``<string>``, which is the user's code in nearly every case).
        libraries: how the paths of libraries begin, as the worker has said; if it has not, they are told by
            what they look like.
    """
    if file.startswith(_OURS) or _NOBODYS.match(file):
        return False
    return not file.startswith(tuple(libraries)) if libraries else _LIBRARY.match(file) is None


def line_of(frame: Frame) -> str:
    """Return the line of a frame for people: ``train.py:42``."""
    return f"{frame[0].rsplit('/', 1)[-1]}:{frame[1]}"


def runs_loop(frames: Iterable[Frame]) -> bool:
    """Whether a thread runs an event loop, as its stack shows it."""
    return any(_LOOP.search(file) and function != "close" for file, _line, function in frames)


def _of_own_task(
    tasks: list[dict[str, Any]], stacks: list[dict[str, Any]], process: dict[str, Any]
) -> Verdict | None:
    own = [task for task in tasks if task["own"]]
    return _awaiting(own, tasks, stacks, process) if own else None


def _of_gil(
    stacks: list[dict[str, Any]], chosen: dict[str, Any] | None, libraries: Sequence[str], *, silent: bool
) -> Verdict | None:
    """Say so if native code holds the GIL: of the thread in question, or of one that this waits for."""
    for one in filter(holds_gil_in_c, stacks):
        frame = user_frame(one["frames"], libraries)
        if one is chosen and (runs(one) or one["awake"]):  # it may have had no processor meanwhile
            return _at(
                "stuck in one call, running (it holds the GIL), called",
                frame,
                ", or calls it again and again" if frame else "",
            )
        after = f" ({_doing(one['syscall'])})" if one["syscall"] else ""
        if one is chosen:
            return _at("holding the GIL in native code, called", frame, after)
        if frame is None or chosen is None or not chosen["frames"]:
            continue
        where, name = line_of(frame)[:_LONGEST], one["thread"] or f"number {one['tid']}"
        text = f'the GIL is held by thread "{name[:100]}" in `{frame[2][:100]}` at {where[:200]}{after}'
        if _JOINING.search(chosen["frames"][-1][0]) and (waits := user_frame(chosen["frames"], libraries)):
            return Verdict(f"{text}; {line_of(waits)[:100]} waits for a thread", where)
        if _may_wait_for_gil(chosen, silent=silent):
            return Verdict(f"{text}; everything else waits for it", where)
    return None


def _may_wait_for_gil(one: dict[str, Any], *, silent: bool) -> bool:
    """Whether a thread waits as one does for the GIL: it wakes every switch interval, to look for it.

    A loop that was asked and is silent did wait for events before, when its system call was read.
    """
    was_idle = silent and runs_loop(one["frames"])
    return one["ran"] != 0 and (was_idle or one["syscall"] in ("", "futex", "running", "no system call"))


def _of_loop_alive(
    tasks: list[dict[str, Any]],
    stacks: list[dict[str, Any]],
    chosen: dict[str, Any] | None,
    scope: str,
    process: dict[str, Any],
    left_out: int,
) -> Verdict | None:
    """Of a worker whose loops are all alive, with a block that none of their tasks is known to be in.

    If but one can be meant, it is that one.
    """
    libraries = process.get("libraries") or ()
    named = _in_scope(chosen["frames"], scope) if chosen else None
    if chosen and (chosen["entered"] or named is not None) and not runs_loop(chosen["frames"]):
        return None  # a thread beside the loops
    likely = sorted(tasks, key=lambda task: _distance(task["frames"], scope))
    waiting = [
        task for task in likely if task["waits_for"] and user_frame(task["frames"], libraries, strict=True)
    ]
    near = [task for task in waiting if _in_scope(task["frames"], scope) is not None]
    if scope and (left_out or len(near or waiting or likely) > 1):
        count = sum(task["count"] for task in tasks) + left_out
        return Verdict(f"awaiting (loop alive); which of {count:,} tasks entered the block is not known", "")
    return _awaiting(waiting or likely, tasks, stacks, process)


def _awaiting(
    those: list[dict[str, Any]],
    tasks: list[dict[str, Any]],
    stacks: list[dict[str, Any]],
    process: dict[str, Any],
) -> Verdict:
    libraries = process.get("libraries") or ()
    task = next((task for task in those if task["frames"]), None)
    if task is None:
        return Verdict("awaiting (loop alive)", "")
    waits, cancelled, rest = task["waits_for"].partition("; cancelled ")
    after = cancelled + rest if task["own"] else ""
    chain = _chain({**task, "waits_for": waits}, tasks)
    last = chain[-1].task
    through = "".join(link.name + link.many for link in chain)
    call = awaits.of_thread(last["waits_for"], last["frames"])
    while len(chain) > 1 and not _of_users(chain[-1].task["frames"], libraries):
        chain.pop()  # it is a library's own, and says less than where the user has called that
    frame = user_frame(chain[-1].task["frames"], libraries)
    if call:
        return _of_executor(
            f"awaiting (loop alive){through.removesuffix(',')}: `{call}`", frame, stacks, process, after
        )
    if last["waits_for"] == _POLLING:
        return _at(f"polling (loop alive){through}", frame, after)
    if words := awaits.of_frames(_below(chain[-1].task["frames"], libraries)):
        through = "".join(link.name + link.many for link in chain).removesuffix(chain[-1].many)
    else:
        words = awaits.of_frames(_below(last["frames"], libraries))
    if words == awaits.OF_A_CHILD and (child := reasons.only_child(process["children"])):
        after = f"; {child}{after}"
    return _at(f"awaiting (loop alive){through}{f' {words},' * bool(words)}", frame, after)


def _of_executor(
    words: str, frame: Frame | None, stacks: list[dict[str, Any]], process: dict[str, Any], after: str
) -> Verdict:
    """Of a task that waits for an executor: say where the threads of pools are, or its processes."""
    libraries = process.get("libraries") or ()
    threads = _threads_of_pools(stacks, libraries)
    places = [(one, user_frame(one["frames"], libraries) or ["?", 0, "?"]) for one in threads]
    here = {line_of(inner) for _one, inner in places}
    if len(here) == 1:
        one, inner = places[0]
        doing = f" ({_doing(one['syscall'])})" if one["syscall"] and len(places) == 1 else ""
        whose = "its thread is" if len(places) == 1 else f"{len(places)} threads of pools are"
        text = f"{words}; {whose} in `{inner[2]}` at {line_of(inner)}{doing}{after}"
        return Verdict(text[:_LONGEST], line_of(inner)[:_LONGEST])
    if places:
        told = reasons.counted([f"{line_of(inner)} in {inner[2]}" for _one, inner in places])
        after = f"; threads of pools: {reasons.in_list(told)}{after}"
    else:
        after = reasons.of_children("", "futex", process["children"], _busy(process, libraries)) + after
    return _at(f"{words},", frame, after)


def _below(frames: list[Frame], libraries: Sequence[str]) -> list[Frame]:
    """Return the frames below the innermost of the user's own: of what the user has called."""
    return frames[next(reversed(_of_users(frames, libraries)), -1) + 1 :]


_POLLING = "asyncio.sleep in a loop"
_TASK = re.compile(r"task (.*)", re.DOTALL)
_OF_SEVERAL = re.compile(
    r"(?:(?:gather|wait) of (\d+)|task group), of which (\d+) (?:is|are) not done: (.*)", re.DOTALL
)
_MOST_LINKS = 20


class _Link(NamedTuple):
    """A task of those that wait one for the next; in words, which one it is, and how many it waits for."""

    task: dict[str, Any]
    name: str
    many: str


def _chain(task: dict[str, Any], tasks: list[dict[str, Any]]) -> list[_Link]:
    """Follow a task that waits for another one to the last of them.

    Of several that it waits for, the first one is followed.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for one in tasks:
        by_name.setdefault(repr(one["name"]), []).append(one)
    chain = [_Link(task, "", "")]
    for _ in range(_MOST_LINKS):
        task, first = chain[-1].task, ""
        if several := _OF_SEVERAL.fullmatch(task["waits_for"]):
            chain[-1] = chain[-1]._replace(many=f" {several[2]} of {several[1] or 'a task group'},")
            first = "" if several[2] == "1" else "first "
            name = next((name for name in by_name if _begins(several[3], name)), "")
        else:
            waits = _TASK.fullmatch(task["waits_for"])
            name = waits[1] if waits else ""
        following = by_name.get(name, [])
        if len(following) != 1 or not following[0]["frames"] or following[0] is task:
            break
        chain.append(_Link(following[0], f" {first}task {following[0]['name'][:60]!r},", ""))
    return chain


def _begins(names: str, name: str) -> bool:
    """Whether the first one of several names is this one."""
    return names == name or names.startswith((f"{name}, ", f"{name} and "))


def _threads_of_pools(stacks: list[dict[str, Any]], libraries: Sequence[str]) -> list[dict[str, Any]]:
    """Return the threads of pools that are in the user's code."""
    return [
        one
        for one in stacks
        if any(_POOL.search(file) for file, _line, _function in one["frames"])
        and user_frame(one["frames"], libraries, strict=True)
        and not runs_loop(one["frames"])
    ]


def _of_stack(
    process: dict[str, Any],
    stacks: list[dict[str, Any]],
    chosen: dict[str, Any] | None,
    libraries: Sequence[str],
    *,
    silent: bool,
) -> Verdict | None:
    frame = user_frame(chosen["frames"], libraries) if chosen else None
    if chosen is None or frame is None:
        return None
    frames = chosen["frames"]
    if _HUB.search(frame[0]):
        return Verdict(_SWITCHED_OUT, "")
    loop = runs_loop(frames)
    if loop and not silent and _LOOP_INSIDE.search(frames[-1][0]):
        return _at("awaiting (loop idle), run", frame)
    if loop and silent and goes_round(chosen, libraries):
        return _at(f"event loop {'does not' if chosen['ran'] == 0 else 'too busy to'} answer, run", frame)
    blocked = "event loop blocked" if loop or (silent and chosen["main"]) else ""
    syscall = chosen["syscall"] or (process["syscall"] if chosen["main"] else "")
    if (said := _of_motion(chosen, libraries)) is not None:
        return Verdict(f"{blocked}, {said.text}"[:_LONGEST], said.where) if blocked else said
    if (waiting := _waiting(process, stacks, chosen, libraries)) is not None:
        return _at(f"{blocked}{': ' * bool(blocked)}{waiting[0]}", frame, waiting[1])
    if blocked:
        return _at(f"{blocked} in Python", frame)
    if syscall == "running":
        return _at("seen running,", frame)
    return _at("blocked in Python", frame, f" ({_doing(syscall)})" if syscall else "")


_SWITCHED_OUT = (
    "awaiting (gevent's hub idle): the thread's greenlets are switched out; "
    "which of them entered the block is not known"
)


def goes_round(chosen: dict[str, Any], libraries: Sequence[str]) -> bool:
    """Whether a loop is between its callbacks, or in another one at every look: so it is alive."""
    inside = max(n for n, frame in enumerate(chosen["frames"]) if _LOOP_RUNS.search(frame[0]))
    beneath = chosen["frames"][inside + 1 :]
    if not any(is_users(file, libraries) for file, _line, _function in beneath):
        return True
    moves = chosen["moves"]
    return moves is not None and (0 <= moves <= inside or (moves == inside + 1 and not chosen["lines"]))


def _of_motion(chosen: dict[str, Any], libraries: Sequence[str]) -> Verdict | None:
    """Say that a thread runs, and between which lines, if it was seen to."""
    frames, moves, lines = chosen["frames"], chosen["moves"], chosen["lines"]
    if moves is None or (stands(chosen) and not runs(chosen)):
        return None
    running = "running" if runs(chosen) else ""
    if stands(chosen):
        return _at("running", user_frame(frames, libraries))
    here = frames[moves] if moves < len(frames) else None
    if here is None or not lines or not is_users(here[0], libraries):
        frame = user_frame(frames[: moves + 1], libraries)
        return _at(running, frame) if running else None
    where = line_of(here)[:_LONGEST]
    span = f"lines {lines[0]} to {lines[-1]}" if len(lines) > 1 else f"line {lines[0]}"
    words = f"{running + ': ' if running else ''}loops in `{here[2][:100]}`, {span}, now at {where[:200]}"
    return Verdict(words, where)


def _waiting(
    process: dict[str, Any], stacks: list[dict[str, Any]], chosen: dict[str, Any], libraries: Sequence[str]
) -> tuple[str, str] | None:
    """Say what a thread waits for, and what else is known of that; None: it is not known to wait."""
    known = process if chosen["main"] and not chosen["syscall"] else chosen
    frames = chosen["frames"]
    users = next(reversed(_of_users(frames, libraries)), -1)
    if chosen["moves"] is not None and not stands(chosen) and chosen["moves"] <= users:
        return None  # it was at another line of the user's, at another look
    words = calls.in_words(known["syscall"], known["waits"], frames[users + 1 :], chosen["native"])
    # Who holds the GIL has gone on since its call was read; and who does not may be waiting for that.
    holders = [one for one in stacks if one["gil"] is True]
    if not words or chosen in holders or (holders and words == calls.OF_ANY_FUTEX):
        return None
    besides = [known["holder"]]
    threads = [one for one in stacks if one is not chosen]
    if words == reasons.OF_A_FUTURE:  # whose pools are more likely to set it than anybody else
        threads = _threads_of_pools(threads, libraries) or threads
    elsewhere = [user_frame(one["frames"], libraries, strict=True) for one in threads]
    others = [f"{line_of(frame)} in {frame[2]}" for frame in elsewhere if frame is not None]
    besides += reasons.of_wait(words, process["children"], others, alone=process["thread_count"] == 1)
    return words, "".join(f"; {one}" for one in besides if one)


def _with_children(
    said: Verdict | None, process: dict[str, Any], chosen: dict[str, Any] | None, libraries: Sequence[str]
) -> Verdict | None:
    """Add to a verdict on who may wait for a child what its children do."""
    if said is None or chosen is None:
        return said
    syscall = chosen["syscall"] or (process["syscall"] if chosen["main"] else "")
    after = reasons.of_children(said.text, syscall, process["children"], _busy(process, libraries))
    return said._replace(text=(said.text + after)[:_LONGEST])


def _busy(process: dict[str, Any], libraries: Sequence[str]) -> list[dict[str, Any]]:
    """Return the children that are in the user's code."""
    return [one for one in process["children"] if any(is_users(file, libraries) for file, *_ in one["stack"])]


def _of_process(process: dict[str, Any]) -> Verdict:
    if not process["state"]:
        return Verdict("nothing is known", "")
    syscall, state, whose = process["syscall"], process["state"], "the main thread"
    for thread in process["threads"][1:]:
        if thread["tid"] == process["entered_by"]:
            syscall, state, whose = thread["syscall"], thread["state"], "the block's thread"
    doing = _doing(syscall) if syscall else state
    return Verdict(f"no Python stack; {whose} is {doing}"[:_LONGEST], "")


def _doing(syscall: str) -> str:
    return "running" if syscall in ("running", "no system call") else f"in {syscall}"


def _at(words: str, frame: Frame | None, after: str = "") -> Verdict:
    if frame is None:
        return Verdict((words.removesuffix(", called").removesuffix(", run") + after)[:_LONGEST], "")
    where = line_of(frame)
    return Verdict(f"{words} at {where} in {frame[2]}{after}"[:_LONGEST], where[:_LONGEST])


def user_frame(frames: list[Frame], libraries: Sequence[str], *, strict: bool = False) -> Frame | None:
    """Return the innermost frame of the user's code; if there is none, of any, unless ``strict``."""
    users = _of_users(frames, libraries)
    if users:
        return frames[users[-1]]
    return frames[-1] if frames and not strict else None


def _of_users(frames: Sequence[Frame], libraries: Sequence[str]) -> list[int]:
    """Return the numbers of the frames of the user's code, innermost last.

    What a proxy of a manager's is called with is the text of a function that multiprocessing has made up.
    """
    called = [frame[0] for frame in frames[1:]] + [""]
    return [
        number
        for number, (file, _line, _function) in enumerate(frames)
        if is_users(file, libraries) and not (file == "<string>" and _PROXY.search(called[number]))
    ]


def thread_of_block(
    stacks: list[dict[str, Any]], scope: str, libraries: Sequence[str]
) -> dict[str, Any] | None:
    """Return the thread in question: the one that entered the block.

    Where that is not known, it is one in the scope's lines, else in a loop, else the main one. A main thread
    that only waits for another one gives way to it, if there is but one.
    """
    with_frames = [one for one in stacks if one["frames"]]
    entered = next((one for one in with_frames if one["entered"]), None)
    if entered is not None:
        return entered
    named = [one for one in with_frames if _in_scope(one["frames"], scope) is not None]
    if named:
        return min(named, key=lambda one: _distance(one["frames"], scope))
    loops = [one for one in with_frames if runs_loop(one["frames"])]
    main = next((one for one in with_frames if one["main"]), None)
    if loops:
        return main if main in loops else loops[0]
    if main is not None and _JOINING.search(main["frames"][-1][0]):
        others = [
            one
            for one in with_frames
            if one is not main and user_frame(one["frames"], libraries, strict=True)
        ]
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
