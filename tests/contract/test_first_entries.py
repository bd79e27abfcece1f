"""A longer limit for the first entries of a scope, in every way to use ``expires``.

Side by side, interrupted, with grace, in a forked child, and before there is a table.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Iterator
from math import inf
from time import monotonic

import pytest

from aiotimer import AsyncTimerClient, TimerClient, expires
from aiotimer._core.durations import LIMIT
from aiotimer._core.layout import row_of
from aiotimer.client.block import Block
from aiotimer.client.first_entries import entries
from aiotimer.client.grace import GracefulBlock
from aiotimer.testing import virtual
from tests.fakes.clock import PATIENCE
from tests.fakes.interruptions import every_thread_at_once, interruptions
from tests.fakes.memory import MemoryClient, SentQueue, memory_table, queue_over, timers_of
from tests.fakes.server import ServerThread
from tests.fakes.worker import FORKS

AFTER, FIRST = 1000.0, 5000.0
"""Seconds that a slow machine does not confuse, and in which nothing expires."""

GRACE = 100.0


@pytest.fixture(autouse=True)
def _nothing_entered_before() -> Iterator[None]:
    with entries.anew():
        yield


@pytest.fixture(params=[True, False], ids=["shared", "socket"])
def client(request: pytest.FixtureRequest, server: ServerThread) -> Iterator[TimerClient]:
    """A client that is connected by the first block."""
    one = TimerClient(server.path, shared=request.param, budget=PATIENCE, unavailable="raise")
    yield one
    one.close()


def limit_of(block: Block) -> float:
    """Return which of the two limits an active block has; its server is told the same."""
    return FIRST if block.remaining() > AFTER else AFTER


def noted(block: Block) -> float:
    """Return the limit in the row of an active block's slot."""
    assert block._slot is not None
    return block._pool.table.cells[row_of(block._slot) + LIMIT]


# --- with, async with, grace, decorators


def test_with(client: TimerClient, server: ServerThread) -> None:
    found = []
    for _ in range(3):
        with expires(AFTER, "s", client, first=(FIRST, 2)) as block:
            server.wait_armed(["s"])
            found.append(limit_of(block))
    assert found == [FIRST, FIRST, AFTER]


