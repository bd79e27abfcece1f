"""Inspection channels, questions on them, and dumps: the server's end of it, with a client by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable
from time import monotonic
from types import ModuleType
from typing import Any

import pytest

from aiotimer import TimerClient, TimerRequest, TimerServer, WorkerId
from aiotimer._core import wire
from aiotimer._linux.procfs import time_namespace
from aiotimer.client import control
from aiotimer.errors import Refused, ServerUnavailable
from aiotimer.evidence import Subject, pyspy
from aiotimer.evidence.gather import gather
from aiotimer.server import inspector
from aiotimer.server.inspector import inspect_loops, subject_of
from aiotimer.server.worker import Worker
from tests.fakes.clock import PATIENCE
from tests.fakes.server import ServerThread, WatchfulServer, answer, raw_client, serving, serving_as
from tests.fakes.worker import line, program, soon, spawn_worker


@pytest.fixture(autouse=True)
def no_pyspy(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are not about it."""
    monkeypatch.setattr(pyspy, "find_pyspy", lambda: None)


class Loop:
    """An event loop of a worker, at its end of an inspection channel."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._decoder = wire.client_decoder()

    async def asked(self) -> wire.Inspect:
        """Return the next question."""
        (question,) = await answer(self.connection, wire.Inspect)
        assert isinstance(question, wire.Inspect)
        return question

    async def say(self, message: wire.ToServer) -> None:
        """Send a message."""
        await asyncio.get_running_loop().sock_sendall(self.connection, wire.encode(message))

    async def closed(self) -> None:
        """Wait until the server has closed it, without a word."""
        assert await answer(self.connection) == []


def tasks(number: int, name: str = "Task-1", **facts: Any) -> wire.Tasks:
    """Return an answer."""
    report = wire.TaskReport(name, 1, (3,), (("/app/train.py", 42, "rollout"),), "a future")
    return wire.Tasks(**{"loop": "a loop", "thread": "MainThread", "left_out": 0, "stacks": "", **facts,
                         "number": number, "tasks": (report,)})  # fmt: skip


@contextlib.asynccontextmanager
async def worker_of(server: WatchfulServer) -> AsyncIterator[Worker]:
    """Make this process a worker of the server's."""
    hello = wire.Hello(wire.PROTOCOL_VERSION, "test", os.getpid(), True, time_namespace(), monotonic())
    with raw_client(server.socket_path) as connection:
        await asyncio.get_running_loop().sock_sendall(connection, wire.encode(hello))
        assert isinstance((await answer(connection, wire.Welcome))[0], wire.Welcome)
        worker = server._registry.find(os.getpid())
        assert worker is not None
        yield worker


@contextlib.asynccontextmanager
async def channel_to(server: WatchfulServer, worker: Worker) -> AsyncIterator[Loop]:
    """Open an inspection channel."""
    before = len(worker.inspection_channels)
    with raw_client(server.socket_path) as connection:
        loop = Loop(connection)
        await loop.say(wire.Attend(wire.PROTOCOL_VERSION))
        await server.until(lambda: len(worker.inspection_channels) > before, "the channel")
        yield loop


async def test_every_loop_is_asked_and_answers() -> None:
    async with serving() as server, worker_of(server) as worker:
        async with channel_to(server, worker) as one, channel_to(server, worker) as two:
            asking = asyncio.ensure_future(inspect_loops(worker, (3, 4), PATIENCE))
            for loop in (one, two):
                question = await loop.asked()
                assert question.slots == (3, 4)
                await loop.say(tasks(question.number))
            answers = await asking
            assert [one.tasks[0].name for one in answers] == ["Task-1"] * 2
            assert answers.asked == 2
            again = asyncio.ensure_future(inspect_loops(worker, (), PATIENCE))
            for loop in (one, two):
                await loop.say(tasks((await loop.asked()).number))
            assert len(await again) == 2
        await server.until(lambda: not worker.inspection_channels, "both are closed")
        assert await inspect_loops(worker) == []


