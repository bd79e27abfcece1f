"""Faults 1, 3, 4, 5, 9, 10, 48: the server is killed, stopped, started. An armed timer ends all the same.

The laws of this file: the server is a process and dies for real; what was armed before it died, and what is
armed and released while none is there, counts when the next one comes. Fault 2 is in
``test_a_crash_loop.py``, 6 and 7 are in ``test_a_state.py``, 8 and the rest of 9 in ``test_a_restart.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from aiotimer.client.control import status
from aiotimer.evidence.store import load, runs
from tests.fakes.clock import PATIENCE, clock_passes
from tests.fakes.places import short_socket
from tests.fakes.server import LOOPS, ServerProcess, armed
from tests.fakes.worker import (
    AIOTIMER,
    ENTRIES,
    HANGS,
    PRELUDE,
    UNHURRIED,
    SpawnedWorker,
    all_ready,
    arm_all,
    environment,
    is_alive,
    program,
    spawn_worker,
)

by_either_loop = pytest.mark.parametrize("loop", LOOPS)

HERD = (
    PRELUDE
    + """
import struct
from aiotimer._core import wire  # loaded here, once, rather than in every child

client = TimerClient(unavailable="raise", budget=30)

def hold(number, base, orders):
    for timer in range(20):
        client.acquire(f"timer {timer}", base + 20 * number + timer)
    say("armed", os.getpid(), number)
    if number % 5 == 0:
        client.acquire("soon", *struct.unpack("=d", os.read(orders, 8)))
        say("soon", os.getpid())
    sys.stdin.readline()
    os._exit(0)

base, orders = float(sys.argv[1]), int(sys.argv[2])
pids = []
for number in range(50):
    pid = os.fork()
    if pid == 0:
        hold(number, base, orders)
    pids.append(pid)
