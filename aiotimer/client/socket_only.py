"""A request queue without a shared table: every request is a message, and acknowledged.

For sandboxes where memory cannot be mapped or descriptors cannot be passed. Timers are kept in a table of
this process's own, and what is sent is read from there at the moment it is sent. The laws of this file:

* What a message asks for is what the table holds under one lock when it is sent. So requests of one timer
  may overtake each other on their way to that lock: the last one sent is true.
* Whatever goes wrong while something is being sent ends the connection, an interruption too. The HELLO of
  the next one lists what is armed then, and the server releases the rest. Of two HELLOs of a process the
  later one counts, by its clock.
* What is not acknowledged nobody watches: a request that could not be sent raises. It is pending until it is
  acknowledged: the reconnector's thread sees to that, even when the last client has left.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
from collections import deque
from time import monotonic

from .._core import layout, wire
from .._core.locks import Lock
from .._core.reader import Timer
from .._core.requests import RELEASE
from .._core.table import TimerTable
from ..errors import ProtocolError, TableFull
from .connection import RETRY_EVERY, Armed, WorkerQueue, reader_of
from .memory import private_table
from .waiting import BUDGET_ON_LOOP, Steps, Wait, within

_LEAVE_WITHIN = 0.25
"""Seconds that the last client to leave waits for the server to acknowledge it; then the thread does."""

_HEAD_OF_HELLO, _PER_TIMER = 8 * 1024, 16
"""Bytes of a HELLO without its timers, and of one timer besides its key; both on the safe side."""


class Messages:
    """Numbered requests on one connected socket, and their acknowledgements.

    One thread at a time sends, and any may wait.

    Args:
        sock: a non-blocking stream socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reading = Lock()  # held by the thread that reads
        self._acknowledged = 0
        self._errors: dict[int, str] = {}
        self._decoder = wire.client_decoder()
        self.sent = 0
        """The number of the last request sent."""

    @property
    def acknowledged(self) -> bool:
        """Whether all that was sent has been acknowledged, as far as anybody has read."""
        return self._acknowledged >= self.sent

    def send(self, key: str, expiration_time: float, budget: float) -> int:
        """Send a request for the timer of a key (see ``layout.timer_key``) and return its number.

        Interrupted or failed, it leaves a connection on which nothing more can be sent.

        Args:
            key: whose.
            expiration_time: as in a :class:`TimerRequest`.
            budget: seconds this may take.

        Raises:
            ConnectionError: it could not be sent within the budget.
        """
        until = monotonic() + budget
        number = self.sent + 1
        frame = wire.encode(wire.Acquire(number, key, expiration_time))
        while True:
            try:
                sent = self._socket.send(frame, socket.MSG_NOSIGNAL)
                break
            except BlockingIOError:
                self.wait_ready(until - monotonic())
        if sent != len(frame):
            self._socket.close()  # half a frame: nothing more can be sent on this connection
            raise ConnectionError("the connection took only a part of a request")
        self.sent = number
        return number

    def ready(self) -> bool:
        """Whether a request can be sent without waiting."""
        return bool(self._poll(select.POLLOUT, 0.0))

    def wait_ready(self, timeout: float) -> None:
        """Wait until a request can be sent.

        Raises:
            ConnectionError: it could not within ``timeout`` seconds.
        """
        self._wait(select.POLLOUT, timeout)

    def wait(self, number: int, timeout: float) -> None:
        """Wait until a request is acknowledged; one waiting thread at a time reads for all of them.

        Raises:
            ConnectionError: it was not within ``timeout`` seconds.
            TableFull: the server has no room for it.
        """
        until = monotonic() + timeout
        while self._acknowledged < number:
            if self._reading.is_mine():
                raise ConnectionError("a signal's handler has interrupted the reading of an acknowledgement")
            try:
                if not self._reading.acquire(timeout=max(0.0, until - monotonic())):
                    raise ConnectionError(f"no acknowledgement within {timeout:g} s")
                if self._acknowledged < number:
                    for message in self._receive(until - monotonic()):
                        self._note(message)
            finally:
                try:
                    self._reading.release()  # first of all, see ``_core/locks``
                except RuntimeError:
                    pass
        error = self._errors.pop(number, None)
        if error:
            raise TableFull(layout.SLOTS, error)

    def _note(self, message: wire.Ack) -> None:
        """An error may be of any request that it acknowledges: nobody may take his own for armed."""
        if message.error:
            last = min(message.number, self.sent + 1)  # one more may just have been sent
            self._errors.update(dict.fromkeys(range(self._acknowledged + 1, last + 1), message.error))
        self._acknowledged = message.number

    def _receive(self, timeout: float) -> list[wire.Ack]:
        self._wait(select.POLLIN, timeout)
        try:
            data = self._socket.recv(65_536)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionError("the server closed the connection")
        return [m for m in self._decoder.feed(data) if isinstance(m, wire.Ack)]

    def _wait(self, event: int, timeout: float) -> None:
        if not self._poll(event, max(0.0, timeout)):
            raise ConnectionError("the server did not answer in time")

    def _poll(self, event: int, timeout: float) -> object:
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise ConnectionError("the connection has been closed")
        poll = select.poll()
        poll.register(descriptor, event)
        return poll.poll(timeout * 1000)


