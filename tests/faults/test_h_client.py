"""Faults 47 to 53 but 48: what a worker notices of a server that is absent, stuck, or dies meanwhile.

The laws of this file: leaving a block never fails for want of a server; entering one fails only if the client
was told to; what goes wrong is said once.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic
from typing import Any, cast

import pytest

from aiotimer import AsyncTimerClient, ServerUnavailable, TimerClient, expires
from aiotimer.client.clients import Unavailable
from aiotimer.client.control import status
from aiotimer.client.memory import identity, is_open
from tests.fakes.clock import PATIENCE
from tests.fakes.memory import timers_of
from tests.fakes.places import short_socket
from tests.fakes.server import ServerProcess, ServerThread, serving
from tests.fakes.worker import PRELUDE, spawn_worker

POLICIES = ("raise", "warn", "ignore")


# -- fault 47 ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody() -> Iterator[tuple[str, Callable[[], int]]]:
    with short_socket() as path:
        yield path, lambda: 0


@contextlib.contextmanager
def stale() -> Iterator[tuple[str, Callable[[], int]]]:
    with short_socket() as path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
        yield path, lambda: 0


@contextlib.contextmanager
def stuck() -> Iterator[tuple[str, Callable[[], int]]]:
    """A server that listens and says nothing; with how many clients have knocked."""
    with short_socket() as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(100)
        listener.setblocking(False)

        def knocks() -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    count += 1
            return count

        yield path, knocks


absences = pytest.mark.parametrize("absence", [nobody, stale, stuck], ids=lambda a: a.__name__)
policies = pytest.mark.parametrize("policy", POLICIES)
sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])


async def enter_async(client: AsyncTimerClient) -> None:
    async with expires(60, "step", client):
        pass


async def acquire_async(client: AsyncTimerClient) -> None:
    await client.acquire("step", monotonic() + 60)
    await client.release("step")


async def enter_with_grace(client: AsyncTimerClient) -> None:
    async with expires(60, "step", client, grace=5):
        pass


def enter(client: TimerClient) -> None:
    with expires(60, "step", client):
        pass


def acquire(client: TimerClient) -> None:
    client.acquire("step", monotonic() + 60)
    client.release("step")


def assert_said(records: list[logging.LogRecord], policy: str) -> None:
    assert len(records) == (policy == "warn"), [record.getMessage() for record in records]
    assert all("timers are not being watched" in record.getMessage() for record in records)


@absences
@policies
@sharing
@pytest.mark.parametrize("use", [enter, acquire, enter_async, enter_with_grace, acquire_async])
async def test_fault_47_no_server(
    use: Callable[[Any], Awaitable[None] | None],
    shared: bool,
    policy: str,
    absence: Callable[[], contextlib.AbstractContextManager[tuple[str, Callable[[], int]]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hundred steps, each within the budget; after the first failure none of them even tries."""
    kind = AsyncTimerClient if inspect.iscoroutinefunction(use) else TimerClient

    async def do(client: TimerClient | AsyncTimerClient) -> None:
        done = use(client) if kind is AsyncTimerClient else asyncio.to_thread(use, client)
        assert done is not None
        await done

    with absence() as (path, knocks):
        client = kind(path, unavailable=cast(Unavailable, policy), shared=shared, budget=0.02)
        if policy == "raise":
            with pytest.raises(ServerUnavailable) as caught:
                await do(client)
            assert caught.value.path == path
        else:
            for _ in range(100):
                await do(client)
        assert knocks() <= 3, "it tries once a second"
        assert not client.connected
        assert client._queue.table is None or not timers_of(client._queue.table)
        assert_said([record for record in caplog.records if record.name == "aiotimer"], policy)


