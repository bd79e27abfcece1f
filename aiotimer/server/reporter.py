"""A reporter: every event is recorded, then logged, then told to whoever listens.

The laws of this file: nobody here is waited for, and nobody's error reaches the server; what a sink cannot
take in time is dropped and counted by that sink's queue; a record is kept before its event is reported, so
that whoever hears of it finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..events import Event, Kind, log, write_to_log
from ..evidence.record import Record
from .expiry import MAX_SLOTS
from .history import History
from .sinks import CallbackSink
from .watched_table import WatchedTable

if TYPE_CHECKING:
    from .expiry import Expiry

RecordSink: TypeAlias = Callable[[Record, str, str], object]
"""``keep(record, stacks_text, tasks_text)``: takes the record of an expiry, and again at every change."""

PathOf: TypeAlias = Callable[[str], str]
"""``path_of(record_id)``: the directory where a record will be kept, "" if it is not."""

WRITE_WITHIN = 2.0
"""Seconds that a server which ends gives its history to be written."""


class Reporter:
    """Reports what happens: each event, and each change of an expiry.

    Args:
        history: records it first; None: nothing is recorded.
        tell: who takes events, in this order. None of them waits, or raises.

    Attributes:
        keep: takes records, None if nobody does.
        path_of: see :data:`PathOf`.
    """

    def __init__(self, history: History | None, *tell: Callable[[Event], object]) -> None:
        self.keep: RecordSink | None = None if history is None else history.record
        self.path_of: PathOf = (lambda _record_id: "") if history is None else history.path_of
        self._history = history
        self._tell = tell

    @classmethod
    def of_server(
        cls,
        loop: asyncio.AbstractEventLoop,
        directory: Path,
        evidence_dir: str | None,
        on_event: Callable[[Event], object] | None,
    ) -> Reporter:
        """Return one that records, then logs, then tells.

        Args:
            loop: the server's.
            directory: its state directory.
            evidence_dir: where records are kept instead of there.
            on_event: the function of the server's owner.
        """
        callback = () if on_event is None else (CallbackSink(loop, on_event),)
        return cls(History(directory, evidence_dir), write_to_log, *callback)

    @property
    def recording(self) -> bool:
        """Whether somebody takes records."""
        return self.keep is not None

    def emit(self, event: Event) -> None:
        """Something happened."""
        if self._history is not None:
            self._history.event(event.as_json())
        for tell in self._tell:
            tell(event)

    def record(self, expiry: Expiry) -> None:
        """Record what is known of an expiry by now."""
        if self.keep is None:
            return
        try:
            expiry.evidence = self.path_of(expiry.id)
            stacks, tasks = ("", "") if expiry.findings is None else expiry.findings[-2:]
            self.keep(expiry.record(), stacks, tasks)
        except Exception:  # noqa: BLE001 - logged; what is not recorded is still reported
            log.exception("the record of an expiry could not be kept")

    def report(self, expiry: Expiry, kind: Kind, outcome: str, detail: str = "") -> None:
        """Something has become of an expiry."""
        expiry.becomes(kind, outcome, detail)
        self.record(expiry)
        self.emit(expiry.event())

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


class ExpiryReporter(Reporter):
    """A reporter in front of another one.

    Args:
        emit: takes events.
        record: takes records; None: nobody does.
        path_of: see :data:`PathOf`.
    """

    def __init__(self, emit: Callable[[Event], None], record: RecordSink | None, path_of: PathOf) -> None:
        super().__init__(None, emit)
        self.keep = record
        self.path_of = path_of


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
