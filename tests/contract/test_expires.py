"""One contract for every way to use ``expires``: as ``with``, as ``async with``, as a decorator.

Each entry is a timer of its own, freed by its own exit and by nothing else; and whatever interrupts it, once
the block is gone nothing of it is armed. Shown against a real server, with a shared table and without
one, or against a table in memory where only the stores matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from math import inf
from time import monotonic
from typing import Any, NoReturn, TypeAlias, cast

import pytest

from aiotimer import AsyncTimerClient, NotConfigured, TableFull, TimerClient, expires
from aiotimer._core import wire
from aiotimer._core.layout import FIRST_DEADLINE, HIGH_WATER, SLOTS, row_of
from aiotimer._core.locks import Lock
from aiotimer._core.reader import TableReader
from aiotimer.client import reconnect, waiting
from aiotimer.client.block import Block
from aiotimer.client.grace import GracefulBlock
from tests.fakes.clock import PATIENCE
from tests.fakes.interruptions import every_thread_at_once, interruptions
from tests.fakes.memory import (
    MemoryClient,
    SentQueue,
    acquisitions_of,
    memory_table,
    names_of,
    queue_over,
    reading,
    timers_of,
)
from tests.fakes.server import ServerThread, stand_in

AnyClient: TypeAlias = TimerClient | AsyncTimerClient
HERE = "test_expires.py"

SOON = 0.25
"""Seconds for a soft limit: entering, which may be a round trip, must not take longer on a busy machine."""


def line() -> int:
    """Return the line of the caller."""
    return sys._getframe(1).f_lineno


@pytest.fixture(params=[True, False], ids=["shared", "socket"])
def client(request: pytest.FixtureRequest, server: ServerThread) -> Iterator[TimerClient]:
    """A connected client; it has patience, so that a slow machine changes nothing."""
    with TimerClient(server.path, shared=request.param, budget=PATIENCE, unavailable="raise") as one:
        yield one


def here(client: AnyClient) -> list[str]:
    """Return the names of what is armed in this process's table."""
    assert client._queue.table is not None
    return names_of(client._queue.table)


# --- each entry is a timer of its own


def test_fault_51_nested_at_two_sites(server: ServerThread, client: TimerClient) -> None:
    with expires(60, client=client) as outer:
        with expires(30, client=client) as inner:
            assert outer.scope != inner.scope
            assert server.armed() == [outer.scope, inner.scope]
        assert server.armed() == [outer.scope], "leaving the inner block frees the inner timer alone"
        assert 0 < outer.remaining() <= 60
    assert server.armed() == []


def test_fault_51_recursive(server: ServerThread, client: TimerClient) -> None:
    def down(depth: int) -> int:
        with expires(60, scope="down", client=client):
            deepest = down(depth - 1) if depth > 1 else len(server.armed())
            assert len(here(client)) == 6 - depth
            return deepest

    assert down(5) == 5
    assert server.armed() == []


def test_entries_left_in_any_order_free_only_themselves(server: ServerThread, client: TimerClient) -> None:
    chance = random.Random(11)
    blocks = [expires(1000 + n, scope="s", client=client) for n in range(30)]
    for block in blocks:
        block.__enter__()
    chance.shuffle(blocks)
    while blocks:
        assert client._queue.table is not None
        armed = [timer.deadline for timer in timers_of(client._queue.table)]
        assert armed == sorted(block.deadline for block in blocks)
        blocks.pop().__exit__(None, None, None)
    assert server.armed() == []


def test_keyed_timers_are_left_alone(server: ServerThread, client: TimerClient) -> None:
    client.acquire("s", monotonic() + 60)
    for _ in range(3):
        with expires(60, scope="s", client=client):
            assert server.armed() == ["s", "s"]
        assert server.armed() == ["s"]


def test_an_exception_leaves_the_block_and_the_block_leaves_the_exception(
    server: ServerThread, client: TimerClient
) -> None:
    error = KeyError("x")
    with pytest.raises(KeyError) as caught, expires(60, scope="s", client=client):
        assert server.armed() == ["s"]
        raise error
    assert caught.value is error
    assert server.armed() == []


async def test_nested_async(server: ServerThread, client: TimerClient) -> None:
    async with expires(60, client=client) as outer:
        async with expires(30, client=client) as inner:
            with expires(20, scope="plain", client=client):
                assert here(client) == sorted([outer.scope, inner.scope, "plain"])
            assert await asyncio.to_thread(server.armed) == sorted([outer.scope, inner.scope])
        assert await asyncio.to_thread(server.armed) == [outer.scope]
    assert await asyncio.to_thread(server.armed) == []


async def test_one_block_serves_with_and_async_with_in_turn(
    server: ServerThread, client: TimerClient
) -> None:
    block = expires(60, scope="s", client=client)
    for _ in range(2):
        with block:
            with pytest.raises(RuntimeError, match="in use"):
                async with block:
                    pytest.fail("the block was entered")
            assert here(client) == ["s"]
        async with block:
            with pytest.raises(RuntimeError, match="in use"):
                async with block:
                    pytest.fail("the block was entered")
            with pytest.raises(RuntimeError, match="in use"):
                block.__enter__()
            assert here(client) == ["s"]
    assert await asyncio.to_thread(server.armed) == []


