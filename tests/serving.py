"""Servers for the suites that kill: one in the test's own loop, and one in a process of its own.

The laws of this file:

* What is waited for is an event, a line of output or the end of a process, never a length of time.
* That *nothing* happens to a worker by some moment is shown by order: a bystander whose timer expires later
  is reaped, and the worker is still there (:meth:`WatchfulServer.pass_by`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from time import monotonic, sleep
from typing import Any, Self, TypeVar

from aiotimer import TimerRequest, TimerServer, WorkerId
from aiotimer._core import wire
from aiotimer.client.control import status
from aiotimer.events import Event
from tests.support import PATIENCE, SpawnedWorker, short_socket, spawn_worker

S = TypeVar("S", bound="WatchfulServer")

LOOPS = ("asyncio", "uvloop")
"""What a server in a process of its own is run by."""


# -- processes without a client ---------------------------------------------------------------------


@contextlib.contextmanager
def bystander() -> Iterator[int]:
    """Yield the pid of a child of this process that does nothing until its end."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


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


def clock_passes(deadline: float) -> None:
    """Wait until ``CLOCK_MONOTONIC`` is past a deadline, for a test in which nothing must happen at it."""
    while (left := deadline - monotonic()) > 0:
        sleep(left)


def open_descriptors() -> int:
    """Return how many descriptors this process has open.

    Those that wait for the collector do not count, nor those of a history, which is written by a thread.
    """
    gc.collect()
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # listdir's own
            found += "/history.db" not in os.readlink(f"/proc/self/fd/{descriptor}")
    return found


# -- workers, from a coroutine -----------------------------------------------------------------------


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


# -- a server in the test's loop ----------------------------------------------------------------------


