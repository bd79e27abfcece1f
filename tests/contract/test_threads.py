"""Threads do what they like, at once; and every timer is still its own.

The laws of this file: CPython switches threads as often as it can, each thread does a bit of everything in an
order of its own (seeded by its number), and some of them fork meanwhile. A timer that is armed is found in
its slot, and only there; when all is over nothing is armed, no slot has two owners, and every acquisition
has been counted.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import threading
import traceback
from collections.abc import Callable
from time import monotonic

import pytest

from aiotimer import TimerClient, expires
from aiotimer._core.layout import FIRST_DEADLINE, HIGH_WATER
from aiotimer._core.table import FIRST_CHUNK, TimerTable
from aiotimer.client import memory
from aiotimer.client.block import Block
from tests.fakes.clock import PATIENCE
from tests.fakes.interruptions import every_thread_at_once
from tests.fakes.memory import MemoryClient, acquisitions_of, armed_cells, memory_table, timers_of
from tests.fakes.server import ServerThread
from tests.fakes.worker import FORKS

THREADS = 64
YEAR = 365 * 86_400.0


def slot_of(block: Block) -> int:
    """Return the word index of an active block's deadline."""
    assert block._slot is not None
    return block._slot


def owners(table: TimerTable) -> collections.Counter[int]:
    """Return how many owners each slot has, by the word index of its deadline."""
    keyed = [cell.word for cell in table._cells_of.values()]
    idle = [word for pool in table.pools.values() for word in pool]
    return collections.Counter([*table._fresh, *keyed, *idle])


