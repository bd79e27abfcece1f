"""Faults 14, 15 and 60: fork and exec, in all their forms.

The laws of this file: a child begins without timers and without its parent's connection, and what either
does leaves the other's timers alone; a new program survives what the old one had armed; and closing
descriptors is neither.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.server import LOOPS, ServerProcess, assert_reaped, serving
from tests.fakes.worker import HANGS, PRELUDE, ended, is_alive, line, number, program, spawn_worker

# -- workers started by multiprocessing ----------------------------------------------------------------

LAUNCHER = (
    PRELUDE
    + """
import multiprocessing

with expires(60, "launcher") as block:
    child = multiprocessing.get_context(sys.argv[1]).Process(target=exec, args=(sys.argv[2], {}))
    child.start()
    say("child", child.pid)
    child.join()
    say("exitcode", child.exitcode)
    sys.stdin.readline()
"""
)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
async def test_fault_14_hung_worker_of_multiprocessing(method: str) -> None:
    victim = program("with", HANGS["gil"])
    async with serving() as server:
        with spawn_worker(LAUNCHER, server.socket_path, method, victim) as launcher:
            pid = int(await number(launcher, "child"))
            deadline = await number(launcher, "deadline")
            assert int(await number(launcher, "exitcode")) == -signal.SIGKILL
            await assert_reaped(server, pid, deadline)
            assert list(server.armed(launcher.pid)) == ["launcher"]
            launcher.say()
            assert await ended(launcher) == 0


# -- fork and exec by hand --------------------------------------------------------------------------------

IN_C = "ctypes.PyDLL(None).fork()"
"""A fork that runs no hook, as uWSGI's or a library's."""

however_forked = pytest.mark.parametrize("fork", ["os.fork()", IN_C])

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


@however_forked
async def test_fault_14_fork_inside_a_block(fork: str) -> None:
    """Either side leaves its own blocks only, and either side's timers are its own."""
    source = FORK.replace("CHILD_ENDS", "").replace("os.fork()", fork)
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


@however_forked
async def test_fault_14_hung_child_of_a_fork_inside_a_block(fork: str) -> None:
    """The child is reaped for its own timer, and the parent's timers stand."""
    source = FORK.replace(
        "CHILD_ENDS",
        "import ctypes\n"
        "    with expires(0.3, 'victim') as own:\n"
        "        say('deadline', repr(own.deadline))\n"
        "        ctypes.PyDLL(None).sleep(1000)",
    ).replace("os.fork()", fork)
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


@however_forked
async def test_fault_14_hung_parent_of_a_fork_inside_a_block(fork: str) -> None:
    """The other way round. The child had its parent's timers, and lives past their deadlines."""
    async with serving() as server:
        with spawn_worker(PARENT_HANGS.replace("os.fork()", fork), server.socket_path) as parent:
            pid = int(await number(parent, "child"))
            deadline = await number(parent, "deadline")
            await assert_reaped(server, parent.pid, deadline)
            await server.pass_by(deadline)
            parent.say()
            await line(parent, "child goes on")
            assert server.armed(pid).keys() == {"child"}
            assert server.all_told("reaped", pid) == []
            parent.say()


FORK_IN_C = (
    PRELUDE
    + """
import aiotimer, threading
from aiotimer import AsyncTimerClient

options = dict(unavailable="raise", budget=30)
client, by_socket = TimerClient(**options), TimerClient(shared=False, **options)
async_client = AsyncTimerClient(**options)
client.acquire("acquired", 1e9)
by_socket.acquire("by socket", 1e9)
known, made = expires(60, "known", client), expires(60, "made", by_socket)
with known:
    pass
block = expires(60, "parent", client)
block.__enter__()

def all_at_once():
    barrier = threading.Barrier(5)
    def enter(n):
        barrier.wait()
        with expires(60, f"thread {n}", client):
            barrier.wait()
            if n == 4:
                goes_on()
            barrier.wait()
    threads = [threading.Thread(target=enter, args=(n,)) for n in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

async def awaits():
    async with expires(60, "child", async_client):
        goes_on()

def goes_on():
    say("goes on")
    sys.stdin.readline()

def blocks(*arguments):
    with expires(60, *arguments):
        goes_on()

def renews():
    block.renew()
    goes_on()

def does(*calls):
    [call() for call in calls]
    goes_on()

pid = ctypes.PyDLL(None).fork()
if not pid:
    say("child", os.getpid())
    FIRST
    say("ends")
    sys.exit(3)  # with all that an interpreter does when it ends
_, status = os.waitpid(pid, 0)
say("code", os.waitstatus_to_exitcode(status))
with expires(60, "after", client):
    say("parent goes on")
    sys.stdin.readline()
"""
)

