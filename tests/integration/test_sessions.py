"""Sessions: what a connection becomes, and the messages that have no place there.

The law of this file: a message out of place costs the connection it came on, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from aiotimer._core import wire
from aiotimer._linux.procfs import time_namespace
from aiotimer.evidence import Subject
from aiotimer.server.handlers import HANDLERS, State
from tests.fakes.server import WatchfulServer, answer, raw_client, serving


def hello(*, shared: bool) -> wire.Hello:
    return wire.Hello(wire.PROTOCOL_VERSION, "test", os.getpid(), shared, time_namespace(), monotonic())


OPENINGS: dict[State, tuple[wire.ToServer, ...]] = {
    State.STRANGER: (wire.Ping(),),
    State.SHARING: (hello(shared=True),),
    State.SOCKET_ONLY: (hello(shared=False),),
    State.CHANNEL: (wire.Attend(wire.PROTOCOL_VERSION),),
    State.REPORT: (wire.DumpRequest(os.getpid()),),
}
"""What makes a connection what it is, if this process is a worker already."""

MESSAGES: tuple[wire.ToServer, ...] = (
    hello(shared=True), wire.Ring(1.0), wire.Bye(), wire.Acquire(1, "s", 1.0), wire.Ping(),
    wire.StatusRequest(), wire.Disown(), wire.Attend(wire.PROTOCOL_VERSION), wire.DumpRequest(1),
    wire.Tasks(1, "a loop", "MainThread", (), 0, ""),
)  # fmt: skip

OUT_OF_PLACE = [(state, m) for state in State for m in MESSAGES if state not in HANDLERS[type(m)][1]]


async def gathers_for_ever(_subject: Subject, _budget: float) -> None:
    await asyncio.get_running_loop().create_future()


async def say(connection: socket.socket, *messages: wire.ToServer) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, b"".join(map(wire.encode, messages)))


@contextlib.asynccontextmanager
async def peer(server: WatchfulServer, state: State) -> AsyncIterator[socket.socket]:
    """Open a connection and have it become something; its process is a worker by another one."""

    def are(state: State) -> int:
        return sum(session.state is state for session in server._context.sessions)

    with raw_client(server.socket_path) as worker, raw_client(server.socket_path) as connection:
        await say(worker, hello(shared=True))
        await answer(worker, wire.Welcome)
        before = are(state)
        await say(connection, *OPENINGS[state])
        await server.until(lambda: are(state) > before - (state is State.STRANGER), str(state))
        yield connection


@pytest.mark.parametrize(
    ("state", "message"), OUT_OF_PLACE, ids=[f"{s.name.lower()}-{type(m).__name__}" for s, m in OUT_OF_PLACE]
)
async def test_a_message_out_of_place_closes_the_connection(
    state: State, message: wire.ToServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotimer.evidence.gather.gather", gathers_for_ever)
    async with serving() as server, peer(server, state) as connection:
        await say(connection, message)
        answers = {type(one) for one in await answer(connection)}
        assert answers <= {wire.Welcome, wire.Pong}, "to what has come before"
        event = await server.told("refused")
        assert event.detail == f"{type(message).__name__} {state.value}"
        assert (event.worker_id is not None) == (state in (State.SHARING, State.SOCKET_ONLY))
        (worker,) = server.status()["workers"]
        assert worker["connected"], "by its other connection"


async def test_a_message_is_in_place_as_soon_as_what_it_needs_has_been_handled() -> None:
    """In one piece: HELLO, and what may come only after it. What comes after the last word is not read."""
    async with serving() as server:
        with raw_client(server.socket_path) as connection:
            requests = wire.Acquire(1, "a", monotonic() + 1000), wire.Acquire(2, "b", monotonic() + 1000)
            await say(connection, hello(shared=False), *requests, wire.Ping())
            # Requests are acknowledged once a turn, and how many turns there are depends on the machine.
            answers = await answer(connection, wire.Pong, wire.Ack(2))
            others = [type(one) for one in answers if not isinstance(one, wire.Ack)]
            assert others == [wire.Welcome, wire.Pong]
            assert server.armed(os.getpid()).keys() == {"a", "b"}
            await say(connection, wire.Bye(), wire.Attend(1))
            assert await answer(connection) == []
        assert server.armed(os.getpid()) == {}
        assert server.events == []


async def test_questions_are_answered_while_a_report_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotimer.evidence.gather.gather", gathers_for_ever)
    async with serving() as server, peer(server, State.REPORT) as connection:
        await say(connection, wire.Ping(), wire.StatusRequest())
        pong, _status = await answer(connection, wire.Status)
        assert isinstance(pong, wire.Pong)
        assert server.events == []
