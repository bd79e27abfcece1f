"""A server that goes away and comes back: who hears of it, and what its absence may not undo.

The law of this file: that timers are not being watched is said once, and so is the end of it, whether or not
the program enters another block; and a client that has left is not reaped for what it left behind.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path
from time import monotonic
from typing import cast

import pytest

import aiotimer
from aiotimer import AsyncTimerClient, TimerClient, expires
from aiotimer._core import wire
from aiotimer._core.layout import PROMISE, TABLE_SIZE
from aiotimer._linux.procfs import UNSENT, time_namespace
from aiotimer.client.reconnect import Hook
from aiotimer.client.shared_table import SharedTableQueue
from aiotimer.client.waiting import Steps
from tests.fakes.clock import PATIENCE
from tests.fakes.places import private_runtime, short_socket
from tests.fakes.server import ServerThread
from tests.fakes.worker import PRELUDE, Reconnectors, spawn_worker

sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])


@pytest.fixture(autouse=True)
def _own_runtime(reconnectors: Reconnectors) -> Iterator[None]:
    with private_runtime():
        yield


def recorder() -> tuple[Hook, queue.SimpleQueue[str | None]]:
    told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    return told.put, told


@sharing
def test_the_hook_hears_of_both_ends_of_an_outage(
    reconnectors: Reconnectors, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hook, told = recorder()
    with short_socket() as path, ServerThread(path) as server:
        with TimerClient(path, shared=shared, budget=0.02, on_unwatched=hook) as client:
            server.stop()
            while told.empty():  # it has just been connected: an attempt a second
                with expires(0.2, "step", client):
                    pass
            reason = told.get()
            assert reason is not None
            assert path in reason
            server.start()
            assert told.get(timeout=PATIENCE) is None  # and no block is entered meanwhile
            assert client.connected
            reconnectors.wait_ended()
        assert told.empty()
        said = [record.getMessage() for record in caplog.records if record.name == "aiotimer"]
        said = [text for text in said if "watched" in text or "looks again" in text]
        assert said == [
            f"timers are not being watched: {reason}",
            f"the timer server at {path!r} looks again",
        ]


@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_the_hook_hears_of_it_whatever_the_policy(policy: str, caplog: pytest.LogCaptureFixture) -> None:
    hook, told = recorder()
    with short_socket() as path:
        client = TimerClient(path, unavailable=policy, budget=0.02, on_unwatched=hook)  # type: ignore[arg-type]
        if policy == "raise":
            with pytest.raises(aiotimer.ServerUnavailable):
                client.acquire("step", monotonic() + 60)
        else:
            client.acquire("step", monotonic() + 60)
        assert told.get(timeout=PATIENCE)
        with ServerThread(path):
            assert told.get(timeout=PATIENCE) is None
            client.close()
        assert not caplog.records


def test_a_hook_that_fails_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()

    def hook(reason: str | None) -> None:
        heard.set()
        raise LookupError("the hook's own")

    with short_socket() as path:
        client = TimerClient(path, budget=0.02, on_unwatched=hook)
        with expires(60, "step", client):
            assert heard.wait(PATIENCE)
        client.close()
    assert any("on_unwatched failed" in record.getMessage() for record in caplog.records)


def test_configure_takes_a_hook_for_the_client_it_makes() -> None:
    hook, told = recorder()
    with short_socket() as path:
        client = aiotimer.configure(path, on_unwatched=hook)
        assert told.get(timeout=PATIENCE)
        with ServerThread(path):
            assert told.get(timeout=PATIENCE) is None
            aiotimer.configure(None)
        for other in (client, None):
            with pytest.raises(TypeError, match="give it to your own client"):
                aiotimer.configure(other, on_unwatched=hook)


def test_a_thread_whose_start_was_interrupted_is_started_by_the_next_request(
    reconnectors: Reconnectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruptions = [KeyboardInterrupt]

    def start(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        if interruptions:
            raise interruptions.pop()
        reconnectors.start(function, arguments)

    monkeypatch.setattr("aiotimer.client.reconnect.start_new_thread", start)
    with short_socket() as path:
        client = TimerClient(path, shared=False, budget=0.02)
        with pytest.raises(KeyboardInterrupt):
            client.acquire("s", monotonic() + 600)
        client.acquire("s", monotonic() + 600)
        with ServerThread(path) as server:
            server.wait_armed(["s"])
            reconnectors.wait_ended()
            client.close()


async def test_a_program_that_closes_the_connection_of_a_loop(
    reconnectors: Reconnectors, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is there: a thread finds it again, without a word, and the loop is not held up."""
    with ServerThread() as server:
        async with AsyncTimerClient(server.path) as client:
            ours = cast(SharedTableQueue, client._queue)
            assert ours.table is not None
            assert ours.connection._socket is not None
            for descriptor in (ours.connection._socket.fileno(), ours.descriptor):
                os.close(descriptor)
            ours.table.cells[PROMISE] = inf  # the next entry rings
            async with expires(600, "s", client):
                await asyncio.to_thread(reconnectors.wait_ended)
                assert client.connected
                assert server.armed() == ["s"]
                assert os.fstat(ours.descriptor).st_size >= TABLE_SIZE
        server.wait_heard(wire.Bye)
    assert not caplog.records


