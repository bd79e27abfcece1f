"""A reporter: every event is recorded, then logged, then told to whoever listens.

The laws of this file:

* Act first, describe afterwards: what is reported waits in a work queue, in its order. So whoever reports is
  not kept, and everything that is due is acted upon before anything of it is written down.
* Nobody's error reaches the server; what a sink cannot take in time is dropped and counted by that sink.
* A record is kept before its event is told, so that whoever hears of it finds it.
* Whoever is refused again and again is told of once a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from .._core.reader import TableReader
from .._core.requests import WorkerId
from ..events import Event, Kind, log
from ..evidence.record import Record
from .expiry import MAX_SLOTS, LookAround
from .sinks import CallbackSink
from .slices import Steps, WorkQueue
from .watched_table import WatchedTable

if TYPE_CHECKING:
    from .expiry import Expiry
    from .history import History

RecordSink: TypeAlias = Callable[[Record, str, str], object]
"""``keep(record, stacks_text, tasks_text)``: takes the record of an expiry, and again at every change."""

PathOf: TypeAlias = Callable[[str], str]
"""``path_of(record_id)``: the directory where a record will be kept, "" if it is not."""

AROUND_FOR = 0.1
"""Seconds for which a look around at a worker serves all its expiries: there may be thousands at once."""

WRITE_WITHIN = 2.0
"""Seconds that a server which ends gives its history to be written."""

TOGETHER = 64
"""Scopes whose durations are one thing to write, which is bounded. Few workers have more."""

REFUSALS_EVERY = 60.0
"""Seconds from one event about refusals of one peer to the next."""

PEERS, REASONS = 100, 5
"""Peers that are told of one by one, and reasons that are told of each; the others are put together."""


@dataclass
class _Refused:
    """A peer that has been refused: since when, the event that said so, and for what reasons again since."""

    since: float
    event: Event
    reasons: Counter[str] = field(default_factory=Counter)


class Refusals:
    """Counts the refusals of each peer: the first is told at once, the others together when a minute is over.

    Args:
        emit: takes events.
        clock: ``CLOCK_MONOTONIC`` seconds.
    """

    def __init__(self, emit: Callable[[Event], object], clock: Callable[[], float] = monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._peers: dict[Hashable, _Refused] = {}

    def add(self, peer: Hashable, event: Event) -> None:
        """A peer has been refused."""
        if peer not in self._peers and len(self._peers) >= PEERS:
            peer = _OTHERS
        known = self._peers.get(peer)
        if known is None:
            self._peers[peer] = _Refused(self._clock(), event)
            self._emit(event)
            return
        is_told = event.detail in known.reasons or len(known.reasons) < REASONS
        known.reasons[event.detail if is_told else "other reasons"] += 1

    def tell(self, *, all_of_them: bool = False) -> None:
        """Tell of those whose minute is over; forget those who have kept quiet."""
        now = self._clock()
        for peer, known in list(self._peers.items()):
            if not all_of_them and now - known.since < REFUSALS_EVERY:
                continue
            del self._peers[peer]
            if known.reasons:
                many = f"{known.reasons.total()} more refusals {'of many peers ' * (peer is _OTHERS)}"
                detail = f"{many}within {now - known.since:.0f} s: {'; '.join(known.reasons)}"
                self._peers[peer] = _Refused(now, known.event)
                self._emit(known.event._replace(detail=detail))


_OTHERS = object()

_NUMBER = re.compile(r"((?<=Worker|rocess)-\d+(:\d+)*)?( rank \d+(/\d+)?)?$")
"""What a worker's name says of which of several it is."""


