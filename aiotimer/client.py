"""The asynchronous client: connects and rings by suspending its task, on any event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._client import CONNECT_TIMEOUT, BaseClient
from ._core.layout import encode_scope
from .errors import AiotimerError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


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
        await self._link.connect_async(timeout)

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
        link = self._link
        try:
            if link.table is None:
                if not self.may_connect():
                    return
                await link.connect_async(self.budget)
            deadline = self._arm(scope_id, expiration_time)
            if deadline is not None:
                await link.tell_async(scope_id, deadline, self.budget)
        except (AiotimerError, OSError) as error:
            if self.raises(error):
                self._retract(scope_id)
            self.missing(error)
        except BaseException:  # cancelled: the caller does not hold this timer
            self._retract(scope_id)
            raise

    async def release(self, scope_id: str) -> None:
        """Take the timer ``scope_id`` away; a no-op if it is not armed. Never fails for want of a server.

        Raises:
            TypeError, ValueError: ``scope_id`` is not a name.
        """
        encode_scope(scope_id)
        try:
            self._disarm(scope_id)
            await self._link.untell_async(scope_id, self.budget)
        except BaseException:  # interrupted: it is released all the same
            self._disarm(scope_id)
            self._link.retract(scope_id)
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
