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
from ._core.table import TimerTable
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
        self._repairing = False  # there is a thread that reconnects
        self._repair_lock = threading.Lock()
        self._unlisted: deque[tuple[str, float]] = deque()
        self._retracted: deque[str] = deque()

    def _first_table(self) -> TimerTable:
        return scratch_table(self.pools)

    def tell(self, key: str, deadline: float, budget: float) -> None:
        """Send a request and wait for its acknowledgement; reconnect if need be.

        Raises:
            AiotimerError, OSError: the server did not acknowledge it within the budget.
        """
        until = monotonic() + budget
        while True:
            queue = self.queue
            if queue is not None and self.connected:
                try:
                    queue.wait(queue.send(key, deadline), max(0.0, until - monotonic()))
                    return
                except OSError:
                    self.hang_up()
            try:
                self._check_silence()
                # HELLO lists what is armed, but another thread may have said it before this was stored.
                self.connect(max(0.0, until - monotonic()))
            except BaseException:
                self._repair()
                raise

    async def tell_async(self, key: str, deadline: float, budget: float) -> None:
        """Do what :meth:`tell` does; the request is sent at once, only waiting is left to a thread."""
        import asyncio

        until = monotonic() + budget
        while True:
            queue = self.queue
            if queue is not None and self.connected:
                try:
                    number = queue.send(key, deadline)
                    left = max(0.0, until - monotonic())
                    await asyncio.get_running_loop().run_in_executor(None, queue.wait, number, left)
                    return
                except OSError:
                    self.hang_up()
            try:
                self._check_silence()
                await self.connect_async(max(0.0, until - monotonic()))
            except BaseException:
                self._repair()
                raise

    def _check_silence(self) -> None:
        """Wait for a stuck server once a second, not in every step; the rest is left to a thread."""
        if monotonic() < self._silent_until:
            raise ServerUnavailable(self.path, "it did not answer a moment ago")

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
        """Send a release and do not wait; if it cannot be sent, leave it to a thread that waits."""
        if self.queue is not None and self.connected:
            try:
                self.queue.send(key, RELEASE)
                return
            except OSError:
                self.hang_up()
        self._retracted.append(key)
        self._repair()

    def _repair(self) -> None:
        """Reconnect in the background: the server may hold a timer that has been released since.

        Only a HELLO can set that right, and the program may not come by here again for long. The thread
        ends with its work, or with the last client.
        """
        with self._repair_lock:
            if self._repairing:
                return
            self._repairing = True
        try:
            threading.Thread(target=self._reconnect, name="aiotimer-reconnect", daemon=True).start()
        except RuntimeError:  # the interpreter is ending, and its timers with it
            self._repairing = False

    def _reconnect(self) -> None:
        while True:
            with self._repair_lock:
                if self.users <= 0 or (self.connected and not self._retracted):
                    self._repairing = False
                    return
            try:
                self.connect(RETRY_EVERY)
                self._release_retracted()
            except (AiotimerError, OSError):
                sleep(_REPAIR_EVERY)

    def _release_retracted(self) -> None:
        """Say of every retracted timer that it is released: the HELLO may have listed it just before."""
        queue, retracted = self.queue, self._retracted  # the last client may leave meanwhile
        while queue is not None and retracted:
            key = retracted[0]
            if all(key != armed for armed, _deadline in self._armed()):
                queue.send(key, RELEASE)
            retracted.popleft()

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
        queue = SocketQueue(connection, os.getpid())
        for key, deadline in self._unlisted:  # what did not fit into HELLO
            number = queue.send(key, deadline)
        if self._unlisted:
            queue.wait(number, RETRY_EVERY)
        self.queue = queue  # before anybody takes it for connected
        self._use(connection)