async def test_fault_51_1000_concurrent_tasks(server: ServerThread, client: TimerClient) -> None:
    leave = [asyncio.Event() for _ in range(1000)]
    inside = 0
    everybody = asyncio.Event()

    async def work(n: int) -> float:
        nonlocal inside
        async with expires(1000 + n, client=client) as block:
            deadline = block.deadline
            inside += 1
            if inside == len(leave):
                everybody.set()
            await leave[n].wait()
            assert block.deadline == deadline
        return deadline

    tasks = [asyncio.create_task(work(n)) for n in range(len(leave))]
    async with asyncio.timeout(PATIENCE):
        await everybody.wait()
    armed = await asyncio.to_thread(server.armed)
    scope = min(armed, key=len)
    assert armed == sorted([scope, *(f"{scope}#{n}" for n in range(2, 1001))])
    order = list(range(1000))
    random.Random(12).shuffle(order)
    left = set(order)
    for start in range(0, 1000, 250):
        for n in order[start : start + 250]:
            leave[n].set()
            left.discard(n)
        await asyncio.gather(*(tasks[n] for n in order[start : start + 250]))
        assert client._queue.table is not None
        remaining = {timer.deadline for timer in timers_of(client._queue.table)}
        assert len(remaining) == len(left)
        assert not remaining & {tasks[n].result() for n in order[: start + 250]}
    await asyncio.to_thread(server.wait_armed, [])  # what a budget was too short for is said later


# --- decorators


async def test_a_decorated_coroutine_function_is_a_block_per_call(
    server: ServerThread, client: TimerClient
) -> None:
    meet = asyncio.Barrier(20)

    @expires(60, scope="work", client=client)
    async def work(n: int) -> int:
        await meet.wait()
        if n == 0:
            assert len(here(client)) == 20
        await meet.wait()
        return n

    assert await asyncio.gather(*map(work, range(20))) == list(range(20))
    assert await asyncio.to_thread(server.armed) == []


async def test_grace_works_in_a_decorator_too(client: TimerClient) -> None:
    @expires(SOON, scope="rollout", client=client, grace=60)
    async def work() -> None:
        await asyncio.Event().wait()

    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"'rollout' was not done after 0\.25 s"):
            await work()
    assert here(client) == []


# --- the default scope


def test_the_default_scope_is_the_callers_line() -> None:
    client = MemoryClient(memory_table())
    for _ in range(2):  # the second time it comes from the cache
        with expires(60, client=client) as block:
            assert block.scope == f"{HERE}:{line() - 1}"
        with ExitStack() as stack:
            block = stack.enter_context(expires(60, client=client))
            assert block.scope == f"{HERE}:{line() - 1}"
            other = stack.enter_context(expires(60, client=client))
            assert other.scope == f"{HERE}:{line() - 1}"
            assert names_of(client.table) == sorted([block.scope, other.scope])
    assert timers_of(client.table) == []


async def test_the_default_scope_is_the_callers_line_in_coroutines() -> None:
    client = MemoryClient(memory_table())
    for _ in range(2):
        async with expires(60, client=client) as block:
            assert block.scope == f"{HERE}:{line() - 1}"
        async with AsyncExitStack() as stack:
            block = await stack.enter_async_context(expires(60, client=client))
            assert block.scope == f"{HERE}:{line() - 1}"
            other = await stack.enter_async_context(expires(60, client=client, grace=5))
            assert other.scope == f"{HERE}:{line() - 1}"
    assert timers_of(client.table) == []


def test_functions_made_at_run_time_keep_their_own_lines() -> None:
    client = MemoryClient(memory_table())
    for n in range(300):  # ids of code objects would come back, were they not kept
        code = compile("\n" * n + "block = expires(60, client=client)", f"<made {n}>", "exec")
        names: dict[str, Any] = {"expires": expires, "client": client}
        exec(code, names)
        assert names["block"].scope == f"<made {n}>:{n + 1}"
        del code, names


@pytest.mark.parametrize(
    "name", ["a\0b.py", "x" * 300 + ".py", "\udcff.py", "dir/", "a\nb.py", "", "ü" * 200]
)
def test_any_file_name_makes_a_scope(name: str) -> None:
    if "\0" in name and sys.gettrace() is not None:
        pytest.skip("coverage looks for the file, and no file has such a name")
    client = MemoryClient(memory_table())
    names: dict[str, Any] = {"expires": expires, "client": client}
    source = "with expires(60, client=client) as block: pass"
    code = compile(source, "placeholder", "exec").replace(co_filename=name)
    exec(code, names)
    scope = names["block"].scope
    assert scope.endswith(":1")
    assert 3 <= len(scope.encode()) <= 240


# --- renew


