"""The named pipe of torch's file timer, served over a real server; torch itself is not needed.

The law of this file: requests are written as ``FileTimerClient`` writes them, one line for each opening of
the pipe; tests/trainers has the client itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from aiotimer.errors import AlreadyServing, UnsafePath
from aiotimer.server.file_timer import FileTimerBridge
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_directory
from tests.fakes.server import WatchfulServer, assert_reaped, serving
from tests.fakes.worker import (
    AIOTIMER,
    UNHURRIED,
    SpawnedWorker,
    bystander,
    ended,
    environment,
    is_alive,
    spawn_worker,
    wait_dead,
)

HOUR = 3600.0
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be two users")


class Bridged(NamedTuple):
    """A server, and the pipe that a bridge serves over it."""

    server: WatchfulServer
    path: str

    def write(self, data: bytes) -> None:
        """Open the pipe, write, and close it, as a client does."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            assert os.write(descriptor, data) == len(data)
        finally:
            os.close(descriptor)

    def request(self, pid: int, scope: str, within: float, number: int = signal.SIGKILL) -> None:
        """Write a request for a timer that expires in so many seconds."""
        self.write(line(pid, scope, time.time() + within, number))

    def release(self, pid: int, scope: str) -> None:
        """Write a release."""
        self.write(line(pid, scope, -1, 0))

    async def all_read(self) -> None:
        """Return when everything that was written before has been carried out.

        What comes last is on a process of which nothing else is.
        """
        with bystander() as pid:
            self.request(pid, "last", HOUR)
            await self.armed(pid, ["last"])

    async def armed(self, pid: int, scopes: list[str]) -> dict[str, float]:
        """Wait until just these timers are armed on a process; return their deadlines."""
        for _ in range(100_000):
            found = self.server.armed(pid)
            if sorted(found) == scopes:
                return found
            await asyncio.sleep(0)
        raise AssertionError(f"armed are {self.server.armed(pid)}, and not {scopes}")


def line(pid: Any, scope: Any, at: Any, number: Any = signal.SIGKILL) -> bytes:
    told = {"version": 1, "pid": pid, "scope_id": scope, "expiration_time": at, "signal": number}
    return json.dumps(told).encode() + b"\n"


@contextlib.asynccontextmanager
async def bridged(**options: Any) -> AsyncIterator[Bridged]:
    with short_directory() as directory:
        async with serving(**options) as server, FileTimerBridge(server, directory / "pipe") as bridge:
            yield Bridged(server, bridge.path)


# --- what a request does


async def test_a_worker_that_does_not_release_is_reaped_at_its_deadline_with_evidence() -> None:
    async with bridged(reap="dump,KILL") as here:
        with bystander() as pid:
            before = monotonic()
            here.request(pid, "victim", 0.2)
            event = await assert_reaped(here.server, pid, before + 0.2 - 0.001)
            assert event.verdict
            wait_dead(pid)


async def test_a_release_takes_the_timer_away() -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.request(pid, "step", UNHURRIED)
            here.request(pid, "epoch", HOUR)
            deadlines = await here.armed(pid, ["epoch", "step"])
            assert deadlines["epoch"] > deadlines["step"] + HOUR / 2
            here.release(pid, "step")
            here.release(pid, "unknown")
            await here.armed(pid, ["epoch"])
            await here.server.pass_by(deadlines["step"])
            assert is_alive(pid)


async def test_a_release_that_is_read_together_with_its_acquire_counts() -> None:
    """Even if that has expired by then."""
    async with bridged() as here:
        with bystander() as pid:
            here.write(
                line(pid, "step", 0) + line(pid, "epoch", time.time() + HOUR) + line(pid, "step", -1, 0)
            )
            await here.armed(pid, ["epoch"])
            await here.server.pass_by(monotonic())
            assert is_alive(pid)


async def test_a_later_request_moves_the_timer() -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.request(pid, "step", UNHURRIED)
            former = (await here.armed(pid, ["step"]))["step"]
            here.request(pid, "step", HOUR)
            await here.all_read()
            await here.server.pass_by(former)
            await here.armed(pid, ["step"])
            here.request(pid, "step", 0.1)
            await assert_reaped(here.server, pid, 0.0, "step")


@pytest.mark.parametrize("at", [0, 1.0], ids=["zero", "long ago"])
async def test_what_has_expired_is_no_release(at: float) -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.write(line(pid, "late", at))
            await assert_reaped(here.server, pid, 0.0, "late")


async def test_one_expired_timer_reaps_once_and_clears_the_others() -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.request(pid, "one", HOUR)
            await here.armed(pid, ["one"])
            here.write(line(pid, "other", 0))
            await assert_reaped(here.server, pid, 0.0, "other")


