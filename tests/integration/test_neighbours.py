"""The healthy neighbours of a worker that is reaped see nothing of it: no signal, no question, no delay.

The law of this file: both are real workers of one server that gathers evidence before it kills.
"""

from __future__ import annotations

import os
import signal

from aiotimer._core import layout
from tests.fakes.server import assert_reaped, serving
from tests.fakes.worker import PRELUDE, ended, line, number, spawn_worker

HANGS = (
    PRELUDE
    + """
async def main():
    async with AsyncTimerClient(unavailable="raise", budget=30) as client:
        async with expires(0.3, "victim", client) as block:
            say("deadline", block.deadline)
            await asyncio.Event().wait()

asyncio.run(main())
"""
)

IS_FINE = (
    PRELUDE
    + """
async def main():
    async with AsyncTimerClient(unavailable="raise", budget=30) as client:
        async with expires(1000, "fine", client):
            say("tasks", len(asyncio.all_tasks()))
            await asyncio.to_thread(sys.stdin.readline)
            say("tasks then", len(asyncio.all_tasks()))
        say("left")

caught = []
for number in (*range(1, 32), *range(34, 65)):
    if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is signal.SIG_DFL:
        if number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, lambda number, frame: caught.append(number))
asyncio.run(main())
say("caught", len(caught))
"""
)


async def test_neighbours_see_nothing() -> None:
    async with serving(reap="dump,TERM:30,KILL") as server:
        with spawn_worker(IS_FINE, server.socket_path) as fine:
            assert await number(fine, "tasks") == 1
            with spawn_worker(HANGS, server.socket_path) as victim:
                deadline = await number(victim, "deadline")
                event = await assert_reaped(server, victim.pid, deadline)
                assert event.verdict.startswith("awaiting (loop alive)")
                assert await ended(victim) == -signal.SIGTERM
            (worker,) = server._registry.workers.values()
            assert worker.id.pid == fine.pid
            (table,) = worker.tables
            written = os.fstat(table.file.descriptor).st_size - layout.STACKS_OFFSET
            assert written == 0  # nobody asked it for its stacks
            assert server.armed(fine.pid).keys() == {"fine"}
            fine.say()
            assert await line(fine, "tasks then") == "tasks then 1"
            assert await number(fine, "caught") == 0
            assert await ended(fine) == 0
            assert [e.event for e in server.events if e.worker_id and e.worker_id.pid == fine.pid] == []


COMES_AND_GOES = (
    PRELUDE
    + """
import gc, uvloop
import aiotimer.client.block
from aiotimer.client.inspection import _channels

aiotimer.client.block.SAMPLE_EVERY = 1000  # however soon a loop follows another, it gets its channel

def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

def channels():
    return sum(len(of_loop) for of_loop in _channels.values())

async def main(client):
    async with expires(1000, "s", client):
        await asyncio.sleep(0)
        say("channels", channels())
        if os.fork() == 0:
            say("of the child", channels())
            os._exit(0)
        os.wait()
        await asyncio.sleep(0)
    return asyncio.all_tasks() - {asyncio.current_task()}

async def nothing():
    pass

for new_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
    with asyncio.Runner(loop_factory=new_loop) as runner:  # what a first loop leaves is not ours
        runner.run(nothing())
client = TimerClient(unavailable="raise", budget=30)
client.connect()
before = descriptors()
for new_loop in (asyncio.new_event_loop, uvloop.new_event_loop) * 2:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert not runner.run(main(client))
    say("left over", channels(), descriptors() - before)
with expires(1000, "s", client):
    say("without a loop", channels())
client.close()
say("done")
"""
)


async def test_channels_come_and_go_with_their_loops() -> None:
    """No warning is given, no descriptor is left, and a forked child has none of its parent's."""
    async with serving() as server:
        options = ("-W", "error", "-W", "ignore::DeprecationWarning")
        with spawn_worker(COMES_AND_GOES, server.socket_path, options=options) as worker:
            assert await ended(worker) == 0, worker.output
        each = ["channels 1", "of the child 0", "left over 0 0"]
        assert worker.lines == [*each * 4, "without a loop 0", "done"]
        assert not server.all_told("refused")
