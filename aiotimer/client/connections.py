"""The registry of this process's connections: one per server and kind of queue. A fork resets the child's."""

from __future__ import annotations

import os
import weakref

from .._linux.environment import check_socket_path
from .connection import ClientConnection
from .shared_table import SharedTableQueue, abandon_tables
from .socket_only import SocketQueue

_connections: dict[tuple[str, bool], ClientConnection] = {}
_every_connection: weakref.WeakSet[ClientConnection] = weakref.WeakSet()


def connection_to(path: str, *, shared: bool) -> ClientConnection:
    """Return this process's connection to a server, connected or not.

    Raises:
        UnsafePath: the path cannot be a socket's.
    """
    path = check_socket_path(path)
    connection = _connections.get((path, shared))
    if connection is None:
        connection = ClientConnection(path, SharedTableQueue if shared else SocketQueue)
        connection = _connections.setdefault((path, shared), connection)
        _every_connection.add(connection)
    return connection


def _after_fork_in_child() -> None:
    abandon_tables()
    for connection in list(_every_connection):
        connection.fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
