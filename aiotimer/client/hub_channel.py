"""Inspection channels of gevent: for each hub and server a connection, to be asked for greenlets on.

A hub is the greenlet that waits for events, and that others give way to. Whoever looks at its thread from
outside sees the hub, and never who waits: a greenlet that is switched out is on no thread's stack.

The laws of this file: those of ``client/inspection.py``. Nothing here raises into a caller, waits, or makes
a greenlet; a channel is used in its hub, between two events. gevent is not imported: who uses it has done so.
No channel keeps a hub running.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Mapping
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._core import wire
from .._core.layout import COUNT_OF, FIRST_DEADLINE, LABEL_WORDS, THREAD_OF
from .._linux.forks import in_child
from .channel import AGAIN_AFTER, attending, borrowed, questions, reply
from .greenlets import known, note_greenlet
from .memory import NO_FILE, identity, is_open
from .telling import MOST_FRAMES, cut, name_of_type, stack_text

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Iterator
    from types import FrameType

    from .._core.table import TimerTable
    from .inspection import InspectedQueue

_READ = 1  # gevent's, as libev's and libuv's

WITHIN = 0.003
"""Seconds: the longest that the hub is kept, but for one greenlet more."""

_MOST_TOLD = 100
"""Greenlets that are told of; of more their number."""

_MOST_STACKS = 16 * 1024

NO_ENTRIES: Mapping[int, tuple[float, int]] = {}


class HubChannel:
    """One hub's end of the channel on which one server inspects it.

    Args:
        hub: whose thread this is.
        queue: of that server.
    """

    def __init__(self, hub: Any, queue: InspectedQueue) -> None:
        self._hub = weakref.ref(hub)
        self._queue = weakref.ref(queue)
        self._path = queue.path
        self._decoder = wire.client_decoder()
        self._descriptor = -1
        self._file = NO_FILE
        self._watcher: Any = None
        self._entries: dict[int, tuple[float, int]] = {}

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._descriptor >= 0

    def open(self) -> None:
        """Connect."""
        hub = self._hub()
        if hub is None:
            return
        with attending(self._path) as sock:
            self._file = identity(sock.fileno())
            watcher = hub.loop.io(sock.fileno(), _READ, ref=False)
            watcher.start(self._ready)
            self._watcher, self._descriptor = watcher, sock.detach()

    def note_entry(self, slot: int | None) -> None:
        """Note that the current greenlet has taken a slot: the table may know threads only."""
        queue = self._queue()
        if slot is not None and queue is not None and queue.table is not None:
            self._entries[slot] = queue.table.cells[slot + COUNT_OF], note_greenlet()

    def close(self) -> None:
        """Close it, in its hub's thread or in a forked child."""
        descriptor, self._descriptor = self._descriptor, -1
        watcher, self._watcher = self._watcher, None
        with contextlib.suppress(Exception):  # its loop is gone
            watcher.stop()
            watcher.close()
        if descriptor >= 0 and is_open(descriptor, self._file):
            os.close(descriptor)

    def _ready(self) -> None:
        """Answer what is asked."""
        try:
            with borrowed(self._descriptor, self._file) as sock:
                self._receive(sock)
        except BlockingIOError:
            pass
        except Exception:  # noqa: BLE001 - the hub is the program's
            self.close()

    def _receive(self, sock: _socket.socket) -> None:
        hub, queue = self._hub(), self._queue()
        if hub is None or queue is None:
            raise ConnectionError("whom it asks is gone")
        for question in questions(sock, self._decoder):
            reply(sock, answer(hub, question, queue.table if queue.shared else None, self._entries))


