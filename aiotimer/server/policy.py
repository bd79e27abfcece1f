"""A policy: the options that say how a server reaps, in one place; and the breaker.

The laws of this file: a policy does not change while its server lives; whatever cannot be carried out is
refused when the policy is made, in words that say what to write instead. An option's name and default stand
here, and what it means in ``TimerServer``.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from math import inf

from .._core.ladder import TARGETS, Ladder, ReapGrant, read_reap_grant, reap_grant

STOPPED = ("reap", "hold")

ON_EXPIRY = ("worker", "run")


@dataclass(frozen=True)
class Policy:
    """How a server reaps: options of ``TimerServer``, which documents them.

    Attributes:
        ladder: the steps that ``reap`` names.

    Raises:
        ValueError: one of them cannot be carried out.
    """

    reap: str = "dump,KILL"
    target: str = "process"
    observe: bool = False
    stopped: str = "reap"
    evidence_budget: float = 3.0
    max_grace: float = 60.0
    max_reaps: tuple[int, float] = (256, 60.0)  # beyond, it is the limit that is wrong, not the workers
    evidence_dir: str | os.PathLike[str] | None = None
    resume_after: float = 0.0
    on_expiry: str = "worker"
    ladder: Ladder = field(init=False)

    def __post_init__(self) -> None:
        choices = (("target", TARGETS), ("stopped", STOPPED), ("on_expiry", ON_EXPIRY))
        for name, allowed in choices:
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        for name in ("evidence_budget", "max_grace", "resume_after"):
            if not 0.0 <= (value := getattr(self, name)) < inf:
                raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
        count, period = self.max_reaps
        if count < 1 or not 0.0 < period < inf:
            raise ValueError(f"max_reaps must be (N, SECONDS), both above 0, not {self.max_reaps!r}")
        object.__setattr__(self, "ladder", Ladder.parse(self.reap))  # the last word: it is frozen

    def reap_grant(self, reap: str, *, observe: bool) -> ReapGrant:
        """Return the grant that answers a worker's reap request.

        Raises:
            ValueError: it is not allowed.
        """
        return reap_grant(reap, observe=observe, max_grace=self.max_grace)

    def read_reap_grant(self, text: str) -> ReapGrant:
        """Return the grant that an earlier server stored; what is none, or not allowed, grants nothing."""
        try:
            return read_reap_grant(text, max_grace=self.max_grace)
        except ValueError:
            return ReapGrant()


_JOBS = 1000
"""Jobs whose reaps are remembered before those are forgotten of which none is recent."""


class Breaker:
    """Counts the reaps of each job, and breaks for one that has too many.

    Args:
        max_reaps: see :class:`Policy`.
        resume_after: seconds until it is whole again by itself; 0: it waits for :meth:`resume`.
    """

    def __init__(self, max_reaps: tuple[int, float], resume_after: float = 0.0) -> None:
        self._limit, self._seconds = max_reaps
        self._resume_after = resume_after
        self._begun: dict[str, deque[float]] = {}
        self._broken: dict[str, float] = {}  # until when

    def allows(self, job: str, now: float) -> bool:
        """Whether one more reap of a job may begin now; if so it is counted."""
        if self.is_broken(job, now):
            return False
        if job not in self._begun and len(self._begun) >= _JOBS:
            recent = now - self._seconds
            self._begun = {known: begun for known, begun in self._begun.items() if begun[-1] > recent}
        begun = self._begun.setdefault(job, deque(maxlen=self._limit))
        if len(begun) == self._limit and now - begun[0] < self._seconds:
            del self._begun[job]
            self._broken[job] = now + (self._resume_after or inf)
            return False
        begun.append(now)
        return True

    def is_broken(self, job: str, now: float) -> bool:
        """Whether nobody of a job is to be reaped."""
        if now >= self._broken.get(job, inf):
            del self._broken[job]
        return job in self._broken

    def broken(self, now: float) -> dict[str, float | None]:
        """Return the jobs of which nobody is to be reaped: for how many seconds more, None for good."""
        jobs = [job for job in list(self._broken) if self.is_broken(job, now)]
        return {job: None if self._broken[job] == inf else self._broken[job] - now for job in jobs}

    def resume(self) -> list[str]:
        """Reap again; return the jobs for which that is new."""
        jobs, self._broken = list(self._broken), {}
        return jobs

    def why(self, job: str) -> str:
        """Return in words why nobody of a job is reaped, and until when."""
        until = f", or for {self._resume_after:g} s" if self._resume_after else ""
        return (
            f"more than {self._limit} reaps within {self._seconds:g} s in {job}: "
            f"its workers are only observed until `aiotimer resume`{until}"
        )