def test_renew_counts_from_now(server: ServerThread, client: TimerClient) -> None:
    with expires(60, scope="s", client=client) as block:
        before = block.deadline
        block.renew(500)
        assert block.deadline > before + 400
        assert client._queue.table is not None
        assert [timer.deadline for timer in timers_of(client._queue.table)] == [block.deadline]
        block.renew()
        assert block.remaining() > 400, "renewed for as long as it was renewed last"
    assert server.armed() == []
    with pytest.raises(RuntimeError, match="active"):
        block.renew()


def test_a_renewed_timer_does_not_fall_due_at_its_first_deadline(
    server: ServerThread, client: TimerClient
) -> None:
    with expires(1.0, scope="renewed", client=client) as block:
        block.renew(60)
        with expires(1.0, scope="witness", client=client):
            ((_, scopes),) = server.wait_reaps(1)
        assert scopes == ["witness"]


def test_a_timer_may_be_renewed_to_an_earlier_deadline(server: ServerThread, client: TimerClient) -> None:
    with expires(1000, scope="s", client=client) as block:
        block.renew(0.01)
        assert server.wait_reaps(1)[0][1] == ["s"]


@pytest.mark.parametrize("promise", [1000.0, inf], ids=["silent", "ringing"])
def test_renew_against_exit(promise: float) -> None:
    """Whichever comes first, nothing is armed after the exit, and the next entry keeps its deadline."""
    client = MemoryClient(memory_table(promise=promise, now=lambda: 1000.0))
    blocks: list[Any] = []
    entered, left = threading.Semaphore(0), threading.Semaphore(0)
    renewed = refused = 0

    def renew(rounds: int) -> None:
        nonlocal renewed, refused
        for _ in range(rounds):
            entered.acquire(timeout=PATIENCE)
            try:
                for _ in range(3):
                    blocks[-1].renew(77)
                    renewed += 1
            except RuntimeError:
                refused += 1
            left.release()

    rounds = 3000
    thread = threading.Thread(target=renew, args=(rounds,))
    with every_thread_at_once():
        thread.start()
        for n in range(rounds):
            with expires(60, scope="s", client=client) as block:
                blocks.append(block)
                entered.release()
                for _ in range(n % 300):
                    assert block.remaining() > 0
            with expires(50, scope="s", client=client) as next_one:
                left.acquire(timeout=PATIENCE)
                assert next_one.deadline == 1050.0
                assert [timer.deadline for timer in timers_of(client.table)] == [1050.0]
            assert timers_of(client.table) == []
            blocks.clear()
        thread.join(PATIENCE)
    assert renewed > 0
    assert refused > 0, "the two never met: the test is blind"


def test_every_entry_says_which_thread_makes_it() -> None:
    """Whoever had the slot before. One thread at a time, then eight that take each other's slots."""
    table = memory_table(inf)
    client = MemoryClient(table)
    wrong: list[object] = []
    begin = threading.Barrier(8)

    def enter(rounds: int) -> None:
        for _ in range(rounds):
            with expires(60, "s", client) as block:
                word = cast("int", block._slot)
                (timer,) = [timer for timer in timers_of(table) if timer.slot == word - FIRST_DEADLINE]
                if timer.thread != threading.get_ident():
                    wrong.append((timer, threading.get_ident()))

    def enter_together() -> None:
        begin.wait(PATIENCE)
        enter(50)

    enter(3)
    assert table.pool("s").owner.is_mine()
    with every_thread_at_once():
        threads = [threading.Thread(target=enter_together) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    enter(3)
    assert wrong == []
    assert not table.pool("s").owner.is_mine()


# --- grace


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_grace_cancels_the_task_with_a_timeout_error_that_names_the_scope(
    server: ServerThread, client: TimerClient
) -> None:
    with pytest.raises(TimeoutError, match=r"'rollout' was not done after 0\.25 s") as caught:
        async with expires(SOON, scope="rollout", client=client, grace=60) as block:
            assert block.remaining() <= SOON
            await for_ever()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert current_task().cancelling() == 0
    assert await asyncio.to_thread(server.armed) == []
    await asyncio.sleep(0)  # and no cancellation is left over


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_until_then_the_hard_limit_is_armed(client: TimerClient) -> None:
    async with expires(60, scope="s", client=client, grace=5) as block:
        assert client._queue.table is not None
        (timer,) = timers_of(client._queue.table)
        assert timer.deadline == pytest.approx(block.deadline + 5, abs=1e-6)
        assert block.remaining() <= 60
    assert here(client) == []


def graces(client: TimerClient) -> list[float]:
    """What the entries that are armed have said of their grace."""
    assert client._queue.table is not None
    reader = TableReader(reading(client._queue.table))
    return [reader.grace(timer.slot) for timer in reader.timers()]


async def test_an_entry_says_what_its_grace_is_and_no_other_entry_does(client: TimerClient) -> None:
    for grace in (5, 7):
        async with expires(60, scope="s", client=client, grace=grace) as block:
            assert graces(client) == [grace]
            block.note(uid=17)
            block.renew(30)
            assert graces(client) == [grace]
        with expires(60, scope="s", client=client) as block:
            assert graces(client) == [0.0]
            block.note(uid=17)
            assert graces(client) == [0.0]
    async with expires(60, scope="s" * 225, client=client, grace=5):
        assert graces(client) == [0.0], "there is no room"


async def test_an_entry_says_that_its_task_has_been_cancelled(client: TimerClient) -> None:
    async with expires(SOON, scope="stubborn", client=client, grace=60):
        assert graces(client) == [60.0]
        with pytest.raises(asyncio.CancelledError):
            await for_ever()
        assert graces(client) == [-60.0]
    assert current_task().cancelling() == 0


async def test_a_cancellation_is_not_said_of_an_entry_that_has_the_slot_by_now(client: TimerClient) -> None:
    """Its block was renewed into another table, and its own slot given to the next entry."""
    async with expires(SOON, scope="stubborn", client=client, grace=60) as block:
        assert client._queue.table is not None
        word = cast(GracefulBlock, block)._soft.word
        client._queue.table.cells[word] = 7.0
        with pytest.raises(asyncio.CancelledError):
            await for_ever()
        assert graces(client) == [7.0]


async def test_a_block_left_in_time_cancels_nobody(client: TimerClient) -> None:
    async with expires(SOON, scope="s", client=client, grace=60):
        pass
    async with expires(60, scope="later", client=client, grace=60) as later:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + 1.2 * SOON):
                await for_ever()
        assert SOON < later.remaining() <= 60
    assert current_task().cancelling() == 0