def answer(
    hub: Any,
    question: wire.Inspect,
    table: TimerTable | None,
    entries: Mapping[int, tuple[float, int]] = NO_ENTRIES,
    clock: Callable[[], float] = monotonic,
) -> bytes:
    """Return what a hub answers: where greenlets are, first those that entered the blocks that are asked for.

    Args:
        hub: the one that runs.
        question: what is asked.
        table: whose slots are asked for; None: it is not known whose they are.
        entries: by word index of a slot, the count of an entry and the number of the greenlet that made it.
        clock: seconds.
    """
    until = clock() + WITHIN
    own: dict[int, list[int]] = {}
    if table is not None:
        for slot in question.slots:
            word = FIRST_DEADLINE + slot
            number = int(table.cells[LABEL_WORDS * word + THREAD_OF])
            count, noted = entries.get(word, (0.0, 0))
            if number > 0 and count == table.cells[word + COUNT_OF]:  # it is the same entry still
                number = noted
            own.setdefault(number, []).append(slot)
    numbers = list(dict.fromkeys((*own, *known)))
    reports: list[wire.TaskReport] = []
    room = wire.MAX_FRAME - _MOST_STACKS - 1024
    left_out = 0
    for at, number in enumerate(numbers):
        greenlet = known.get(number)
        if greenlet is None or greenlet is hub:
            continue
        if len(reports) == _MOST_TOLD or (reports and clock() >= until):
            left_out = len(numbers) - at
            break
        frames = tuple(_frames(greenlet))
        room -= sum(len(file.encode()) + len(function.encode()) + 16 for file, _, function in frames) + 400
        if not frames or room < 0:  # it runs in another thread, or has ended
            left_out += room < 0
            continue
        slots = tuple(own.get(number, ()))
        reports.append(wire.TaskReport(_name(greenlet), 1, slots, frames, "the hub to switch to it"))
    stacks = "Current thread 0x0 (most recent call first):\n" + stack_text(sys._getframe(), _MOST_STACKS)
    loop = cut(f"<{name_of_type(hub)}>", 200)
    return wire.encode(wire.Tasks(question.number, loop, "", tuple(reports), left_out, stacks))


def _name(greenlet: Any) -> str:
    kind = name_of_type(greenlet)
    if kind in ("gevent._gevent_cgreenlet.Greenlet", "gevent.greenlet.Greenlet"):  # compiled, or not
        return cut(str(greenlet.name), 100)
    return cut(f"{kind} at {id(greenlet):#x}", 100)


def _frames(greenlet: Any) -> Iterator[tuple[str, int, str]]:
    """Yield the frames of a greenlet that is switched out, outermost first: of many, the innermost."""
    frame: FrameType | None = sys.modules["greenlet"].greenlet.gr_frame.__get__(greenlet)
    found: list[tuple[str, int, str]] = []
    while frame is not None and len(found) < MOST_FRAMES:
        code = frame.f_code
        found.append((cut(code.co_filename, 200), frame.f_lineno or 0, cut(code.co_qualname, 100)))
        frame = frame.f_back
    yield from reversed(found)


_channels: weakref.WeakKeyDictionary[Any, dict[str, HubChannel]] = weakref.WeakKeyDictionary()


def open_hub_channel(queue: InspectedQueue, slot: int | None) -> None:
    """Let a queue's server inspect the hub of this thread, if there is one. Never raises.

    Args:
        queue: of that server.
        slot: which of its slots the current greenlet has just taken, as a word index.
    """
    try:
        hub = sys.modules["gevent._hub_local"].get_hub_if_exists()
        if hub is None or monotonic() < queue.next_channel_attempt:
            return
        of_hub = _channels.setdefault(hub, {})
        channel = of_hub.get(queue.path)
        if channel is None or not channel.is_open:
            queue.next_channel_attempt = monotonic() + AGAIN_AFTER
            channel = HubChannel(hub, queue)
            channel.open()
            of_hub[queue.path] = channel
            queue.next_channel_attempt = -inf
        channel.note_entry(slot)
    except Exception:  # noqa: BLE001 - there is one probe less, and a later sampled entry tries again
        return


def close_channels(path: str) -> None:
    """Close every hub's channel to a server whose last client is leaving."""
    for hub, of_hub in list(_channels.items()):
        channel = of_hub.pop(path, None)
        if channel is not None:
            with contextlib.suppress(Exception):  # its loop is closed
                hub.loop.run_callback_threadsafe(channel.close)


def _let_go_of_channels() -> None:
    for of_hub in list(_channels.values()):
        for channel in of_hub.values():
            channel.close()
    _channels.clear()


in_child(_let_go_of_channels)
