"""Faults 41 to 46: killing, and what only looks like it.

The laws of this file: one SIGKILL is sent, through the pidfd; only a readable pidfd means dead. Fault 41, a
worker hung in every way, is in ``tests/integration/test_reaping.py``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable

import pytest

from aiotimer import TimerRequest, WorkerId
from aiotimer.process import send_signal, start_time
from tests.programs import HANGS, PRELUDE
from tests.serving import (
    WatchfulServer,
    bystander,
    ended,
    is_alive,
    number,
    serving,
    serving_as,
    wait_dead,
)
from tests.support import spawn_worker


class TooLateServer(WatchfulServer):
    """A server whose every victim dies by itself between the decision and the signal."""

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        os.kill(worker_id.pid, signal.SIGTERM)
        wait_dead(worker_id.pid)
        return super().reap_worker(worker_id)


async def test_fault_43_a_worker_that_dies_just_before_the_signal(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_as(TooLateServer) as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "s", 0.0)])
            await server.told("worker_gone", pid)
            assert server.reaps == [server.events[-1].worker_id]
            assert server.status()["workers"] == []
        assert server.all_told("reaped") == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


UNWAITED = (
    PRELUDE
    + f"""
pid = os.fork()
if pid == 0:
    with expires(0.3, "victim", TimerClient(unavailable="raise", budget=30)) as block:
        say("deadline", block.deadline)
        say("child", os.getpid())
        {HANGS["gil"]}
sys.stdin.readline()  # and does not wait for its child
"""
)


async def test_fault_44_a_victim_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def sends(pidfd: int, signum: int) -> None:
        sent.append(signum)
        send_signal(pidfd, signum)

    monkeypatch.setattr("aiotimer._worker.send_signal", sends)
    async with serving() as server:
        with spawn_worker(UNWAITED, server.socket_path) as parent:
            pid = int(await number(parent, "child"))
            deadline = await number(parent, "deadline")
            event = await server.told("reaped", pid)
            assert event.scope == "victim"
            assert server.acted[pid] >= deadline
            assert sent == [signal.SIGKILL]
            await server.pass_by(deadline + 0.3)
            assert start_time(pid) > 0, "it has not been waited for"
            assert not is_alive(pid)
            assert sent == [signal.SIGKILL] * 2, "one for the victim, one for the bystander"
            assert server.armed(pid) == {}
            parent.say()
            assert await ended(parent) == 0
