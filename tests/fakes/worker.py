"""Workers: real processes, and programs for them, which are every way to be under a timer around any body.

The laws of this file: a program prints ``deadline X`` once its timer is armed, and then runs the body it was
given; lines are written whole, because parents and children share a stream. Where a test has something to do
between arming and the deadline, no process starts in between: the program is started first, and arms
``UNHURRIED`` seconds when it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Self

import pytest

import aiotimer
from tests.fakes import nursery
from tests.fakes.clock import PATIENCE

FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
"""For a test that forks its own process, which has threads. CPython warns the parent, and from 3.15 on raises
there if warnings are errors: nobody waits for the child then."""


class Reconnectors:
    """The threads that try to reconnect, each a ``threading.Thread``.

    Coverage follows these, and they can be waited for.
    """

    def __init__(self) -> None:
        self._started: list[threading.Thread] = []

    def start(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        """Do what ``_thread.start_new_thread`` does."""
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._started.append(thread)
        thread.start()

    def wait_ended(self) -> None:
        """Wait until every one that has been started has ended: there is no outage any more."""
        for thread in self._started:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "an outage is not over"


class SpawnedWorker:
    """A Python process with ``$AIOTIMER_SOCKET`` set. Killed and waited for at the end of its ``with``.

    Attributes:
        process: the process; its output, both streams, comes as lines.
        lines: the lines read so far.
    """

    def __init__(self, process: subprocess.Popen[str] | nursery.Program) -> None:
        self.process = process
        self.lines: list[str] = []
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(PATIENCE)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self._reader.join(PATIENCE)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has printed, as far as it has been read."""
        return "\n".join(self.lines)

    def wait_line(self, text: str, timeout: float = PATIENCE) -> str:
        """Read lines until one contains ``text``; return that one."""
        until = monotonic() + timeout
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, until - monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} within {timeout:g} s:\n{self.output}") from None
            assert line is not None, f"it ended without a line with {text!r}:\n{self.output}"
            if text in line:
                return line

    def unread(self) -> list[str]:
        """Return the lines of one that has ended which nobody has waited for."""
        return list(filter(None, iter(self._queue.get, None)))

    def say(self, line: str = "") -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; return the exit code (-N: died of signal N). All its output is read then."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                self._queue.put(self.lines[-1])
        self._queue.put(None)


