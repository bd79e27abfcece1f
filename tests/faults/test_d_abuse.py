"""Faults 24 to 31: too much of everything.

The laws of this file: what one worker does can harm only that worker; a client that breaks the protocol loses
its connection and nothing else; nobody else's timers, memory or descriptors change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
from math import inf, nan
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

from aiotimer import AsyncTimerClient, Refused, TimerRequest, __version__, expires
from aiotimer._core import wire
from aiotimer._core.layout import SLOTS
from tests.fakes.clock import PATIENCE
from tests.fakes.places import open_descriptors
from tests.fakes.server import answer, raw_client, serving
from tests.fakes.worker import PRELUDE, bystander, ended, is_alive, line, number, spawn_worker

ARM_ALL = {
    "expires": """
blocks = []
def arm(number):
    blocks.append(expires(1000, "same" if number % 2 else f"scope {number}", client).__enter__())

def release_one():
    blocks.pop().__exit__(None, None, None)
""",
    "acquire": """
later = time.monotonic() + 1000
def arm(number):
    client.acquire(f"timer {number}", later)

def release_one():
    client.release("timer 77")
""",
}

TOO_MANY = """
from aiotimer import TableFull

client = TimerClient(unavailable=sys.argv[1], budget=30, shared=SHARED)
ARM_ALL
for number in range(COUNT):
    arm(number)
try:
    arm(COUNT)
except TableFull as error:
    say("full", error.armed)
sys.stdin.readline()
release_one()
arm(COUNT)
say("one more")
sys.stdin.readline()
"""


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize(("kind", "policy"), [("expires", "ignore"), ("acquire", "raise")])
async def test_fault_30_65537_timers(kind: str, policy: str) -> None:
    """The last one is an error whatever the client's policy; the others stand."""
    source = PRELUDE + TOO_MANY.replace("ARM_ALL", ARM_ALL[kind])
    source = source.replace("COUNT", "65_536").replace("SHARED", "True")
    async with serving() as server:
        with spawn_worker(source, server.socket_path, policy) as worker:
            assert await number(worker, "full") == 65_536
            worker.say()
            await line(worker, "one more")
            assert len(server.armed(worker.pid)) == 65_536
            worker.say()
            assert await ended(worker) == 0


MANY_NAMES = (
    PRELUDE
    + """
sys.settrace(None)  # coverage would make minutes of it
client = TimerClient(unavailable="raise", budget=30)
client.acquire("kept", time.monotonic() + 1000)
each = int(sys.argv[1]) // 2
for number in range(each):
    with expires(60, f"rollout-{number}", client):
        pass
for number in range(each):
    client.acquire(f"step-{number}", time.monotonic() + 60)
    client.release(f"step-{number}")
with expires(60, "rollout-0", client), expires(60, "new", client):
    say("slots", client._queue.table.high_water)
    sys.stdin.readline()
"""
)


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize(
    "names",
    [2 * SLOTS, pytest.param(10**6, marks=[pytest.mark.soak, pytest.mark.timeout(300)])],
    ids=["two tables full", "a million"],
)
async def test_fault_30_scopes_one_after_the_other(names: int) -> None:
    """Names do not use a table up: idle slots are given to new ones, and keep their own timers apart."""
    async with serving() as server:
        with spawn_worker(MANY_NAMES, server.socket_path, str(names)) as worker:
            assert await number(worker, "slots", 8 * PATIENCE) < 1000
            assert server.armed(worker.pid).keys() == {"kept", "rollout-0", "new"}
            worker.say()
            assert await ended(worker) == 0


# -- the protocol ----------------------------------------------------------------------------------------


