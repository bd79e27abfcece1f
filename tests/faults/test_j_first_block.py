"""Faults 58 and 59: the first block of a program, whose server is stopped, busy, or only being started.

The laws of this file: what is armed is watched as soon as there is a server that can look, with the deadline
that it has, whoever connects, and whether or not the program can run Python by then. The countdown begins
when the block does. Nobody is told of what passes in a moment.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from time import monotonic

import pytest

from tests.fakes.places import private_runtime, short_socket
from tests.fakes.server import ServerProcess, stand_in
from tests.fakes.worker import HANGS, PRELUDE, all_ready, spawn_worker


@pytest.fixture(autouse=True)
def _own_runtime() -> Iterator[None]:
    with private_runtime():
        yield


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with short_socket() as path, ServerProcess(path) as server:
        yield server


FIRST = {
    "plain": """
with expires(AFTER, "first") as block:
    say("armed:", block.deadline)
    BODY
""",
    "decorated": """
@expires(AFTER, "first")
def function():
    say("armed:", time.monotonic() + AFTER)
    BODY
function()
""",
    "acquire": """
client = TimerClient()
deadline = time.monotonic() + AFTER
client.acquire("first", deadline)
say("armed:", deadline)
BODY
""",
    "socket-only": """
client = TimerClient(shared=False)
with expires(AFTER, "first", client) as block:
    say("armed:", block.deadline)
    BODY
""",
    "plain in a coroutine": """
async def main():
    with expires(AFTER, "first") as block:
        say("armed:", block.deadline)
        BODY
asyncio.run(main())
""",
    "async with": """
async def main():
    async with expires(AFTER, "first") as block:
        say("armed:", block.deadline)
        BODY
asyncio.run(main())
""",
    "with grace": """
async def main():
    async with expires(AFTER / 2, "first", grace=AFTER / 2) as block:
        say("armed:", block.deadline + AFTER / 2)
        BODY
asyncio.run(main())
""",
    "async acquire": """
async def main():
    client = AsyncTimerClient()
    deadline = time.monotonic() + AFTER
    await client.acquire("first", deadline)
    say("armed:", deadline)
    BODY
asyncio.run(main())
""",
}
"""The first timers of programs. Each says ``armed:`` and its deadline when it is armed."""


def first(shape: str, body: str, after: float) -> str:
    """Return a program whose first timer never ends."""
    return PRELUDE + FIRST[shape].replace("AFTER", repr(after)).replace("BODY", body)


# -- fault 58 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", FIRST)
def test_fault_58_the_server_is_stopped_meanwhile(server: ServerProcess, shape: str) -> None:
    server.freeze()
    with spawn_worker(first(shape, "time.sleep(1000)", 1.0), server.path) as worker:
        deadline = float(worker.wait_line("armed: ").split()[-1])
        server.thaw()
        assert worker.wait() == -signal.SIGKILL, worker.output
        reaped = server.told("reaped", worker.pid)
        assert reaped["scope"] == "first"
        assert monotonic() >= deadline


@pytest.mark.parametrize("shape", [shape for shape in FIRST if shape != "socket-only"])
def test_fault_58_the_program_cannot_run_python_by_then(server: ServerProcess, shape: str) -> None:
    """It has said HELLO, and hangs in C with the GIL: nothing of ours will run in it any more."""
    server.freeze()
    with spawn_worker(first(shape, HANGS["gil"], 1.0), server.path) as worker:
        worker.wait_line("armed: ")
        server.thaw()
        assert worker.wait() == -signal.SIGKILL, worker.output


@pytest.mark.parametrize("shape", FIRST)
def test_fault_58_left_in_time(server: ServerProcess, shape: str) -> None:
    """What was left before the server could look is not armed any more when it does."""
    server.freeze()
    code = first(shape, "pass", 1.0) + 'say("left"); sys.stdin.readline()\n'
    code = code.replace('say("left")', 'client.release("first"); say("left")') if shape == "acquire" else code
    if shape == "async acquire":
        code = code.replace("    pass\n", '    await client.release("first")\n')
    with spawn_worker(code, server.path) as worker:
        deadline = float(worker.wait_line("armed: ").split()[-1])
        worker.wait_line("left")
        server.thaw()
        server.pass_by(deadline)
        worker.say()
        assert worker.wait() == 0, worker.output


def test_fault_58_renewed_and_moved_meanwhile(server: ServerProcess) -> None:
    """What counts is the deadline that stands in the table, not the one that the block began with."""
    server.freeze()
    code = """
client = TimerClient()
client.acquire("moved", time.monotonic() + 0.2)
with expires(0.2, "renewed") as block:
    block.renew(1000)
    client.acquire("moved", time.monotonic() + 1000)
    say("both are moved")
    sys.stdin.readline()
"""
    with spawn_worker(PRELUDE + code, server.path) as worker:
        worker.wait_line("both are moved")
        server.thaw()
        server.pass_by(monotonic() + 0.3)
        assert set(server.armed(worker.pid)) == {"moved", "renewed"}
        worker.say()
        assert worker.wait() == 0, worker.output


def test_fault_58_the_tasks_can_be_inspected_then() -> None:
    """Its loop opens the channel on which it is asked as soon as it is connected."""
    with short_socket() as path, ServerProcess(path, reap="dump,KILL") as server:
        server.freeze()
        code = first("async with", "await asyncio.Event().wait()", 2.0)
        with spawn_worker(code, server.path) as worker:
            worker.wait_line("armed: ")
            server.thaw()
            assert worker.wait() == -signal.SIGKILL, worker.output
            assert server.told("reaped", worker.pid)["verdict"].startswith("awaiting (loop alive)")


def test_fault_58_said_once_and_taken_back_once(server: ServerProcess) -> None:
    server.freeze()
    code = """
