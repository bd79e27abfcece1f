"""A descriptor store: what a supervisor keeps for its server, whose tables may have a name nowhere.

The laws of this file:

* The store is a pair of sockets. What is kept are messages that wait in it, a name and a descriptor each. The
  supervisor has both ends and looks at neither: the kernel keeps what is there while no server lives.
* Everything is read by taking the messages out and putting each back at once, into the room that it had: a
  server that is killed in the middle of that loses one of them at most.
* Nothing is waited for. If there is no room, that is an error.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Self

_LONGEST = 256
"""Bytes of a name."""

_ROOM = 1 << 20
"""Bytes that wait at most, as the kernel counts them: some hundred for each. It may allow less."""

_AT_ONCE = 32
"""Messages that are taken out and put back before others have a turn."""

_SO_SNDBUFFORCE = 32
"""Of socket(7): more than everybody may have. The module has no name for it."""


class DescriptorStore:
    """Descriptors under names, which outlive the process that has put them here.

    Args:
        sender: one end of the pair.
        receiver: the other one.
    """

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        for end in (sender, receiver):
            end.setblocking(False)
        self._sender = sender
        self._receiver = receiver

    @classmethod
    def make(cls) -> Self:
        """Make an empty one."""
        store = cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        for option in (socket.SO_SNDBUF, _SO_SNDBUFFORCE):
            with contextlib.suppress(PermissionError):
                store._sender.setsockopt(socket.SOL_SOCKET, option, _ROOM)
        return store

    @classmethod
    def inherit(cls, sender: int, receiver: int) -> Self:
        """Take over the one that a supervisor has made."""
        for descriptor in (sender, receiver):
            os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=sender), socket.socket(fileno=receiver))

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of its two ends, for a server to inherit."""
        return self._sender.fileno(), self._receiver.fileno()

    def keep(self, name: str, descriptor: int) -> None:
        """Keep a descriptor under a name. It stays the caller's, too.

        Raises:
            OSError: there is no room for another one.
        """
        socket.send_fds(self._sender, [name.encode()], [descriptor])

    def kept(self) -> list[tuple[str, int]]:
        """Return everything that is kept, as far as there is room; the descriptors are the caller's own."""
        found: list[tuple[str, int]] = []

        def take(name: str, descriptor: int) -> bool:
            try:
                found.append((name, os.dup(descriptor)))
            except OSError:  # no more of them; and the next message needs one while it is put back
                if found:
                    os.close(found.pop()[1])
            return True

        for _ in self._go_round(take):
            pass
        return found

    def keep_only(self, is_wanted: Callable[[str], bool]) -> Iterator[None]:
        """Let go of what is not wanted, and yield after every few. One such round is made at a time."""
        return self._go_round(lambda name, _descriptor: is_wanted(name))

    def _go_round(self, stays: Callable[[str, int], bool]) -> Iterator[None]:
        """Take each message out, and put it back if it stays: until the first that did comes again."""
        first = ""
        for count in itertools.count(1):
            try:
                data, descriptors, _flags, _address = socket.recv_fds(
                    self._receiver, _LONGEST, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:  # nothing is left
                return
            name = data.decode()
            again, stayed = name == first, False
            for descriptor in descriptors:
                try:
                    stayed = again or stays(name, descriptor)
                    if stayed:
                        self.keep(name, descriptor)
                finally:
                    os.close(descriptor)
            if again:
                return
            first = first or (name if stayed else "")
            if count % _AT_ONCE == 0:
                yield

    def close(self) -> None:
        """Close both ends."""
        self._sender.close()
        self._receiver.close()
