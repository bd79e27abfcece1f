"""The handshake with a server: a process finds it, checks whose it is, sends HELLO and receives WELCOME.

The laws of this file: written once, as steps that wait for nothing themselves (``waiting``); a server of
another user is not talked to; every descriptor that arrives is returned or closed.
"""

from __future__ import annotations

import os
import random
import select
import socket
from collections.abc import Callable
from math import inf
from time import monotonic

from .._core import wire
from .._linux.process import check_trusted
from ..errors import Refused, ServerUnavailable
from .control import nobody_at
from .launch import until_it_serves
from .memory import close, identity, is_open
from .waiting import Steps, Wait


def reach(
    sock: socket.socket, path: str, starting_until: Callable[[], float], *, in_vain: bool = False
) -> Steps[float]:
    """Connect a non-blocking socket to the server at ``path``; wait for one that is being started.

    Args:
        sock: the socket.
        path: the server's.
        starting_until: until when (``CLOCK_MONOTONIC``) to wait for a server that is not there yet.
        in_vain: who has waited in vain for one that is being started connects all the same, see ``launch``.

    Returns:
        Until when its start does not count, see ``launch``.

    Raises:
        ServerUnavailable: nobody listens there.
        Refused: somebody does whom this process does not trust.
    """
    try:
        until = yield from until_it_serves(path)
    except TimeoutError:
        if not in_vain:
            raise
        until = -inf
    while True:
        try:
            sock.connect(path)
            break
        except BlockingIOError:  # the listen backlog is full: the server is busy
            yield Wait(seconds=random.uniform(0.001, 0.01))  # jitter
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if monotonic() >= starting_until():
                raise nobody_at(path, error) from None
            yield Wait(seconds=0.005)
        except OSError as error:
            raise nobody_at(path, error) from None
    check_trusted(sock, path)
    return until


def greet(sock: socket.socket, hello: bytes, offered: list[int], until: float = -inf) -> Steps[None]:
    """Send HELLO, with the descriptors that are offered.

    Args:
        sock: connected to the server.
        hello: the message.
        offered: descriptors.
        until: until when the server may be busy with its start, which does not count (``launch``).
    """
    while hello:
        try:
            hello = hello[socket.send_fds(sock, [hello], offered) :]
            offered = []
        except BlockingIOError:
            yield Wait(sock.fileno(), write=True, until=until)
        except OSError:
            break  # it has closed the connection already, and has perhaps said why


class Greeting:
    """A HELLO that has been sent, and what has come of its answer.

    Args:
        sock: on which it was sent.
        path: the server's, for errors.
        until: as for :func:`greet`.
    """

    def __init__(self, sock: socket.socket, path: str, until: float) -> None:
        self.socket = sock
        self._file = identity(sock.fileno())
        self._path = path
        self._until = until
        self._decoder = wire.client_decoder()
        self._received: list[int] = []

    def answer(self) -> Steps[tuple[wire.Welcome, int]]:
        """Wait for WELCOME.

        Returns:
            WELCOME, and the descriptor of a new table, or -1.

        Raises:
            ServerUnavailable: the server went away.
            Refused: it does not want this client.
        """
        path = self._path
        try:
            while True:
                if not is_open(self.socket.fileno(), self._file):
                    raise ServerUnavailable(path, "the program closed the connection's descriptor")
                yield Wait(self.socket.fileno(), until=self._until)
                try:
                    data, descriptors, _flags, _address = socket.recv_fds(
                        self.socket, 65_536, 1, socket.MSG_CMSG_CLOEXEC
                    )
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise ServerUnavailable(path, error.strerror or str(error)) from None
                self._received += descriptors
                if not data:
                    raise ServerUnavailable(path, "it closed the connection")
                for message in self._decoder.feed(data):
                    if isinstance(message, wire.Welcome):
                        return message, self._received.pop() if self._received else -1
                    reason = message.reason if isinstance(message, wire.Refused) else "it sent nonsense"
                    raise Refused(path, reason)
        except TimeoutError:
            raise  # the rest may yet come
        except BaseException:
            self._drop()
            raise

    def is_answered(self, within: float = 0.0) -> bool:
        """Whether there is something to read, or is within so many seconds."""
        descriptor = self.socket.fileno()  # once: another thread may be closing it
        if not is_open(descriptor, self._file):
            return True  # which is an answer, too
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def _drop(self) -> None:
        while self._received:
            os.close(self._received.pop())

    def close(self) -> None:
        """Close what is open, unless its number has become somebody else's."""
        self._drop()
        close(self.socket, self._file)
