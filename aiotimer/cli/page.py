"""A renderer of the page about one expiry: what a person reads in a minute, at 3 a.m., on any terminal.

The laws of this file:

* The first line says who, what and when; then comes why; then everything that supports it, the most telling
  first. What is not known is left out, but for probes that failed, which are named.
* Nothing is printed as it came: names, scopes, paths and source lines are a worker's, and are escaped.
* Nothing is lost on a narrow terminal: lines are folded. What is no terminal gets whole lines and no colour.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..events import printable
from ..evidence.record import Record
from ..evidence.verdict import is_users
from .common import count, mebibytes, moment, seconds

Facts: TypeAlias = Mapping[str, Any]
Frame: TypeAlias = Sequence[Any]

_OUTCOMES = {
    "pending": "is being dealt with",
    "unknown": "was being dealt with when its server ended",
    "reaped": "was reaped",
    "unkillable": "was signalled and did not die",
    "late": "left its block before the signal",
    "observed": "exceeded a limit and was only observed",
    "finished": "finished after its limit; it was only observed",
    "gone": "died by itself after its deadline",
    "failed": "could not be reaped",
    "dump": "was asked what it is doing",
}

_MARGIN = 10
_UNFOLDED = 10_000
"""Columns of what is no terminal."""

_SOURCE_BYTES = 4 * 1024 * 1024
_AROUND = 2
_MOST_FRAMES = 40
_MOST_THREADS = 20
_MOST_TASKS = 20

_FINE = re.compile(r"[\d.]+ m?s\b.*|not needed\b.*")
"""What is said of a probe that has answered, or had nothing to add."""


def print_page(record: Record, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print the page about an expiry.

    Args:
        record: as the history keeps it.
        file: standard output by default.
        width: in columns; by default the terminal's.
    """
    printer = console(file, width)
    for line in _lines(record):
        printer.print(line)


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Return what prints to a file: folded on a terminal, in whole lines elsewhere."""
    file = sys.stdout if file is None else file
    made = Console(file=file, highlight=False, markup=False, emoji=False, width=width)
    if width is None and not made.is_terminal:
        made.width = _UNFOLDED
    return made


def _lines(record: Record) -> Iterator[Text | Table]:
    yield Text(_headline(record), "bold")
    for label, text in _facts(record):
        yield _labelled(label, text)
    yield from _own_task(record)
    yield from _other_tasks(record)
    yield from _threads(record)
    for label, text in _process(record.process):
        yield _labelled(label, text)
    failed = {name: said for name, said in record.probes.items() if not _FINE.fullmatch(said)}
    if failed:
        yield _labelled(
            "unknown", "; ".join(f"{_safe(name)}: {_safe(said)}" for name, said in failed.items())
        )
    if record.outcome != "dump" or record.evidence:
        yield _labelled("evidence", _safe(record.evidence or "none was kept"))


def _headline(record: Record) -> str:
    name = f" ({_safe(record.name)})" if record.name else ""
    outcome = _OUTCOMES.get(record.outcome, _safe(record.outcome))
    when = f", {moment(record.time)}" if record.time is not None else ""
    scope = f", in {_safe(record.scope)}" if record.scope else ""
    return f"worker {record.pid}{name} {outcome}{scope}{when}"


def _facts(record: Record) -> Iterator[tuple[str, Text | str]]:
    if record.detail:
        yield "", _safe(record.detail)
    yield "why", Text(_safe(record.verdict or "not known"), "bold red")
    if record.where:
        yield "where", _safe(record.where)
        for line in _source(record):
            yield "", line
    timers = record.timers
    timer = _timer(record)
    if timer:
        yield "timer", timer
    if timers and (timers[0].get("ran") or {}).get("count"):
        yield "before", _ran(timers[0]["ran"])
    for number, other in enumerate(timers[1:]):
        yield "" if number else "also", _other_timer(other)
    if record.ladder:
        sent = ", ".join(f"{_safe(s.get('signal'))} after {seconds(s['after_s'])}" for s in record.signals)
        yield "ladder", _safe(record.ladder) + (f": {sent}" if sent else "")


def _timer(record: Record) -> str:
    parts = []
    if record.limit_s is not None:
        parts.append(f"limit {seconds(record.limit_s)}")
    if record.entered is not None:
        parts.append(f"entered {moment(record.entered)}")
    if record.ran_s is not None:
        parts.append(f"ran for {seconds(record.ran_s)}")
    if parts and not record.exact:
        parts.append("those are of the last entry that was sampled")
    if record.late_s is not None:
        parts.append(f"first action {seconds(record.late_s)} after the deadline")
    return "; ".join(parts)


def _other_timer(timer: Facts) -> str:
    left = timer.get("remaining_s")
    limit = timer.get("limit_s")
    parts = [
        f"limit {seconds(limit)}" if limit is not None else "",
        "" if left is None else f"{seconds(left)} left" if left >= 0 else f"expired {seconds(-left)} ago",
        "only observed" if timer.get("observed") else "",
    ]
    return f"{_safe(timer.get('scope'))}: " + (", ".join(filter(None, parts)) or "armed")


def _ran(ran: Facts) -> str:
    parts = [f"entered {count(ran['count'], 'time')}"]
    if ran.get("sampled"):
        parts[0] += f" ({ran['sampled']} sampled)"
        names = {"median_s": "median", "p99_s": "p99", "max_s": "maximum"}
        parts += [f"{word} {seconds(ran[key])}" for key, word in names.items() if ran.get(key) is not None]
    return ", ".join(parts)


# -- tasks and threads ------------------------------------------------------------------------------------


def _own_task(record: Record) -> Iterator[Table]:
    for task in record.tasks:
        if task.get("own"):
            yield _labelled("task", Text(_task(task), "bold"))
            yield from _frames(task.get("frames") or ())
            if task.get("waits_for"):
                yield _labelled("", f"  waits for {_safe(task['waits_for'])}")


def _other_tasks(record: Record) -> Iterator[Table]:
    others = [task for task in record.tasks if not task.get("own")]
    for number, task in enumerate(others[:_MOST_TASKS]):
        frames = task.get("frames") or ()
        at = next(
            (frame for frame in reversed(frames) if is_users(str(frame[0]))), frames[-1] if frames else None
        )
        place = f" at {_place(at)}" if at is not None else ""
        waits = f", waits for {_safe(task['waits_for'])}" if task.get("waits_for") else ""
        yield _labelled("" if number else "tasks", _task(task) + place + waits)
    if len(others) > _MOST_TASKS:
        yield _labelled("", f"and {len(others) - _MOST_TASKS} more, in tasks.txt")


def _task(task: Facts) -> str:
    several = f"{task['count']} × " if task.get("count", 1) > 1 else ""
    thread = f" in {_safe(task['thread'])}" if task.get("thread") else ""
    return f"{several}{_safe(task.get('name'))}{thread}"


def _threads(record: Record) -> Iterator[Table]:
    stacks = record.stacks
    for stack in stacks[:_MOST_THREADS]:
        facts = [
            "current" if stack.get("current") else "",
            "holds the GIL" if stack.get("gil") else "",
            _safe(stack.get("state") or ""),
        ]
        told = ", ".join(filter(None, facts))
        yield _labelled("thread", Text(_safe(stack.get("thread")) + (f" ({told})" if told else ""), "bold"))
        yield from _frames(stack.get("frames") or ())
    if len(stacks) > _MOST_THREADS:
        yield _labelled("", f"and {len(stacks) - _MOST_THREADS} more, in stacks.txt")


def _frames(frames: Sequence[Frame]) -> Iterator[Table]:
    """The user's own frames stand out: they are marked, the others are dim."""
    if len(frames) > _MOST_FRAMES:
        yield _labelled("", f"  ... {len(frames) - _MOST_FRAMES} frames further out")
    for frame in frames[-_MOST_FRAMES:]:
        if is_users(str(frame[0])):
            yield _labelled("", Text(f"> {_place(frame)}", "bold"))
        else:
            yield _labelled("", Text(f"  {_place(frame)}", "dim"))


