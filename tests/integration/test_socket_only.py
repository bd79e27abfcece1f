"""Clients without a shared table, when their server goes away: what cannot be sent now is sent later.

The law of this file: a release that the client made is honoured, whether or not it could be sent; an acquire
that was acknowledged is not lost with the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import monotonic

import pytest

from aiotimer import TimerClient
from aiotimer._core import wire
from aiotimer._linux.table_files import PEERS_RETURN_WITHIN
from tests.fakes.clock import clock_passes
from tests.fakes.places import private_runtime, short_socket
from tests.fakes.server import ServerProcess, ServerThread
from tests.fakes.worker import PRELUDE, Reconnectors, is_alive, spawn_worker


@pytest.fixture(autouse=True)
def _own_runtime() -> Iterator[None]:
    with private_runtime():
        yield


def test_a_release_while_the_server_is_down_is_not_reaped_for(reconnectors: Reconnectors) -> None:
    with short_socket() as path, ServerThread(path) as server, TimerClient(path, shared=False) as client:
        client.acquire("kept", monotonic() + 600)
        deadline = monotonic() + 1.0
        client.acquire("released", deadline)
        server.stop()
        client.release("released")  # returns, though nobody hears it
        clock_passes(deadline)
        assert armed_after_restart(server, reconnectors) == ["kept"]
        assert server.reaps == []


def armed_after_restart(server: ServerThread, reconnectors: Reconnectors) -> list[str]:
    """Start the server again, wait until the client is back, and return what is armed."""
    server.start()
    reconnectors.wait_ended()
    server.wait_heard(wire.Hello)
    return server.armed()


LEFT_IN_TIME = (
    PRELUDE
    + """
client = TimerClient(shared=False, budget=30)
client.connect()
client._budget = 0.02
with expires(3.0, "step", client) as block:
    say("deadline", block.deadline)
    sys.stdin.readline()
say("left")
ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)  # with the GIL: no thread can say anything
sys.exit(6)
"""
)


def test_a_release_that_its_peer_cannot_speak_of_is_waited_for() -> None:
    """It has left its block in time while no server ran, and is busy in C when the next one comes."""
    with short_socket() as path, ServerProcess(path) as server, spawn_worker(LEFT_IN_TIME, path) as worker:
        deadline = float(worker.wait_line("deadline").split()[-1])
        server.kill()
        worker.say()
        worker.wait_line("left")
        server.start()
        server.told("adopted", worker.pid)
        server.pass_by(max(deadline, monotonic() + PEERS_RETURN_WITHIN))
        assert is_alive(worker.pid)
        worker.say()
        assert worker.wait() == 6
        server.pass_by(monotonic())  # at its end it may have got its word in, or not
        assert all(event["event"] != "reaped" for event in server.events if event["pid"] == worker.pid)


def test_more_timers_than_a_hello_has_room_for_come_back(reconnectors: Reconnectors) -> None:
    names = [f"timer-{number:04}-{'x' * 100}" for number in range(1500)]
    with short_socket() as path, ServerThread(path) as server, TimerClient(path, shared=False) as client:
        for number, name in enumerate(names):
            client.acquire(name, monotonic() + 600 + number)
        server.stop()
        client.acquire("one more", monotonic() + 600)
        assert armed_after_restart(server, reconnectors) == ["one more", *names]


def test_a_hang_that_began_while_the_server_was_down_is_reaped() -> None:
    """Without a word from the peer, a restarted server acts on what was acknowledged."""
    with short_socket() as path, ServerThread(path) as server:
        client = TimerClient(path, shared=False)
        client.acquire("hung", monotonic() + 1.0)
        client._queue.connection.users = 0  # this process says nothing any more, as if it hung
        server.stop()
        server.start()
        ((worker_id, scopes),) = server.wait_reaps(1)
        assert (worker_id.pid, scopes) == (os.getpid(), ["hung"])
