"""Faults 18 to 23: who may do what to whom.

The laws of this file: a server serves its own uid and nobody else; who a worker is, the kernel says; nothing
is made or opened through a path that is in other hands; what a worker writes anywhere can kill only the owner
of the table it is written to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from aiotimer import AsyncTimerClient, Refused, TimerClient, TimerServer
from aiotimer._core import layout
from aiotimer._linux import paths
from aiotimer.errors import UnsafePath
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_directory, short_socket
from tests.fakes.server import serving
from tests.fakes.worker import PRELUDE, bystander, ended, is_alive, line, spawn_worker

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def open_to_all(path: str) -> None:
    """Undo what keeps other users away from a socket, so that the next line of defence is seen."""
    os.chmod(os.path.dirname(path), 0o711)
    os.chmod(path, 0o666)


# -- fault 18 ------------------------------------------------------------------------------------------

STRANGER = (
    PRELUDE
    + """
import socket
from aiotimer import Refused
from aiotimer.client import connection, handshake, waiting  # before the modules are out of reach
from aiotimer._core import wire

os.setuid(65534)
try:
    client = TimerClient(unavailable="raise", budget=30, shared=sys.argv[1] == "shared")
    client.acquire("s", time.monotonic() + 60)
except Refused as error:
    say("refused", error.reason)
for message in (wire.Ping(), wire.StatusRequest(), wire.Disown(), wire.Ring(1.0), wire.Acquire(1, "s", 1.0)):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["AIOTIMER_SOCKET"])
        connection.sendall(wire.encode(message))
        say("answer", connection.recv(1000))
say("done")
sys.stdin.readline()
"""
)


@needs_root
@pytest.mark.parametrize("kind", ["shared", "socket"])
async def test_fault_18_another_uid_is_refused_and_logged(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiotimer")
    async with serving() as server:
        open_to_all(server.socket_path)
        with spawn_worker(STRANGER, server.socket_path, kind) as stranger:
            said = await line(stranger, "refused")
            assert f"uid {NOBODY}" in said
            await line(stranger, "done")
            assert stranger.lines.count("answer b''") == 5
            assert not server.status()["workers"]
            server._reporter.tell_refusals(all_of_them=True)
            await server.until(lambda: len(server.all_told("refused")) == 2, "the others together")
            told = [event.detail for event in server.all_told("refused")]
            for what in ("belongs to", "Ping of", "StatusRequest of", "Disown of", "Ring of", "Acquire of"):
                assert any(what in detail and f"uid {NOBODY}" in detail for detail in told)
                assert what in caplog.text


@needs_root
async def test_fault_18_another_uid_cannot_even_connect() -> None:
    async with serving() as server:
        os.chmod(os.path.dirname(server.socket_path), 0o711)
        os.seteuid(NOBODY)
        try:
            with socket.socket(socket.AF_UNIX) as connection, pytest.raises(PermissionError):
                connection.connect(server.socket_path)
        finally:
            os.seteuid(0)


# -- fault 19 ------------------------------------------------------------------------------------------

LIAR = (
    PRELUDE
    + """
import socket
from aiotimer._core import wire

hello = wire.Hello(1, "x", int(sys.argv[1]), False, 0, time.monotonic(), False, (("s", 1.0),))
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.environ["AIOTIMER_SOCKET"])
    connection.sendall(wire.encode(hello))
    sys.stdin.read()
"""
)


async def test_fault_19_a_pid_in_a_message_is_ignored() -> None:
    """Whoever sends the message is meant, and reaped."""
    async with serving() as server:
        with bystander() as pid, spawn_worker(LIAR, server.socket_path, str(pid)) as liar:
            assert await ended(liar) == -9
            await server.told("reaped", liar.pid)
            await server.pass_by(monotonic())
            assert is_alive(pid)
            assert pid not in server.acted


# -- fault 20 ------------------------------------------------------------------------------------------


def lay(trap: str, victim: Path, elsewhere: Path) -> None:
    if trap == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can make a directory somebody else's")
    elsewhere.mkdir(mode=0o700)
    if trap == "symlink":
        victim.symlink_to(elsewhere)
    elif trap == "file":
        victim.write_text("")
    else:
        victim.mkdir()
        victim.chmod(0o777 if trap == "world-writable" else 0o700)
        if trap == "foreign":
            os.chown(victim, 12345, 12345)


@pytest.mark.parametrize("trap", ["symlink", "file", "foreign"])
def test_fault_20_serve_exits_77_and_says_why(trap: str, runtime_directory: Path) -> None:
    with short_socket() as path:
        victim = paths.base() / paths._state_name(path)
        lay(trap, victim, runtime_directory / "elsewhere")
        command = [sys.executable, "-m", "aiotimer", "serve", "--socket", path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 77
        assert str(victim) in done.stderr
        assert done.stderr.count("\n") == 1
        assert not os.path.exists(path)


async def test_fault_20_a_state_directory_of_ours_that_is_too_open_is_repaired(
    runtime_directory: Path,
) -> None:
    with short_socket() as path:
        victim = paths.base() / paths._state_name(path)
        lay("world-writable", victim, runtime_directory / "elsewhere")
        async with serving(path):
            assert victim.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["symlink", "file", "foreign"])
async def test_fault_20_unsafe_state_directories_are_refused(trap: str, runtime_directory: Path) -> None:
    """A path through somebody else's hands is refused, not repaired."""
    with short_socket() as path:
        async with serving(path):
            (victim,) = (runtime_directory / "aiotimer").iterdir()  # where the tables of this socket go
        with contextlib.suppress(FileNotFoundError):
            victim.rmdir()
        lay(trap, victim, runtime_directory / "elsewhere")
        before = victim.lstat()
        with pytest.raises(UnsafePath, match="aiotimer"):
            await TimerServer(path).start()
        assert victim.lstat().st_mode == before.st_mode
        assert not os.path.exists(path)
        assert list((runtime_directory / "elsewhere").iterdir()) == []


