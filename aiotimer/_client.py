"""What both clients are: a handle on the process's link to a server, and a policy for its absence.

``AsyncTimerClient`` and ``TimerClient`` differ in how they connect and ring, awaiting or blocking; everything
else is here. The law of this file: it imports neither sockets nor the wire before something is connected,
so that ``import aiotimer`` stays cheap.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias

from ._core.layout import as_stored, encode_scope, shifted
from ._core.requests import RELEASE
from .errors import NotConfigured, TableFull

if TYPE_CHECKING:
    from ._core.table import Pool
    from ._link import Link
    from ._outage import Hook
    from .queue import RequestQueue

Unavailable: TypeAlias = Literal["raise", "warn", "ignore"]

SOCKET_VARIABLE = "AIOTIMER_SOCKET"
BUDGET = 0.25
"""Seconds for which an acquire may hold the worker when its server has to be reached."""

CONNECT_TIMEOUT = 5.0
"""Seconds that an explicit ``connect()`` waits for a server."""

_YEARS = 10 * 365 * 86_400.0


class BaseClient:
    """See the two clients for the public documentation.

    Attributes:
        pools, sites: the link's pools, for ``expires`` to look its scope up in without asking.
    """

    __slots__ = ("__weakref__", "_closed", "_hook", "_link", "budget", "pools", "sites", "unavailable")

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
        from ._links import link_to

        if unavailable not in ("raise", "warn", "ignore"):
            raise ValueError(f"unavailable must be 'raise', 'warn' or 'ignore', not {unavailable!r}")
        if path is None:
            path = os.environ.get(SOCKET_VARIABLE)
            if not path:
                raise NotConfigured
        self._link = link_to(os.fspath(path), shared=shared)
        self._link.ask_for(reap, observe=observe)
        self._link.enter(on_unwatched)
        self._hook = on_unwatched
        self._closed = False
        self.pools: dict[str, Pool] = self._link.pools
        self.sites: dict[tuple[int, int], Pool] = self._link.sites
        self.unavailable: Unavailable = unavailable
        self.budget = budget

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        return f"<{type(self).__name__} {self.path!r}, {state}>"

    @property
    def path(self) -> str:
        """The server's socket."""
        return self._link.path

    @property
    def link(self) -> Link:
        """The process's link to the server (not part of the public interface)."""
        return self._link

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this process and is not known to have gone since."""
        return not self._closed and self._link.connected

    @property
    def queue(self) -> RequestQueue:
        """The request queue that this client's requests go through.

        Raises:
            ServerUnavailable: it was never connected.
        """
        return self._link.requests()

    def raises(self, error: Exception) -> bool:
        """Whether the caller of an acquire is to see this error."""
        return self.unavailable == "raise" or isinstance(error, TableFull)

    def missing(self, error: Exception) -> None:
        """Apply the policy for an absent server.

        Raises:
            AiotimerError: the policy says so, or ``error`` is a full table.
        """
        if not isinstance(error, TableFull):
            self._link.outage(str(error), aloud=self.unavailable == "warn")
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
            self._link.leave(self._hook)
            self.pools, self.sites = {}, {}

    # -- the parts of acquire and release that do not wait -----------------------------------------

    def may_connect(self) -> bool:
        """Whether to try to reach a server now: always if the caller wants an error otherwise."""
        return self.unavailable == "raise" or self._link.may_attempt()

    def _arm(self, scope_id: str, expiration_time: float) -> float | None:
        """Store a request; return the stored deadline if the server must be told of it."""
        table = self._link.table
        assert table is not None
        expiration_time = shifted(expiration_time, table.offset)
        must_tell = table.set((scope_id, 0), expiration_time, table.now())
        return expiration_time if must_tell else None

    def _disarm(self, scope_id: str) -> None:
        table = self._link.table
        if table is not None:
            table.set((scope_id, 0), RELEASE, 0.0)

    def _retract(self, scope_id: str) -> None:
        """An acquire did not come about: nobody holds its timer."""
        self._disarm(scope_id)
        self._link.retract(scope_id)


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
