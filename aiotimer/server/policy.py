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

from .._core.ladder import Ladder, ReapGrant, read_reap_grant, reap_grant

TARGETS = ("process", "group", "cgroup")
STOPPED = ("reap", "hold")


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
    ladder: Ladder = field(init=False)

    def __post_init__(self) -> None:
        for name, allowed in (("target", TARGETS), ("stopped", STOPPED)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        for name in ("evidence_budget", "max_grace"):
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


class Breaker:
    """Counts reaps, and breaks for good when there are too many.

    Args:
        max_reaps: see :class:`Policy`.

    Attributes:
        broken: nobody is to be reaped any more.
    """

    def __init__(self, max_reaps: tuple[int, float]) -> None:
        self._limit, self._seconds = max_reaps
        self._begun: deque[float] = deque(maxlen=self._limit)
        self.broken = False

    def allows(self, now: float) -> bool:
        """Whether one more reap may begin now; if so it is counted."""
        if not self.broken and len(self._begun) == self._limit:
            self.broken = now - self._begun[0] < self._seconds
        if not self.broken:
            self._begun.append(now)
        return not self.broken

    def __str__(self) -> str:
        return f"more than {self._limit} reaps within {self._seconds:g} s"
