"""What several suites need: tables in memory, a real server in a thread, workers in real processes.

The laws of this file:

* Fakes over mocks, and real things over fakes: the server is a ``TimerServer``, a worker is a process.
* Nothing waits by sleeping. Whoever waits names an event and gives up, loudly, after ``PATIENCE``.
* A server in a test's own process never kills that process: it keeps a record instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import itertools
import mmap
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType, FunctionType
from typing import Any, Self, TypeVar, cast

import pytest

import aiotimer
from aiotimer._core import layout, wire
from aiotimer._core.reader import Read, TableReader, Timer
from aiotimer._core.table import TimerTable
from aiotimer.client.connection import Link
from aiotimer.events import Event
from aiotimer.server.connection import Connection
from aiotimer.server.server import TimerServer

PATIENCE = 30.0
"""Seconds after which something that was waited for counts as never coming."""

FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
"""For a test that forks its own process, which has threads. CPython warns the parent, and from 3.15 on raises
there if warnings are errors: nobody waits for the child then."""

T = TypeVar("T")


# -- tables in memory ----------------------------------------------------------------------------


def memory_table(
    promise: float = inf,
    *,
    now: Callable[[], float] = monotonic,
    grow: Callable[[int], None] = lambda _slots: None,
) -> TimerTable:
    """Return a table in anonymous memory, as a server that has promised ``promise`` would hand it out.

    Args:
        promise: when the server looks next: ``inf`` makes everything ring, 0.0 makes it a late one.
        now: the table's clock; a virtual one for tests of time.
        grow: makes memory for more slots; here there is always enough.
    """
    table = TimerTable(mmap.mmap(-1, layout.TABLE_SIZE), grow, now=now)
    table.cells[layout.PROMISE] = promise
    return table


def reading(table: TimerTable) -> Read:
    """Return how to read a table from outside: ``read(size, offset)``, cut off at its end like ``pread``."""
    raw = table.raw
    return lambda size, offset: bytes(raw[offset : offset + size])


def acquisitions_of(table: TimerTable) -> int:
    """Return how many timers have been armed in a table since it was made."""
    counts = table.cells[layout.FIRST_COUNT : layout.FIRST_COUNT + table.high_water]
    return int(table.cells[layout.RETIRED] + sum(counts))


def timers_of(table: TimerTable) -> list[Timer]:
    """Return what is armed in a table, soonest first, as a server reads it."""
    return TableReader(reading(table)).timers()


def names_of(table: TimerTable) -> list[str]:
    """Return the names of what is armed in a table, in alphabetical order."""
    return sorted(timer.name for timer in timers_of(table))


class MemoryLink(Link):
    """A link whose table is in memory, and whose server is the test.

    Attributes:
        rings: the deadlines that were rung, in order.
    """

    def __init__(self, table: TimerTable) -> None:
        super().__init__("/nowhere")
        table.pools = self.pools
        self.table = self.watched = table
        self.connected = True
        self.attend_at = inf  # nobody asks
        self.rings: list[float] = []

    def ring(self, deadline: float) -> bool:
        """Record it, as a ring that was sent."""
        assert self.table is not None
        looks = self.table.looks()
        self.rings.append(deadline)
        self.table.rang(looks, self.table.now())
        return True


class MemoryClient(aiotimer.TimerClient):
    """A client of a :class:`MemoryLink`: what ``expires`` and ``acquire`` do to a table, and nothing else.

    Args:
        table: where its timers are.
        link: to that table; by default one with a shared table.
    """

    __slots__ = ()

    def __init__(self, table: TimerTable, link: MemoryLink | None = None) -> None:
        self._link = MemoryLink(table) if link is None else link
        self._hook = None
        self._closed = False
        self.pools, self.sites = self._link.pools, self._link.sites
        self.unavailable = "raise"
        self.budget = PATIENCE

    @property
    def table(self) -> TimerTable:
        """Where its timers are."""
        assert self._link.table is not None
        return self._link.table

    @property
    def rings(self) -> list[float]:
        """The deadlines that were rung, in order."""
        return cast(MemoryLink, self._link).rings


class Clock:
    """A clock that stands still until it is told.

    Attributes:
        now: seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# -- one bytecode at a time ---------------------------------------------------------------------------