# -- fault 21 ------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_21_a_squatted_socket_is_not_talked_to(shared: bool) -> None:
    with short_socket() as path, socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(path)
        os.seteuid(NOBODY)
        try:
            squatter.listen()  # the kernel notes whose it is now
        finally:
            os.seteuid(0)
        client = AsyncTimerClient(path, unavailable="raise", shared=shared)
        with pytest.raises(Refused, match=f"uid {NOBODY}"):
            await client.acquire("secret", monotonic() + 60)
        await client.aclose()
        with pytest.raises(Refused), TimerClient(path, unavailable="raise", shared=shared) as other:
            other.acquire("secret", monotonic() + 60)
        squatter.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                with squatter.accept()[0] as connection:
                    assert connection.recv(1000) == b"", "not a byte"


# -- fault 22 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [107, 108, 200])
async def test_fault_22_long_socket_paths(size: int) -> None:
    """107 bytes are what an address holds; more is refused before anything is made."""
    with short_directory() as directory:
        path = str(directory / ("s" * (size - len(str(directory)) - 1)))
        assert len(os.fsencode(path)) == size
        if size <= 107:
            async with serving(path), AsyncTimerClient(path, unavailable="raise") as client:
                assert client.connected
                assert os.path.exists(path)
        else:
            for make in (TimerServer, TimerClient, AsyncTimerClient):
                with pytest.raises(UnsafePath, match=f"{size} bytes"):
                    make(path)
            assert list(directory.iterdir()) == []


# -- fault 23 ------------------------------------------------------------------------------------------

VICTIM = (
    PRELUDE
    + """
client = TimerClient(unavailable="raise", budget=30)
client.acquire("s", time.monotonic() + 1000)
say("armed")
sys.stdin.readline()
"""
)

INTRUDER = (
    PRELUDE
    + """
import glob
client = TimerClient(unavailable="raise", budget=30)
client.acquire("mine", time.monotonic() + 1000)
if sys.argv[4] == "another":
    os.setuid(65534)
def attempt(path):
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return -1
try:
    links = [f"/proc/{sys.argv[1]}/fd/{name}" for name in os.listdir(f"/proc/{sys.argv[1]}/fd")]
except PermissionError:
    links = [f"/proc/{sys.argv[1]}/fd/{number}" for number in range(50)]
links += glob.glob(f"/proc/{sys.argv[1]}/map_files/*") if sys.argv[4] == "another" else []
opened = [path for path in [*links, sys.argv[2]] if attempt(path) >= 0] if sys.argv[4] == "another" else []
say("opened", opened)
descriptor = attempt(sys.argv[2])
if descriptor >= 0:
    os.pwrite(descriptor, __import__("struct").pack("=d", 1.0), int(sys.argv[3]))
say("done")
sys.stdin.readline()
"""
)


@pytest.mark.parametrize("uid", ["same", pytest.param("another", marks=needs_root)])
async def test_fault_23_a_worker_opens_the_table_of_another(uid: str, runtime_directory: Path) -> None:
    """Across uids it cannot; within one uid it can, and then the table's owner is reaped, nobody else."""
    async with serving(bound=0.1) as server:
        with spawn_worker(VICTIM, server.socket_path) as victim:
            await line(victim, "armed")
            (directory,) = (runtime_directory / "aiotimer").iterdir()
            (table,) = (
                p for p in directory.iterdir() if f"-{victim.pid}-" in p.name or f".{victim.pid}." in p.name
            )
            assert stat.S_IMODE(table.stat().st_mode) == 0o600
            arguments = (str(victim.pid), str(table), str(layout.deadline_offset(0)), uid)
            with spawn_worker(INTRUDER, server.socket_path, *arguments) as intruder:
                assert await line(intruder, "opened") == "opened []"
                await line(intruder, "done")
                if uid == "same":
                    assert (await server.told("reaped", victim.pid)).scope == "s"
                await server.pass_by(monotonic() + 0.2)
                assert is_alive(victim.pid) == (uid == "another")
                assert is_alive(intruder.pid)
                assert intruder.pid not in server.acted
