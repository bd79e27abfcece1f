"""Protocol handlers: what a server answers to HELLO and all that follows, and to requests without a table.

The laws of this file: WELCOME is sent last, when the worker is pinned, its table watched and looked at; what
a client says of itself decides nothing but how to talk to it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from .._core import layout, wire
from .._linux import table_files
from .._linux.process import hung_up, peer_uid, pin_peer
from .._linux.procfs import maps_file, program_of, time_namespace
from .._version import __version__
from ..errors import AiotimerError, ProtocolError, ServerError, TableFull
from ..events import log
from ..queue import SocketQueue
from .acceptor import EXHAUSTED, OUT_OF_DESCRIPTORS
from .dump import BUDGET, dump
from .inspection_channel import InspectionChannel

if TYPE_CHECKING:
    from .connection import ServerConnection
    from .policy import Policy
    from .registry import Registry
    from .watched_table import WatchedTable
    from .worker import Worker


class HandlerContext(Protocol):
    """What the handlers ask of the server.

    Attributes:
        policy: how it reaps.
    """

    policy: Policy

    @property
    def lag_s(self) -> float:
        """How late its own heartbeat has been, seconds."""

    def status(self, *, scopes: bool = False) -> dict[str, Any]:
        """What it is doing."""

    def owner_gone(self) -> None:
        """The owner of a private server gives it up."""

    def refused(self, connection: ServerConnection, reason: str) -> None:
        """A client is not served."""


def handle(
    server: HandlerContext, registry: Registry, connection: ServerConnection, message: wire.ToServer
) -> None:
    """Answer one message.

    Raises:
        ProtocolError: it has no place here.
    """
    if connection.worker is None and not isinstance(message, wire.Hello):
        uid = peer_uid(connection.socket)
        if uid not in (os.geteuid(), 0):  # the socket's mode keeps others out, unless somebody changed it
            raise ProtocolError(f"{type(message).__name__} of uid {uid}, which is not this server's")
    if connection.inspection_channel is not None or isinstance(
        message, wire.Attend | wire.Tasks | wire.DumpRequest
    ):
        _handle_inspection(server, registry, connection, message)
    elif isinstance(message, wire.Ping):
        connection.send(wire.Pong(os.getpid(), server.lag_s))
    elif isinstance(message, wire.StatusRequest):
        connection.send(wire.Status(server.status(scopes=message.scopes)))
    elif isinstance(message, wire.Disown):
        server.owner_gone()
        connection.send(wire.Pong(os.getpid(), server.lag_s))
    elif isinstance(message, wire.Hello):
        if connection.worker is not None:
            raise ProtocolError("a second HELLO")
        try:
            _handle_hello(registry, connection, message)
        except (AiotimerError, OSError, ValueError) as error:
            reason = _why(error)
            server.refused(connection, reason)
            connection.refuse(reason)
    elif isinstance(message, wire.Bye) and connection.worker is not None:
        if connection.table is not None:
            forget(connection.worker, connection.table)
        connection.close()
    else:
        raise ProtocolError(f"{type(message).__name__} before HELLO")


def _handle_inspection(
    server: HandlerContext, registry: Registry, connection: ServerConnection, message: wire.ToServer
) -> None:
    """Answer a message about what a worker is doing, or one on a connection that is for this alone."""
    channel = connection.inspection_channel
    if channel is not None and isinstance(message, wire.Tasks):
        channel.answered(message)
    elif channel is not None or connection.worker is not None:
        raise ProtocolError(f"{type(message).__name__} on a connection that is for something else")
    elif isinstance(message, wire.Attend):
        _handle_attend(registry, connection, message)
    elif isinstance(message, wire.DumpRequest):
        report = _send_dump(server, registry, connection, message.pid)
        connection.reports(asyncio.get_running_loop().create_task(report))
    else:
        raise ProtocolError(f"{type(message).__name__} before ATTEND")


def _handle_attend(registry: Registry, connection: ServerConnection, attend: wire.Attend) -> None:
    """Make a connection an inspection channel; one of whoever is no worker is closed."""
    worker = None
    try:
        worker_id, pidfd, uid = pin_peer(connection.socket)
        os.close(pidfd)
        if attend.version == wire.PROTOCOL_VERSION and uid == os.geteuid():
            worker = registry.find(worker_id)
    except OSError as error:
        log.debug("an inspection channel is closed: %s", error)
    if worker is None or worker.closed:
        connection.close()
    else:
        connection.inspection_channel = InspectionChannel(worker.inspection_channels, connection.send)


async def _send_dump(
    server: HandlerContext, registry: Registry, connection: ServerConnection, pid: int
) -> None:
    worker = registry.find(pid)
    if worker is None or worker.closed:
        connection.send(wire.Dump({}, f"no worker with pid {pid} is known here"))
        return
    try:
        found = await dump(worker, server.policy.evidence_budget or BUDGET)
    except Exception as error:  # noqa: BLE001 - logged, and told to whoever asks
        log.exception("no dump of process %d", pid)
        connection.send(wire.Dump({}, f"it failed: {error}"))
        return
    connection.send(wire.Dump(found))


def forget(worker: Worker, table: WatchedTable) -> None:
    """Drop a table of a worker, and all that is armed in it."""
    if table in worker.tables:
        worker.drop(table)


def apply(registry: Registry, connection: ServerConnection) -> str:
    """Apply the pending requests of a peer without a table to the one the server keeps for it.

    Returns:
        Why the last one that failed did; "" if all were applied.
    """
    worker, inbox = connection.worker, connection.inbox
    assert worker is not None
    assert inbox is not None
    failure = ""
    table, cells = registry.own_table(worker, "socket")
    earliest = None
    for request in inbox.get(inbox.size()):
        until = layout.shifted(request.expiration_time, connection.offset)
        try:
            key = layout.split_key(request.scope_id)
            if cells.set(key, until, monotonic()):
                earliest = until if earliest is None else min(earliest, until)
        except (TableFull, ValueError) as error:
            failure = str(error)
    if earliest is not None:
        table.rung(earliest)
    return failure


def _why(error: Exception) -> str:
    """Say in words why a client is not served."""
    code = error.errno if isinstance(error, OSError) else None
    if code in EXHAUSTED:
        return OUT_OF_DESCRIPTORS
    if code == errno.ENOSPC:
        return "there is no memory left for another timer table (the tmpfs that holds them is full)"
    return str(error)


def _handle_hello(registry: Registry, connection: ServerConnection, hello: wire.Hello) -> None:
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
        _connect(registry, worker, connection, hello, program)
    except BaseException:
        registry.unregister(worker)
        raise


def _connect(
    registry: Registry, worker: Worker, connection: ServerConnection, hello: wire.Hello, program: int
) -> None:
    same_clock = hello.time_namespace == time_namespace()
    offset = 0.0 if same_clock else monotonic() - hello.clock
    grant = registry.policy.reap_grant(hello.reap, observe=hello.observe)
    layout.encode_grant(str(grant))  # it must fit
    if hello.shared:
        offered = connection.take_descriptor()
        if hello.offers_table and offered < 0:
            raise ServerError("the table it offered did not arrive: " + OUT_OF_DESCRIPTORS)
        table, is_new = _shared_table(registry, worker, offered)
    else:
        table, is_new = _socket_table(registry, worker, connection, hello, offset), False
    connection.worker, connection.table, connection.offset = worker, table, offset
    table.connection = connection
    table.note_program(program)
    table.note_reap_grant(str(grant))
    worker.reap_grant = grant
    worker.connections += 1
    table.watch.connected = True
    table.look()
    if connection.closed or table.closed:
        return  # something had expired already
    descriptor = table.file.descriptor if is_new else -1
    welcome = wire.Welcome(wire.PROTOCOL_VERSION, __version__, os.getpid(), offset, is_new)
    connection.send(welcome, descriptor)


def _shared_table(registry: Registry, worker: Worker, offered: int) -> tuple[WatchedTable, bool]:
    """Return the worker's table, and whether it is a new one whose descriptor it needs."""
    if offered >= 0:
        known = worker.table_of(os.fstat(offered).st_ino)
        if known is not None:
            os.close(offered)
            return known, False
        try:
            file = table_files.check_offered(offered)
        except BaseException:
            os.close(offered)
            raise
        return registry.watch(worker, file, connected=True), False
    for table in list(worker.tables):
        unconnected = not table.watch.connected and table.file.kind == "shared"
        if unconnected and maps_file(worker.id.pid, table.file.inode) is False:
            forget(worker, table)  # of the program that this process ran before an exec
    return registry.new_table(worker, "shared"), True


def _socket_table(
    registry: Registry, worker: Worker, connection: ServerConnection, hello: wire.Hello, offset: float
) -> WatchedTable:
    """Return the table kept for a peer without one, holding just what it says is armed."""
    if hello.clock < worker.heard_at:  # on a connection that was given up, and read only now
        raise ServerError("a later HELLO of this process has been heard")
    worker.heard_at = hello.clock
    table, cells = registry.own_table(worker, "socket")
    if table.connection is not None:
        table.connection.close()  # an older connection's requests, still on their way, are void
    armed = {layout.split_key(key): layout.shifted(deadline, offset) for key, deadline in hello.armed}
    for key in cells.armed_cells().keys() - armed.keys():
        cells.set(key, -1.0, monotonic())
    for key, deadline in armed.items():
        cells.set(key, deadline, monotonic())
    connection.inbox = SocketQueue(connection.socket, worker.id)
    return table
