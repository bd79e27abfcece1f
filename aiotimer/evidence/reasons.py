"""The reasons that a wait may not end, in words: what children and other threads do.

The laws of this file:

* It reads nothing: what the probes have found is handed in.
* Each fact is said once in a verdict: of a child that its wait has named, only what that has not said.
* That a child or a thread is waited for is said elsewhere (``calls``); here only what it does.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

OF_A_CHILD = "waits for a child to end"
SHARED = "that processes share"
OF_POOL = "waits for a result of a process pool"

_PERHAPS_FOR_A_CHILD = frozenset(
    (
        *("wait4", "waitid", "read", "readv", "poll", "ppoll", "select", "pselect6", "futex"),
        *("epoll_wait", "epoll_pwait", "epoll_pwait2"),
    )
)
"""System calls of whoever waits for a child: its end, what it writes, or a thread that reads that."""

OF_A_FUTURE = "waits for the result of a future"
"""A pool sets it, or a loop in another thread, or whoever has it: the frames do not say which."""

_OF_THREADS = (
    *("a queue", "room in a queue", "a lock", "an event", "a condition", "a semaphore", "a barrier"),
    *("the result of a future", "a pool to end", "a thread to end"),
)
"""What another thread of the process has to do something for."""

_MOST_CHILDREN = 2
_MOST_NAMED = 3
_APART = 0.1
"""Seconds between processes that were not started together."""

_LONGEST_COMMAND = 60


def child_in_words(child: Mapping[str, Any]) -> str:
    """Return ``child 42 (sleep 1000, sleeping)``, of a child as ``evidence/proc.py`` reads it."""
    state = str(child.get("state") or "")
    doing = state.partition("(")[2].removesuffix(")")
    if _is_dead(child):
        doing = f"dead: zombie, {child.get('exit') or ''}".rstrip(", ")
    command = child.get("role") or child.get("command") or child.get("name") or ""
    if len(command) > _LONGEST_COMMAND:
        command = command[: _LONGEST_COMMAND - 3] + "..."
    told = ", ".join(filter(None, (command, doing)))
    return f"child {child['pid']}" + (f" ({told})" if told else "")


def _is_dead(child: Mapping[str, Any]) -> bool:
    return str(child.get("state") or "")[:1] in ("Z", "X")


def only_child(children: Sequence[Mapping[str, Any]]) -> str:
    """Return the one child that there is, and its line; "" if there are several: which one is not known."""
    if len(children) != 1:
        return ""
    line = children[0].get("line") or ""
    return child_in_words(children[0]) + (f": {line}" if line else "")


def status_in_words(status: int | None) -> str:
    """Return ``exit 3`` or ``SIGKILL``, of a status as wait(2) tells it; "" if it is not known."""
    if status is None:
        return ""
    number = status & 0x7F
    if not number:
        return f"exit {status >> 8 & 0xFF}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def of_children(
    said: str, syscall: str, children: Sequence[Mapping[str, Any]], busy: Sequence[Mapping[str, Any]]
) -> str:
    """Return what is to be added to a verdict on who may wait for a child, "" if nothing is.

    Args:
        said: the verdict so far.
        syscall: the system call that the thread in question is in.
        children: of the process. Those count that are dead, and that nobody has waited for.
        busy: those that count, too: they are in the user's code.
    """
    if syscall not in _PERHAPS_FOR_A_CHILD and OF_A_CHILD not in said:
        return ""
    dead = sorted(filter(_is_dead, children), key=lambda child: bool(child["exit"] == "exit 0"))
    first: list[str] = []  # of whom its wait has named
    telling: list[str] = []
    for child in (*dead, *busy):
        line = f": {child['line']}" if child.get("line") else ""
        if f"child {child['pid']} (" not in said:
            telling.append(child_in_words(child) + line)
        elif line:
            first.append(f"child {child['pid']}{line}")
    telling = first + telling
    if len(telling) > _MOST_CHILDREN:
        telling[_MOST_CHILDREN:] = [f"and {len(telling) - _MOST_CHILDREN} more"]
    return "".join(f"; {one}" for one in telling)


def of_wait(
    waits: str, children: Sequence[Mapping[str, Any]], others: Sequence[str], *, alone: bool
) -> Iterator[str]:
    """Yield what else is known that may be why a wait does not end.

    Args:
        waits: in words.
        children: of the process, as ``evidence/proc.py`` reads them.
        others: where other threads are in the user's code.
        alone: there is no other thread at all.
    """
    if waits == OF_POOL:
        yield from _younger(children)
    if waits.endswith(SHARED):
        return
    if waits.startswith("waits for ") and waits.removeprefix("waits for ").startswith(_OF_THREADS):
        if alone:
            yield "no other thread is alive"
        elif others:
            yield f"other threads: {in_list(counted(others))}"


def _younger(children: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield that children were started later than the others: a pool does so when one has ended."""
    started = sorted((child["started"], child["pid"]) for child in children if child.get("started"))
    gaps = [(later[0] - sooner[0], at) for at, (sooner, later) in enumerate(pairwise(started), 1)]
    gap, at = max(gaps, default=(0.0, 0))
    if gap >= _APART:
        late = in_list([f"child {pid}" for _, pid in started[at:]])
        yield f"{late} {'was' if len(started) - at == 1 else 'were'} started {gap:.1f} s after the others"


def of_grace(grace: float, remaining: float, limit: float | None) -> str:
    """Return what became of a block's soft limit, "" if that is not known, or is yet to come.

    Args:
        grace: as the worker has stored it: negative, its task has been cancelled; 0.0, there is none.
        remaining: seconds until its hard limit.
        limit: seconds that it had until that, None if they are not known.
    """
    after = "at its soft limit" if limit is None else f"after {limit - abs(grace):g} s"
    if grace < 0:
        return f"cancelled {after}, and did not end"
    return f"not cancelled {after}: its loop has not got to that" if grace > max(0.0, remaining) else ""


def counted(places: Sequence[str]) -> list[str]:
    """Return places, each of them once: ``train.py:42 in step (2 threads)``."""
    return [
        f"{place} ({number} threads)" if number > 1 else place for place, number in Counter(places).items()
    ]


def in_list(words: Sequence[str]) -> str:
    """Return ``a, b and c``; of many, some."""
    if len(words) > _MOST_NAMED:
        words = [*words[:_MOST_NAMED], f"{len(words) - _MOST_NAMED} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
