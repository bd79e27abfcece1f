"""Faults 32 to 35: many at once, no descriptors left, and readers that do not read.

The laws of this file:

* Nobody believes to be watched who is not: a client is armed, or has an error that says why.
* Timers come first. Neither a crowd at the door, nor a full log, nor a peer that does not read what it asked
  for keeps a timer from firing.
* How long something takes is measured by ``python -m benchmarks --only load``. What is judged here is who was
  armed, who was reaped, how many attempts were made, and in which order.

The sizes of the issue (2,000 clients, 10,000 timers) are in the soak. There is no metrics exporter yet whose
scraper could hang; what there is, a peer that asks for the status and never reads it, is tested instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from aiotimer import Refused, TimerRequest
from aiotimer._core import wire
from aiotimer._linux import procfs
from aiotimer._linux.paths import state_directory
from aiotimer.client.control import ping, status
from aiotimer.server.connection import Acceptor
from aiotimer.server.listener import BACKLOG
from aiotimer.server.sinks import CAPACITY
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.server import LOOPS, ServerProcess, ServerThread, answer, armed, raw_client, serving
from tests.fakes.worker import (
    AIOTIMER,
    HANGS,
    PRELUDE,
    SpawnedWorker,
    bystander,
    ended,
    environment,
    is_alive,
    number,
    program,
    spawn_worker,
    wait_dead,
)

heavy = (pytest.mark.soak, pytest.mark.timeout(600))

# -- fault 32 ---------------------------------------------------------------------------------------------

CROWD = (
    PRELUDE
    + """
from aiotimer._core import wire  # loaded here, once, rather than in every child

def knock(number):
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, storm, storm)
    client = TimerClient(unavailable="raise", budget=600 if number % 2 else 0.2)
    try:
        client.acquire("s", time.monotonic() + 1000)
    except ConnectionError as error:
        said = "error", os.getpid(), type(error).__name__
    except BaseException as error:
        said = "nonsense", os.getpid(), repr(error)
    else:
        said = "armed", os.getpid()
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    say(*said)
    sys.stdin.readline()
    os._exit(0)

count, storm = int(sys.argv[1]), float(sys.argv[2])
for number in range(count):
    if os.fork() == 0:
        knock(number)
sys.stdin.readline()
"""
)


def pids_that(crowd: SpawnedWorker, said: str, count: int) -> set[int]:
    """Wait until so many of a crowd have said something; return who."""
    return {int(crowd.wait_line(said, 4 * PATIENCE).split()[1]) for _ in range(count)}


@pytest.mark.parametrize(("count", "storm"), [(60, 0.01), pytest.param(2000, 0.1, marks=heavy)])
def test_fault_32_connects_to_a_server_that_stands_still(count: int, storm: float) -> None:
    """Half of them have no patience. A connect() that a signal interrupts may look like a success."""
    with short_socket() as path, ServerProcess(path, "uvloop") as server:
        server.freeze()
        with spawn_worker(CROWD, path, str(count), repr(storm)) as crowd:
            impatient = pids_that(crowd, "error", count // 2)
            server.thaw()
            patient = pids_that(crowd, "armed", count // 2)
            report = status(path)
            watched = {w["pid"] for w in report["workers"] if armed(report, w["pid"]).keys() == {"s"}}
            assert watched == patient
            assert impatient.isdisjoint(w["pid"] for w in report["workers"] if w["timers"])


def test_fault_32_connects_to_a_full_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is blocked by a callback, and the kernel takes no more than a few connections."""
    monkeypatch.setattr("aiotimer.server.listener.BACKLOG", 8)
    go_on = threading.Event()
    with ServerThread() as server, spawn_worker(CROWD, server.path, "40", "0.01") as crowd:
        blocked = threading.Thread(target=lambda: server.call(lambda _server: go_on.wait(4 * PATIENCE)))
        blocked.start()
        pids_that(crowd, "error", 20)
        go_on.set()
        patient = pids_that(crowd, "armed", 20)
        blocked.join(PATIENCE)
        watched = {w["pid"] for w in server.status()["workers"] if len(w["timers"]) == 1}
        assert watched == patient


# -- fault 33 ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(path: str, *options: str, limit: str = "", **popen: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``aiotimer serve``, under a shell's ``ulimit`` if one is given, until the end of the block."""
    command = [*AIOTIMER, "serve", "--socket", path, *options]
    if limit:
        command = ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), **popen) as server:  # type: ignore[call-overload]
        assert server.stdout is not None
        assert path.encode() in server.stdout.readline()
        try:
            yield server
        finally:
            server.terminate()
            server.wait(PATIENCE)