@sharing
def test_the_last_client_leaves_while_the_server_is_down(reconnectors: Reconnectors, shared: bool) -> None:
    """What it had armed must not be found armed by the next server."""
    with short_socket() as path, ServerThread(path) as server:
        client = TimerClient(path, shared=shared)
        client.acquire("left behind", monotonic() + 1.0)
        with expires(1.0, "left too", client):
            server.stop()
            client.close()
        server.start()
        reconnectors.wait_ended()
        with TimerClient(path) as other:
            other.acquire("expires later", monotonic() + 1.0)
            ((_worker, scopes),) = server.wait_reaps(1)
            assert scopes == ["expires later"]


@sharing
def test_the_last_client_leaves_with_timers_armed(shared: bool) -> None:
    with ServerThread() as server:
        for _ in range(20):
            client = TimerClient(server.path, shared=shared)
            client.acquire("left behind", monotonic() + 600)
            assert server.armed() == ["left behind"]
            client.close()
            server.wait_armed([])


def test_a_new_client_after_the_last_one_left_during_an_outage(reconnectors: Reconnectors) -> None:
    with short_socket() as path, ServerThread(path) as server:
        client = TimerClient(path, shared=False)
        client.acquire("first", monotonic() + 600)
        server.stop()
        client.close()
        client = TimerClient(path, shared=False, unavailable="ignore", budget=0.01)
        client.acquire("second", monotonic() + 600)
        server.start()
        reconnectors.wait_ended()
        server.wait_armed(["second"])
        client.close()
        server.wait_armed([])
        assert server.reaps == []


def hello(clock: float, *armed: str) -> bytes:
    timers = tuple((name, clock + 600) for name in armed)
    message = wire.Hello(
        version=wire.PROTOCOL_VERSION,
        release="test",
        pid=1,
        shared=False,
        time_namespace=time_namespace(),
        clock=clock,
        armed=timers,
    )
    return wire.encode(message)


def answer(connection: socket.socket) -> wire.ToClient:
    decoder = wire.client_decoder()
    connection.settimeout(PATIENCE)
    while True:
        for message in decoder.feed(connection.recv(65_536)):
            return message


def test_of_two_hellos_the_later_one_counts_whichever_is_read_first() -> None:
    """A connection that was given up in the middle may be read after the one that replaced it."""
    now = monotonic()
    with ServerThread() as server, socket.socket(socket.AF_UNIX) as new, socket.socket(socket.AF_UNIX) as old:
        new.connect(server.path)
        old.connect(server.path)
        new.sendall(hello(now, "kept"))
        assert isinstance(answer(new), wire.Welcome)
        old.sendall(hello(now - 1, "kept", "released since"))
        assert isinstance(answer(old), wire.Refused)
        assert server.armed() == ["kept"]
        new.sendall(wire.encode(wire.Acquire(1, "one more", now + 600)))
        assert isinstance(answer(new), wire.Ack), "its connection is the one that stays"


