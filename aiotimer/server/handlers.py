"""Protocol handlers: one for each kind of message, found in a table; and the session of a connection.

The laws of this file:

* What a message may find a connection to be stands in the table, :data:`HANDLERS`. One that is out of place
  closes the connection.
* A session's state is the session's. Its end says nothing about the worker: EOF releases nothing.
* WELCOME is sent last, when the worker is pinned, its table watched and looked at; what a client says of
  itself decides nothing but how to talk to it.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import socket
from collections.abc import Callable, Hashable, Set
from dataclasses import dataclass, field
from math import inf, isfinite
from time import monotonic
from typing import Any, TypeAlias

from .._core import layout, wire
from .._linux import table_files
from .._linux.process import hung_up, peer_of, pin_peer
from .._linux.procfs import program_of, time_namespace
from .._version import __version__
from ..errors import AiotimerError, ProtocolError, ServerError, TableFull
from ..events import Event, log
from ..queue import Inbox
from .connection import EXHAUSTED, OUT_OF_DESCRIPTORS, ServerConnection
from .inspector import InspectionChannel, dump
from .policy import Policy
from .registry import Registry
from .slices import Steps, WorkQueue
from .watched_table import WatchedTable
from .worker import Worker, drop_after_exec, drop_if_left, drop_unmapped

MAX_CONNECTIONS, MAX_TABLES = 256, 512
"""Of one worker: its process shares one connection, unless it asks for more clients."""

DUMPS = 2
"""Dumps under way; others wait."""


@dataclass
class HandlerContext:
    """What the handlers know of their server.

    Attributes:
        refused: takes the events of clients that are not served, with whom they are about: they are counted.
        report: makes a report, see ``TimerServer.status``, of objects that it has been handed to a function.
        resume: has every job reaped again; returns the names of those for which that is new.
        owner_gone: called when the owner of a private server gives it up.
        worker_left_at: when a worker's connection was last closed; ``CLOCK_MONOTONIC`` seconds.
    """

    registry: Registry
    loop: asyncio.AbstractEventLoop
    emit: Callable[[Event], None]
    refused: Callable[[Hashable, Event], None]
    report: Callable[[bool, Callable[[Any], Any]], Steps[dict[str, Any]]]
    resume: Callable[[], list[str]]
    lag_s: Callable[[], float]
    queue: WorkQueue
    owner_gone: Callable[[], object]
    sessions: set[Session] = field(default_factory=set)
    dumps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DUMPS))
    worker_left_at: float = field(default_factory=monotonic)


class State(enum.Enum):
    """What a connection has become. The value is how a message is described that has no place there."""

    STRANGER = "before HELLO or ATTEND"
    SHARING = "from a worker that shares its table"
    SOCKET_ONLY = "from a worker without a table"
    CHANNEL = "on an inspection channel"
    REPORT = "before the answer to a question"


class Session:
    """What a connection has become, and what that takes.

    Args:
        sock: accepted, non-blocking; owned from here on.

    Attributes:
        worker: who is at the other end, since HELLO.
        table: where that worker's timers are, since HELLO.
        inbox: the requests of a worker without a table of its own, not yet applied to the server's.
        offset: what to add to that worker's clock, seconds.
        rung: the earliest deadline it has rung for and that has not been looked for.
        report: under way for a peer that has asked for it.
    """

    def __init__(self, context: HandlerContext, sock: socket.socket) -> None:
        self.context = context
        self.state = State.STRANGER
        self._peer = peer_of(sock)
        self.worker: Worker | None = None
        self.table: WatchedTable | None = None
        self.inbox: Inbox | None = None
        self.offset = 0.0
        self.rung: float | None = None
        self.channel: InspectionChannel | None = None
        self.report: asyncio.Task[None] | None = None
        self.connection = ServerConnection(self, sock, context.loop, context.queue)
        context.sessions.add(self)

    def become(self, state: State) -> None:
        """It is something else from now on."""
        self.state = state
        self.connection.treat_as_stranger(state is State.STRANGER)

    def received(self, message: wire.ToServer) -> Steps[None] | None:
        """Have a message handled, if it may come now; return what is left to be done of it.

        Raises:
            AiotimerError: it may not, or breaks another rule.
        """
        kind = type(message)
        handler, states = HANDLERS[kind]
        if self.state is State.STRANGER and kind is not wire.Hello:
            uid = self._peer[1]
            if uid not in (os.geteuid(), 0):  # the socket's mode keeps others out, unless somebody changed it
                raise ProtocolError(f"{kind.__name__} of uid {uid}, which is not this server's")
        if self.state not in states:
            raise ProtocolError(f"{kind.__name__} {self.state.value}")
        return handler(self, message)

    def all_received(self) -> None:
        """Look for what was rung for, once; apply the requests that have come, and acknowledge them."""
        self.context.registry.lifeline.tick(monotonic())  # whoever hears messages has not stood still
        if self.rung is not None and self.table is not None:
            rung, self.rung = self.rung, None
            self.table.rung(rung)
        if self.inbox is not None and self.inbox.size():
            self.connection.send(self.inbox.acknowledgement(_apply(self, self.inbox)))

    def refused(self, reason: str) -> None:
        """Report that it broke the rules, or is not served."""
        worker_id = None if self.worker is None else self.worker.id
        self.context.refused(self._peer, Event("refused", worker_id, detail=reason))

    def reported(self, report: asyncio.Task[None]) -> None:
        """What it has asked for was sent, or cannot be."""
        self.report = None
        if not report.cancelled() and report.exception() is not None:
            self.connection.close()
        self.become(State.STRANGER)

    def closed(self) -> None:
        """Let go of what it has become. Its worker may live on: its table is looked at every second."""
        self.context.sessions.discard(self)
        if self.channel is not None:
            self.channel.close()
        if self.report is not None:
            self.report.cancel()
        if self.worker is None or self.table is None:
            return
        self.context.worker_left_at = monotonic()
        self.worker.connections -= 1
        if self.table.connection is self.connection:  # else its worker has come back on another one already
            self.table.connection = None
            if not self.worker.left:
                # Most often it is dead by then.
                self.context.queue.put(self.worker.id, _left, self.context, self.worker)
            self.worker.left.append(self.table)


def _left(context: HandlerContext, worker: Worker) -> Steps[None]:
    """Find out whether a worker has left the tables whose connections have ended."""
    tables, worker.left = worker.left, []
    if worker.process.is_dead():
        return
    for table in tables:
        if table.closed or table.connection is not None:
            continue
        if not drop_if_left(worker, table, context.emit) and table.file.kind == "shared":
            table.connection_lost()
        yield
    lost = [t for t in tables if t.file.kind == "shared" and not t.closed and t.connection is None]
    if lost:
        context.queue.spawn(drop_unmapped(worker, lost, context.emit))


# -- questions -----------------------------------------------------------------------------------------------


def _ping(session: Session, _message: wire.Ping) -> None:
    session.connection.send(wire.Pong(os.getpid(), session.context.lag_s()))


def _status(session: Session, request: wire.StatusRequest) -> Steps[None]:
    report = yield from session.context.report(request.scopes, wire.packed)
    if not session.connection.closed:
        session.connection.send(wire.Status(report))


def _resume(session: Session, _message: wire.Resume) -> None:
    session.connection.send(wire.Resumed(tuple(session.context.resume())))


def _disown(session: Session, _message: wire.Disown) -> None:
    session.context.owner_gone()
    _ping(session, wire.Ping())


def _dump(session: Session, request: wire.DumpRequest) -> None:
    session.become(State.REPORT)  # which takes a while to make: until then its silence is no fault
    session.report = session.context.queue.start(_send_dump(session, request.pid))
    session.report.add_done_callback(session.reported)


async def _send_dump(session: Session, pid: int) -> None:
    registry, send = session.context.registry, session.connection.send
    worker = registry.find(pid)
    if worker is None or worker.closed:
        send(wire.Dump({}, f"no worker with pid {pid} is known here"))
        return
    try:
        async with session.context.dumps:
            budget = registry.policy.evidence_budget or Policy.evidence_budget
            found = await dump(worker, budget, session.context.queue)
    except Exception as error:  # noqa: BLE001 - logged, and told to whoever asks
        log.exception("no dump of process %d", pid)
        send(wire.Dump({}, f"it failed: {error}"))
        return
    send(wire.Dump(found))


# -- inspection channels -------------------------------------------------------------------------------------


def _attend(session: Session, attend: wire.Attend) -> None:
    """Make a connection an inspection channel; one of whoever is no worker is closed."""
    worker = None
    try:
        worker_id, pidfd, uid = pin_peer(session.connection.socket)
        os.close(pidfd)
        if attend.version == wire.PROTOCOL_VERSION and uid == os.geteuid():
            worker = session.context.registry.find(worker_id)
    except OSError as error:
        log.debug("an inspection channel is closed: %s", error)
    if worker is None or worker.closed:
        session.connection.close()
        return
    session.channel = InspectionChannel(worker.inspection_channels, session.connection.send)
    session.become(State.CHANNEL)


def _tasks(session: Session, tasks: wire.Tasks) -> None:
    assert session.channel is not None
    session.channel.answered(tasks)


# -- a worker's timers ---------------------------------------------------------------------------------------


def _ring(session: Session, ring: wire.Ring) -> None:
    """Several rings that arrive together count as one."""
    session.rung = ring.deadline if session.rung is None else min(session.rung, ring.deadline)


def _acquire(session: Session, request: wire.Acquire) -> None:
    assert session.inbox is not None
    session.inbox.deliver(request)


def _apply(session: Session, inbox: Inbox) -> str:
    """Apply the pending requests of a peer without a table to the one the server keeps for it.

    Returns:
        Why the last one that failed did; "" if all were applied.
    """
    assert session.worker is not None
    failure = ""
    table, cells = session.context.registry.own_table(session.worker, "socket")
    earliest = inf
    for request in inbox.get(inbox.size()):
        until = layout.shifted(request.expiration_time, session.offset)
        try:
            if cells.set(layout.split_key(request.scope_id), until, monotonic()):
                earliest = min(earliest, until)
        except (TableFull, ValueError) as error:
            failure = str(error)
    if earliest < inf:
        table.rung(earliest)
    return failure


def _bye(session: Session, _message: wire.Bye) -> None:
    assert session.worker is not None
    assert session.table is not None
    forget(session.worker, session.table)
    session.connection.close()


def forget(worker: Worker, table: WatchedTable) -> None:
    """Drop a table of a worker, and all that is armed in it."""
    if table in worker.tables:
        worker.drop(table)


# -- HELLO ---------------------------------------------------------------------------------------------------


def _hello(session: Session, hello: wire.Hello) -> Steps[None]:
    try:
        yield from _admit(session, hello)
    except (AiotimerError, OSError, ValueError) as error:
        reason = _why(error)
        session.refused(reason)
        session.connection.refuse(reason)


def _why(error: Exception) -> str:
    """Say in words why a client is not served."""
    code = error.errno if isinstance(error, OSError) else None
    if code in EXHAUSTED:
        return OUT_OF_DESCRIPTORS
    if code == errno.ENOSPC:
        return "there is no memory left for another timer table (the tmpfs that holds them is full)"
    return str(error)


def _admit(session: Session, hello: wire.Hello) -> Steps[None]:
    registry, connection = session.context.registry, session.connection
    if hello.version != wire.PROTOCOL_VERSION:
        raise ServerError(
            f"it speaks protocol {hello.version} (aiotimer {hello.release}), and this server "
            f"{wire.PROTOCOL_VERSION} (aiotimer {__version__})"
        )
    if not isfinite(hello.clock):
        raise ServerError(f"its clock says {hello.clock}")
    worker_id, pidfd, uid = pin_peer(connection.socket)
    if uid != os.geteuid():
        os.close(pidfd)
        raise ServerError(f"process {worker_id.pid} belongs to uid {uid}, and this server to {os.geteuid()}")
    worker = registry.register(worker_id, pidfd)
    try:
        program = program_of(worker_id.pid)
        if hung_up(connection.socket):
            # By an exec perhaps, which closes the socket before the mark changes; then the mark is another
            # program's. Whatever the reason, nobody is there to be welcomed.
            registry.unregister(worker)
            connection.close()
            return
        yield from _connect(session, worker, hello, program)
    except BaseException:
        registry.unregister(worker)
        raise


def _connect(session: Session, worker: Worker, hello: wire.Hello, program: int) -> Steps[None]:
    registry, connection = session.context.registry, session.connection
    same_clock = hello.time_namespace == time_namespace()
    offset = 0.0 if same_clock else monotonic() - hello.clock
    if worker.connections >= MAX_CONNECTIONS or len(worker.tables) >= MAX_TABLES:
        raise ServerError(
            f"process {worker.id.pid} has {worker.connections} connections, {len(worker.tables)} tables; "
            f"{MAX_CONNECTIONS} and {MAX_TABLES} are the most (one client can serve a whole process)"
        )
    grant = registry.policy.reap_grant(hello.reap, observe=hello.observe)
    layout.encode_grant(str(grant))  # it must fit
    _drop_of_other_programs(session, worker, program)
    if hello.shared:
        offered = connection.take_descriptor()
        if hello.offers_table and offered < 0:
            raise ServerError("the table it offered did not arrive: " + OUT_OF_DESCRIPTORS)
        table, is_new = _shared_table(registry, worker, offered, same_clock=same_clock)
    else:
        table, is_new = (yield from _socket_table(session, worker, hello, offset)), False
        session.inbox = Inbox(worker.id)
    session.worker, session.table, session.offset = worker, table, offset
    session.become(State.SHARING if hello.shared else State.SOCKET_ONLY)
    table.connection = connection
    table.note_program(program)
    table.note_reap_grant(str(grant))
    table.note_exit_signal(hello.exit_signal)
    worker.gives_account(hello, monotonic())
    table.note_account(worker.account())
    if table.file.path is None:
        registry.give_name(worker, table)  # now, when the next server can tell all that it must know
    worker.reap_grant = grant
    worker.connections += 1
    table.watch.connected = True
    table.look()
    if connection.closed or table.closed:
        return  # something had expired already
    descriptor = table.file.descriptor if is_new else -1
    path = "" if table.file.path is None else str(table.file.path)
    welcome = wire.Welcome(wire.PROTOCOL_VERSION, __version__, os.getpid(), offset, is_new, path)
    connection.send(welcome, descriptor)


def _drop_of_other_programs(session: Session, worker: Worker, program: int) -> None:
    """Drop what the program armed that a process ran before an exec: it must not pass for the new one's."""
    for table in list(worker.tables):
        if table.file.kind != "owner" and program and table.program not in (0, program):
            drop_after_exec(worker, table, session.context.emit)
            if table.connection is not None:
                table.connection.close()