def _place(frame: Frame) -> str:
    file, line, function = frame
    return f"{_safe(file)}:{_safe(line)} in {_safe(function)}"


# -- the process ------------------------------------------------------------------------------------------


def _process(process: Facts) -> Iterator[tuple[str, str]]:
    children = process.get("children") or ()
    parts = [
        _safe(process.get("state") or ""),
        f"in {_safe(process['wchan'])}" if process.get("wchan") not in (None, "", "0") else "",
        f"syscall {_safe(process['syscall'])}" if process.get("syscall") else "",
        f"traced by {_safe(process['tracer'])}" if process.get("tracer") else "",
        count(len(process.get("threads") or ()), "thread") if process.get("threads") else "",
        mebibytes(process["rss_bytes"]) if process.get("rss_bytes") else "",
        count(len(process.get("descriptors") or ()), "descriptor") if process.get("descriptors") else "",
        f"{len(children)} children" if len(children) > 1 else "1 child" if children else "",
    ]
    if any(parts):
        yield "process", ", ".join(filter(None, parts))
    command = " ".join(map(_safe, process.get("command") or ()))
    cgroup = f"cgroup {_safe(process['cgroup'])}" if process.get("cgroup") else ""
    if command or cgroup:
        yield "command", "; ".join(filter(None, (command, cgroup)))


# -- the source -------------------------------------------------------------------------------------------


def _source(record: Record) -> Iterator[Text | str]:
    """The line that the verdict is about, and those around it; the file may have changed since."""
    found = _file_of(record)
    if found is None:
        return
    path, wanted = found
    read = _read(path)
    if read is None or not 0 < wanted <= len(read[0]):
        return
    lines, changed_at = read
    for number in range(max(1, wanted - _AROUND), min(len(lines), wanted + _AROUND) + 1):
        mark = ">" if number == wanted else " "
        text = f"{mark} {number:>5} | {_safe(lines[number - 1].expandtabs(4).rstrip())}"
        yield Text(text, "bold" if number == wanted else "dim")
    if record.time is not None and changed_at > record.time:
        yield "  this file has changed since"


def _file_of(record: Record) -> tuple[str, int] | None:
    """The path and line of ``where``, which may name the file as the frames do, or only by its last part."""
    file, _, line = record.where.rpartition(":")
    if not line.isdecimal():
        return None
    wanted = int(line)
    chains = [*record.tasks, *record.stacks]
    for chain in chains:
        for path, number, *_ in reversed(chain.get("frames") or ()):
            path = str(path)
            if number == wanted and os.path.isabs(path) and (path == file or path.endswith("/" + file)):
                return path, wanted
    return (file, wanted) if os.path.isabs(file) else None


def _read(path: str) -> tuple[list[str], float] | None:
    """Return a file's lines and when it changed; the worker chose the name, so it may be anything."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, errors="backslashreplace") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > _SOURCE_BYTES:
                return None
            return file.read(_SOURCE_BYTES).split("\n"), facts.st_mtime
    except (OSError, ValueError):
        return None


# -- lines ------------------------------------------------------------------------------------------------


def _labelled(label: str, text: Text | str) -> Table:
    grid = Table.grid()
    grid.add_column(width=_MARGIN, no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    grid.add_row(Text(label), text if isinstance(text, Text) else Text(text))
    return grid


def _safe(value: object) -> str:
    return printable(str(value))
