"""A connection at the server's end: bytes come in, messages are dispatched, answers go out.

The laws of this file:

* Sockets are raw and non-blocking on both loops, because descriptors travel on them (``SCM_RIGHTS``), which
  no asyncio transport carries.
* A connection's state is the connection's. Its end says nothing about the worker: EOF releases nothing.
* What a peer can make us hold is bounded: one frame in, a reply and ``MAX_UNREAD`` more out, two seconds
  of silence.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Protocol

from .._core import wire
from ..errors import AiotimerError, ProtocolError
from ..queue import SocketQueue
from .watched_table import WatchedTable
from .worker import Worker

if TYPE_CHECKING:
    from .inspection_channel import InspectionChannel

SILENCE = 2.0
"""Seconds that a peer may take over its first message, or over the rest of one it has begun."""

MAX_UNREAD = 65_536
"""Bytes of answers that may wait for a peer when it asks for another: one that does not read is dropped."""

_CHUNK = 65_536


class Dispatcher(Protocol):
    """Who accepted a connection: it is given the messages, and told of the end."""

    def handle(self, connection: ServerConnection, message: wire.ToServer) -> None:
        """It received a message that is not a ring."""

    def apply(self, connection: ServerConnection) -> str:
        """Apply the requests in its inbox; return why not, if not all could be."""

    def refused(self, connection: ServerConnection, reason: str) -> None:
        """It broke the rules."""

    def connection_closed(self, connection: ServerConnection) -> None:
        """It is gone."""


class ServerConnection:
    """One accepted connection.

    Args:
        dispatcher: who accepted it.
        sock: accepted, non-blocking; owned from here on.
        loop: where to wait.
    """

    def __init__(self, dispatcher: Dispatcher, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._dispatcher = dispatcher
        self._loop = loop
        self.socket = sock
        self._decoder = wire.server_decoder()
        self._unsent = memoryview(b"")
        self._descriptors: list[int] = []
        self._silence: asyncio.TimerHandle | None = loop.call_later(SILENCE, self._too_silent)
        self.worker: Worker | None = None
        self.table: WatchedTable | None = None
        self.inbox: SocketQueue | None = None  # of a peer without a shared table
        self.offset = 0.0  # what to add to that peer's clock
        self.inspection_channel: InspectionChannel | None = None  # if it is one
        self.report: asyncio.Task[None] | None = None  # under way for a peer that asked for it
        loop.add_reader(sock, self._readable)

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return self.socket.fileno() < 0

    def send(self, message: wire.ToClient, descriptor: int = -1) -> None:
        """Send a message, with a descriptor if one is given; what does not fit waits for the peer."""
        if len(self._unsent) > MAX_UNREAD:
            self._dispatcher.refused(
                self, f"it does not read: {len(self._unsent)} bytes of answers wait for it"
            )
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
        """Close this end and tell the server."""
        if self.closed:
            return
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self._loop.remove_reader(self.socket)
        self._loop.remove_writer(self.socket)
        self.socket.close()
        self._drop_descriptors()
        if self.inspection_channel is not None:
            self.inspection_channel.close()
        if self.report is not None:
            self.report.cancel()
        self._dispatcher.connection_closed(self)

    def reports(self, report: asyncio.Task[None]) -> None:
        """It will be sent something that takes a while to make; until then its silence is no fault.

        Raises:
            ProtocolError: that is so already.
        """
        if self.report is not None:
            report.cancel()
            raise ProtocolError("a second question before the answer to the first")
        self.report = report
        report.add_done_callback(self._reported)

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
            if len(self._descriptors) > (self.worker is None):
                raise ProtocolError("descriptors that nobody asked for")
            self._handle(data)
        except AiotimerError as error:
            self._dispatcher.refused(self, str(error))
            self.close()

    def _handle(self, data: bytes) -> None:
        rung = None
        for message in self._decoder.feed(data):
            if isinstance(message, wire.Ring):
                rung = message.deadline if rung is None else min(rung, message.deadline)
            elif isinstance(message, wire.Acquire) and self.inbox is not None:
                self.inbox.deliver(message)
            else:
                self._dispatcher.handle(self, message)
            if self.closed:
                return
        self._drop_descriptors()
        if rung is not None:
            if self.table is None:
                raise ProtocolError("a ring before HELLO")
            self.table.rung(rung)
        if self.inbox is not None and self.inbox.size():
            self.send(self.inbox.acknowledgement(self._dispatcher.apply(self)))
        self._watch_for_silence()

    def _watch_for_silence(self) -> None:
        busy = self.worker is not None or self.inspection_channel is not None or self.report is not None
        waiting = self._decoder.pending or not busy
        if waiting and self._silence is None:
            self._silence = self._loop.call_later(SILENCE, self._too_silent)
        elif not waiting and self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _reported(self, report: asyncio.Task[None]) -> None:
        self.report = None
        if not report.cancelled() and report.exception() is not None:
            self.close()
        if not self.closed:
            self._watch_for_silence()

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