@pytest.mark.parametrize("number", [0, -1])
async def test_without_a_signal_nobody_is_signalled(number: int) -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.request(pid, "watched", 0.1, number)
            event = await here.server.told("observed", pid)
            assert event.scope == "watched"
            await here.server.pass_by(monotonic())
            assert is_alive(pid)
            here.release(pid, "watched")
            await here.server.told("finished", pid)
            assert here.server.reaps != []  # the bystander of pass_by
            assert pid not in [worker.pid for worker in here.server.reaps]


async def test_the_newest_request_decides_whether_there_is_a_signal() -> None:
    async with bridged() as here:
        with bystander() as spared, bystander() as reaped:
            here.request(spared, "s", UNHURRIED)
            here.request(reaped, "s", HOUR, 0)
            former = (await here.armed(spared, ["s"]))["s"]
            await here.armed(reaped, ["s"])
            here.request(spared, "s", HOUR, 0)
            here.request(reaped, "s", 0.1)
            await assert_reaped(here.server, reaped, 0.0, "s")
            await here.server.pass_by(former)
            assert is_alive(spared)
            assert len(here.server.armed(spared)) == 1


HANDLES = """
import os, signal, sys
def handle(number, frame):
    os.write(1, b"saved\\n")
    sys.exit(3)
signal.signal(signal.SIGTERM, handle)
print("ready", flush=True)
signal.pause()
"""


async def test_a_worker_gets_the_signal_that_it_wants_first() -> None:
    async with bridged() as here:
        with spawn_worker(HANDLES, None) as worker:
            await asyncio.to_thread(worker.wait_line, "ready")
            here.request(worker.pid, "step", 0.1, signal.SIGTERM)
            await here.server.told("reaped", worker.pid)
            assert await ended(worker) == 3
            assert "saved" in worker.output


@pytest.mark.parametrize("number", [signal.SIGSTOP, 64, 10_000])
async def test_a_signal_that_ends_nobody_is_replaced_by_the_servers_ladder(number: int) -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.request(pid, "step", 0.1, number)
            await assert_reaped(here.server, pid, 0.0, "step")


async def test_sigkill_is_wanted_again_after_another_signal() -> None:
    async with bridged() as here:
        with spawn_worker(HANDLES, None) as worker:
            await asyncio.to_thread(worker.wait_line, "ready")
            here.request(worker.pid, "step", HOUR, signal.SIGTERM)
            await here.armed(worker.pid, ["step"])
            here.request(worker.pid, "step", 0.1)
            await here.server.told("reaped", worker.pid)
            assert await ended(worker) == -signal.SIGKILL


# --- who writes nonsense, or dies


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n", b"\xff" * 1000 + b"\n", b"{}\n", b"\n" * 99,
        line("1", "s", 0), line(-3, "s", 0), line(1, None, 0),
    ],
    ids=["text", "bytes", "empty", "nothing", "text for a pid", "no pid", "no scope"],
)  # fmt: skip
async def test_a_line_that_is_no_request_harms_nobody(data: bytes) -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.request(pid, "before", HOUR)
            here.write(data)
            here.request(pid, "after", HOUR)
            assert await here.armed(pid, ["after", "before"])


async def test_what_is_refused_is_told() -> None:
    async with bridged() as here:
        here.write(b"hello\n")
        event = await here.server.told("refused")
        assert event.detail.startswith("'hello' is no request of a file timer: ")


async def test_a_flood_of_nonsense_is_told_of_once_for_a_while() -> None:
    async with bridged() as here:
        for _ in range(100):
            here.write(b"hello\n" * 100)
        await here.all_read()
        assert len(here.server.all_told("refused")) < 10


async def test_who_dies_in_the_middle_of_a_line_costs_no_request_of_the_next() -> None:
    async with bridged() as here:
        with bystander() as pid:
            here.write(line(pid, "lost", time.time() + HOUR)[:50])
            here.request(pid, "step", HOUR)
            assert await here.armed(pid, ["step"])


async def test_a_request_may_come_in_pieces() -> None:
    async with bridged() as here:
        with bystander() as pid:
            data = line(pid, "step", time.time() + HOUR)
            for start in range(0, len(data), 7):
                here.write(data[start : start + 7])
            assert await here.armed(pid, ["step"])


async def test_the_timers_of_a_writer_that_died_are_moot() -> None:
    async with bridged() as here:
        with bystander() as dead:
            pass
        here.request(dead, "step", 0)
        with bystander() as pid:
            here.request(pid, "step", HOUR)
            os.kill(pid, signal.SIGKILL)
        await here.all_read()
        assert here.server.armed(dead) == here.server.armed(pid) == {}
        assert here.server.all_told("reaped") == []