def _shared_table(
    registry: Registry, worker: Worker, offered: int, *, same_clock: bool
) -> tuple[WatchedTable, bool]:
    """Return the worker's table, and whether it is a new one whose descriptor it needs.

    It brings its own, unless it could not make one. On another clock than ours no deadline in there would be
    true, if nobody has told it yet how far that is ahead: then it gets one to begin with.
    """
    if offered < 0:
        return registry.new_table(worker, "shared"), True
    known = worker.table_of(os.fstat(offered).st_ino)
    if known is not None:
        os.close(offered)
        return known, False
    try:
        file = table_files.check_offered(offered)
    except BaseException:
        os.close(offered)
        raise
    if not same_clock and not layout.read_word(file.read(8, 8 * layout.PROGRAM)):
        file.close()
        return registry.new_table(worker, "shared"), True
    return registry.watch(worker, file, connected=True), False


def _socket_table(session: Session, worker: Worker, hello: wire.Hello, offset: float) -> Steps[WatchedTable]:
    """Return the table kept for a peer without one, holding just what it says is armed."""
    if hello.clock < worker.heard_at:  # on a connection that was given up, and read only now
        raise ServerError("a later HELLO of this process has been heard")
    worker.heard_at = hello.clock
    table, cells = session.context.registry.own_table(worker, "socket")
    if table.connection is not None:
        table.connection.close()  # an older connection's requests, still on their way, are void
    armed = {layout.split_key(key): layout.shifted(deadline, offset) for key, deadline in hello.armed}
    known = {}
    for batch in table.reader.batches():
        for timer in batch:
            key = (timer.scope, timer.key_ordinal)
            known[key] = timer.deadline
            if key not in armed:
                cells.set(key, -1.0, monotonic())
        yield
        if table.closed or session.connection.closed or worker.heard_at != hello.clock:
            raise ServerError("meanwhile it has gone, or said HELLO again")
    for key, deadline in armed.items():
        if known.get(key) != deadline:  # else it is the arming that is known, and may be dealt with
            cells.set(key, deadline, monotonic())
    return table


# -- which message is for whom -------------------------------------------------------------------------------

Handler: TypeAlias = Callable[[Session, Any], Steps[None] | None]

WORKER = frozenset({State.SHARING, State.SOCKET_ONLY})
ANYBODY = frozenset(State) - {State.CHANNEL}

HANDLERS: dict[type[wire.ToServer], tuple[Handler, Set[State]]] = {
    wire.Hello: (_hello, {State.STRANGER}),
    wire.Ring: (_ring, WORKER),
    wire.Acquire: (_acquire, {State.SOCKET_ONLY}),
    wire.Bye: (_bye, WORKER),
    wire.Ping: (_ping, ANYBODY),
    wire.StatusRequest: (_status, ANYBODY),
    wire.Resume: (_resume, ANYBODY),
    wire.Disown: (_disown, ANYBODY),
    wire.DumpRequest: (_dump, {State.STRANGER}),
    wire.Attend: (_attend, {State.STRANGER}),
    wire.Tasks: (_tasks, {State.CHANNEL}),
}
"""Each kind of message: what handles it, and what its connection has to be."""
