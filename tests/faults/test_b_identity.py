"""Faults 11 to 17: who a worker is, and that a signal goes to nobody else.

The laws of this file: pids are really reused, programs really replaced, namespaces real; a zombie is dead,
whoever has still to wait for it. What needs privileges is skipped without them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from aiotimer import Refused, TimerClient
from aiotimer.process import name_of, start_time
from tests.programs import HANGS, PRELUDE, program
from tests.serving import (
    LOOPS,
    ServerProcess,
    assert_reaped,
    ended,
    is_alive,
    line,
    number,
    serving,
    wait_dead,
)
from tests.support import SpawnedWorker, short_socket, spawn_worker

# -- pids that are used again ---------------------------------------------------------------------------

REUSE = (
    PRELUDE
    + """
import struct

libc = ctypes.CDLL(None, use_errno=True)
wanted = ctypes.c_int(int(sys.argv[1]))
# clone_args (clone(2)): exit_signal is the 5th word, set_tid and its size the 9th and 10th
arguments = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
parent = os.getpid()
pid = libc.syscall(435, arguments, len(arguments))
if pid < 0:
    say("no", ctypes.get_errno())
    sys.exit()
if pid == 0:
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.execvp("sleep", ["sleep", "1000"])
say("reused", pid)
sys.stdin.readline()
"""
)


@functools.cache
def may_choose_pids() -> bool:
    """Whether this user may make a process with a pid of its choice."""
    with spawn_worker("import os", None) as gone:
        gone.wait()
    with spawn_worker(REUSE, None, str(gone.pid)) as helper:
        return helper.wait_line("").startswith("reused")


@contextlib.contextmanager
def reused(pid: int) -> Iterator[None]:
    """Have another process with the pid of one that is gone."""
    with spawn_worker(REUSE, None, str(pid)) as helper:
        helper.wait_line(f"reused {pid}")
        yield


def needs_chosen_pids() -> None:
    """Skip the test if pids cannot be chosen."""
    if not may_choose_pids():
        pytest.skip("choosing a pid needs CAP_CHECKPOINT_RESTORE")


ENDS = """
client = TimerClient(unavailable="raise", shared=SHARED, budget=30)
deadline = time.monotonic() + 1.5
client.acquire("victim", deadline)
say("deadline", repr(deadline))
sys.stdin.readline()
os._exit(0)
"""


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
@pytest.mark.parametrize("restart", [False, True], ids=["fault 11", "fault 12"])
def test_fault_11_and_12_a_reused_pid(restart: bool, shared: bool) -> None:
    """The server, frozen or down, learns of the end only when another process has the pid."""
    needs_chosen_pids()
    source = PRELUDE + ENDS.replace("SHARED", repr(shared))
    with short_socket() as path, ServerProcess(path) as server:
        with spawn_worker(source, path) as worker:
            deadline = float(worker.wait_line("deadline ").split()[1])
            assert server.armed(worker.pid) == {"victim": deadline}
            if restart:
                server.kill()
            else:
                server.freeze()
            worker.say()
            assert worker.wait() == 0
            with reused(worker.pid):
                if restart:
                    server.start()
                else:
                    server.thaw()
                server.pass_by(deadline)
                assert is_alive(worker.pid)
                assert name_of(worker.pid) == "sleep"
                assert server.armed(worker.pid) == {}
                told = {event["event"] for event in server.events if event["pid"] == worker.pid}
                assert told <= {"worker_gone"}


# -- zombies --------------------------------------------------------------------------------------------

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


# -- fork and exec by hand ------------------------------------------------------------------------------
# Forks that run no hook (a C extension's) are not tested here: for them MADV_DONTFORK keeps the table out of
# the child, whose next entry is a segmentation fault of the child alone. docs/explanation documents that.

FORK = (
    PRELUDE
    + """
def child():
    block.__exit__(None, None, None)  # the block it was forked in
    say("left in child", block.scope)
    with expires(60, "child"):
        say("child", os.getpid())
        sys.stdin.readline()
    CHILD_ENDS

block = expires(60, "parent")
block.__enter__()
inner = expires(60, "inner")
inner.__enter__()
pid = os.fork()
if pid == 0:
    child()
    os._exit(0)
inner.__exit__(None, None, None)
say("parent has left inner")
_, status = os.waitpid(pid, 0)
say("waited", os.waitstatus_to_exitcode(status))
with expires(60, "after"):
    say("parent goes on", os.getpid())
    sys.stdin.readline()
