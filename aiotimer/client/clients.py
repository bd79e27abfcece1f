"""Clients, which arm and release named timers on this process: by suspending a task, or by blocking a thread.

``acquire`` and ``release`` put a request into the queue between this process and a server, whichever kind of
queue that is. ``AsyncTimerClient`` and ``TimerClient`` differ in how they put, awaiting or blocking;
everything else is :class:`BaseClient`, a handle on the queue and a policy for the absence of its server.

The laws of this file: it imports neither sockets nor the wire before something is connected, so that
``import aiotimer`` stays cheap; the default client, the one that blocks use which name none, is looked up
when a block is made or entered, and never kept by one; what is not for users begins with an underscore.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from .._core.layout import as_stored
from .._core.requests import RELEASE, TimerRequest
from .._linux.forks import notice
from .._linux.paths import SOCKET_VARIABLE
from ..errors import AiotimerError, NotConfigured, ServerUnavailable, TableFull
from .waiting import BUDGET

if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn, Self

    from .._core.table import Pool
    from ..queue import RequestQueue
    from .connection import ClientConnection, WorkerQueue
    from .reconnect import Hook


Unavailable: TypeAlias = Literal["raise", "warn", "ignore"]

CONNECT_TIMEOUT = 5.0
"""Seconds that an explicit ``connect()`` waits for a server."""

_YEARS = 10 * 365 * 86_400.0


class BaseClient:
    """See the two clients for the public documentation."""

    __slots__ = (
        "__weakref__",
        "_budget",
        "_closed",
        "_hook",
        "_pools",
        "_queue",
        "_sites",
        "_unavailable",
    )

    _budget: float  # seconds for which the worker may be held when its server has to be reached
    _pools: dict[str, Pool]  # the queue's, for ``expires`` to look its scope up in without asking
    _queue: WorkerQueue
    _sites: dict[tuple[int, int], Pool]  # the queue's too
    _unavailable: Unavailable

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
        target: str = "",
    ) -> None:
        if unavailable not in ("raise", "warn", "ignore"):
            raise ValueError(f"unavailable must be 'raise', 'warn' or 'ignore', not {unavailable!r}")
        if path is None:
            path = os.environ.get(SOCKET_VARIABLE)
            if not path:
                raise NotConfigured
        connection = _connection_to(os.fspath(path), shared=shared)
        connection.ask_for(reap, observe=observe, target=target)
        connection.enter(on_unwatched, aloud=unavailable == "warn", strict=unavailable == "raise")
        self._hook = on_unwatched
        self._closed = False
        self._queue = connection.queue
        self._pools, self._sites = self._queue.pools, self._queue.sites
        self._unavailable = unavailable
        self._budget = budget

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        return f"<{type(self).__name__} {self.path!r}, {state}>"

    @property
    def path(self) -> str:
        """The server's socket."""
        return self._queue.path

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this process and is not known to have gone since."""
        notice()
        return not self._closed and self._queue.connection.connected

    @property
    def queue(self) -> RequestQueue:
        """The request queue that this client's requests go through.

        Raises:
            ServerUnavailable: it was never connected.
        """
        if not self._queue.connection.welcomed:
            raise ServerUnavailable(self.path, "never connected")
        return self._queue

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied: what the copy closes would be closed for the original, too."""
        raise TypeError("a timer client cannot be copied or pickled; make a new one")

    @property
    def _insists(self) -> bool:
        """Whether an error is wanted for every request that fails."""
        return self._unavailable == "raise"

    def _missing(self, error: Exception) -> None:
        """Apply the policy for an absent server, or a want of memory.

        Raises:
            AiotimerError: the policy says so, or ``error`` is a table that is full for another reason.
        """
        if isinstance(error, TableFull):
            self._queue.connection.no_room(str(error))
        else:
            self._queue.connection.outage(str(error), aloud=self._queue.connection.aloud)
        if self._raises(error):
            raise error

    def _raises(self, error: Exception) -> bool:
        return self._insists or (isinstance(error, TableFull) and not error.no_memory)

    def _check_open(self) -> None:
        """Raise RuntimeError if this client has been closed."""
        if self._closed:
            raise RuntimeError("this timer client is closed")

    def _acquiring(self, scope_id: str, expiration_time: float) -> TimerRequest:
        """Return the request of an acquire, once it is found to be none that is certainly a mistake."""
        if self._closed:
            self._check_open()
        if type(expiration_time) is not float and (
            isinstance(expiration_time, bool) or not isinstance(expiration_time, (int, float))
        ):
            raise TypeError(f"expiration_time must be a number, not {type(expiration_time).__name__}")
        if not expiration_time <= monotonic() + _YEARS:
            as_stored(expiration_time)
            import time

            wall = time.time()  # noqa: TID251 - to recognise the mistake, not to decide by
            if abs(expiration_time - wall) < _YEARS:
                raise ValueError(
                    "expiration_time looks like time.time(); timers use time.monotonic(), "
                    "which no clock adjustment moves"
                )
        return TimerRequest(self._queue.worker_id, scope_id, expiration_time)

    def _not_put(self, request: TimerRequest, error: BaseException) -> None:
        """A request has not reached its server: apply the policy, or go on with what interrupted it.

        A release is made all the same; of an acquire that raises nobody holds the timer.
        """
        if not isinstance(error, (AiotimerError, OSError)):
            if not isinstance(error, (TypeError, ValueError)):  # else it is no request, and nothing was done
                self._queue.put_nowait(request._replace(expiration_time=RELEASE))
            raise error
        if not request.is_release:
            if self._raises(error):
                self._queue.put_nowait(request._replace(expiration_time=RELEASE))
            self._missing(error)

    def _leave(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.connection.leave(self._hook)
            self._pools, self._sites = {}, {}


def _connection_to(path: str, *, shared: bool) -> ClientConnection:
    try:
        from .connection import connection_to
        from .shared_table import SharedTableQueue
        from .socket_only import SocketQueue
    except ImportError as error:
        from .reconnect import NoServer

        return cast("ClientConnection", NoServer(path, error))
    return connection_to(path, SharedTableQueue if shared else SocketQueue)


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
        target: who is signalled when this process is reaped: ``"process"``, ``"group"``, ``"cgroup"`` or
            ``"tree"``, see :class:`TimerServer`; by default as the server does it.

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
        self._check_open()
        self._queue.connection.connect(timeout)

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Arm the timer ``scope_id`` of this process, or move it if it is armed.

        Args:
            scope_id: its name, at most 240 bytes of UTF-8.
            expiration_time: ``time.monotonic()`` seconds; 0 has already expired, and a strictly negative
                one is a release.

        Raises:
            ServerUnavailable, Refused: only if ``unavailable="raise"``.
            TableFull: 65,536 timers are armed; for want of memory, only if ``unavailable="raise"``.
            TypeError, ValueError: the arguments are not a name and a finite number.
        """
        self._put(self._acquiring(scope_id, expiration_time))

    def release(self, scope_id: str) -> None:
        """Take the timer ``scope_id`` away; a no-op if it is not armed. Never fails for want of a server.

        Raises:
            TypeError, ValueError: ``scope_id`` is not a name.
        """
        self._put(TimerRequest(self._queue.worker_id, scope_id, RELEASE))

    def _put(self, request: TimerRequest) -> None:
        try:
            self._queue.put(request, self._budget, insist=self._unavailable == "raise")
        except BaseException as error:  # noqa: BLE001 - raised again, unless a server is what is missing
            self._not_put(request, error)

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


class AsyncTimerClient(BaseClient):
    """Arms and releases timers on this process, from coroutines. Safe from any thread and loop.

    Its arguments, and what it raises, are those of :class:`TimerClient`; both share this process's connection
    and timer table. Use it in ``async with``, or call :meth:`connect` and :meth:`aclose`.
    """

    __slots__ = ()

    async def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect, if this process is not connected to that server yet; see :meth:`TimerClient.connect`."""
        self._check_open()
        await self._queue.connection.connect_async(timeout)

    async def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Arm the timer ``scope_id``, or move it if it is armed; see :meth:`TimerClient.acquire`."""
        await self._put(self._acquiring(scope_id, expiration_time))

    async def release(self, scope_id: str) -> None:
        """Take the timer ``scope_id`` away; see :meth:`TimerClient.release`."""
        await self._put(TimerRequest(self._queue.worker_id, scope_id, RELEASE))

    async def _put(self, request: TimerRequest) -> None:
        try:
            await self._queue.put_async(request, self._budget, insist=self._unavailable == "raise")
        except BaseException as error:  # noqa: BLE001 - as in TimerClient
            self._not_put(request, error)

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
