"""A trainer's rollouts, 256 at a time, in twenty steps: whatever else cancels tasks, every limit is its own.

The laws of this file: how each rollout ends is planned by its number, and none ends otherwise. What is to
expire waits for what never comes, and what is not has years: so no outcome depends on how quick a machine is.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable

import anyio
import pytest

from aiotimer import AsyncTimerClient, expires
from aiotimer.client.grace import GracefulBlock
from tests.fakes.clock import PATIENCE
from tests.fakes.memory import timers_of
from tests.fakes.server import ServerThread

STEPS, ROLLOUTS = 20, 256
YEAR = 365 * 86_400.0
SOON = 0.001
"""Seconds after which somebody who waits for ever is to be cancelled."""


class Crew:
    """What the rollouts share.

    Attributes:
        outcomes: how many rollouts of each kind have ended as planned.
    """

    def __init__(self, client: AsyncTimerClient) -> None:
        self.client = client
        self.outcomes: collections.Counter[str] = collections.Counter()

    def limit(self, after: float = YEAR, scope: str = "rollout") -> GracefulBlock:
        """Return a limit at which a task is cancelled, and in no test a process killed."""
        block = expires(after, scope, self.client, grace=YEAR)
        assert isinstance(block, GracefulBlock)
        return block

    async def run(self, kind: str) -> None:
        """Run one rollout of a kind, and count it if it ends as such a one does."""
        task = asyncio.current_task()
        assert task is not None
        async with self.limit(scope="whole"), asyncio.timeout(YEAR):
            with anyio.fail_after(YEAR):
                async with expires(YEAR, "plain", self.client):
                    await KINDS[kind](self)
        assert task.cancelling() == 0
        self.outcomes[kind] += 1


async def for_ever() -> None:
    """Await an answer that never comes."""
    await asyncio.get_running_loop().create_future()


async def answered(crew: Crew) -> None:
    """The usual one: an answer comes, with others' turns in between."""
    async with crew.limit() as timer:
        for _ in range(3):
            await asyncio.sleep(0)
        timer.renew()


async def asked_again(crew: Crew) -> None:
    """Its limit is over, and it asks again."""
    with pytest.raises(TimeoutError, match=r"'rollout' was not done after 0\.001 s"):
        async with crew.limit(SOON):
            await for_ever()
    await answered(crew)


async def nested(crew: Crew) -> None:
    """Of two limits the inner one is over."""
    async with crew.limit(scope="outer"):
        await asked_again(crew)
        await asyncio.sleep(0)


async def outer_is_over(crew: Crew) -> None:
    """Of two limits the outer one is over, which the inner one does not take for its own."""
    inner = None
    with pytest.raises(TimeoutError, match="'outer' was not done after"):
        async with crew.limit(SOON, scope="outer"):
            with pytest.raises(asyncio.CancelledError) as inner:
                async with crew.limit():
                    await for_ever()
            raise inner.value
    assert inner is not None


async def asyncio_inside(crew: Crew) -> None:
    """``asyncio.timeout`` is over inside of a limit."""
    async with crew.limit():
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0):
                await for_ever()
        assert not str(caught.value)
        await asyncio.sleep(0)


async def asyncio_outside(crew: Crew) -> None:
    """``asyncio.timeout`` is over around a limit."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(SOON):
            async with crew.limit():
                await for_ever()
    assert not str(caught.value)


async def within_asyncio(crew: Crew) -> None:
    """A limit is over inside of ``asyncio.timeout``."""
    async with asyncio.timeout(YEAR) as around:
        await asked_again(crew)
    assert not around.expired()


async def anyio_inside(crew: Crew) -> None:
    """anyio's scopes are over inside of a limit: one goes on, one raises."""
    async with crew.limit():
        with anyio.move_on_after(0) as scope:
            await for_ever()
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError) as caught, anyio.fail_after(0):
            await for_ever()
        assert not str(caught.value)
        await anyio.lowlevel.checkpoint()


