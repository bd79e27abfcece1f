"""A formatter of rows: one expiry, or one event of the server itself, on one line of a terminal.

The laws of this file: a row is never wrapped; what is cut loses its middle, for a place stands at the end; no
two scopes are cut alike; text of a worker is escaped before it is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size

from ..events import printable


class Columns(NamedTuple):
    """How many columns of a terminal the words of a row have."""

    kind: int = 11
    pid: int = 7
    scope: int = 20


COLUMNS = Columns()
"""Of rows that are printed one by one."""

_IN_A_CALL = re.compile(r" \([^()]*\)$")
"""What a verdict can do without sooner than without its place."""

_CUT = ".."  # a character that every terminal has
_STILL_OPEN = frozenset({"pending", "observed", "unkillable"})
"""Outcomes that are not the last word about an expiry."""

_UNKNOWN_TIME = f"{'unknown time':<14}"


def merged(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each expiry, and one for each other event, in the order of their beginning.

    A row is the newest event of it, at the time of the first; ``events`` are the kinds of all of them. Events
    of one expiry name the same evidence; those that name none are of the latest expiry of their worker and
    scope that is still open.
    """
    rows: list[dict[str, Any]] = []
    by_evidence: dict[str, dict[str, Any]] = {}
    still_open: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for event in events:
        outcome, evidence = event.get("outcome"), event.get("evidence")
        waiting = still_open.setdefault((event.get("pid"), event.get("scope")), [])
        row = by_evidence.get(evidence) if evidence else None
        if row is None and outcome and outcome != "pending":
            row = next((one for one in reversed(waiting) if not (evidence and one.get("evidence"))), None)
        if row is None:
            row = {"time": event.get("time"), "events": []}
            rows.append(row)
        row |= {key: value for key, value in event.items() if key != "time"}
        row["events"].append(event.get("event"))
        waiting[:] = [one for one in waiting if one is not row] + [row] * (outcome in _STILL_OPEN)
        if evidence:
            by_evidence[evidence] = row
    return rows


def lines(rows: Sequence[Mapping[str, Any]], width: int, columns: Columns | None = None) -> list[str]:
    """Return the rows as lines of so many columns at most.

    Args:
        rows: events, or rows of :func:`merged`.
        width: of the terminal.
        columns: of the words in them; by default, what these rows need.
    """
    told = [[printable(str("" if word is None else word)) for word in _words(row)] for row in rows]
    if columns is None:
        kinds, pids, scopes = ([cell_len(words[number]) for words in told] for number in range(3))
        columns = Columns(
            max(kinds, default=0), max(pids, default=0), min(max(scopes, default=0), COLUMNS.scope)
        )
    shown = fitted({scope for _kind, _pid, scope in told}, columns.scope)
    made = []
    for row, (kind, pid, scope) in zip(rows, told, strict=True):
        words = f"{kind:<{columns.kind}}  {pid:>{columns.pid}}  {set_cell_size(shown[scope], columns.scope)}"
        begins = f"{_time(row.get('time'))}  {words}  "
        said = printable(str(row.get("verdict") or row.get("detail") or ""))
        left = max(width - cell_len(begins), len(_CUT))
        if cell_len(said) > left:
            said = _IN_A_CALL.sub("", said)
        made.append(set_cell_size(begins + cut(said, left), width).rstrip())
    return made


def _words(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return the kind of a row, the worker, and the scope that it is about, or the run."""
    return row.get("event"), row.get("pid"), row.get("scope") or row.get("run")


def _time(moment: Any) -> str:
    try:
        return f"{datetime.fromtimestamp(moment, UTC).astimezone():%m-%d %H:%M:%S}"
    except (TypeError, OverflowError, ValueError, OSError):
        return _UNKNOWN_TIME


def cut(text: str, cells: int) -> str:
    """Return a text that fits, without its middle if need be."""
    if cell_len(text) <= cells:
        return text
    left = max(cells - len(_CUT), 0)
    head = left // 5
    tail = set_cell_size(text[::-1], left - head)[::-1]
    return set_cell_size(text, head) + _CUT + tail


def fitted(texts: Iterable[str], cells: int) -> dict[str, str]:
    """Return how texts are shown in a column: whole, or cut, and no two alike."""
    whole = sorted(set(texts))
    shown = {text: text for text in whole if cell_len(text) <= cells}
    taken = set(shown.values())
    alike: dict[str, list[str]] = {}
    for text in whole:
        if text not in shown:
            alike.setdefault(cut(text, cells), []).append(text)
    for short, group in alike.items():
        differ = (at for at, both in enumerate(zip(group[0], group[-1], strict=False)) if both[0] != both[1])
        begin = next(differ, 0)  # they are sorted
        for number, text in enumerate(group, 1):
            fits = short
            if begin:
                fits = _CUT + set_cell_size(text[begin:], cells - len(_CUT)).rstrip()
            while fits in taken:
                mark = f"{_CUT}~{number}"
                fits = set_cell_size(text, max(cells - len(mark), 0)) + mark
                number += len(group)
            taken.add(fits)
            shown[text] = fits
    return shown
