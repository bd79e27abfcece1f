"""An acceptor: it accepts connections in bursts, and gives an honest answer when no descriptors are left.

The laws of this file:

* Looks come first: after a burst the loop has its turn.
* Whoever connects gets an answer. A descriptor is kept in reserve; when all others are used up, it is given
  up for as long as it takes to accept a client, tell it so, and close.
* If another thread takes the reserve's descriptor meanwhile, the next one that is free becomes the reserve,
  before anybody is accepted.
* When even that fails nobody is accepted for a while. A listener that is readable and cannot be accepted
  from would keep the loop spinning.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable
from time import monotonic

from .._core import wire

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})
"""What the kernel says when there is no descriptor left, in this process or in the system."""

OUT_OF_DESCRIPTORS = "the server is out of file descriptors (raise its limit: ulimit -n, LimitNOFILE=)"

_BURST = 64
"""Clients that are accepted before the loop has its turn."""

_ACCEPT_AGAIN = 0.1
"""Seconds for which nobody is accepted after an accept has failed."""

_TELL_EVERY = 1.0
"""Seconds between two reports of clients that were turned away."""


class Acceptor:
    """Accepts the clients of a listener.

    Args:
        listener: listening and non-blocking; the caller closes it, after :meth:`close`.
        loop: where to wait.
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


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: each worker takes three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
