"""Fault 15, where no connection can tell of it: a program that calls exec after its server has lost it.

The law of this file: what a program armed ends with it, whether or not its server could know at once.
"""

from __future__ import annotations

import pytest

from tests.serving import LOOPS, ServerProcess, ended, is_alive, line, number, serving
from tests.support import short_socket, spawn_worker

AFTER = 2.0
"""Seconds that the old program has for its exec."""

OLD = f"""
    import os, sys
    from aiotimer import expires

    block = expires({AFTER}, "old program").__enter__()
    print("deadline", repr(block.deadline))
    sys.stdin.readline()
    os.closerange(3, 65536)
    print("closed")
    sys.stdin.readline()
    program = "import sys; print('new program'); sys.stdin.readline()"
    os.execv(sys.executable, [sys.executable, "-c", program])
"""


async def test_fault_15_exec_after_the_connection_has_ended() -> None:
    async with serving() as server:
        with spawn_worker(OLD, server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            worker.say()
            await line(worker, "closed")
            await server.until(lambda: not server.status()["workers"][0]["connected"], "the end")
            assert server.armed(worker.pid) == {"old program": deadline}, "that alone releases nothing"
            worker.say()
            await line(worker, "new program")
            await server.pass_by(deadline)
            await server.told("exec", worker.pid)
            assert worker.pid not in server.acted
            assert is_alive(worker.pid)
            worker.say()
            assert await ended(worker) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_15_exec_while_no_server_runs(loop: str) -> None:
    with short_socket() as path, ServerProcess(path, loop) as server:
        with spawn_worker(OLD, path) as worker:
            deadline = float(worker.wait_line("deadline ").split()[-1])
            server.kill()
            worker.say()
            worker.wait_line("closed")
            worker.say()
            worker.wait_line("new program")
            server.start()
            server.told("exec", worker.pid)
            server.pass_by(deadline)
            assert is_alive(worker.pid)
            assert {event["event"] for event in server.events if event["pid"] == worker.pid} <= {
                "adopted",
                "exec",
            }
            worker.say()
            assert worker.wait() == 0
