"""Turns: whatever one process asks of its server, the timers and the connections of others have theirs.

The law of this file: it is shown by order, by what came first, and not by how long it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable
from itertools import repeat
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from aiotimer import TimerRequest, WorkerId
from aiotimer._core import wire
from aiotimer._linux.procfs import time_namespace
from aiotimer.events import Event
from aiotimer.evidence import Subject
from aiotimer.server.slices import Steps, WorkQueue
from tests.fakes.places import short_socket
from tests.fakes.server import WatchfulServer, answer, raw_client, serving, serving_as
from tests.fakes.worker import bystander


def hello(*, shared: bool, observe: bool = False) -> wire.Hello:
    pid, now = os.getpid(), monotonic()
    version = wire.PROTOCOL_VERSION
    return wire.Hello(version, "test", pid, shared, time_namespace(), now, observe=observe)


async def say(connection: socket.socket, *messages: wire.ToServer) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, b"".join(map(wire.encode, messages)))


class CountingServer(WatchfulServer):
    """A server that records what has been done when it answers a ping, or reaps somebody."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reports = 0
        self.before_ping: list[int] = []
        self.before_reap: list[int] = []
        self.observed = 0

    def happened(self, event: Event) -> None:
        """Count what was observed."""
        self.observed += event.event == "observed"
        super().happened(event)

    @property
    def lag_s(self) -> float:
        """Record how many reports have been made by then: it is asked for every ping."""
        self.before_ping.append(self.reports)
        return super().lag_s

    def _report(self, *args: Any) -> Steps[dict[str, Any]]:
        report = yield from super()._report(*args)
        self.reports += 1
        return report

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        """Record how many observed timers have been dealt with by then."""
        tracked = self._reaper._overdue_tracker._overdue.values()
        self.before_reap.append(sum(len(overdue.expiries) for overdue in tracked))
        return super().reap_worker(worker_id)


async def test_fault_77_who_asks_all_the_time_is_answered_in_turn_with_others() -> None:
    async with serving_as(CountingServer) as server:
        with raw_client(server.socket_path) as greedy, raw_client(server.socket_path) as modest:
            await say(modest, hello(shared=False))
            await answer(modest, wire.Welcome)
            greedy.send(b"".join(repeat(wire.encode(wire.StatusRequest()), 200)) + wire.encode(wire.Ping()))
            modest.send(wire.encode(wire.Ping()))
            await answer(modest, wire.Pong)
            answers = await answer(greedy, wire.Pong)
            assert [type(one) for one in answers] == [*repeat(wire.Status, 200), wire.Pong], "in their order"
            assert server.before_ping[0] < server.before_ping[1] == 200, "the other one did not wait"
            assert server.events == []


async def test_fault_76_a_storm_of_observed_timers_does_not_keep_a_hung_worker_alive() -> None:
    """Hundreds of one worker are due together; and a moment later the timer of a worker that hangs."""
    count = 400
    async with serving_as(CountingServer, evidence_budget=0.0) as server:
        with raw_client(server.socket_path) as observed, bystander() as victim:
            await say(observed, hello(shared=False, observe=True))
            await answer(observed, wire.Welcome)
            deadline = monotonic() + 5.0
            requests = [wire.Acquire(n + 1, f"timer {n}", deadline) for n in range(count)]
            await say(observed, *requests)
            server.register_timers([TimerRequest(victim, "victim", deadline + 0.0005)])
            await server.told("reaped", victim)
            # A server that stands still meanwhile, for lack of a processor, moves the victim's deadline.
            assert server.before_reap[0] < count or server.all_told("stalled")
            await server.until(lambda: server.observed == count, "all are reported")
            scopes = [event.scope for event in server.all_told("observed")]
            assert sorted(scopes) == sorted(f"timer {n}" for n in range(count)), "once each"


async def test_fault_77_one_process_has_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotimer.server.handlers.MAX_CONNECTIONS", 3)
    async with serving() as server:
        with contextlib.ExitStack() as stack:
            mine = [stack.enter_context(raw_client(server.socket_path)) for _ in range(4)]
            for number, connection in enumerate(mine):
                await say(connection, hello(shared=True))
                (said,) = await answer(connection, wire.Welcome)
                assert isinstance(said, wire.Welcome if number < 3 else wire.Refused)
            assert isinstance(said, wire.Refused)
            assert said.reason.startswith(f"process {os.getpid()} has 3 connections, 3 tables")
            await say(mine[0], wire.Bye())
            assert await answer(mine[0]) == []
            again = stack.enter_context(raw_client(server.socket_path))
            await say(again, hello(shared=True))
            assert isinstance((await answer(again, wire.Welcome))[0], wire.Welcome)


