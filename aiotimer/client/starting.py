"""A probe for a server that is only being started: how a worker knows that it is, and waits for it.

``aiotimer run`` listens itself and starts its command at once; the server takes the socket over as soon as it
is there. Whoever connects before stands in the backlog. The laws of this file:

* ``$AIOTIMER_STARTING`` says who listens meanwhile, and until when that may last (:func:`announcement`).
* Who listens at the moment is the kernel's word: the server, when it takes over, listens anew. So a server
  that is stuck is not taken for one that is starting.
* What is waited for a starting server does not count as waited for an answer: its command's blocks are
  watched from the first one on, as if it had been started after its server.
* Nothing is sent into the backlog but PING. A HELLO would be older, and of another peer, than the server
  believes.
"""

from __future__ import annotations

import os
import random
import socket
from math import inf
from time import monotonic

from .._core.ping import PING
from .._linux.environment import SOCKET_VARIABLE, STARTING_VARIABLE
from .._linux.process import peer_of
from .waiting import Steps, Wait

READY_WITHIN = 15.0
"""Seconds that a server may take to start: importing from a slow file system takes long."""


def announcement(until: float) -> str:
    """Return the value of the variable: this process listens in a server's place until then."""
    return f"{os.getpid()}:{until}"


def starting_until(path: str) -> float:
    """Return until when (``CLOCK_MONOTONIC``) a server may be starting there; -inf if it has to be there."""
    return _announced(path)[1]


def until_it_serves(path: str) -> Steps[float]:
    """Wait for a server that is being started there, and for no other one.

    Returns:
        Until when it may be busy with its start; -inf if it has not been waited for.
    """
    listener, until = _announced(path)
    if monotonic() >= until:
        return -inf
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            while True:
                try:
                    sock.connect(path)
                    break
                except BlockingIOError:  # the backlog is full
                    yield Wait(seconds=random.uniform(0.001, 0.01), until=until)
            if peer_of(sock)[0] not in (listener, 0):  # 0: from here, neither of the two can be seen
                return -inf
            sock.send(PING, socket.MSG_NOSIGNAL)
        except OSError:
            return -inf
        yield Wait(sock.fileno(), until=until)
    return until


def _announced(path: str) -> tuple[int, float]:
    """Return who listens at a path, and until when; -inf if it is not announced."""
    text = os.environ.get(STARTING_VARIABLE)
    if not text or os.environ.get(SOCKET_VARIABLE) != path:
        return 0, -inf
    try:
        listener, until = text.split(":")
        found = int(listener), float(until)
    except ValueError:
        return 0, -inf
    # Further ahead than it can be: another time namespace's clock.
    return found if found[1] <= monotonic() + READY_WITHIN else (0, -inf)
