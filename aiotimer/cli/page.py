"""A renderer of the page about one expiry: what a person reads in a minute, at 3 a.m., on any terminal.

The laws of this file:

* The first lines say who, where, for how long, and why; then comes everything that supports it, the most
  telling first, on one screen unless all is asked for. What is not known is left out, but for probes that
  failed, which are named if they could have told anything.
* Nothing is printed as it came: names, scopes, paths and source lines are a worker's, and are escaped.
* On a narrow terminal lines are folded between words. What is no terminal gets whole lines and no colour.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol, TypeAlias

from rich.console import Console
from rich.text import Text

from ..events import printable, shown
from ..evidence.record import Record
from ..evidence.verdict import is_users
from .common import count, mebibytes, moment, seconds
from .frames import Frame, folded, frame_at, guilty_first, innermost, is_idle, short

Facts: TypeAlias = Mapping[str, Any]
Row: TypeAlias = tuple[str, Text | str]
"""A label, and what is said under it; a row may take several lines."""

_OUTCOMES = {
    "pending": "is being dealt with",
    "unknown": "was being dealt with when its server ended",
    "reaped": "was reaped",
    "unkillable": "was signalled and did not die",
    "late": "left its block before the signal",
    "observed": "exceeded a limit and was only observed",
    "finished": "finished after its limit; it was only observed",
    "gone": "ended after its deadline, and was not reaped",
    "failed": "could not be reaped",
    "dump": "was asked what it is doing",
}

_MARGIN = 10
_UNFOLDED = 10_000
"""Columns of what is no terminal."""

_SOURCE_BYTES = 4 * 1024 * 1024
_AROUND = 2

SCREEN = 60
"""Lines of a page, unless all is asked for."""

_MOST_OTHERS = 10
"""Other timers, tasks, threads and children that are listed, unless all is asked for."""

_MOST_FRAMES = 24
"""Lines of one stack, likewise."""

_LONGEST_COMMAND = 240

_FINE = re.compile(r"[\d.]+ m?s\b.*|not needed\b.*|no loop of the worker has said that it would answer")
"""What is said of a probe that has answered, or had nothing to add."""

_BUILD = re.compile(r"\.(cpython-|abi3)[^)]*")
"""What the file of an extension module is called besides its name."""

_JARGON = re.compile(r" ?\(os error \d+\)|\[Errno \d+\] |\bError: ")


def print_page(
    record: Record, file: IO[str] | None = None, width: int | None = None, *, full: bool = False
) -> None:
    """Print the page about an expiry.

    Args:
        record: as the history keeps it.
        file: standard output by default.
        width: in columns; by default the terminal's.
        full: all of it, however long.
    """
    printer = console(file, width)
    print_rows(_Page(record, printer.width - _MARGIN, full=full), printer, full=full)


def print_rows(page: Page, printer: Console, *, full: bool) -> None:
    """Print a page; of what stands in its middle, no more than fits on a screen, unless all is asked for."""
    for line in _fitting(page, printer, full=full):
        printer.print(line, no_wrap=True, crop=False, overflow="ignore")


def stack_rows(record: Record, width: int, *, full: bool = False) -> list[Row]:
    """Return what a page says of the task and the threads in question, on a terminal of so many columns."""
    page = _Page(record, width - _MARGIN, full=full)
    return [*page.own_task(), *page.threads()]


def rows_of(record: Record) -> tuple[str, list[Row]]:
    """Return the first line of a page, and all others, each with its label."""
    page = _Page(record, _UNFOLDED, full=True)
    return page.headline(), [*page.first(), *page.middle(), *page.last()]


class Page(Protocol):
    """What is said on a page: its first line, and all others in three parts, each with its label."""

    def headline(self) -> str: ...
    def first(self) -> Iterable[Row]: ...
    def middle(self) -> Iterable[Row]: ...
    def last(self) -> Iterable[Row]: ...


class _Console(Console):
    """A console that tells that nobody reads any more, instead of ending the program with a status of 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Return what prints to a file: folded on a terminal, in whole lines elsewhere."""
    file = sys.stdout if file is None else file
    made = _Console(file=file, highlight=False, markup=False, emoji=False, width=width)
    if width is None and not made.is_terminal:
        made.width = _UNFOLDED
    return made


def _fitting(page: Page, printer: Console, *, full: bool) -> Iterator[Text]:
    """Yield the lines of a page; of what stands in its middle, no more than fit on a screen."""
    width = max(1, printer.width - _MARGIN)
    head = _wrapped(Text(page.headline(), "bold"), printer, printer.width)
    first, middle, last = (
        _lines(rows, printer, width) for rows in (page.first(), page.middle(), page.last())
    )
    room = max(SCREEN - len(head) - len(first) - len(last) - 1, 4)
    yield from head
    yield from first
    if full or len(middle) <= room + 1:
        yield from middle
    else:
        yield from middle[:room]
        yield from _lines([("", f"... {len(middle) - room} lines more: --full prints them")], printer, width)
    yield from last


def _lines(rows: Iterable[Row], printer: Console, width: int) -> list[Text]:
    lines: list[Text] = []
    for label, said in rows:
        text = said if isinstance(said, Text) else Text(said)
        for number, line in enumerate(_wrapped(text, printer, width)):
            margin = Text(("" if number else label)[: _MARGIN - 1].ljust(_MARGIN), "cyan")
            lines.append(margin.append_text(line))
    return lines


def _wrapped(text: Text, printer: Console, width: int) -> list[Text]:
    lines = list(text.wrap(printer, width, overflow="fold")) or [Text()]
    for line in lines[:-1]:
        line.rstrip()
    return lines


class _Page:
    """What is said of one expiry.

    Args:
        room: columns beside the labels.
        full: nothing is left out.
    """

    def __init__(self, record: Record, room: int, *, full: bool) -> None:
        self._record = record
        self._room = room
        self._full = full
        said = record.process.get("libraries") or ()
        self._libraries = tuple(path for path in said if isinstance(path, str))
        self._most = sys.maxsize if full else _MOST_OTHERS
        try:
            self._directory = str(record.process.get("cwd") or os.getcwd())
        except OSError:  # it has been removed
            self._directory = ""

    def headline(self) -> str:
        """Return who, what, where, for how long, and when."""
        record = self._record
        who = ", ".join(filter(None, (_safe(record.name), record.host and f"on {_safe(record.host)}")))
        outcome = _OUTCOMES.get(record.outcome, _safe(record.outcome))
        parts = [f"worker {record.pid}{f' ({who})' if who else ''} {outcome}"]
        if record.scope:
            parts.append(f"in {shown(record.scope)}")
            if record.ran_s is not None:
                parts[-1] += f" for {'' if record.exact else 'about '}{seconds(record.ran_s)}"
            if record.limit_s is not None:
                first = ", first entry of this scope" if record.first else ""
                parts[-1] += f" (limit {seconds(record.limit_s)}{first})"
        if record.time is not None:
            parts.append(moment(record.time))
        return ", ".join(parts)

    def first(self) -> Iterator[Row]:
        """Yield what is never left out: why and where, and the timer."""
        record = self._record
        if record.detail:
            yield "", _safe(record.detail)
        yield "why", Text(_safe(record.verdict or "not known"), "bold red")
        if record.where:
            found = _found(record)
            yield "where", _safe(record.where) if found is None else self._place(found)
            for line in _source(record):
                yield "", line
        timers = record.timers
        note = (timers[0].get("note") if timers else None) or {}
        if note:
            yield "note", _note(note) + (" (of the block that expired)" if self._blocks_unseen() else "")
        if timer := _timer(record):
            yield "timer", timer
        ran = (timers[0].get("ran") if timers else None) or {}
        if ran.get("count"):
            yield "before", _ran(ran)

    def middle(self) -> Iterator[Row]:
        """Yield what supports it, the most telling first."""
        yield from self.own_task()
        yield from self.threads()
        yield from self._children()
        yield from self._other_timers()
        yield from self._other_tasks()

    def last(self) -> Iterator[Row]:
        """Yield what belongs to every page: what was done, to which process, and where the rest is."""
        record = self._record
        if record.ladder:
            sent = [f"{_safe(one.get('signal'))} after {seconds(one['after_s'])}" for one in record.signals]
            yield "ladder", _safe(record.ladder) + (f": {', '.join(sent)}" if sent else "")
        yield from self._process()
        failed = {name: said for name, said in record.probes.items() if not _FINE.fullmatch(said)}
        if record.stacks:
            failed.pop("stacks", None)  # somebody else has seen them
        if failed:
            told = (f"{_safe(name)}: {_safe(_JARGON.sub('', said))}" for name, said in failed.items())
            yield "unknown", "; ".join(told)
        if record.run:
            yield "run", f"{_safe(record.run)}: aiotimer why --run {shlex.quote(_safe(record.run))}"
        if record.outcome != "dump" or record.evidence:
            yield "evidence", _safe(record.evidence or "none was kept")

    # -- timers ----------------------------------------------------------------------------------

    def _other_timers(self) -> Iterator[Row]:
        """Yield the other timers; those of one scope in one line, with the soonest."""
        groups: dict[tuple[str, bool], list[Facts]] = {}
        for timer in self._record.timers[1:]:
            scope = re.sub(r"#\d+\Z", "", str(timer.get("scope")))
            groups.setdefault((scope, bool(timer.get("observed"))), []).append(timer)
        rows = [_other_timer(scope, timers, self._most) for (scope, _), timers in groups.items()]
        yield from self._listed("also", rows, "scopes more")
        if self._blocks_unseen():
            yield "", "which of these blocks, or the expired one, the loop is blocked in is not known"

    def _blocks_unseen(self) -> bool:
        """Whether a loop is blocked in a task, and several blocks of such may be that one's."""
        return self._record.verdict.startswith("event loop blocked") and len(self._record.timers) > 1

    def _listed(self, label: str, rows: Sequence[Text | str], more: str) -> Iterator[Row]:
        for number, row in enumerate(rows[: self._most]):
            yield "" if number else label, row
        if len(rows) > self._most:
            yield "", f"and {len(rows) - self._most} {more}"

    # -- tasks, threads, children ----------------------------------------------------------------

    def own_task(self) -> Iterator[Row]:
        """Yield the block's own task, and what it waits for."""
        for task in self._record.tasks:
            if task.get("own"):
                yield "task", Text(_task(task), "bold")
                yield from self._frames(task.get("frames") or ())
                if task.get("waits_for"):
                    yield "", f"  waits for {_safe(task['waits_for'])}"

    def _other_tasks(self) -> Iterator[Row]:
        others = [task for task in self._record.tasks if not task.get("own")]
        rows = []
        for task in others:
            waits = f", waits for {_safe(task['waits_for'])}" if task.get("waits_for") else ""
            rows.append(_task(task) + self._at(task) + waits)
        yield from self._listed("tasks", rows, "more, in tasks.txt")

    def threads(self) -> Iterator[Row]:
        """Yield the thread in question, and those that hold the GIL; of the others, where they are."""
        rows: list[Text | str] = []
        idle = 0
        stacks = guilty_first(self._record.stacks, self._record.where, self._libraries)
        for number, stack in enumerate(stacks):
            if not number or self._full or stack.get("gil"):
                yield "thread", Text(_thread(stack), "bold")
                yield from self._frames(stack.get("frames") or ())
                native = [_safe(name) for name in stack.get("native") or () if self._full or _is_name(name)]
                native = [name if self._full else _BUILD.sub("", name) for name in native]
                if native:
                    yield "", f"  in C: {', '.join(native[-_MOST_OTHERS:])}"
            elif is_idle(stack, self._libraries):
                idle += 1
            else:
                rows.append(_thread(stack) + self._at(stack))
        if idle:
            rows.append(count(idle, "idle pool thread"))
        yield from self._listed("threads", rows, "more, in stacks.txt")

    def _at(self, chain: Facts) -> str:
        frame = innermost(chain.get("frames") or (), self._libraries)
        return "" if frame is None else f" at {self._place(frame)}"

    def _frames(self, frames: Sequence[Frame]) -> Iterator[Row]:
        """Yield frames; the user's own stand out: they are marked, the others are dim."""
        told = list(frames if self._full else folded(frames, self._libraries))
        most = len(told) if self._full else _MOST_FRAMES
        if len(told) > most:
            yield "", f"  ... {len(told) - most} lines of frames further out"
        for frame in told[-most:]:
            if isinstance(frame, str):
                yield "", Text(f"  {_safe(frame)}", "dim")
            elif is_users(str(frame[0]), self._libraries):
                yield "", Text(f"> {self._place(frame)}", "bold")
            else:
                yield "", Text(f"  {self._place(frame)}", "dim")

    def _place(self, frame: Frame) -> str:
        file, line, function = frame
        behind = f":{_safe(line)} in {_safe(function)}"
        path = _safe(file)
        room = self._room - 2 - len(behind)
        return (path if self._full else short(path, self._directory, room, self._libraries)) + behind

    def _children(self) -> Iterator[Row]:
        """Yield the children of which more is known than that they are there."""
        rows = []
        for child in self._record.process.get("children") or ():
            state, line = str(child.get("state") or ""), child.get("line")
            how, role = child.get("exit"), child.get("role")
            if not (line or child.get("command") or state.startswith("Z")):
                continue
            command = child.get("command") or child.get("name") or ""
            words = command if isinstance(command, str) else " ".join(map(str, command))
            at = f": {_safe(line)}" if line else ""
            rows.append(
                f"{_safe(child.get('pid'))} {f'{_safe(role)}, ' if role else ''}{_safe(words[:60])}"
                f"{f', {_safe(state)}' if state else ''}{f', {_safe(how)}' if how else ''}{at}"
            )
        yield from self._listed("children", rows, "more")

    # -- the process -----------------------------------------------------------------------------

    def _process(self) -> Iterator[Row]:
        process = self._record.process
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
        if not self._full and len(command) > _LONGEST_COMMAND:
            command = command[:_LONGEST_COMMAND] + "..."
        cgroup = f"cgroup {_safe(process['cgroup'])}" if process.get("cgroup") else ""
        if command or cgroup:
            yield "command", "; ".join(filter(None, (command, cgroup)))


