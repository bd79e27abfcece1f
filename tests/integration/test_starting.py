"""``aiotimer run`` while its server is not there yet: the command runs, and its blocks wait to be watched.

The server is kept from starting by its own interpreter, in a ``sitecustomize`` that reads from a FIFO. It
goes on when the test writes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import monotonic
from typing import IO

import pytest

from aiotimer._core.ping import PING
from aiotimer._linux.paths import SOCKET_VARIABLE, STARTING_VARIABLE, state_directory
from aiotimer.cli.supervisor import Place
from aiotimer.client import waiting
from aiotimer.client.connection import RETRY_EVERY
from aiotimer.client.handshake import reach
from aiotimer.client.launch import READY_WITHIN, announcement, starting_until, until_it_serves
from aiotimer.client.waiting import Steps, Wait
from aiotimer.errors import AlreadyServing
from aiotimer.server.listener import SocketLock
from tests.fakes.clock import PATIENCE, Clock, clock_passes
from tests.fakes.places import private_runtime, short_socket
from tests.fakes.worker import AIOTIMER, environment
from tests.integration.test_cli import assert_one_line, call


@pytest.fixture(autouse=True)
def runtime() -> Iterator[Path]:
    with private_runtime() as directory:
        yield directory


@contextlib.contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Start ``aiotimer run`` with these arguments; yield it and its output."""
    with subprocess.Popen(
        [*AIOTIMER, "run", *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as run:  # fmt: skip
        assert run.stdout is not None
        try:
            yield run, run.stdout
        finally:
            run.kill()


def left(directory: Path) -> list[str]:
    return [path.name for path in (directory / "aiotimer").iterdir()]


def children(run: int, *, server: bool) -> list[int]:
    """Return the pids of what ``aiotimer run`` has started: its server, or its command."""
    pids = map(int, Path(f"/proc/{run}/task/{run}/children").read_text().split())
    return [pid for pid in pids if (b"--ready-fd" in Path(f"/proc/{pid}/cmdline").read_bytes()) is server]


# -- the command --------------------------------------------------------------------------------------------


PRELUDE = """
import os, sys, time
import aiotimer
from aiotimer import AsyncTimerClient, TimerClient, expires

def armed():
    # Return it as soon as something is: whose budget is over is connected by a thread.
    from aiotimer.client.control import status
    while True:
        report = status(os.environ["AIOTIMER_SOCKET"])
        if armed := [timer["scope"] for worker in report["workers"] for timer in worker["timers"]]:
            return armed
        time.sleep(0.01)

options = dict(budget=BUDGET, unavailable="raise")
print("begins", flush=True)
"""

BUDGET = 0.5

IN_THE_LOOP = "import asyncio\nasync def main():\n    {}\nasyncio.run(main())"

BLOCKS = {
    "the default client": "with expires(600, 'first'): print(armed())",
    "with": "with expires(600, 'first', TimerClient(**options)): print(armed())",
    # Released at the end: an interpreter that unmaps an armed table as it ends looks like one that executes.
    "acquire": """
client = TimerClient(**options)
client.acquire('first', 1e9)
print(armed())
client.release('first')
""",
    "by socket": "with expires(600, 'first', TimerClient(shared=False, **options)): print(armed())",
    "with, in a loop": IN_THE_LOOP.format(
        "with expires(600, 'first', TimerClient(**options)): print(armed())"
    ),
    "async with": IN_THE_LOOP.format(
        "async with expires(600, 'first', AsyncTimerClient(**options)): print(armed())"
    ),
    "async with, by socket": IN_THE_LOOP.format(
        "async with expires(600, 'first', AsyncTimerClient(shared=False, **options)): print(armed())"
    ),
    "two threads": """
import threading
client = TimerClient(**options)
def enter():
    with expires(600, 'first', client): pass
thread = threading.Thread(target=enter)
thread.start()
with expires(600, 'first', client):
    thread.join()
    print(armed())
""",
}


@pytest.mark.parametrize("block", BLOCKS)
def test_the_commands_first_block_is_watched_however_long_its_server_takes(block: str, fifo: Path) -> None:
    program = PRELUDE.replace("BUDGET", str(BUDGET)) + BLOCKS[block]
    with running("--", sys.executable, "-c", program) as (run, output):
        assert output.readline() == "begins\n"
        clock_passes(monotonic() + max(BUDGET, RETRY_EVERY) + 0.1)  # longer than anybody waits for an answer
        fifo.write_text("go on")
        assert output.readline() == "['first']\n"
        assert (run.communicate(timeout=PATIENCE)[1], run.returncode) == ("", 0)


@pytest.mark.parametrize("hang", ["ctypes.PyDLL(None).pause()", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_a_command_that_cannot_run_when_its_server_comes_is_watched(hang: str, fifo: Path) -> None:
    """No thread of it can finish the connection: what it says has to be there for the server to read."""
    program = f"""
import ctypes, os, signal
from aiotimer import expires
with expires(0.1):
    os.write(1, b"is in it\\n")
    {hang}
"""
    with running("--quiet", "--", sys.executable, "-c", program) as (run, output):
        assert output.readline() == "is in it\n"
        fifo.write_text("go on")
        told = run.communicate(timeout=PATIENCE)[1]
        assert (told.count("aiotimer: reaped"), run.returncode) == (1, 124), told


def test_the_command_runs_before_its_server_does_and_gets_its_signals(fifo: Path, runtime: Path) -> None:
    waiting = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a handler's flag may be set just before a wait
print("runs", flush=True)
signal.sigwait({signal.SIGTERM})
sys.exit(9)
"""
    with running("--", sys.executable, "-c", waiting) as (run, output):
        assert output.readline() == "runs\n"
        run.send_signal(signal.SIGTERM)
        assert (run.communicate(timeout=PATIENCE)[1], run.returncode) == ("", 9)
    assert left(runtime) == []


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -KILL $$", 137)])
@pytest.mark.parametrize("private", [True, False], ids=["private", "--socket"])
def test_a_command_that_ends_first_leaves_no_server(
    command: str, code: int, private: bool, fifo: Path, runtime: Path
) -> None:
    with short_socket() as path:
        options = () if private else ("--socket", path)
        ended = call("run", *options, "--", "sh", "-c", command)
        assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")
        assert not os.path.exists(path)
    assert left(runtime) == []


def test_a_command_that_cannot_be_run_is_told_of_at_once(fifo: Path, runtime: Path) -> None:
    ended = call("run", "--", "no-such-command-anywhere")
    assert ended.returncode == 127
    assert_one_line(ended.stderr, "no-such-command-anywhere")
    assert left(runtime) == []


ENDED = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # or it might come just before the wait
print("runs", flush=True)
signal.sigwait({signal.SIGTERM})
print("ended", flush=True)
"""


@pytest.mark.parametrize("private", [True, False], ids=["private", "--socket"])
def test_if_there_is_never_a_server_the_command_is_ended(private: bool, fifo: Path, runtime: Path) -> None:
    with short_socket() as path:
        options = () if private else ("--socket", path)
        with running(*options, "--", sys.executable, "-c", ENDED) as (run, output):
            assert output.readline() == "runs\n"
            fifo.write_text("fail")
            stdout, stderr = run.communicate(timeout=PATIENCE)
        assert (stdout, run.returncode) == ("ended\n", 125)
        own, of_run = stderr.splitlines()
        assert own == "no server today"
        assert of_run.startswith("aiotimer: no timer server at ")
        assert "it ended while starting; its own message says why" in of_run
        assert not os.path.exists(path)
    assert left(runtime) == []


def test_a_server_that_would_refuse_the_state_directory_costs_no_command(runtime: Path) -> None:
    with short_socket() as path:
        assert call("run", "--socket", path, "--", "true").returncode == 0
        (state_directory(path) / "1-1-1.v999").touch()
        ended = call("run", "--socket", path, "--", "echo", "runs")
        assert (ended.returncode, ended.stdout) == (125, "")
        assert_one_line(ended.stderr, "table layout 999")
        assert not os.path.exists(path)


SERVED = """
import os, sys
from aiotimer.client.control import ping
print("runs", flush=True)
sys.stdin.readline()
ping(os.environ["AIOTIMER_SOCKET"])
print("is served", flush=True)
sys.stdin.readline()
"""


def test_at_no_moment_can_another_server_take_the_place(fifo: Path) -> None:
    with short_socket() as path:
        with running("--socket", path, "--", sys.executable, "-c", SERVED) as (run, output):
            assert run.stdin is not None
            assert output.readline() == "runs\n"
            assert call("serve", "--socket", path).returncode == AlreadyServing.exit_code
            fifo.write_text("go on")
            run.stdin.write("\n")
            run.stdin.flush()
            assert output.readline() == "is served\n"
            assert call("serve", "--socket", path).returncode == AlreadyServing.exit_code
            run.communicate("\n", timeout=PATIENCE)
        assert run.returncode == 0
        SocketLock(path).release()


def test_a_server_is_told_to_end_by_a_signal_that_it_does_not_ignore(fifo: Path) -> None:
    """While it imports it has no handler yet, and it would inherit that the signal is ignored."""
    shell = ("sh", "-c", "trap '' TERM; exec \"$@\"", "sh")
    with subprocess.Popen(
        [*shell, *AIOTIMER, "run", "--", sys.executable, "-c", SERVED],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "runs\n"
        (server,) = children(run.pid, server=True)
        status = Path(f"/proc/{server}/status").read_text()
        (ignored,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:")]
        assert not ignored & 1 << signal.SIGTERM - 1
        fifo.write_text("go on")
        run.communicate("\n\n", timeout=PATIENCE)
    assert run.returncode == 0


def test_neither_the_lock_nor_the_pipes_are_the_commands() -> None:
    """What the server inherits the command does not: it would hold the lock after the server's death."""
    with running("--", sys.executable, "-c", SERVED) as (run, output):
        assert output.readline() == "runs\n"
        (command,) = children(run.pid, server=False)
        assert {path.name for path in Path(f"/proc/{command}/fd").iterdir()} == {"0", "1", "2"}
        run.communicate("\n\n", timeout=PATIENCE)
    assert run.returncode == 0


# -- the place ----------------------------------------------------------------------------------------------


def test_a_place_is_locked_until_nobody_has_it() -> None:
    """An inherited lock is the open file's: a duplicate, as a child has one, keeps it."""
    with short_socket() as path:
        place = Place(path)
        lock = place.descriptors["--lock-fd"]
        kept = os.dup(lock)
        with pytest.raises(AlreadyServing):
            SocketLock(path, inherited=True)
        place.hand_over()
        with pytest.raises(AlreadyServing):
            SocketLock(path, inherited=True)
        os.close(kept)
        SocketLock(path, inherited=True).release()


def test_a_place_of_a_living_server_cannot_be_had() -> None:
    with short_socket() as path:
        # A POSIX lock is of another process, or it would not exclude this one's.
        holder = "import sys; from aiotimer.server.listener import SocketLock; lock = SocketLock(sys.argv[1])"
        holder += "; print('held', flush=True); sys.stdin.readline()"
        with subprocess.Popen(
            [sys.executable, "-c", holder, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(AlreadyServing):
                Place(path)
            process.communicate("\n", timeout=PATIENCE)
        Place(path).give_up()
        assert not os.path.exists(path)


# -- waiting for it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "x", "1", "1:2:3", "1:x", "x:1", "1:nan", "1:1e12", "1:inf"],
)
def test_an_announcement_that_is_none_is_not_waited_for(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET_VARIABLE, "/nowhere/s")
    monkeypatch.setenv(STARTING_VARIABLE, text)
    assert not starting_until("/nowhere/s") > monotonic()
    assert waiting.run(until_it_serves("/nowhere/s"), 0.0) == -inf


def test_an_announcement_is_for_one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    until = monotonic() + READY_WITHIN / 2
    monkeypatch.setenv(SOCKET_VARIABLE, "/nowhere/s")
    monkeypatch.setenv(STARTING_VARIABLE, announcement(until))
    assert starting_until("/nowhere/s") == until
    assert starting_until("/nowhere/t") == -inf


@pytest.mark.parametrize("listener", ["the one announced", "another"])
def test_only_who_was_announced_is_waited_for(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is there, and silent: it is stuck, and not starting."""
    pid = os.getpid() if listener == "the one announced" else os.getppid()
    with short_socket() as path, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        monkeypatch.setenv(SOCKET_VARIABLE, path)
        monkeypatch.setenv(STARTING_VARIABLE, f"{pid}:{monotonic() + READY_WITHIN / 2}")
        waits = list(until_it_serves(path))
        assert len(waits) == (listener == "the one announced")


class Sleeper:
    """A clock that whoever sleeps moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(waiting, "monotonic", self.clock)
        monkeypatch.setattr(waiting, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds


def test_a_wait_apart_is_not_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    until = Sleeper(monkeypatch).clock.now + 10.0

    def steps() -> Steps[str]:
        yield Wait(seconds=0.4)
        yield Wait(seconds=7.0, until=until)
        yield Wait(seconds=0.5)
        return "done"

    assert waiting.run(steps(), 1.0) == "done"


def test_a_wait_apart_ends_at_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Sleeper(monkeypatch)
    begun = sleeper.clock.now

    def steps() -> Steps[None]:
        while True:
            yield Wait(seconds=0.5, until=begun + 10.0)

    with pytest.raises(TimeoutError):
        waiting.run(steps(), 1.0)
    assert begun + 10.0 <= sleeper.clock.now <= begun + 11.0


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("driver", ["run", "run_async"])
async def test_a_wait_in_vain_ends_the_steps_there(driver: str, apart: bool) -> None:
    """Not at their next wait, if there is one: what they would do meanwhile supposes an answer."""
    done: list[str] = []
    end, silent = socket.socketpair()

    def steps() -> Steps[None]:
        done.append("waits")
        yield Wait(end.fileno(), until=monotonic() + 0.01 if apart else -inf)
        done.append("was answered")

    within = r"0\.0\d+" if apart else r"0\.01"  # of what is not part of the budget, what was left then
    with end, silent, pytest.raises(TimeoutError, match=rf"^no answer within {within} s$"):
        if driver == "run":
            waiting.run(steps(), 0.0001 if apart else 0.01)
        else:
            await waiting.run_async(steps(), 0.0001 if apart else 0.01)
    assert done == ["waits"]


def test_without_a_table_nothing_is_sent_to_a_server_that_is_starting_but_a_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A HELLO would wait in the backlog of whoever started it, and list what has been released since."""
    with short_socket() as path, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        monkeypatch.setenv(SOCKET_VARIABLE, path)
        monkeypatch.setenv(STARTING_VARIABLE, announcement(monotonic() + READY_WITHIN / 2))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            with pytest.raises(TimeoutError):
                waiting.run(reach(sock, path, lambda: -inf), 0.001, patient=False)
            with pytest.raises(OSError, match="not connected"):
                sock.getpeername()
        with listening.accept()[0] as peer:
            assert peer.recv(65_536) == PING
