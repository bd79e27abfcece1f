"""Faults 1 to 10: the server is killed, stopped, started again. An armed timer ends all the same.

The laws of this file: the server is a process and dies for real; what was armed before it died, and what is
armed and released while none is there, counts when the next one comes. Faults 8, 20 and 22 are in
``tests/integration/test_server.py``.
"""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from time import monotonic

import pytest

from aiotimer._control import status
from tests.programs import ENTRIES, HANGS, PRELUDE, program
from tests.serving import LOOPS, ServerProcess, armed, bystander, clock_passes, is_alive
from tests.support import SpawnedWorker, short_socket, spawn_worker

by_either_loop = pytest.mark.parametrize("loop", LOOPS)

HOLDER = """
    import sys, time
    from aiotimer import TimerClient

    client = TimerClient(unavailable="raise", budget=30)
    base = float(sys.argv[1])
    for number in range(int(sys.argv[2])):
        client.acquire(f"timer {number}", base + number)
    print("armed", flush=True)
    for line in sys.stdin:
        client.acquire("soon", float(line))
        print("armed soon", flush=True)
"""


@by_either_loop
def test_fault_01_a_thousand_timers_survive_sigkill(loop: str) -> None:
    with short_socket() as path, ServerProcess(path, loop) as server, contextlib.ExitStack() as stack:
        base = monotonic() + 1000
        holders = [stack.enter_context(spawn_worker(HOLDER, path, repr(base + n), "50")) for n in range(20)]
        for holder in holders:
            holder.wait_line("armed")
        expected = {
            holder.pid: {f"timer {number}": base + n + number for number in range(50)}
            for n, holder in enumerate(holders)
        }
        due = monotonic() + 2.0
        for holder in holders[::5]:
            expected[holder.pid]["soon"] = due
            holder.say(repr(due))
        for holder in holders[::5]:
            holder.wait_line("armed soon")

        server.kill()
        server.start()

        report = status(path)
        if monotonic() < due:
            assert {holder.pid: armed(report, holder.pid) for holder in holders} == expected
        for holder in holders[::5]:
            assert server.told("reaped", holder.pid)["scope"] == "soon"
            assert holder.wait() == -signal.SIGKILL
        report = status(path)
        living = [holder for holder in holders if holder not in holders[::5]]
        assert [holder.pid for holder in holders if is_alive(holder.pid)] == [h.pid for h in living]
        for holder in living:
            assert armed(report, holder.pid) == expected[holder.pid]


TRAFFIC = """
    import sys, threading
    from aiotimer import TimerClient, expires

    client = TimerClient(unavailable="raise", budget=30)
    def work(after):
        global blocks
        while not done.is_set():
            with expires(after, client=client):
                blocks += 1

    blocks, done = 0, threading.Event()
    client.acquire("held", float(sys.argv[1]))
    threads = [threading.Thread(target=work, args=(after,)) for after in (4.0, 60.0)]
    for thread in threads:
        thread.start()
    print("at work", flush=True)
    sys.stdin.readline()
    done.set()
    for thread in threads:
        thread.join()
    client.release("held")
    print("blocks", blocks, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_fault_02_sigkill_at_random_moments_under_traffic(kills: int) -> None:
    """Blocks are entered and left all the time, and a server lives for some milliseconds only."""
    chance = random.Random(kills)
    with short_socket() as path, ServerProcess(path) as server, contextlib.ExitStack() as stack:
        held = monotonic() + 1000
        workers = [stack.enter_context(spawn_worker(TRAFFIC, path, repr(held))) for _ in range(3)]
        for worker in workers:
            worker.wait_line("at work")
        victim = stack.enter_context(spawn_worker(program("with", HANGS["gil"], after=0.5 * kills), path))
        deadline = float(victim.wait_line("deadline").split()[-1])
        for _ in range(kills):
            clock_passes(monotonic() + chance.uniform(0.0, 0.05))
            server.kill()
            server.start()
            assert all(is_alive(worker.pid) for worker in workers)
        if monotonic() < deadline:
            assert server.armed(victim.pid) == {"victim": deadline}
        assert victim.wait() == -signal.SIGKILL
        server.pass_by(deadline)
        for worker in workers:
            assert server.armed(worker.pid)["held"] == held
            worker.say()
            assert int(worker.wait_line("blocks").split()[-1]) > kills
            assert worker.wait() == 0


CONNECTED = (
    PRELUDE
    + """
