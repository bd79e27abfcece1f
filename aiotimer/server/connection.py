"""A connection at the server's end: bytes and descriptors come in, frames go out.

The laws of this file:

* Nothing here knows what a message is for, or a worker: whoever receives the messages does.
* Sockets are raw and non-blocking on both loops, because descriptors travel on them (``SCM_RIGHTS``), which
  no asyncio transport carries.
* What a peer can make us hold is bounded: one frame in, a reply and ``MAX_UNREAD`` more out, two seconds
  of silence.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

from .._core import wire
from ..errors import AiotimerError, ProtocolError

SILENCE = 2.0
"""Seconds that a peer may take over its first message, or over the rest of one it has begun."""

MAX_UNREAD = 65_536
"""Bytes of answers that may wait for a peer when it asks for another: one that does not read is dropped."""

_CHUNK = 65_536


class Receiver(Protocol):
    """Whom the messages of a connection are for."""

    def received(self, message: wire.ToServer) -> None:
        """A message came in.

        Raises:
            AiotimerError: it breaks the rules: the connection is to be closed.
        """

    def all_received(self) -> None:
        """There is no other one for now: what is done once for all of them is due."""

    def refused(self, reason: str) -> None:
        """The peer broke the rules; the connection is closed next."""

    def closed(self) -> None:
        """The connection is closed."""


class ServerConnection:
    """One accepted connection.

    Args:
        receiver: whom its messages are for.
        sock: accepted, non-blocking; owned from here on.
        loop: where to wait.
    """

    def __init__(self, receiver: Receiver, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._receiver = receiver
        self._loop = loop
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
            self._receive(data)
        except AiotimerError as error:
            self._receiver.refused(str(error))
            self.close()

    def _receive(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._receiver.received(message)
            if self.closed:
                return
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
