"""Sinks: who is told what happens: a callback, a command, a pipe, the log; each behind a bounded queue.

The laws of this file:

* The server's loop never waits for a sink, and no sink's error reaches it: what is told waits in a bounded
  queue. There is one kind of queue; a thread takes from it, or the loop itself, one item in a turn.
* What does not fit is dropped and counted, and the count is told once, as soon as items are taken again.
* What matters less makes room for what matters more: see :class:`Rank`. Of the same rank, what is told about
  one worker never crowds out another's: in a full queue each has its share.
* At least once within the process: a sink that fails is tried again, a bounded number of times.
* At the end of the server, what is queued still gets out, within a bound.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import select
import shlex
import signal
import subprocess
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._linux.procfs import members_of
from ..events import OUTCOMES, Event, log

if TYPE_CHECKING:
    import asyncio

CAPACITY = 1000
"""Items that wait for one sink: a storm of reaps, in full."""

COMMAND_TIMEOUT = 10.0
"""Seconds that one run of a command may take."""

TRIES = 3
"""How often a command is run for one event, if it fails."""

RETRY_AFTER = 1.0
"""Seconds between two of these runs."""

_ROUNDS, _DIE_WITHIN = 10, 100
"""How often it is looked for members of a session that is killed, which may have forked meanwhile; and how
many milliseconds each has to die in: one in an uninterruptible sleep does so later."""

_ENDS_WITHIN = 1.0
"""Seconds that a killed command is waited for."""

T = TypeVar("T")


class Rank(enum.IntEnum):
    """What an item matters: in a full queue those of a higher number are dropped first."""

    OUTCOME = 0
    EVENT = 1
    DETAIL = 2  # which is taken last, too: when nothing else waits


def rank_of(kind: str) -> Rank:
    """Return what an event of a kind matters."""
    return Rank.OUTCOME if kind in OUTCOMES else Rank.EVENT


class Backlog(Generic[T]):
    """A bounded queue, and a daemon thread that takes from it.

    Args:
        what: waits in it, in the plural, for the log and the thread's name.
        take: what is done with each item. What it raises is logged.
        finish: what the thread does last.
        capacity: how many items may wait.
        tell: is given the words about what was dropped.

    Attributes:
        dropped: how many items were dropped and have not been told of.
    """

    def __init__(
        self,
        what: str,
        take: Callable[[T], object],
        *,
        finish: Callable[[], object] = lambda: None,
        capacity: int = CAPACITY,
        tell: Callable[[str], object] = log.warning,
    ) -> None:
        self.dropped = 0
        self._what = what
        self._take = take
        self._finish = finish
        self._capacity = capacity
        self._tell = tell
        self._items: deque[tuple[Rank, Hashable, T]] = deque()
        self._details: deque[tuple[Rank, Hashable, T]] = deque()
        self._waiting: dict[Rank, Counter[Hashable]] = {rank: Counter() for rank in Rank}
        self._changed = threading.Condition()
        self._busy = False
        self._ended = False
        self._thread: threading.Thread | None = None

    def put(self, item: T, about: Hashable = None, rank: Rank = Rank.EVENT, *, always: bool = False) -> bool:
        """Queue an item, if there is room. Never waits, never raises; returns whether it was queued.

        Args:
            item: what is to be taken.
            about: the worker that it is about, None if it is about none.
            rank: what it matters.
            always: even if there is no room.
        """
        with self._changed:
            if self._ended or not (always or self._has_room(about, rank)) or not self._has_taker():
                self.dropped += 1
                return False
            (self._details if rank is Rank.DETAIL else self._items).append((rank, about, item))
            self._waiting[rank][about] += 1
            self._changed.notify_all()
            return True

    def flush(self, within: float) -> bool:
        """Wait until everything is taken, for so many seconds at most; return whether it is."""
        until = monotonic() + within
        with self._changed:
            while (self._left() or self._busy) and (left := until - monotonic()) > 0:
                self._changed.wait(left)
            return not self._left() and not self._busy

    def close(self, within: float) -> bool:
        """Take no more, and wait until what there is has been taken; return whether it was.

        Args:
            within: seconds; what is left by then is dropped.
        """
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.flush(within)
        with self._changed:
            left = self._left()
            self._items.clear()
            self._details.clear()
            self.dropped += left
            thread, done = self._thread, not self._busy
            self._changed.notify_all()
        if thread is not None and done:
            thread.join(within)
        self._tell_dropped()
        return done and not left

    def abandon(self) -> None:
        """In a forked child: the thread and what waits are the parent's; its lock may be held for ever."""
        self._changed = threading.Condition()
        self._items, self._details = deque(), deque()
        self._thread = None
        self._busy = False
        self._ended = True

    def _left(self) -> int:
        return len(self._items) + len(self._details)

    def _has_room(self, about: Hashable, rank: Rank) -> bool:
        """Return whether an item fits: what matters less makes room, then the worker with the most items."""
        if self._left() < self._capacity:
            return True
        least = max((other for other in Rank if self._waiting[other]), default=rank)
        if least < rank:
            return False
        waiting = self._waiting[least]
        mine = waiting[about] if least is rank else -1
        if mine >= waiting.total() // max(1, len(waiting)):  # usually: it is that worker's
            return False
        greatest = max(waiting, key=waiting.__getitem__)
        if waiting[greatest] <= mine + 1:
            return False
        items = self._details if least is Rank.DETAIL else self._items
        newest = next(n for n in reversed(range(len(items))) if items[n][:2] == (least, greatest))
        del items[newest]
        self._no_longer_waits(least, greatest)
        self.dropped += 1
        return True

    def _no_longer_waits(self, rank: Rank, about: Hashable) -> None:
        self._waiting[rank][about] -= 1
        if not self._waiting[rank][about]:
            del self._waiting[rank][about]

    def _has_taker(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=f"aiotimer-{self._what}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no memory or no right for one more: the next item tries again
                return False
            self._thread = thread
        return True

    def _tell_dropped(self) -> None:
        with self._changed:
            count, self.dropped = self.dropped, 0
        if count:
            self._tell(f"{count} {self._what} dropped: they came faster than they were taken")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._left() and not self._ended:
                    self._changed.wait()
                if not self._left():
                    break
            self._take_next()
        self._finish()

    def _take_next(self) -> None:
        with self._changed:
            if not self._left():  # dropped meanwhile, by whoever closes it
                return
            rank, about, item = (self._items or self._details).popleft()
            self._no_longer_waits(rank, about)
            self._busy = True
        try:
            self._tell_dropped()
            self._take(item)
        except Exception:  # noqa: BLE001 - logged; the next item may fare better
            log.exception("lost one of the %s", self._what)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()


class JsonSink(Backlog[Mapping[str, Any]]):
    """A queue of events, as the objects that :meth:`Event.as_json` returns."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Queue an event. Never waits, never raises."""
        self.put(event, event.get("pid"), rank_of(event["event"]))


class CommandSink(JsonSink):
    """Runs a command for every event, one after the other, with the event's JSON on its standard input.

    A run that fails (a status other than 0, or too slow) is repeated, up to :data:`TRIES` runs in all.

    Args:
        command: split as a shell would, and run without one.
        timeout: seconds that a run may take before it is killed.
        retry_after: seconds between two runs for the same event.

    Attributes:
        failed: for how many events every run failed.
        name: of the program.

    Raises:
        ValueError: there is no command in it, or a quotation is not closed.
    """

    def __init__(
        self, command: str, timeout: float = COMMAND_TIMEOUT, retry_after: float = RETRY_AFTER
    ) -> None:
        self.failed = 0
        self._command = shlex.split(command)
        if not self._command:
            raise ValueError("the command is empty")
        self.name = self._command[0]
        self._timeout = timeout
        self._retry_after = retry_after
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None  # that runs
        self._closed = False
        super().__init__("events for a command", self._run_for)

    def close(self, within: float) -> bool:
        """Run the command for what waits, for so many seconds at most; return whether all was told.

        A run that goes on is killed then, as one that takes too long, and none is begun.
        """
        self._closing.set()  # no pause before another try any more
        told = super().close(within)
        with self._starting:
            self._closed, process = True, self._process
        if process is not None:
            _kill_session(process)
            self.flush(_ENDS_WITHIN)
        return told

    def _run_for(self, event: Mapping[str, Any]) -> None:
        data = _as_line(event)
        for number in range(TRIES):
            if number:
                self._closing.wait(self._retry_after)
            failure = self._failure_of_run(data)
            if not failure:
                return
            if self._closed:
                break
        self.failed += 1
        log.error("%s was not told of %s: %s", shlex.join(self._command), event.get("event"), failure)

    def _failure_of_run(self, data: bytes) -> str:
        """Run it once; return why that failed, "" if it did not."""
        try:
            with self._starting:
                if self._closed:
                    return "the server has ended"
                self._process = process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
                )
        except OSError as error:
            return error.strerror or str(error)
        try:
            return self._failure_of(process, data)
        finally:
            self._process = None

    def _failure_of(self, process: subprocess.Popen[bytes], data: bytes) -> str:
        if os.getpriority(os.PRIO_PROCESS, process.pid) < 0:  # it is the server's, and not for others
            os.setpriority(os.PRIO_PROCESS, process.pid, 0)
        try:
            process.communicate(data, self._timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"it took longer than {self._timeout:g} s"
        if process.returncode and self._closed:
            return "the server has ended"
        return f"its exit status was {process.returncode}" if process.returncode else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of ours with the session that it leads, and wait for it."""
    _kill_session(process)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # uninterruptible: it is waited for later
        process.wait(_ENDS_WITHIN)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ChildProcessError):  # somebody else in this process has waited for it
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        # Until it is waited for, and as long as the session has members, its number is nobody else's.
        for _ in range(_ROUNDS):
            for pid in (members := members_of(process.pid)):
                with contextlib.suppress(OSError):
                    _kill_member(pid, process.pid)
            if not members:
                break


def _kill_member(pid: int, session: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if os.getsid(pid) == session:  # else it is another process by now
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            dead = select.poll()
            dead.register(pidfd, select.POLLIN)
            dead.poll(_DIE_WITHIN)
    finally:
        os.close(pidfd)


class CallbackSink(Backlog[Event]):
    """Calls a function with every event, from the event loop, after whatever it is doing now, one in a turn.

    A call that raises is logged, and made once more.

    Args:
        loop: calls it. Only its own thread may call this sink.
        callback: what is called.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[Event], object]) -> None:
        super().__init__("events for on_event", self._call)
        self._loop = loop
        self._callback = callback
        self._turn: asyncio.Handle | None = None

    def __call__(self, event: Event) -> None:
        """Queue an event."""
        self.put(event, event.worker_id, rank_of(event.event))

    def flush(self, within: float = 0.0) -> bool:
        """Call for everything that waits, now; what these calls bring about waits again."""
        for _ in range(self._left()):
            self._take_next()
        return not self._left()

    def _has_taker(self) -> bool:
        if self._turn is None:
            self._turn = self._loop.call_soon(self._take_one)
        return True

    def _take_one(self) -> None:
        self._turn = None
        self._take_next()
        if self._left():
            self._has_taker()

    def _call(self, event: Event) -> None:
        for _ in range(2):
            try:
                self._callback(event)
            except Exception:  # noqa: BLE001 - the owner's code; logged, and the server goes on
                log.exception("on_event failed for %s", event.event)
            else:
                return


