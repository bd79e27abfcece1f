"""Faults 11, 12, 13 and 16: who a worker is, and that a signal goes to nobody else.

The laws of this file: a worker is one process and never a pid, whoever has the pid next; a zombie is dead,
whoever has still to wait for it; a name is whatever a process likes. Fork and exec, faults 14 and 15, are in
``test_b_fork_and_exec.py``, and fault 17 is in ``test_b_namespaces.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer._linux.procfs import start_time
from tests.fakes.places import short_socket
from tests.fakes.server import LOOPS, ServerProcess, assert_reaped, serving
from tests.fakes.worker import (
    HANGS,
    PRELUDE,
    SpawnedWorker,
    ended,
    is_alive,
    number,
    program,
    spawn_worker,
    wait_dead,
)

# -- a pid that is used again ------------------------------------------------------------------------------

SHORT_LIVED = (
    PRELUDE
    + """
client = TimerClient(unavailable="raise", budget=30, shared=SHARED)
deadline = time.monotonic() + 2.0
client.acquire("the former one's", deadline)
say("deadline", deadline)
sys.stdin.readline()
os._exit(0)
"""
)

SUCCESSOR = """
import ctypes, os, struct, sys

pid = int(sys.argv[1])
set_tid = (ctypes.c_int * 1)(pid)
# struct clone_args (linux/sched.h): flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
# set_tid, set_tid_size, cgroup
arguments = struct.pack("=11Q", 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(set_tid), 1, 0)
libc = ctypes.CDLL(None, use_errno=True)
child = libc.syscall(435, arguments, len(arguments))  # clone3
if child == 0:
    os.execv("/bin/sleep", ["sleep", "1000"])
if child < 0:
    print("refused", os.strerror(ctypes.get_errno()))
else:
    print("running", child)
    sys.stdin.read()
    os.kill(child, 9)
    os.waitpid(child, 0)
"""
"""Starts a process with the pid it is given, and ends it at the end of its own input."""


@contextlib.contextmanager
def successor(pid: int) -> Iterator[SpawnedWorker]:
    """Let a new process have a pid that has become free."""
    with spawn_worker(SUCCESSOR, None, str(pid)) as starter:
        said = starter.wait_line("r")
        if said == "refused Operation not permitted":
            pytest.skip("choosing a new process's pid needs CAP_CHECKPOINT_RESTORE")
        assert said == f"running {pid}"
        yield starter
        assert starter.process.stdin is not None
        starter.process.stdin.close()
        starter.wait()


def former(path: str, shared: bool) -> SpawnedWorker:
    return spawn_worker(SHORT_LIVED.replace("SHARED", repr(shared)), path)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_11_a_reused_pid(shared: bool) -> None:
    """A worker ends, its pid is used again, its timer comes due: the new process is untouched."""
    async with serving() as server:
        with former(server.socket_path, shared) as worker:
            deadline = await number(worker, "deadline")
            worker.say()
            assert await ended(worker) == 0
        with successor(worker.pid):
            await server.pass_by(deadline)
            assert is_alive(worker.pid)
            assert worker.pid not in server.acted
            assert server.armed(worker.pid) == {}


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_11_a_pid_reused_before_the_server_notices(loop: str) -> None:
    """The server stood still when the one died and the other began: it has everything to find out at once."""
    with short_socket() as path, ServerProcess(path, loop) as server, former(path, True) as worker:
        deadline = float(worker.wait_line("deadline ").split()[-1])
        server.freeze()
        worker.say()
        assert worker.wait() == 0
        with successor(worker.pid):
            server.thaw()
            server.pass_by(deadline)
            assert is_alive(worker.pid)
            assert server.armed(worker.pid) == {}
            kinds = [event["event"] for event in server.events if event["pid"] == worker.pid]
            # The deadline may be found first, and then that there is nobody to signal.
            assert kinds in (["worker_gone"], ["expired", "worker_gone"])


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
def test_fault_12_a_pid_reused_across_a_restart(loop: str, shared: bool, runtime_directory: Path) -> None:
    """A table that names a pid of today and a process of yesterday is not adopted."""
    with short_socket() as path, ServerProcess(path, loop) as server, former(path, shared) as worker:
        deadline = float(worker.wait_line("deadline ").split()[-1])
        server.kill()
        worker.say()
        assert worker.wait() == 0
        tables = list(runtime_directory.rglob("*-*.s*"))
        assert len(tables) == 1
        with successor(worker.pid):
            server.start()
            server.pass_by(deadline)
            assert is_alive(worker.pid)
            assert server.armed(worker.pid) == {}
            assert [event for event in server.events if event["pid"] == worker.pid] == []
            assert not tables[0].exists()


# -- a zombie ----------------------------------------------------------------------------------------------

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
        source = ZOMBIE.replace("AFTER", "2.0")
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
        source = ZOMBIE.replace("AFTER", "2.0")
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


# -- a name --------------------------------------------------------------------------------------------------

NAME = ") R 1 1 1"
"""Whoever looks for the end of the name too early reads that the process started at tick 1, or so."""

CALL_ITSELF = f"ctypes.CDLL(None).prctl(15, {NAME.encode()!r})  # PR_SET_NAME"


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_16_a_name_like_a_line_of_proc(shared: bool) -> None:
    source = program("with", HANGS["gil"], after=2.0, shared=shared, first=CALL_ITSELF)
    async with serving() as server:
        with spawn_worker(source, server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            (known,) = server.status()["workers"]
            stat = Path(f"/proc/{worker.pid}/stat").read_text()
            assert f"({NAME}) " in stat
            assert known["name"] == NAME
            assert start_time(worker.pid) == int(stat.removeprefix(f"{worker.pid} ({NAME}) ").split()[19])
            assert await ended(worker) == -signal.SIGKILL
            event = await assert_reaped(server, worker.pid, deadline)
            assert event.name == NAME
            assert event.worker_id is not None
            assert event.worker_id.started > 1


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_16_its_table_is_adopted(loop: str) -> None:
    """The next server reads the name's start time as this one did, and so does the one after a new name."""
    hang = "sys.stdin.readline()\n" + CALL_ITSELF + "\nsay('renamed')\n" + HANGS["gil"]
    source = program("with", hang, after=2.0)
    with short_socket() as path, ServerProcess(path, loop) as server:
        with spawn_worker(source, path) as worker:
            worker.wait_line("deadline ")
            server.kill()
            worker.say()
            worker.wait_line("renamed")
            server.start()
            assert server.told("adopted", worker.pid)["name"] == NAME
            assert worker.wait() == -signal.SIGKILL
            assert server.told("reaped", worker.pid)["name"] == NAME
