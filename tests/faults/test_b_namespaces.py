"""Faults 17 and 71: workers and servers in different pid and time namespaces, and a worker that is pid 1.

The laws of this file: a worker that the server cannot see is told so at HELLO and is never armed; one that
it sees by another number is the one that dies; and a deadline is the same moment on both sides of a time
namespace, however it was armed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiotimer.server.pinned_process import classify
from tests.fakes.places import short_socket
from tests.fakes.server import assert_reaped, serving
from tests.fakes.worker import (
    HANGS,
    PRELUDE,
    SpawnedWorker,
    ended,
    is_alive,
    line,
    number,
    program,
    spawn_worker,
)

PID_NAMESPACE = ("--pid", "--fork", "--kill-child", "--mount-proc")
"""Options of unshare(1): the command is process 1 of a namespace, and dies with unshare."""

AHEAD = 100_000
"""Seconds by which the clock of a time namespace is ahead: no deadline here is so far away."""

TIME_NAMESPACE = ("--time", "--monotonic", str(AHEAD), "--fork", "--kill-child")


def in_namespace(options: tuple[str, ...], code: str, path: str | None, *arguments: str) -> SpawnedWorker:
    """Start ``python -c code`` in namespaces of its own, if that is permitted here."""
    try:
        subprocess.run(["unshare", *options, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"unshare {' '.join(options)} is not permitted here")
    launcher = "import os, sys; os.execvp('unshare', ['unshare', *sys.argv[1:]])"
    interpreter = ("--", sys.executable, "-c", code, *arguments)
    return spawn_worker(launcher, path, *options, *interpreter)


def child_of(pid: int) -> int:
    """Return the only child of a process, here ``unshare``."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


# -- pid namespaces ----------------------------------------------------------------------------------------

SERVER = """
import sys
from aiotimer.cli import main
main(["serve", "--socket", sys.argv[1], *sys.argv[2:]])
"""

OUTSIDER = (
    PRELUDE
    + """
from aiotimer import Refused

client = TimerClient(unavailable="raise", budget=30, shared=SHARED)
try:
    client.acquire("outsider's", time.monotonic() + 0.1)
except Refused as error:
    say("refused", error)
else:
    say("armed")
sys.stdin.readline()
"""
)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_fault_17_a_worker_that_the_server_cannot_see(loop: str, shared: bool) -> None:
    """The server is in a child namespace and would know it as pid 0: refused, and said by both sides."""
    with short_socket() as path, in_namespace(PID_NAMESPACE, SERVER, path, path, "--loop", loop) as server:
        server.wait_line("serving on")
        with spawn_worker(OUTSIDER.replace("SHARED", repr(shared)), path) as worker:
            said = worker.wait_line("refused")
            assert "not visible in the server's pid namespace" in said
            assert "not visible in the server's pid namespace" in server.wait_line("refused")
            worker.say()
            assert worker.wait() == 0
            assert "armed" not in worker.lines


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_17_a_worker_in_a_child_namespace(shared: bool) -> None:
    """It calls itself 1. The server knows better, and process 1 of its own namespace is unharmed."""
    body = "say('pid', os.getpid())\n" + HANGS["gil"]
    source = program("with", body, shared=shared, told=True)
    async with serving() as server:
        with in_namespace(PID_NAMESPACE, source, server.socket_path) as unshare:
            await line(unshare, "ready")
            (known,) = server.status()["workers"]
            assert known["pid"] == child_of(unshare.pid)
            unshare.say()
            deadline = await number(unshare, "deadline")
            assert await number(unshare, "pid") == 1
            await assert_reaped(server, known["pid"], deadline)
            await ended(unshare)
        assert is_alive(1)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_fault_17_a_server_that_sees_the_processes_of_another_namespace(loop: str) -> None:
    """Without a /proc of its namespace it would read of other processes: it does not start."""
    options = tuple(option for option in PID_NAMESPACE if option != "--mount-proc")
    with short_socket() as path, in_namespace(options, SERVER, path, path, "--loop", loop) as server:
        server.wait_line("/proc is another pid namespace's")
        assert server.wait() == 70
        assert not Path(path).exists()


# -- pid 1 of a container, and its server in there -----------------------------------------------------------

CONFIGURES = (
    PRELUDE
    + """
import aiotimer
from aiotimer.client.control import ping
PREPARE
aiotimer.configure()
client = TimerClient(shared=SHARED, unavailable="raise", budget=30)
say("pid", os.getpid())
with expires(0.3, "victim", client):
    BODY
"""
)

LOSES_ITS_SERVER = "os.kill(ping(os.environ['AIOTIMER_SOCKET']).pid, signal.SIGKILL)\n    " + HANGS["gil"]


def pid_1(body: str, *, shared: bool = True, prepare: str = "") -> SpawnedWorker:
    """Start a worker with a private server, as pid 1 of a namespace; what it ends with, ``unshare`` does."""
    source = CONFIGURES.replace("BODY", body).replace("SHARED", repr(shared)).replace("PREPARE", prepare)
    return in_namespace(PID_NAMESPACE, source, None)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
@pytest.mark.parametrize(
    "body",
    [HANGS["gil"], "time.sleep(1000)", "while True: pass", LOSES_ITS_SERVER],
    ids=["gil", "sleeping", "busy", "its server is killed"],
)
def test_fault_71_pid_1_is_dead_at_its_deadline(body: str, shared: bool) -> None:
    """The kernel drops a SIGKILL from inside: it exits at a signal of its own. That is told before."""
    with pid_1(body, shared=shared) as container:
        container.wait_line("pid 1")
        assert signal.SIGRTMIN < container.wait() < signal.SIGRTMAX, container.output
        (told,) = [line for line in container.lines if "reaped" in line]
        assert "pid=1 " in told
        assert "it exits at a signal of its own, and all of its pid namespace with it" in told


def test_fault_71_pid_1_that_has_no_signal_to_spare_is_told_so() -> None:
    uses_all = "for n in range(signal.SIGRTMIN, signal.SIGRTMAX + 1): signal.signal(n, signal.SIG_IGN)"
    with pid_1("say('goes on')", prepare=uses_all) as container:
        assert container.wait() == 0
        told = [line for line in container.lines if "it has no signal to spare" in line]
        assert len(told) == 1
        assert "docker run --init" in told[0]


def test_fault_71_why_pid_1_does_not_die() -> None:
    assert classify(1).startswith("it is pid 1 of this pid namespace, which the kernel lets nobody in there")


# -- time namespaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
@pytest.mark.parametrize("entry", ["with", "acquire", "async with", "async acquire"])
async def test_fault_17_a_worker_in_a_time_namespace(entry: str, shared: bool) -> None:
    """Its deadline is at the right moment of the server's clock: not early, and not hours late."""
    async with serving() as server:
        source = program(entry, HANGS["gil"], shared=shared)
        with in_namespace(TIME_NAMESPACE, source, server.socket_path) as unshare:
            deadline = await number(unshare, "deadline")
            await server.until(lambda: server.all_told("reaped"), "the worker's end")
            (event,) = server.all_told("reaped")
            assert event.worker_id is not None
            await assert_reaped(server, event.worker_id.pid, deadline - AHEAD)
            await ended(unshare)
