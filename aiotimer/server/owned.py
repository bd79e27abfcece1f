"""A private server: it ends after the process that it was started for, its owner.

The law of this file: a private server serves its owner and all its descendants, which find it by
``$AIOTIMER_SOCKET``. It ends when its owner is gone and no worker has been connected for ten seconds. It
writes to its owner's standard error, and lets go of that as soon as the owner is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from .._linux.process import let_go_of_stderr, pin_named
from ..events import Event
from . import cleanup, listener
from .server import TimerServer

IDLE_BEFORE_END = 10.0
"""Seconds without a connected worker, after the owner has gone, before the server ends."""


class OwnedServer(TimerServer):
    """A server that ends when the process it was started for is gone and nobody needs it any more.

    Args:
        socket_path: where to listen.
        owner: that process, as ``pid:start-time``.
        on_event: see ``TimerServer``.
        when_written: calls what it is given as soon as all that has been logged is written.
        place: descriptors of the lock and of the listening socket, to take over; None: there is neither yet.
        idle_before_end: seconds without a connected worker, after the owner has gone, before it ends.
        policy: see ``TimerServer``.
    """

    def __init__(
        self,
        socket_path: str,
        owner: str,
        on_event: Callable[[Event], object] | None = None,
        when_written: Callable[[Callable[[], object]], object] = lambda action: action(),
        place: tuple[int, int] | None = None,
        idle_before_end: float = IDLE_BEFORE_END,
        **policy: Any,
    ) -> None:
        super().__init__(socket_path, on_event=on_event, **policy)
        self._when_written = when_written
        self._place = place
        self._idle_before_end = idle_before_end
        self._owner_pidfd = pin_named(owner)
        self._ending: asyncio.TimerHandle | asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start, and watch the owner."""
        await super().start()
        if self._owner_pidfd is None:
            self._owner_gone()
        else:
            self._loop.add_reader(self._owner_pidfd, self._owner_gone)

    def _take_lock(self) -> listener.SocketLock:
        if self._place is None:
            return super()._take_lock()
        return listener.SocketLock.inherit(self.socket_path, self._place[0])

    def _listen(self, lock: listener.SocketLock) -> socket.socket:
        if self._place is None:
            return super()._listen(lock)
        (_, descriptor), self._place = self._place, None
        os.set_inheritable(descriptor, False)
        inherited = socket.socket(fileno=descriptor)
        inherited.setblocking(False)
        inherited.listen(listener.BACKLOG)  # anew: the kernel tells who connects that it is this process now
        return inherited

    async def stop(self) -> None:
        """Stop; if nobody is left, leave nothing behind."""
        if isinstance(self._ending, asyncio.TimerHandle):
            self._ending.cancel()
        last = self._owner_pidfd is None and self.idle_s() >= self._idle_before_end
        self._close_owner()
        await super().stop()
        if last:
            cleanup.clean_up(self.socket_path)

    def _owner_gone(self) -> None:
        """The owner is dead, or gives this server up."""
        self._close_owner()
        self._registry.unregister_the_dead()  # what is to be said of the owner is said while it can be read
        self._when_written(let_go_of_stderr)
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        left = self._idle_before_end - self.idle_s()
        if left > 0:
            self._ending = self._loop.call_later(left, self._end_when_idle)
        else:
            self._ending = self._loop.create_task(self.stop())

    def _close_owner(self) -> None:
        if self._owner_pidfd is not None:
            self._loop.remove_reader(self._owner_pidfd)
            os.close(self._owner_pidfd)
            self._owner_pidfd = None
