"""`expires` and `put` are the same thing: two ways to store into a table, and to decide whether to ring.

`expires` has the stores written out where it runs; `put` goes through cells. The same blocks, done one way in
one table and the other way in another, leave the same deadlines and ring the same bells.
"""

from __future__ import annotations

from math import inf

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

import aiotimer
from aiotimer import TimerRequest, expires
from aiotimer._core import layout
from aiotimer._core.requests import RELEASE
from aiotimer.queue import TableQueue
from tests.fakes.clock import Clock
from tests.fakes.memory import MemoryClient, MemoryConnection, memory_table, timers_of

ME = 7
SCOPES = st.sampled_from(["a", "b", "train.py:42"])
TIMES = st.one_of(st.floats(1e-6, 10.0), st.sampled_from([1.0, 5.0, 60.0]))


class Block:
    """One block, entered both ways."""

    def __init__(self, block: aiotimer.Block, scope_id: str) -> None:
        self.block = block
        self.scope_id = scope_id


class BothWays(RuleBasedStateMachine):
    """Two tables with one clock and one server's header."""

    blocks = Bundle("blocks")

    @initialize(promise=st.sampled_from([inf, 0.0, 1005.0]))
    def start(self, promise: float) -> None:
        self.clock = Clock()
        self.client = MemoryClient(memory_table(promise, now=self.clock))
        self.connection = MemoryConnection(memory_table(promise, now=self.clock))
        assert self.connection.table is not None
        self.table = self.connection.table
        self.queue = TableQueue(self.table, ME, self.connection.ring)

    def put(self, scope_id: str, after: float) -> None:
        rings = len(self.connection.rings)
        rang = self.queue.put(TimerRequest(ME, scope_id, self.clock.now + after))
        assert rang == (len(self.connection.rings) > rings)

    @rule(target=blocks, scope=SCOPES, after=TIMES)
    def enter(self, scope: str, after: float) -> Block:
        before = {timer.slot for timer in timers_of(self.client.table)}
        block = expires(after, scope, self.client)
        assert block.__enter__() is block
        (timer,) = (t for t in timers_of(self.client.table) if t.slot not in before)
        self.put(timer.name, after)
        return Block(block, timer.name)

    @rule(entered=consumes(blocks))
    def leave(self, entered: Block) -> None:
        entered.block.__exit__(None, None, None)
        self.queue.put(TimerRequest(ME, entered.scope_id, RELEASE))

    @rule(entered=blocks, after=TIMES)
    def renew(self, entered: Block, after: float) -> None:
        entered.block.renew(after)
        self.put(entered.scope_id, after)

    @rule(seconds=st.one_of(st.floats(0.0, 0.5), st.floats(0.5, 8.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(ahead=st.sampled_from([0.5, 5.0, inf]))
    def server_looks(self, ahead: float) -> None:
        for table in (self.client.table, self.table):
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
    def the_same_was_rung(self) -> None:
        assert self.client.rings == self.connection.rings

    def teardown(self) -> None:
        if hasattr(self, "client"):
            assert len(timers_of(self.client.table)) == len(timers_of(self.table))


BothWays.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestBothWays = BothWays.TestCase