FIRSTS: dict[str, tuple[str, set[str]]] = {
    "a block of a new name": ("blocks('child', client)", {"child"}),
    "a block of a known name": ("blocks('known', client)", {"known"}),
    "a block of the parent's": ("with known: goes_on()", {"known"}),
    "a block of the parent's, by socket": ("with made: goes_on()", {"made"}),
    "a block by socket": ("blocks('child', by_socket)", {"child"}),
    "a block of the default client": (
        "aiotimer.configure(TimerClient(**options)); blocks('child')",
        {"child"},
    ),
    "async with": ("asyncio.run(awaits())", {"child"}),
    "acquire": ("does(lambda: client.acquire('child', 1e9))", {"child"}),
    "acquire by socket": ("does(lambda: by_socket.acquire('child', 1e9))", {"child"}),
    "connect": ("does(client.connect)", set()),
    "releases": ("does(lambda: client.release('acquired'), lambda: by_socket.release('by socket'))", set()),
    "renew": ("renews()", {"parent"}),
    "a renewal that is left": ("block.renew(); does(lambda: block.__exit__(None, None, None))", set()),
    "five threads": ("all_at_once()", {f"thread {n}" for n in range(5)}),
    "a fork of its own": ("os.fork() and os._exit(os.waitstatus_to_exitcode(os.wait()[1]))", set()),
    "a client's end": ("does(client.close, by_socket.close)", set()),
    "nothing": ("goes_on()", set()),
}


@pytest.mark.parametrize("first", FIRSTS)
async def test_fault_60_whatever_a_child_forked_in_c_does_first(first: str) -> None:
    """It lives, what it arms is its own, and its parent's timers are as they were."""
    source, armed = FIRSTS[first]
    async with serving() as server:
        with spawn_worker(FORK_IN_C.replace("FIRST", source), server.socket_path) as parent:
            pid = int(await number(parent, "child"))
            if "fork" not in first:
                await line(parent, "goes on")
                assert server.armed(pid).keys() == armed
                assert server.armed(parent.pid).keys() == {"acquired", "by socket", "parent"}
                parent.say()
            await line(parent, "ends")
            assert await number(parent, "code") == 3
            await line(parent, "parent goes on")
            assert server.armed(parent.pid).keys() == {"acquired", "by socket", "parent", "after"}
            parent.say()
            assert await ended(parent) == 0
        assert server.all_told("reaped") == []
        assert not [text for text in parent.lines if "Error" in text or "watched" in text], parent.output


