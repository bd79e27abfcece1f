"""Torch's timer over our client: what its own client promises, and what it does not.

The first part holds what torch's tests of ``distributed/elastic/timer`` show of ``LocalTimerClient``.
"""

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections.abc import Iterator
from math import inf, nan
from time import monotonic
from typing import Any
from unittest import mock

import pytest

import aiotimer
from aiotimer import AsyncTimerClient, ServerUnavailable, TimerClient
from tests.fakes.clock import PATIENCE
from tests.fakes.server import ServerThread
from tests.fakes.worker import ended, is_alive, spawn_worker

pytest.importorskip("torch", reason="torch is not installed: make test-integrations")

from torch.distributed.elastic import timer

from aiotimer.integrations.torch_elastic import TorchTimerClient

HERE = os.path.basename(__file__)


@pytest.fixture
def server() -> Iterator[ServerThread]:
    """A server, at which this process's blocks are."""
    with ServerThread() as server:
        aiotimer.configure(server.path, unavailable="raise")
        timer.configure(TorchTimerClient())
        yield server
        aiotimer.configure(None)


def line_before() -> str:
    """The name of a timer of the line before the one that calls."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{HERE}:{frame.f_back.f_lineno - 1}"


def kept(server: ServerThread) -> dict[str, float]:
    """The deadlines that the server sees on this process, by name."""
    workers = [worker for worker in server.status()["workers"] if worker["pid"] == os.getpid()]
    return {one["scope"]: one["deadline"] for worker in workers for one in worker["timers"]}


# --- what torch promises


def test_without_a_client_a_block_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="Configure timer client"):
        with timer.expires(after=1):
            pass


def test_a_block_is_a_timer_while_it_lasts(server: ServerThread) -> None:
    with timer.expires(after=60, scope="step"):
        assert server.armed() == ["step"]
    assert server.armed() == []


def test_an_exception_leaves_the_block_and_no_timer(server: ServerThread) -> None:
    with pytest.raises(KeyError, match="foobar"):
        with timer.expires(after=60):
            raise KeyError("foobar")
    assert server.armed() == []


def test_a_client_may_be_passed_and_is_asked_once_for_each(server: ServerThread) -> None:
    timer.configure(None)
    client: Any = TorchTimerClient()
    client.acquire = mock.MagicMock(wraps=client.acquire)
    client.release = mock.MagicMock(wraps=client.release)
    with timer.expires(after=60, scope="test", client=client):
        assert server.armed() == ["test"]
    client.acquire.assert_called_once_with("test", mock.ANY)
    client.release.assert_called_once_with("test")
    with timer.expires(after=60, client=client):
        assert server.armed() == [line_before()]
    assert server.armed() == []


def test_of_recursive_calls_of_one_line_the_last_one_counts(server: ServerThread) -> None:
    seen: list[list[str]] = []

    def function(n: int) -> None:
        if n > 0:
            with timer.expires(after=60 * n):
                function(n - 1)
                seen.append(server.armed())
        else:
            [deadline] = kept(server).values()
            assert deadline < monotonic() + 61

    function(3)
    [name] = seen[0]
    assert seen == [[name], [], []]


def test_a_named_scope_is_one_timer(server: ServerThread) -> None:
    client = TorchTimerClient()
    client.acquire("step", time.time() + 3600)
    client.acquire("step", time.time() + 60)
    [deadline] = kept(server).values()
    assert deadline < monotonic() + 61
    client.release("step")
    client.release("step")
    client.release("unknown")
    assert server.armed() == []


HANGS = {
    "asleep": "time.sleep(1000)",
    "with the GIL, in C": "ctypes.PyDLL(None).sleep(1000)",
    "in a recursive call": "inner()",
}

HUNG = """
import ctypes, time
from torch.distributed.elastic import timer
from aiotimer.integrations.torch_elastic import TorchTimerClient
timer.configure(TorchTimerClient())

def inner(n=2):
    if n > 0:
        with timer.expires(after=0.2):
            inner(n - 1)
            time.sleep(1000)

with timer.expires(after=AFTER, scope="step"):
    BODY
