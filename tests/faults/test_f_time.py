"""Faults 36 to 39: loops that wake early, servers that stand still.

The laws of this file: a signal never precedes its deadline, whatever woke the server; what passed while a
server stood still is given back, and what was released meanwhile is released.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from contextvars import Context
from time import monotonic

import pytest
import uvloop

from aiotimer import TimerRequest
from aiotimer._watched import WatchedTable
from tests.programs import HANGS, program
from tests.serving import LOOPS, ServerProcess, bystander, clock_passes, serving
from tests.support import short_socket, spawn_worker

EARLY = 0.002
"""Seconds by which the loops of fault 37 fire early: more than uvloop's rounding."""


class EarlyLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, too early."""

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when - EARLY, callback, *args, context=context)


class EarlyUvloop(uvloop.Loop):
    """uvloop's, too early."""

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when - EARLY, callback, *args, context=context)


@pytest.mark.parametrize("loop", [EarlyLoop, EarlyUvloop])
def test_fault_37_a_loop_that_wakes_early(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No early signal, and no spinning until the deadline: a few early calls for each deadline at most."""
    calls = 0
    woken = WatchedTable._woken

    def counted(table: WatchedTable) -> None:
        nonlocal calls
        calls += 1
        woken(table)

    monkeypatch.setattr(WatchedTable, "_woken", counted)

    async def main() -> None:
        async with serving() as server:
            with contextlib.ExitStack() as stack:
                due = {stack.enter_context(bystander()): monotonic() + 0.1 + 0.0137 * n for n in range(10)}
                server.register_timers([TimerRequest(pid, "s", deadline) for pid, deadline in due.items()])
                for pid, deadline in due.items():
                    event = await server.told("reaped", pid)
                    assert event.late_s is not None
                    assert event.late_s >= 0.0
                    assert server.acted[pid] >= deadline

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert 10 <= calls <= 80


HELD = "say('held'); sys.stdin.readline()"


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_38_a_server_that_was_stopped(loop: str) -> None:
    """Deadlines pass while it stands still. It kills nobody for that: each gets back what was left."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        with (
            spawn_worker(program("with", HELD, after=2.0), path) as releases_meanwhile,
            spawn_worker(program("async with", HELD, after=2.0), path) as releases_afterwards,
            spawn_worker(program("acquire", HELD, after=2.0), path) as never_releases,
            spawn_worker(program("with", HANGS["gil"], after=3.0), path) as not_concerned,
        ):
            workers = [releases_meanwhile, releases_afterwards, never_releases]
            deadlines = [float(worker.wait_line("deadline ").split()[-1]) for worker in workers]
            later = float(not_concerned.wait_line("deadline ").split()[-1])
            server.freeze()
            releases_meanwhile.say()
            releases_meanwhile.wait_line("left")
            clock_passes(max(deadlines))
            server.thaw()
            server.told("stalled")
            releases_afterwards.say()
            releases_afterwards.wait_line("left")
            for victim in (never_releases, not_concerned):
                assert server.told("reaped", victim.pid)["late_s"] >= 0
                assert victim.wait() == -signal.SIGKILL
            assert monotonic() >= later, "a stop moves no deadline that it did not swallow"
            assert releases_meanwhile.wait() == 0
            assert releases_afterwards.wait() == 0
        about = [(event["event"], event["pid"]) for event in server.events]
        assert about.index(("stalled", None)) < about.index(("reaped", never_releases.pid))
        reaped = {pid for kind, pid in about if kind == "reaped"}
        assert reaped == {never_releases.pid, not_concerned.pid}