EMBEDDED = (
    PRELUDE
    + """
from aiotimer import TimerServer
import multiprocessing

def work():
    say("worker", os.getpid())
    while True:
        time.sleep(1000)

async def main():
    async with TimerServer(sys.argv[1]):
        with expires(60, "server's own", TimerClient(sys.argv[1], budget=0.1)):
            multiprocessing.get_context("fork").Process(target=work).start()
            if os.fork() == 0:
                work()
            say("both")
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
)


async def test_fault_14_workers_forked_by_an_embedded_server_do_not_hold_its_socket() -> None:
    """It dies, and they live on: its socket and lock are free, and its table of its own process goes."""
    workers: list[int] = []
    with short_socket() as path, spawn_worker(EMBEDDED, path, path) as embedded:
        try:
            while len(workers) < 2:
                said = await asyncio.to_thread(embedded.wait_line, "worker ")
                workers.append(int(said.split()[-1]))
            assert await asyncio.to_thread(embedded.process.wait, PATIENCE) == -signal.SIGKILL
            async with serving(path) as server:
                with spawn_worker(program("with", HANGS["gil"]), path) as victim:
                    await assert_reaped(server, victim.pid, await number(victim, "deadline"))
                assert [is_alive(pid) for pid in workers] == [True, True]
                assert server.all_told("adopted") == []
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)


# -- exec --------------------------------------------------------------------------------------------------

NEW_PROGRAM = "import sys; print('new program'); sys.stdin.readline()"

EXEC = (
    PRELUDE
    + f"""
block = expires(AFTER, "old program", TimerClient(unavailable="raise", budget=30, shared=SHARED)).__enter__()
say("deadline", block.deadline)
if "wait" in sys.argv:
    sys.stdin.readline()
if "close" in sys.argv:
    os.closerange(3, 65536)
    say("closed")
    sys.stdin.readline()
os.execv(sys.executable, [sys.executable, "-c", {NEW_PROGRAM!r}])
"""
)


def exec_program(shared: bool, after: float = 0.5) -> str:
    return EXEC.replace("SHARED", repr(shared)).replace("AFTER", repr(after))


BOTH = pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])


@BOTH
async def test_fault_15_exec_after_arming(shared: bool) -> None:
    """The new program survives the old one's deadline."""
    async with serving() as server:
        with spawn_worker(exec_program(shared), server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            event = await server.told("exec", worker.pid)
            assert event.name
            assert server.armed(worker.pid) == {}
            await line(worker, "new program")
            await server.pass_by(deadline)
            assert is_alive(worker.pid)
            worker.say()
            assert await ended(worker) == 0
        assert worker.pid not in server.acted


@BOTH
async def test_fault_15_exec_without_a_connection(shared: bool) -> None:
    """Its sockets were closed before: nothing tells the server, which finds out before it would signal."""
    async with serving() as server:
        with spawn_worker(exec_program(shared), server.socket_path, "close") as worker:
            deadline = await number(worker, "deadline")
            await line(worker, "closed")
            await server.until(lambda: not server.status()["workers"][0]["connected"], "the end of it")
            assert server.armed(worker.pid).keys() == {"old program"}
            worker.say()
            await line(worker, "new program")
            await server.told("exec", worker.pid)  # once its silence has lasted, if it has no shared table
            await server.pass_by(deadline)
            assert is_alive(worker.pid)
            assert worker.pid not in server.acted
            assert len(server.all_told("exec", worker.pid)) == 1


@pytest.mark.parametrize("loop", LOOPS)
@BOTH
def test_fault_15_exec_while_no_server_runs(shared: bool, loop: str) -> None:
    """The next server finds a table of that process, and another program in it."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        with spawn_worker(exec_program(shared, after=60), path, "wait") as worker:
            worker.wait_line("deadline ")
            server.kill()
            worker.say()
            worker.wait_line("new program")
            server.start()
            server.told("exec", worker.pid)
            assert server.armed(worker.pid) == {}
            assert [event["event"] for event in server.events if event["pid"] == worker.pid] == ["exec"]
            assert is_alive(worker.pid)


EXEC_ON_SIGTERM = (
    PRELUDE
    + f"""
new = [sys.executable, "-c", {NEW_PROGRAM!r}]
signal.signal(signal.SIGTERM, lambda *_: os.execv(new[0], new))
with expires(0.5, "old program", TimerClient(unavailable="raise", budget=30, shared=SHARED)):
    if "close" in sys.argv:
        os.closerange(3, 65536)
    time.sleep(1000)
"""
)


@BOTH
@pytest.mark.parametrize("connection", ["open", "close"])
async def test_fault_80_exec_between_two_steps_of_a_ladder(shared: bool, connection: str) -> None:
    """The new program is not sent the next signal, whether or not a connection has told of the exec."""
    source = EXEC_ON_SIGTERM.replace("SHARED", repr(shared))
    async with serving(reap="TERM:3,KILL") as server:
        with spawn_worker(source, server.socket_path, connection) as worker:
            event = await server.told("worker_gone", worker.pid)
            assert event.detail.startswith("it runs another program by now")
            assert server.all_told("exec", worker.pid)
            assert server.armed(worker.pid) == {}
            await line(worker, "new program")
            worker.say()
            assert await ended(worker) == 0
        assert server.all_told("reaped") == []


NEW_PROGRAM_WITH_TIMERS = f"""
import sys
from aiotimer import TimerClient, expires

with expires(60, "new program", TimerClient(unavailable="raise", budget=30, shared=SHARED)):
    {NEW_PROGRAM}
"""


@BOTH
async def test_fault_15_of_two_programs_of_a_process_only_one_has_timers(shared: bool) -> None:
    """Nothing has told the server of the exec when the new program says HELLO."""
    new = NEW_PROGRAM_WITH_TIMERS.replace("SHARED", repr(shared))
    source = exec_program(shared, after=60).replace(repr(NEW_PROGRAM), repr(new))
    async with serving() as server:
        with spawn_worker(source, server.socket_path, "close") as worker:
            await line(worker, "closed")
            await server.until(lambda: not server.status()["workers"][0]["connected"], "the end of it")
            worker.say()
            await line(worker, "new program")
            assert server.armed(worker.pid).keys() == {"new program"}
            assert len(server.all_told("exec", worker.pid)) == 1


HELLO_AND_EXEC = (
    PRELUDE
    + f"""
import socket
from aiotimer._core import wire

deadline = time.monotonic() + 0.1
hello = wire.Hello(
    version=wire.PROTOCOL_VERSION, release="0", pid=os.getpid(), shared=False,
    time_namespace=int(os.stat("/proc/self/ns/time").st_ino), clock=time.monotonic(),
    armed=(("old program", deadline),),
)
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["AIOTIMER_SOCKET"])
connection.sendall(wire.encode(hello))
say("deadline", deadline)
os.execv(sys.executable, [sys.executable, "-c", {NEW_PROGRAM!r}])
"""
)


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_15_exec_before_hello_is_read(loop: str) -> None:
    """What the old program said in its HELLO is not armed on the new one."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        server.freeze()
        with spawn_worker(HELLO_AND_EXEC, path) as worker:
            deadline = float(worker.wait_line("deadline ").split()[-1])
            worker.wait_line("new program")
            server.thaw()
            server.pass_by(deadline)
            assert is_alive(worker.pid)
            assert server.armed(worker.pid) == {}


async def test_fault_15_the_new_program_arms_timers_of_its_own() -> None:
    """The program after the exec is watched as any other."""
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
    """A library that closes what it does not own must not disarm anything."""
    hang = "os.closerange(3, 65536)\nprint('closed')\nctypes.PyDLL(None).sleep(1000)"
    async with serving() as server:
        with spawn_worker(program("with", hang, shared=shared), server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            await line(worker, "closed")
            assert await ended(worker) == -signal.SIGKILL
            await assert_reaped(server, worker.pid, deadline)
        assert server.all_told("exec", worker.pid) == []
