"""The link of a process that cannot map memory: each request is a message, and acknowledged.

The law of this file: the link keeps a table all the same, in its own memory. The names and the numbers in it
are what it tells the server, request by request, and all at once when it reconnects.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from time import monotonic, sleep

from ._core import layout, wire
from ._core.reader import TableReader
from ._core.requests import RELEASE
from ._link import RETRY_EVERY, Link
from ._scratch import scratch_table
from .errors import AiotimerError, ProtocolError, ServerUnavailable
from .queue import RequestQueue, SocketQueue

_REPAIR_EVERY = 0.1
"""Seconds between attempts to reach a server that may hold a released timer. It waits for us for
``runtime.PEERS_RETURN_WITHIN`` seconds after a restart, before it acts on what it adopted."""

_HEAD_OF_HELLO, _PER_TIMER = 512, 16
"""Bytes of a HELLO without its timers, and of one timer besides its key; both on the safe side."""


class SocketLink(Link):
    """A connection without a shared table. ``tell`` raises here: what is not acknowledged nobody watches."""

    shared = False

    def reset(self) -> None:
        """Forget everything, and start with an empty table of our own."""
        super().reset()
        self.queue: SocketQueue | None = None
        self.table = scratch_table(self.pools)
        self._repairing: threading.Thread | None = None
        self._unlisted: deque[tuple[str, float]] = deque()

    def tell(self, key: str, deadline: float, budget: float) -> None:
        """Send a request and wait for its acknowledgement; reconnect if need be.

        Raises:
            AiotimerError, OSError: the server did not acknowledge it within the budget.
        """
        until = monotonic() + budget
        if self.queue is not None and self.connected:
            try:
                self.queue.wait(self.queue.send(key, deadline), budget)
                return
            except (ConnectionError, OSError):
                self.hang_up()
        try:
            self.connect(max(0.0, until - monotonic()))  # HELLO lists every armed timer, this one too
        except BaseException:
            self._repair()
            raise

    async def tell_async(self, key: str, deadline: float, budget: float) -> None:
        """Do what :meth:`tell` does; the request is sent at once, only waiting is left to a thread."""
        import asyncio

        until = monotonic() + budget
        queue = self.queue
        if queue is not None and self.connected:
            try:
                number = queue.send(key, deadline)
                await asyncio.get_running_loop().run_in_executor(None, queue.wait, number, budget)
                return
            except (ConnectionError, OSError):
                self.hang_up()
        try:
            await self.connect_async(max(0.0, until - monotonic()))
        except BaseException:
            self._repair()
            raise

    def untell(self, key: str, budget: float) -> None:
        """Send a release and wait for its acknowledgement. Never raises.

        What cannot be said now is said by the next HELLO, which lists what is armed then.
        """
        with contextlib.suppress(AiotimerError, OSError):
            self.tell(key, RELEASE, budget)

    async def untell_async(self, key: str, budget: float) -> None:
        """Do what :meth:`untell` does, suspending the task."""
        with contextlib.suppress(AiotimerError, OSError):
            await self.tell_async(key, RELEASE, budget)

    def retract(self, key: str) -> None:
        """Send a release and do not wait. If it cannot be sent, the next HELLO will not list the timer."""
        if self.queue is not None and self.connected:
            try:
                self.queue.send(key, RELEASE)
            except OSError:
                self.hang_up()
                self._repair()

    def _repair(self) -> None:
        """Reconnect in the background: the server may hold a timer that has been released since.

        Only a HELLO can set that right, and the program may not come by here again for long. The thread
        ends with its work, or with the last client.
        """
        if self._repairing is None or not self._repairing.is_alive():
            self._repairing = threading.Thread(target=self._reconnect, name="aiotimer-reconnect", daemon=True)
            self._repairing.start()

    def _reconnect(self) -> None:
        while self.users > 0 and not self.connected:
            try:
                self.connect(RETRY_EVERY)
            except (AiotimerError, OSError):
                sleep(_REPAIR_EVERY)

    def requests(self) -> RequestQueue:
        """Return the worker's end of the socket queue.

        Raises:
            ServerUnavailable: it is not connected.
        """
        if self.queue is None:
            raise ServerUnavailable(self.path, "not connected")
        return self.queue

    def _hello(self, *, offers_table: bool) -> wire.Hello:
        self._unlisted = self._armed()
        room = wire.MAX_FRAME - _HEAD_OF_HELLO
        listed: list[tuple[str, float]] = []
        while self._unlisted and (room := room - len(self._unlisted[0][0].encode()) - _PER_TIMER) > 0:
            listed.append(self._unlisted.popleft())
        return wire.with_armed(super()._hello(offers_table=False), tuple(listed))

    def _armed(self) -> deque[tuple[str, float]]:
        """Return every armed timer as (key, deadline), soonest first."""
        assert self.table is not None
        raw = self.table.raw
        timers = TableReader(lambda size, offset: bytes(raw[offset : offset + size])).timers()
        return deque((layout.timer_key(t.scope, t.ordinal), t.deadline) for t in timers)

    def _offer(self) -> list[int]:
        return []

    def _settle(self, connection: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        if welcome.has_table or descriptor >= 0:
            raise ProtocolError("a table for a client that did not ask for one")
        self._use(connection)
        queue = SocketQueue(connection, os.getpid())
        for key, deadline in self._unlisted:  # what did not fit into HELLO
            number = queue.send(key, deadline)
        if self._unlisted:
            queue.wait(number, RETRY_EVERY)
        self.queue = queue