MANY = (
    PRELUDE
    + """
from aiotimer._core import wire

def worker():
    client = TimerClient(unavailable="raise", budget=30)
    try:
        client.acquire("s", time.monotonic() + 1000)
    except ConnectionError as error:
        say("error", os.getpid(), error)
        os._exit(0)
    def hang(*_):
        client.acquire("soon", time.monotonic())
        time.sleep(1000)
    signal.signal(signal.SIGUSR1, hang)
    say("armed", os.getpid())
    sys.stdin.readline()
    os._exit(0)

for number in range(int(sys.argv[1])):
    if os.fork() == 0:
        worker()
sys.stdin.readline()
"""
)


def test_fault_33_no_descriptors_left() -> None:
    """Newcomers are told, one by one. Timers fire, and that makes room for others."""
    with short_socket() as path, serve(path, limit="-n 64", stderr=subprocess.DEVNULL):
        with spawn_worker(MANY, path, "40") as crowd:
            answers = [crowd.wait_line("") for _ in range(40)]
            watched = [int(answer.split()[1]) for answer in answers if answer.startswith("armed")]
            refused = [answer for answer in answers if answer.startswith("error")]
            assert len(watched) >= 10
            assert len(refused) == 40 - len(watched) >= 10
            for answer in refused:
                assert "refused this client: the server is out of file descriptors" in answer
            with contextlib.ExitStack() as stack, pytest.raises(Refused, match="descriptors"):
                while True:  # whoever asks is a client, too
                    stack.enter_context(raw_client(path))
                    ping(path)
            for pid in watched[:3]:
                os.kill(pid, signal.SIGUSR1)
            for pid in watched[:3]:
                wait_dead(pid)
            assert all(is_alive(pid) for pid in watched[3:])
            until = monotonic() + PATIENCE
            known = set(watched)
            while known != set(watched[3:]):  # of a death all is told before it is forgotten
                assert monotonic() < until, known
                with contextlib.suppress(Refused):
                    known = {worker["pid"] for worker in status(path)["workers"]}
            with spawn_worker(MANY, path, "1") as newcomer:
                newcomer.wait_line("armed")


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), LookupError("ours")])
async def test_fault_33_what_fails_on_the_way_to_a_kill_is_tried_again(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To see whether the worker is the same program takes a descriptor. Without one, it is taken for it."""
    failures = 0
    really = procfs._stat

    def failing(pid: int) -> list[bytes]:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise fault
        return really(pid)

    async with serving(bound=0.5) as server:
        with spawn_worker(program("with", HANGS["gil"], after=2.0), server.socket_path) as worker:
            await number(worker, "deadline")
            monkeypatch.setattr(procfs, "_stat", failing)
            await server.told("reaped", worker.pid)
            assert failures >= 1
            assert await ended(worker) == -signal.SIGKILL


class Exhausted(socket.socket):
    """A listener from which nothing can be accepted; it is readable for ever."""

    attempts = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.attempts += 1
        raise OSError(errno.EMFILE, "Too many open files")


async def test_fault_33_a_listener_that_cannot_be_accepted_from_does_not_spin() -> None:
    """Not even the reserve helps. There are two attempts for each rest, not thousands."""
    with short_socket() as path, Exhausted(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        told: list[str] = []
        with raw_client(path):
            began = monotonic()
            acceptor = Acceptor(listener, asyncio.get_running_loop(), lambda _sock: None, told.append)
            await asyncio.sleep(0.45)
            acceptor.close()
            rests = (monotonic() - began) / 0.1
        assert 2 <= listener.attempts <= 2 * (1 + rests)
        assert set(told) == {"cannot accept a connection: Too many open files"}


async def test_fault_33_the_reserve_is_used_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's refusal is played: whoever comes is told why, and the descriptor is there for the next."""
    really_accept = socket.socket.accept

    def refusing(self: socket.socket) -> tuple[socket.socket, object]:
        if os.path.exists("/proc/self/fd/" + str(acceptor._reserve)):
            raise OSError(errno.EMFILE, "Too many open files")
        return really_accept(self)

    with short_socket() as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        told: list[str] = []
        acceptor = Acceptor(listener, asyncio.get_running_loop(), lambda _sock: None, told.append)
        monkeypatch.setattr(socket.socket, "accept", refusing)
        for _ in range(10):
            with raw_client(path) as client:
                (refusal,) = await answer(client)
                assert isinstance(refusal, wire.Refused)
                assert "out of file descriptors" in refusal.reason
        acceptor.close()
        assert told[0].startswith("turned away")
        assert acceptor._reserve == -1


async def test_fault_33_a_reserve_that_was_lost_is_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may open a file in its place. The next descriptor is not for a client: the one after it
    could not be told why it has to wait. The kernel's refusals are played."""
    really_open, really_accept = os.open, socket.socket.accept
    capacity, used = 0, set[int]()

    def check() -> None:
        if sum(os.path.exists(f"/proc/self/fd/{descriptor}") for descriptor in used) >= capacity:
            raise OSError(errno.EMFILE, "Too many open files")

    def opening(path: str, flags: int) -> int:
        check()
        used.add(reserve := really_open(path, flags))
        return reserve

    def accepting(self: socket.socket) -> tuple[socket.socket, object]:
        check()
        accepted, address = really_accept(self)
        used.add(accepted.fileno())
        return accepted, address

    with short_socket() as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        kept = asyncio.get_running_loop().create_future()
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", opening)
            patch.setattr(socket.socket, "accept", accepting)
            acceptor = Acceptor(listener, asyncio.get_running_loop(), kept.set_result, lambda _what: None)
            with raw_client(path) as first, raw_client(path) as second:
                capacity = 1
                for client in (first, second):
                    (refusal,) = await answer(client)
                    assert isinstance(refusal, wire.Refused)
                capacity = 2
                with raw_client(path):
                    (await asyncio.wait_for(kept, PATIENCE)).close()  # there is room for it
            acceptor.close()


def test_fault_33_the_limit_is_raised_as_far_as_it_goes() -> None:
    with short_socket() as path, serve(path, limit="-S -n 256"):
        limits = Path(f"/proc/{ping(path).pid}/limits").read_text()
        (row,) = (row for row in limits.splitlines() if row.startswith("Max open files"))
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert row.split()[3:5] == [str(hard), str(hard)]


def test_fault_33_the_backlog() -> None:
    """So many may start at once: the kernel keeps them while the server is busy."""
    longest = min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    former, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < longest + 200:
        pytest.skip(f"needs {longest + 200} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with short_socket() as path, ServerProcess(path) as server, contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (former, hard))
        server.freeze()
        knocked = 0
        with contextlib.suppress(BlockingIOError):
            while knocked < longest + 100:
                knocking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                stack.enter_context(knocking).connect(path)
                knocked += 1
        assert knocked == longest + 1  # listen(2)'s off by one


# -- fault 34 ---------------------------------------------------------------------------------------------

STORM = (
    PRELUDE
    + """
import struct
from aiotimer._core import wire

def worker():
    client = TimerClient(unavailable="raise", budget=120)
    client.connect()
    say("connected")
    due, = struct.unpack("=d", os.read(orders, 8))
    for timer in range(50):
        client.acquire(f"timer {timer}", due + timer * 0.00002)
    time.sleep(1000)

orders, gate = os.pipe()
pids = []
for number in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        worker()
    pids.append(pid)
after = float(sys.stdin.readline())
os.write(gate, struct.pack("=d", time.monotonic() + after) * len(pids))
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
say("codes", *codes)
"""
)


@pytest.mark.parametrize(("workers", "after"), [(20, 0.5), pytest.param(200, 3.0, marks=heavy)])
@pytest.mark.parametrize("loop", LOOPS)
def test_fault_34_timers_due_in_one_millisecond(workers: int, after: float, loop: str) -> None:
    """Fifty for each worker. All are reaped, none early, and whoever asks meanwhile has an answer."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        with spawn_worker(STORM, path, str(workers)) as storm:
            for _ in range(workers):
                storm.wait_line("connected", 4 * PATIENCE)
            storm.say(repr(after))
            while not any(line.startswith("codes") for line in list(storm.lines)):
                assert ping(path).pid == server.pid
            assert storm.wait_line("codes").split()[1:] == ["-9"] * workers
        server.pass_by(monotonic())
        late = [event["late_s"] for event in server.events if event["event"] == "reaped"]
        assert len(late) == workers + 1  # and the bystander
        assert min(late) >= 0


# -- fault 35 ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[int, int, int]]:
    """Yield a pipe that takes nothing more, and how many bytes it holds."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 65_536)
    os.set_blocking(write, False)
    held = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            held += os.write(write, b"x" * 4095 + b"\n")
    os.set_blocking(write, True)
    try:
        yield read, write, held
    finally:
        for descriptor in (read, write):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def talk_nonsense(path: str, times: int) -> None:
    """Make a server log so many lines: clients whose bytes are no message."""
    for _ in range(times):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)
            client.sendall(b"\xff" * 8)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""  # it has been dealt with


def assert_reaps(path: str) -> int:
    """A worker that hangs is reaped, and the server has said so; return its pid."""
    with spawn_worker(program("with", HANGS["gil"], after=0.1), path) as victim:
        assert victim.wait() == -signal.SIGKILL
        ping(path)  # it hears of deaths in their order with requests
        return victim.pid


def test_fault_35_the_log_is_full() -> None:
    """Nobody reads standard error. Timers fire; lines are dropped, counted, and owned up to.

    Whatever else there is to say, what has become of a worker gets through.
    """
    lines = CAPACITY + 500
    with short_socket() as path, full_pipe() as (read, write, held):
        directory = state_directory(path)
        for number in range(lines):
            (directory / f"stranger-{number}").touch()
        with serve(path, stderr=write) as server:  # which says of each that it ignores it
            os.close(write)
            quiet = assert_reaps(path)
            said = b""
            while b"lines dropped" not in said:
                said += os.read(read, 65_536)
            last = assert_reaps(path)
            while f"reaped pid={last} ".encode() not in said:
                said += os.read(read, 65_536)
            server.terminate()
            while rest := os.read(read, 65_536):
                said += rest
            assert server.wait(PATIENCE) == 0
        text = said[held:].decode()
        dropped = sum(map(int, re.findall(r"(\d+) log lines dropped", text)))  # told as often as need be
        assert text.count("ignoring") + text.count("reaped") + dropped == lines + 2
        assert (
            text.index("lines dropped")
            < text.index(f"reaped pid={quiet} ")
            < text.index(f"reaped pid={last} ")
        )


def test_fault_35_a_full_log_does_not_keep_a_server_from_ending() -> None:
    with short_socket() as path, full_pipe() as (_read, write, _held):
        with serve(path, stderr=write) as server:
            assert_reaps(path)
            server.terminate()
            assert server.wait(PATIENCE) == 0


def test_fault_35_the_last_lines_get_out() -> None:
    """What is logged just before the end is still written."""
    with short_socket() as path, serve(path, stderr=subprocess.PIPE) as server:
        talk_nonsense(path, 300)
        server.terminate()
        assert server.stderr is not None
        with server.stderr as errors:
            assert b"299 more refusals" in errors.read()
        assert server.wait(PATIENCE) == 0


def test_fault_35_the_events_pipe_is_full() -> None:
    """Timers fire; events wait until somebody reads."""
    with short_socket() as path, full_pipe() as (read, write, held):
        options = ("--events-fd", str(write))
        with serve(path, *options, pass_fds=(write,)) as server:
            os.close(write)
            reaped = [assert_reaps(path), assert_reaps(path)]
            while held > 0:
                held -= len(os.read(read, held))
            server.terminate()
            assert server.wait(PATIENCE) == 0
            with open(read, closefd=False) as told:
                events = [(event["event"], event["pid"]) for event in map(json.loads, told)]
        assert events == [(kind, pid) for pid in reaped for kind in ("expired", "reaped")]


def test_fault_35_run_reads_the_events_while_it_waits() -> None:
    """More than a pipe holds, then the one about the command itself: the exit status is 124 all the same."""
    source = (
        PRELUDE
        + """
import socket
path = os.environ["AIOTIMER_SOCKET"]
for _ in range(1000):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(bytes([255] * 8))
        try:
            client.recv(1)
        except ConnectionResetError:
            pass
with expires(0.1, "the end"):
    time.sleep(1000)
"""
    )
    result = subprocess.run(
        [*AIOTIMER, "run", "--", sys.executable, "-c", source],
        stderr=subprocess.DEVNULL, timeout=2 * PATIENCE, env=environment(), check=False,
    )  # fmt: skip
    assert result.returncode == 124


async def test_fault_35_peers_that_ask_for_the_status_and_never_read_it() -> None:
    """What is kept for them is bounded, and they are closed. A timer fires meanwhile."""
    async with serving() as server:
        with contextlib.ExitStack() as stack:
            victim = stack.enter_context(bystander())
            server.register_timers(
                [TimerRequest(os.getpid(), "x" * 200 + str(n), monotonic() + 1000) for n in range(3000)]
            )
            peers = [stack.enter_context(raw_client(server.socket_path)) for _ in range(10)]
            for peer in peers:
                for _ in range(5):
                    await asyncio.get_running_loop().sock_sendall(peer, wire.encode(wire.StatusRequest()))
            server.register_timers([TimerRequest(victim, "s", monotonic() + 0.1)])
            await server.told("reaped", victim)
            await server.until(lambda: not server._context.sessions, "every peer was closed")
            assert server.armed(os.getpid())
