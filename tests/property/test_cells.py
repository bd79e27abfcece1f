"""`expires` and `put` are the same thing: two ways to store into a table, and to let the server know.

`expires` has the stores written out where it runs; `put` goes through cells. The same blocks, done one way in
one queue and the other way in another, leave the same deadlines and ring the same bells; and if the queues
are socket-only, the same requests are sent.
"""

from __future__ import annotations

import os
from math import inf
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

import aiotimer
from aiotimer import TimerRequest, expires
from aiotimer._core import layout
from aiotimer._core.requests import RELEASE
from aiotimer._core.table import TimerTable
from aiotimer.client.connection import WorkerQueue
from tests.fakes.clock import Clock
from tests.fakes.memory import (
    MemoryClient,
    MemoryTableQueue,
    SentQueue,
    memory_queue,
    memory_table,
    queue_over,
    timers_of,
)

ME = os.getpid()
SCOPES = st.sampled_from(["a", "b", "train.py:42"])
TIMES = st.one_of(st.floats(1e-6, 10.0), st.sampled_from([1.0, 5.0, 60.0]))


class Entered:
    """One block, entered both ways."""

    def __init__(self, block: aiotimer.Block, scope_id: str) -> None:
        self.block = block
        self.scope_id = scope_id


class BothWays(RuleBasedStateMachine):
    """Two queues of a kind, over two tables with one clock and one server's header."""

    blocks = Bundle("blocks")

    def queue(self, table: TimerTable) -> WorkerQueue:
        """Return a queue of the kind that this is about."""
        return memory_queue(table)

    def told(self, queue: WorkerQueue) -> list[Any]:
        """Return what its server got to know, in order."""
        assert isinstance(queue, MemoryTableQueue)
        return queue.rings

    @initialize(promise=st.sampled_from([inf, 0.0, 1005.0]))
    def start(self, promise: float) -> None:
        self.clock = Clock()
        table, self.table = (memory_table(promise, now=self.clock) for _ in range(2))
        self.client = MemoryClient(table, self.queue(table))
        self.other = self.queue(self.table)

    def put(self, scope_id: str, expiration_time: float) -> None:
        told = len(self.told(self.other))
        has_told = self.other.put(TimerRequest(ME, scope_id, expiration_time))
        assert has_told == (len(self.told(self.other)) > told)

    @rule(target=blocks, scope=SCOPES, after=TIMES)
    def enter(self, scope: str, after: float) -> Entered:
        before = {timer.slot for timer in timers_of(self.client.table)}
        block = expires(after, scope, self.client)
        assert block.__enter__() is block
        (timer,) = (t for t in timers_of(self.client.table) if t.slot not in before)
        self.put(timer.name, self.clock.now + after)
        return Entered(block, timer.name)

    @rule(entered=consumes(blocks))
    def leave(self, entered: Entered) -> None:
        entered.block.__exit__(None, None, None)
        self.put(entered.scope_id, RELEASE)

    @rule(entered=blocks, after=TIMES)
    def renew(self, entered: Entered, after: float) -> None:
        entered.block.renew(after)
        self.put(entered.scope_id, self.clock.now + after)

    @rule(seconds=st.one_of(st.floats(0.0, 0.5), st.floats(0.5, 8.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(ahead=st.sampled_from([0.5, 5.0, inf]))
    def server_looks(self, ahead: float) -> None:
        for table in (self.client.table, self.table):
            if self.other.shared:  # else nobody looks
                table.cells[layout.PROMISE] = self.clock.now + ahead
                table.cells[layout.LOOKS] += 1.0

    @rule()
    def reconnects(self) -> None:
        for table in (self.client.table, self.table):
            table.forget_rings()

    @invariant()
    def the_same_is_armed(self) -> None:
        ours = [(timer.name, timer.deadline) for timer in timers_of(self.client.table)]
        theirs = [(timer.name, timer.deadline) for timer in timers_of(self.table)]
        assert sorted(ours) == sorted(theirs)

    @invariant()
    def the_same_was_told(self) -> None:
        assert self.told(self.client._queue) == self.told(self.other)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            assert len(timers_of(self.client.table)) == len(timers_of(self.table))


class BothWaysBySocket(BothWays):
    """The same without a shared table. An entry's key says which of its scope it is."""

    def queue(self, table: TimerTable) -> WorkerQueue:
        return queue_over(table, SentQueue)

    def told(self, queue: WorkerQueue) -> list[Any]:
        assert isinstance(queue, SentQueue)
        return [(layout.timer_name(*layout.split_key(key)), until) for key, until, _seconds in queue.sent]


class MoreBothWays(BothWays):
    """Further examples, in a test of their own: all together take ten seconds on a busy machine."""


class MoreBothWaysBySocket(BothWaysBySocket):
    """The same without a shared table."""


for machine in (BothWays, BothWaysBySocket, MoreBothWays, MoreBothWaysBySocket):
    machine.TestCase.settings = settings(max_examples=75, stateful_step_count=40)
TestBothWays = BothWays.TestCase
TestBothWaysBySocket = BothWaysBySocket.TestCase
TestMoreBothWays = MoreBothWays.TestCase
TestMoreBothWaysBySocket = MoreBothWaysBySocket.TestCase
