"""``aiotimer.testing`` means what the real thing means, with a clock that the test moves.

What needs no time to pass is shown beside a real server, in one test for both. The rest is shown on the
virtual clock alone: it is the code of ``_core``, whose own tests say that it is right.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from math import inf, nan
from time import monotonic
from typing import NamedTuple

import pytest

import aiotimer
from aiotimer import AsyncTimerClient, NotConfigured, TimerClient, expires
from aiotimer.client.clients import default
from aiotimer.testing import Expiry, VirtualTimers, virtual
from tests.fakes.clock import PATIENCE
from tests.fakes.server import ServerThread


@pytest.fixture
def timers() -> Iterator[VirtualTimers]:
    with virtual() as timers:
        yield timers


# --- beside a real server


class Watched(NamedTuple):
    """Somebody who watches this process: a real server, or a virtual one."""

    client: TimerClient
    armed: Callable[[], list[str]]
    reaped: Callable[[int], list[str]]


@pytest.fixture(params=["real", "virtual"])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    if request.param == "virtual":
        with virtual() as timers:
            yield Watched(
                timers.client, lambda: sorted(timers.armed), lambda _count: [e.scope for e in timers.reaped]
            )
        return
    with ServerThread() as server:
        with TimerClient(server.path, budget=PATIENCE, unavailable="raise") as client:

            def reaped(count: int) -> list[str]:
                return [names[0] for _, names in server.wait_reaps(count)] if count else []

            yield Watched(client, server.armed, reaped)


def test_each_entry_is_a_timer(watched: Watched) -> None:
    def down(depth: int) -> list[str]:
        with expires(60, "down", watched.client):
            return down(depth - 1) if depth else watched.armed()

    watched.client.acquire("down", monotonic() + 60)
    assert down(2) == ["down", "down", "down#2", "down#3"]
    assert watched.armed() == ["down"], "entries free themselves and never the timer of that name"
    watched.client.release("down")
    assert watched.armed() == []
    assert watched.reaped(0) == []


def test_what_has_expired_when_it_is_armed_reaps_at_once_and_deals_with_everything(watched: Watched) -> None:
    watched.client.acquire("other", monotonic() + 60)
    watched.client.acquire("zero", 0)
    assert watched.reaped(1) == ["zero"]
    assert watched.armed() == []
    watched.client.acquire("past", 1e-3)
    assert watched.reaped(2) == ["zero", "past"], "what is armed later is a new timer"


def test_a_release_of_nothing_is_nothing(watched: Watched) -> None:
    watched.client.release("never")
    watched.client.acquire("never", -1.0)
    assert watched.armed() == []


# --- time


def test_a_block_that_takes_too_long_is_reaped(timers: VirtualTimers) -> None:
    with expires(after=60, scope="step"):
        timers.advance(59)
        assert timers.reaped == []
        timers.advance(2)
    assert timers.reaped == [Expiry("step", at=60, late=0)]
    assert timers.now == 61


def test_a_block_that_is_left_in_time_is_not(timers: VirtualTimers) -> None:
    for _ in range(100):
        with expires(after=60):
            timers.advance(59.9)
    timers.advance(1e6)
    assert timers.reaped == []


def test_at_the_deadline_it_is_too_late(timers: VirtualTimers) -> None:
    with expires(after=60, scope="step"):
        timers.advance(60)
        assert timers.reaped == [Expiry("step", 60)]


def test_the_inner_block_expires_first_and_a_process_dies_once(timers: VirtualTimers) -> None:
    with expires(after=60, scope="outer"):
        with expires(after=10, scope="inner"):
            timers.advance(100)
        timers.advance(100)
    assert timers.reaped == [Expiry("inner", 10)]


def test_what_is_armed_after_a_kill_counts_again(timers: VirtualTimers) -> None:
    for _ in range(3):
        with expires(after=1, scope="step"):
            timers.advance(2)
    assert timers.reaped == [Expiry("step", 1), Expiry("step", 3), Expiry("step", 5)]


def test_expiries_come_in_their_order_whatever_the_order_of_arming(timers: VirtualTimers) -> None:
    timers.client.acquire("late", timers.monotonic() + 20)
    timers.client.acquire("early", timers.monotonic() + 10)
    timers.advance(30)
    assert [expiry.scope for expiry in timers.reaped] == ["early"]


def test_renew_starts_again(timers: VirtualTimers) -> None:
    with expires(after=60, scope="epoch") as block:
        for _ in range(10):
            timers.advance(59)
            block.renew()
        assert block.remaining() == 60
        assert block.deadline == pytest.approx(timers.monotonic() + 60)
        block.renew(5)
        timers.advance(6)
    assert timers.reaped == [Expiry("epoch", 595)]


def test_a_keyed_timer_on_the_real_clock_is_near_enough(timers: VirtualTimers) -> None:
    timers.client.acquire("epoch", monotonic() + 3600)
    timers.advance(3600 - 1)
    assert timers.reaped == []
    timers.advance(PATIENCE)  # the test has taken some of the real time
    assert [expiry.scope for expiry in timers.reaped] == ["epoch"]


def test_what_had_expired_before_it_was_armed_is_late(timers: VirtualTimers) -> None:
    timers.advance(100)
    timers.client.acquire("old", timers.monotonic() - 30)
    [expiry] = timers.reaped
    assert expiry._replace(late=round(expiry.late, 6)) == Expiry("old", 100, 30)


@pytest.mark.parametrize("seconds", [-1, -1e-9, nan, inf, -inf])
def test_time_goes_forward(timers: VirtualTimers, seconds: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        timers.advance(seconds)
    assert timers.now == 0


def test_no_time_at_all(timers: VirtualTimers) -> None:
    with expires(after=60):
        timers.advance(0)
        assert timers.reaped == []


# --- asynchronous code


async def test_async_with(timers: VirtualTimers) -> None:
    async with expires(after=60, scope="rollout"):
        await asyncio.sleep(0)
        timers.advance(61)
    assert timers.reaped == [Expiry("rollout", 60)]


async def test_the_asynchronous_client(timers: VirtualTimers) -> None:
    await timers.async_client.acquire("epoch", timers.monotonic() + 60)
    assert timers.armed == ["epoch"]
    await timers.async_client.release("epoch")
    async with AsyncTimerClient() as client, expires(after=60, scope="step", client=client):
        assert timers.armed == ["step"]
    timers.advance(100)
    assert timers.reaped == []


async def hangs(grace: float = 5) -> None:
    async with expires(after=60, scope="rollout", grace=grace):
        await asyncio.Event().wait()


async def swallows() -> None:
    async with expires(after=60, scope="rollout", grace=5):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()


async def started(timers: VirtualTimers, task: asyncio.Task[None]) -> None:
    await asyncio.sleep(0)  # a task runs to its first real wait
    assert timers.armed == ["rollout"]
    assert not task.done()


async def test_grace_cancels_the_task_and_the_process_lives(timers: VirtualTimers) -> None:
    task = asyncio.create_task(hangs())
    await started(timers, task)
    timers.advance(60)
    with pytest.raises(TimeoutError):
        await task
    timers.advance(100)
    assert timers.reaped == []


async def test_a_task_that_swallows_its_cancellation_is_reaped(timers: VirtualTimers) -> None:
    task = asyncio.create_task(swallows())
    await started(timers, task)
    timers.advance(60)
    for _ in range(5):
        await asyncio.sleep(0)
    assert timers.reaped == []
    timers.advance(5)
    assert timers.reaped == [Expiry("rollout", 65)]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_blocked_loop_gets_no_grace(timers: VirtualTimers) -> None:
    task = asyncio.create_task(hangs())
    await started(timers, task)
    timers.advance(66)
    assert timers.reaped == [Expiry("rollout", 65)]
    with pytest.raises(TimeoutError):
        await task


async def test_renewed_with_grace(timers: VirtualTimers) -> None:
    async with expires(after=60, scope="rollout", grace=5) as block:
        timers.advance(50)
        block.renew()
        timers.advance(50)
        assert (block.remaining(), timers.reaped) == (10, [])
    timers.advance(100)
    await asyncio.sleep(0)
    assert timers.reaped == []


async def test_time_may_be_advanced_from_another_thread(timers: VirtualTimers) -> None:
    task = asyncio.create_task(hangs())
    await started(timers, task)
    await asyncio.to_thread(timers.advance, 60)
    with pytest.raises(TimeoutError):
        await task
    assert timers.reaped == []


def test_a_task_whose_loop_has_ended_is_let_be(timers: VirtualTimers) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(hangs())
    loop.run_until_complete(started(timers, task))
    loop.close()
    with expires(after=90, scope="step"):
        timers.advance(61)
        assert timers.armed == ["rollout", "step"]
    timers.advance(5)
    assert timers.reaped == [Expiry("rollout", 65)]
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # its loop cannot end it any more


# --- what is configured


def test_it_is_the_default_and_for_the_block_only() -> None:
    with virtual() as outer:
        with virtual() as inner, expires(after=60, scope="step"):
            assert (outer.armed, inner.armed) == ([], ["step"])
        with expires(after=60, scope="step"):
            assert (outer.armed, inner.armed) == (["step"], [])
    assert default.client is None
    assert "AIOTIMER_SOCKET" not in os.environ
    with pytest.raises(NotConfigured), expires(after=60):
        pass


def test_what_was_configured_comes_back(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOTIMER_SOCKET", server.path)
    with TimerClient() as client:
        default.client = client
        with virtual() as timers, expires(after=60):
            assert len(timers.armed) == 1
            assert server.armed() == []
        assert os.environ["AIOTIMER_SOCKET"] == server.path
        with expires(after=60, scope="step"):
            assert server.armed() == ["step"]


def test_it_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), virtual():
        raise KeyError
    assert default.client is None


def test_configure_and_new_clients_are_virtual(timers: VirtualTimers) -> None:
    assert aiotimer.configure() is not None
    with expires(after=60, scope="configured"):
        assert timers.armed == ["configured"]
    with TimerClient(shared=False) as client, expires(after=60, scope="own", client=client):
        assert client.connected
        assert timers.armed == ["own"]
    aiotimer.configure(None)
    with expires(after=60, scope="again"):
        assert timers.armed == ["again"], "$AIOTIMER_SOCKET is still set"


def test_a_client_may_be_named(timers: VirtualTimers) -> None:
    with expires(after=60, scope="step", client=timers.client):
        assert timers.armed == ["step"]


def test_the_queue_of_a_client(timers: VirtualTimers) -> None:
    timers.client.queue.put(aiotimer.TimerRequest(os.getpid(), "put", timers.monotonic() + 1))
    timers.advance(2)
    assert [expiry.scope for expiry in timers.reaped] == ["put"]


def test_the_last_client_takes_its_timers_along(timers: VirtualTimers) -> None:
    timers.client.acquire("left", timers.monotonic() + 60)
    timers.async_client._leave()
    timers.client.close()
    assert timers.armed == []
    timers.advance(100)
    assert timers.reaped == []


@virtual()
def decorated() -> list[str]:
    with expires(after=60, scope="step"):
        assert isinstance(default.client, TimerClient)
        return sorted(default.client._pools)


def test_it_decorates() -> None:
    assert decorated() == ["step"]
    assert decorated() == ["step"]
    assert default.client is None


def test_a_decorated_function_that_was_made_before() -> None:
    @expires(after=60, scope="step")
    def work(timers: VirtualTimers) -> None:
        timers.advance(61)

    for _ in range(2):
        with virtual() as timers:
            work(timers)
        assert timers.reaped == [Expiry("step", 60)]


def test_a_block_that_was_made_before() -> None:
    block = expires(after=60, scope="step")
    with virtual() as timers, block:
        timers.advance(61)
    assert timers.reaped == [Expiry("step", 60)]


# --- threads and forks


def test_threads_arm_and_time_passes_meanwhile(timers: VirtualTimers) -> None:
    def work(number: int) -> None:
        for n in range(200):
            with expires(after=1 + n % 7, scope=f"thread-{number}"):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        timers.advance(0.001)
    for thread in threads:
        thread.join()
    assert timers.armed == []
    before = len(timers.reaped)
    timers.advance(100)
    assert len(timers.reaped) == before


def test_a_forked_child_has_a_copy() -> None:
    program = """if True:
        import os
        from aiotimer import expires
        from aiotimer.testing import virtual
        with virtual() as timers, expires(after=60, scope="step"):
            child = os.fork()
            if not child:
                with expires(after=1, scope="child"):
                    timers.advance(5)
                os._exit([e.scope for e in timers.reaped] != ["child"])
            assert os.waitpid(child, 0)[1] == 0
            assert (timers.armed, timers.reaped, timers.now) == (["step"], [], 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_shows_what_it_knows(timers: VirtualTimers) -> None:
    with expires(after=60, scope="step"):
        timers.advance(1)
        assert repr(timers) == "<VirtualTimers, 1 s old: armed ['step'], reaped []>"


def test_importing_aiotimer_does_not_import_it() -> None:
    program = "import sys, aiotimer; sys.exit('aiotimer.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], timeout=PATIENCE, check=False)
    assert done.returncode == 0