# -- what is said of one thing ----------------------------------------------------------------------------


def _timer(record: Record) -> str:
    parts = []
    if record.entered is not None:
        parts.append(f"entered {moment(record.entered)}")
    if not record.exact and (record.limit_s is not None or record.ran_s is not None):
        parts.append("limit and entry are those of the last entry that was sampled")
    if record.late_s is not None:
        parts.append(f"first action {seconds(record.late_s)} after the deadline")
    return "; ".join(parts)


def _note(note: Facts) -> str:
    return ", ".join(f"{_safe(key)}={_safe(value)}" for key, value in note.items())


def _other_timer(scope: str, timers: Sequence[Facts], most: int = _MOST_OTHERS) -> str:
    limits = {one["limit_s"] for one in timers if one.get("limit_s") is not None}  # not all are known
    left = min((one["remaining_s"] for one in timers if one.get("remaining_s") is not None), default=None)
    several = f"{len(timers)} × " if len(timers) > 1 else ""
    when = "" if left is None else f"{seconds(left)} left" if left >= 0 else f"expired {seconds(-left)} ago"
    parts = [
        f"limit {seconds(limits.pop())}" if len(limits) == 1 else "",
        f"the soonest: {when}" if several and when else when,
        "only observed" if timers[0].get("observed") else "",
    ]
    notes = [_note(timer["note"]) for timer in timers if timer.get("note")]
    if notes:
        more = f"; and {len(notes) - most} more" if len(notes) > most else ""
        parts.append(f"{'notes' if several else 'note'}: {'; '.join(notes[:most])}{more}")
    return f"{several}{shown(scope)}: " + (", ".join(filter(None, parts)) or "armed")