@as_root
async def test_a_process_of_another_user_is_refused_and_the_next_is_not() -> None:
    code = (
        f"import os, sys\nos.setresuid({NOBODY}, {NOBODY}, {NOBODY})\nprint('changed', flush=True)\ninput()"
    )
    async with bridged() as here:
        with spawn_worker(code, None) as foreign, bystander() as pid:
            await asyncio.to_thread(foreign.wait_line, "changed")
            here.request(foreign.pid, "step", 0)
            here.request(pid, "step", HOUR)
            await here.armed(pid, ["step"])
            event = await here.server.told("refused")
            assert f"process {foreign.pid} belongs to uid {NOBODY}" in event.detail
            assert is_alive(foreign.pid)


async def test_the_server_itself_is_refused() -> None:
    async with bridged() as here:
        here.request(os.getpid(), "step", 0)
        event = await here.server.told("refused")
        assert event.detail.endswith("the request names the server itself")
        assert here.server.reaps == []


@as_root
async def test_nobody_else_may_open_the_pipe() -> None:
    code = f"""
        import os, sys
        os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
        try:
            os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
        except PermissionError:
            print("refused")
    """
    async with bridged() as here:
        os.chmod(Path(here.path).parent, 0o755)
        assert stat.S_IMODE(os.stat(here.path).st_mode) == 0o600
        with spawn_worker(code, None, here.path) as stranger:
            await asyncio.to_thread(stranger.wait_line, "refused")


async def test_many_writers_at_once_are_all_heard() -> None:
    """Each opens the pipe anew for each of its requests, as a training job's ranks do."""
    code = """
        import json, os, sys, time
        def write(at, number):
            with open(os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK), "w") as file:
                told = {"version": 1, "pid": os.getpid(), "scope_id": "step", "expiration_time": at}
                file.write(json.dumps(told | {"signal": number}) + chr(10))
        for _ in range(50):
            write(time.time() + 3600, 9)
            write(-1, 0)
        write(time.time() + 3600, 9)
        print("written", flush=True)
        input()
    """
    async with bridged() as here:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(spawn_worker(code, None, here.path)) for _ in range(4)]
            for worker in workers:
                await asyncio.to_thread(worker.wait_line, "written")
            for worker in workers:
                await here.armed(worker.pid, ["step"])
            assert here.server.all_told("refused") == []


# --- the pipe


async def test_the_pipe_is_gone_afterwards_and_what_was_armed_is_not() -> None:
    with short_directory() as directory, bystander() as pid:
        async with serving() as server:
            async with FileTimerBridge(server, directory / "pipe") as bridge:
                here = Bridged(server, bridge.path)
                here.request(pid, "step", HOUR)
                await here.armed(pid, ["step"])
            assert list(directory.iterdir()) == []
            assert list(server.armed(pid)) == ["step"]


async def test_a_pipe_that_was_left_behind_is_used() -> None:
    with short_directory() as directory, bystander() as pid:
        path = directory / "pipe"
        os.mkfifo(path, 0o644)
        async with serving() as server, FileTimerBridge(server, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            here = Bridged(server, str(path))
            here.request(pid, "step", HOUR)
            await here.armed(pid, ["step"])


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_link(path: Path) -> None:
    os.mkfifo(path.with_name("target"))
    path.symlink_to("target")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def a_strangers(path: Path) -> None:
    os.mkfifo(path)
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize("make", [a_file, a_link, a_socket, pytest.param(a_strangers, marks=as_root)])
async def test_what_is_not_our_pipe_is_left_alone(make: Any) -> None:
    with short_directory() as directory:
        make(directory / "pipe")
        former = os.lstat(directory / "pipe")
        async with serving() as server:
            with pytest.raises(UnsafePath):
                async with FileTimerBridge(server, directory / "pipe"):
                    pass
        assert os.path.samestat(former, os.lstat(directory / "pipe"))


async def test_a_directory_that_others_write_into_is_no_place() -> None:
    with short_directory() as directory:
        directory.chmod(0o777)
        async with serving() as server:
            with pytest.raises(UnsafePath, match="can be written by others"):
                async with FileTimerBridge(server, directory / "pipe"):
                    pass
        assert list(directory.iterdir()) == []


async def test_a_pipe_has_one_server() -> None:
    async with bridged() as here, serving() as other:
        with pytest.raises(AlreadyServing, match="another process serves the timer file"):
            async with FileTimerBridge(other, here.path):
                pass
        with bystander() as pid:
            here.request(pid, "step", HOUR)
            await here.armed(pid, ["step"])


async def test_what_is_written_while_a_server_is_restarted_is_not_lost() -> None:
    """Whoever made the pipe hands its descriptor to one server after the other."""
    with short_directory() as directory, bystander() as pid:
        path = str(directory / "pipe")
        os.mkfifo(path)
        kept = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        socket_path = str(directory / "s")
        try:
            async with serving(socket_path) as server:
                async with FileTimerBridge.inherit(server, os.dup(kept)):
                    here = Bridged(server, path)
                    here.request(pid, "first", HOUR)
                    await here.armed(pid, ["first"])
            here.request(pid, "second", HOUR)
            here.release(pid, "first")
            async with serving(socket_path) as server, FileTimerBridge.inherit(server, os.dup(kept)):
                await Bridged(server, path).armed(pid, ["second"])
            assert os.path.exists(path)
        finally:
            os.close(kept)


# --- the commands


RANK = """
import json, os, select, signal, sys, time
told = {"version": 1, "pid": os.getpid(), "scope_id": "step", "signal": 9}
def write(within):
    at = time.time() + within if within > 0 else -1
    with open(os.open(os.environ["TORCHELASTIC_TIMER_FILE"], os.O_WRONLY | os.O_NONBLOCK), "w") as pipe:
        pipe.write(json.dumps(told | {"expiration_time": at}) + chr(10))
assert os.environ["TORCHELASTIC_ENABLE_FILE_TIMER"] != "1", "torchrun would serve the pipe itself"
write(3600)
write(-1)
print("in time", flush=True)
if len(sys.argv) > 3:
    from aiotimer.client.control import status
    server = os.pidfd_open(status(os.environ["AIOTIMER_SOCKET"])["server"]["pid"])
    signal.pidfd_send_signal(server, signal.SIGKILL)
    select.select([server], [], [])
write(float(sys.argv[1]))
time.sleep(float(sys.argv[2]))
"""


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*AIOTIMER, "run", "--", sys.executable, "-c", RANK, *arguments]
    return subprocess.run(
        command, env=environment(TORCHELASTIC_ENABLE_FILE_TIMER="1", **env),
        capture_output=True, text=True, timeout=2 * PATIENCE, check=False,
    )  # fmt: skip