@pytest.mark.parametrize("grace", [None, GRACE], ids=["plain", "grace"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_async_with(server: ServerThread, shared: bool, grace: float | None) -> None:
    found = []
    client = AsyncTimerClient(server.path, shared=shared, budget=PATIENCE, unavailable="raise")
    for _ in range(3):
        async with expires(AFTER, "s", client, first=(FIRST, 2), grace=grace) as block:
            found.append(limit_of(block))
            assert await asyncio.to_thread(server.armed) == ["s"]
    assert found == [FIRST, FIRST, AFTER]
    assert await asyncio.to_thread(server.armed) == []
    again = expires(AFTER, "again", client, first=(FIRST, 2), grace=grace)
    for limit in (FIRST, FIRST, AFTER):
        async with again:
            assert limit_of(again) == limit
    assert type(again) is (Block if grace is None else GracefulBlock)
    await client.aclose()


@pytest.mark.parametrize("grace", [None, GRACE], ids=["plain", "grace"])
async def test_a_decorated_coroutine_function(grace: float | None) -> None:
    with virtual() as timers:

        @expires(1, "s", first=60, grace=grace)
        async def left() -> float:
            return timers._reader.timers()[-1].deadline - timers.now - (grace or 0)

        assert [round(await left()) for _ in range(3)] == [60, 1, 1]


async def test_the_first_entry_is_cancelled_at_its_own_limit_and_the_next_one_at_its() -> None:
    block = None
    with virtual() as timers:
        for limit in (60, 60, 1, 1):
            with pytest.raises(TimeoutError, match=f"'s' was not done after {limit} s"):
                async with expires(1, "s", first=(60, 2), grace=GRACE) as block:
                    timers.advance(limit - 0.5)
                    await asyncio.sleep(0)
                    assert block.remaining() == pytest.approx(0.5)
                    timers.advance(1)
                    await asyncio.Event().wait()
        assert timers.reaped == []
        assert timers.armed == []


async def test_who_swallows_the_cancellation_of_a_first_entry_is_reaped_after_its_grace() -> None:
    with virtual() as timers:
        async with expires(1, "s", first=60, grace=GRACE):
            timers.advance(159)
            assert timers.reaped == []
            timers.advance(2)
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()
        assert [(expiry.scope, round(expiry.at)) for expiry in timers.reaped] == [("s", 160)]


async def test_a_block_with_grace_that_is_in_use_goes_on() -> None:
    with virtual() as timers:
        block = expires(1, "s", first=60, grace=GRACE)
        async with block:
            with pytest.raises(RuntimeError, match="make a new one for every block"):
                await block.__aenter__()
            assert timers.armed == ["s"]
            assert block.remaining() == pytest.approx(60)
            block.renew()
            assert block.remaining() == pytest.approx(60)
            block.renew(5)
        async with block:
            assert block.remaining() == pytest.approx(5), "as of any block"


# --- side by side


def test_of_threads_that_enter_side_by_side_so_many_have_it_at_least_and_none_has_less() -> None:
    client = MemoryClient(memory_table(inf))
    found: list[float] = []
    together = threading.Barrier(16)

    def enter() -> None:
        together.wait(PATIENCE)
        for _ in range(20):
            before = monotonic()
            with expires(AFTER, "s", client, first=(FIRST, 3)) as block:
                deadline = block.deadline
                assert deadline >= before + AFTER
                found.append(FIRST if deadline >= before + FIRST else AFTER)

    threads = [threading.Thread(target=enter) for _ in range(16)]
    with every_thread_at_once():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert len(found) == 320
    assert 3 <= found.count(FIRST) <= 3 + 16, "each thread may have been about to enter"
    with expires(AFTER, "s", client, first=(FIRST, 3)) as block:
        assert limit_of(block) == AFTER


async def test_of_tasks_that_connect_side_by_side_all_may_have_it_and_no_later_one(
    server: ServerThread,
) -> None:
    client = AsyncTimerClient(server.path, budget=PATIENCE, unavailable="raise")
    found = []
    inside = asyncio.Barrier(8)

    async def enter() -> None:
        async with expires(AFTER, "s", client, first=FIRST) as block:
            found.append(limit_of(block))
            await inside.wait()

    await asyncio.wait_for(asyncio.gather(*(enter() for _ in range(8))), PATIENCE)
    assert found[0] == FIRST
    async with expires(AFTER, "s", client, first=FIRST) as block:
        assert limit_of(block) == AFTER
    await client.aclose()


# --- interrupted

PARTS = 4
"""It is interrupted at every fourth bytecode: at others on the next version of CPython."""


def assert_goes_on(client: MemoryClient, when: str) -> None:
    """Nothing is armed, and no limit is long for ever."""
    gc.collect()  # the interrupted block is gone once its frames are
    assert timers_of(client.table) == [], f"a ghost, interrupted at {when}"
    for _ in range(2):
        with expires(AFTER, "s", client, first=FIRST):
            pass
    with expires(AFTER, "s", client, first=FIRST) as block:
        assert limit_of(block) == AFTER
        assert len(timers_of(client.table)) == 1


def test_interrupted_at_every_bytecode() -> None:
    for interruption in interruptions(first=sys.version_info[1] % PARTS, step=PARTS):
        client = MemoryClient(memory_table(inf))
        entries.forget()
        with interruption:
            for _ in range(2):
                with expires(AFTER, "s", client, first=FIRST):
                    pass
        assert_goes_on(client, f"bytecode {interruption.number}")
    assert interruption.number > 200, "it was hardly interrupted: the test is blind"


@pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited")
@pytest.mark.parametrize("grace", [None, GRACE], ids=["plain", "grace"])
def test_interrupted_at_every_bytecode_async(grace: float | None) -> None:
    async def work(client: MemoryClient) -> None:
        async with expires(AFTER, "s", client, first=FIRST, grace=grace):
            pass

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        for interruption in interruptions(first=sys.version_info[1] % PARTS, step=PARTS):
            client = MemoryClient(memory_table(inf))
            entries.forget()
            with interruption:
                loop.run_until_complete(work(client))
            loop.run_until_complete(asyncio.sleep(0))  # it holds the interrupted task until its next turn
            assert_goes_on(client, f"bytecode {interruption.number}")
    assert interruption.number > 200, "it was hardly interrupted: the test is blind"


# --- another process, another table


@FORKS
def test_a_forked_child_has_first_entries_of_its_own() -> None:
    client = MemoryClient(memory_table(inf))
    with expires(AFTER, "s", client, first=FIRST):
        pass
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with expires(AFTER, "s", client, first=FIRST) as block:
                code = 0 if limit_of(block) == FIRST else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with expires(AFTER, "s", client, first=FIRST) as block:
        assert limit_of(block) == AFTER


def test_an_entry_that_gets_its_table_while_it_is_entered_is_noted_there(server: ServerThread) -> None:
    client = TimerClient(server.path, budget=PATIENCE, unavailable="raise")
    with expires(AFTER, "s", client, first=FIRST) as block:
        assert block._pool.table is client._queue.table
        assert (limit_of(block), noted(block)) == (FIRST, -FIRST)
    with expires(AFTER, "s", client, first=FIRST) as block:
        assert (limit_of(block), noted(block)) == (AFTER, AFTER)
    client.close()


def test_a_table_without_rows_notes_nothing() -> None:
    table = memory_table(inf)
    client = MemoryClient(table, queue_over(table, SentQueue))
    table.sampled_from = inf  # as of a socket-only client
    for limit in (FIRST, AFTER):
        with expires(AFTER, "s", client, first=FIRST) as block:
            assert (limit_of(block), noted(block)) == (limit, 0.0)
