"""A channel: the worker's end of a connection on which a server asks what the worker is doing.

The laws of this file: nothing here waits, and a descriptor whose number is another file's by now is left
alone. A channel is used between two events of the loop, or hub, that it belongs to; gevent's sockets would
give way to another greenlet then, so these are those of ``_socket``.
"""

from __future__ import annotations

import _socket
import contextlib
from typing import TYPE_CHECKING, Any

from .._core import wire
from .._linux.process import check_trusted
from .memory import is_open

if TYPE_CHECKING:
    from collections.abc import Iterator

AGAIN_AFTER = 1.0
"""Seconds between attempts to open a channel."""

_AT_ONCE = 65_536


@contextlib.contextmanager
def attending(path: str) -> Iterator[_socket.socket]:
    """Provide a socket on which the server at a path may ask; it is closed unless it is detached.

    Raises:
        OSError: nobody is there.
        Refused: it is not to be trusted.
    """
    sock: Any = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 4 * wire.MAX_FRAME)
        sock.connect(path)
        check_trusted(sock, path)
        sock.send(wire.encode(wire.Attend(wire.PROTOCOL_VERSION)), _socket.MSG_NOSIGNAL)
        yield sock
    finally:
        sock.close()


@contextlib.contextmanager
def borrowed(descriptor: int, file: tuple[int, int]) -> Iterator[_socket.socket]:
    """Provide the socket of a channel, by its descriptor, which stays open.

    Raises:
        ConnectionError: its number is another file's, or nobody's.
    """
    if not is_open(descriptor, file):
        raise ConnectionError("the program closed the channel's descriptor")
    sock = _socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()


def questions(sock: _socket.socket, decoder: wire.Decoder[Any]) -> Iterator[wire.Inspect]:
    """Yield what is asked.

    Raises:
        BlockingIOError: nothing has come.
        ConnectionError: the server is gone, or what has come is no question.
    """
    data = sock.recv(_AT_ONCE, _socket.MSG_DONTWAIT)
    if not data:
        raise ConnectionError("the server is gone")
    for message in decoder.feed(data):
        if not isinstance(message, wire.Inspect):
            raise ConnectionError("no question")
        yield message


def reply(sock: _socket.socket, frame: bytes) -> None:
    """Send an answer.

    Raises:
        ConnectionError: there is no room for it.
    """
    if sock.send(frame, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL) < len(frame):
        raise ConnectionError("the server does not read")
