"""The handshake with a server: a process finds it, checks whose it is, sends HELLO and receives WELCOME.

The laws of this file: written once, as steps that wait for nothing themselves (``waiting``); a server of
another user is not talked to; every descriptor that arrives is returned or closed.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from math import inf
from time import monotonic

from .._core import wire
from .._linux.process import check_trusted
from ..errors import Refused, ServerUnavailable
from .launch import until_it_serves
from .waiting import Steps, Wait


def reach(sock: socket.socket, path: str, starting_until: Callable[[], float]) -> Steps[float]:
    """Connect a non-blocking socket to the server at ``path``; wait for one that is being started.

    Args:
        sock: the socket.
        path: the server's.
        starting_until: until when (``CLOCK_MONOTONIC``) to wait for a server that is not there yet.

    Returns:
        Until when its start does not count, see ``launch``.

    Raises:
        ServerUnavailable: nobody listens there.
        Refused: somebody does whom this process does not trust.
    """
    until = yield from until_it_serves(path)
    while True:
        try:
            sock.connect(path)
            break
        except BlockingIOError:  # the listen backlog is full: the server is busy
            yield Wait(seconds=random.uniform(0.001, 0.01))  # jitter
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if monotonic() >= starting_until():
                raise ServerUnavailable(path, error.strerror or str(error)) from None
            yield Wait(seconds=0.005)
        except OSError as error:
            raise ServerUnavailable(path, error.strerror or str(error)) from None
    check_trusted(sock, path)
    return until


def greet(
    sock: socket.socket, path: str, hello: bytes, offered: list[int], until: float = -inf
) -> Steps[tuple[wire.Welcome, int]]:
    """Send HELLO, with the descriptors that are offered, and wait for WELCOME.

    Args:
        sock: connected to the server.
        path: the server's, for errors.
        hello: the message.
        offered: descriptors.
        until: until when the server may be busy with its start, which does not count (``launch``).

    Returns:
        WELCOME, and the descriptor of a new table, or -1.

    Raises:
        ServerUnavailable: the server went away.
        Refused: it does not want this client.
    """
    while hello:
        try:
            hello = hello[socket.send_fds(sock, [hello], offered) :]
            offered = []
        except BlockingIOError:
            yield Wait(sock.fileno(), write=True, until=until)
        except OSError:
            break  # it has closed the connection already, and has perhaps said why
    return (yield from _hear(sock, path, until))


def _hear(sock: socket.socket, path: str, until: float) -> Steps[tuple[wire.Welcome, int]]:
    decoder = wire.client_decoder()
    received: list[int] = []
    try:
        while True:
            yield Wait(sock.fileno(), until=until)
            try:
                data, descriptors, _flags, _address = socket.recv_fds(
                    sock, 65_536, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except OSError as error:
                raise ServerUnavailable(path, error.strerror or str(error)) from None
            received += descriptors
            if not data:
                raise ServerUnavailable(path, "it closed the connection")
            for message in decoder.feed(data):
                if isinstance(message, wire.Welcome):
                    return message, received.pop() if received else -1
                reason = message.reason if isinstance(message, wire.Refused) else "it sent nonsense"
                raise Refused(path, reason)
    finally:
        for descriptor in received:
            os.close(descriptor)