print("left")
"""


@pytest.mark.parametrize("hang", HANGS)
def test_a_process_that_does_not_leave_is_killed(hang: str) -> None:
    after = "3600" if hang == "in a recursive call" else "0.2"
    program = HUNG.replace("BODY", HANGS[hang]).replace("AFTER", after)
    with ServerThread() as server, spawn_worker(program, server.path) as worker:
        assert worker.wait() == -9
        assert "left" not in worker.output
        [(reaped, _scopes)] = server.wait_reaps(1)
        assert reaped.pid == worker.pid


def test_a_process_that_leaves_is_not() -> None:
    program = HUNG.replace("BODY", "pass").replace("AFTER", "60")
    with ServerThread() as server, spawn_worker(program, server.path) as worker:
        assert worker.wait() == 0
        assert server.reaps == []


def test_the_timer_of_a_process_that_ended_is_moot() -> None:
    program = HUNG.replace("BODY", "os._exit(3)").replace("AFTER", "60").replace("ctypes", "os")
    with ServerThread() as server, spawn_worker(program, server.path) as worker:
        assert worker.wait() == 3
        server.wait(lambda: [e for e in server.events if e.event == "worker_gone"], what="its end")
        assert server.reaps == []


# --- the default scope


def test_a_block_inside_of_another_one_does_not_disarm_it(server: ServerThread) -> None:
    with timer.expires(after=3600):
        outer = line_before()
        with timer.expires(after=60):
            inner = line_before()
            assert server.armed() == sorted([outer, inner])
        assert server.armed() == [outer]
    assert server.armed() == []


def test_blocks_that_overlap_release_their_own(server: ServerThread) -> None:
    first = timer.expires(after=60)
    second = timer.expires(after=60)
    first.__enter__()
    one = line_before()
    second.__enter__()
    other = line_before()
    assert server.armed() == sorted([one, other])
    first.__exit__(None, None, None)
    assert server.armed() == [other]
    second.__exit__(None, None, None)
    assert server.armed() == []


def test_a_stack_of_blocks_is_named_after_who_enters(server: ServerThread) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(timer.expires(after=60))
        assert server.armed() == [line_before()]
    assert server.armed() == []


def test_a_decorated_function_is_named_after_its_caller(server: ServerThread) -> None:
    @timer.expires(after=60)  # type: ignore[untyped-decorator]
    def step() -> list[str]:
        return server.armed()

    armed = step()
    assert armed == [line_before()]
    assert server.armed() == []


def test_a_block_that_is_left_elsewhere_releases_its_own(server: ServerThread) -> None:
    def generator() -> Iterator[None]:
        with timer.expires(after=60):
            yield

    running = generator()
    next(running)
    with timer.expires(after=60):
        outer = line_before()
        del running  # its block is left by the collector
        assert server.armed() == [outer]
    assert server.armed() == []


def test_each_line_is_its_own_in_threads_too(server: ServerThread) -> None:
    entered, leave = threading.Barrier(3), threading.Barrier(3)

    def first() -> None:
        with timer.expires(after=60):
            entered.wait(PATIENCE)
            leave.wait(PATIENCE)

    def second() -> None:
        with timer.expires(after=60):
            entered.wait(PATIENCE)
            leave.wait(PATIENCE)

    threads = [threading.Thread(target=function) for function in (first, second)]
    for thread in threads:
        thread.start()
    entered.wait(PATIENCE)
    assert len(server.armed()) == 2
    leave.wait(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert server.armed() == []


def test_a_name_that_only_looks_like_it_is_a_name(server: ServerThread) -> None:
    client = TorchTimerClient()
    client.acquire("/lib/contextlib.py#137", time.time() + 60)
    assert server.armed() == ["/lib/contextlib.py#137"]
    client.release("/lib/contextlib.py#137")
    assert server.armed() == []


def test_nothing_is_kept_of_blocks_that_were_left(server: ServerThread) -> None:
    client = TorchTimerClient()
    for _ in range(10):
        with timer.expires(after=60, client=client):
            assert len(client._scopes) == len(client._armed_by) == 1
    assert not client._scopes
    assert not client._armed_by


# --- clocks


def test_a_time_of_the_wall_clock_is_a_deadline_on_the_other(server: ServerThread) -> None:
    before = monotonic()
    with timer.expires(after=60, scope="step"):
        deadline = kept(server)["step"]
        assert before + 59.9 < deadline < monotonic() + 60.1


def test_a_wall_clock_that_jumps_moves_no_timer(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = time.time() + 1e7
    monkeypatch.setattr(time, "time", lambda: ahead)
    before = monotonic()
    with timer.expires(after=60, scope="step"):
        monkeypatch.setattr(time, "time", lambda: ahead - 1e6)
        deadline = kept(server)["step"]
        assert before + 60 <= deadline <= monotonic() + 60


@pytest.mark.parametrize("at", [0, 0.0, 1.0, 1_000_000_000])
def test_what_has_expired_has_expired(server: ServerThread, at: float) -> None:
    TorchTimerClient().acquire("late", at)
    [(_worker, scopes)] = server.wait_reaps(1)
    assert scopes == ["late"]


def test_a_negative_time_is_a_release(server: ServerThread) -> None:
    client = TorchTimerClient()
    client.acquire("step", time.time() + 60)
    client.acquire("step", -1)
    assert server.armed() == []
    assert not client._armed_by


@pytest.mark.parametrize(
    ("scope", "at", "error"),
    [
        ("s", nan, ValueError), ("s", inf, ValueError), ("s", "soon", TypeError), ("s", True, TypeError),
        ("s", None, TypeError), (7, 60.0, TypeError), (None, 60.0, TypeError),
    ],
)  # fmt: skip
def test_what_is_no_timer_is_refused(server: ServerThread, scope: Any, at: Any, error: type) -> None:
    with pytest.raises(error):
        TorchTimerClient().acquire(scope, at)
    assert server.armed() == []


@pytest.mark.parametrize("scope", ["x" * 1000, "a\0b", ""])
def test_every_text_that_torch_takes_is_a_name(server: ServerThread, scope: str) -> None:
    with timer.expires(after=60, scope=scope):
        assert len(server.armed()) == 1
    assert server.armed() == []


# --- which client


def test_a_client_of_ours_is_used() -> None:
    with ServerThread() as server, TimerClient(server.path) as client:
        with timer.expires(after=60, scope="step", client=TorchTimerClient(client)):
            assert server.armed() == ["step"]


@pytest.mark.parametrize("wrong", ["/run/socket", 7, object()])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an aiotimer\.TimerClient"):
        TorchTimerClient(wrong)


def test_an_asynchronous_client_may_be_the_configured_one() -> None:
    async def main(server: ServerThread) -> None:
        client = AsyncTimerClient(server.path)
        await client.connect()
        aiotimer.configure(client)
        with timer.expires(after=60, scope="step", client=TorchTimerClient()):
            assert await asyncio.to_thread(server.armed) == ["step"]
        assert await asyncio.to_thread(server.armed) == []

    with ServerThread() as server:
        asyncio.run(main(server))


def test_a_release_goes_to_the_server_of_its_acquire(server: ServerThread) -> None:
    with ServerThread() as other:
        with TimerClient(other.path) as client:
            aiotimer.configure(client)
            with timer.expires(after=60, scope="step"):
                assert other.armed() == ["step"]
                aiotimer.configure(server.path)
            assert other.armed() == []


def test_without_a_server_the_block_says_so_and_leaves_nothing() -> None:
    client = TorchTimerClient(TimerClient("/nowhere/s", unavailable="raise"))
    with pytest.raises(ServerUnavailable):
        with timer.expires(after=60, client=client):
            pass
    assert not client._scopes
    assert not client._armed_by


async def test_a_program_that_configures_nothing_gets_a_private_server() -> None:
    program = HUNG.replace("BODY", "time.sleep(1000)").replace("AFTER", "0.2")
    with spawn_worker(program, None) as worker:
        assert await ended(worker) == -9
        assert not is_alive(worker.pid)
