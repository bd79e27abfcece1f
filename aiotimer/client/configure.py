"""The configuration of this process: ``configure`` chooses the server that watches it.

The law of this file: what ``configure`` did, ``configure(None)`` undoes, and nothing else.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING

from .._linux.paths import SOCKET_VARIABLE
from ..errors import AiotimerError
from .clients import BaseClient, TimerClient, default
from .waiting import loop_is_running

if TYPE_CHECKING:
    from .reconnect import Hook

_ours: TimerClient | None = None  # the default client, if configure() made it
_private_socket: str | None = None  # of the private server that is exported
_owner_pid = 0  # the process that started and exported it


class _Unset:
    def __repr__(self) -> str:
        return "$AIOTIMER_SOCKET, or a private server"


_UNSET = _Unset()


def configure(
    client: BaseClient | str | os.PathLike[str] | _Unset | None = _UNSET,
    *,
    on_unwatched: Hook | None = None,
    reap: str = "",
    observe: bool = False,
) -> BaseClient | None:
    """Choose the server that watches ``expires`` blocks in this process.

    With no argument it is the server at ``$AIOTIMER_SOCKET``; if that is not set, a private server is
    started for this process and its descendants, and ``$AIOTIMER_SOCKET`` is set to it. Called at the start
    of a program it returns when the server is ready; in a running event loop it does not wait, and the
    first ``async with expires(...)`` does.

    Args:
        client: a client, the path of a server's socket, or None to undo what an earlier call did.
        on_unwatched: as for a client, and only without one.
        reap, observe: as for a client, and only without one.

    Returns:
        The client in use from now on, None after ``configure(None)``.

    Raises:
        ServerUnavailable: the private server did not start.
        UnsafePath: the path cannot be a socket's, or there is no place for a private server.
        ValueError: ``reap`` is no ladder, or a client of this process has asked that server for another
            ``reap`` or ``observe``.
        TypeError: ``on_unwatched``, ``reap`` or ``observe`` beside a client, which has its own, or
            beside None.
    """
    global _ours
    new: BaseClient | None
    made: TimerClient | None = None
    if isinstance(client, BaseClient) or client is None:
        if on_unwatched is not None or reap or observe:
            raise TypeError(
                "on_unwatched=, reap= and observe= are for a client that configure() makes; "
                "give it to your own client"
            )
        new = client
    else:
        if reap:
            from .._core.ladder import NO_REQUEST

            NO_REQUEST.combined("", reap, observe=observe)  # before a server is started for nothing
        if isinstance(client, _Unset):
            client = os.environ.get(SOCKET_VARIABLE) or _start_private_server()
        made = new = TimerClient(
            client,
            on_unwatched=on_unwatched,
            reap=reap,
            observe=observe,
        )
        if not loop_is_running():
            try:
                made.connect(made._budget)
            except (AiotimerError, OSError) as error:
                made._missing(error)
    default.client = new
    former, _ours = _ours, made
    if client is None:
        _give_up_private_server()
    if former is not None:
        former.close()
    return new


def _start_private_server() -> str:
    """Start and export one, and return where it is."""
    global _private_socket, _owner_pid
    try:
        from .connection import connection_to
        from .shared_table import SharedTableQueue
    except ImportError:  # its client will say what is missing
        return "a private server"
    from .launch import READY_WITHIN, start_private_server, wait_ready

    path, ready = start_private_server()
    try:
        if loop_is_running():
            connection_to(path, SharedTableQueue).starting_until = monotonic() + READY_WITHIN
        else:
            wait_ready(ready, path)
    finally:
        os.close(ready)
    os.environ[SOCKET_VARIABLE] = path
    _private_socket, _owner_pid = path, os.getpid()
    return path


def _give_up_private_server() -> None:
    """Un-export the private server that this process owns, and tell it that it is not needed any more."""
    global _private_socket
    path, _private_socket = _private_socket, None
    if path is None or _owner_pid != os.getpid():
        return
    if os.environ.get(SOCKET_VARIABLE) == path:
        del os.environ[SOCKET_VARIABLE]
    from .control import give_up_private_server

    give_up_private_server(path)
