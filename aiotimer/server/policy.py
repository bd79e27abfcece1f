"""A policy: the options that say how a server reaps, in one place; and the breaker.

The laws of this file: a policy does not change while its server lives; whatever cannot be carried out is
refused when the policy is made, in words that say what to write instead.
"""

from __future__ import annotations

import os
from collections import deque
from math import inf
from typing import Literal, NamedTuple, get_args

from .._core.ladder import Ladder, ReapGrant, read_reap_grant, reap_grant

Target = Literal["process", "group", "cgroup"]
Stopped = Literal["reap", "hold"]

LADDER = Ladder.parse("dump,KILL")
BUDGET = 3.0
"""Seconds that evidence may take before the kill."""

MAX_GRACE = 60.0
"""Seconds that a worker's own ladder may take from its first signal to SIGKILL."""

MAX_REAPS = (256, 60.0)
"""More reaps than this within so many seconds, and it is the limit that is wrong, not the workers."""


class Policy(NamedTuple):
    """How a server reaps.

    Attributes:
        ladder: its steps, for a worker that has none of its own.
        target: whom its signals are for: the worker; its process group; its cgroup.
        observe: nobody is signalled.
        stopped: what happens to a worker that is stopped, or in a debugger.
        evidence_budget: seconds that evidence may take; 0: none is gathered.
        max_grace: the longest that a worker's own ladder may take.
        max_reaps: so many, within so many seconds, before the server only observes.
        evidence_dir: where evidence is kept, None: under the state directory.
    """

    ladder: Ladder = LADDER
    target: Target = "process"
    observe: bool = False
    stopped: Stopped = "reap"
    evidence_budget: float = BUDGET
    max_grace: float = MAX_GRACE
    max_reaps: tuple[int, float] = MAX_REAPS
    evidence_dir: str | None = None

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


def policy(
    *,
    reap: str = str(LADDER),
    target: str = "process",
    observe: bool = False,
    stopped: str = "reap",
    evidence_budget: float = BUDGET,
    max_grace: float = MAX_GRACE,
    max_reaps: tuple[int, float] = MAX_REAPS,
    evidence_dir: str | os.PathLike[str] | None = None,
) -> Policy:
    """Return the policy that a server's options describe.

    Raises:
        ValueError: they describe none.
    """
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, not {target!r}")
    if stopped not in get_args(Stopped):
        raise ValueError(f"stopped must be one of {', '.join(get_args(Stopped))}, not {stopped!r}")
    for name, seconds in (("evidence_budget", evidence_budget), ("max_grace", max_grace)):
        if not 0.0 <= seconds < inf:
            raise ValueError(f"{name} must be a number of seconds, 0 or more, not {seconds!r}")
    count, period = max_reaps
    if count < 1 or not 0.0 < period < inf:
        raise ValueError(f"max_reaps must be (N, SECONDS), both above 0, not {max_reaps!r}")
    return Policy(
        Ladder.parse(reap),
        target,  # type: ignore[arg-type]  # checked above
        observe,
        stopped,  # type: ignore[arg-type]
        evidence_budget,
        max_grace,
        (count, period),
        None if evidence_dir is None else os.fspath(evidence_dir),
    )


def parse_max_reaps(text: str) -> tuple[int, float]:
    """Return the two numbers of ``N/SECONDS``.

    Raises:
        ValueError: that is something else.
    """
    count, slash, seconds = text.partition("/")
    try:
        if slash and int(count) > 0 and 0.0 < float(seconds) < inf:
            return int(count), float(seconds)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not N/SECONDS, such as 256/60")


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
