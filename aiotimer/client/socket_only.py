"""A socket-only connection, which has no shared table: every request is a message, and acknowledged.

For sandboxes where memory cannot be mapped or descriptors cannot be passed. Timers are kept in a table of
this process's own, and what is sent is read from there at the moment it is sent. The laws of this file:

* What a message asks for is what the table holds under one lock when it is sent. So requests of one timer
  may overtake each other on their way to that lock: the last one sent is true.
* Whatever goes wrong while something is being sent ends the connection, an interruption too. The HELLO of
  the next one lists what is armed then, and the server releases the rest. Of two HELLOs of a process the
  later one counts, by its clock.
* What could not be sent is pending until it is acknowledged: the reconnector's thread sees to that, even
  when the last client has left.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from collections import deque
from time import monotonic

from .._core import layout, wire
from .._core.reader import TableReader, Timer
from .._core.requests import RELEASE
from .._core.table import TimerTable
from ..errors import AiotimerError, ProtocolError, ServerUnavailable
from ..queue import RequestQueue, SocketQueue
from .connection import RETRY_EVERY, ClientConnection
from .control import ping
from .memory import scratch_table
from .reconnect import Hook
from .waiting import BUDGET_ON_LOOP, Steps, Wait, within

_LEAVE_WITHIN = 0.25
"""Seconds that the last client to leave waits for the server to acknowledge it; then the thread does."""

_HEAD_OF_HELLO, _PER_TIMER = 512, 16
"""Bytes of a HELLO without its timers, and of one timer besides its key; both on the safe side."""


class SocketOnlyConnection(ClientConnection):
    """A connection without a shared table. ``send`` raises here: what is not acknowledged nobody watches."""

    shared = False

    def reset(self) -> None:
        """Forget everything, and start with an empty table of our own."""
        super().reset()
        self.queue: SocketQueue | None = None
        self._next_queue: SocketQueue | None = None  # of a connection that is not in use yet
        self._send_lock = threading.RLock()
        self._sending = False  # something, on the thread that holds the lock
        self._pending: dict[str, int] = {}  # by key, the word of each timer that is pending
        self._unlisted: deque[str] = deque()  # keys of armed timers that HELLO has no room for
        self._bye_pending = False  # a server may hold timers of ours that it has not been told to forget

    def _first_table(self) -> TimerTable:
        return scratch_table(self.pools)

    # -- requests --------------------------------------------------------------------------------

    def send(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Send what the table holds for a timer, and wait for the acknowledgement; reconnect if need be.

        Raises:
            AiotimerError, OSError: the server did not acknowledge it within the budget.
        """
        until = monotonic() + budget
        try:
            while True:
                queue = self.queue
                if queue is not None and self.connected:
                    try:
                        number = self._send_request(queue, key, word, max(0.0, until - monotonic()))
                        queue.wait(number, max(0.0, until - monotonic()))
                        break
                    except OSError:
                        self._lose(queue)
                self._check_silence()
                # HELLO lists what is armed, but another thread may have sent it before this was stored.
                self.connect(max(0.0, until - monotonic()))
                if monotonic() >= until:  # it was only being started: that does not count
                    until = monotonic() + budget
        except BaseException:
            self._leave_pending(key, word)
            raise
        self.outage_over()

    async def send_async(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Do what :meth:`send` does; what can be sent is sent at once, waiting is left to a thread."""
        import asyncio

        in_thread = functools.partial(asyncio.get_running_loop().run_in_executor, None)
        until = monotonic() + budget
        try:
            while True:
                queue = self.queue
                if queue is not None and self.connected:
                    try:
                        if queue.ready():
                            number = self._send_request(queue, key, word, BUDGET_ON_LOOP)
                        else:  # the server has not read so far yet
                            number = await in_thread(
                                self._send_request, queue, key, word, until - monotonic()
                            )
                        await in_thread(queue.wait, number, max(0.0, until - monotonic()))
                        break
                    except OSError:
                        self._lose(queue)
                self._check_silence()
                await self.connect_async(max(0.0, until - monotonic()))
                if monotonic() >= until:  # it was only being started: that does not count
                    until = monotonic() + budget
        except BaseException:
            self._leave_pending(key, word)
            raise
        self.outage_over()

    def _leave_pending(self, key: str, word: int) -> None:
        """Leave it to the thread: the HELLO of a connection that others are making may list the contrary."""
        self._pending[key] = word
        self.reconnect_in_background()

    def _check_silence(self) -> None:
        """Wait for a stuck server once a second, not in every step; the rest is left to a thread."""
        if monotonic() < self._silent_until:
            raise ServerUnavailable(self.path, "it did not answer a moment ago")

    def send_release(self, key: str, budget: float, word: int = 0) -> None:
        """Send that a timer has been released, and wait for the acknowledgement. Never fails.

        What cannot be sent now stands in the next HELLO, which lists what is armed then.
        """
        with contextlib.suppress(AiotimerError, OSError):
            self.send(key, RELEASE, budget, word)

    async def send_release_async(self, key: str, budget: float, word: int = 0) -> None:
        """Do what :meth:`send_release` does, suspending the task."""
        with contextlib.suppress(AiotimerError, OSError):
            await self.send_async(key, RELEASE, budget, word)

    def send_release_nowait(self, key: str, word: int = 0) -> None:
        """Send that a timer has been released, and wait for nothing; the rest is left to the thread."""
        self._pending[key] = word
        queue = self.queue
        if queue is not None and self.connected:
            with contextlib.suppress(OSError):
                self._flush(queue)
        self.reconnect_in_background()

    def requests(self) -> RequestQueue:
        """Return the worker's end of the socket queue.

        Raises:
            ServerUnavailable: it is not connected.
        """
        if self.queue is None:
            raise ServerUnavailable(self.path, "not connected")
        return self.queue

    # -- sending ---------------------------------------------------------------------------------

    def _send_request(self, queue: SocketQueue, key: str, word: int, budget: float) -> int:
        """Send what is pending, and then what the table holds for a timer; return that request's number."""
        number = 0
        with self._send_lock:
            try:
                self._sending = True
                self._send_pending(queue)
                number = queue.send(key, self._requested(key, word), budget)
            finally:
                self._sending = False
                if not number:
                    self._lose(queue)
        if self._pending:  # a finaliser's, which came while we were sending
            self._flush(queue)
        return number

    def _flush(self, queue: SocketQueue) -> None:
        """Send what is pending, unless this thread is sending already: a finaliser of its own called us."""
        done = False
        with self._send_lock:
            if self._sending:
                return
            try:
                self._sending = True
                self._send_pending(queue)
                done = True
            finally:
                self._sending = False
                if not done:
                    self._lose(queue)

    def _send_pending(self, queue: SocketQueue) -> None:
        while self._pending:
            try:
                key, word = self._pending.popitem()
            except KeyError:  # a HELLO on another connection has just listed it all
                return
            queue.send(key, self._requested(key, word), 0.0)

    def _requested(self, key: str, word: int) -> float:
        """Return what is asked for under a name now."""
        assert self.table is not None
        found = self.table.requested(key, word)
        if found is not None:
            return found
        return next((deadline for armed, deadline in self._armed() if armed == key), RELEASE)

    def _armed(self) -> list[tuple[str, float]]:
        """Return every armed timer as (key, deadline), soonest first."""
        return [(layout.timer_key(t.scope, t.key_ordinal), t.deadline) for t in self._timers()]

    def _timers(self) -> list[Timer]:
        assert self.table is not None
        raw = self.table.raw
        return TableReader(lambda size, offset: bytes(raw[offset : offset + size])).timers()

    def _lose(self, queue: SocketQueue) -> None:
        """Nothing more can be sent on a connection. Another thread may have made a new one by now."""
        if self.queue is queue:
            self.disconnect()

    # -- connecting ------------------------------------------------------------------------------

    def _hello(self, *, offers_table: bool) -> wire.Hello:
        hello = super()._hello(offers_table=False)
        self._bye_pending = True
        self._pending.clear()  # the list holds it
        armed = deque(self._armed())
        room = wire.MAX_FRAME - _HEAD_OF_HELLO
        listed: list[tuple[str, float]] = []
        while armed and (room := room - len(armed[0][0].encode()) - _PER_TIMER) > 0:
            listed.append(armed.popleft())
        self._unlisted = deque(key for key, _deadline in armed)
        return wire.with_armed(hello, tuple(listed))

    def _offer(self) -> list[int]:
        return []

    def _send_unlisted(self, sock: socket.socket, welcome: wire.Welcome) -> Steps[None]:
        if welcome.has_table:
            raise ProtocolError("a table for a client that did not ask for one")
        queue = SocketQueue(sock, os.getpid())
        deadlines = dict(self._armed())
        for key in self._unlisted:  # what did not fit into HELLO
            while not queue.ready():
                yield Wait(sock.fileno(), write=True)
                deadlines = dict(self._armed())
            queue.send(key, deadlines.get(key, RELEASE), 0.0)
        self._next_queue = queue

    def _settle(self, sock: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        if descriptor >= 0:
            raise ProtocolError("a descriptor for a client that did not ask for one")
        self.queue = self._next_queue  # before anybody takes it for connected
        self._use(sock)

    def disconnect(self) -> None:
        """Close the connection and nothing else: the timers stay armed."""
        self.queue = None
        super().disconnect()

    # -- outages, and the end --------------------------------------------------------------------

    def needs_reconnecting(self) -> bool:
        """Whether something is pending, or nobody watches."""
        queue = self.queue
        flushed = queue is not None and self.connected and not self._pending
        if self.users <= 0:
            return self._bye_pending
        if flushed and queue is not None and queue.acknowledged:
            self.outage_over()
            return False
        return True

    def reconnect(self) -> None:
        """Reconnect, and send what is pending."""
        if not self.connected:
            ping(self.path, trusted=True)
            self.connect(RETRY_EVERY)
        if self.users <= 0:
            self._send_bye()
        elif (queue := self.queue) is not None:
            try:
                self._flush(queue)
                queue.wait(queue.sent, RETRY_EVERY)
            except OSError:
                self._lose(queue)

    def leave(self, hook: Hook | None = None) -> None:
        """A client is done; with the last one the server forgets this process's timers, if need be later."""
        super().leave(hook)
        if self.users <= 0 and self._bye_pending:
            self._send_bye()

    def _depart(self) -> None:
        for timer in self._timers():
            key = layout.timer_key(timer.scope, timer.key_ordinal)
            self._pending[key] = layout.FIRST_DEADLINE + timer.slot
        assert self.table is not None
        self.table.disarm()
        if not self._bye_pending:
            self._let_go()

    def _send_bye(self) -> None:
        """Send BYE once everything is acknowledged; until then the thread stays."""
        queue = self.queue
        if queue is not None and self.connected:
            try:
                self._flush(queue)
                queue.wait(queue.sent, within(_LEAVE_WITHIN))
            except OSError:
                self._lose(queue)
            with self._entering:
                if self.users > 0:
                    return  # a new client goes on with the connection
                if not self._pending and self._send_frame(wire.encode(wire.Bye())):
                    self._let_go()
                    return
        self.reconnect_in_background()
