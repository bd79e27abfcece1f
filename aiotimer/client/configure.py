"""The configuration of this process: ``configure`` chooses the server that watches it.

The law of this file: what ``configure`` did, ``configure(None)`` undoes, and nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._linux.paths import PRIVATE, SOCKET_VARIABLE
from ..errors import AiotimerError, UnsafePath
from . import membership, worker_name
from .clients import BaseClient, TimerClient, default
from .waiting import loop_is_running

if TYPE_CHECKING:
    from .clients import Unavailable
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
    unavailable: Unavailable = "warn",
    on_unwatched: Hook | None = None,
    reap: str = "",
    observe: bool = False,
    target: str = "",
    name: str = "",
    group: str = "",
    rank: int | None = None,
    size: int | None = None,
) -> BaseClient | None:
    """Choose the server that watches ``expires`` blocks in this process.

    With no argument it is the server at ``$AIOTIMER_SOCKET``; if that is not set, a private server is
    started for this process and its descendants, and ``$AIOTIMER_SOCKET`` is set to it. Siblings whose parent
    runs the same interpreter, as the workers of one master, share theirs. Called at the start of a program
    it returns when the server is ready. In a running event loop it waits for nothing: threads start the
    server and connect, and what is armed meanwhile is looked at as soon as they have. A process that has
    changed its uid gets a private server of its new user.

    Args:
        client: a client, the path of a server's socket, or None to undo what an earlier call did.
        unavailable: as for a client, and only without one; also if the private server cannot be started.
        on_unwatched: as for a client, and only without one.
        reap, observe, target: as for a client, and only without one.
        name: what this process is called in reports; 64 characters of it count. By default that is what
            pytest-xdist, Celery or gunicorn call it, or multiprocessing if the program gave it a name or a
            target of its own; else the script or module that it runs. ``RANK`` and its like are added. The
            server is told when this process connects.
        group, rank, size: which member this process is of which run: the run's id, which all of its members
            say, its number among them, from 0 on, and how many there are. What is not given is as a launcher
            says: torchrun (``TORCHELASTIC_RUN_ID``, ``RANK``, ``WORLD_SIZE``), Slurm, Open MPI, PMI or Ray.
            When a timer of one of them expires, the server finds out what all of them are doing. It is told
            when this process connects.

    Returns:
        The client in use from now on, None after ``configure(None)``.

    Raises:
        ServerUnavailable: only if ``unavailable="raise"``: there is no server, or a private one cannot start.
        UnsafePath: the path cannot be a socket's; or, if ``unavailable="raise"``, there is no place for a
            private server.
        ValueError: ``reap`` is no ladder, ``target`` is none, ``rank`` is none of a run of ``size``; or a
            client of this process has asked that server for another ``reap``, ``observe`` or ``target``.
        TypeError: ``name`` or ``group`` is no str, ``rank`` or ``size`` no int; ``unavailable``,
            ``on_unwatched``, ``reap``, ``observe`` or ``target`` beside a client, which has its own, or
            beside None.
    """
    global _ours
    worker_name.give(name)
    membership.give(group, rank, size)
    new: BaseClient | None
    made: TimerClient | None = None
    if isinstance(client, BaseClient) or client is None:
        if on_unwatched is not None or reap or observe or target or unavailable != "warn":
            raise TypeError(
                "unavailable=, on_unwatched=, reap=, observe= and target= are for a client that configure() "
                "makes; give it to your own client"
            )
        new = client
    else:
        if reap or target:
            from .._core.ladder import NO_REQUEST

            # Before a server is started for nothing.
            NO_REQUEST.combined("", reap, observe=observe, target=target)
        absent = None
        if isinstance(client, _Unset):
            client = os.environ.get(SOCKET_VARIABLE)
            if not client or _is_a_former_users(client):
                client, absent = _private_server()
        if absent is not None and unavailable == "raise":
            raise absent
        made = new = TimerClient(
            client, unavailable=unavailable, on_unwatched=on_unwatched,
            reap=reap, observe=observe, target=target,
        )  # fmt: skip
        _connect(made, absent)
    default.client = new
    former, _ours = _ours, made
    if client is None:
        _give_up_private_server()
    if former is not None:
        former.close()
    return new


def _is_a_former_users(path: str) -> bool:
    """Whether it is a private server of the user whose process this was, and is not any more.

    That has no options of its own, as that of ``aiotimer run`` may have: another one does as well.
    """
    if not os.path.basename(path).startswith(PRIVATE):
        return False
    try:
        return os.lstat(path).st_uid != os.geteuid()
    except OSError as error:
        return isinstance(error, PermissionError)


def _connect(client: TimerClient, absent: Exception | None) -> None:
    """Connect a new client; in the background, in a running event loop.

    Args:
        absent: why there is no server, if that is known.
    """
    connection = client._queue.connection
    if absent is None and loop_is_running():
        connection.connect_in_background()
    if absent is None and not connection.expected:
        absent = connection.attempt(client._budget)
    if absent is not None:
        try:
            client._missing(absent)
        except BaseException:
            client.close()
            raise


def _private_server() -> tuple[str, Exception | None]:
    """See that there is one for this process tree, and export where it is.

    Returns:
        That, and why it is not there; None: it is, or a thread starts it.
    """
    global _private_socket, _owner_pid
    try:
        from .connection import connection_to
        from .shared_table import SharedTableQueue
    except ImportError:  # its client will say what is missing
        return "a private server", None
    from .launch import private_socket

    try:
        path = private_socket()
    except UnsafePath as error:
        return f"/dev/shm/aiotimer-{os.geteuid()}/{PRIVATE}nowhere.sock", error  # noqa: S108 - for its messages
    try:
        is_ours = connection_to(path, SharedTableQueue).found_server()
    except (AiotimerError, OSError) as error:
        return path, error
    os.environ[SOCKET_VARIABLE] = path
    _private_socket, _owner_pid = path, os.getpid() if is_ours else 0
    return path, None


def _give_up_private_server() -> None:
    """Un-export the private server, and tell it that it is not needed any more if this process owns it."""
    global _private_socket
    path, _private_socket = _private_socket, None
    if path is None:
        return
    if os.environ.get(SOCKET_VARIABLE) == path:
        del os.environ[SOCKET_VARIABLE]
    if _owner_pid == os.getpid():
        from .control import give_up_private_server

        give_up_private_server(path)
