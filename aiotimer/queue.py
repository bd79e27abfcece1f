"""Request queues: what workers ask for goes in on one side, what a server must know comes out on the other.

:class:`RequestQueue` is a *conflating* queue: of all requests for one (worker, scope) it holds the newest.
That is what lets a timer table be a queue: a slot holds the newest request by being a number in memory.

Workers put into one of two kinds, of which their clients know only this contract:

* ``client/shared_table``, the default: a request is a store into a table, and the server reads that.
* ``client/socket_only``: each request is a message that is acknowledged, for processes that cannot share
  memory. At the server an :class:`Inbox` collects them.

:class:`MemoryQueue` is one within a process. One contract suite, ``tests/contract/test_queue.py``, runs over
all of them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from time import monotonic

from ._core import layout, wire
from ._core.requests import TimerRequest, WorkerId
from .errors import ProtocolError


class RequestQueue(ABC):
    """A conflating queue of :class:`TimerRequest`, with the contract of torch's ``RequestQueue``.

    * ``put`` never blocks on the consumer. A later request for the same (worker, scope) replaces an
      earlier one that is pending; a release replaces an acquire, it does not annihilate it: the
      consumer still gets the release.
    * ``size`` is the number of requests that have changed since the last ``get``. It may grow between a
      ``size`` and a ``get``, and never shrinks until a ``get`` takes requests out.
    * ``get(size(), timeout=0)`` returns exactly that many requests.
    * ``get`` waits at most ``timeout`` seconds, and returns what is there when that time is over, possibly
      fewer than asked for, or none.
    """

    @abstractmethod
    def put(self, request: TimerRequest) -> bool:
        """Add a request.

        Returns:
            Whether the consumer had to be told; of a table, whether the doorbell was due.

        Raises:
            ValueError: the expiration time is not finite, or the request is on another worker.
        """

    @abstractmethod
    def size(self) -> int:
        """Return how many requests are pending for :meth:`get`."""

    @abstractmethod
    def get(self, size: int, timeout: float = 0.0) -> list[TimerRequest]:
        """Take up to ``size`` requests out, waiting at most ``timeout`` seconds for so many.

        Args:
            size: the most to return.
            timeout: seconds, relative.

        Returns:
            Requests, one per (worker, scope), the longest pending first.
        """


class MemoryQueue(RequestQueue):
    """A request queue within one process. Safe from any thread."""

    def __init__(self) -> None:
        self._pending: dict[tuple[WorkerId | int, str], TimerRequest] = {}
        self._changed = threading.Condition(threading.Lock())

    def put(self, request: TimerRequest) -> bool:
        """Add a request; the consumer is told if it waits."""
        layout.as_stored(request.expiration_time)  # refuses what cannot be a deadline
        with self._changed:
            first = not self._pending
            self._pending[request.worker_id, request.scope_id] = request
            self._changed.notify()
        return first

    def size(self) -> int:
        """Return how many (worker, scope) have a new request."""
        return len(self._pending)

    def get(self, size: int, timeout: float = 0.0) -> list[TimerRequest]:
        """Take up to ``size`` requests out, waiting at most ``timeout`` seconds for so many."""
        until = monotonic() + timeout
        with self._changed:
            while len(self._pending) < size and (left := until - monotonic()) > 0:
                self._changed.wait(left)
            keys = list(self._pending)[:size]
            return [self._pending.pop(key) for key in keys]


class Inbox(MemoryQueue):
    """At a server: the requests of one worker that come as numbered messages, each of them acknowledged.

    Whoever reads its socket calls :meth:`deliver`, takes the requests out with ``get(size())``, applies them,
    and answers with :meth:`acknowledgement`.

    Args:
        worker_id: the worker that all requests are on.
    """

    def __init__(self, worker_id: WorkerId | int) -> None:
        super().__init__()
        self._worker_id = worker_id
        self._number = 0  # of the last request delivered

    def deliver(self, message: wire.Acquire) -> None:
        """Take in a message that arrived.

        Raises:
            ProtocolError: its number is not the next one, or it cannot be a timer.
        """
        if message.number != self._number + 1:
            raise ProtocolError(f"request {message.number} after request {self._number}")
        try:
            self.put(TimerRequest(self._worker_id, message.key, message.expiration_time))
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        self._number = message.number

    def acknowledgement(self, error: str = "") -> wire.Ack:
        """Return the acknowledgement of everything delivered so far."""
        return wire.Ack(self._number, error)