class Reporter:
    """Reports what happens: each event, and each change of an expiry.

    Args:
        history: records it first; None: nothing is recorded.
        tell: who takes events, in this order. None of them waits, or raises.
        close: closes a descriptor, now or soon.
        when_written: calls what it is given as soon as all that has been logged is written, in any thread.

    Attributes:
        keep: takes records, None if nobody does.
        path_of: see :data:`PathOf`.
    """

    def __init__(
        self,
        queue: WorkQueue,
        history: History | None,
        *tell: Callable[[Event], object],
        clock: Callable[[], float] = monotonic,
        close: Callable[[int], object] = os.close,
        when_written: Callable[[Callable[[], object]], object] = lambda action: action(),
    ) -> None:
        self._close = close
        self._when_written = when_written
        self.keep: RecordSink | None = None if history is None else history.record
        self.path_of: PathOf = (lambda _record_id: "") if history is None else history.path_of
        self.queue = queue
        self._clock = clock
        self._history = history
        self._tell = tell
        self._around: dict[WorkerId, LookAround] = {}
        self._refusals = Refusals(self.emit, clock)

    def emit(self, event: Event) -> None:
        """Something happened."""
        self.queue.put(event.worker_id, self._emit, event)

    def refused(self, peer: Hashable, event: Event) -> None:
        """A client is not served."""
        self._refusals.add(peer, event)

    def tell_refusals(self, *, all_of_them: bool = False) -> None:
        """Tell of further refusals, if it is time."""
        self._refusals.tell(all_of_them=all_of_them)

    def begin(self, expiry: Expiry, tables: Iterable[WatchedTable]) -> None:
        """The first action on an expired timer has been taken; ``tables`` are its worker's."""
        self.queue.put(expiry.worker_id, self._describe, expiry, tuple(tables), expiry.event())

    def record(self, expiry: Expiry) -> None:
        """Record what is known of an expiry by now."""
        if self.keep is not None:
            expiry.evidence = self.path_of(expiry.id)
            self.queue.put(expiry.worker_id, self._keep, expiry)

    def called(
        self, record: Mapping[str, Any], members: Sequence[Mapping[str, Any]], event: Event | None
    ) -> None:
        """The roll of a run has been called, or more is known of it.

        Args:
            record, members: see ``Store.save_run``.
            event: what is told of it; None: nothing new.
        """
        if self._history is not None:
            self.queue.put(None, self._history.run, record, members)
        if event is not None:
            self.emit(event._replace(evidence=self.path_of(record["id"])))

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

    def _describe(self, expiry: Expiry, tables: Sequence[WatchedTable], event: Event) -> Steps[None]:
        if self.keep is not None:
            now = self._clock()
            around = self._around.get(expiry.worker_id)
            if around is None or not around.at <= now < around.at + AROUND_FOR:
                self._around = {w: known for w, known in self._around.items() if now < known.at + AROUND_FOR}
                around = yield from LookAround(tables, now).read()
                self._around[expiry.worker_id] = around
            expiry.look_around(around)
        self._emit(event)

    def _keep(self, expiry: Expiry) -> None:
        assert self.keep is not None
        stacks, tasks = ("", "") if expiry.findings is None else expiry.findings[-2:]
        try:
            self.keep(expiry.record(), stacks, tasks)
        except Exception:  # noqa: BLE001 - logged; what is not recorded is still reported
            log.exception("the record of an expiry could not be kept")

    def note_durations(self, table: WatchedTable, name: str) -> None:
        """A table is about to be removed: what it says of durations is history, of the worker's program."""
        if self._history is not None:
            with contextlib.suppress(OSError):  # there is no descriptor left: nor is there for anything else
                self.queue.put(table, self._note_durations, os.dup(table.file.descriptor), name)

    def _note_durations(self, descriptor: int, name: str) -> Steps[None]:
        assert self._history is not None
        together: list[dict[str, Any]] = []
        try:
            for told in scopes_of(TableReader(partial(os.pread, descriptor)), name):
                if told is not None:
                    together.append(told)
                if len(together) >= TOGETHER:
                    self._history.durations(together)
                    together = []
                yield
            if together:
                self._history.durations(together)
        finally:
            self._close(descriptor)

    async def told(self) -> None:
        """Wait until everything that has been reported is told and written; not for long if it cannot be."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        self.queue.put(None, done.set)
        await done.wait()
        self._call_back()
        if self._history is not None:
            await loop.run_in_executor(None, self._history.flush, WRITE_WITHIN)
        written = asyncio.Event()
        self._when_written(lambda: loop.call_soon_threadsafe(written.set))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(written.wait(), WRITE_WITHIN)

    async def close(self) -> None:
        """Have the callback take what waits, and the history write it."""
        self._call_back()
        if self._history is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._history.close, WRITE_WITHIN)

    def _call_back(self) -> None:
        for sink in self._tell:
            if isinstance(sink, CallbackSink):
                sink.flush()

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's."""
        if self._history is not None:
            self._history.abandon()


def scopes_of(reader: TableReader, name: str) -> Generator[dict[str, Any] | None]:
    """Yield every scope of a table that has been entered: how often, how long it took, its latest limit.

    They are a program's, whose processes share them: what a worker's name is without its number.
    None comes in between, when others may have a turn.
    """
    found = yield from reader.durations(MAX_SLOTS)
    program = _NUMBER.sub("", name)
    for scope, ran in found.items():
        durations = ran.durations.as_json()
        told = {"scope": scope, "count": ran.count, "limit_s": ran.limit, "durations": durations}
        yield {"program": program} | told