logging.basicConfig(format="%(message)s", stream=sys.stdout)
with expires(1000, "a"): pass
say("is in it")
while True:
    with expires(1000, "b"): pass
"""
    with spawn_worker(PRELUDE + code, server.path) as worker:
        worker.wait_line("is in it")
        server.thaw()
        worker.wait_line("looks again")
        said = [line for line in worker.lines if "not being watched" in line or "looks again" in line]
        assert len(said) == 2, worker.output
        assert "no answer within 0.25 s" in said[0]
        assert "start one" not in said[0], "there is one, and it does not answer"


# -- fault 59 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["plain in a coroutine", "async with", "with grace"])
def test_fault_59_configured_in_a_running_loop(shape: str) -> None:
    code = first(shape, "time.sleep(1000)", 1.0)
    begin = "async def main():\n"
    code = code.replace(begin, begin + "    import aiotimer; aiotimer.configure()\n")
    with spawn_worker(code, None) as worker:
        worker.wait_line("armed: ")
        assert worker.wait() == -signal.SIGKILL, worker.output


def test_fault_59_nothing_of_the_start_is_charged_to_a_block() -> None:
    code = """
import aiotimer
async def main():
    aiotimer.configure()
    async with expires(0.1, "request", grace=5):
        say("body")
    say("left")
asyncio.run(main())
"""
    with spawn_worker(PRELUDE + code, None) as worker:
        worker.wait_line("left")
        assert worker.wait() == 0, worker.output
        assert worker.lines == ["body", "left"]


def all_said_by(code: str) -> list[str]:
    """Every line of a worker that runs to its end; its own last one is that it is watched."""
    with spawn_worker(PRELUDE + code, None) as worker:
        worker.wait_line("watched")
        assert worker.wait() == 0, worker.output
        return worker.lines


def test_fault_59_a_loop_does_not_wait_for_the_start_of_a_server() -> None:
    """While ``configure()`` and the first block run, it waits for nobody: shown by order, not by time."""
    code = """
import aiotimer
async def main():
    client = aiotimer.configure()
    with expires(1000, "first"):
        say("connected", client.connected)
        while not client.connected:
            await asyncio.sleep(0.01)
    say("watched")
asyncio.run(main())
"""
    assert all_said_by(code) == ["connected False", "watched"], "and nobody was told anything"


def test_fault_59_a_handler_waits_no_longer_than_its_budget_for_a_start() -> None:
    """The start of the server lasts until the handler is done: so the handler cannot have waited for it."""
    code = """
import subprocess
import aiotimer
from aiotimer.client import launch

gate = threading.Event()
start = launch.start_private_server
def starts_later(*arguments):
    assert gate.wait(60)
    return start(*arguments)
launch.start_private_server = starts_later

async def main():
    client = aiotimer.configure()
    async with expires(1000, "request"):
        say("is in it")
    gate.set()
    async with expires(1000, "request"):
        while not client.connected:
            await asyncio.sleep(0.01)
    say("watched")
asyncio.run(main())
"""
    assert all_said_by(code) == ["is in it", "watched"], "and nobody was told anything"


@pytest.mark.parametrize("unavailable", ["raise", "warn"])
def test_fault_59_a_server_that_cannot_be_started_in_the_background_is_reported(unavailable: str) -> None:
    """It is too late to raise that where the timer was armed: it is in the log."""
    code = """
import aiotimer
from aiotimer.client import launch
launch.python_command = lambda *arguments: ["/nonexistent"]
logging.basicConfig(format="%(message)s", stream=sys.stdout)
async def main():
    aiotimer.configure(unavailable=sys.argv[1], on_unwatched=lambda reason: say("told"))
    with expires(1000, "first"):
        await asyncio.sleep(1000)
asyncio.run(main())
"""
    with spawn_worker(PRELUDE + code, None, unavailable) as worker:
        worker.wait_line("told")
        (said,) = [line for line in worker.lines if "not being watched" in line]
        assert "the private server cannot be started" in said


def test_fault_59_who_cannot_be_reached_in_the_background_is_reported_to_the_strict_too() -> None:
    """A plain block on a loop gives a server some milliseconds; then it is a matter for the thread."""
    code = """
logging.basicConfig(format="%(message)s", stream=sys.stdout)
async def main():
    client = TimerClient(unavailable="raise")
    with expires(1000, "first", client):
        say("is in it")
        await asyncio.sleep(1000)
asyncio.run(main())
"""
    with short_socket() as path, stand_in(path, None), spawn_worker(PRELUDE + code, path) as worker:
        worker.wait_line("is in it")
        assert "no answer within" in worker.wait_line("not being watched")


def test_fault_59_eight_workers_at_once(server: ServerProcess) -> None:
    code = (
        PRELUDE
        + """
say("ready")
sys.stdin.readline()
async def main():
    with expires(1.0, "first"):
        time.sleep(1000)
asyncio.run(main())
"""
    )
    workers = [spawn_worker(code, server.path) for _ in range(8)]
    try:
        all_ready(*workers)
        for worker in workers:
            worker.say()
        for worker in workers:
            assert worker.wait() == -signal.SIGKILL, worker.output
    finally:
        for worker in workers:
            worker.__exit__()