@pytest.mark.parametrize("clock", [nan, inf, -inf])
def test_a_clock_that_says_no_time_is_refused(clock: float) -> None:
    """No order of HELLOs is known after it: NaN is neither earlier nor later, and nothing follows inf."""
    with ServerThread() as server, socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.connect(server.path)
        one.sendall(hello(clock))
        refused = answer(one)
        assert isinstance(refused, wire.Refused)
        assert refused.reason == f"its clock says {clock}"
        two.connect(server.path)
        two.sendall(hello(monotonic(), "kept"))
        assert isinstance(answer(two), wire.Welcome)
        assert server.armed() == ["kept"]


# -- interrupted requests --------------------------------------------------------------------------------


class Interrupted(BaseException):
    """As a signal handler may raise."""


@pytest.mark.parametrize("does", ["acquire", "release"])
def test_what_could_not_be_sent_while_another_thread_connects_is_sent_later(
    reconnectors: Reconnectors, does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That thread's HELLO has been written already, and says the contrary."""

    def fails_meanwhile(sock: socket.socket, welcome: wire.Welcome) -> Steps[None]:
        connection._silent_until = inf  # nobody waits for a server that has just let somebody wait in vain
        if does == "acquire":
            client.acquire("s", until)
        else:
            client.release("s")
        connection._silent_until = -inf
        failed.append(does)
        yield from follow_up(sock, welcome)

    failed: list[str] = []
    until = monotonic() + 600
    with (
        ServerThread() as server,
        TimerClient(server.path, shared=False, unavailable="ignore", budget=PATIENCE) as client,
    ):
        client.connect()
        if does == "release":
            client.acquire("s", until)
        connection, follow_up = client._queue.connection, client._queue.follow_up
        monkeypatch.setattr(client._queue, "follow_up", fails_meanwhile)
        connection.disconnect()
        client.connect(PATIENCE)
        reconnectors.wait_ended()
        assert failed == [does]
        server.wait_armed(["s"] if does == "acquire" else [])


@sharing
@pytest.mark.parametrize("when", ["acquire", "release"])
def test_an_interrupted_request_leaves_nothing_armed(
    reconnectors: Reconnectors, shared: bool, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **_options: object) -> None:
        raise Interrupted

    with ServerThread() as server, TimerClient(server.path, shared=shared, budget=PATIENCE) as client:
        if when == "release":
            client.acquire("s", monotonic() + 600)
        with monkeypatch.context() as patch:
            patch.setattr(type(client._queue), "send" if when == "acquire" else "put", interrupted)
            with pytest.raises(Interrupted):
                if when == "acquire":
                    client.acquire("s", 0.0)
                else:
                    client.release("s")
        server.wait_armed([])
        reconnectors.wait_ended()


@sharing
async def test_a_release_that_is_cancelled_has_been_made(
    reconnectors: Reconnectors, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: object, **_options: object) -> None:
        raise Interrupted

    with ServerThread() as server:
        client = AsyncTimerClient(server.path, shared=shared, budget=PATIENCE)
        await client.acquire("s", monotonic() + 600)
        with monkeypatch.context() as patch:
            patch.setattr(type(client._queue), "put_async", interrupted)
            with pytest.raises(Interrupted):
                await client.release("s")
        await asyncio.to_thread(server.wait_armed, [])
        await client.aclose()
        reconnectors.wait_ended()


# -- the name of the thread --------------------------------------------------------------------------------

SLOW_STARTER = """
import asyncio, sys, time
import aiotimer
from aiotimer.client import reconnect

def start(function, arguments):
    start_new_thread(function, arguments)
    time.sleep(0.5)  # the new thread has the processor

start_new_thread, reconnect.start_new_thread = reconnect.start_new_thread, start

async def main():
    client = aiotimer.configure(sys.argv[1])
    while not client.connected:
        await asyncio.sleep(0.01)
    print("connected", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


def test_a_server_knows_a_process_by_its_own_name_whichever_thread_connects() -> None:
    """The thread that reconnects has a name, and gets it from its starter, which may be the main thread."""
    with ServerThread() as server, spawn_worker(SLOW_STARTER, None, server.path) as worker:
        worker.wait_line("connected")
        [known] = server.status()["workers"]
        own = Path(f"/proc/{worker.pid}/comm").read_text().strip()
        assert known["name"] == own != UNSENT


INTERRUPTED = """
import aiotimer
from aiotimer.client import reconnect

class Interrupting:
    def __init__(self):
        self.started = 0
    def __call__(self, function, arguments):
        thread_starts(function, arguments)
        # As a handler that raises when the name is to be given back: nothing of that is done.
        self.started, end = self.started + 1, reconnect.Naming.end
        def interrupted(naming):
            reconnect.Naming.end = end
            raise KeyboardInterrupt
        reconnect.Naming.end = interrupted

thread_starts, reconnect.start_new_thread = reconnect.start_new_thread, Interrupting()
own = open("/proc/self/comm").read()
client = TimerClient("/nowhere/s", unavailable="ignore")
try:
    with expires(1000, "s", client): pass
except KeyboardInterrupt:
    say("interrupted")
while open("/proc/self/comm").read() != own:
    time.sleep(0.01)
say("has its name back")
"""


def test_a_thread_has_its_name_back_though_a_handler_raises_when_it_is_to_be_given_back() -> None:
    """Else a server would take the process for one that has something to say, for ever, and not reap it."""
    with spawn_worker(PRELUDE + INTERRUPTED, None) as worker:
        worker.wait_line("interrupted")
        worker.wait_line("has its name back")
        assert worker.wait() == 0, worker.output


LATE_THREAD = f"""
from threading import Thread, main_thread, current_thread
from aiotimer.client import reconnect

class Late(reconnect.Reconnector):
    def needs_reconnecting(self):
        return False
    queue = property(lambda self: self)

threads = []
reconnect.start_new_thread = lambda function, args: threads.append(Thread(target=function, args=args))

def write(descriptor, name):
    if name == b"{UNSENT}" and current_thread() is main_thread() and len(threads) == 1:
        threads[0].start()  # the first one's thread had to wait for the processor until now
        threads[0].join()
    return os_write(descriptor, name)

own = open("/proc/self/comm").read()
Late("a").reconnect_in_background()
os_write, os.write = os.write, write
Late("b").reconnect_in_background()
assert len(threads) == 2 and not threads[0].is_alive()
assert open("/proc/self/comm").read() == own, open("/proc/self/comm").read()
"""


def test_a_thread_that_comes_late_does_not_take_its_starters_name_from_the_next() -> None:
    """Two connections of one process begin to reconnect one after the other."""
    with spawn_worker(PRELUDE + LATE_THREAD, None) as worker:
        assert worker.wait() == 0, worker.output


GREETS_MEANWHILE = f"""
comm = open("/proc/self/comm", "r+")
own = comm.read()
os.write(comm.fileno(), b"{UNSENT}")
with TimerClient(budget=30, unavailable="raise") as client, expires(1000, "s", client):
    say("connected")
    sys.stdin.readline()
    os.write(comm.fileno(), own.encode())
    say("has its name back")
    sys.stdin.readline()
"""


def test_a_server_knows_a_process_by_its_own_name_whenever_it_was_greeted() -> None:
    """The HELLO may have been sent before; the server reads it just while the main thread is renamed."""
    with ServerThread() as server, spawn_worker(PRELUDE + GREETS_MEANWHILE, server.path) as worker:
        worker.wait_line("connected")
        [known] = server.status()["workers"]
        assert known["name"] == UNSENT
        worker.say()
        worker.wait_line("has its name back")
        [known] = server.status()["workers"]
        assert known["name"] == Path(f"/proc/{worker.pid}/comm").read_text().strip() != UNSENT
