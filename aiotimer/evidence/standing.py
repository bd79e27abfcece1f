"""A judge of one member of a run: where it stands, in which collective, and in which way it stays there.

The laws of this file:

* It is a pure function of the evidence, and of nothing that any other member did.
* Evidence may be another version's, or forged: what it lacks is not known, and nothing in it raises.
* A member is in a collective if one is called below the innermost line of the user's code. Who computes a
  backward pass, and is seen to run, is in none: gradients are reduced as they come. Nor is one of which
  only a thread without Python is there: c10d, gloo and NCCL always have some, which wait for work.
* What the evidence cannot tell is :data:`UNKNOWN`; that is no kind of guilt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import calls, collectives, proc
from .findings import Frame, known_of, stack
from .motion import holds_gil_in_c, runs, stands
from .verdict import is_users, line_of, runs_loop, thread_of_block, verdict

Facts = Mapping[str, Any]

MISSING, DEAD, STOPPED, UNKNOWN = "missing", "dead", "stopped", "unknown"
TRACED, DEEP = "in a debugger", "in uninterruptible sleep"
COLLECTIVE, CHECKPOINT, SPINS, MOVES = "in a collective", "in a checkpoint", "spinning", "moving"
IDLE, HOLDS_GIL, COMPUTES, BLOCKED = "idle", "holding the GIL", "computing", "blocked"
"""How a member stands."""

_FUNCTION_OF_CHECKPOINT = re.compile(
    r"(?i)_?(save|load|restore|write|read|resume)\w*(checkpoint|ckpt)\w*"
    r"|_?(checkpoint|ckpt)s?(_?(save|load|restore|write|read|resume)\w*)?"
)
_FILE_OF_CHECKPOINT = re.compile(
    r"(.*/)?(torch/serialization|torch/distributed/checkpoint/.*|safetensors/.*)\.py\Z"
)
_NO_CHECKPOINT = re.compile(r"(.*/)?torch/utils/checkpoint\.py\Z")
"""That of activations: a forward pass made again."""

_NO_CALL = ("", "running", "no system call")
_LONGEST = 200


class Standing(NamedTuple):
    """Where a member stands.

    Attributes:
        how: one of the words above.
        where: ``in step at train.py:40``, "" if that is not known.
        wait: the collective, "" if it is in none.
        moving: it was at another place, or another line, at another look.
        lines: between which it goes round, if it does.
        still: it stands in C code that the line calls, and nothing says what that waits for.
    """

    how: str
    where: str = ""
    wait: str = ""
    moving: bool = False
    lines: tuple[int, ...] = ()
    still: bool = False


def standing(evidence: Facts, state: str = "", scope: str = "") -> Standing:
    """Return where a member stands.

    Args:
        evidence: ``stacks``, ``tasks`` and ``process``, as findings have them.
        state: of the member, as it was found: ``dead``, ``stopped`` and so on.
        scope: its soonest timer.
    """
    process = _process(evidence.get("process"))
    first = process["state"][:1]
    if state in (MISSING, DEAD) or first in ("Z", "X"):
        return Standing(MISSING if state == MISSING else DEAD)
    stacks, tasks = _stacks(evidence.get("stacks")), _tasks(evidence.get("tasks"))
    libraries = tuple(process["libraries"])
    chosen = _thread(stacks, scope, libraries)
    if process["tracer"] or state == STOPPED or first in ("T", "t"):
        frame = _innermost(chosen["frames"], libraries) if chosen else None
        return Standing(TRACED if process["tracer"] else STOPPED, _in_words(frame))
    if chosen and (name := _collective(chosen, libraries)):
        return Standing(COLLECTIVE, _in_words(_innermost(chosen["frames"], libraries)), name)
    if first == "D" and not tasks:
        return Standing(DEEP, _in_words(_innermost(chosen["frames"], libraries)) if chosen else "")
    if tasks and (chosen is None or runs_loop(chosen["frames"])):
        return _of_tasks(process, tasks, stacks, scope)
    return _of_thread(chosen, libraries) if chosen else Standing(UNKNOWN)


def _thread(stacks: list[dict[str, Any]], scope: str, libraries: Sequence[str]) -> dict[str, Any] | None:
    """Return the thread in question; if the block's is not known, one that is in a collective."""
    chosen = thread_of_block(stacks, scope, libraries)
    if chosen is None or (chosen["entered"] and not runs_loop(chosen["frames"])):
        return chosen
    return next((one for one in (chosen, *stacks) if _collective(one, libraries)), chosen)