class Crowd:
    """Threads that work on one table.

    Attributes:
        wrong: what should not have been seen.
        counted: how many timers each thread has armed.
    """

    def __init__(self, client: TimerClient, rounds: int, *, forks: bool) -> None:
        assert client._queue.table is not None
        self.client = client
        self.table = client._queue.table
        self.rounds = rounds
        self.forks = forks
        self.wrong: list[str] = []
        self.counted = [0] * THREADS
        self.renewed: list[Block | None] = [None] * THREADS
        self._begin = threading.Barrier(THREADS)

    def run(self) -> None:
        """Let them work, and wait for them."""
        threads = [threading.Thread(target=self._work, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE)
            assert not thread.is_alive()

    def _work(self, me: int) -> None:
        chance = random.Random(me)
        deeds = [self._enter, self._nest, self._be_renewed, self._renew, self._own_key, self._common_key]
        deeds += [self._once, self._once_keyed]
        self._begin.wait(PATIENCE)
        try:
            for n in range(self.rounds):
                after = YEAR + 1000.0 * me + n / 1000  # no other thread's is within a quarter of an hour
                chance.choice(deeds)(me, after)
                if self.forks and me % 16 == 0 and n == self.rounds // 2:
                    self._fork(me, after)
        except BaseException as error:  # noqa: BLE001 - it is told at the end
            self.wrong.append("".join(traceback.format_exception(error)))

    def _see(self, block: Block, what: str) -> None:
        if self.table.cells[slot_of(block)] != block.deadline:
            self.wrong.append(f"{what}: another deadline in the slot of {block.deadline}")

    def _enter(self, me: int, after: float) -> None:
        with expires(after, client=self.client) as block:
            self._see(block, "one line")
        self.counted[me] += 1

    def _nest(self, me: int, after: float) -> None:
        for_all, for_me = f"scope {after % 7:.0f}", f"scope of {me}"
        with expires(after, for_all, self.client) as a, expires(after + 1, for_me, self.client) as b:
            with expires(after + 2, for_all, self.client) as c:
                if len({slot_of(block) for block in (a, b, c)}) != 3:
                    self.wrong.append("nested: one slot twice")
                for block in (a, b, c):
                    self._see(block, "nested")
        self.counted[me] += 3

    def _be_renewed(self, me: int, after: float) -> None:
        with expires(after, "renewed", self.client) as block:
            self.renewed[me] = block
            for _ in range(5):
                mine = self.table.cells[slot_of(block)]
                if not YEAR / 2 < mine - monotonic() < 2 * YEAR:
                    self.wrong.append(f"renewed: {mine} is nobody's deadline")
        self.counted[me] += 1

    def _renew(self, me: int, after: float) -> None:
        block = self.renewed[(me + int(after * 1000)) % THREADS]
        if block is not None:
            try:
                block.renew(after)
            except RuntimeError:
                pass  # it has been left

    def _own_key(self, me: int, after: float) -> None:
        name, deadline = f"key of {me}", monotonic() + after
        self.client.acquire(name, deadline)
        if armed_cells(self.table).get((name, 0)) != deadline:
            self.wrong.append("a keyed timer is not what it was set to")
        self.client.release(name)
        self.counted[me] += 1

    def _common_key(self, me: int, after: float) -> None:
        self.client.acquire("everybody's", monotonic() + after)
        self.client.release("everybody's")
        self.counted[me] += 1

    def _once(self, me: int, after: float) -> None:
        with expires(after, f"once {after}", self.client) as block:
            self._see(block, "once")
        self.counted[me] += 1

    def _once_keyed(self, me: int, after: float) -> None:
        self.client.acquire(f"once {after}", monotonic() + after)
        self.client.release(f"once {after}")
        self.counted[me] += 1

    def _fork(self, me: int, after: float) -> None:
        with expires(after, "forked in", self.client) as block:

            def be_a_child() -> None:
                block.__exit__(None, None, None)
                with expires(after, "of a child", self.client), expires(after, client=self.client):
                    self.client.acquire("keyed, of a child", monotonic() + after)

            status = fork_and(be_a_child)
            self._see(block, "after a fork")
            if status:
                self.wrong.append(f"the child of {me} ended with {status}")
        self.counted[me] += 1


ROUNDS = [50, pytest.param(5000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]


def assert_in_order(crowd: Crowd, before: int) -> None:
    """Assert what has to hold once nobody is at it any more."""
    assert crowd.wrong == []
    table = crowd.table
    assert timers_of(table) == []
    slots = owners(table)
    assert not {word: count for word, count in slots.items() if count > 1}, "slots with two owners"
    mark = int(table.cells[HIGH_WATER])
    assert set(slots) == set(range(FIRST_DEADLINE, FIRST_DEADLINE + mark)), "slots without an owner"
    assert acquisitions_of(table) - before == sum(crowd.counted)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_64_threads_in_memory(rounds: int) -> None:
    crowd = Crowd(MemoryClient(memory_table(promise=0.0)), 10 * rounds, forks=False)
    with every_thread_at_once():
        crowd.run()
    assert_in_order(crowd, before=0)
    assert crowd.table.high_water > 2 * FIRST_CHUNK, "it did not grow: the test is blind"
    used_once = sum(name.startswith("once") for name in crowd.table.pools)
    assert used_once < sum(crowd.counted) / 16, "nothing was reclaimed: the test is blind"


@FORKS
@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
def test_64_threads_and_forks_against_a_server(server: ServerThread, shared: bool, rounds: int) -> None:
    with TimerClient(server.path, shared=shared, budget=PATIENCE, unavailable="ignore") as client:
        client.connect(PATIENCE)
        crowd = Crowd(client, rounds, forks=True)
        with every_thread_at_once():
            crowd.run()
        assert_in_order(crowd, before=0)
        server.wait_armed([])  # it hardly gets a turn meanwhile; what was not said in time is said again
        assert server.reaps == []


# --- what a forked child finds of another thread's


def fork_and(do: Callable[[], object]) -> int:
    """Do something in a forked child; return how that ended: 0 when it did it without an error or a hang."""
    child = os.fork()
    if not child:
        signal.alarm(int(PATIENCE))
        left = 1
        try:
            do()
            left = 0
        finally:
            os._exit(left)
    return os.waitpid(child, 0)[1]


@FORKS
def test_a_lock_that_another_thread_held_is_left_with_the_parent(nobody: str) -> None:
    """Nobody is connected: the table is this process's own. Where there can be none, it is scratch."""
    client = TimerClient(nobody, unavailable="ignore", budget=0.001)

    def enter() -> None:
        with expires(60, "a new name", client):
            pass

    with expires(60, "s", client) as block:
        for table in (block._pool.table, memory.scratch):
            with table.lock:
                assert fork_and(enter) == 0
    client.close()
