"""Faults 18 to 23: who may do what to whom.

The laws of this file: other users are real users, in processes that have given up root; what needs root is
skipped without it. Faults 20 and 22 as an embedder meets them are in ``tests/integration/test_server.py``.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from aiotimer import TimerRequest
from aiotimer._core import wire
from tests.programs import PRELUDE
from tests.serving import answer, bystander, ended, is_alive, line, raw_client, serving
from tests.support import short_socket, spawn_worker

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

STRANGER = (
    PRELUDE
    + """
client = TimerClient(unavailable="raise", budget=30, shared=SHARED)
os.setresuid(65534, 65534, 65534)
try:
    client.acquire("never", time.monotonic() + 60)
except Exception as error:
    say(type(error).__name__, error)
"""
)


@needs_root
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_18_another_user_is_refused(shared: bool) -> None:
    """The server refuses by the kernel's word, even where the file modes would let the stranger in."""
    async with serving() as server:
        os.chmod(server.socket_path, 0o666)
        os.chmod(os.path.dirname(server.socket_path), 0o755)
        source = STRANGER.replace("SHARED", repr(shared))
        with spawn_worker(source, server.socket_path) as stranger:
            assert "belongs to uid 65534" in await line(stranger, "Refused")
            assert await ended(stranger) == 0
        assert "belongs to uid 65534" in (await server.told("refused")).detail
        assert server.armed(stranger.pid) == {}


@needs_root
async def test_fault_18_another_user_cannot_even_connect() -> None:
    async with serving() as server:
        os.chmod(os.path.dirname(server.socket_path), 0o755)
        with spawn_worker(STRANGER.replace("SHARED", "True"), server.socket_path) as stranger:
            assert "denied" in await line(stranger, "ServerUnavailable")
            await ended(stranger)
        assert server.events == []


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_fault_19_a_pid_in_a_message_is_ignored(shared: bool) -> None:
    """A peer that says it is somebody else arms a timer on itself."""
    async with serving() as server:
        with bystander() as victim, raw_client(server.socket_path) as connection:
            hello = wire.Hello(wire.PROTOCOL_VERSION, "x", victim, shared, 0, monotonic())
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, wire.encode(hello))
            await answer(connection, until=wire.Welcome)
            if not shared:
                request = wire.Acquire(1, "mine", monotonic() + 600)
                await loop.sock_sendall(connection, wire.encode(request))
                await answer(connection, until=wire.Ack)
                assert server.armed(os.getpid()).keys() == {"mine"}
            assert [worker["pid"] for worker in server.status()["workers"]] == [os.getpid()]
            assert is_alive(victim)


@pytest.mark.parametrize("trap", ["symlink", "world-writable", "foreign"])
def test_fault_20_serve_exits_with_77(trap: str, runtime_directory: Path) -> None:
    base = runtime_directory / "aiotimer"
    if trap == "symlink":
        (runtime_directory / "elsewhere").mkdir(mode=0o700)
        base.symlink_to(runtime_directory / "elsewhere")
    else:
        base.mkdir(mode=0o700)
        if trap == "world-writable":
            base.chmod(0o777)
        elif os.geteuid() != 0:
            pytest.skip("only root can make a directory somebody else's")
        else:
            os.chown(base, NOBODY, -1)
    with short_socket() as path:
        command = [sys.executable, "-m", "aiotimer", "serve", "--socket", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 77, done.stderr
        assert done.stderr.startswith("aiotimer: ")
        assert str(base) in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not os.path.exists(path)


SQUATTER = """
import os, socket, sys, time
os.setresuid(65534, 65534, 65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["AIOTIMER_SOCKET"])
listener.listen()
print("listening")
listener.settimeout(60)
connection, _ = listener.accept()
print("heard", len(connection.recv(65536)))
"""


@needs_root
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
def test_fault_21_a_squatted_socket(shared: bool) -> None:
    """The client, who is not that user, tells a server of another user nothing."""
    with short_socket() as path:
        os.chmod(os.path.dirname(path), 0o777)
        with spawn_worker(SQUATTER, path) as squatter:
            squatter.wait_line("listening")
            client = STRANGER.replace("SHARED", repr(shared)).replace("65534, 65534, 65534", "0, 0, 0")
            with spawn_worker(client, path) as worker:
                assert "uid 65534" in worker.wait_line("")
                assert worker.wait() == 0
            squatter.wait()
            assert "heard 0" in squatter.output


@needs_root
async def test_fault_23_files_are_closed_to_other_users(runtime_directory: Path) -> None:
    """Neither by name nor through /proc. Within one uid nothing is secret: SECURITY.md says so."""
    runtime_directory.chmod(0o755)
    async with serving() as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "s", monotonic() + 600)])
            (tables,) = (runtime_directory / "aiotimer").iterdir()
            (table,) = tables.glob("*.owner")
            os.chmod(tables.parent, 0o755)  # even if somebody opened the directories
            os.chmod(tables, 0o755)
            paths = [str(table), f"/proc/{os.getpid()}/fd", f"/proc/{os.getpid()}/mem"]
            source = """
                import os, sys
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                for path in sys.argv[1:]:
                    try:
                        os.listdir(path) if path.endswith("fd") else os.open(path, os.O_RDONLY)
                    except PermissionError:
                        print("closed")
                    else:
                        print("open", path)
            """
            with spawn_worker(source, None, *paths) as stranger:
                assert await ended(stranger) == 0
                assert stranger.lines == ["closed"] * 3
