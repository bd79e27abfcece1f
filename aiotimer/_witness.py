"""What a link keeps so that a server can find out what this process does: its stacks, its loops' channels.

The law of this file: whatever goes wrong here, timers are none the worse for it.
"""

from __future__ import annotations

import socket
import sys
from math import inf
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ._stacks import Dumps, permit_tracing
from ._waiting import loop_is_running

if TYPE_CHECKING:
    from ._channel import Channel
    from ._core.table import TimerTable
    from ._link import Link

TRY_EVERY = 1.0
"""Seconds between attempts to open a channel."""


class Witness:
    """One link's.

    Attributes:
        channels: by the id of their loop. Only the loop itself keeps one alive.
    """

    def __init__(self) -> None:
        self.channels: WeakValueDictionary[int, Channel] = WeakValueDictionary()
        self._try_at = -inf
        self._dumps: Dumps | None = None

    def connected(self, connection: socket.socket) -> None:
        """A server has welcomed this process."""
        self._try_at = -inf
        permit_tracing(connection)
        if "asyncio" in sys.modules:
            from . import _channel  # noqa: F401 - now, when it takes nobody's time

    def mapped(self, descriptor: int, table: TimerTable) -> None:
        """There is a table to write stacks behind."""
        self._dumps = Dumps(descriptor, table)

    def attend(self, link: Link) -> None:
        """Open a channel for the running loop, if there is one that has none; at most one in a second."""
        now = monotonic()
        if now >= self._try_at and loop_is_running():
            from ._channel import open_for_running_loop

            if open_for_running_loop(link, self.channels):
                self._try_at = now + TRY_EVERY

    def end(self) -> None:
        """The link lets go of its table and its server; or this is a forked child."""
        dumps, self._dumps = self._dumps, None
        if dumps is not None:
            dumps.end()
        for channel in list(self.channels.values()):
            channel.leave()
        self.channels.clear()