async def test_a_loop_that_does_not_answer_is_counted_and_asked_one_thing_at_a_time() -> None:
    async with serving() as server, worker_of(server) as worker:
        async with channel_to(server, worker) as dead, channel_to(server, worker) as alive:
            for _ in range(2):
                asking = asyncio.ensure_future(inspect_loops(worker, (), 0.1))
                await alive.say(tasks((await alive.asked()).number))
                answers = await asking
                assert (len(answers), answers.asked) == (1, 2)
            question = await dead.asked()
            third = asyncio.ensure_future(inspect_loops(worker, (9,), PATIENCE))
            await alive.say(tasks((await alive.asked()).number))
            await dead.say(tasks(question.number, "late"))  # now, and nobody wants it any more
            question = await dead.asked()
            assert question.slots == (9,)
            await dead.say(tasks(question.number, "new"))
            assert [one.tasks[0].name for one in await third] == ["Task-1", "new"]  # as they came


async def test_a_loop_that_ends_is_not_waited_for() -> None:
    async with serving() as server, worker_of(server) as worker:
        async with channel_to(server, worker) as loop:
            asking = asyncio.ensure_future(inspect_loops(worker, (), PATIENCE))
            queued = asyncio.ensure_future(inspect_loops(worker, (), PATIENCE))
            await loop.asked()
        for question in (asking, queued):
            answers = await question
            assert (answers, answers.asked) == ([], 1)


@pytest.mark.parametrize("nonsense", ["unasked", "number", "twice"])
async def test_nonsense_closes_the_connection(nonsense: str) -> None:
    async with serving() as server, worker_of(server) as worker, channel_to(server, worker) as loop:
        asking = None
        if nonsense == "unasked":
            await loop.say(tasks(0))
        else:
            asking = asyncio.ensure_future(inspect_loops(worker, (), PATIENCE))
            number = (await loop.asked()).number
            for _ in range(2):
                await loop.say(tasks(number + (nonsense == "number")))
        await loop.closed()
        await server.told("refused")
        assert worker.inspection_channels == []
        if asking is not None:
            assert len(await asking) == (nonsense == "twice")


@pytest.mark.parametrize("version", [wire.PROTOCOL_VERSION, wire.PROTOCOL_VERSION + 1])
async def test_who_is_no_worker_or_speaks_another_protocol_is_closed(version: int) -> None:
    async with serving() as server, contextlib.AsyncExitStack() as stack:
        if version != wire.PROTOCOL_VERSION:
            await stack.enter_async_context(worker_of(server))
        with raw_client(server.socket_path) as connection:
            loop = Loop(connection)
            await loop.say(wire.Attend(version))
            await loop.closed()
        assert server.events == []


async def test_a_peer_that_is_gone_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_connection: socket.socket) -> None:
        raise ProcessLookupError("no process")

    async with serving() as server, worker_of(server):
        monkeypatch.setattr("aiotimer.server.handlers.pin_peer", gone)
        with raw_client(server.socket_path) as connection:
            loop = Loop(connection)
            await loop.say(wire.Attend(wire.PROTOCOL_VERSION))
            await loop.closed()
        assert server.events == []


async def test_a_process_has_so_many_loops_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "MAX_CHANNELS", 1)
    async with serving() as server, worker_of(server) as worker, channel_to(server, worker):
        with raw_client(server.socket_path) as connection:
            loop = Loop(connection)
            await loop.say(wire.Attend(wire.PROTOCOL_VERSION))
            await loop.closed()
        assert "more than 1" in (await server.told("refused")).detail
        assert len(worker.inspection_channels) == 1


async def test_of_many_tasks_some_are_evidence_and_the_others_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspector, "MAX_TASKS", 1)
    async with serving() as server, worker_of(server) as worker:
        async with channel_to(server, worker) as one, channel_to(server, worker) as two:
            asking = asyncio.ensure_future(inspect_loops(worker, (), PATIENCE))
            for number, loop in enumerate((one, two)):
                await loop.say(tasks((await loop.asked()).number, left_out=number))
            answers = await asking
            assert [(len(answer.tasks), answer.left_out) for answer in answers] == [(1, 0), (0, 2)]


async def test_the_silence_of_a_loop_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotimer.server.connection.SILENCE", 0.05)
    async with serving() as server, worker_of(server) as worker, channel_to(server, worker) as loop:
        with raw_client(server.socket_path) as later:
            await Loop(later).closed()  # whoever says nothing is
        asking = asyncio.ensure_future(inspect_loops(worker, (), PATIENCE))
        await loop.say(tasks((await loop.asked()).number))
        assert len(await asking) == 1