async def anyio_outside(crew: Crew) -> None:
    """anyio's scopes are over around a limit."""
    with anyio.move_on_after(SOON) as scope:
        async with crew.limit():
            await for_ever()
    assert scope.cancelled_caught
    with anyio.CancelScope() as scope:
        async with crew.limit():
            scope.cancel()
            await for_ever()
    assert scope.cancelled_caught


async def within_anyio(crew: Crew) -> None:
    """A limit is over inside of anyio's scopes, of which one is a shield."""
    with anyio.fail_after(YEAR) as around, anyio.CancelScope(shield=True) as shield:
        await asked_again(crew)
    assert not around.cancel_called
    assert not shield.cancel_called


async def sibling_fails(crew: Crew) -> None:
    """In a task group one of several fails, and the limits of all others are left."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def wait() -> None:
        async with crew.limit():
            await for_ever()

    async def group() -> None:
        async with crew.limit(), asyncio.TaskGroup() as tasks:
            for one in (wait, fail, wait):
                tasks.create_task(one())

    with pytest.raises(ExceptionGroup) as caught:
        # A task of its own: before CPython 3.13 a group that has failed leaves its task's count of
        # cancellations one too high, with or without a limit.
        await asyncio.create_task(group())
    assert caught.group_contains(LookupError)
    assert not caught.group_contains(TimeoutError)


async def group_is_over(crew: Crew) -> None:
    """The limit around a task group is over: its tasks are cancelled, and leave theirs."""

    async def wait() -> None:
        async with crew.limit():
            await for_ever()

    with pytest.raises(TimeoutError, match="'outer' was not done after"):
        async with crew.limit(SOON, "outer"), asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(wait())


async def cancelled(crew: Crew) -> None:
    """Somebody else cancels it, with a reason of his own."""
    inside = asyncio.Event()

    async def wait() -> None:
        async with crew.limit():
            inside.set()
            await for_ever()

    task = asyncio.create_task(wait())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1


KINDS: dict[str, Callable[[Crew], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        answered, asked_again, nested, outer_is_over, asyncio_inside, asyncio_outside, within_asyncio,
        anyio_inside, anyio_outside, within_anyio, sibling_fails, group_is_over, cancelled,
    )
}  # fmt: skip


async def step_of_asyncio(crew: Crew, kinds: list[str]) -> None:
    """Run rollouts in a task group of asyncio, with limits and anyio's scopes around it."""
    async with crew.limit(scope="step"), asyncio.timeout(YEAR):
        with anyio.fail_after(YEAR):
            async with asyncio.TaskGroup() as tasks:
                for kind in kinds:
                    tasks.create_task(crew.run(kind))


async def step_of_anyio(crew: Crew, kinds: list[str]) -> None:
    """Run rollouts in a task group of anyio, with limits around it."""
    with anyio.fail_after(YEAR):
        async with asyncio.timeout(YEAR), crew.limit(scope="step"), anyio.create_task_group() as tasks:
            for kind in kinds:
                tasks.start_soon(crew.run, kind)


async def test_of_256_rollouts_in_20_steps_each_ends_as_it_should_and_leaves_no_timer(
    server: ServerThread,
) -> None:
    client = AsyncTimerClient(server.path, budget=PATIENCE, unavailable="raise")
    crew = Crew(client)
    table = None
    planned: collections.Counter[str] = collections.Counter()
    names = list(KINDS)
    for step in range(STEPS):
        # Most are usual ones; which are not differs from step to step.
        kinds = [names[(number + step) // 4 % len(names)] for number in range(0, ROLLOUTS, 4)]
        kinds += ["answered"] * (ROLLOUTS - len(kinds))
        planned.update(kinds)
        await (step_of_asyncio if step % 2 else step_of_anyio)(crew, kinds)
        table = client._queue.table
        assert table is not None
        assert timers_of(table) == [], f"after step {step}"
    assert crew.outcomes == planned
    assert planned.total() == STEPS * ROLLOUTS
    assert min(planned[name] for name in names) >= STEPS, "each kind is there"
    assert await asyncio.to_thread(server.armed) == []
    await client.aclose()