"""
)


async def test_fault_14_fork_inside_a_block() -> None:
    """either side leaves its own blocks only, and either side's timers are its own."""
    source = FORK.replace("CHILD_ENDS", "")
    async with serving() as server:
        with spawn_worker(source, server.socket_path) as parent:
            await line(parent, "left in child parent")
            pid = int(await number(parent, "child"))
            await line(parent, "parent has left inner")
            # The child has left "parent" and not "inner", the parent the other way round.
            assert server.armed(parent.pid).keys() == {"parent"}
            assert server.armed(pid).keys() == {"child"}
            parent.say()
            assert await number(parent, "waited") == 0
            await line(parent, "parent goes on")
            assert server.armed(parent.pid).keys() == {"parent", "after"}
            assert server.armed(pid) == {}
            parent.say()
            assert await ended(parent) == 0
        assert server.all_told("reaped") == []


async def test_fault_14_the_child_of_a_fork_hangs() -> None:
    """the child is reaped for its own timer, and the parent's timers stand."""
    source = FORK.replace(
        "CHILD_ENDS",
        "import ctypes\n"
        "    with expires(0.3, 'victim') as own:\n"
        "        say('deadline', repr(own.deadline))\n"
        "        ctypes.PyDLL(None).sleep(1000)",
    )
    async with serving() as server:
        with spawn_worker(source, server.socket_path) as parent:
            pid = int(await number(parent, "child"))
            parent.say()
            deadline = await number(parent, "deadline")
            assert await number(parent, "waited") == -signal.SIGKILL
            await assert_reaped(server, pid, deadline)
            await line(parent, "parent goes on")
            assert server.armed(parent.pid).keys() == {"parent", "after"}


PARENT_HANGS = (
    PRELUDE
    + """
with expires(0.5, "victim") as block:
    pid = os.fork()
    if pid == 0:
        say("child", os.getpid())
        sys.stdin.readline()
        with expires(60, "child"):
            say("child goes on")
            sys.stdin.readline()
        os._exit(0)
    say("deadline", block.deadline)
    ctypes.PyDLL(None).sleep(1000)
"""
)