async def test_what_loops_answer_is_the_evidence() -> None:
    written = (
        "Thread 0x1 (most recent call first):\n"
        '  File "/app/other.py", line 1 in other\n\n'
        "Current thread 0x2 (most recent call first):\n"
        '  File "/app/train.py", line 9 in <module>\n'
    )
    async with serving() as server, worker_of(server) as worker, channel_to(server, worker) as loop:
        subject = subject_of(worker, "train.py:40", (3,))
        assert subject.table_inode == worker.tables[0].file.inode
        gathering = asyncio.ensure_future(gather(subject, PATIENCE))
        await loop.say(tasks((await loop.asked()).number, stacks=written))
        found = await gathering
        assert found.verdict == "awaiting (loop alive) at train.py:42 in rollout"
        assert found.where == "train.py:42"
        (task,) = found.tasks
        assert task["own"]
        assert task["frames"] == [["/app/train.py", 42, "rollout"]]
        assert len(found.stacks) == 2
        assert "in other" in found.stacks_text
        assert "rollout" in found.tasks_text
        assert found.probes["stacks"] == "not needed: every loop answered"


async def test_a_subject_without_a_table_and_without_loops() -> None:
    async with serving() as server, worker_of(server) as worker:
        assert subject_of(worker).ask is None
        tables, worker.tables = worker.tables, []
        assert subject_of(worker).table == -1
        worker.tables = tables


# -- what falls due while a worker is asked -----------------------------------------------------------------


class OthersServer(WatchfulServer):
    """A server that reaps every worker but its own process, of which it only records that it should have."""

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        """Record it."""
        if worker_id.pid != os.getpid():
            return super().reap_worker(worker_id)
        self.reaps.append(worker_id)
        self.changed()
        return True

    @property
    def would_reap(self) -> bool:
        """Whether this process was to be reaped."""
        return os.getpid() in [worker_id.pid for worker_id in self.reaps]

    def arm(self, deadline: float) -> None:
        """Arm a timer on this process."""
        self.register_timers([TimerRequest(os.getpid(), "block", deadline)])