async def test_a_foreign_cancellation_passes_through(client: TimerClient) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with expires(60, scope="s", client=client, grace=5):
            entered.set()
            await for_ever()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel("stop")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert here(client) == []


async def test_a_foreign_cancellation_that_comes_with_ours_wins(client: TimerClient) -> None:
    async def work() -> None:
        async with expires(SOON, scope="s", client=client, grace=60):
            try:
                await for_ever()
            finally:
                current_task().cancel("and stop")

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1, "ours has been taken back, the other has not"
    assert here(client) == []


async def test_a_swallowed_cancellation_does_not_save_the_process(
    server: ServerThread, client: TimerClient
) -> None:
    async with expires(SOON, scope="stubborn", client=client, grace=0.2):
        with pytest.raises(asyncio.CancelledError):
            await for_ever()
        assert here(client) == ["stubborn"], "still armed, with the hard limit"
        reaps = await asyncio.to_thread(server.wait_reaps, 1)
    assert reaps[0][1] == ["stubborn"]
    assert current_task().cancelling() == 0, "as with asyncio.timeout"
    assert here(client) == []


async def test_an_exception_that_comes_instead_of_the_cancellation_passes_through(
    client: TimerClient,
) -> None:
    with pytest.raises(KeyError):
        async with expires(SOON, scope="s", client=client, grace=60):
            try:
                await for_ever()
            finally:
                raise KeyError("x")
    assert current_task().cancelling() == 0
    assert here(client) == []


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_what_connecting_takes_is_not_charged_to_the_block(nobody: str, shared: bool) -> None:
    client = AsyncTimerClient(nobody, shared=shared, budget=0.1, unavailable="ignore")
    entered = False
    with stand_in(nobody, None):
        async with expires(0.05, "s", client, grace=60):
            entered = True
        assert entered
    await client.aclose()


async def test_a_limit_that_is_over_before_the_block_has_been_entered(nobody: str) -> None:
    """Without shared memory the request that arms it has to be acknowledged, and that counts."""
    client = AsyncTimerClient(nobody, shared=False, budget=PATIENCE)
    welcome = wire.encode(wire.Welcome(wire.PROTOCOL_VERSION, "0", 1, 0.0, has_table=False))
    with stand_in(nobody, welcome, end=False):
        with pytest.raises(TimeoutError, match=r"'s' was not done after 0\.01 s"):
            async with expires(0.01, "s", client, grace=60):
                pytest.fail("the block was entered")
        assert current_task().cancelling() == 0
        assert client._queue.table is not None
        assert timers_of(client._queue.table) == []
    await client.aclose()


async def test_graces_nest(client: TimerClient) -> None:
    with pytest.raises(TimeoutError, match="'outer'"):
        async with expires(60, scope="outer", client=client, grace=60) as outer:
            with pytest.raises(TimeoutError, match="'inner'"):
                async with expires(SOON, scope="inner", client=client, grace=60):
                    await for_ever()
            assert here(client) == ["outer"]
            outer.renew(SOON)
            async with expires(60, scope="another", client=client, grace=60):
                await for_ever()
    assert here(client) == []


async def test_grace_lives_with_asyncio_timeout(client: TimerClient) -> None:
    with pytest.raises(TimeoutError, match="'s'"):
        async with asyncio.timeout(60), expires(SOON, scope="s", client=client, grace=60):
            await for_ever()
    with pytest.raises(TimeoutError, match=r"^$"):
        async with expires(60, scope="s", client=client, grace=60), asyncio.timeout(0.01):
            await for_ever()
    with pytest.raises(TimeoutError, match=r"^$"):
        async with asyncio.timeout(0.01), expires(60, scope="s", client=client, grace=60):
            await for_ever()
    assert current_task().cancelling() == 0
    assert here(client) == []