class _Opcodes:
    """The bytecodes that one thread runs of some code objects: ``visit`` is called before each of them.

    CPython 3.11 tells them to a trace function. From 3.12 on that misses the first call of a function, and
    ``sys.monitoring`` tells all of them; there the code objects are looked up beforehand, and stay
    instrumented until :meth:`close`.

    Args:
        code: which code objects.
        where: at which offsets of one.
    """

    def __init__(
        self, code: Callable[[CodeType], bool], where: Callable[[CodeType], frozenset[int]] | None = None
    ) -> None:
        self._code = code
        self._where = where or _every_bytecode
        self._known: dict[int, tuple[frozenset[int], CodeType]] = {}
        self._visit: Callable[[], object] | None = None
        self._thread = threading.get_ident()
        self._base: FrameType | None = None  # destructors are looked for from here on
        self._former: Any = None
        self._instrumented: list[CodeType] = []
        if sys.version_info >= (3, 12):
            sys.monitoring.use_tool_id(_TOOL, "tests")
            self._instrumented = [one for one in _all_code() if code(one)]
            for one in self._instrumented:
                sys.monitoring.set_local_events(_TOOL, one, sys.monitoring.events.INSTRUCTION)
        elif sys.gettrace() is not None:
            pytest.skip("another tracer is at work (coverage, a debugger), and CPython 3.11 has room for one")

    def close(self) -> None:
        """Leave no trace."""
        if sys.version_info >= (3, 12):
            for one in self._instrumented:
                sys.monitoring.set_local_events(_TOOL, one, 0)
            sys.monitoring.free_tool_id(_TOOL)

    def start(self, visit: Callable[[], object], base: FrameType) -> None:
        """Visit what is called from ``base``, a frame of this thread."""
        self._visit, self._base = visit, base
        if sys.version_info >= (3, 12):
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.INSTRUCTION, self._on_instruction)
        else:
            sys.settrace(self._trace)

    def stop(self) -> None:
        """Visit no more."""
        if sys.version_info >= (3, 12):
            sys.monitoring.register_callback(_TOOL, sys.monitoring.events.INSTRUCTION, None)
        else:
            sys.settrace(None)
        self._visit = self._base = None

    def _offsets(self, code: CodeType) -> frozenset[int]:
        known = self._known.get(id(code))  # code objects are hashed by what is in them, at length
        if known is None:
            known = self._known[id(code)] = self._where(code) & _every_bytecode(code), code
        return known[0]

    def _on_instruction(self, code: CodeType, offset: int) -> None:
        if self._visit is None or threading.get_ident() != self._thread:
            return
        if offset not in self._offsets(code) or self._is_in_destructor(sys._getframe(1)):
            return
        try:
            self._visit()
        except BaseException:
            self._visit = None
            raise

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        if event == "call":
            if not self._code(frame.f_code) or self._is_in_destructor(frame):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        if event == "opcode" and frame.f_lasti in self._offsets(frame.f_code):
            assert self._visit is not None
            self._visit()  # what it raises ends the tracing
        return self._trace

    def _is_in_destructor(self, frame: FrameType | None) -> bool:
        while frame is not None and frame is not self._base:
            if frame.f_code.co_name == "__del__":
                return True
            frame = frame.f_back
        return False


_TOOL = 4
"""Of the numbers that ``sys.monitoring`` has for tools, one without a meaning."""


def _all_code() -> Iterator[CodeType]:
    """Yield the code of all functions there are, and of those inside them."""
    found = {id(one.__code__): one.__code__ for one in gc.get_objects() if isinstance(one, FunctionType)}
    left = list(found.values())
    while left:
        code = left.pop()
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType) and id(constant) not in found:
                found[id(constant)] = constant
                left.append(constant)


@contextlib.contextmanager
def at_every_opcode(visit: Callable[[], object], code: Callable[[CodeType], bool]) -> Iterator[None]:
    """Call ``visit`` before every bytecode of the code objects that ``code`` says yes to, in this thread.

    What ``visit`` raises is raised there, as from a signal handler; nothing is visited after that. Left out
    are the bytecodes that call a ``with``'s ``__exit__``, NOP, and those of no line (the ends of handlers):
    CPython delivers no signal there, and relies on it where its tables of handlers have gaps. Left out is
    ``__del__``: what is raised in there CPython ignores.
    """
    opcodes = _Opcodes(code)
    opcodes.start(visit, sys._getframe(2))
    try:
        yield
    finally:
        opcodes.stop()
        opcodes.close()


