"""A reporter, on a queue and a history of the test's own: what it costs that many timers expire together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import pytest

from aiotimer._core import layout
from aiotimer._core.reader import Timer
from aiotimer._core.requests import WorkerId
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Due, Lifeline, Watch
from aiotimer.evidence.record import Record
from aiotimer.server.expiry import MAX_TIMERS, Expiry
from aiotimer.server.reporter import AROUND_FOR, TOGETHER, Reporter, scopes_of
from aiotimer.server.slices import WorkQueue
from aiotimer.server.watched_table import WatchedTable
from tests.fakes.clock import Clock
from tests.fakes.memory import MemoryFile, memory_table

WORKER = WorkerId(1, 1)


class Kept:
    """A history that keeps everything in lists."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.events: list[dict[str, Any]] = []
        self.scopes: list[list[str]] = []

    def durations(self, scopes: Sequence[Mapping[str, Any]]) -> None:
        self.scopes.append([found["scope"] for found in scopes])

    def record(self, record: Record, _stacks: str, _tasks: str) -> None:
        self.records.append(record)

    def path_of(self, record_id: str) -> str:
        return f"/kept/{record_id}"

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)


class CountedFile(MemoryFile):
    """The file of a table in memory.

    Attributes:
        bytes_read: how much of it was read.
    """

    __slots__ = ("bytes_read",)

    def __init__(self, table: TimerTable) -> None:
        super().__init__(table)
        self.bytes_read = 0

    def read(self, size: int, offset: int) -> bytes:
        self.bytes_read += size
        return super().read(size, offset)


class Desk:
    """A reporter of one worker, which has so many timers that are overdue."""

    def __init__(self, timers: int) -> None:
        self.clock = Clock()
        cells = memory_table(now=self.clock)
        for number in range(timers):
            cells.set((f"scope {number}", 0), self.clock.now - 1.0 + number * 1e-6, self.clock.now)
        self.file = CountedFile(cells)
        self.kept = Kept()
        loop: Any = self
        watch = Watch(Lifeline(self.clock.now), connected=True)
        self.table = WatchedTable(self.file, watch, loop, lambda _table, _due: None, self.clock)
        self.timers = self.table.reader.timers()
        history: Any = self.kept
        self.reporter = Reporter(WorkQueue(loop, self.clock), history, clock=self.clock)

    def call_soon(self, _callback: object) -> None:
        """Nothing is called by itself: the queue is flushed."""

    def expire(self, timers: list[Timer]) -> int:
        """Report that these have expired; return how many bytes of the table were read for that."""
        self.file.bytes_read = 0
        for timer in timers:
            due = Due(timer.slot, timer.deadline, timer.deadline)
            expiry = Expiry(WORKER, "name", self.table, due, timer, self.clock.now, "observe")
            self.reporter.begin(expiry, [self.table])
            self.reporter.report(expiry, "observed", "observed")
        self.reporter.queue.flush()
        return self.file.bytes_read


def test_a_worker_is_looked_around_once_for_all_that_expires_together() -> None:
    desk = Desk(300)
    alone = desk.expire(desk.timers[:1])
    desk.clock.now += AROUND_FOR
    assert desk.expire(desk.timers) < 2 * alone
    scopes = [record.scope for record in desk.kept.records]
    assert scopes == ["scope 0", *(f"scope {number}" for number in range(300))]
    for record in desk.kept.records:
        listed = [timer["scope"] for timer in record.timers]
        assert listed[0] == record.scope, "its own comes first, even if it is not among the soonest"
        assert len(set(listed)) == len(listed) == MAX_TIMERS
        assert set(listed) <= {f"scope {number}" for number in range(MAX_TIMERS)} | {record.scope}
        assert record.timers[0]["ran"]["count"] == 1
    assert [event["event"] for event in desk.kept.events] == ["expired", "observed"] * 301


def test_who_expires_later_is_looked_around_again() -> None:
    desk = Desk(2)
    desk.expire(desk.timers[:1])
    desk.table.file.write(layout.word(inf), layout.deadline_offset(desk.timers[0].slot))
    desk.clock.now += AROUND_FOR
    desk.expire(desk.timers[1:])
    before, after = ([timer["scope"] for timer in record.timers] for record in desk.kept.records)
    assert (before, after) == (["scope 0", "scope 1"], ["scope 1"])


def test_how_long_the_scopes_of_a_worker_took_is_written_together() -> None:
    desk = Desk(TOGETHER + 1)
    with tempfile.TemporaryFile() as file:
        desk.file.descriptor = file.fileno()
        os.pwrite(file.fileno(), desk.file.raw[: layout.label_offset(2 * TOGETHER)], 0)
        os.ftruncate(file.fileno(), layout.TABLE_SIZE)
        desk.reporter.note_durations(desk.table, "train.py rank 3/8")
        desk.reporter.queue.flush()
    first, rest = desk.kept.scopes
    assert (len(first), len(rest)) == (TOGETHER, 1)
    assert {*first, *rest} == {f"scope {number}" for number in range(TOGETHER + 1)}


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("train.py rank 3/8", "train.py"),
        ("train.py", "train.py"),
        ("train.py ForkPoolWorker-3", "train.py ForkPoolWorker"),
        ("celery ForkPoolWorker-1:12 rank 7", "celery ForkPoolWorker"),
        ("gpt-4", "gpt-4"),
        ("rank 3", "rank 3"),
    ],
)
def test_the_processes_of_a_program_share_its_durations(name: str, program: str) -> None:
    desk = Desk(1)
    (found,) = [told for told in scopes_of(desk.table.reader, name) if told is not None]
    assert (found["program"], found["scope"], found["count"]) == (program, "scope 0", 1)