def _collective(one: dict[str, Any], libraries: Sequence[str]) -> str:
    frames = one["frames"]
    if not frames:
        return ""
    name = collectives.of_frames(frames[_depth(frames, libraries) + 1 :], one["native"])
    computes = name == collectives.BACKWARD and (runs(one) or not (one["moves"] is None or stands(one)))
    return "" if computes else name


def _depth(frames: Sequence[Frame], libraries: Sequence[str]) -> int:
    """Return the number of the innermost frame of the user's code, -1 if there is none."""
    numbers = (
        number
        for number, frame in enumerate(frames)
        if is_users(frame[0], libraries) and not collectives.is_torchs(frame[0])
    )
    return max(numbers, default=-1)


def _innermost(frames: Sequence[Frame], libraries: Sequence[str]) -> Frame | None:
    return (
        frames[_depth(frames, libraries)] if frames else None
    )  # the innermost of all, if none is the user's


def _of_tasks(
    process: dict[str, Any], tasks: list[dict[str, Any]], stacks: list[dict[str, Any]], scope: str
) -> Standing:
    """Of a member whose loop has answered: so it is alive, and one of its tasks waits."""
    loops = len({task["loop"] for task in tasks}) or 1
    said = verdict(process, tasks, stacks, scope, asked=loops, answered=loops)
    chains = [*tasks, *stacks]
    found = (frame for one in chains for frame in reversed(one["frames"]) if line_of(frame) == said.where)
    frame = next(found, None)
    how = IDLE if said.text.startswith("polling") else BLOCKED
    return Standing(how, _in_words(frame) or (f"at {said.where}" if said.where else ""))


def _of_thread(chosen: dict[str, Any], libraries: Sequence[str]) -> Standing:
    frames = chosen["frames"]
    where = _in_words(_innermost(frames, libraries))
    moving = chosen["moves"] is not None and not stands(chosen)
    if any(_is_of_checkpoint(frame, libraries) for frame in frames):
        return Standing(CHECKPOINT, where, moving=moving)
    here = frames[chosen["moves"]] if moving and chosen["moves"] < len(frames) else None
    if here is not None and chosen["lines"] and is_users(here[0], libraries):
        return Standing(SPINS, _in_words(here), moving=True, lines=tuple(chosen["lines"]))
    if holds_gil_in_c(chosen) or (chosen["gil"] and stands(chosen) and chosen["syscall"] not in _NO_CALL):
        return Standing(HOLDS_GIL, where)
    if moving:
        return Standing(MOVES, where, moving=True)
    if runs(chosen):
        return Standing(SPINS if chosen["gil"] else COMPUTES, where)
    below = frames[_depth(frames, libraries) + 1 :]
    words = calls.in_words(chosen["syscall"], chosen["waits"], below, chosen["native"])
    if words == "sleeps":  # as time.sleep does
        return Standing(IDLE, where)
    return Standing(
        BLOCKED, where, still=not below and words in ("", calls.OF_ANY_FUTEX) and not chosen["gil"]
    )


def _is_of_checkpoint(frame: Frame, libraries: Sequence[str]) -> bool:
    file, _line, function = frame
    if _NO_CHECKPOINT.match(file):
        return False
    named = _FUNCTION_OF_CHECKPOINT.fullmatch(function.rpartition(".")[2]) is not None
    return _FILE_OF_CHECKPOINT.match(file) is not None or (named and is_users(file, libraries))


def _in_words(frame: Frame | None) -> str:
    return "" if frame is None else f"in {frame[2]} at {line_of(frame)}"[:_LONGEST]


# -- what was handed in may be anything -------------------------------------------------------------------


def _process(value: object) -> dict[str, Any]:
    return _like(proc.nothing(), value)


def _stacks(value: object) -> list[dict[str, Any]]:
    found = [_like(stack(), one) for one in _list(value)]
    for one in found:
        one["frames"] = _frames(one["frames"])
        one["native"] = [name for name in one["native"] if isinstance(name, str)]
        one["lines"] = [line for line in one["lines"] if isinstance(line, int)]
    return found


def _tasks(value: object) -> list[dict[str, Any]]:
    unknown = {"loop": 0, "thread": "", "name": "", "count": 1, "own": False, "frames": [], "waits_for": ""}
    found = [_like(unknown, one) for one in _list(value)]
    return [one | {"frames": _frames(one["frames"])} for one in found]


def _like(unknown: dict[str, Any], value: object) -> dict[str, Any]:
    """Return an object with the keys of another one, and with its values where they are of the same kind."""
    return unknown | known_of(unknown, value) if isinstance(value, Mapping) else unknown


def _frames(value: list[Any]) -> list[Frame]:
    return [list(one) for one in value if _is_frame(one)]


def _is_frame(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    file, line, function = value
    return isinstance(file, str) and isinstance(line, int) and isinstance(function, str)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