async def test_renew_moves_both_limits(client: TimerClient) -> None:
    async with expires(SOON, scope="s", client=client, grace=5) as block:
        block.renew(60)
        assert 59 < block.remaining() <= 60
        assert client._queue.table is not None
        assert timers_of(client._queue.table)[0].deadline == pytest.approx(block.deadline + 5, abs=1e-6)
        with pytest.raises(TimeoutError, match=r"^$"):
            async with asyncio.timeout(0.05):
                await for_ever()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.to_thread(block.renew, 0.01)  # which may take longer than that
            await for_ever()
        with pytest.raises(RuntimeError, match="cancelled already"):
            block.renew(60)
    with pytest.raises(RuntimeError, match="active"):
        block.renew()


async def test_a_block_with_grace_can_be_used_again(client: TimerClient) -> None:
    block = expires(SOON, scope="s", client=client, grace=60)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with block:
                await for_ever()
    assert here(client) == []


async def test_an_active_block_with_grace_cannot_be_entered_again(client: TimerClient) -> None:
    async with expires(60, scope="s", client=client, grace=5) as block:
        with pytest.raises(RuntimeError, match="in use"):
            async with block:
                pytest.fail("the block was entered")
        assert here(client) == ["s"]
        assert 59 < block.remaining() <= 60
    assert here(client) == []


# --- entering in vain


async def test_not_configured() -> None:
    with pytest.raises(NotConfigured):
        async with expires(60):
            pytest.fail("the block was entered")
    with pytest.raises(NotConfigured):
        async with expires(60, grace=5):
            pytest.fail("the block was entered")
    assert current_task().cancelling() == 0


@pytest.mark.parametrize("grace", [None, 5], ids=["", "grace"])
async def test_a_full_table_is_an_error_on_entering(grace: float | None) -> None:
    client = MemoryClient(memory_table(promise=0.0))
    client._unavailable = "ignore"
    for word in range(FIRST_DEADLINE, FIRST_DEADLINE + SLOTS):
        client.table.cells[word] = 1e9
    client.table.cells[HIGH_WATER] = SLOTS
    block = expires(60, scope="s", client=client, grace=grace)
    with pytest.raises(TableFull):
        async with block:
            pytest.fail("the block was entered")
    if grace is None:
        with pytest.raises(TableFull), block:
            pytest.fail("the block was entered")
    with pytest.raises(RuntimeError):
        _ = block.deadline
    await asyncio.sleep(0)
    assert set(client.table.cells[FIRST_DEADLINE : FIRST_DEADLINE + SLOTS]) == {1e9}


# --- how long a server may hold the caller up


def recording_client(budget: float) -> tuple[MemoryClient, SentQueue]:
    table = memory_table()
    queue = queue_over(table, SentQueue)
    client = MemoryClient(table, queue)
    client._budget = budget
    return client, queue


def check_budgets(queue: SentQueue, most: float) -> None:
    """Check that a block was armed and released, and that both might have taken so long, and no longer."""
    assert [until >= 0 for _key, until, _seconds in queue.sent] == [True, False]
    assert all(seconds <= most for _key, _until, seconds in queue.sent)
    if most > 1.0:
        assert all(seconds > 1.0 for _key, _until, seconds in queue.sent), "not less by what a loop is spared"


BUDGETS = pytest.mark.parametrize("budget", [0.5, 2 * PATIENCE])


@BUDGETS
def test_leaving_may_take_as_long_as_entering_and_that_is_what_its_client_allows(budget: float) -> None:
    client, queue = recording_client(budget)
    with expires(60, "s", client):
        client._budget = 99 * PATIENCE  # from the next block on
    check_budgets(queue, budget)


@BUDGETS
async def test_leaving_asynchronously_may_take_as_long_as_entering(budget: float) -> None:
    client, queue = recording_client(budget)
    async with expires(60, "s", client):
        pass
    check_budgets(queue, budget)


@BUDGETS
@pytest.mark.parametrize("way", ["block", "acquire"])
async def test_what_is_synchronous_on_a_loop_holds_it_up_no_longer(
    budget: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "BUDGET_ON_LOOP", 0.3)
    client, queue = recording_client(budget)
    if way == "block":
        with expires(60, "s", client):
            pass
    else:
        client.acquire("s", monotonic() + 60)
        client.release("s")
    check_budgets(queue, 0.3)


