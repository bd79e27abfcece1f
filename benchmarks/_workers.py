"""Real workers: forked processes, each with its own connection and its own timer table.

They are told what to do through one pipe and answer through another. A worker reads one order, a float64: the
moment from which all deadlines count. It then arms its timer and hangs. When the pipe ends, so does it.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic, perf_counter

from aiotimer import TimerClient, expires

_ORDER = struct.Struct("=d")
_ANSWER = struct.Struct("=id")

_PATIENCE = 30.0
"""Seconds for a worker to connect or to answer. It takes well under a millisecond, or something is wrong."""


class Workers:
    """Workers that are connected.

    Attributes:
        connect_s: how long each took to connect, from the call to WELCOME, in seconds.
    """

    def __init__(self, path: str) -> None:
        self.connect_s: list[float] = []
        self._client = TimerClient(path, unavailable="raise")  # loads, before the fork, what it needs
        self._orders, self._to_workers = os.pipe()
        self._from_workers, self._answers = os.pipe()
        self._pids: list[int] = []

    def __len__(self) -> int:
        return len(self._pids)

    def add(
        self, count: int, delays: Sequence[float] = (), environments: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Fork workers, one after the other; each has been welcomed when the next one begins.

        Args:
            count: how many.
            delays: for each, seconds between the moment in its order and its deadline.
            environments: for each, further variables.
        """
        for index in range(count):
            pid = os.fork()
            if pid == 0:
                os.environ.update(environments[index] if environments else {})
                self._work(delays[index] if delays else 0.0)
            self._pids.append(pid)
            self.connect_s.append(self._answer()[1])

    def arm(self, start: float) -> dict[int, float]:
        """Have every worker arm its timer and hang.

        Args:
            start: the moment from which their deadlines count, ``CLOCK_MONOTONIC`` seconds.

        Returns:
            Each worker's deadline, by pid.
        """
        os.write(self._to_workers, _ORDER.pack(start) * len(self))
        return dict(self._answer() for _ in range(len(self)))

    @property
    def pids(self) -> list[int]:
        """Those of all of them, in the order in which they were forked."""
        return list(self._pids)

    def close(self) -> None:
        """End those that live."""
        os.close(self._to_workers)
        for pid in self._pids:
            os.waitpid(pid, 0)
        self._pids.clear()
        for descriptor in (self._orders, self._from_workers, self._answers):
            os.close(descriptor)
        self._client.close()

    def _answer(self) -> tuple[int, float]:
        if not _wait_for(self._from_workers, select.POLLIN, _PATIENCE):
            raise TimeoutError("a worker does not answer")
        data = os.read(self._from_workers, _ANSWER.size)  # shorter than PIPE_BUF: whole, or nothing
        pid, value = _ANSWER.unpack(data)
        return int(pid), float(value)

    def _work(self, delay: float) -> None:
        """Be a worker. Never returns."""
        try:
            os.close(self._to_workers)
            before = perf_counter()
            self._client.connect(_PATIENCE)
            os.write(self._answers, _ANSWER.pack(os.getpid(), perf_counter() - before))
            order = os.read(self._orders, _ORDER.size)
            if order:
                left = _ORDER.unpack(order)[0] + delay - monotonic()
                timer = expires(max(0.001, left), "hang", self._client)  # it may be late itself
                with timer:
                    os.write(self._answers, _ANSWER.pack(os.getpid(), timer.deadline))
                    _wait_for(self._orders, 0, None)  # its end; what is in it is for the others
        finally:
            os._exit(0)


def _wait_for(descriptor: int, events: int, timeout: float | None) -> bool:
    """Wait for events, or for the other end to be closed; return whether that came."""
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


@contextlib.contextmanager
def workers(path: str) -> Iterator[Workers]:
    """Provide workers of one server; on leaving, end them."""
    group = Workers(path)
    try:
        yield group
    finally:
        group.close()