def _ran(ran: Facts) -> str:
    if ran["count"] == 1:
        return "this is the first entry of this scope"
    parts = [f"entered {count(ran['count'], 'time')}"]
    if ran.get("sampled"):
        parts[0] += f" ({ran['sampled']} sampled)"
        names = {"median_s": "median", "p99_s": "p99", "max_s": "maximum"}
        parts += [f"{word} {seconds(ran[key])}" for key, word in names.items() if ran.get(key) is not None]
    return ", ".join(parts)


def _task(task: Facts) -> str:
    several = f"{task['count']} × " if task.get("count", 1) > 1 else ""
    thread = f" in {_safe(task['thread'])}" if task.get("thread") else ""
    return f"{several}{_safe(task.get('name'))}{thread}"


def _thread(stack: Facts) -> str:
    facts = [
        "entered the block" if stack.get("entered") else "",
        "current" if stack.get("current") else "",
        "holds the GIL" if stack.get("gil") else "",
        _safe(stack.get("state") or ""),
    ]
    told = ", ".join(filter(None, facts))
    name = stack.get("thread") or (f"tid {stack['tid']}" if stack.get("tid") else "?")
    return _safe(name) + (f" ({told})" if told else "")


def _is_name(native: object) -> bool:
    """Whether a C function is known by name, and not only by its address."""
    return not str(native).startswith("0x")