# --- cancelled on the way in (FAULTS 49)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
@pytest.mark.parametrize("grace", [None, 5], ids=["plain", "grace"])
async def test_fault_49_cancelled_while_connecting_there_is_no_ghost(
    nobody: str, shared: bool, grace: float | None
) -> None:
    client = AsyncTimerClient(nobody, shared=shared, budget=PATIENCE)

    async def work() -> None:
        async with expires(60, scope="ghost", client=client, grace=grace):
            pytest.fail("the block was entered")

    with stand_in(nobody, None):
        task = asyncio.create_task(work())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client._queue.table is None or timers_of(client._queue.table) == []
    with ServerThread(nobody) as server:
        await client.connect(PATIENCE)
        async with expires(60, scope="real", client=client):
            assert await asyncio.to_thread(server.armed) == ["real"]
        assert await asyncio.to_thread(server.armed) == []
        await client.aclose()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_49_cancelled_at_any_turn_of_the_loop_there_is_no_ghost(
    server: ServerThread, shared: bool
) -> None:
    last = 60
    for turns in range(last + 1):
        client = AsyncTimerClient(server.path, shared=shared, budget=PATIENCE)
        if turns % 2:
            await client.connect(PATIENCE)
        inside = asyncio.Event()

        async def work(client: AsyncTimerClient = client, inside: asyncio.Event = inside) -> None:
            async with expires(60, scope="ghost", client=client, grace=5):
                inside.set()
                await for_ever()

        task = asyncio.create_task(work())
        for _ in range(turns // 2):
            await asyncio.sleep(0)
        if turns == last:  # on a slow machine it may never have been inside by then
            await asyncio.wait_for(inside.wait(), PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1
        await client.acquire("real", monotonic() + 60)  # in order behind what is still on its way
        assert await asyncio.to_thread(server.armed) == ["real"]
        await client.aclose()


async def test_fault_49_cancelled_while_leaving_it_has_been_left(server: ServerThread) -> None:
    async with AsyncTimerClient(server.path, shared=False, budget=PATIENCE) as client:
        for turns in range(30):
            leaving = asyncio.Event()

            async def work(leaving: asyncio.Event = leaving) -> None:
                async with expires(60, scope="s", client=client):
                    leaving.set()

            task = asyncio.create_task(work())
            await leaving.wait()
            for _ in range(turns // 5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await client.acquire("fence", monotonic() + 60)
            assert await asyncio.to_thread(server.armed) == ["fence"]


# --- interrupted at every bytecode (FAULTS 50)


def assert_nothing_armed(client: AnyClient, when: str) -> None:
    """The interrupted block is gone once its frames are; the collector looks after cycles.

    It is asked if there is a ghost, which may be in one, and otherwise now and then (``collector_rests``):
    what it left would add up, a mapping for each interruption.
    """
    table = client._queue.table
    ghosts = table is not None and timers_of(table)
    if ghosts or gc.get_count()[0] > OBJECTS:
        gc.collect()
        ghosts = table is not None and timers_of(table)
    assert not ghosts, f"a ghost, interrupted at {when}"


OBJECTS = 20_000
"""New objects after which it is worth it to ask the collector: those of some dozens of interruptions."""


PROMISES = {"silent": 0.0, "ringing": inf, "late": 1.0}
"""``silent``: the tables' clock is 0, and a look is promised for now."""


def memory_client(promise: str) -> MemoryClient:
    if promise == "silent":
        return MemoryClient(memory_table(0.0, now=lambda: 0.0))
    return MemoryClient(memory_table(PROMISES[promise]))


in_a_slot = pytest.mark.parametrize("known", [False, True], ids=["a new slot", "a known slot"])

PARTS = 4
"""What takes long in one piece is interrupted at every fourth bytecode, from each of the first four on."""

in_parts = pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=() if first % 2 == sys.version_info[1] % 2 else pytest.mark.soak)
        for first in range(PARTS)
    ],
)
"""All of them in a soak. Otherwise half of them, of the other half on the next version of CPython."""


@in_parts
@in_a_slot
@pytest.mark.parametrize(("promise", "scope"), [*((promise, "s") for promise in PROMISES), ("silent", None)])
def test_fault_50_interrupted_at_every_bytecode(
    promise: str, scope: str | None, known: bool, first: int
) -> None:
    for interruption in interruptions(first=first, step=PARTS):
        client = memory_client(promise)
        if known:
            with expires(60, scope, client):
                pass
        with interruption:
            with expires(60, scope, client):
                pass
        assert_nothing_armed(client, f"bytecode {interruption.number}")
        with expires(60, scope, client) as block:
            assert len(timers_of(client.table)) == 1
            assert block.remaining() > 0
    assert interruption.number > 70, "it was hardly interrupted: the test is blind"
    assert acquisitions_of(client.table) == 2 + known


@in_parts
@in_a_slot
@pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited")
@pytest.mark.parametrize(("promise", "grace"), [*((promise, None) for promise in PROMISES), ("ringing", 5)])
def test_fault_50_interrupted_at_every_bytecode_async(
    promise: str, grace: float | None, known: bool, first: int
) -> None:
    async def work(client: MemoryClient) -> None:
        async with expires(60, "s", client, grace=grace):
            pass

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        for interruption in interruptions(first=first, step=PARTS):
            client = memory_client(promise)
            if known:
                loop.run_until_complete(work(client))
            with interruption:
                loop.run_until_complete(work(client))
            loop.run_until_complete(asyncio.sleep(0))  # it holds the interrupted task until its next turn
            assert_nothing_armed(client, f"bytecode {interruption.number}")
            loop.run_until_complete(work(client))
        assert interruption.number > 70, "it was hardly interrupted: the test is blind"


