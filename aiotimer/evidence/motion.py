"""A comparer of looks at a worker: which of its threads stand still, which run, and between which lines.

The laws of this file:

* Between two looks nobody touches the worker for ``BETWEEN`` seconds: what its threads have run in that time
  is their own. If none has run at all, they stand where the first look saw them, and there is no second.
* That a thread stands, and that it holds the GIL, is said only if every look has seen it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from .._linux import procfs

Stacks: TypeAlias = list[dict[str, Any]]

BETWEEN = 0.05
"""Seconds between two looks: ten switch intervals of the interpreter: whoever waits for the GIL has run."""

_FURTHER = 2
"""Looks at a worker that moves, for the lines that it moves between."""

RUNS = 0.1
"""Of the time, what a thread runs that is not waiting: on a busy machine it has a share of a processor."""

STANDS = -1
"""In ``moves`` of a stack: it was the same at every look."""


class Sample(NamedTuple):
    """What is known of a thread at a moment.

    Attributes:
        time: for how many nanoseconds it has run by then; the kernel may not have counted the last ones yet.
        asleep: it does not run, nor wait for a processor.
    """

    time: int
    asleep: bool

    def ran_since(self, former: Sample | None) -> float | None:
        """Return for how many seconds it has run since; None if that is not known."""
        if former is None or (self.time == former.time and not (self.asleep and former.asleep)):
            return None
        return (self.time - former.time) / 1e9


def sample(pid: int, tids: Iterable[int] | None = None) -> dict[int, Sample]:
    """Return what is known of each thread of a process, or of some of them; of those that show it."""
    samples: dict[int, Sample] = {}
    with contextlib.suppress(OSError):
        for tid in procfs.tids_of(pid) if tids is None else tids:
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
                state = procfs.status(pid, tid).get("State", "")[:1]
                samples[tid] = Sample(procfs.ran_for(pid, tid), state in ("S", "T", "t"))
    return samples


def watch(look: Callable[[], Stacks], pid: int, wait: Callable[[float], object]) -> Stacks:
    """Look at a process until it is known who of its threads moves; return what the last look has seen.

    Args:
        look: returns the stacks of its threads; what it raises ends the watching, the first time raises it.
        pid: whose.
        wait: for so many seconds.
    """
    looks = [look()]
    before = sample(pid)
    wait(BETWEEN)
    after = sample(pid)
    ran = {tid: now.ran_since(before.get(tid)) for tid, now in after.items()}
    if ran and all(time == 0 for time in ran.values()):
        looks *= 2
    else:
        with contextlib.suppress(Exception):  # what has been seen is all that is known
            looks.append(look())
            while len(looks) < 2 + _FURTHER and any(one["moves"] != STANDS for one in compare(looks)):
                looks.append(look())
    found = compare(looks)
    for one in found:
        time = ran.get(one["tid"])
        one["ran"] = None if time is None else time / BETWEEN
        both = before.get(one["tid"]), after.get(one["tid"])
        one["awake"] = all(each is not None and not each.asleep for each in both)
    return found


def compare(looks: list[Stacks]) -> Stacks:
    """Return the last of several looks, with what has moved since the first one.

    A stack's ``moves`` is how far out, counted from the outermost frame, it first was another one; ``lines``
    are those of that frame, if it was of one function at every look.
    """
    *earlier, last = [{_key(one): one for one in look} for look in looks]
    for key, one in last.items():
        others = [look[key] for look in earlier if key in look]
        if not earlier or len(others) < len(earlier):
            continue  # it has been seen once, or has come meanwhile
        stacks = [other["frames"] for other in others] + [one["frames"]]
        one["gil"] = None if one["gil"] is None else all(each["gil"] for each in (*others, one))
        one["moves"], one["lines"] = _moves(stacks)
    return list(last.values())


def stands(one: dict[str, Any]) -> bool:
    """Whether a thread was at the same place at every look."""
    return bool(one["moves"] == STANDS)


def runs(one: dict[str, Any]) -> bool:
    """Whether a thread is known to have run between two looks, and not only to have woken.

    On a busy machine it may have had no processor meanwhile. If it never slept, and has come to another line
    by the next look, it runs.
    """
    if one["ran"] is not None and one["ran"] >= RUNS:
        return True
    return bool(one["awake"]) and one["moves"] not in (None, STANDS)


def holds_gil_in_c(one: dict[str, Any]) -> bool:
    """Whether a thread keeps the GIL in native code: a look saw that code, or it did not run with the GIL."""
    if not one["gil"] or one["moves"] not in (None, STANDS):
        return False
    return bool(one["native"]) or one["ran"] == 0


def _moves(stacks: list[list[Any]]) -> tuple[int, list[int]]:
    for depth in range(max(map(len, stacks))):
        here = [frames[depth] if depth < len(frames) else None for frames in stacks]
        if any(frame != here[0] for frame in here):
            known = [frame for frame in here if frame is not None]
            same = len(known) == len(here) and len({(file, name) for file, _line, name in known}) == 1
            return depth, sorted({line for _file, line, _name in known}) if same else []
    return STANDS, []


def _key(one: dict[str, Any]) -> tuple[int, int]:
    return one["tid"], one["ident"]
