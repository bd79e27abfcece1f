"""A reporter: every event is recorded, then logged, then told to whoever listens.

The laws of this file:

* Act first, describe afterwards: what is reported waits in a work queue, in its order. So whoever reports is
  not kept, and everything that is due is acted upon before anything of it is written down.
* Nobody's error reaches the server; what a sink cannot take in time is dropped and counted by that sink.
* A record is kept before its event is told, so that whoever hears of it finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ..events import Event, Kind, log
from ..evidence.record import Record
from .expiry import MAX_SLOTS
from .sinks import CallbackSink
from .watched_table import WatchedTable

if TYPE_CHECKING:
    from .expiry import Expiry
    from .history import History
    from .slices import WorkQueue

RecordSink: TypeAlias = Callable[[Record, str, str], object]
"""``keep(record, stacks_text, tasks_text)``: takes the record of an expiry, and again at every change."""

PathOf: TypeAlias = Callable[[str], str]
"""``path_of(record_id)``: the directory where a record will be kept, "" if it is not."""

WRITE_WITHIN = 2.0
"""Seconds that a server which ends gives its history to be written."""


class Reporter:
    """Reports what happens: each event, and each change of an expiry.

    Args:
        queue: where it waits.
        history: records it first; None: nothing is recorded.
        tell: who takes events, in this order. None of them waits, or raises.

    Attributes:
        keep: takes records, None if nobody does.
        path_of: see :data:`PathOf`.
    """

    def __init__(self, queue: WorkQueue, history: History | None, *tell: Callable[[Event], object]) -> None:
        self.keep: RecordSink | None = None if history is None else history.record
        self.path_of: PathOf = (lambda _record_id: "") if history is None else history.path_of
        self._queue = queue
        self._history = history
        self._tell = tell

    def emit(self, event: Event) -> None:
        """Something happened."""
        self._queue.put(self._emit, event)

    def begin(self, expiry: Expiry, tables: Iterable[WatchedTable]) -> None:
        """The first action on an expired timer has been taken; ``tables`` are its worker's."""
        self._queue.put(self._describe, expiry, tuple(tables), expiry.event())

    def record(self, expiry: Expiry) -> None:
        """Record what is known of an expiry by now."""
        if self.keep is not None:
            expiry.evidence = self.path_of(expiry.id)
            self._queue.put(self._keep, expiry)

    def report(self, expiry: Expiry, kind: Kind, outcome: str, detail: str = "") -> None:
        """Something has become of an expiry."""
        expiry.becomes(kind, outcome, detail)
        self.record(expiry)
        self.emit(expiry.event())

    def _emit(self, event: Event) -> None:
        if self._history is not None:
            self._history.event(event.as_json())
        for tell in self._tell:
            tell(event)

    def _describe(self, expiry: Expiry, tables: Sequence[WatchedTable], event: Event) -> None:
        if self.keep is not None:
            expiry.look_around([table for table in tables if not table.closed])
        self._emit(event)

    def _keep(self, expiry: Expiry) -> None:
        assert self.keep is not None
        stacks, tasks = ("", "") if expiry.findings is None else expiry.findings[-2:]
        try:
            self.keep(expiry.record(), stacks, tasks)
        except Exception:  # noqa: BLE001 - logged; what is not recorded is still reported
            log.exception("the record of an expiry could not be kept")

    def note_durations(self, table: WatchedTable) -> None:
        """A table is about to be removed: what it says of durations is history."""
        if self._history is None:
            return
        for found in scopes_of(table):
            self._history.durations(found["scope"], found["durations"], found["count"], found["limit_s"])

    async def close(self) -> None:
        """Have the callback take what waits, and the history write it."""
        for sink in self._tell:
            if isinstance(sink, CallbackSink):
                sink.flush()
        if self._history is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._history.close, WRITE_WITHIN)

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's."""
        if self._history is not None:
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