class WatchfulServer(TimerServer):
    """A server that records what it did and when. Unless it is told otherwise its ladder is ``KILL``.

    Attributes:
        events: what it has told, oldest first.
        acted: when (``CLOCK_MONOTONIC``) it first acted on a worker, by pid; taken before the signal.
        reaps: whom it was to reap, one entry per call.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"reap": "KILL"} | options)
        self.events: list[Event] = []
        self.acted: dict[int, float] = {}
        self.reaps: list[WorkerId] = []
        self._waiters: set[asyncio.Future[None]] = set()

    def emit(self, event: Event) -> None:
        """Record an event."""
        super().emit(event)
        self.events.append(event)
        self.changed()

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        """Record the moment, then reap."""
        self.acted.setdefault(worker_id.pid, monotonic())
        self.reaps.append(worker_id)
        self.changed()
        return super().reap_worker(worker_id)

    def connection_closed(self, connection: Any) -> None:
        """Tell whoever waits."""
        super().connection_closed(connection)
        self.changed()

    def changed(self) -> None:
        """Something happened: whoever waits looks again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition on this server holds; it is asked again whenever something happens."""
        until = monotonic() + PATIENCE
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait_for(waiter, until - monotonic())
            except TimeoutError:
                raise AssertionError(f"{what}: not within {PATIENCE:g} s; events: {self.events}") from None
            finally:
                self._waiters.discard(waiter)

    async def told(self, kind: str, pid: int | None = None) -> Event:
        """Wait for an event of a kind (about a process) and return the first one."""
        await self.until(lambda: self.all_told(kind, pid), f"{kind!r} of {pid}")
        return self.all_told(kind, pid)[0]

    def all_told(self, kind: str, pid: int | None = None) -> list[Event]:
        """Return all events of a kind (about a process) so far."""
        return [e for e in self.events if e.event == kind and pid in (None, e.worker_id and e.worker_id.pid)]

    async def pass_by(self, deadline: float) -> None:
        """Return when this server has dealt with whatever was due by ``deadline``.

        A bystander gets a timer a little later, and is reaped.
        """
        with bystander() as pid:
            self.register_timers([TimerRequest(pid, "bystander", max(deadline, monotonic()) + 0.1)])
            await self.told("reaped", pid)

    def armed(self, pid: int) -> dict[str, float]:
        """Return the timers that are armed on a process: ``{name: deadline}``."""
        return armed(self.status(), pid)


async def assert_reaped(server: WatchfulServer, pid: int, deadline: float, scope: str = "victim") -> Event:
    """A process was killed, for this timer, once, and not before its deadline; return the event."""
    event = await server.told("reaped", pid)
    assert event.scope == scope
    assert event.late_s is not None
    assert event.late_s >= 0.0
    assert server.acted[pid] >= deadline
    assert [worker.pid for worker in server.reaps].count(pid) == 1
    assert server.armed(pid) == {}
    return event


@contextlib.asynccontextmanager
async def serving_as(kind: type[S], path: str | None = None, **options: Any) -> AsyncIterator[S]:
    """Serve in the running loop, on a socket of its own unless a path is given."""
    with contextlib.ExitStack() as stack:
        if path is None:
            path = stack.enter_context(short_socket())
        async with kind(path, **options) as server:
            yield server


def serving(path: str | None = None, **options: Any) -> AbstractAsyncContextManager[WatchfulServer]:
    """Serve in the running loop as a :class:`WatchfulServer`."""
    return serving_as(WatchfulServer, path, **options)


# -- a server in a process of its own ------------------------------------------------------------------


_NURSERY = """
    import asyncio, ctypes, json, os, resource, signal, sys, traceback
    import uvloop
    from aiotimer.server.server import TimerServer

    def say(*words):  # whole lines, since two processes share the stream
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    async def serve():
        tell = lambda event: say(json.dumps(event.as_json()))
        options = {"bound": 5.0, "reap": "KILL"} | json.loads(sys.argv[3])
        server = TimerServer(sys.argv[1], on_event=tell, **options)
        loop = asyncio.get_running_loop()
        serving = asyncio.current_task()
        loop.add_signal_handler(signal.SIGTERM, serving.cancel)
        await server.start()
        say("ready", os.getpid())
        try:
            await server.serve_forever()
        except asyncio.CancelledError:
            say("stopped")

    libc = ctypes.CDLL(None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[sys.argv[2]]
    pid = 0
    for order in sys.stdin:
        order = order.strip()
        if order == "start":
            pid = os.fork()
            if pid:
                continue
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            try:
                with asyncio.Runner(loop_factory=factory) as runner:
                    runner.run(serve())
            except BaseException:
                traceback.print_exc()
                say("failed")
                sys.exit(1)
            break
        if order == "freeze":
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
            say("frozen")
        if order == "wait":
            say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
"""A process that has imported all that a server needs, and forks servers: a restart is a matter of some
milliseconds, so that many fit into a test. It prints what they print."""


class ServerProcess:
    """A server in a process of its own, which may be killed, frozen and started again.

    Use it as a context manager.

    Args:
        path: the socket.
        loop: one of :data:`LOOPS`.
        options: for the server; those that are not given are ``bound=5.0`` and ``reap="KILL"``.

    Attributes:
        pid: the server's process id; 0 while none runs.
        events: what servers here have told and :meth:`told` has read, as :meth:`Event.as_json` objects.
    """

    def __init__(self, path: str, loop: str = "asyncio", **options: Any) -> None:
        self.path = path
        self.pid = 0
        self.events: list[dict[str, Any]] = []
        self._nursery = spawn_worker(_NURSERY, None, path, loop, json.dumps(options))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._nursery.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._nursery.__exit__()  # and a server that runs goes with it
        self.pid = 0

    def start(self) -> None:
        """Start a server, and return when it serves."""
        assert not self.pid
        self._nursery.say("start")
        self.pid = int(self._answer("ready").split()[-1])

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """SIGKILL it (or send it another signal that it dies of), and wait until it is gone."""
        os.kill(self.pid, signum)
        assert self.wait() == -signum, self._nursery.output

    def terminate(self) -> None:
        """SIGTERM it: it stops in order."""
        os.kill(self.pid, signal.SIGTERM)
        assert self.wait() == 0, self._nursery.output

    def wait(self) -> int:
        """Wait for its end, and return its exit code (-N: died of signal N)."""
        self._nursery.say("wait")
        code = int(self._answer("ended").split()[-1])
        self.pid = 0
        return code

    def freeze(self) -> None:
        """SIGSTOP it, and return when it stands still."""
        self._nursery.say("freeze")
        self._answer("frozen")

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _answer(self, text: str) -> str:
        while True:
            found = self._nursery.wait_line("")
            assert not found.startswith("failed"), self._nursery.output
            if found.startswith(text):
                return found
            self._note(found)

    def told(self, kind: str, pid: int | None = None) -> dict[str, Any]:
        """Wait for an event of a kind (about a process); events read before count too."""
        until = monotonic() + PATIENCE
        while True:
            for event in self.events:
                if event["event"] == kind and pid in (None, event["pid"]):
                    return event
            self._note(self._nursery.wait_line("", until - monotonic()))

    def pass_by(self, deadline: float) -> None:
        """Return when this server has dealt with whatever was due by ``deadline``: see the other one."""
        later = max(deadline, monotonic()) + 0.1
        with spawn_worker(_BYSTANDER, self.path, repr(later)) as worker:
            assert self.told("reaped", worker.pid)["scope"] == "bystander"

    def armed(self, pid: int) -> dict[str, float]:
        """Return the timers that are armed on a process: ``{name: deadline}``."""
        return armed(status(self.path), pid)

    def _note(self, found: str) -> None:
        if found.startswith("{"):
            self.events.append(json.loads(found))


_BYSTANDER = """
    import sys, time
    from aiotimer import TimerClient

    client = TimerClient(unavailable="raise", budget=30)
    client.acquire("bystander", max(float(sys.argv[1]), time.monotonic()))
    sys.stdin.read()
"""


def armed(report: dict[str, Any], pid: int) -> dict[str, float]:
    """Return the timers that a status report lists for a process: ``{name: deadline}``."""
    workers = [worker for worker in report["workers"] if worker["pid"] == pid]
    return {timer["scope"]: timer["deadline"] for worker in workers for timer in worker["timers"]}


# -- a client by hand ------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw_client(path: str) -> Iterator[socket.socket]:
    """Yield a connected socket that has said nothing yet; non-blocking, for ``loop.sock_recv``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.setblocking(False)
        yield connection


async def answer(connection: socket.socket, until: type[wire.ToClient] | None = None) -> list[wire.ToClient]:
    """Return what a server says until it closes the connection, or has sent a message of a kind."""
    decoder = wire.client_decoder()
    answers: list[wire.ToClient] = []
    loop = asyncio.get_running_loop()
    while until is None or not any(isinstance(message, until) for message in answers):
        data = await asyncio.wait_for(loop.sock_recv(connection, 65_536), PATIENCE)
        if not data:
            break
        answers += decoder.feed(data)
    return answers