def test_fault_50_a_handler_has_blocks_of_its_own() -> None:
    """As one that saves a checkpoint: wherever it comes, it neither waits for ever nor spoils anything."""
    clients: list[MemoryClient] = []

    def handler() -> None:
        with expires(60, "of the handler", clients[-1]) as block:
            block.renew()
            assert "of the handler" in names_of(clients[-1].table)

    for interruption in interruptions(handler, by_signals=True):
        clients.append(memory_client("ringing"))
        clients[-1].table.prepared()
        with interruption:
            for _ in range(2):
                with expires(60, "s", clients[-1]) as block:
                    block.renew()
        assert_nothing_armed(clients[-1], f"bytecode {interruption.number}")
    assert interruption.number > 20, "it was hardly interrupted: the test is blind"


def test_fault_50_a_handler_renews_the_block_it_interrupts() -> None:
    client = memory_client("ringing")
    with expires(60, "s", client) as block:
        for interruption in interruptions(lambda: block.renew(50), by_signals=True):
            with interruption:
                block.renew(70)
            assert 0 < block.remaining() <= 70
    assert_nothing_armed(client, "both")


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
def test_fault_50_a_handler_renews_the_block_that_is_being_left(shared: bool) -> None:
    """It is refused from the first moment on: what it sent would be the last word about a block."""

    def handler() -> None:
        with contextlib.suppress(RuntimeError):
            block.renew(50)

    table = memory_table(inf)
    queue = queue_over(table, SentQueue)
    client = MemoryClient(table) if shared else MemoryClient(table, queue)
    for interruption in interruptions(handler, by_signals=True):
        with expires(60, "s", client) as block:
            block.renew(70)
            stack = ExitStack()
            stack.push(block)
            with interruption:
                stack.close()
            if not shared:
                assert queue.sent[-1][1] < 0, f"armed by the last word, at bytecode {interruption.number}"
            block.__enter__()
        assert_nothing_armed(client, f"bytecode {interruption.number}")
    assert interruption.number > 10, "it was hardly interrupted: the test is blind"


class AskedLock(Lock):  # type: ignore[misc]
    """A lock that tells when it is asked for, and counts that."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.times = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.times += 1
        self.asked.set()
        return super().acquire(blocking, timeout)


def test_leaving_waits_for_a_thread_that_is_renewing() -> None:
    """Else that one would store into a slot that is idle, or the next entry's."""
    client = memory_client("silent")
    block = expires(60, "s", client).__enter__()
    block.renew(70)
    assert block._exit_state is not None
    lock = block._exit_state.lock = AskedLock()
    leaving = threading.Thread(target=block.__exit__, args=(None, None, None))

    def renewing() -> None:
        leaving.start()
        assert lock.asked.wait(PATIENCE)
        assert names_of(client.table) == ["s"], "it has stored without the lock"

    lock.holding(renewing)
    leaving.join(PATIENCE)
    assert not leaving.is_alive()
    assert lock.times == 3, "the renewing thread, the store, and the giving back of the slot"
    assert_nothing_armed(client, "nothing")


def assert_goes_on(server: ServerThread, client: TimerClient, when: str) -> None:
    """Its interrupted block is gone, and the next one is watched. Closes the client."""
    assert_nothing_armed(client, when)
    client.connect(PATIENCE)
    with expires(60, "s", client):
        assert len(server.armed()) == 1, f"after {when}"
    client.close()


def no_thread(*_: object) -> NoReturn:
    """Do what ``start_new_thread`` does when no thread can be had."""
    raise RuntimeError("can't start new thread")