class PipeSink(JsonSink):
    """Writes events as JSON lines into a pipe.

    Args:
        descriptor: of the pipe, which holds some events besides those that wait.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__("events for a pipe", self._write)
        self._descriptor = descriptor

    def _write(self, event: Mapping[str, Any]) -> None:
        line = _as_line(event)
        if len(line) > select.PIPE_BUF:  # a longer one might be written in part, by a server that is killed
            line = _as_line({**event, "detail": "", "verdict": ""})
        _write_all(self._descriptor, line)


class LogSink(logging.Handler):
    """A log handler whose lines a thread writes to a descriptor, which may block for ever.

    Args:
        descriptor: where to.
        capacity: how many lines may wait.
    """

    def __init__(self, descriptor: int = 2, capacity: int = CAPACITY) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._backlog: Backlog[str | Callable[[], object]] = Backlog(
            "log lines", self._take, capacity=capacity, tell=lambda told: self._take(f"aiotimer: {told}")
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line. Never waits for whoever reads it."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler: logging decides what is said of it
            self.handleError(record)
        else:
            told = record.args[0] if isinstance(record.args, tuple) and record.args else None
            if isinstance(told, Event):
                self._backlog.put(line, told.worker_id, rank_of(told.event))
            else:
                self._backlog.put(line)

    def then(self, action: Callable[[], object]) -> None:
        """Do something as soon as every line so far is written: at once, or in the thread that writes."""
        if self._backlog.flush(0.0):
            action()
        else:
            self._backlog.put(action, always=True)

    def leave(self, within: float) -> bool:
        """Wait until everything is written, for so many seconds at most; return whether it is."""
        return self._backlog.flush(within)

    def _take(self, line: str | Callable[[], object]) -> None:
        if isinstance(line, str):
            _write_all(self._descriptor, line.encode(errors="backslashreplace") + b"\n")
        else:
            line()


def _as_line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _write_all(descriptor: int, data: bytes) -> None:
    """Write to what somebody else may have made non-blocking, or may not read any more."""
    with contextlib.suppress(OSError):  # the reader is gone: a server is not stopped by that
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()
