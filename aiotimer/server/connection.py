"""Connections of a server: they are accepted in bursts; bytes and descriptors come in, frames go out.

The laws of this file:

* Nothing here knows what a message is for, or a worker: whoever receives the messages does.
* Sockets are raw and non-blocking on both loops, because descriptors travel on them (``SCM_RIGHTS``), which
  no asyncio transport carries.
* A connection has a turn, and then the others have theirs: it reads when all that it has read is handled.
* What a peer can make us hold is bounded: one frame in, a reply and ``MAX_UNREAD`` more out, two seconds
  of silence.
* Looks come first: after a burst of new connections the loop has its turn.
* Whoever connects gets an answer. A descriptor is kept in reserve; when all others are used up, it is given
  up for as long as it takes to accept a client, tell it so, and close. If another thread takes the reserve's
  descriptor meanwhile, the next one that is free becomes the reserve, before anybody is accepted.
* When even that fails nobody is accepted for a while. A listener that is readable and cannot be accepted
  from would keep the loop spinning.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from .._core import wire
from .._linux.process import hung_up
from ..errors import AiotimerError, ProtocolError
from .slices import Steps, WorkQueue

SILENCE = 2.0
"""Seconds that a peer may take over its first message, or over the rest of one it has begun."""

MAX_UNREAD = 65_536
"""Bytes of answers that may wait for a peer when it asks for another: one that does not read is dropped."""

MESSAGES, STEP = 64, 0.0005
"""Messages of one connection, and seconds, that are handled before others have their turns."""

_CHUNK = 65_536

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})
"""What the kernel says when there is no descriptor left, in this process or in the system."""

OUT_OF_DESCRIPTORS = "the server is out of file descriptors (raise its limit: ulimit -n, LimitNOFILE=)"

_BURST = 64
"""Clients that are accepted before the loop has its turn."""

_ACCEPT_AGAIN = 0.1
"""Seconds for which nobody is accepted after an accept has failed."""

_TELL_EVERY = 1.0
"""Seconds between two reports of clients that were turned away."""


class Receiver(Protocol):
    """Whom the messages of a connection are for."""

    def received(self, message: wire.ToServer) -> Steps[None] | None:
        """A message came in. The steps that its answer takes are taken before the next one is read.

        Raises:
            AiotimerError: it breaks the rules: the connection is to be closed.
        """

    def all_received(self) -> None:
        """There is no other one in this step: what is done once for all of them is due."""

    def refused(self, reason: str) -> None:
        """The peer broke the rules; the connection is closed next."""

    def closed(self) -> None:
        """The connection is closed."""


class ServerConnection:
    """One accepted connection.

    Args:
        sock: accepted, non-blocking; owned from here on.
    """

    def __init__(
        self, receiver: Receiver, sock: socket.socket, loop: asyncio.AbstractEventLoop, queue: WorkQueue
    ) -> None:
        self._receiver = receiver
        self._loop = loop
        self._queue = queue
        self._has_turn = self._is_waiting = False
        self.socket = sock
        self._decoder = wire.server_decoder()
        self._unsent = memoryview(b"")
        self._descriptors: list[int] = []
        self._stranger = True
        self._silence: asyncio.TimerHandle | None = None
        self._watch_for_silence()
        loop.add_reader(sock, self._readable)

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return self.socket.fileno() < 0

    def hung_up(self) -> bool:
        """Whether the other end is closed, or this one."""
        return self.closed or hung_up(self.socket)

    def send(self, message: wire.ToClient, descriptor: int = -1) -> None:
        """Send a message, with a descriptor if one is given; what does not fit waits for the peer."""
        if len(self._unsent) > MAX_UNREAD:
            self._receiver.refused(f"it does not read: {len(self._unsent)} bytes of answers wait for it")
            self.close()
            return
        data = bytes(self._unsent) + wire.encode(message)
        try:
            if self._unsent:
                sent = 0
            elif descriptor >= 0:
                sent = socket.send_fds(self.socket, [data], [descriptor])
            else:
                sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = memoryview(data)[sent:]  # what is left of megabytes is not copied at every send
        if self._unsent:
            self._loop.add_writer(self.socket, self._writable)

    def refuse(self, reason: str) -> None:
        """Say why not, and close."""
        self.send(wire.Refused(reason))
        self.close()

    def close(self) -> None:
        """Close this end and tell the receiver."""
        if self.closed:
            return
        self._loop.remove_reader(self.socket)
        self._loop.remove_writer(self.socket)
        self.socket.close()
        self._watch_for_silence()
        self._drop_descriptors()
        self._receiver.closed()

    def treat_as_stranger(self, stranger: bool) -> None:
        """Say whether it is unknown what it is for: so long it may bring a descriptor, but not be silent."""
        self._stranger = stranger
        self._watch_for_silence()

    def take_descriptor(self) -> int:
        """Return the descriptor that came with the last message, -1 if there was none."""
        return self._descriptors.pop() if self._descriptors else -1

    def _readable(self) -> None:
        if self._has_turn:  # which has not come, or is not over
            self._loop.remove_reader(self.socket)
            self._is_waiting = True
            return
        self._has_turn = True
        self._queue.take_turn(self._turn())

    def _turn(self) -> Steps[None]:
        try:
            if not self.closed:
                yield from self._read()
        finally:
            self._has_turn = False
            if self._is_waiting and not self.closed:
                self._is_waiting = False
                self._loop.add_reader(self.socket, self._readable)

    def _read(self) -> Steps[None]:
        try:
            data, descriptors, _flags, _address = socket.recv_fds(
                self.socket, _CHUNK, 1, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._descriptors += descriptors
        try:
            if not data:
                self.close()
                return
            if len(self._descriptors) > self._stranger:
                raise ProtocolError("descriptors that nobody asked for")
            yield from self._receive(data)
        except AiotimerError as error:
            self._receiver.refused(str(error))
            self.close()

    def _receive(self, data: bytes) -> Steps[None]:
        step_ends = monotonic() + STEP
        for number, message in enumerate(self._decoder.feed(data), 1):
            answer = self._receiver.received(message)
            if answer is not None:
                yield from answer
            if self.closed:
                return
            if number % MESSAGES == 0 or monotonic() >= step_ends:
                self._receiver.all_received()
                yield
                if self.closed:
                    return
                step_ends = monotonic() + STEP
        self._drop_descriptors()
        self._receiver.all_received()
        self._watch_for_silence()

    def _watch_for_silence(self) -> None:
        waiting = (self._stranger or self._decoder.pending) and not self.closed
        if waiting and self._silence is None:
            self._silence = self._loop.call_later(SILENCE, self._too_silent)
        elif not waiting and self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _too_silent(self) -> None:
        self._silence = None
        if self._has_turn:
            self._watch_for_silence()  # it has said something, which has not been read
        else:
            self.close()

    def _writable(self) -> None:
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self._loop.remove_writer(self.socket)

    def _drop_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


class Acceptor:
    """Accepts the clients of a listener.

    Args:
        listener: listening and non-blocking; the caller closes it, after :meth:`close`.
        on_client: takes an accepted, non-blocking socket.
        on_failure: told in words that clients could not be accepted, at most once a second.
    """

    def __init__(
        self,
        listener: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_client: Callable[[socket.socket], object],
        on_failure: Callable[[str], object],
    ) -> None:
        self._listener = listener
        self._loop = loop
        self._on_client = on_client
        self._on_failure = on_failure
        self._reserve = -1
        self._turned_away = 0
        self._told_at = -_TELL_EVERY
        self._pause: asyncio.TimerHandle | None = None
        self._refill()
        self._listen()

    def close(self) -> None:
        """Accept nobody any more."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._listener)
        self.abandon()

    def abandon(self) -> None:
        """In a forked child: give the reserve back, and leave the loop alone, which is the parent's."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_BURST):
            if self._reserve < 0:
                self._refill()
            try:
                self._on_client(self._next())
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in EXHAUSTED and self._turn_away():
                    continue
                self._rest(str(error.strerror))
                break
        if self._turned_away and monotonic() - self._told_at >= _TELL_EVERY:
            count, self._turned_away = self._turned_away, 0
            self._tell(f"turned away: {OUT_OF_DESCRIPTORS}; clients: {count}")

    def _next(self) -> socket.socket:
        sock, _address = self._listener.accept()
        sock.setblocking(False)
        return sock

    def _turn_away(self) -> bool:
        """Accept one client in the reserve's place and tell it why it cannot stay; return whether."""
        if self._reserve < 0:
            return False
        self.abandon()
        try:
            with self._next() as sock, contextlib.suppress(OSError):
                sock.send(wire.encode(wire.Refused(OUT_OF_DESCRIPTORS)))
        except BlockingIOError:
            return True  # it has given up; the next accept says so too
        except OSError:
            return False
        finally:
            self._refill()
        self._turned_away += 1
        return True

    def _refill(self) -> None:
        with contextlib.suppress(OSError):  # taken by somebody else meanwhile: tried again before each accept
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _rest(self, reason: str) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(_ACCEPT_AGAIN, self._listen)
        if monotonic() - self._told_at >= _TELL_EVERY:
            self._tell(f"cannot accept a connection: {reason}")

    def _tell(self, what: str) -> None:
        self._told_at = monotonic()
        self._on_failure(what)