async def test_fault_29_silent_clients_are_closed() -> None:
    """HELLO never sent, half a frame and then silence. Who was greeted may be silent for ever."""
    hello = wire.encode(wire.Hello(1, "x", 1, True, 0, 0.0))
    async with serving() as server, AsyncTimerClient(server.socket_path, unavailable="raise") as client:

        async def answer_to(beginning: bytes) -> list[wire.ToClient]:
            with raw_client(server.socket_path) as connection:
                await asyncio.get_running_loop().sock_sendall(connection, beginning)
                return await answer(connection)

        beginnings = [b"", hello[:2], hello[:-1], wire.encode(wire.Ping())]
        nothing, length, unfinished, pinged = await asyncio.gather(*map(answer_to, beginnings))
        assert nothing == length == unfinished == []
        assert [type(message) for message in pinged] == [wire.Pong]
        assert client.connected
        await client.acquire("s", monotonic() + 1)  # it rings
        assert server.armed(os.getpid()).keys() == {"s"}
        assert not server.all_told("refused")


def nonsense(seed: int) -> bytes:
    """Return bytes that are no message: rubbish, or rubbish in a frame."""
    chance = random.Random(seed)
    rubbish = chance.randbytes(chance.randrange(4, 2000))
    if seed % 2:
        return b"\xff" + rubbish  # a frame of 4 GB
    return len(rubbish).to_bytes(4, "big") + rubbish


async def test_fault_24_random_bytes_close_that_connection_only() -> None:
    """Its connection is closed; nothing else changes."""
    async with serving() as server:
        async with AsyncTimerClient(server.socket_path, unavailable="raise") as client:
            await client.acquire("s", monotonic() + 60)
            before = open_descriptors()
            for seed in range(200):
                with raw_client(server.socket_path) as connection:
                    await asyncio.get_running_loop().sock_sendall(connection, nonsense(seed))
                    with contextlib.suppress(ConnectionResetError):
                        assert await answer(connection) == []
            assert len(server.all_told("refused")) == 1, "the others are counted"
            server._reporter.tell_refusals(all_of_them=True)
            await server.until(lambda: len(server.all_told("refused")) == 2, "how many")
            assert server.all_told("refused")[1].detail.startswith("199 more refusals within ")
            assert open_descriptors() == before
            assert client.connected
            assert server.armed(os.getpid()).keys() == {"s"}


@pytest.mark.parametrize("count", [1, 200])
async def test_fault_30_descriptors_that_nobody_asked_for(count: int) -> None:
    """A flood of them is closed, and from a client that has been greeted it is the end."""
    hello = wire.encode(wire.Hello(1, "x", 1, False, 0, 0.0))
    before = open_descriptors()
    async with serving() as server:
        with raw_client(server.socket_path) as connection:
            for _ in range(50):
                socket.send_fds(connection, [wire.encode(wire.Ping())], [0] * count)
            socket.send_fds(connection, [hello], [])
            answers = await answer(connection, wire.Welcome)
            assert [type(message) for message in answers] == [wire.Pong] * 50 + [wire.Welcome]
            socket.send_fds(connection, [wire.encode(wire.Ping())], [0] * count)
            assert await answer(connection) == []
        assert "descriptors" in (await server.told("refused")).detail
    assert open_descriptors() == before


