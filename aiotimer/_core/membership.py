"""A membership: which member of which run a worker is, by its own account.

The law of this file: it is for people, and to group workers of one user; whatever somebody says of itself,
nothing is an error here but what a program passes to :func:`check`.
"""

from __future__ import annotations

from typing import NamedTuple

GROUP_LENGTH = 128
"""Characters of the name of a run that count."""

MOST = 1 << 20
"""Members of a run; whoever says more has not said how many."""

SOME = -1
"""In ``Membership.here``: not all of them, and nobody knows which."""


class Membership(NamedTuple):
    """Which member of which run a worker is.

    Attributes:
        group: the run's id, the same for all of its members; "": it belongs to none.
        rank: its number among them, from 0 on; -1: it has not said.
        size: how many there are; 0: it has not said.
        first: the lowest rank on its node, if those there are consecutive.
        here: how many there are on its node; 0: all, as far as is known; or ``SOME``.
    """

    group: str = ""
    rank: int = -1
    size: int = 0
    first: int = 0
    here: int = 0

    def checked(self) -> Membership:
        """Return it without what cannot be right."""
        rank = self.rank if 0 <= self.rank < MOST else -1
        size = self.size if rank < self.size <= MOST else 0
        first, here = self.first, self.here
        if not 0 <= first <= rank < first + here <= size:
            first, here = 0, SOME if here else 0
        return Membership(self.group[:GROUP_LENGTH], rank, size, first, here)

    def ranks_here(self) -> range:
        """Return the ranks that are to be on its node; none if that is not known."""
        if self.here == SOME:
            return range(0)
        return range(self.first, self.first + self.here) if self.here else range(self.size)


def check(group: str, rank: int | None, size: int | None) -> None:
    """Check what a program says of itself.

    Raises:
        TypeError, ValueError: it cannot be right; the message says why, and what to write instead.
    """
    if not isinstance(group, str):
        raise TypeError(f"group must be a str, the id of the run, not {type(group).__name__}")
    if len(group) > GROUP_LENGTH or not group.isprintable():
        raise ValueError(f"group must be at most {GROUP_LENGTH} printable characters, not {group[:200]!r}")
    for name, value, least in (("rank", rank, 0), ("size", size, 1)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        if not least <= value <= MOST:
            raise ValueError(f"{name} must be {least} or more, and at most {MOST:,}, not {value}")
    if rank is not None and size is not None and rank >= size:
        raise ValueError(f"rank {rank} is none of a run of {size}: ranks begin with 0")
