"""A connection without a shared table: every request is a message, and acknowledged.

For sandboxes where memory cannot be mapped or descriptors cannot be passed. Timers are kept in a table of
this process's own, and what is said on the socket is read from there at the moment it is said. The laws of
this file:

* What a message asks for is what the table holds under one lock when it is sent. So requests of one timer
  may overtake each other on their way to that lock: the last one said is true.
* Whatever goes wrong while something is being said ends the connection, an interruption too. The HELLO of
  the next one lists what is armed then, and the server releases the rest. Of two HELLOs of a process the
  later one counts, by its clock.
* What could not be said is owed until it is acknowledged: a thread sees to that, even when the last client
  has left.
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
    """A connection without a shared table. ``tell`` raises here: what is not acknowledged nobody watches."""

    shared = False

    def reset(self) -> None:
        """Forget everything, and start with an empty table of our own."""
        super().reset()
        self.queue: SocketQueue | None = None
        self._next_queue: SocketQueue | None = None  # of a connection that is not in use yet
        self._saying_it = threading.RLock()
        self._in_a_sentence = False  # on the thread that holds the lock
        self._marked: dict[str, int] = {}  # by key, the word of timers of which something is to be said
        self._unlisted: deque[str] = deque()
        self._owing = False  # a server may hold timers of ours that it has not been told to forget

    def _first_table(self) -> TimerTable:
        return scratch_table(self.pools)

    # -- requests --------------------------------------------------------------------------------

    def tell(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Say what the table holds for a timer, and wait for the acknowledgement; reconnect if need be.

        Raises:
            AiotimerError, OSError: the server did not acknowledge it within the budget.
        """
        until = monotonic() + budget
        try:
            while True:
                queue = self.queue
                if queue is not None and self.connected:
                    try:
                        number = self._say(queue, key, word, max(0.0, until - monotonic()))
                        queue.wait(number, max(0.0, until - monotonic()))
                        break
                    except OSError:
                        self._lose(queue)
                self._check_silence()
                # HELLO lists what is armed, but another thread may have said it before this was stored.
                self.connect(max(0.0, until - monotonic()))
                if monotonic() >= until:  # it was only being started: that does not count
                    until = monotonic() + budget
        except BaseException:
            self._owe(key, word)
            raise
        self.outage_over()

    async def tell_async(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Do what :meth:`tell` does; what can be sent is sent at once, waiting is left to a thread."""
        import asyncio

        in_thread = functools.partial(asyncio.get_running_loop().run_in_executor, None)
        until = monotonic() + budget
        try:
            while True:
                queue = self.queue
                if queue is not None and self.connected:
                    try:
                        if queue.ready():
                            number = self._say(queue, key, word, BUDGET_ON_LOOP)
                        else:  # the server has not read so far yet
                            number = await in_thread(self._say, queue, key, word, until - monotonic())
                        await in_thread(queue.wait, number, max(0.0, until - monotonic()))
                        break
                    except OSError:
                        self._lose(queue)
                self._check_silence()
                await self.connect_async(max(0.0, until - monotonic()))
                if monotonic() >= until:  # it was only being started: that does not count
                    until = monotonic() + budget
        except BaseException:
            self._owe(key, word)
            raise
        self.outage_over()

    def _owe(self, key: str, word: int) -> None:
        """Leave it to the thread. The HELLO of a connection that others are making may say the contrary."""
        self._marked[key] = word
        self.reconnect_in_background()

    def _check_silence(self) -> None:
        """Wait for a stuck server once a second, not in every step; the rest is left to a thread."""
        if monotonic() < self._silent_until:
            raise ServerUnavailable(self.path, "it did not answer a moment ago")

    def untell(self, key: str, budget: float, word: int = 0) -> None:
        """Say that a timer has been released, and wait for the acknowledgement. Never fails.

        What cannot be said now is said by the next HELLO, which lists what is armed then.
        """
        with contextlib.suppress(AiotimerError, OSError):
            self.tell(key, RELEASE, budget, word)

    async def untell_async(self, key: str, budget: float, word: int = 0) -> None:
        """Do what :meth:`untell` does, suspending the task."""
        with contextlib.suppress(AiotimerError, OSError):
            await self.tell_async(key, RELEASE, budget, word)

    def retract(self, key: str, word: int = 0) -> None:
        """Say that a timer has been released, and wait for nothing; the rest is left to the thread."""
        self._marked[key] = word
        queue = self.queue
        if queue is not None and self.connected:
            with contextlib.suppress(OSError):
                self._say_marked(queue)
        self.reconnect_in_background()

    def requests(self) -> RequestQueue:
        """Return the worker's end of the socket queue.

        Raises:
            ServerUnavailable: it is not connected.
        """
        if self.queue is None:
            raise ServerUnavailable(self.path, "not connected")
        return self.queue

    # -- saying ----------------------------------------------------------------------------------

    def _say(self, queue: SocketQueue, key: str, word: int, budget: float) -> int:
        """Say what is owed, and then what the table holds for a timer; return that request's number."""
        number = 0
        with self._saying_it:
            try:
                self._in_a_sentence = True
                self._say_what_is_owed(queue)
                number = queue.send(key, self._asked(key, word), budget)
            finally:
                self._in_a_sentence = False
                if not number:
                    self._lose(queue)
        if self._marked:  # by a finaliser, in the middle of our sentence
            self._say_marked(queue)
        return number

    def _say_marked(self, queue: SocketQueue) -> None:
        """Say what is owed, unless this thread is at it: a finaliser of its own called us."""
        done = False
        with self._saying_it:
            if self._in_a_sentence:
                return
            try:
                self._in_a_sentence = True
                self._say_what_is_owed(queue)
                done = True
            finally:
                self._in_a_sentence = False
                if not done:
                    self._lose(queue)

    def _say_what_is_owed(self, queue: SocketQueue) -> None:
        while self._marked:
            try:
                key, word = self._marked.popitem()
            except KeyError:  # a HELLO on another connection has just said it all
                return
            queue.send(key, self._asked(key, word), 0.0)

    def _asked(self, key: str, word: int) -> float:
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
        """Nothing more can be said on a connection. Another thread may have made a new one by now."""
        if self.queue is queue:
            self.disconnect()

    # -- connecting ------------------------------------------------------------------------------

    def _hello(self, *, offers_table: bool) -> wire.Hello:
        hello = super()._hello(offers_table=False)
        self._owing = True
        self._marked.clear()  # the list says it
        armed = deque(self._armed())
        room = wire.MAX_FRAME - _HEAD_OF_HELLO
        listed: list[tuple[str, float]] = []
        while armed and (room := room - len(armed[0][0].encode()) - _PER_TIMER) > 0:
            listed.append(armed.popleft())
        self._unlisted = deque(key for key, _deadline in armed)
        return wire.with_armed(hello, tuple(listed))

    def _offer(self) -> list[int]:
        return []

    def _say_more(self, sock: socket.socket, welcome: wire.Welcome) -> Steps[None]:
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
        """Whether something is owed, or nobody watches."""
        queue = self.queue
        said = queue is not None and self.connected and not self._marked
        if self.users <= 0:
            return self._owing
        if said and queue is not None and queue.acknowledged:
            self.outage_over()
            return False
        return True

    def reconnect(self) -> None:
        """Reconnect, and say what is owed."""
        if not self.connected:
            ping(self.path, trusted=True)
            self.connect(RETRY_EVERY)
        if self.users <= 0:
            self._say_goodbye()
        elif (queue := self.queue) is not None:
            try:
                self._say_marked(queue)
                queue.wait(queue.sent, RETRY_EVERY)
            except OSError:
                self._lose(queue)

    def leave(self, hook: Hook | None = None) -> None:
        """A client is done; with the last one the server forgets this process's timers, if need be later."""
        super().leave(hook)
        if self.users <= 0 and self._owing:
            self._say_goodbye()

    def _depart(self) -> None:
        for timer in self._timers():
            key = layout.timer_key(timer.scope, timer.key_ordinal)
            self._marked[key] = layout.FIRST_DEADLINE + timer.slot
        assert self.table is not None
        self.table.disarm()
        if not self._owing:
            self._let_go()

    def _say_goodbye(self) -> None:
        """Say BYE once everything is acknowledged; until then the thread stays."""
        queue = self.queue
        if queue is not None and self.connected:
            try:
                self._say_marked(queue)
                queue.wait(queue.sent, within(_LEAVE_WITHIN))
            except OSError:
                self._lose(queue)
            with self._entering:
                if self.users > 0:
                    return  # a new client goes on with the connection
                if not self._marked and self._send(wire.encode(wire.Bye())):
                    self._let_go()
                    return
        self.reconnect_in_background()
