"""Servers: in a thread, in the test's own loop, in a process of its own, and stand-ins for one.

The laws of this file:

* Fakes over mocks, and real things over fakes: the server is a ``TimerServer`` on a real socket.
* A server in a test's own process never kills that process: it keeps a record instead.
* What is waited for is an event, a line of output or the end of a process, never a length of time.
* That *nothing* happens to a worker by some moment is shown by order: a bystander whose timer expires later
  is reaped, and the worker is still there (:meth:`WatchfulServer.pass_by`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from time import monotonic
from typing import Any, Self, TypeVar, cast

import aiotimer
from aiotimer import TimerRequest, TimerServer, WorkerId
from aiotimer._core import wire
from aiotimer.client.control import status
from aiotimer.events import Event, write_to_log
from aiotimer.server.handlers import HandlerContext, Session
from aiotimer.server.history import History
from aiotimer.server.reporter import Reporter
from aiotimer.server.sinks import CallbackSink
from aiotimer.server.slices import Steps, WorkQueue
from aiotimer.server.worker import Worker
from tests.fakes import nursery
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.worker import SpawnedWorker, bystander, spawn_worker, stop, worker_environment

T = TypeVar("T")


class WatchedSession(Session):
    """A session that is watched.

    Args:
        context: of the handlers.
        sock: accepted.
        changed: called with each message when it has been handled; with None when all that came with it has
            been, too, and when the session ends.
    """

    def __init__(
        self, context: HandlerContext, sock: socket.socket, changed: Callable[[wire.ToServer | None], object]
    ) -> None:
        self._changed = changed
        super().__init__(context, sock)

    def received(self, message: wire.ToServer) -> Steps[None] | None:
        """Have it handled, then tell."""
        return self._tell_when_handled(super().received(message), message)

    def _tell_when_handled(self, left: Steps[None] | None, message: wire.ToServer) -> Steps[None]:
        if left is not None:
            yield from left
        self._changed(message)

    def all_received(self) -> None:
        """Look and apply, then tell."""
        super().all_received()
        self._changed(None)

    def closed(self) -> None:
        """End, then tell."""
        super().closed()
        self._changed(None)


class SparingServer(TimerServer):
    """A server that reaps every worker but its own process, and keeps records.

    Attributes:
        reaps: who was to be reaped, in order, with what had expired then.
        verdict: what ``reap_worker`` answers for this process.
        heard: the messages it has handled.
        on_change: called after each entry in one of these, and when a connection has changed otherwise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"reap": "KILL"} | options)
        self.reaps: list[tuple[aiotimer.WorkerId, list[str]]] = []
        self.verdict = True
        self.heard: list[wire.ToServer] = []
        self.on_change: Callable[[], object] = lambda: None

    def _connected(self, sock: socket.socket) -> None:
        WatchedSession(self._context, sock, self._changed)

    def _changed(self, message: wire.ToServer | None) -> None:
        if message is not None:
            self.heard.append(message)
        self.on_change()

    def _worker_died(self, worker: Worker) -> None:
        super()._worker_died(worker)
        self._queue.put(worker.id, self.on_change)  # when it has been forgotten, which tells nobody

    def reap_worker(self, worker_id: aiotimer.WorkerId) -> bool | Awaitable[bool]:
        """Record it; kill it if it is another process."""
        expired = self.get_expired_timers(monotonic()).get(worker_id, [])
        self.reaps.append((worker_id, [request.scope_id for request in expired]))
        self.on_change()
        if worker_id.pid == os.getpid():
            return self.verdict
        return super().reap_worker(worker_id)