def _every_bytecode(code: CodeType) -> frozenset[int]:
    """Return the offsets of the bytecodes that a test may be called before, see :func:`at_every_opcode`."""
    instructions = list(dis.get_instructions(code))
    left_out = {i.offset for i in instructions if i.opname == "NOP"}
    left_out.update(i.offset for i in instructions if i.positions is None or i.positions.lineno is None)
    for n, (one, two) in enumerate(itertools.pairwise(instructions)):
        if [_loads_none(i) for i in instructions[n : n + 3]] == [True] * 3:
            first, end = n, n + 3
            while instructions[first - 1].opname in ("SWAP", "PUSH_NULL"):
                first -= 1
            while instructions[end].opname in ("PRECALL", "CALL"):
                end += 1
            if end > n + 3:
                left_out.update(i.offset for i in instructions[first:end])
        if two.opname == "WITH_EXCEPT_START":
            left_out.update((one.offset, two.offset))
    return frozenset(instruction.offset for instruction in instructions) - left_out


def _loads_none(instruction: dis.Instruction) -> bool:
    """Whether a bytecode puts None on the stack, as happens three times before an ``__exit__`` is called.

    From CPython 3.15 on None is one of the constants that all code shares.
    """
    return instruction.opname in ("LOAD_CONST", "LOAD_COMMON_CONSTANT") and instruction.argval is None


def _handles_signals(code: CodeType) -> frozenset[int]:
    """Return the offsets at which a signal's handler may run: at a call, after one, at a jump back.

    CPython looks for signals when a function has begun, when a call has returned and when it jumps back;
    and C functions that wait look themselves. The first two count as the bytecode after it.
    """
    found: set[int] = set()
    for one, two in itertools.pairwise(dis.get_instructions(code)):
        if one.opname in _CALLS or one.opname == "RESUME":
            found.add(two.offset)
        if two.opname in _CALLS or "JUMP_BACKWARD" in two.opname:
            found.add(two.offset)
    return frozenset(found)


_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})


def is_ours(code: CodeType) -> bool:
    """Whether a code object is the package's: the usual thing to visit with :func:`at_every_opcode`."""
    return code.co_filename.startswith(_PACKAGE)


def _raises() -> None:
    raise KeyboardInterrupt


class Interruption:
    """Run a handler at one bytecode of a ``with`` body. If it raises KeyboardInterrupt, that ends there.

    Attributes:
        number: at which, counted from 0.
        visited: how many the body had before it ended or was interrupted.
        happened: whether the body had so many.
    """

    def __init__(self, number: int, opcodes: _Opcodes, handler: Callable[[], object] = _raises) -> None:
        self.number = number
        self.visited = 0
        self.happened = False
        self._opcodes = opcodes
        self._handler = handler

    def __enter__(self) -> Self:
        self._opcodes.start(self._count, sys._getframe(1))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._opcodes.stop()
        return self.happened and kind is KeyboardInterrupt

    def _count(self) -> None:
        if self.happened:
            return  # the handler's own, and what comes after it
        if self.visited == self.number:
            self.happened = True
            self._handler()
        else:
            self.visited += 1


def interruptions(
    handler: Callable[[], object] = _raises, *, by_signals: bool = False
) -> Iterator[Interruption]:
    """Yield an interruption for every bytecode of a body that is the same each time.

    The last one yielded interrupts nothing: the body has got through. What the body imports for the first
    time must have been imported before. The cyclic collector rests in between, see :func:`collector_rests`.

    Args:
        handler: of the signal.
        by_signals: only where CPython lets a signal interrupt: for code that holds what must be given back.
    """
    opcodes = _Opcodes(is_ours, _handles_signals if by_signals else _every_bytecode)
    try:
        with collector_rests():
            for number in itertools.count():
                interruption = Interruption(number, opcodes, handler)
                yield interruption
                if not interruption.happened:
                    # Else the last bytecodes of a longer one have never been interrupted.
                    assert interruption.visited > number // 2, "the body has become shorter on the way"
                    return
    finally:
        opcodes.close()


