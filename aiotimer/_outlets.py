"""Where a server's events and records go, besides its own decisions: the log, its owner, the history.

The laws of this file: nobody here is waited for, and nobody's error reaches the server; what a taker cannot
take in time is dropped and counted by that taker's queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._core.durations import LIMIT
from ._sinks import CallbackSink
from ._watched import WatchedTable
from .events import Event, write_to_log
from .evidence.store import Store
from .history import History

WRITE_WITHIN = 2.0
"""Seconds that a server which ends gives its history to be written."""

_LONGEST = 1e9
"""Seconds; a limit beyond that is none."""

MAX_SLOTS = 1024
"""Slots of one table whose durations are read, on the server's loop."""


class Outlets:
    """A server's.

    Args:
        loop: the server's.
        directory: its state directory.
        evidence_dir: where evidence is kept instead of there.
        on_event: the owner's function.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: Path,
        evidence_dir: str | None,
        on_event: Callable[[Event], object] | None,
    ) -> None:
        store = Store(directory / "evidence" if evidence_dir is None else Path(evidence_dir))
        self._history = History(directory, store)
        self._store = store
        self._owner = None if on_event is None else CallbackSink(loop, on_event)

    def tell(self, event: Event) -> None:
        """Something happened."""
        write_to_log(event)
        if self._owner is not None:
            self._owner(event)
        self._history.event(event.as_json())

    def keep(self, record: dict[str, Any], stacks_text: str, tasks_text: str) -> None:
        """Something is known of an expiry, or has become of it."""
        self._history.record(record, stacks_text, tasks_text)

    def path_of(self, record_id: str) -> str:
        """Return the directory for the evidence of an expiry."""
        return str(self._store.path_of(record_id))

    def note_durations(self, table: WatchedTable) -> None:
        """A table is about to be removed: what it says of durations is history."""
        for found in scopes_of(table):
            self._history.durations(found["scope"], found["durations"], found["count"], found["limit_s"])

    async def close(self) -> None:
        """Tell what waits, and write it."""
        if self._owner is not None:
            self._owner.flush()
        await asyncio.get_running_loop().run_in_executor(None, self._history.close, WRITE_WITHIN)

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's."""
        self._history.abandon()


def scopes_of(table: WatchedTable) -> list[dict[str, Any]]:
    """Return every scope of a table that has been entered: how often, how long it took, its latest limit."""
    reader = table.reader
    found = reader.durations(MAX_SLOTS)
    limits: dict[str, float] = {}
    for slot in range(min(len(reader.deadlines()), MAX_SLOTS) if found else 0):
        row = reader.row(slot)
        if len(row) > LIMIT and 0.0 < row[LIMIT] < _LONGEST:
            limits[reader.label(slot)[0]] = row[LIMIT]
    return [
        {
            "scope": scope,
            "count": ran.count,
            "limit_s": limits.get(scope),
            "durations": ran.durations.as_json(),
        }
        for scope, ran in found.items()
    ]