early = TimerClient(unavailable="raise", budget=30)
early.connect()
say("connected")
sys.stdin.readline()
"""
)


@contextlib.contextmanager
def every_entry(path: str, body: str, *, after: float, before: str = "") -> Iterator[list[SpawnedWorker]]:
    """Workers with this body inside a timer, one for each way to arm it."""
    with contextlib.ExitStack() as stack:
        sources = [before + program(entry, body, after=after) + UNHARMED for entry in ENTRIES]
        yield [stack.enter_context(spawn_worker(source, path)) for source in sources]


UNHARMED = "\nsay('unharmed')\nsys.stdin.readline()\n"


def deadline_of(worker: SpawnedWorker) -> float:
    return float(worker.wait_line("deadline ").split()[-1])


@by_either_loop
def test_fault_03_armed_while_no_server_runs(loop: str) -> None:
    """The client had connected before. The timer is in the table, and the next server finds it there."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        with every_entry(path, HANGS["gil"], after=0.5, before=CONNECTED) as workers:
            for worker in workers:
                worker.wait_line("connected")
            server.kill()
            for worker in workers:
                worker.say()
            deadlines = [deadline_of(worker) for worker in workers]
            assert all(is_alive(worker.pid) for worker in workers)
            server.start()
            for worker, deadline in zip(workers, deadlines, strict=True):
                event = server.told("reaped", worker.pid)
                assert event["scope"] == "victim"
                assert event["late_s"] >= 0
                assert worker.wait() == -signal.SIGKILL
                assert monotonic() >= deadline


@by_either_loop
def test_fault_04_released_while_no_server_runs(loop: str) -> None:
    """Nobody is there to hear of the release, and its deadline passes. It is in the table."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        with every_entry(path, "sys.stdin.readline()", after=1.5) as workers:
            deadlines = [deadline_of(worker) for worker in workers]
            server.kill()
            for worker in workers:
                worker.say()
                worker.wait_line("left")
            clock_passes(max(deadlines))
            server.start()
            for worker in workers:
                worker.wait_line("unharmed")
                assert server.armed(worker.pid) == {}
            server.pass_by(max(deadlines))
            for worker in workers:
                worker.say()
                assert worker.wait() == 0
        assert {event["pid"] for event in server.events if event["event"] == "reaped"}.isdisjoint(
            worker.pid for worker in workers
        )


@by_either_loop
def test_fault_05_hung_while_the_server_was_down(loop: str) -> None:
    """The next server comes after the deadline: it reaps at once, since being down is not a stall."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        with every_entry(path, HANGS["gil"], after=1.0) as workers:
            deadlines = [deadline_of(worker) for worker in workers]
            server.kill()
            clock_passes(max(deadlines))
            assert all(is_alive(worker.pid) for worker in workers)
            server.start()
            for worker in workers:
                event = server.told("reaped", worker.pid)
                assert event["scope"] == "victim"
                assert event["late_s"] >= 0
                assert worker.wait() == -signal.SIGKILL


UPGRADE = (
    PRELUDE
    + """
def blocks_until(condition):
    while not condition():
        with expires(4.0, "block", client):
            pass

def work():
    blocks_until(lambda: not client.connected)
    say("no server")
    blocks_until(lambda: client.connected)
    say("a server again")
    with expires(60, "after the upgrade", client):
        sys.stdin.readline()

async def blocks_until_async(condition):
    while not condition():
        async with expires(4.0, "block", client):
            pass

async def work_async():
    await client.connect()
    await blocks_until_async(lambda: not client.connected)
    say("no server")
    await blocks_until_async(lambda: client.connected)
    say("a server again")
    async with expires(60, "after the upgrade", client):
        sys.stdin.readline()

logging.basicConfig(level=logging.ERROR, stream=sys.stdout)
if sys.argv[1] == "sync":
    client = TimerClient(unavailable="raise", shared=SHARED, budget=30)
    client.connect()
    client.acquire("held", float(sys.argv[2]))
    say("connected")
    work()
else:
    client = AsyncTimerClient(unavailable="raise", shared=SHARED, budget=30)
    async def main():
        await client.acquire("held", float(sys.argv[2]))
        say("connected")
        await work_async()
    asyncio.run(main())
say("done")
"""
)


@by_either_loop
def test_fault_10_an_upgrade_goes_unnoticed(loop: str) -> None:
    """SIGTERM, and then the next server: no worker sees an error, each is watched again."""
    with short_socket() as path, ServerProcess(path, loop) as server, contextlib.ExitStack() as stack:
        held = monotonic() + 1000
        workers = [
            stack.enter_context(spawn_worker(UPGRADE.replace("SHARED", "True"), path, kind, repr(held)))
            for kind in ("sync", "async")
        ]
        for worker in workers:
            worker.wait_line("connected")
        server.terminate()
        for worker in workers:
            worker.wait_line("no server")
        server.start()
        for worker in workers:
            server.told("adopted", worker.pid)
            worker.wait_line("a server again")
        for worker in workers:
            timers = server.armed(worker.pid)
            assert timers["held"] == held
            worker.say()
            worker.wait_line("done")
            assert worker.wait() == 0
            assert "ERROR" not in worker.output
            assert "Traceback" not in worker.output


def test_a_server_stopped_in_order_leaves_tables_of_the_living_only() -> None:
    """What fault 10 rests on: a table outlives its server if and only if its worker does."""
    with short_socket() as path, ServerProcess(path) as server, bystander():
        with spawn_worker(HOLDER, path, repr(monotonic() + 1000), "3") as living:
            with spawn_worker(HOLDER, path, repr(monotonic() + 1000), "3") as dying:
                living.wait_line("armed")
                dying.wait_line("armed")
            server.told("worker_gone", dying.pid)
            server.terminate()
            server.start()
            server.told("adopted", living.pid)
            assert [worker["pid"] for worker in status(path)["workers"]] == [living.pid]
