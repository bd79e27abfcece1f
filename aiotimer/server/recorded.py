"""Readers of the history: what ``history.db`` tells of expiries, events and scopes.

The laws of this file: a reader needs no server, is not held up by one, and does not hold it up; it only
reads. No more is imported than a question needs: ``aiotimer run`` asks one after every command.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HistoryUnreadable

if TYPE_CHECKING:
    from ..evidence.record import Record

DATABASE = "history.db"

BUSY_WITHIN = 5.0
"""Seconds that SQLite waits for a lock: another writer can only be an old server that is about to end."""

EVENTS, EXPIRIES, SCOPES = 10_000, 1_000, 1_000
"""Rows that are kept of each table."""


def any_expiry(directory: Path) -> bool:
    """Whether there is an expiry in the history of a state directory; there need be no history in it.

    Raises:
        HistoryUnreadable: there is a history, and it cannot be read.
    """
    return bool(_rows(directory, "SELECT 1 FROM expiries LIMIT 1", ()))


def expiries(directory: Path, pid: int | None = None, limit: int = 100) -> list[Record]:
    """Return the summaries of expiries in a state directory, the newest first.

    Args:
        directory: of a server that may live or not; there need be no history in it.
        pid: only that worker's.
        limit: how many at most.

    Raises:
        HistoryUnreadable: there is a history, and it cannot be read.
    """
    from ..evidence.record import Record

    of_pid = "" if pid is None else " WHERE pid = ?"
    arguments = (limit,) if pid is None else (pid, limit)
    query = f"SELECT record FROM expiries{of_pid} ORDER BY number DESC LIMIT ?"  # noqa: S608 - constants
    return [Record.from_json(object_of(text)) for (text,) in _rows(directory, query, arguments)]


def events(directory: Path, after: int = 0, limit: int = EVENTS) -> list[tuple[int, dict[str, Any]]]:
    """Return events with their numbers, in their order: the newest ones, after a number.

    Raises:
        HistoryUnreadable: there is a history, and it cannot be read.
    """
    query = "SELECT number, event FROM events WHERE number > ? ORDER BY number DESC LIMIT ?"
    return [(number, object_of(text)) for number, text in _rows(directory, query, (after, limit))][::-1]


def scopes(directory: Path) -> list[dict[str, Any]]:
    """Return what is known of scopes: of each ``program``, ``scope``, ``count``, ``limit_s``, ``durations``.

    Raises:
        HistoryUnreadable: there is a history, and it cannot be read.
    """
    query = "SELECT program, scope, count, limit_s, durations FROM durations ORDER BY number"
    before = "SELECT '', scope, count, limit_s, durations FROM scopes ORDER BY number"
    return [
        {"program": program, "scope": scope, "count": count, "limit_s": limit}
        | {"durations": object_of(text).get("")}
        for program, scope, count, limit, text in _rows(directory, query, (), before)
    ]


def _rows(directory: Path, query: str, arguments: tuple[object, ...], before: str = "") -> list[Any]:
    """Return what a query gives; ``before`` is that for a database of version 1, if it is another one."""
    import sqlite3

    path = directory / DATABASE
    if not path.is_file():
        return []
    try:
        location = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(location, timeout=BUSY_WITHIN, uri=True)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if not version:
                return []  # nothing has been written yet
            query = before if before and version == 1 else query
            return connection.execute(query, arguments).fetchall()
    except (sqlite3.Error, OSError) as error:
        raise HistoryUnreadable(str(path), str(error)) from error


def object_of(text: str) -> dict[str, Any]:
    """Return the JSON object that a text is, an empty one if it is another value."""
    import json

    found = json.loads(text)
    return found if isinstance(found, dict) else {}