async def test_fault_77_so_many_dumps_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[asyncio.Future[None]] = []
    monkeypatch.setattr("aiotimer.server.handlers.DUMPS", 2)
    async with serving() as server:

        async def gathers(_subject: Subject, _budget: float) -> None:
            begun.append(asyncio.get_running_loop().create_future())
            server.changed()
            await begun[-1]

        monkeypatch.setattr("aiotimer.evidence.gather.gather", gathers)
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(raw_client(server.socket_path))
            await say(worker, hello(shared=True))
            await answer(worker, wire.Welcome)
            asking = [stack.enter_context(raw_client(server.socket_path)) for _ in range(3)]
            for connection in asking:
                await say(connection, wire.DumpRequest(os.getpid()))
            for connection in asking:
                await say(connection, wire.Ping())
                await answer(connection, wire.Pong)
            await server.until(lambda: len(begun) == 2, "two have begun")
            answers = [asyncio.create_task(answer(connection, wire.Dump)) for connection in asking]
            begun[0].set_exception(OSError("nothing was found"))
            await server.until(lambda: len(begun) == 3, "the third has its turn")
            # Whose turn came first is the kernel's business.
            (first,), others = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            assert isinstance(first.result()[-1], wire.Dump)
            for other in others:
                other.cancel()
            await asyncio.wait(others)


class HesitantServer(WatchfulServer):
    """A server that reaps nobody, yet."""

    def reap_worker(self, _worker_id: WorkerId) -> bool:
        """Ask to be called again."""
        return False


class AdoptingServer(WatchfulServer):
    """A server that records how many workers it knows when it reaps one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.known: list[int] = []

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        """Record it, and reap."""
        self.known.append(len(self._registry.workers))
        return super().reap_worker(worker_id)


async def test_what_is_due_does_not_wait_until_every_table_has_been_adopted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiotimer.server.slices.SLICE", 0.0)  # each step is a turn
    with short_socket() as path, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(bystander()) for _ in range(5)]
        first = min(workers, key=lambda pid: f"{pid}-")  # as the directory lists them
        async with serving_as(HesitantServer, path) as server:
            server.register_timers(TimerRequest(pid, "later", monotonic() + 1000) for pid in workers)
            server.register_timers([TimerRequest(first, "due", 0.0)])
        async with serving_as(AdoptingServer, path) as server:
            assert await server.told("reaped", first)
            assert server.known == [1], "the others were adopted after that"
            for pid in workers:
                await server.told("adopted", pid)
                assert pid == first or set(server.armed(pid)) == {"later"}


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
async def test_a_server_that_ends_while_it_adopts_leaves_all_tables_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("aiotimer.server.slices.SLICE", 0.0)  # each step is a turn
    with short_socket() as path, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(bystander()) for _ in range(3)]
        async with serving(path) as server:
            server.register_timers(TimerRequest(pid, "later", monotonic() + 1000) for pid in workers)
        server = WatchfulServer(path)
        starting = asyncio.create_task(server.start())
        for _ in range(2):  # it starts; then the first step is taken
            await asyncio.sleep(0)
        assert 0 < len(server._registry.workers) < 3
        if how == "stopped":
            await server.stop()
            await starting
        else:
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        assert not os.path.exists(path)
        async with serving(path) as server:
            assert [set(server.armed(pid)) for pid in workers] == [{"later"}] * 3


async def test_a_postponed_table_does_not_bring_back_what_its_worker_has_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no descriptor to adopt it with; then its worker returns, with nothing armed."""
    with short_socket() as path:
        async with serving(path) as server:
            with raw_client(path) as peer:
                await say(peer, hello(shared=False), wire.Acquire(1, "released", monotonic() + 1000))
                await answer(peer, wire.Ack)
                await server.until(lambda: set(server.armed(os.getpid())) == {"released"}, "it is armed")
        with monkeypatch.context() as patch:
            patch.setattr("aiotimer._linux.table_files.open_table", _has_no_descriptor)
            server = WatchfulServer(path)
            await server.start()
        try:
            with raw_client(path) as peer:
                await say(peer, hello(shared=False))
                await answer(peer, wire.Welcome)
                adopted = asyncio.Event()
                remove = server._disposal.remove

                def removed(table: Path) -> None:
                    remove(table)
                    adopted.set()

                monkeypatch.setattr(server._disposal, "remove", removed)
                await adopted.wait()
                assert server.armed(os.getpid()) == {}
                assert len(server._registry.workers) == 1
        finally:
            await server.stop()


def _has_no_descriptor(_found: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_no_task_outlives_the_queue() -> None:
    queue = WorkQueue(asyncio.get_running_loop())
    ended = []

    async def waits(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def starts_another() -> None:
        try:
            await waits("first")
        finally:
            queue.spawn(waits("begun late"))

    async def stops() -> None:
        await asyncio.sleep(0)
        await queue.end_tasks()
        ended.append("whoever has stopped it")

    before = asyncio.all_tasks()
    queue.spawn(starts_another())
    await queue.start(stops())
    assert ended == ["first", "begun late", "whoever has stopped it"]
    assert asyncio.all_tasks() == before
