"""Faults 11 to 17: who a worker is, and that a signal goes to nobody else.

The laws of this file: a zombie is dead, whoever has still to wait for it. Faults 14 and 15, fork and exec,
are in ``tests/integration/test_reaping.py``.
"""

from __future__ import annotations

import os

import pytest

from aiotimer.process import start_time
from tests.programs import PRELUDE
from tests.serving import LOOPS, ServerProcess, ended, number, serving, wait_dead
from tests.support import short_socket, spawn_worker

ZOMBIE = (
    PRELUDE
    + """
pid = os.fork()
if pid == 0:
    client = TimerClient(unavailable="raise", budget=30)
    deadline = time.monotonic() + AFTER
    client.acquire("zombie's", deadline)
    say("deadline", deadline)
    say("child", os.getpid())
    os.read(int(sys.argv[1]), 1)
    os._exit(0)
sys.stdin.readline()  # and does not wait for its child
"""
)


async def test_fault_13_a_zombie_has_no_timers() -> None:
    read, write = os.pipe()
    async with serving() as server:
        source = ZOMBIE.replace("AFTER", "0.5")
        with spawn_worker(source, server.socket_path, str(read), pass_fds=[read]) as parent:
            pid = int(await number(parent, "child"))
            deadline = await number(parent, "deadline")
            assert server.armed(pid) == {"zombie's": deadline}
            os.write(write, b"x")  # it dies before its deadline
            await server.told("worker_gone", pid)
            assert start_time(pid) > 0, "it has not been waited for"
            await server.pass_by(deadline)
            assert start_time(pid) > 0
            assert pid not in server.acted
            assert len([e for e in server.events if e.worker_id and e.worker_id.pid == pid]) == 1
            parent.say()
            assert await ended(parent) == 0
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_13_a_zombie_at_expiry(loop: str) -> None:
    """It died while no server was there: the next one finds an expired timer, and a zombie."""
    read, write = os.pipe()
    with short_socket() as path, ServerProcess(path, loop) as server:
        source = ZOMBIE.replace("AFTER", "0.2")
        with spawn_worker(source, path, str(read), pass_fds=[read]) as parent:
            deadline = float(parent.wait_line("deadline ").split()[-1])
            pid = int(parent.wait_line("child ").split()[-1])
            server.kill()
            os.write(write, b"x")
            wait_dead(pid)
            server.start()
            server.pass_by(deadline)
            server.pass_by(deadline)
            assert start_time(pid) > 0, "it has not been waited for"
            about_it = [event["event"] for event in server.events if event["pid"] == pid]
            assert set(about_it) <= {"adopted", "worker_gone"}
            assert server.armed(pid) == {}
            parent.say()
            assert parent.wait() == 0
    os.close(read)
    os.close(write)