async def test_fault_31_another_protocol_is_refused_with_both_versions_named() -> None:
    """A newer client with this server."""
    hello = wire.Hello(
        version=99, release="9.9.9", pid=os.getpid(), shared=True, time_namespace=0, clock=monotonic()
    )
    async with serving() as server:
        with raw_client(server.socket_path) as connection:
            await asyncio.get_running_loop().sock_sendall(connection, wire.encode(hello))
            (refusal,) = await answer(connection)
        assert isinstance(refusal, wire.Refused)
        for name in ("99", "9.9.9", str(wire.PROTOCOL_VERSION), __version__):
            assert name in refusal.reason
        assert (await server.told("refused")).detail == refusal.reason


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_31_a_client_learns_why_it_is_refused(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer server with this client: a server that takes our version for another one."""
    async with serving() as server:
        monkeypatch.setattr("aiotimer.server.handlers.wire", NewerWire())
        client = AsyncTimerClient(server.socket_path, unavailable="raise", shared=shared)
        with pytest.raises(Refused) as caught:
            await client.acquire("s", monotonic() + 60)
        assert "protocol 1 " in caught.value.reason
        assert " 77 " in caught.value.reason
        assert not client.connected
        await client.aclose()


class NewerWire:
    """The wire module as a later version might be."""

    PROTOCOL_VERSION = 77

    def __getattr__(self, name: str) -> object:
        return getattr(wire, name)


async def test_fault_29_a_peer_that_never_reads_is_dropped() -> None:
    """What it asks for is kept up to a bound; then it is dropped, and others never noticed."""
    hello = wire.encode(wire.Hello(1, "x", 1, False, 0, monotonic()))
    pings = wire.encode(wire.Ping()) * 5000
    async with serving() as server, AsyncTimerClient(server.socket_path, unavailable="raise") as client:
        with raw_client(server.socket_path) as connection:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, hello)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                for _ in range(200):
                    await loop.sock_sendall(connection, pings)
        assert "does not read" in (await server.told("refused")).detail
        assert client.connected


# -- fault 25 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, wire.MAX_FRAME + 1, 2**32 - 1])
async def test_fault_25_a_length_that_cannot_be(length: int) -> None:
    """It is refused by its length alone, before a byte of the frame has come."""
    async with serving() as server:
        with raw_client(server.socket_path) as connection:
            await asyncio.get_running_loop().sock_sendall(connection, length.to_bytes(4, "big"))
            assert await answer(connection) == []
        assert f"a frame of {length} bytes" in (await server.told("refused")).detail


@pytest.mark.parametrize("short_by", [0, 1])
async def test_fault_25_the_longest_frames(short_by: int) -> None:
    """A HELLO that fills a frame to its limit is answered."""
    hello = wire.Hello(1, "", os.getpid(), False, 0, monotonic())
    room = wire.MAX_FRAME - short_by
    long = wire.encode(hello)
    spare = room - (len(long) - 4) - 2  # a string of that size has a header of three bytes, not one
    long = wire.encode(msgspec.structs.replace(hello, release="x" * spare))
    assert len(long) - 4 == room
    async with serving() as server:
        with raw_client(server.socket_path) as connection:
            await asyncio.get_running_loop().sock_sendall(connection, long)
            assert [type(m) for m in await answer(connection, wire.Welcome)] == [wire.Welcome]


async def test_fault_25_single_bytes_and_a_thousand_frames_at_once() -> None:
    async with serving() as server:
        with raw_client(server.socket_path) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            for byte in wire.encode(wire.Hello(1, "x", 1, False, 0, monotonic())):
                await asyncio.get_running_loop().sock_sendall(connection, bytes([byte]))
                await asyncio.sleep(0)  # the server reads each for itself
            await answer(connection, wire.Welcome)
            later = monotonic() + 1000
            frames = [wire.encode(wire.Acquire(n, f"timer {n}", later)) for n in range(1, 1001)]
            await asyncio.get_running_loop().sock_sendall(connection, b"".join(frames))
            heard = 0
            while heard < 1000:
                (*_, last) = await answer(connection, wire.Ack)
                assert isinstance(last, wire.Ack)
                assert not last.error
                heard = last.number
            assert len(server.armed(os.getpid())) == 1000
            assert not server.all_told("refused")


# -- fault 28 ------------------------------------------------------------------------------------------

OWNER = (
    PRELUDE
    + """
client = TimerClient(unavailable="raise", budget=30)
client.acquire("s", time.monotonic() + 1000)
say("armed")
signal.pause()
"""
)


def spoil(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "unlinked":
        path.unlink()
    elif how == "grown":
        os.truncate(path, size * 4)
    elif how.isdigit():
        os.truncate(path, int(how))
    else:
        chance = random.Random(28)
        words = chance.randbytes(size) if how == "random" else struct.pack("=d", float(how)) * (size // 8)
        with path.open("r+b") as file:
            file.write(words)


SPOILS = ["random", "nan", "-inf", "grown", "unlinked", "0", "1", "63", "4096", "5001"]


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("how", SPOILS)
async def test_fault_28_a_table_is_spoilt_while_armed(how: str, runtime_directory: Path) -> None:
    """Its own worker may suffer; the server goes on, looks on time, and nobody else is touched."""
    async with serving(bound=0.1) as server:
        with (
            spawn_worker(OWNER, server.socket_path) as owner,
            spawn_worker(OWNER, server.socket_path) as other,
        ):
            await line(owner, "armed")
            await line(other, "armed")
            (table,) = runtime_directory.glob(f"aiotimer/*/*-{owner.pid}-*")
            spoil(table, how)
            await server.pass_by(monotonic() + 0.3)
            assert server.armed(other.pid).keys() == {"s"}
            assert is_alive(other.pid)
            assert other.pid not in server.acted
            if how in ("unlinked", "grown"):
                assert server.armed(owner.pid).keys() == {"s"}
            elif how in ("nan", "-inf", "0", "1", "63"):
                assert not server.armed(owner.pid)


# -- fault 26 ------------------------------------------------------------------------------------------

WRONG = [nan, inf, -inf, -1, 0, True, "60", None]


@pytest.mark.parametrize("after", WRONG, ids=repr)
async def test_fault_26_what_is_no_duration_is_an_error_and_sends_nothing(after: Any) -> None:
    expected = TypeError if after is None or isinstance(after, bool | str) else ValueError
    async with serving() as server, AsyncTimerClient(server.socket_path, unavailable="raise") as client:
        with pytest.raises(expected), expires(after, "s", client):
            pytest.fail("it was entered")
        with pytest.raises(expected):
            async with expires(after, "s", client):
                pytest.fail("it was entered")
        with pytest.raises(expected):
            expires(after, "s", client)(print)
        assert not server.armed(os.getpid())


@pytest.mark.parametrize("until", [nan, inf, "60", None], ids=repr)
async def test_fault_26_what_is_no_deadline_is_an_error_and_sends_nothing(until: Any) -> None:
    async with serving() as server, AsyncTimerClient(server.socket_path, unavailable="raise") as client:
        with pytest.raises((TypeError, ValueError)):
            await client.acquire("s", until)
        with pytest.raises((TypeError, ValueError)):
            server.register_timers([TimerRequest(os.getpid(), "s", until)])
        assert not server.armed(os.getpid())


# -- fault 27 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["", "x" * 10_240, "a\0b", "\ud800"], ids=ascii)
async def test_fault_27_what_cannot_be_a_scope_is_rejected(scope: str) -> None:
    async with serving() as server, AsyncTimerClient(server.socket_path, unavailable="raise") as client:
        with pytest.raises(ValueError, match="scope"):
            expires(60, scope, client).__enter__()
        with pytest.raises(ValueError, match="scope"):
            await client.acquire(scope, monotonic() + 60)
        assert not server.armed(os.getpid())


def status_of(path: str, *options: str) -> str:
    command = [sys.executable, "-m", "aiotimer", "status", "--socket", path, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


UGLY = "a\nb\x1b[31mc\x9b2Jd"


async def test_fault_27_a_scope_is_escaped_in_every_output(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        async with AsyncTimerClient(server.socket_path, unavailable="raise") as client:
            await client.acquire(UGLY, monotonic() + 1000)
            for option in ([], ["--json"]):
                command = [
                    sys.executable,
                    "-m",
                    "aiotimer",
                    "status",
                    "--socket",
                    server.socket_path,
                    *option,
                ]
                done = await asyncio.to_thread(
                    subprocess.run, command, capture_output=True, text=True, check=True
                )
                assert all(text.isprintable() for text in done.stdout.removesuffix("\n").split("\n"))
                assert "a\\nb" in done.stdout
            await client.release(UGLY)
            with pytest.raises(TimeoutError) as caught:
                async with expires(0.01, UGLY, client, grace=60):
                    await asyncio.sleep(PATIENCE)
            assert str(caught.value).isprintable()
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, UGLY, monotonic())])
            await server.told("reaped", pid)
        with raw_client(server.socket_path) as connection:
            hello = wire.Hello(99, UGLY, 1, True, 0, 0.0)
            await asyncio.get_running_loop().sock_sendall(connection, wire.encode(hello))
            await answer(connection)
        assert "refused" in caplog.text
        assert all(
            record.getMessage().isprintable() for record in caplog.records if record.name == "aiotimer"
        )