@contextlib.asynccontextmanager
async def asked(
    within: float = PATIENCE, put_off_for: float = PATIENCE
) -> AsyncIterator[tuple[OthersServer, Loop, asyncio.Future[Any], int]]:
    """Have a server ask this process a question, of that number, which is answered when the test says so.

    Args:
        within: seconds that the server waits for the answer.
        put_off_for: seconds that it puts off, meanwhile, what falls due.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspector, "ASK_WITHIN", put_off_for)
        async with serving_as(OthersServer) as server, worker_of(server) as worker:
            async with channel_to(server, worker) as loop:
                asking = asyncio.ensure_future(inspect_loops(worker, (), within))
                yield server, loop, asking, (await loop.asked()).number


async def test_what_falls_due_while_a_worker_is_asked_is_put_off_until_it_has_answered() -> None:
    async with asked() as (server, loop, asking, number):
        since = monotonic()
        deadline = since + 0.2
        server.arm(deadline)
        await server.pass_by(deadline)
        assert not server.would_reap
        until = monotonic()
        await loop.say(tasks(number))
        assert len(await asking) == 1
        await server.until(lambda: server.would_reap, "it is reaped")
        assert monotonic() >= deadline + (until - since), "what was left of its time is left again"


async def test_what_is_released_when_a_worker_has_answered_was_in_time() -> None:
    async with asked() as (server, loop, asking, number):
        deadline = monotonic()
        server.arm(deadline)
        await server.pass_by(deadline)
        server.arm(-1.0)
        await loop.say(tasks(number))
        await asking
        await server.pass_by(monotonic() + (monotonic() - deadline))
        assert not server.would_reap
        assert server.all_told("late") == []


async def test_who_does_not_answer_gains_nothing_but_the_time_that_it_had_for_it() -> None:
    async with asked(within=0.1) as (server, _loop, asking, _number):
        server.arm(monotonic())
        assert await asking == []
        await server.until(lambda: server.would_reap, "it is reaped")


async def test_nothing_is_put_off_for_long_though_somebody_still_waits_for_the_answer() -> None:
    async with asked(put_off_for=0.1) as (server, _loop, asking, _number):
        server.arm(monotonic())
        await server.until(lambda: server.would_reap, "it is reaped")
        assert not asking.done()


async def test_what_fell_due_before_a_worker_was_asked_is_not_put_off() -> None:
    async with asked() as (server, _loop, asking, _number):
        server.arm(monotonic() / 2)  # whatever the clock shows: it may have begun a minute ago
        await server.until(lambda: server.would_reap, "it is reaped")
        assert not asking.done()


# -- dumps -----------------------------------------------------------------------------------------------


async def test_a_dump_of_a_live_worker() -> None:
    body = "line = sys.stdin.readline()"
    async with serving() as server:
        with spawn_worker(program("with", body, after=1000), server.socket_path) as worker:
            await line(worker, "deadline")
            found = await asyncio.to_thread(control.dump, server.socket_path, worker.pid, PATIENCE)
            assert (found["event"], found["outcome"], found["pid"]) == ("dump", "dump", worker.pid)
            assert found["scope"] == ""
            (timer,) = found["timers"]
            assert timer["scope"] == "victim"
            assert 0 < timer["remaining_s"] < 1000
            assert not timer["expired"]
            assert found["process"]["state"]
            assert found["verdict"]
            assert set(found["probes"]) >= {"proc", "tasks", "py-spy"}
            assert json.loads(json.dumps(found)) == found
            worker.say("go on")
            await line(worker, "left")  # it has not been harmed
        assert server.events == []


async def test_a_dump_of_whoever_is_no_worker_is_refused() -> None:
    async with serving() as server:
        with pytest.raises(Refused, match=f"no worker with pid {os.getpid()}"):
            await asyncio.to_thread(control.dump, server.socket_path, os.getpid(), PATIENCE)
    with pytest.raises(ServerUnavailable):
        control.dump("/nowhere", 1)


async def test_a_dump_that_fails_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("whatever")

    monkeypatch.setattr("aiotimer.server.inspector.subject_of", fail)
    async with serving() as server, worker_of(server):
        with pytest.raises(Refused, match="it failed: whatever"):
            await asyncio.to_thread(control.dump, server.socket_path, os.getpid(), PATIENCE)
    assert "no dump of process" in caplog.text


class Endless:
    """A inspector that ends only when it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, _subject: Subject, _budget: float) -> None:
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled.set()


async def test_one_dump_at_a_time_and_none_for_whoever_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotimer.server.connection.SILENCE", 0.05)
    async with serving() as server, worker_of(server):
        for leaves in ("asks again", "goes"):
            endless = Endless()
            monkeypatch.setattr("aiotimer.evidence.gather.gather", endless)
            with raw_client(server.socket_path) as connection:
                peer = Loop(connection)
                await peer.say(wire.DumpRequest(os.getpid()))
                await endless.begun.wait()
                with raw_client(server.socket_path) as later:
                    await Loop(later).closed()  # and the one that waits for its dump is not
                assert not endless.cancelled.is_set()
                if leaves == "asks again":
                    await peer.say(wire.DumpRequest(os.getpid()))
                    await peer.closed()
            await endless.cancelled.wait()
        assert "DumpRequest before the answer" in (await server.told("refused")).detail


async def test_after_a_dump_silence_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotimer.server.connection.SILENCE", 0.05)
    async with serving() as server:
        with raw_client(server.socket_path) as connection:
            await Loop(connection).say(wire.DumpRequest(1))
            (dump,) = await answer(connection)  # up to the end of the stream
            assert isinstance(dump, wire.Dump)
            assert dump.error


async def test_stopping_the_server_ends_a_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless()
    monkeypatch.setattr("aiotimer.evidence.gather.gather", endless)
    async with serving() as server, worker_of(server):
        with raw_client(server.socket_path) as connection:
            await Loop(connection).say(wire.DumpRequest(os.getpid()))
            await endless.begun.wait()
            await TimerServer.stop(server)
            assert await soon(endless.cancelled.is_set)


def test_a_client_may_be_closed_while_another_thread_imports_what_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ServerThread() as server:
        client = TimerClient(server.path)
        client.connect()
        half = ModuleType("aiotimer.client.inspection")
        monkeypatch.setitem(sys.modules, half.__name__, half)
        client.close()
        assert not client.connected
