"""Inspection channels: for each event loop and server a connection, on which the server asks what the loop's
tasks wait for.

The laws of this file: nothing here raises into a caller, waits, or makes a task or a thread; a healthy
program notices nothing: an answer is made in slices, between which its loop runs; a channel is used and
closed in its loop's thread, or where that loop is closed; a descriptor that may not be ours any more, or that
a forked child has a copy of, is no business of its loop.
This file imports asyncio, so it is imported late.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from .._core import wire
from .._core.layout import FIRST_DEADLINE
from .._linux.forks import in_child
from .channel import AGAIN_AFTER, attending, borrowed, questions, reply
from .memory import NO_FILE, identity, is_open
from .tasks import TaskWalk

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Mapping

    from .._core.table import Pool, TimerTable


class InspectedQueue(Protocol):
    """What an inspection channel needs to know of this process's queue at the server that asks.

    Attributes:
        shared: whether the table is one that the server reads.
        table: where this process's timers are.
        pools: the pools of its scopes.
        next_channel_attempt: ``CLOCK_MONOTONIC``; when to try again to open a channel.
    """

    shared: bool
    table: TimerTable | None
    pools: dict[str, Pool]
    next_channel_attempt: float

    @property
    def path(self) -> str:
        """The server's socket."""


class InspectionChannel:
    """One event loop's end of the channel on which one server inspects it.

    Args:
        loop: the loop.
        queue: of that server.
        block_type: what is entered.
        clock: tells how long a slice of an answer takes, seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: InspectedQueue,
        block_type: type[Any],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._loop = weakref.ref(loop)  # the loop holds this object
        self._queue = weakref.ref(queue)
        self._block_type = block_type
        self._clock = clock
        self._pid = os.getpid()
        self._decoder = wire.client_decoder()
        self._descriptor = -1
        self._file = NO_FILE
        self._walk: TaskWalk | None = None  # to the answer that is under way
        self._entries: dict[int, Callable[[], Any]] = {}  # tasks by slot, as a word index

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._descriptor >= 0

    def open(self) -> None:
        """Connect."""
        loop, queue = self._loop(), self._queue()
        if loop is None or queue is None:
            return
        with attending(queue.path) as sock:
            self._decoder = wire.client_decoder()
            self._file = identity(sock.fileno())
            loop.add_reader(sock.fileno(), self._ready)
            self._descriptor = sock.detach()

    def close(self) -> None:
        """Close it, in its loop's thread, in a forked child, or when the loop is closed or gone."""
        descriptor, self._descriptor = self._descriptor, -1
        self._walk = None
        if descriptor < 0 or not is_open(descriptor, self._file):
            return
        loop = self._loop()
        if loop is not None and self._pid == os.getpid() and not loop.is_closed():
            with contextlib.suppress(Exception):
                loop.remove_reader(descriptor)
        os.close(descriptor)

    def note_entry(self, slot: int | None) -> None:
        """Note that the current task has taken a slot: it is most likely in it when that is asked for."""
        task = asyncio.current_task()
        if task is not None and slot is not None:
            self._entries[slot] = weakref.ref(task)

    def note_entries(self, entries: Mapping[int, Callable[[], Any]]) -> None:
        """Note which tasks have taken slots before this was open; what is known since is newer."""
        self._entries = {**entries, **self._entries}

    def close_from_anywhere(self) -> None:
        """Close it in its loop's thread, later if need be."""
        loop = self._loop()
        if loop is None or self._pid != os.getpid() or asyncio._get_running_loop() is loop:
            self.close()
            return
        try:
            loop.call_soon_threadsafe(self.close)
        except RuntimeError:  # it is closed
            self.close()

    def __del__(self) -> None:
        """Close what the loop left; another may follow at once, so every scope's next entry is sampled."""
        with contextlib.suppress(Exception):
            was_open = self.is_open
            self.close()
            queue = self._queue()
            if was_open and queue is not None:
                for pool in queue.pools.copy().values():
                    pool.sample_at = pool.table.sampled_from

    def _ready(self) -> None:
        """Begin to answer what is asked."""
        self._carry_out(self._receive)

    def _go_on(self) -> None:
        """Work for another slice on an answer; unless the channel has been closed."""
        if self._walk is not None:
            self._carry_out(self._answer)

    def _carry_out(self, step: Callable[[_socket.socket], None]) -> None:
        try:
            with borrowed(self._descriptor, self._file) as sock:
                step(sock)
        except BlockingIOError:
            pass
        except Exception:  # noqa: BLE001 - the loop is the program's
            self._abandon()

    def _receive(self, sock: _socket.socket) -> None:
        loop, queue = self._loop(), self._queue()
        if loop is None or queue is None:
            raise ConnectionError("whom it asks is gone")
        for question in questions(sock, self._decoder):
            if self._walk is not None:
                raise ConnectionError("a question before the answer to the last")
            table = queue.table if queue.shared else None
            words = (FIRST_DEADLINE + slot for slot in question.slots)
            likely = [self._entries[word] for word in words if word in self._entries]
            self._walk = TaskWalk(loop, question, table, self._block_type, likely, self._clock)
            self._answer(sock)

    def _answer(self, sock: _socket.socket) -> None:
        """Work for one slice, and let the loop run before the next one."""
        loop, walk = self._loop(), self._walk
        if loop is None or walk is None:
            return
        frame = walk.go_on()
        if frame is None:
            loop.call_soon(self._go_on)
            return
        self._walk = None
        reply(sock, frame)

    def _abandon(self) -> None:
        """Close it; if its number is somebody else's by now, only its reader is taken away."""
        descriptor, loop = self._descriptor, self._loop()
        self.close()
        if loop is not None and descriptor >= 0 and not is_open(descriptor, self._file):
            with contextlib.suppress(Exception):
                loop.remove_reader(descriptor)


_channels: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, weakref.WeakValueDictionary[str, InspectionChannel]
] = weakref.WeakKeyDictionary()


def open_inspection_channel(
    queue: InspectedQueue,
    block_type: type[Any],
    slot: int | None,
    entries: Mapping[int, Callable[[], Any]] | None = None,
) -> None:
    """Let a queue's server inspect the running event loop, if there is one. Never raises.

    Args:
        queue: of that server.
        block_type: what is entered.
        slot: which of its slots the current task has just taken, as a word index.
        entries: which tasks have taken which slots before, as weak references.
    """
    try:
        loop = asyncio._get_running_loop()
        if loop is None or monotonic() < queue.next_channel_attempt:
            return
        of_loop = _channels.get(loop)
        if of_loop is None:
            of_loop = _channels.setdefault(loop, weakref.WeakValueDictionary())
        channel = of_loop.get(queue.path)
        if channel is None or not channel.is_open:
            queue.next_channel_attempt = monotonic() + AGAIN_AFTER
            channel = InspectionChannel(loop, queue, block_type)
            channel.open()
            of_loop[queue.path] = channel
            queue.next_channel_attempt = -inf
        channel.note_entry(slot)
        if entries:
            channel.note_entries(entries)
    except Exception:  # noqa: BLE001 - there is one probe less, and a later sampled entry tries again
        return


def close_channels(path: str) -> None:
    """Close every loop's channel to a server whose last client is leaving."""
    for of_loop in list(_channels.values()):
        channel = of_loop.pop(path, None)
        if channel is not None:
            channel.close_from_anywhere()


def _let_go_of_channels() -> None:
    for of_loop in list(_channels.values()):
        for channel in list(of_loop.values()):
            channel.close()
    _channels.clear()


in_child(_let_go_of_channels)
