"""Clients, which arm and release named timers on this process: by suspending a task, or by blocking a thread.

``AsyncTimerClient`` and ``TimerClient`` differ in how they connect and ring, awaiting or blocking;
everything else is :class:`BaseClient`, a handle on the process's connection to a server and a policy for
its absence.

The laws of this file: it imports neither sockets nor the wire before something is connected, so that
``import aiotimer`` stays cheap; the default client, the one that blocks use which name none, is looked up
when a block is made or entered, and never kept by one.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias

from .._core.layout import as_stored, encode_scope, shifted
from .._core.requests import RELEASE
from .._linux.environment import SOCKET_VARIABLE
from ..errors import AiotimerError, NotConfigured, TableFull
from .waiting import within

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .._core.table import Pool
    from ..queue import RequestQueue
    from .connection import ClientConnection
    from .reconnect import Hook


Unavailable: TypeAlias = Literal["raise", "warn", "ignore"]

BUDGET = 0.25
"""Seconds for which an acquire may hold the worker when its server has to be reached."""

CONNECT_TIMEOUT = 5.0
"""Seconds that an explicit ``connect()`` waits for a server."""

_YEARS = 10 * 365 * 86_400.0


class BaseClient:
    """See the two clients for the public documentation.

    Attributes:
        pools, sites: the connection's pools, for ``expires`` to look its scope up in without asking.
    """

    __slots__ = ("__weakref__", "_closed", "_connection", "_hook", "budget", "pools", "sites", "unavailable")

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        shared: bool = True,
        unavailable: Unavailable = "warn",
        budget: float = BUDGET,
        on_unwatched: Hook | None = None,
        reap: str = "",
        observe: bool = False,
    ) -> None:
        from .connections import connection_to

        if unavailable not in ("raise", "warn", "ignore"):
            raise ValueError(f"unavailable must be 'raise', 'warn' or 'ignore', not {unavailable!r}")
        if path is None:
            path = os.environ.get(SOCKET_VARIABLE)
            if not path:
                raise NotConfigured
        self._connection = connection_to(os.fspath(path), shared=shared)
        self._connection.ask_for(reap, observe=observe)
        self._connection.enter(on_unwatched)
        self._hook = on_unwatched
        self._closed = False
        self.pools: dict[str, Pool] = self._connection.pools
        self.sites: dict[tuple[int, int], Pool] = self._connection.sites
        self.unavailable: Unavailable = unavailable
        self.budget = budget

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        return f"<{type(self).__name__} {self.path!r}, {state}>"

    @property
    def path(self) -> str:
        """The server's socket."""
        return self._connection.path

    @property
    def connection(self) -> ClientConnection:
        """The process's connection to the server (not part of the public interface)."""
        return self._connection

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this process and is not known to have gone since."""
        return not self._closed and self._connection.connected

    @property
    def queue(self) -> RequestQueue:
        """The request queue that this client's requests go through.

        Raises:
            ServerUnavailable: it was never connected.
        """
        return self._connection.requests()

    def raises(self, error: Exception) -> bool:
        """Whether the caller of an acquire is to see this error."""
        return self.unavailable == "raise" or isinstance(error, TableFull)

    def missing(self, error: Exception) -> None:
        """Apply the policy for an absent server.

        Raises:
            AiotimerError: the policy says so, or ``error`` is a full table.
        """
        if not isinstance(error, TableFull):
            self._connection.outage(str(error), aloud=self.unavailable == "warn")
        if self.raises(error):
            raise error

    def check_open(self) -> None:
        """Raise RuntimeError if this client has been closed."""
        if self._closed:
            raise RuntimeError("this timer client is closed")

    def check_request(self, scope_id: str, expiration_time: float) -> None:
        """Refuse what cannot be asked for, before anything is done about it.

        Raises:
            RuntimeError: this client has been closed.
            TypeError, ValueError: the arguments are not a name and a finite number.
        """
        self.check_open()
        encode_scope(scope_id)
        _check_expiration(expiration_time)

    def _leave(self) -> None:
        if not self._closed:
            self._closed = True
            self._connection.leave(self._hook)
            self.pools, self.sites = {}, {}

    # -- the parts of acquire and release that do not wait -----------------------------------------

    def may_connect(self) -> bool:
        """Whether to try to reach a server now: always if the caller wants an error otherwise."""
        return self.unavailable == "raise" or self._connection.may_attempt()

    def _arm(self, scope_id: str, expiration_time: float) -> float | None:
        """Store a request; return the stored deadline if the server must be told of it."""
        table = self._connection.table
        assert table is not None
        expiration_time = shifted(expiration_time, table.offset)
        must_send = table.set((scope_id, 0), expiration_time, table.now())
        return expiration_time if must_send else None

    def _disarm(self, scope_id: str) -> None:
        table = self._connection.table
        if table is not None:
            table.set((scope_id, 0), RELEASE, 0.0)

    def _release_nowait(self, scope_id: str) -> None:
        """An acquire did not come about: nobody holds its timer."""
        self._disarm(scope_id)
        self._connection.send_release_nowait(scope_id)


def _check_expiration(expiration_time: float) -> None:
    if isinstance(expiration_time, bool) or not isinstance(expiration_time, (int, float)):
        raise TypeError(f"expiration_time must be a number, not {type(expiration_time).__name__}")
    as_stored(expiration_time)
    if expiration_time > monotonic() + _YEARS:
        import time

        wall = time.time()  # noqa: TID251 - to recognise the mistake, not to decide by
        if abs(expiration_time - wall) < _YEARS:
            raise ValueError(
                "expiration_time looks like time.time(); timers use time.monotonic(), "
                "which no clock adjustment moves"
            )


class AsyncTimerClient(BaseClient):
    """Arms and releases timers on this process, from coroutines. Safe from any thread and loop.

    All clients of a process share one connection and one timer table per server; after a fork, the child
    gets its own. Use it as a context manager, or call :meth:`connect` and :meth:`aclose`; an acquire on a
    client that is not connected connects it.

    Args:
        path: the server's socket; by default ``$AIOTIMER_SOCKET``.
        shared: False to send each request as an acknowledged message instead of sharing memory with
            the server, where a sandbox forbids that.
        unavailable: what an acquire does when no server can be reached: ``"raise"`` an error, ``"warn"``
            once in the log and go on, or ``"ignore"``.
        budget: seconds for which an acquire may hold the task when a server has to be reached.
        on_unwatched: called once with the reason when this process's timers are not being watched, because
            its server is stuck or gone, and once with None when they are again. It runs in whichever
            thread finds out, and must return soon; what it raises is logged.
        reap: how this process is to be reaped, as steps such as ``"dump,TERM:10,KILL"``; by default as the
            server does it. The server may refuse.
        observe: nobody is signalled for this process's timers: that one expired is only reported.

    All clients of a process at one server want the same of it: the first that asks for something decides.

    Raises:
        ValueError: another client of this process has asked its server for something else.
        NotConfigured: no path was given and ``$AIOTIMER_SOCKET`` is not set.
        UnsafePath: the path cannot be a socket's.
    """

    __slots__ = ()

    async def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect, if this process is not connected to that server yet.

        Args:
            timeout: seconds.

        Raises:
            ServerUnavailable: nobody answered within the time.
            Refused: the server does not want this client.
        """
        self.check_open()
        await self._connection.connect_async(timeout)

    async def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Arm the timer ``scope_id`` of this process, or move it if it is armed.

        Args:
            scope_id: its name, at most 240 bytes of UTF-8.
            expiration_time: ``time.monotonic()`` seconds; 0 has already expired, and a strictly negative
                one is a release.

        Raises:
            ServerUnavailable, Refused: only if ``unavailable="raise"``.
            TableFull: no timer can be added, whatever ``unavailable`` says.
            TypeError, ValueError: the arguments are not a name and a finite number.
        """
        self.check_request(scope_id, expiration_time)
        if expiration_time < 0:
            await self.release(scope_id)
            return
        connection = self._connection
        try:
            if connection.table is None:
                if not self.may_connect():
                    return
                await connection.connect_async(self.budget)
            deadline = self._arm(scope_id, expiration_time)
            if deadline is not None:
                await connection.send_async(scope_id, deadline, self.budget)
        except (AiotimerError, OSError) as error:
            if self.raises(error):
                self._release_nowait(scope_id)
            self.missing(error)
        except BaseException:  # cancelled: the caller does not hold this timer
            self._release_nowait(scope_id)
            raise

    async def release(self, scope_id: str) -> None:
        """Take the timer ``scope_id`` away; a no-op if it is not armed. Never fails for want of a server.

        Raises:
            TypeError, ValueError: ``scope_id`` is not a name.
        """
        encode_scope(scope_id)
        try:
            self._disarm(scope_id)
            await self._connection.send_release_async(scope_id, self.budget)
        except BaseException:  # interrupted: it is released all the same
            self._disarm(scope_id)
            self._connection.send_release_nowait(scope_id)
            raise

    async def aclose(self) -> None:
        """Leave. With the last client of the process the server forgets all its timers."""
        self._leave()

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.aclose()


class TimerClient(BaseClient):
    """Arms and releases timers on this process, from synchronous code. Safe from any thread.

    All clients of a process share one connection and one timer table per server; after a fork, the child
    gets its own. Use it as a context manager, or call :meth:`connect` and :meth:`close`; an acquire on a
    client that is not connected connects it.

    Args:
        path: the server's socket; by default ``$AIOTIMER_SOCKET``.
        shared: False to send each request as an acknowledged message instead of sharing memory with
            the server, where a sandbox forbids that.
        unavailable: what an acquire does when no server can be reached: ``"raise"`` an error, ``"warn"``
            once in the log and go on, or ``"ignore"``.
        budget: seconds for which an acquire may hold the caller when a server has to be reached.
        on_unwatched: called once with the reason when this process's timers are not being watched, because
            its server is stuck or gone, and once with None when they are again. It runs in whichever
            thread finds out, and must return soon; what it raises is logged.
        reap: how this process is to be reaped, as steps such as ``"dump,TERM:10,KILL"``; by default as the
            server does it. The server may refuse.
        observe: nobody is signalled for this process's timers: that one expired is only reported.

    All clients of a process at one server want the same of it: the first that asks for something decides.

    Raises:
        ValueError: another client of this process has asked its server for something else.
        NotConfigured: no path was given and ``$AIOTIMER_SOCKET`` is not set.
        UnsafePath: the path cannot be a socket's.
    """

    __slots__ = ()

    def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect, if this process is not connected to that server yet.

        Args:
            timeout: seconds.

        Raises:
            ServerUnavailable: nobody answered within the time.
            Refused: the server does not want this client.
        """
        self.check_open()
        self._connection.connect(timeout)

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Arm the timer ``scope_id`` of this process, or move it if it is armed.

        Args:
            scope_id: its name, at most 240 bytes of UTF-8.
            expiration_time: ``time.monotonic()`` seconds; 0 has already expired, and a strictly negative
                one is a release.

        Raises:
            ServerUnavailable, Refused: only if ``unavailable="raise"``.
            TableFull: no timer can be added, whatever ``unavailable`` says.
            TypeError, ValueError: the arguments are not a name and a finite number.
        """
        self.check_request(scope_id, expiration_time)
        if expiration_time < 0:
            self.release(scope_id)
            return
        connection = self._connection
        try:
            if connection.table is None:
                if not self.may_connect():
                    return
                connection.connect(within(self.budget))
            deadline = self._arm(scope_id, expiration_time)
            if deadline is not None:
                connection.send(scope_id, deadline, self.budget)
        except (AiotimerError, OSError) as error:
            if self.raises(error):
                self._release_nowait(scope_id)
            self.missing(error)
        except BaseException:  # interrupted: the caller does not hold this timer
            self._release_nowait(scope_id)
            raise

    def release(self, scope_id: str) -> None:
        """Take the timer ``scope_id`` away; a no-op if it is not armed. Never fails for want of a server.

        Raises:
            TypeError, ValueError: ``scope_id`` is not a name.
        """
        encode_scope(scope_id)
        try:
            self._disarm(scope_id)
            self._connection.send_release(scope_id, self.budget)
        except BaseException:  # interrupted: it is released all the same
            self._disarm(scope_id)
            self._connection.send_release_nowait(scope_id)
            raise

    def close(self) -> None:
        """Leave. With the last client of the process the server forgets all its timers."""
        self._leave()

    def __enter__(self) -> Self:
        """Connect."""
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


class Default:
    """The place where the default client stands."""

    __slots__ = ("client",)

    client: BaseClient | None

    def __init__(self) -> None:
        self.client = None


default = Default()


def default_client() -> BaseClient | None:
    """Return the default client; the first time, make one for ``$AIOTIMER_SOCKET`` if that is set."""
    if default.client is None and os.environ.get(SOCKET_VARIABLE):
        client = TimerClient()
        if default.client is None:
            default.client = client  # CPython runs no other thread, and no handler, between these two lines
        else:  # one of those has been quicker
            client.close()
    return default.client


def configured() -> BaseClient:
    """Return the default client.

    Raises:
        NotConfigured: there is none.
    """
    client = default_client()
    if client is None:
        raise NotConfigured
    return client
