"""A worker that hangs is reaped, however it hangs, however it armed its timer, however it was started.

The laws of this file: every worker is a process, and what kills it is the server; none is reaped early, which
is read off the moment at which the server acted; the healthy neighbour of every victim survives.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

import pytest

from tests.programs import ENTRIES, HANGS, PRELUDE, program
from tests.serving import WatchfulServer, ended, is_alive, line, number, serving
from tests.support import spawn_worker

HEALTHY = """
import sys, threading
from aiotimer import expires

def work():
    global blocks
    while not done.is_set():
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


async def assert_reaped(server: WatchfulServer, pid: int, deadline: float, scope: str = "victim") -> None:
    """A process was killed, for this timer, once, and not before its deadline."""
    event = await server.told("reaped", pid)
    assert event.scope == scope
    assert event.late_s is not None
    assert event.late_s >= 0.0
    assert server.acted[pid] >= deadline
    assert [worker.pid for worker in server.reaps].count(pid) == 1
    assert server.armed(pid) == {}


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


@pytest.mark.parametrize("entry", ["with", "async with"])
async def test_fault_41_hung_in_synchronous_code(entry: str) -> None:
    await assert_all_reaped([program(entry, hang) for hang in HANGS.values()])


async def test_fault_41_hung_in_an_await() -> None:
    hang = "await asyncio.Event().wait()"
    await assert_all_reaped([program("async with", hang, shared=shared) for shared in (True, False)])


async def test_fault_41_hung_after_an_acquire() -> None:
    await assert_all_reaped(
        [program(entry, HANGS["gil"]) for entry in ("acquire", "async acquire", "with on a loop")]
    )


async def test_fault_41_hung_without_shared_memory() -> None:
    # A plain `with` on a loop waits five milliseconds for an acknowledgement, and goes on: not here.
    waiting = [entry for entry in ENTRIES if entry != "with on a loop"]
    await assert_all_reaped([program(entry, HANGS["gil"], shared=False) for entry in waiting])


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
async def test_hung_worker_of_multiprocessing(method: str) -> None:
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


async def test_fork_inside_a_block() -> None:
    """Fault 14: either side leaves its own blocks only, and either side's timers are its own."""
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


async def test_hung_child_of_a_fork_inside_a_block() -> None:
    """Fault 14: the child is reaped for its own timer, and the parent's timers stand."""
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


async def test_hung_parent_of_a_fork_inside_a_block() -> None:
    """Fault 14: the other way round. The child had its parent's timers, and lives past their deadlines."""
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


async def test_exec_after_arming() -> None:
    """Fault 15: the new program survives the old one's deadline."""
    source = """
        import os, sys
        from aiotimer import expires

        block = expires(0.5, "old program").__enter__()
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


async def test_new_program_arms_timers_of_its_own() -> None:
    """Fault 15, and the program after the exec is watched as any other."""
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
async def test_closing_every_descriptor_is_not_exec(shared: bool) -> None:
    """Fault 15: a library that closes what it does not own must not disarm anything."""
    hang = "os.closerange(3, 65536)\nprint('closed')\nctypes.PyDLL(None).sleep(1000)"
    async with serving() as server:
        with spawn_worker(program("with", hang, shared=shared), server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            await line(worker, "closed")
            assert await ended(worker) == -signal.SIGKILL
            await assert_reaped(server, worker.pid, deadline)
        assert server.all_told("exec", worker.pid) == []
