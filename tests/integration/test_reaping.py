"""A worker that hangs is reaped, however it hangs, however it armed its timer, however it was started.

The laws of this file: every worker is a process, and what kills it is the server; none is reaped early, which
is read off the moment at which the server acted; the healthy neighbour of every victim survives.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

import pytest

from tests.fakes.server import assert_reaped, serving
from tests.fakes.worker import ENTRIES, HANGS, ended, line, number, program, spawn_worker

HEALTHY = """
import sys, threading
from aiotimer import expires

def work():
    global blocks
    while not done.wait(0.001):  # busy without a pause, it would keep its victims' processor
        with expires(4.0):
            blocks += 1

blocks, done = 0, threading.Event()
worker = threading.Thread(target=work)
worker.start()
print("healthy")
sys.stdin.readline()
done.set()
worker.join()
print("blocks", blocks)
"""


AFTER = 1.5
"""Seconds from arming to the deadline, before which a victim has a line to write, on any machine."""


async def assert_all_reaped(sources: Sequence[str]) -> None:
    """Every one of these programs is reaped, and their healthy neighbour is not."""
    async with serving() as server:
        with contextlib.ExitStack() as stack:
            neighbour = stack.enter_context(spawn_worker(HEALTHY, server.socket_path))
            await line(neighbour, "healthy")
            victims = [stack.enter_context(spawn_worker(source, server.socket_path)) for source in sources]
            for victim in victims:
                assert await ended(victim) == -signal.SIGKILL
                await assert_reaped(server, victim.pid, await number(victim, "deadline"))
            neighbour.say()
            assert await number(neighbour, "blocks") > 0
            assert await ended(neighbour) == 0
        assert len(server.all_told("reaped")) == len(sources)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("entry", ["with", "async with"])
async def test_fault_41_hung_in_synchronous_code(entry: str) -> None:
    hangs = {**HANGS, "spin": f"os.nice(19)\n{HANGS['spin']}"}  # nobody needs to wait for it
    await assert_all_reaped([program(entry, hang, after=AFTER) for hang in hangs.values()])


async def test_fault_41_hung_in_an_await() -> None:
    hang = "await asyncio.Event().wait()"
    await assert_all_reaped(
        [program("async with", hang, shared=shared, after=AFTER) for shared in (True, False)]
    )


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_fault_41_hung_after_an_acquire() -> None:
    await assert_all_reaped(
        [
            program(entry, HANGS["gil"], after=AFTER)
            for entry in ("acquire", "async acquire", "with on a loop")
        ]
    )


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_fault_41_hung_without_shared_memory() -> None:
    # A plain `with` on a loop waits five milliseconds for an acknowledgement, and goes on: not here.
    waiting = [entry for entry in ENTRIES if entry != "with on a loop"]
    await assert_all_reaped([program(entry, HANGS["gil"], shared=False, after=AFTER) for entry in waiting])
