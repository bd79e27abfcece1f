"""A renderer of the page about one run: who waits for whom, and where each of its members stands.

The laws of this file: the first lines name the culprits, and say what they do; then come the camps, the stack
of a culprit, and the members. Nothing is printed as it came. On a narrow terminal lines are folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from rich.text import Text

from ..events import printable, shown
from ..evidence.camps import line_in_words, numbers_in_words
from ..evidence.record import Record
from ..evidence.roll_call import Member
from ..evidence.run_record import RunRecord
from .common import count, moment, seconds
from .html_page import Fold, html_page
from .page import Row, console, print_rows, rows_of, stack_rows

_MOST_CULPRITS = 4
_MOST_CAMPS = 8
_MOST_MEMBERS = 16
"""Of each, what is told unless all is asked for."""


def print_roll(
    record: RunRecord, file: IO[str] | None = None, width: int | None = None, *, full: bool = False
) -> None:
    """Print the page about a run.

    Args:
        record: as a server keeps it, or merged.
        file: standard output by default.
        width: in columns; by default the terminal's.
        full: all of it, however long.
    """
    printer = console(file, width)
    print_rows(_RollPage(record, printer.width, full=full), printer, full=full)


def roll_as_html(record: RunRecord) -> str:
    """Return the page as one file of HTML, with a row for each member that unfolds to its stack."""
    page = _RollPage(record, 10_000, full=True)
    folds = [
        Fold(_row(member), rows_of(_record_of(member))[1], member.camp, page.is_culprit(member))
        for member in record.members
    ]
    return html_page(page.headline(), [*page.first(), *page.camps(), *page.last()], folds)


class _RollPage:
    """What is said of one run."""

    def __init__(self, record: RunRecord, width: int, *, full: bool) -> None:
        self._record = record
        self._width = width
        self._full = full

    def headline(self) -> str:
        """Return which run, where, and when."""
        record = self._record
        size = count(record.size, "rank") if record.size else ""
        facts = ", ".join(filter(None, [size, f"on {_safe(record.host)}" if record.host else ""]))
        when = f", {moment(record.time)}" if record.time is not None else ""
        return f"the roll of run {shown(record.run)}{f' ({facts})' if facts else ''}{when}"

    def is_culprit(self, member: Member) -> bool:
        """Whether a member is to blame, as far as can be told."""
        return member.rank in self._record.culprits and (member.camp is not None or not member.pid)

    def first(self) -> Iterator[Row]:
        """Yield what is never left out: the verdict, who is to blame, and whose time was up."""
        record = self._record
        yield "why", Text(_safe(record.verdict or "not known"), "bold red")
        culprits = [member for member in record.members if self.is_culprit(member)]
        for number, member in enumerate(culprits[: None if self._full else _MOST_CULPRITS]):
            yield "" if number else "culprit", Text(_who(member), "bold")
            if member.verdict:
                yield "", f"  {_safe(member.verdict)}"
        if not culprits:
            yield "culprit", "cannot be told"
        expired = sorted(
            {one.rank for one in record.members if one.state == "expired" and one.rank is not None}
        )
        if expired:
            yield "time's up", f"{'ranks' if len(expired) > 1 else 'rank'} {numbers_in_words(expired)}"
        if record.clocks:
            yield "clocks", _safe(record.clocks)

    def middle(self) -> Iterator[Row]:
        """Yield what supports it: camps, a culprit's stack, members, and the stack of one that waits."""
        record = self._record
        yield from self.camps()
        culprit = next((one for one in record.members if self.is_culprit(one) and one.pid), None)
        waits = next((one for one in record.members if one.camp == 0 and one is not culprit), None)
        if culprit is not None:
            yield from self._stack(culprit)
        members = [one for one in record.members if self._full or one.camp is not None or not one.pid]
        most = len(members) if self._full else _MOST_MEMBERS
        for number, member in enumerate(sorted(members, key=self._order)[:most]):
            yield "" if number else "members", _short(member)
        if len(members) > most:
            yield "", f"and {len(members) - most} more, with --full"
        if waits is not None:
            yield from self._stack(waits)

    def last(self) -> Iterator[Row]:
        """Yield what belongs to every page: where more is said of one."""
        if any(member.pid for member in self._record.members):
            yield "more", "aiotimer why PID: the page of a member whose time was up"

    def camps(self) -> Iterator[Row]:
        """Yield who stands where."""
        groups: dict[int, list[Member]] = {}
        for member in self._record.members:
            if member.camp is not None:
                groups.setdefault(member.camp, []).append(member)
        for number, (camp, members) in enumerate(sorted(groups.items())):
            if number == _MOST_CAMPS and not self._full:
                yield "", f"and {len(groups) - number} camps more"
                break
            place = line_in_words(_safe(members[0].where))
            wait = f"wait in `{_safe(members[0].wait)}`, " if members[0].wait else ""
            yield "" if number else "camps", f"{camp}: {_ranks(members)}: {wait}{place}"

    def _stack(self, member: Member) -> Iterator[Row]:
        for number, (label, said) in enumerate(stack_rows(_record_of(member), self._width, full=self._full)):
            if not number:
                yield "stack", f"{_who(member)}, {said.plain if isinstance(said, Text) else said}"
            elif label in ("", "task", "thread"):
                yield "", said

    def _order(self, member: Member) -> tuple[bool, bool, int, int]:
        return not self.is_culprit(member), member.rank is None, member.rank or 0, member.pid


def _record_of(member: Member) -> Record:
    """Return what is known of a member as the record of a worker, which has a page."""
    found = member.evidence
    where = member.where.rpartition(" at ")[2]
    known = {"id": member.record, "pid": member.pid, "name": member.name, "host": member.node}
    known |= {"verdict": member.verdict, "where": where, "timers": member.timers, "outcome": "dump"}
    kept = {key: found[key] for key in ("stacks", "tasks", "process", "probes") if key in found}
    return Record.from_json(known | kept)


def _who(member: Member) -> str:
    rank = "a member without a rank" if member.rank is None else f"rank {member.rank}"
    facts = [f"pid {member.pid}" if member.pid else "", f"on {_safe(member.node)}" if member.node else ""]
    told = " ".join(filter(None, facts))
    return f"{rank} ({', '.join(filter(None, [told, _safe(member.state)]))})"


def _row(member: Member) -> str:
    """Say of a member all that fits into a line."""
    place = line_in_words(_safe(member.where))
    parts = [_who(member), f"`{_safe(member.wait)}`" if member.wait else "", place, *_times(member)]
    return ", ".join(filter(None, parts))


def _short(member: Member) -> str:
    """The same, with the number of its camp, which has a line of its own."""
    camp = f"camp {member.camp}" if member.camp is not None else ""
    return ", ".join(filter(None, [_who(member), camp, *_times(member)]))


def _times(member: Member) -> Iterator[str]:
    timer = member.timers[0] if member.timers else {}
    scope = f" in {shown(str(timer['scope']))}" if timer.get("scope") else ""
    if member.since_s is not None:
        yield f"{seconds(member.since_s)}{scope}"
    if member.moving:
        yield "moving"


def _ranks(members: Sequence[Member]) -> str:
    ranks = sorted({one.rank for one in members if one.rank is not None})
    pids = sorted(one.pid for one in members if one.rank is None)
    told = [f"rank{'s' * (len(ranks) > 1)} {numbers_in_words(ranks)}"] if ranks else []
    return ", ".join([*told, *(f"pid {pid}" for pid in pids)])


def _safe(value: object) -> str:
    return printable(str(value))
