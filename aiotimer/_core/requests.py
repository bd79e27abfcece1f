"""The request that arms or releases a timer, and the identity of the worker that it is about.

A :class:`TimerRequest` keeps the meaning it has in ``torch.distributed.elastic.timer``: an acquire if
``expiration_time`` is zero or later, a release if it is strictly negative. Zero has already expired.
"""

from __future__ import annotations

from typing import NamedTuple

RELEASE = -1.0
"""The ``expiration_time`` of a release (any strictly negative number means the same)."""


class WorkerId(NamedTuple):
    """One process, for as long as this machine runs: a pid alone is reused, this pair is not.

    Attributes:
        pid: the process id, in the server's pid namespace.
        started: clock ticks between boot and the start of the process (field 22 of ``/proc/PID/stat``,
            see proc_pid_stat(5)).
    """

    pid: int
    started: int

    def __str__(self) -> str:
        return str(self.pid)


class TimerRequest(NamedTuple):
    """An acquire or a release of one timer. Immutable, hashable, picklable, equal by value.

    Attributes:
        worker_id: the worker that the timer is on: a :class:`WorkerId`, or a bare pid where the
            process is known to be alive (a launcher and its own children).
        scope_id: the name of the timer within the worker.
        expiration_time: ``CLOCK_MONOTONIC`` seconds; strictly negative is a release.
    """

    worker_id: WorkerId | int
    scope_id: str
    expiration_time: float

    @property
    def is_release(self) -> bool:
        """Whether this request takes a timer away."""
        return self.expiration_time < 0
