"""Sinks: who is told of events besides the log, each behind a bounded queue.

The laws of this file:

* The server's loop never waits for a sink, and no sink's error reaches it: events wait in a bounded queue.
* What does not fit is dropped and counted, and the count is logged as soon as events are taken again.
* At least once within the process: a sink that fails is tried again, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Generic, TypeVar

from ..events import Event, log

CAPACITY = 1000
"""Events that wait for one sink: a storm of reaps, in full."""

COMMAND_TIMEOUT = 10.0
"""Seconds that one run of a command may take."""

TRIES = 3
"""How often a command is run for one event, if it fails."""

RETRY_AFTER = 1.0
"""Seconds between two of these runs."""

T = TypeVar("T")


class Backlog(Generic[T]):
    """A bounded queue, and a daemon thread that takes from it.

    Args:
        what: waits in it, in the plural, for the log and the thread's name.
        take: what the thread does with each item. What it raises is logged.
        finish: what the thread does last.
        capacity: how many items may wait.

    Attributes:
        dropped: how many items were dropped, in all.
    """

    def __init__(
        self,
        what: str,
        take: Callable[[T], object],
        finish: Callable[[], object] = lambda: None,
        capacity: int = CAPACITY,
    ) -> None:
        self.dropped = 0
        self._untold = 0
        self._what = what
        self._take = take
        self._finish = finish
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._ended = False
        self._thread: threading.Thread | None = None

    def put(self, item: T) -> bool:
        """Queue an item, if there is room. Never waits, never raises; returns whether it was queued."""
        with self._changed:
            if self._ended or len(self._items) >= self._capacity or not self._has_thread():
                self.dropped += 1
                self._untold += 1
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def flush(self, within: float) -> bool:
        """Wait until everything is taken, for so many seconds at most; return whether it is."""
        until = monotonic() + within
        with self._changed:
            while (self._items or self._busy) and (left := until - monotonic()) > 0:
                self._changed.wait(left)
            return not self._items and not self._busy

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
            left = len(self._items)
            self._items.clear()
            self.dropped += left
            self._untold += left
            thread, done = self._thread, not self._busy
            self._changed.notify_all()
        if thread is not None and done:
            thread.join(within)
        self._tell_dropped()
        return done and not left

    def abandon(self) -> None:
        """In a forked child: the thread and what waits are the parent's; its lock may be held for ever."""
        self._changed = threading.Condition()
        self._items = deque()
        self._thread = None
        self._busy = False
        self._ended = True

    def _has_thread(self) -> bool:
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
            count, self._untold = self._untold, 0
        if count:
            log.warning("%d %s dropped: they came faster than they were taken", count, self._what)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if not self._items:
                    break
                item = self._items.popleft()
                self._busy = True
            try:
                self._tell_dropped()
                self._take(item)
            except Exception:  # noqa: BLE001 - logged; the next item may fare better
                log.exception("lost one of the %s", self._what)
            del item
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        self._finish()


class CommandSink:
    """Runs a command for every event, one after the other, with the event's JSON on its standard input.

    A run that fails (a status other than 0, or too slow) is repeated, up to :data:`TRIES` runs in all.

    Args:
        command: split as a shell would, and run without one.
        timeout: seconds that a run may take before it is killed.
        retry_after: seconds between two runs for the same event.
        capacity: how many events may wait.

    Attributes:
        failed: for how many events every run failed.

    Raises:
        ValueError: there is no command in it, or a quotation is not closed.
    """

    def __init__(
        self,
        command: str,
        timeout: float = COMMAND_TIMEOUT,
        retry_after: float = RETRY_AFTER,
        capacity: int = CAPACITY,
    ) -> None:
        self.failed = 0
        self._command = shlex.split(command)
        if not self._command:
            raise ValueError("the command is empty")
        self._timeout = timeout
        self._retry_after = retry_after
        self._closing = threading.Event()
        self._backlog: Backlog[Mapping[str, Any]] = Backlog(
            "events for a command", self._tell, capacity=capacity
        )

    @property
    def dropped(self) -> int:
        """How many events were dropped, in all."""
        return self._backlog.dropped

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Queue an event, as :meth:`Event.as_json` returns it. Never waits, never raises."""
        self._backlog.put(event)

    def close(self, within: float) -> bool:
        """Run the command for what waits, for so many seconds at most; return whether all was told."""
        self._closing.set()  # no pause before another try any more
        return self._backlog.close(within)

    def _tell(self, event: Mapping[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        for number in range(TRIES):
            if number:
                self._closing.wait(self._retry_after)
            failure = self._failure_of_run(data)
            if not failure:
                return
        self.failed += 1
        log.error("%s was not told of %s: %s", shlex.join(self._command), event.get("event"), failure)

    def _failure_of_run(self, data: bytes) -> str:
        """Run it once; return why that failed, "" if it did not."""
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            return error.strerror or str(error)
        try:
            process.communicate(data, self._timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"it took longer than {self._timeout:g} s"
        return f"its exit status was {process.returncode}" if process.returncode else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # somebody else in this process has waited for it
        pidfd = os.pidfd_open(process.pid)  # ours, and not waited for by us: the pid is its own
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # uninterruptible: it is waited for later
        process.wait(1.0)


class CallbackSink:
    """Calls a function with every event, from the event loop, after whatever it is doing now.

    A call that raises is logged, and made once more.

    Args:
        loop: calls it.
        callback: what is called.
        capacity: how many events may wait.

    Attributes:
        dropped: how many events were dropped, in all.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[[Event], object],
        capacity: int = CAPACITY,
    ) -> None:
        self.dropped = 0
        self._untold = 0
        self._loop = loop
        self._callback = callback
        self._capacity = capacity
        self._events: deque[Event] = deque()
        self._handle: asyncio.Handle | None = None

    def __call__(self, event: Event) -> None:
        """Queue an event; only in the loop's own thread."""
        if len(self._events) >= self._capacity:
            self.dropped += 1
            self._untold += 1
            return
        self._events.append(event)
        if self._handle is None:
            self._handle = self._loop.call_soon(self._deliver)

    def flush(self) -> None:
        """Call for everything that waits, now; what these calls bring about waits again."""
        for _ in range(len(self._events)):
            self._call(self._events.popleft())

    def _deliver(self) -> None:
        """Call for one event: other callbacks of the loop come between two of them."""
        self._handle = None
        if self._events:
            self._call(self._events.popleft())
        if self._events and self._handle is None:
            self._handle = self._loop.call_soon(self._deliver)

    def _call(self, event: Event) -> None:
        if self._untold:
            count, self._untold = self._untold, 0
            log.warning("%d events dropped: on_event took them too slowly", count)
        for _ in range(2):
            try:
                self._callback(event)
            except Exception:  # noqa: BLE001 - the owner's code; logged, and the server goes on
                log.exception("on_event failed for %s", event.event)
            else:
                return