class SocketQueue(WorkerQueue):
    """A queue whose requests are sent. A put raises if it was not acknowledged."""

    shared = False

    def reset(self) -> None:
        """Forget everything, and start with an empty table of our own."""
        super().reset()
        self._messages: Messages | None = None
        self._next_messages: Messages | None = None  # of a connection that is not in use yet
        self._send_lock = Lock()
        self._pending: dict[str, int] = {}  # by key, the word of each timer that is pending
        self._unlisted: deque[str] = deque()  # keys of armed timers that HELLO has no room for
        self._bye_pending = False  # a server may hold timers of ours that it has not been told to forget

    def _first_table(self) -> TimerTable:
        return private_table(self.pools)

    # -- requests --------------------------------------------------------------------------------

    def _sending(self, key: str, deadline: float, word: int, *, blocks_loop: bool) -> Steps[None]:
        """Send what the table holds for a timer, and wait for the acknowledgement; reconnect if need be."""
        connection = self.connection
        try:
            while True:
                messages = self._messages
                if messages is not None and connection.connected:
                    try:
                        while not messages.ready():  # the server has not read so far yet
                            yield Wait(call=messages.wait_ready)
                        number = self._flush(messages, key, word)
                        yield Wait(call=functools.partial(messages.wait, number))
                        break
                    except OSError:
                        self._lose(messages)
                connection.check_silence()
                # HELLO lists what is armed, but another thread may have sent it before this was stored.
                yield from connection.connecting()
        except BaseException:
            # Left to the thread: the HELLO of a connection that others are making may list the contrary.
            self._pending[key] = word
            connection.reconnect_in_background()
            raise
        connection.outage_over()

    def send_release_nowait(self, key: str, word: int = 0) -> None:
        """Send that a timer has been released, and wait for nothing; the rest is left to the thread."""
        self._pending[key] = word
        messages = self._messages
        if messages is not None and self.connection.connected:
            with contextlib.suppress(OSError):
                self._flush(messages)
        self.connection.reconnect_in_background()

    def _flush(self, messages: Messages, key: str = "", word: int = 0) -> int:
        """Send what is pending, and then what the table holds for a timer; return the last request's number.

        If this thread is in the middle of sending already, what is pending is left to that, which looks
        again; but a signal's handler with a timer of its own, who will wait, needs another connection.
        """
        if self._send_lock.is_mine():
            if key:
                raise ConnectionError("a signal's handler has interrupted the sending of another request")
            return 0
        number = self._send_lock.holding(self._flush_now, messages, key, word)
        if key and self._pending:  # a finaliser's, which came while we were sending
            self._flush(messages)
        return number

    def _flush_now(self, messages: Messages, key: str, word: int) -> int:
        try:
            while self._pending:
                try:
                    pending, its_word = self._pending.popitem()
                except KeyError:  # a HELLO on another connection has just listed it all
                    break
                messages.send(pending, self._requested(pending, its_word), 0.0)
            if key:
                messages.send(key, self._requested(key, word), BUDGET_ON_LOOP)
        except BaseException:
            self._lose(messages)
            raise
        return messages.sent

    def _requested(self, key: str, word: int) -> float:
        """Return what is asked for under a name now."""
        assert self.table is not None
        if self.ended and layout.split_key(key)[1]:
            return RELEASE  # a block's
        found = self.table.requested(key, word)
        if found is not None:
            return found
        return next((deadline for armed, deadline in self._armed() if armed == key), RELEASE)

    def _armed(self) -> list[tuple[str, float]]:
        """Return every armed timer as (key, deadline), soonest first."""
        timers = [t for t in self._timers() if not (self.ended and t.key_ordinal)]
        return [(layout.timer_key(t.scope, t.key_ordinal), t.deadline) for t in timers]

    def _words(self) -> dict[str, int]:
        """Return where the deadline of each armed timer is, by its key."""
        first = layout.FIRST_DEADLINE
        return {layout.timer_key(t.scope, t.key_ordinal): first + t.slot for t in self._timers()}

    def _timers(self) -> list[Timer]:
        assert self.table is not None
        return reader_of(self.table).timers()

    def _lose(self, messages: Messages) -> None:
        """Nothing more can be sent on a connection. Another thread may have made a new one by now."""
        if self._messages is messages:
            self.connection.disconnect()

    # -- connecting ------------------------------------------------------------------------------

    def introduce(self) -> tuple[list[int], Armed]:
        """List what is armed, the soonest first, as far as there is room."""
        self._bye_pending = True
        self._pending.clear()  # the list holds it
        armed = deque(self._armed())
        room = wire.MAX_FRAME - _HEAD_OF_HELLO
        listed: list[tuple[str, float]] = []
        while armed and (room := room - len(armed[0][0].encode()) - _PER_TIMER) > 0:
            listed.append(armed.popleft())
        self._unlisted = deque(key for key, _deadline in armed)
        return [], tuple(listed)

    def follow_up(self, sock: socket.socket, welcome: wire.Welcome) -> Steps[None]:
        """Send what HELLO had no room for."""
        if welcome.has_table:
            raise ProtocolError("a table for a client that did not ask for one")
        messages = Messages(sock)
        deadlines = dict(self._armed())
        for key in self._unlisted:
            while not messages.ready():
                yield Wait(sock.fileno(), write=True)
                deadlines = dict(self._armed())
            messages.send(key, deadlines.get(key, RELEASE), 0.0)
        self._next_messages = messages

    def settle(self, sock: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        """Take a connection into use."""
        if descriptor >= 0:
            raise ProtocolError("a descriptor for a client that did not ask for one")
        self._messages = self._next_messages  # before anybody takes it for connected
        self.connection.use(sock)

    def disconnected(self) -> None:
        """The connection is gone: nothing can be sent."""
        self._messages = None

    # -- outages, and the end --------------------------------------------------------------------

    def needs_reconnecting(self) -> bool:
        """Whether something is pending, or nobody watches."""
        messages = self._messages
        if self.connection.users <= 0:
            return self._bye_pending
        flushed = messages is not None and self.connection.connected and not self._pending
        if flushed and messages is not None and messages.acknowledged:
            self.connection.outage_over()
            return False
        return True

    def reconnect(self) -> None:
        """Reconnect, and send what is pending."""
        if not self.connection.connected:
            self.connection.find_server()
        if self.connection.users <= 0:
            self.say_bye()
        else:
            self._flush_and_wait(RETRY_EVERY)

    def _flush_and_wait(self, timeout: float) -> None:
        """Send what is pending, and wait until all is acknowledged, as far as that is possible now."""
        messages = self._messages
        if messages is not None:
            try:
                self._flush(messages)
                messages.wait(messages.sent, timeout)
            except OSError:
                self._lose(messages)

    def end(self) -> None:
        """Release what blocks have armed; it is asked for no more, see :meth:`_requested`."""
        self._pending.update(self._words())
        super().end()
        if self.connection.connected:
            self._flush_and_wait(within(_LEAVE_WITHIN))

    def depart(self) -> None:
        """Disarm what is left; all of it is pending."""
        self._pending.update(self._words())
        assert self.table is not None
        self.table.disarm()
        if not self._bye_pending:
            self.connection.let_go()

    def say_bye(self) -> None:
        """Send BYE once everything is acknowledged; until then the thread stays."""
        if not self._bye_pending:
            return
        connection = self.connection
        if connection.connected:
            self._flush_and_wait(within(_LEAVE_WITHIN))
            if connection.entering.holding(self._bye):
                return
        connection.reconnect_in_background()

    def _bye(self) -> bool:
        """Say it, and return whether nothing is left to do: a new client goes on with the connection."""
        if self.connection.users > 0:
            return True
        said = not self._pending and self.connection.send_frame(wire.encode(wire.Bye()))
        if said:
            self.connection.let_go()
        return said
