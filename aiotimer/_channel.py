"""A channel: where an event loop of this process answers the server's questions about its tasks.

The laws of this file:

* There is one for each loop that enters blocks, opened on the way and without waiting for anything. The
  program does not notice: no task, no thread, no exception, and a loop that is closed is closed in silence.
* The answer is given from inside the loop: an answer proves that the loop is alive.
* Only the loop holds its channel. When the loop lets go of it, the channel's descriptor is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import weakref
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from ._core import layout, wire
from ._descriptors import close, is_open
from ._tasks import describe
from .errors import AiotimerError
from .process import check_trusted

if TYPE_CHECKING:
    from ._link import Link


def open_for_running_loop(link: Link, channels: MutableMapping[int, Channel]) -> bool:
    """Open a channel for the running loop and note it in ``channels``; return False if there is one."""
    loop = asyncio.get_running_loop()
    channel = channels.get(id(loop))
    if channel is not None and channel.serves(loop):
        return False
    with contextlib.suppress(AiotimerError, OSError, RuntimeError, NotImplementedError):
        channels[id(loop)] = Channel(link, loop)
    return True


class Channel:
    """See the module. To be made in the loop's thread.

    Raises:
        OSError: the server cannot be reached at once.
        Refused: it is another user's.
    """

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._link = weakref.ref(link)
        self._loop = weakref.ref(loop)
        self._pid = os.getpid()
        self._decoder = wire.client_decoder()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._inode = 0
        try:
            self._socket.connect(link.path)
            check_trusted(self._socket, link.path)
            self._socket.send(wire.encode(wire.Attend(wire.PROTOCOL_VERSION)))
            self._inode = os.fstat(self._socket.fileno()).st_ino
            loop.add_reader(self._socket.fileno(), self._readable)
        except BaseException:
            self._socket.close()
            raise

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it is open, and this loop's."""
        return self._loop() is loop and is_open(self._socket.fileno(), self._inode)

    def leave(self) -> None:
        """Close it, from any thread, or in a forked child."""
        loop = self._loop()
        if loop is None or self._pid != os.getpid():
            self._close()  # the loop's selector may be the parent's too: it is not told
        elif asyncio._get_running_loop() is loop:
            self._end()
        else:
            with contextlib.suppress(RuntimeError):  # it is closed, and so are we
                loop.call_soon_threadsafe(self._end)

    def __del__(self) -> None:
        """Close it: the loop has let go of it."""
        with contextlib.suppress(AttributeError):  # it was never made
            self._close()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(65_536)
            if not data:
                self._end()  # the server is gone
                return
            for message in self._decoder.feed(data):
                if isinstance(message, wire.Inspect):
                    self._answer(message)
        except BlockingIOError:
            return
        except (AiotimerError, OSError):
            self._end()

    def _answer(self, question: wire.Inspect) -> None:
        loop, link = self._loop(), self._link()
        if loop is None or link is None:
            return
        table = link.table if link.shared else None
        words = {layout.FIRST_DEADLINE + slot for slot in question.slots}
        answer = describe(loop, table, words, question.number, threading.current_thread().name)
        frame = wire.encode(answer)
        if self._socket.send(frame) < len(frame):
            raise BrokenPipeError  # the server does not read; half an answer would spoil the next

    def _end(self) -> None:
        loop = self._loop()
        if loop is not None and is_open(self._socket.fileno(), self._inode):
            with contextlib.suppress(RuntimeError):
                loop.remove_reader(self._socket.fileno())
        self._close()

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            close(self._socket, self._inode)