async def test_fault_14_the_parent_of_a_fork_hangs() -> None:
    """the other way round. The child had its parent's timers, and lives past their deadlines."""
    async with serving() as server:
        with spawn_worker(PARENT_HANGS, server.socket_path) as parent:
            pid = int(await number(parent, "child"))
            deadline = await number(parent, "deadline")
            await assert_reaped(server, parent.pid, deadline)
            await server.pass_by(deadline)
            parent.say()
            await line(parent, "child goes on")
            assert server.armed(pid).keys() == {"child"}
            assert server.all_told("reaped", pid) == []
            parent.say()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_15_exec_after_arming(shared: bool) -> None:
    """the new program survives the old one's deadline."""
    source = f"""
        import os, sys
        from aiotimer import TimerClient, expires

        client = TimerClient(unavailable="raise", shared={shared}, budget=30)
        block = expires(0.5, "old program", client).__enter__()
        print("deadline", repr(block.deadline))
        program = "import sys; print('new program'); sys.stdin.readline()"
        os.execv(sys.executable, [sys.executable, "-c", program])
    """
    async with serving() as server:
        with spawn_worker(source, server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            event = await server.told("exec", worker.pid)
            assert event.name
            assert server.armed(worker.pid) == {}
            await line(worker, "new program")
            await server.pass_by(deadline)
            assert is_alive(worker.pid)
            worker.say()
            assert await ended(worker) == 0
        assert server.all_told("reaped", worker.pid) == []


async def test_fault_15_the_new_program_arms_timers_of_its_own() -> None:
    """And the program after the exec is watched as any other."""
    source = f"""
        import os, sys
        from aiotimer import expires

        block = expires(60, "old program").__enter__()
        os.execv(sys.executable, [sys.executable, "-c", {program("with", HANGS["gil"])!r}])
    """
    async with serving() as server:
        with spawn_worker(source, server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            assert await ended(worker) == -signal.SIGKILL
            await assert_reaped(server, worker.pid, deadline)
            assert server.all_told("exec", worker.pid)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_15_closing_every_descriptor_is_not_exec(shared: bool) -> None:
    """a library that closes what it does not own must not disarm anything."""
    hang = "os.closerange(3, 65536)\nprint('closed')\nctypes.PyDLL(None).sleep(1000)"
    async with serving() as server:
        with spawn_worker(program("with", hang, shared=shared), server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            await line(worker, "closed")
            assert await ended(worker) == -signal.SIGKILL
            await assert_reaped(server, worker.pid, deadline)
        assert server.all_told("exec", worker.pid) == []


SERVER_FORKS = (
    PRELUDE
    + """
from aiotimer import TimerServer

async def main():
    async with TimerServer():
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                say("forked")
                sys.stdin.readline()
                os._exit(0)
        say("serving")
        await asyncio.Event().wait()
asyncio.run(main())
"""
)


async def test_fault_14_a_server_whose_process_forks_and_dies() -> None:
    """Its forks hold neither the lock nor the socket: the next server starts at once."""
    with short_socket() as path:
        with spawn_worker(SERVER_FORKS, path) as first:
            await line(first, "forked")
            await line(first, "serving")
            first.process.kill()
            first.process.wait()
            async with serving(path) as server:
                with spawn_worker(program("with", HANGS["gil"]), path) as worker:
                    deadline = await number(worker, "deadline")
                    await assert_reaped(server, worker.pid, deadline)
            for _ in range(3):
                first.say()


# -- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [") R 1 1 1", "a) S 1 (b", "new\nline"])
def test_fault_16_a_name_that_looks_like_fields(name: str) -> None:
    """Its start time is read right at HELLO and again by the next server, or it would not be adopted."""
    body = "sys.stdin.readline()\n" + HANGS["gil"]
    rename = f"ctypes.CDLL(None).prctl(15, {name.encode()!r})\n"  # PR_SET_NAME
    source = program("with", body, after=2.0).replace("client =", rename + "client =", 1)
    with short_socket() as path, ServerProcess(path) as server:
        with spawn_worker(source, path) as worker:
            worker.wait_line("deadline ")
            assert name_of(worker.pid) == name
            assert server.armed(worker.pid)
            server.kill()
            server.start()
            assert server.told("adopted", worker.pid)["name"] == name
            worker.say()
            assert worker.wait() == -signal.SIGKILL
            assert server.told("reaped", worker.pid)["name"] == name


# -- namespaces -----------------------------------------------------------------------------------------


def in_namespace(*options: str, source: str, path: str, arguments: tuple[str, ...] = ()) -> SpawnedWorker:
    """Start a program in namespaces of its own (unshare(1)); skip the test where that is not permitted."""
    command = ["unshare", "--fork", "--kill-child", *options]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"not permitted: {' '.join(command)}")
    command += [sys.executable, "-c", textwrap.dedent(source), *arguments]
    return spawn_worker(f"import os; os.execvp('unshare', {command!r})", path)


SERVE = """
import os, sys
command = [sys.executable, "-m", "aiotimer", "serve", "--socket", os.environ["AIOTIMER_SOCKET"]]
os.execv(sys.executable, command)
"""


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
def test_fault_17_a_client_that_the_server_cannot_see(shared: bool) -> None:
    """The kernel tells the server pid 0. It refuses, says why, and nothing counts as armed."""
    with short_socket() as path:
        with in_namespace("--pid", "--mount-proc", source=SERVE, path=path) as server:
            server.wait_line("serving on")
            client = TimerClient(path, unavailable="raise", shared=shared, budget=30)
            with pytest.raises(Refused, match="pid namespace"):
                client.acquire("never", 1e9)
            client.close()
            assert "pid namespace" in server.wait_line("refused")


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_17_a_client_in_a_child_pid_namespace(shared: bool) -> None:
    """It calls itself 1, and the server reaps the process that it is outside."""
    source = program("with", "say('pid', os.getpid())\n" + HANGS["gil"], shared=shared)
    async with serving() as server:
        with in_namespace("--pid", "--mount-proc", source=source, path=server.socket_path) as outer:
            deadline = await number(outer, "deadline")
            assert await number(outer, "pid") == 1
            event = await server.told("reaped")
            assert event.worker_id is not None
            await assert_reaped(server, event.worker_id.pid, deadline)
            assert event.worker_id.pid not in (1, outer.pid)
            await ended(outer)
        assert len(server.all_told("reaped")) == 1


@pytest.mark.parametrize("entry", ["with", "async with", "acquire", "async acquire"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_17_a_client_in_a_time_namespace(entry: str, shared: bool) -> None:
    """Its clock is 1000 s ahead; it is reaped at its own deadline, which is 1000 s less here."""
    source = program(entry, HANGS["gil"], shared=shared)
    async with serving() as server:
        with in_namespace("--time", "--monotonic", "1000", source=source, path=server.socket_path) as outer:
            deadline = await number(outer, "deadline")
            event = await server.told("reaped")
            assert event.worker_id is not None
            await assert_reaped(server, event.worker_id.pid, deadline - 1000)
            await ended(outer)