# -- the source -------------------------------------------------------------------------------------------


def _source(record: Record) -> Iterator[Text | str]:
    """The line that the verdict is about, and those around it; the file may have changed since."""
    found = _found(record)
    file, _, line = record.where.rpartition(":")
    path = os.path.join(str(record.process.get("cwd") or ""), file if found is None else str(found[0]))
    read = _read(path) if os.path.isabs(path) and (found is not None or os.path.isabs(file)) else None
    if read is None or not line.isdecimal() or not 0 < int(line) <= len(read[0]):
        return
    lines, changed_at = read
    wanted = int(line)
    for number in range(max(1, wanted - _AROUND), min(len(lines), wanted + _AROUND) + 1):
        mark = ">" if number == wanted else " "
        text = f"{mark} {number:>5} | {_safe(lines[number - 1].expandtabs(4).rstrip())}"
        yield Text(text, "bold" if number == wanted else "dim")
    if record.time is not None and changed_at > record.time:
        yield "  this file has changed since"


def _found(record: Record) -> Frame | None:
    """Return the frame of ``where``."""
    for chain in (*record.tasks, *record.stacks):
        frame = frame_at(chain.get("frames") or (), record.where)
        if frame is not None:
            return frame
    return None


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


def _safe(value: object) -> str:
    return printable(str(value))