class ServerThread:
    """A real server on a real socket, in a thread with an event loop of its own.

    Use it as a context manager; :meth:`stop` and :meth:`start` may be called in between, for a server
    that goes away and comes back.

    Args:
        path: the socket; by default one in a short directory, removed at the end.
        kind: the class of the server.
        new_loop: ``asyncio.new_event_loop`` or ``uvloop.new_event_loop``.
        options: for the server.

    Attributes:
        path: the socket.
        events: what the server has told, oldest first.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        kind: type[TimerServer] = SparingServer,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
        **options: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self.path = self._stack.enter_context(short_socket()) if path is None else path
        self.events: list[Event] = []
        self._kind = kind
        self._new_loop = new_loop
        self._options = options
        self._happened = threading.Condition()
        self._changes = 0
        self._server: TimerServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._stack.close()

    def start(self) -> None:
        """Start a server, and return when it listens."""
        ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="timer server", daemon=True)
        self._thread.start()
        failure = ready.get(timeout=PATIENCE)
        if failure is not None:
            self._thread.join(PATIENCE)
            self._thread = None
            raise failure

    def stop(self) -> None:
        """Stop the server and its loop; its tables of living processes stay. A no-op if it is stopped."""
        thread, self._thread = self._thread, None
        if thread is not None:
            assert self._server is not None
            asyncio.run_coroutine_threadsafe(self._server.stop(), self.loop).result(PATIENCE)
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server's loop does not end"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The server's loop."""
        assert self._loop is not None, "not started"
        return self._loop

    def call(self, function: Callable[[Any], T | Awaitable[T]]) -> T:
        """Run ``function(server)`` in the server's loop, await what it returns if need be; return that."""

        async def run() -> T:
            result = function(self._server)
            if isinstance(result, Awaitable):
                return cast(T, await result)
            return result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def wait(self, condition: Callable[[], T | None], timeout: float = PATIENCE, what: str = "it") -> T:
        """Wait until ``condition()`` is true, and return what it returned.

        It is asked after every event and entry in a record of :class:`SparingServer`. It looks at these and
        does not :meth:`call`: it is asked under a lock that the server's thread needs.
        """
        with self._happened:
            self._happened.wait_for(condition, timeout)
            result = condition()
        assert result, f"{what} did not happen within {timeout:g} s; events: {self.events}"
        return result

    @property
    def server(self) -> SparingServer:
        """The server, to look at its records from this thread."""
        return cast(SparingServer, self._server)

    @property
    def reaps(self) -> list[tuple[aiotimer.WorkerId, list[str]]]:
        """What a :class:`SparingServer` has recorded."""
        return self.server.reaps

    def wait_heard(self, kind: type[wire.ToServer], count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until a :class:`SparingServer` has handled so many messages of a kind."""
        self.wait(lambda: self.count_heard(kind) >= count, timeout, f"{kind.__name__} number {count}")

    def count_heard(self, kind: type[wire.ToServer]) -> int:
        """Return how many messages of a kind a :class:`SparingServer` has handled."""
        return sum(isinstance(message, kind) for message in list(self.server.heard))

    def wait_reaps(self, count: int, timeout: float = PATIENCE) -> list[tuple[aiotimer.WorkerId, list[str]]]:
        """Wait until a :class:`SparingServer` has reaped so many; return its record."""
        self.wait(lambda: len(self.reaps) >= count, timeout, f"reap number {count}")
        return list(self.reaps)

    def status(self) -> dict[str, Any]:
        """Return the server's status."""
        return self.call(lambda server: cast("dict[str, Any]", server.status()))

    def armed(self, pid: int | None = None) -> list[str]:
        """Return the names of the timers the server sees on a process (this one), in alphabetical order."""
        wanted = os.getpid() if pid is None else pid
        workers = [worker for worker in self.status()["workers"] if worker["pid"] == wanted]
        return sorted(timer["scope"] for worker in workers for timer in worker["timers"])

    def wait_armed(self, names: list[str], pid: int | None = None, timeout: float = PATIENCE) -> None:
        """Wait until just these timers are armed on a process, asking after every message and request."""
        until = monotonic() + timeout
        while True:
            changes = self._changes
            armed = self.armed(pid)
            if armed == names:
                return
            with self._happened:
                while self._changes == changes and (left := until - monotonic()) > 0:
                    self._happened.wait(left)
            assert self._changes != changes, f"armed are {armed}, and not {names}, after {timeout:g} s"

    def _note(self, event: Event | None = None) -> None:
        with self._happened:
            if event is not None:
                self.events.append(event)
            self._changes += 1
            self._happened.notify_all()

    def _run(self, ready: queue.SimpleQueue[BaseException | None]) -> None:
        async def serve() -> None:
            try:
                server = self._kind(self.path, on_event=self._note, **self._options)
                if isinstance(server, SparingServer):
                    server.on_change = self._note
                await server.start()
            except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
                ready.put(error)
                return
            self._server = server
            ready.put(None)
            await server.serve_forever()

        loop = self._loop = self._new_loop()
        try:
            loop.run_until_complete(serve())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


@contextlib.contextmanager
def stand_in(path: str, answer: bytes | None, *, end: bool = True) -> Iterator[None]:
    """Listen at ``path`` instead of a server.

    Args:
        path: a free path.
        answer: what everybody gets before the end of the stream; None: silence, without end.
        end: whether the stream ends after the answer.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            if answer is not None:
                connection.sendall(answer)
                if end:
                    connection.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        listener.close()
        for connection in kept:
            connection.close()
        os.unlink(path)


S = TypeVar("S", bound="WatchfulServer")

LOOPS = ("asyncio", "uvloop")
"""What a server in a process of its own is run by."""


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

    def _new_reporter(self, queue: WorkQueue, directory: Path) -> Reporter:
        history = History(directory, self._policy.evidence_dir)
        on_event = () if self._on_event is None else (CallbackSink(self._loop, self._on_event),)
        return Reporter(queue, history, write_to_log, *on_event, self.happened)

    def _connected(self, sock: socket.socket) -> None:
        WatchedSession(self._context, sock, lambda _message: self.changed())

    def _worker_died(self, worker: Worker) -> None:
        super()._worker_died(worker)
        self._queue.put(worker.id, self.changed)  # when it has been forgotten, which tells nobody

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        """Record the moment, then reap."""
        self.acted.setdefault(worker_id.pid, monotonic())
        self.reaps.append(worker_id)
        self.changed()
        return super().reap_worker(worker_id)

    def happened(self, event: Event) -> None:
        """It has reported something: record that."""
        self.events.append(event)
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


_SERVES = """
import asyncio, ctypes, json, os, resource, signal, sys
import uvloop
from aiotimer.server.server import TimerServer

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def serve(path, options):
    tell = lambda event: say(json.dumps(event.as_json()))
    server = TimerServer(path, on_event=tell, **options)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    await server.start()
    say("ready")
    try:
        await server.serve_forever()
    except asyncio.CancelledError:
        say("stopped")

sys.stdin.readline()  # who is our parent now will be so to the end
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
path, loop, options = json.loads(sys.argv[1])
factories = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
with asyncio.Runner(loop_factory=factories[loop]) as runner:
    runner.run(serve(path, options))
"""

_SERVERS = "asyncio, ctypes, json, resource, uvloop, aiotimer.server.server"
"""What has been imported where servers are forked: a restart is a matter of some milliseconds, so that many
fit into a test."""


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
        self._arguments = json.dumps([path, loop, {"bound": 5.0, "reap": "KILL"} | options])
        self._process: SpawnedWorker | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.__exit__()
            self.pid = 0

    def start(self) -> None:
        """Start a server, and return when it serves."""
        assert not self.pid
        program = nursery.start(_SERVES, (self._arguments,), worker_environment(None), _SERVERS)
        self._process = SpawnedWorker(program)
        try:
            self._process.say()
            while not (found := self._process.wait_line("")).startswith("ready"):
                self._note(found)
        except BaseException:
            self._process.__exit__()
            raise
        self.pid = self._process.pid

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """SIGKILL it (or send it another signal that it dies of), and wait until it is gone."""
        os.kill(self.pid, signum)
        assert self.wait() == -signum, self._running.output

    def terminate(self) -> None:
        """SIGTERM it: it stops in order."""
        os.kill(self.pid, signal.SIGTERM)
        assert self.wait() == 0, self._running.output

    def wait(self) -> int:
        """Wait for its end, and return its exit code (-N: died of signal N)."""
        code = self._running.wait()
        self._running.__exit__()
        for found in self._running.unread():
            self._note(found)
        self.pid = 0
        return code

    def freeze(self) -> None:
        """SIGSTOP it, and return when it stands still."""
        stop(self.pid)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def _running(self) -> SpawnedWorker:
        assert self._process is not None, "not started"
        return self._process

    def told(self, kind: str, pid: int | None = None) -> dict[str, Any]:
        """Wait for an event of a kind (about a process); events read before count too."""
        until = monotonic() + PATIENCE
        while True:
            for event in self.events:
                if event["event"] == kind and pid in (None, event["pid"]):
                    return event
            self._note(self._running.wait_line("", until - monotonic()))

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


@contextlib.contextmanager
def raw_client(path: str) -> Iterator[socket.socket]:
    """Yield a connected socket that has said nothing yet; non-blocking, for ``loop.sock_recv``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.setblocking(False)
        yield connection


async def answer(connection: socket.socket, *until: type | wire.ToClient) -> list[wire.ToClient]:
    """Return what a server says until it closes the connection, or has sent all of these: kinds, messages."""
    decoder = wire.client_decoder()
    answers: list[wire.ToClient] = []
    loop = asyncio.get_running_loop()
    while not until or not all(one in [*answers, *map(type, answers)] for one in until):
        data = await asyncio.wait_for(loop.sock_recv(connection, 65_536), PATIENCE)
        if not data:
            break
        answers += decoder.feed(data)
    return answers