for pid in pids[::5]:
    say("ended", pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.stdin.readline()
"""
)


def test_fault_01_a_thousand_timers_of_fifty_processes_survive_sigkill() -> None:
    assert_all_survive("asyncio", signal.SIGKILL)


def test_fault_09_a_thousand_timers_survive_whatever_kills_the_server() -> None:
    """As fault 1, by another signal, on the other loop. The OOM killer is in ``test_a_restart.py``."""
    assert_all_survive("uvloop", signal.SIGSEGV)


def assert_all_survive(loop: str, signum: signal.Signals) -> None:
    """After a server's death and a restart all timers are there, and those that are due are reaped."""
    base = monotonic() + 1000
    with short_socket() as path, ServerProcess(path, loop) as server, contextlib.ExitStack() as stack:
        orders, order = os.pipe()
        stack.callback(os.close, orders)
        stack.callback(os.close, order)
        with spawn_worker(HERD, path, repr(base), str(orders), pass_fds=(orders,)) as herd:
            pids = {}
            for _ in range(50):
                _armed, text, number = herd.wait_line("armed").split()
                pids[int(number)] = int(text)
            expected = {
                pid: {f"timer {timer}": base + 20 * number + timer for timer in range(20)}
                for number, pid in pids.items()
            }
            assert sum(map(len, expected.values())) == 1000
            hung = {pids[number] for number in range(0, 50, 5)}
            due = monotonic() + UNHURRIED  # the first server must be dead by then
            os.write(order, struct.pack("=d", due) * len(hung))
            for _ in hung:
                herd.wait_line("soon")

            server.kill(signum)
            server.start()

            report = status(path)
            if monotonic() < due:
                soon = {pid: {"soon": due} if pid in hung else {} for pid in expected}
                assert {pid: armed(report, pid) for pid in expected} == {
                    p: t | soon[p] for p, t in expected.items()
                }
            for pid in hung:
                event = server.told("reaped", pid)
                assert event["scope"] == "soon"
                assert event["late_s"] >= 0
            assert {herd.wait_line("ended") for _ in hung} == {f"ended {pid} -9" for pid in hung}
            report = status(path)
            assert {worker["pid"] for worker in report["workers"]} == expected.keys() - hung
            for pid in expected.keys() - hung:
                assert is_alive(pid)
                assert armed(report, pid) == expected[pid]


@contextlib.contextmanager
def every_entry(path: str, body: str, *, after: float, shared: bool = True) -> Iterator[list[SpawnedWorker]]:
    """Connected workers that run this body inside a timer when told to, one for each way to arm it."""
    with contextlib.ExitStack() as stack:
        # A plain `with` on a loop waits five milliseconds for an acknowledgement, and goes on: not here.
        entries = [entry for entry in ENTRIES if shared or entry != "with on a loop"]
        sources = [program(one, body, after=after, shared=shared, told=True) + UNHARMED for one in entries]
        workers = [stack.enter_context(spawn_worker(source, path)) for source in sources]
        all_ready(*workers)
        yield workers


UNHARMED = "\nsay('unharmed')\nsys.stdin.readline()\n"


@by_either_loop
def test_fault_03_armed_while_no_server_runs(loop: str) -> None:
    """The client had connected before. The timer is in the table, and the next server finds it there."""
    assert_reaped_by_the_next_server(loop, after=0.5, armed_before=False)


@by_either_loop
def test_fault_05_hung_while_the_server_was_down(loop: str) -> None:
    """The next server comes after the deadline: it reaps at once, since being down is not a stall."""
    assert_reaped_by_the_next_server(loop, after=UNHURRIED, armed_before=True)


def assert_reaped_by_the_next_server(loop: str, *, after: float, armed_before: bool) -> None:
    with short_socket() as path, ServerProcess(path, loop) as server:
        with every_entry(path, HANGS["gil"], after=after) as workers:
            deadlines = arm_all(*workers) if armed_before else []
            server.kill()
            if armed_before:
                clock_passes(max(deadlines))
            else:
                deadlines = arm_all(*workers)
            assert all(is_alive(worker.pid) for worker in workers)
            server.start()
            for worker, deadline in zip(workers, deadlines, strict=True):
                event = server.told("reaped", worker.pid)
                assert event["scope"] == "victim"
                assert event["late_s"] >= 0
                assert worker.wait() == -signal.SIGKILL
                assert monotonic() >= deadline


def member(rank: int, body: str, **more: Any) -> str:
    """Return a member of the run 4711, of four, that has said so, and runs a body when told to."""
    said = f"aiotimer.configure(None, group='4711', rank={rank}, size=4)"
    return program("with", body, told=True, first=f"import aiotimer; {said}\n", **more)


@by_either_loop
@pytest.mark.parametrize("late", [False, True], ids=["in time", "when it was due"])
def test_fault_05_a_member_of_a_run_that_hung_while_the_server_was_down_is_known(
    loop: str, late: bool
) -> None:
    """None of them can say anew which one it is: all of them keep the GIL. Rank 3 never came."""
    hangs = HANGS["gil"]
    sources = [member(0, hangs, after=600), member(1, f"say('here'); {hangs}", after=600)]
    with (
        short_socket() as path,
        ServerProcess(path, loop, reap="dump,KILL", evidence_budget=PATIENCE) as server,
        contextlib.ExitStack() as stack,
    ):
        workers = [stack.enter_context(spawn_worker(source, path)) for source in sources]
        victim = stack.enter_context(spawn_worker(member(2, hangs, after=UNHURRIED), path))
        all_ready(*workers, victim)
        *_others, deadline = arm_all(*workers, victim)
        server.kill()
        if late:
            clock_passes(deadline)
        server.start()
        called, reaped = server.told("run"), server.told("reaped", victim.pid)
        server.terminate()  # what it has told is written then
        assert (called["run"], called["detail"]) == ("4711", "of 4 members 2 armed, 1 expired, 1 missing")
        record = load(Path(reaped["evidence"]))
        assert (record.name, record.run) == ("rank 2/4", "4711")
        page = subprocess.run(
            [*AIOTIMER, "why", str(victim.pid)],
            capture_output=True, text=True, env=environment(COLUMNS="200"), timeout=PATIENCE, check=True,
        ).stdout  # fmt: skip
        assert page.startswith(f"worker {victim.pid} (rank 2/4, on "), page
        assert "4711: aiotimer why --run 4711" in page
        found = next(runs(Path(called["evidence"]).parent))
        assert [(one["rank"], one["pid"], one["state"]) for one in found["members"]] == [
            (0, workers[0].pid, "armed"), (1, workers[1].pid, "armed"), (2, victim.pid, "expired"),
            (3, 0, "missing"),
        ]  # fmt: skip


@by_either_loop
def test_fault_04_released_while_no_server_runs(loop: str) -> None:
    """Nobody is there to hear of the release, and its deadline passes. It is in the table."""
    assert_unharmed_by_the_next_server(loop, shared=True)


def test_fault_48_the_server_dies_inside_the_block() -> None:
    """No exception leaves the block. Without a table the client says later that it has left it."""
    assert_unharmed_by_the_next_server("asyncio", shared=False)


def assert_unharmed_by_the_next_server(loop: str, *, shared: bool) -> None:
    with short_socket() as path, ServerProcess(path, loop) as server:
        with every_entry(path, "sys.stdin.readline()", after=UNHURRIED, shared=shared) as workers:
            deadlines = arm_all(*workers)
            server.kill()
            for worker in workers:
                worker.say()
                worker.wait_line("left")
                worker.wait_line("unharmed")
            if shared:
                clock_passes(max(deadlines))
            server.start()
            server.pass_by(max(deadlines))
            for worker in workers:
                assert server.armed(worker.pid) == {}
            for worker in workers:
                worker.say()
                assert worker.wait() == 0
                assert "Traceback" not in worker.output
        reaped = {event["pid"] for event in server.events if event["event"] == "reaped"}
        assert reaped.isdisjoint(worker.pid for worker in workers)


UPGRADE = (
    PRELUDE
    + """
def blocks_until(condition):
    while not condition():
        with expires(4.0, "block", client):
            pass

logging.basicConfig(level=logging.ERROR, stream=sys.stdout)
client = TimerClient(unavailable="raise", budget=30)
client.acquire("held", float(sys.argv[1]))
say("connected")
blocks_until(lambda: not client.connected)
say("no server")
blocks_until(lambda: client.connected)
say("a server again")
with expires(60, "after the upgrade", client):
    sys.stdin.readline()
say("done")
"""
)


@by_either_loop
def test_fault_10_an_upgrade_goes_unnoticed(loop: str) -> None:
    """SIGTERM, and then the next server: no worker sees an error, each is watched again."""
    with short_socket() as path, ServerProcess(path, loop) as server, contextlib.ExitStack() as stack:
        held = monotonic() + 1000
        workers = [stack.enter_context(spawn_worker(UPGRADE, path, repr(held))) for _ in range(2)]
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