def spawn_worker(
    code: str,
    path: str | None,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
    **popen: Any,
) -> SpawnedWorker:
    """Start ``python -c code`` as a worker of the server at ``path``; use it in a ``with``.

    It is forked in a nursery, unless there are options of the interpreter, or something for ``Popen``.

    Args:
        code: the program; it may be indented.
        path: the socket, for ``$AIOTIMER_SOCKET``; None leaves that unset.
        arguments: become ``sys.argv[1:]``.
        env: more environment variables.
        options: of the interpreter.
        popen: for ``subprocess.Popen``.
    """
    source = textwrap.dedent(code)
    environment = worker_environment(path, env)
    if not options and not popen:
        return SpawnedWorker(nursery.start(source, arguments, environment))
    return SpawnedWorker(
        subprocess.Popen(
            [sys.executable, *options, "-c", source, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            **popen,
        )
    )


def worker_environment(path: str | None, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a worker of the server at ``path``, which finds the package that we have."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    environment.pop("AIOTIMER_SOCKET", None)
    if path is not None:
        environment["AIOTIMER_SOCKET"] = path
    root = str(Path(aiotimer.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment


@contextlib.contextmanager
def bystander() -> Iterator[int]:
    """Yield the pid of a child of this process that does nothing until its end."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            # Popen returns when its exec has closed a descriptor; the command line is noted after that.
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes() and process.poll() is None:
                os.sched_yield()
            yield process.pid
        finally:
            process.kill()


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def stop(pid: int) -> None:
    """SIGSTOP a child of this process, and return when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def wait_dead(pid: int) -> None:
    """Wait until a process, anybody's, is dead: its pidfd is readable then, whoever waits for it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    dead = poll.poll(PATIENCE * 1000)
    os.close(pidfd)
    assert dead, f"process {pid} is still there"


async def line(worker: SpawnedWorker, text: str, patience: float = PATIENCE) -> str:
    """Return the line of a worker's output that begins with ``text``, without blocking the loop.

    The order of lines does not matter: a worker's children write to the same stream.
    """
    until = monotonic() + patience
    while True:
        for found in list(worker.lines):
            if found.startswith(text):
                return found
        await asyncio.to_thread(worker.wait_line, text, until - monotonic())


async def number(worker: SpawnedWorker, name: str, patience: float = PATIENCE) -> float:
    """Wait for a line ``name 12.5`` of a worker's output, and return its number."""
    found = await line(worker, name + " ", patience)
    return float(found.removeprefix(name))


async def ended(worker: SpawnedWorker) -> int:
    """Wait for a worker's end without blocking the loop; return its exit code (-N: died of signal N)."""
    return await asyncio.to_thread(worker.wait)


async def soon(condition: Callable[[], object]) -> bool:
    """Give the loop's callbacks some turns until a condition holds; return whether it does."""
    for _ in range(100):
        if condition():
            break
        await asyncio.sleep(0)
    return bool(condition())


PRELUDE = """
import ctypes, os, signal, sys, threading, time
from aiotimer import AsyncTimerClient, TimerClient, expires

class Later:  # Half of what a worker's start would take is to import what most workers never use.
    def __init__(self, name):
        self._name = name
    def __getattr__(self, attribute):
        globals()[self._name] = module = __import__(self._name)
        return getattr(module, attribute)

asyncio, logging = Later("asyncio"), Later("logging")

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""

ENTRIES = {
    "with": """
client = TimerClient(unavailable="raise", shared=SHARED, budget=30)
with expires(AFTER, "victim", client) as block:
    say("deadline", block.deadline)
    BODY
say("left")
""",
    "async with": """
async def main():
    client = AsyncTimerClient(unavailable="raise", shared=SHARED, budget=30)
    async with expires(AFTER, "victim", client) as block:
        say("deadline", block.deadline)
        BODY
    say("left")
asyncio.run(main())
""",
    "with on a loop": """
async def main():
    client = AsyncTimerClient(unavailable="raise", shared=SHARED, budget=30)
    await client.connect()
    with expires(AFTER, "victim", client) as block:
        say("deadline", block.deadline)
        BODY
    say("left")
asyncio.run(main())
""",
    "acquire": """
client = TimerClient(unavailable="raise", shared=SHARED, budget=30)
client.connect()  # a time of AFTER may be over before it has come about
deadline = time.monotonic() + AFTER
client.acquire("victim", deadline)
say("deadline", deadline)
BODY
client.release("victim")
say("left")
""",
    "async acquire": """
async def main():
    client = AsyncTimerClient(unavailable="raise", shared=SHARED, budget=30)
    await client.connect()
    deadline = time.monotonic() + AFTER
    await client.acquire("victim", deadline)
    say("deadline", deadline)
    BODY
    await client.release("victim")
    say("left")
asyncio.run(main())
""",
}
"""How to be under a timer when the body begins. Each says ``left`` when it is not any more."""

HANGS = {
    "lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    # PyDLL calls without letting go of the GIL: no other thread of the process runs again.
    "gil": "ctypes.PyDLL(None).sleep(1000)",
    "spin": "while True: pass",
    # The handler would be run by the interpreter, which does not come to it either way.
    "sigterm": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "ctypes.PyDLL(None).sleep(1000)"
    ),
}
"""Bodies that never end, in synchronous code."""


UNHURRIED = 4.0
"""Seconds from arming to a deadline before which a test has a few system calls to make, on any machine."""

READY = """
early = TimerClient(unavailable="raise", shared=SHARED, budget=30)
early.connect()
say("ready")
sys.stdin.readline()
"""


def program(
    entry: str, body: str, *, after: float = 0.3, shared: bool = True, told: bool = False, first: str = ""
) -> str:
    """Return a worker that runs a body inside a timer.

    Args:
        entry: one of :data:`ENTRIES`.
        body: Python statements; in an asynchronous entry they may await.
        after: seconds from arming to the deadline.
        shared: False for a client without shared memory.
        told: it connects, says ``ready``, and goes on when a line is said to it.
        first: a line of Python to begin with, before there is any timer.
    """
    source = (
        (first + READY * told + ENTRIES[entry]).replace("SHARED", repr(shared)).replace("AFTER", repr(after))
    )
    place = next(text for text in source.splitlines() if text.strip() == "BODY")
    indent = place.removesuffix("BODY")
    return PRELUDE + source.replace(place, "\n".join(indent + text for text in body.splitlines()))


def all_ready(*workers: SpawnedWorker) -> None:
    """Wait until they have started and connected."""
    for worker in workers:
        worker.wait_line("ready")


def arm_all(*workers: SpawnedWorker) -> list[float]:
    """Tell workers that are ready to arm; return their deadlines."""
    for worker in workers:
        worker.say()
    return [float(worker.wait_line("deadline ").split()[-1]) for worker in workers]


AIOTIMER = [sys.executable, "-m", "aiotimer"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a server, plus what is given."""
    return {k: v for k, v in os.environ.items() if k != "AIOTIMER_SOCKET"} | more
