"""A reporter: every event is recorded, then logged, then told to whoever listens.

The laws of this file: nobody here is waited for, and nobody's error reaches the server; what a sink cannot
take in time is dropped and counted by that sink's queue; a record is kept before its event is reported, so
that whoever hears of it finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..events import Event, Kind, log, write_to_log
from ..evidence.store import Store
from .expiry import MAX_SLOTS
from .history import History
from .sinks import CallbackSink
from .slices import WorkQueue
from .watched_table import WatchedTable

if TYPE_CHECKING:
    from .expiry import Expiry


RecordSink: TypeAlias = Callable[[dict[str, Any], str, str], object]
"""``record(record, stacks_text, tasks_text)``: takes the record of an expiry, and again at every change."""

PathOf: TypeAlias = Callable[[str], str]
"""``path_of(record_id)``: the directory where a record will be kept, "" if it is not."""


class ExpiryReporter:
    """Reports expiries, after whatever the loop is about to do: each change is recorded, then told.

    Args:
        emit: takes events.
        record: takes records; None: nobody does.
        path_of: see :data:`PathOf`.
        queue: where all of it waits, in order.
    """

    def __init__(
        self, emit: Callable[[Event], None], record: RecordSink | None, path_of: PathOf, queue: WorkQueue
    ) -> None:
        self._emit = emit
        self._record = record
        self._path_of = path_of
        self._queue = queue

    def emit(self, event: Event) -> None:
        """Something has happened that is no expiry's."""
        self._queue.put(self._emit, event)

    def begin(self, expiry: Expiry, tables: Iterable[WatchedTable]) -> None:
        """The first action on an expired timer has been taken; ``tables`` are its worker's."""
        self._queue.put(self._describe, expiry, tuple(tables), expiry.event())

    def record(self, expiry: Expiry) -> None:
        """Record what is known of an expiry by now."""
        if self._record is not None:
            expiry.evidence = self._path_of(expiry.id)
            self._queue.put(self._keep, expiry)

    def report(self, expiry: Expiry, kind: Kind, outcome: str, detail: str = "") -> None:
        """Something has become of an expiry."""
        expiry.becomes(kind, outcome, detail)
        self.record(expiry)
        self.emit(expiry.event())

    def _describe(self, expiry: Expiry, tables: Sequence[WatchedTable], event: Event) -> None:
        if self._record is not None:
            expiry.look_around([table for table in tables if not table.closed])
        self._emit(event)

    def _keep(self, expiry: Expiry) -> None:
        assert self._record is not None
        stacks, tasks = ("", "") if expiry.findings is None else expiry.findings[-2:]
        try:
            self._record(expiry.record(), stacks, tasks)
        except Exception:  # noqa: BLE001 - logged; what is not recorded is still reported
            log.exception("the record of an expiry could not be kept")


WRITE_WITHIN = 2.0
"""Seconds that a server which ends gives its history to be written."""


class Reporter:
    """Reports the events of a server, and has records kept.

    Args:
        loop: the server's.
        directory: its state directory.
        evidence_dir: where evidence is kept instead of there.
        on_event: the function of the server's owner.
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
        self._callback = None if on_event is None else CallbackSink(loop, on_event)

    def report(self, event: Event) -> None:
        """Something happened."""
        write_to_log(event)
        if self._callback is not None:
            self._callback(event)
        self._history.event(event.as_json())

    def record(self, record: dict[str, Any], stacks_text: str, tasks_text: str) -> None:
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
        """Have the sink take what waits, and the history write it."""
        if self._callback is not None:
            self._callback.flush()
        await asyncio.get_running_loop().run_in_executor(None, self._history.close, WRITE_WITHIN)

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's."""
        self._history.abandon()


def scopes_of(table: WatchedTable) -> list[dict[str, Any]]:
    """Return every scope of a table that has been entered: how often, how long it took, its latest limit."""
    return [
        {
            "scope": scope,
            "count": ran.count,
            "limit_s": ran.limit,
            "durations": ran.durations.as_json(),
        }
        for scope, ran in table.reader.durations(MAX_SLOTS).items()
    ]