@sharing
@pytest.mark.parametrize("use", [enter, acquire])
def test_fault_47_another_client_has_just_met_it(
    use: Callable[[TimerClient], None], shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that ignores it makes the attempt of this second: who wants to be warned is, all the same."""
    told: list[str | None] = []
    with nobody() as (path, _knocks):
        ignores = TimerClient(path, unavailable="ignore", shared=shared, budget=0.02)
        use(ignores)
        assert_said(caplog.records, "ignore")
        warns = TimerClient(path, shared=shared, budget=0.02, on_unwatched=told.append)
        use(ignores)
        use(warns)
        use(ignores)
        assert_said(caplog.records, "warn")
        assert len(told) == 1
        ignores.close()
        warns.close()


@sharing
async def test_fault_47_a_server_that_comes_later(shared: bool) -> None:
    """Without a server the worker goes on, and with the first one that comes it is protected."""
    with short_socket() as path:
        client = AsyncTimerClient(path, unavailable="ignore", shared=shared)
        await acquire_async(client)
        assert not client.connected
        async with serving(path) as server:
            while not client.connected:  # an attempt a second
                async with expires(60, "step", client):
                    await asyncio.sleep(0)
            async with expires(60, "watched", client):
                assert server.armed(os.getpid()).keys() == {"watched"}
            await client.aclose()


# -- fault 52 ------------------------------------------------------------------------------------------

ENDINGS = {
    "sys.exit": """
with expires(600, "s", client):
    sys.exit(7)
""",
    "os._exit": """
with expires(600, "s", client):
    os._exit(7)
""",
    "never left": """
block = expires(600, "s", client).__enter__()
sys.exit(7)
""",
    "daemon thread": """
inside = threading.Event()

def work():
    with expires(600, "s", client):
        inside.set()
        while True:
            with expires(600, "inner", client):
                pass

threading.Thread(target=work, daemon=True).start()
inside.wait()
sys.exit(7)
""",
    "atexit": """
import atexit

@atexit.register
def last():
    with expires(600, "s", client):
        client.acquire("t", time.monotonic() + 600)
        os.write(1, b"at exit\\n")

sys.exit(7)
""",
    "a task inside": """
async def work():
    async with expires(600, "s", AsyncTimerClient(shared=SHARED)):
        await asyncio.Event().wait()

async def main():
    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    sys.exit(7)

asyncio.run(main())
""",
    "signal": """
def end(*_):
    sys.exit(7)

signal.signal(signal.SIGTERM, end)
with expires(600, "s", client):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()
""",
}


@sharing
@pytest.mark.parametrize("outage", [False, True], ids=["server", "outage"])
def test_fault_52_the_interpreter_ends_inside_a_block(shared: bool, outage: bool) -> None:
    """It ends: nothing waits for a lock, a thread or a server. No timer is left, and nobody is reaped."""
    made = "client = TimerClient(shared=SHARED, budget=0.1)\nclient.connect()\n"
    wait = "say('ready')\nsys.stdin.readline()\n"
    with short_socket() as path, ServerProcess(path) as server, contextlib.ExitStack() as stack:
        programs = {
            ending: (PRELUDE + made + wait + source).replace("SHARED", repr(shared))
            for ending, source in ENDINGS.items()
        }
        workers = {
            ending: stack.enter_context(spawn_worker(source, path)) for ending, source in programs.items()
        }
        for worker in workers.values():
            worker.wait_line("ready")
        if outage:
            server.kill()
        for worker in workers.values():
            worker.say()
        assert {ending: worker.wait() for ending, worker in workers.items()} == dict.fromkeys(ENDINGS, 7)
        assert "at exit" in workers["atexit"].output
        assert not [ending for ending, worker in workers.items() if "Fatal" in worker.output]
        if outage:
            server.start()
        server.pass_by(0.0)
        assert status(path)["workers"] == []
        assert [event["event"] for event in server.events if event["event"] == "reaped"] == ["reaped"]


@sharing
def test_fault_79_the_interpreter_ends_slowly(shared: bool) -> None:
    """A daemon thread that is stopped inside a block, for good, is not hung; what is armed for the end is."""
    source = (
        PRELUDE
        + f"""
import atexit

@atexit.register
def end():  # before there is a client: it runs last
    with expires(600, "at the end", client):
        say("entered", client.connected)
        sys.stdin.readline()
        client.release("exit")
        say("released")
        sys.stdin.readline()

client = TimerClient(shared={shared}, budget={PATIENCE})
client.connect()
begun = threading.Event()

def work():
    while True:
        with expires(600, "step", client):
            begun.set()

threading.Thread(target=work, daemon=True).start()
begun.wait()
never_left = expires(600, "never left", client).__enter__()
client.acquire("exit", time.monotonic() + 600)

class Slow:
    def __del__(self, write=os.write, read=os.read):
        write(1, b"finalising\\n")
        read(0, 1)

sys.slow = Slow()
"""
    )
    with ServerThread() as server, spawn_worker(source, server.path) as worker:
        assert worker.wait_line("entered") == "entered True"
        server.wait_armed(["exit"], worker.pid)
        worker.say()
        worker.wait_line("released")
        server.wait_armed([], worker.pid)
        worker.say()
        worker.wait_line("finalising")
        server.wait_armed([], worker.pid)
        worker.say()
        assert worker.wait() == 0
    assert "Traceback" not in worker.output
    assert worker.output.count("timers are not being watched") == 1, "the one in the main thread"


# -- the process itself --------------------------------------------------------------------------------


@sharing
def test_fault_47_no_address_space(shared: bool) -> None:
    """What nobody reads takes little; a table that cannot be mapped is as good as a server that is absent."""
    source = (
        PRELUDE
        + f"""
import resource
from aiotimer.client import shared_table, socket_only
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 40 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
client = TimerClient(shared={shared}, unavailable="ignore", budget={PATIENCE})
told = TimerClient(shared={shared}, budget={PATIENCE})
for one in (client, told, told):
    with expires(600, "step", one), expires(600, "step", one), expires(600, "other", one):
        pass
say("left")
"""
    )
    with ServerThread() as server, spawn_worker(source, server.path) as worker:
        worker.wait_line("left")
        assert worker.wait() == 0
    assert worker.output.count("timers are not being watched") == shared


@sharing
def test_fault_47_every_descriptor_is_closed(shared: bool) -> None:
    """The table is still there: the next block is watched as before, and nobody says the contrary."""
    source = f"""
client = TimerClient(shared={shared}, budget={PATIENCE}, on_unwatched=lambda reason: say("unwatched", reason))
with expires(600, "before", client):
    os.closerange(3, 65536)
    with expires(0.9, "after", client) as block:
        block.renew(300)
        say("inside", client.connected)
        sys.stdin.readline()
        for number in range(100):
            client.acquire(str(number), time.monotonic() + 600)
        say("grown")
        sys.stdin.readline()
"""
    with ServerThread() as server, spawn_worker(PRELUDE + source, server.path) as worker:
        assert worker.wait_line("inside") == "inside True"
        server.wait_armed(["after", "before"], worker.pid)
        worker.say()
        worker.wait_line("grown")
        server.wait_armed(sorted(["after", "before", *map(str, range(100))]), worker.pid)
        worker.say()
        assert worker.wait() == 0
    assert "unwatched" not in worker.output
    assert "not being watched" not in worker.output


def test_fault_87_a_file_with_the_inode_of_ours_is_another_one() -> None:
    """Two file systems number their files from one."""
    with open_directory("/proc") as proc, open_directory("/sys") as sys_:
        assert os.fstat(proc).st_ino == os.fstat(sys_).st_ino, "the test is blind"
        assert is_open(proc, identity(proc))
        assert not is_open(sys_, identity(proc))


@contextlib.contextmanager
def open_directory(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


SUB_INTERPRETERS = {
    "sub-interpreter": """
from concurrent import interpreters

one = interpreters.create()
one.exec(BODY)
one.close()
""",
    "codec": """
import sys

sys.modules["msgspec"] = None
exec(BODY)
""",
}


@pytest.mark.parametrize("environment", ["a server", "none"])
@pytest.mark.parametrize("interpreter", SUB_INTERPRETERS)
def test_fault_47_an_interpreter_that_cannot_load_the_codec(interpreter: str, environment: str) -> None:
    """Its blocks are entered and left, and it has been said once that nobody watches them."""
    if interpreter == "sub-interpreter" and sys.version_info < (3, 14):
        pytest.skip("the standard library has no sub-interpreters before CPython 3.14")
    body = """
import asyncio, time
from aiotimer import AiotimerError, TimerClient, configure, expires

client = configure()

@expires(5)
def step():
    return 7

async def main():
    async with expires(5, grace=5):
        client.acquire("t", time.monotonic() + 5)
        client.release("t")

assert [step(), step()] == [7, 7]
asyncio.run(main())
try:
    with expires(5, client=TimerClient("/nowhere", unavailable="raise")):
        raise AssertionError
except AiotimerError as error:
    print("raised", error)
configure(None)
print("done")
"""
    with ServerThread() as server:
        path = server.path if environment == "a server" else None
        source = f"BODY = {body!r}\n" + SUB_INTERPRETERS[interpreter]
        with spawn_worker(source, path) as worker:
            worker.wait_line("raised this interpreter cannot talk to a timer server")
            worker.wait_line("done")
            assert worker.wait() == 0
        assert server.status()["workers"] == []
    assert worker.output.count("timers are not being watched") == 1


# -- fault 53 ------------------------------------------------------------------------------------------

NOTICES = (
    PRELUDE
    + """
class Said(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

lines = []
logging.getLogger("aiotimer").addHandler(Said())

def heard(text):
    return lambda: any(text in line for line in lines)

def seconds_pass(seconds):
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until

def plan():
    say("connected")
    sys.stdin.readline()
    yield heard("has not looked")
    yield seconds_pass(2.2)  # as many more rings
    say("complaints", len(lines))
    sys.stdin.readline()
    yield heard("looks again")
    say("lines", len(lines), *told)

told = []
hook = lambda reason: told.append("unwatched" if reason else "watched")
KIND
"""
)

SYNC = """
client = TimerClient(budget=30, on_unwatched=hook)
client.connect()
for until in plan():
    while not until():
        STEP
"""

ASYNC = """
async def main():
    client = AsyncTimerClient(budget=30, on_unwatched=hook)
    await client.connect()
    for until in plan():
        while not until():
            STEP
asyncio.run(main())
"""

ACQUIRE = 'client.acquire("step", time.monotonic() + 1.5); '

KINDS = {
    "with": SYNC.replace("STEP", 'with expires(1.5, "step", client): time.sleep(0.01)'),
    "long with": SYNC.replace("STEP", 'with expires(600.0, "step", client): time.sleep(0.01)'),
    "acquire": SYNC.replace("STEP", f'{ACQUIRE}time.sleep(0.01); client.release("step")'),
    "async with": ASYNC.replace("STEP", 'async with expires(1.5, "step", client): await asyncio.sleep(0.01)'),
    "with on a loop": ASYNC.replace("STEP", 'with expires(1.5, "step", client): await asyncio.sleep(0.01)'),
    "async acquire": ASYNC.replace(
        "STEP", f'await {ACQUIRE}await asyncio.sleep(0.01); await client.release("step")'
    ),
}


def test_fault_53_a_stuck_server_is_noticed_once() -> None:
    """It is said once, in the log and to the hook, and once that it is over: also to who asks no more."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(short_socket())
        server = stack.enter_context(ServerProcess(path, bound=2.0))
        workers = {
            kind: stack.enter_context(spawn_worker(NOTICES.replace("KIND", source), path, kind))
            for kind, source in KINDS.items()
        }
        for worker in workers.values():
            worker.wait_line("connected")
        server.freeze()
        for worker in workers.values():
            worker.say()
        complaints = {kind: worker.wait_line("complaints ") for kind, worker in workers.items()}
        assert complaints == dict.fromkeys(KINDS, "complaints 1")
        server.thaw()
        for worker in workers.values():
            worker.say()
        assert [worker.wait() for worker in workers.values()] == [0] * len(KINDS)
        lines = {kind: worker.lines[-1] for kind, worker in workers.items()}
        assert lines == dict.fromkeys(KINDS, "lines 2 unwatched watched")
        assert not [event for event in server.events if event["event"] == "reaped"]