@in_parts
def test_fault_50_a_handler_has_a_block_while_its_thread_connects(
    server: ServerThread, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other thread connects meanwhile: the body would be shorter, or longer."""
    monkeypatch.setattr(reconnect, "start_new_thread", no_thread)
    with TimerClient(server.path) as client, expires(60, "s", client):
        pass  # now everything is imported

    def handler() -> None:
        with expires(60, "of the handler", other):
            pass

    for interruption in interruptions(handler, by_signals=True, first=first, step=PARTS):
        client = TimerClient(server.path, budget=PATIENCE)
        other = TimerClient(server.path, budget=0.001, unavailable="ignore")
        with interruption, expires(60, "s", client):
            pass
        assert_goes_on(server, client, f"bytecode {interruption.number}")
        other.close()
    assert interruption.number > 50, "it was hardly interrupted: the test is blind"


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # interrupted as soon as it was made
@in_parts
def test_fault_50_interrupted_by_a_signal_while_connecting(server: ServerThread, first: int) -> None:
    with TimerClient(server.path) as client, expires(60, "s", client):
        pass  # now everything is imported
    for interruption in interruptions(by_signals=True, first=first, step=PARTS):
        client = TimerClient(server.path, budget=PATIENCE)
        with interruption:
            with expires(60, "s", client):
                pass
        assert_goes_on(server, client, f"bytecode {interruption.number}")
    assert interruption.number > 400, "it was hardly interrupted: the test is blind"


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # interrupted as soon as it was made
@in_parts
def test_fault_50_interrupted_by_a_signal_without_a_table(server: ServerThread, first: int) -> None:
    for interruption in interruptions(by_signals=True, first=first, step=PARTS):
        with TimerClient(server.path, shared=False, budget=PATIENCE) as client:
            client.connect(PATIENCE)
            with interruption:
                with expires(60, "s", client):
                    pass
            assert_nothing_armed(client, f"bytecode {interruption.number}")
            server.wait_armed([])  # what was interrupted is sent again, in the background
    assert interruption.number > 200, "it was hardly interrupted: the test is blind"


@pytest.mark.parametrize("promise", PROMISES)
def test_fault_50_no_interruption_leaves_a_lock_held(promise: str) -> None:
    """CPython 3.14 may run a handler between the taking of a lock and the ``with`` that it is taken by."""
    for interruption in interruptions(after_calls=True):
        client = memory_client(promise)
        queue = client._queue
        with interruption:
            with expires(60, "s", client) as block:
                block.renew()
            client.acquire("t", monotonic() + 60)
            client.release("t")
        assert not client.table.lock.is_mine(), f"call {interruption.number}"
        assert not queue.connection.entering.is_mine(), f"call {interruption.number}"
    assert interruption.number > 20, "it was hardly interrupted: the test is blind"


@pytest.mark.parametrize("promise", PROMISES)
def test_fault_82_one_object_is_never_entered_twice(promise: str) -> None:
    """Threads are switched where signals are handled: a handler that enters the block is another one."""
    entered: list[bool] = []

    def another_thread() -> None:
        with contextlib.suppress(RuntimeError):
            blocks[-1].__enter__()
            entered.append(True)

    blocks: list[Block] = []
    refused = 0
    for interruption in interruptions(another_thread, by_signals=True):
        client = memory_client(promise)
        blocks.append(expires(60, "s", client))
        entered.clear()
        try:
            with interruption:
                blocks[-1].__enter__()
                entered.append(True)
        except RuntimeError:
            refused += 1
        assert entered == [True], f"bytecode {interruption.number}"
        assert len(timers_of(client.table)) == 1, f"bytecode {interruption.number}"
        blocks[-1].__exit__(None, None, None)
        assert_nothing_armed(client, f"bytecode {interruption.number}")
    assert refused, "the other thread has never been quicker: the test is blind"


async def test_two_tasks_do_not_share_a_soft_limit(server: ServerThread) -> None:
    """The second one comes while the first connects: it is refused, and the first is cancelled in time."""
    client = AsyncTimerClient(server.path, budget=PATIENCE)
    block = expires(SOON, "s", client, grace=PATIENCE)

    async def enter() -> None:
        async with block:
            await asyncio.Event().wait()

    both = asyncio.gather(enter(), enter(), return_exceptions=True)
    outcomes = await asyncio.wait_for(both, PATIENCE)
    assert [type(outcome) for outcome in outcomes] == [TimeoutError, RuntimeError]
    assert_nothing_armed(client, "nothing")
    await client.aclose()


@pytest.mark.parametrize("renewed", [False, True], ids=["plain", "renewed"])
def test_fault_50_a_block_that_was_finalised_before_its_body_can_still_be_left(renewed: bool) -> None:
    """The collector may come to a block before it closes the coroutine that is suspended inside it."""
    client = memory_client("ringing")
    block = expires(60, "s", client)
    block.__enter__()
    if renewed:
        block.renew(70)
    block.__del__()
    assert timers_of(client.table) == []
    block.__exit__(None, None, None)
    with expires(60, "s", client) as one, expires(60, "s", client) as other:
        assert one._slot != other._slot, "its slot was given back twice"
        assert names_of(client.table) == ["s", "s#2"]


# --- what a worker tells of its blocks


def test_an_observed_block_and_a_plain_one_never_share_a_slot() -> None:
    memory = MemoryClient(memory_table(promise=inf))
    for _ in range(3):
        with expires(60, "s", memory, observe=True) as observed, expires(60, "s", memory) as plain:
            keys = [block._pool.table.key_of(block._slot) for block in (observed, plain)]  # type: ignore[arg-type]
            assert keys == ["s\0001o", "s\0001"]


def test_a_sampled_entry_is_counted_in_its_row() -> None:
    memory = MemoryClient(memory_table(promise=inf))
    with expires(60, "s", memory) as block:
        word, pool = block._slot, block._pool
        assert word is not None
        row = row_of(word)
        entered, limit, deadline, longest = pool.cells[row : row + 4]
        assert (deadline, limit, longest) == (block._deadline, 60.0, 0.0)
        assert entered + 60 == deadline  # the same sum
        block.renew(70)
        assert list(pool.cells[row : row + 3]) == [entered, 70.0, block._deadline]
    assert sum(pool.cells[row + 4 : row + 64]) // 1 == 1
    pool.sample_at = inf
    with expires(60, "s", memory):
        pass
    assert sum(pool.cells[row + 4 : row + 64]) // 1 == 1