def test_a_command_that_wants_the_file_timer_is_served_by_its_own_server() -> None:
    done = run("0.2", "1000")
    assert done.returncode == 124, done.stderr
    assert done.stdout == "in time\n"
    assert 'scope="step"' in done.stderr
    assert "was reaped" in done.stderr


def test_a_request_to_a_server_that_is_being_restarted_is_not_lost() -> None:
    done = run("0.2", "1000", "kill the server")
    assert done.returncode == 124, done.stderr
    assert 'scope="step"' in done.stderr


def test_the_pipe_is_where_the_environment_says_and_only_as_long_as_the_command() -> None:
    with short_directory() as directory:
        done = run("3600", "0", TORCHELASTIC_TIMER_FILE=str(directory / "pipe"))
        assert done.returncode == 0, done.stderr
        assert list(directory.iterdir()) == []


def test_a_place_that_is_none_is_said_before_the_command_is_started() -> None:
    with short_directory() as directory:
        (directory / "file").write_text("precious")
        done = run("3600", "0", TORCHELASTIC_TIMER_FILE=str(directory / "file"))
        assert done.returncode == 125
        assert done.stdout == ""
        assert done.stderr == f"aiotimer: {directory}/file is no named pipe, and is left alone\n"


def test_without_the_file_timer_the_environment_is_left_alone() -> None:
    code = "import os; print(sorted(name for name in os.environ if name.startswith('TORCHELASTIC')))"
    done = subprocess.run(
        [*AIOTIMER, "run", "--", sys.executable, "-c", code], env=environment(TORCHELASTIC_TIMER_FILE="/p"),
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert done.stdout == "['TORCHELASTIC_TIMER_FILE']\n"


def test_a_server_serves_a_pipe() -> None:
    with short_directory() as directory, bystander() as pid:
        pipe = directory / "pipe"
        command = [*AIOTIMER, "serve", "--socket", str(directory / "s"), "--torch-timer-file", str(pipe)]
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        with SpawnedWorker(process) as server:
            server.wait_line("serving on")
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            os.write(descriptor, line(pid, "step", 0))
            os.close(descriptor)
            wait_dead(pid)
            server.wait_line(f"reaped pid={pid} ")
            process.terminate()
            assert server.wait() == 0
        assert not pipe.exists()


def test_a_server_that_cannot_serve_the_pipe_does_not_serve() -> None:
    with short_directory() as directory:
        (directory / "file").write_text("precious")
        command = [*AIOTIMER, "serve", "--socket", str(directory / "s")]
        done = subprocess.run(
            [*command, "--torch-timer-file", str(directory / "file")],
            env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == UnsafePath.exit_code
        assert done.stderr == f"aiotimer: {directory}/file is no named pipe, and is left alone\n"
        assert sorted(path.name for path in directory.iterdir() if path.suffix != ".lock") == ["file"]