@contextlib.contextmanager
def collector_rests() -> Iterator[None]:
    """Collect only when asked to, and only what is made from here on.

    By itself the collector would run the ``__del__`` of what was interrupted before, anywhere. And whoever
    asks it thousands of times would have it walk, each time, what all tests before this one have left in
    the process: a server in a thread beside it stood still for seconds.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


_PACKAGE = str(Path(aiotimer.__file__).parent) + os.sep


@contextlib.contextmanager
def every_thread_at_once() -> Iterator[None]:
    """Switch threads as often as CPython can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


# -- places ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Yield an empty directory whose path leaves room for a socket's name (107 bytes in all)."""
    path = Path(tempfile.mkdtemp(prefix="at-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def short_socket() -> Iterator[str]:
    """Yield the path of a socket that nobody serves yet."""
    with short_directory() as directory:
        yield str(directory / "s")


@contextlib.contextmanager
def private_runtime() -> Iterator[Path]:
    """Give this process and its children a runtime directory of their own, on tmpfs.

    Servers that a test kills leave their tables behind; this is where, and they go with it.
    """
    path = Path(tempfile.mkdtemp(prefix="at-", dir="/dev/shm"))
    former = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(path)
    try:
        yield path
    finally:
        if former is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = former
        shutil.rmtree(path, ignore_errors=True)


# -- a server in a thread ----------------------------------------------------------------------------


class SparingServer(TimerServer):
    """A server that reaps every worker but its own process, and keeps records.

    Attributes:
        reaps: who was to be reaped, in order, with what had expired then.
        verdict: what ``reap_worker`` answers for this process.
        heard: the messages it has handled, rings and socket-only requests apart.
        gone: how many connections have been closed.
        on_change: called after each entry in one of these.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"reap": "KILL"} | options)
        self.reaps: list[tuple[aiotimer.WorkerId, list[str]]] = []
        self.verdict = True
        self.heard: list[wire.ToServer] = []
        self.gone = 0
        self.on_change: Callable[[], object] = lambda: None

    def handle(self, connection: Connection, message: wire.ToServer) -> None:
        """Handle a message, then record it."""
        super().handle(connection, message)
        self.heard.append(message)
        self.on_change()

    def apply(self, connection: Connection) -> str:
        """Apply the requests of a socket-only client, then say that something has changed."""
        failure = super().apply(connection)
        self.on_change()
        return failure

    def connection_closed(self, connection: Connection) -> None:
        """Count it."""
        super().connection_closed(connection)
        self.gone += 1
        self.on_change()

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

    def wait_event(self, kind: str, timeout: float = PATIENCE, *, since: int = 0) -> Event:
        """Wait for an event of a kind and return it.

        Args:
            kind: ``Event.event``.
            timeout: seconds.
            since: how many events to pass over.
        """
        return self.wait(
            lambda: next((e for e in self.events[since:] if e.event == kind), None), timeout, repr(kind)
        )

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

    def wait_armed(self, names: list[str], timeout: float = PATIENCE) -> None:
        """Wait until just these timers are armed on this process, asking after every message and request."""
        until = monotonic() + timeout
        while True:
            changes = self._changes
            armed = self.armed()
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


class Menders:
    """The threads that try to mend outages, each a ``threading.Thread``.

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


@contextlib.contextmanager
def stand_in(path: str, answer: bytes | None) -> Iterator[None]:
    """Listen at ``path`` instead of a server.

    Args:
        path: a free path.
        answer: what everybody gets before the end of the stream; None: silence, without end.
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


# -- workers in processes ------------------------------------------------------------------------------


class SpawnedWorker:
    """A Python process with ``$AIOTIMER_SOCKET`` set. Killed and waited for at the end of its ``with``.

    Attributes:
        process: the process; its output, both streams, comes as lines.
        lines: the lines read so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
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

    Args:
        code: the program; it may be indented.
        path: the socket, for ``$AIOTIMER_SOCKET``; None leaves that unset.
        arguments: become ``sys.argv[1:]``.
        env: more environment variables.
        options: of the interpreter.
        popen: for ``subprocess.Popen``.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    environment.pop("AIOTIMER_SOCKET", None)
    if path is not None:
        environment["AIOTIMER_SOCKET"] = path
    root = str(Path(aiotimer.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return SpawnedWorker(
        subprocess.Popen(
            [sys.executable, *options, "-c", textwrap.dedent(code), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            **popen,
        )
    )
