"""A roll call: the members of a run as they were found, and those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

_NONE: list[dict[str, Any]] = []
_NOTHING: dict[str, Any] = {}


class Member(NamedTuple):
    """One member of a run, as it was found; missing ones have pid 0."""

    rank: int | None = None
    pid: int = 0
    node: str = ""
    name: str = ""
    state: str = "connected"
    where: str = ""
    wait: str = ""
    moving: bool = False
    since_s: float | None = None
    camp: int | None = None
    timers: list[dict[str, Any]] = _NONE
    verdict: str = ""
    record: str = ""
    evidence: dict[str, Any] = _NOTHING

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return self._asdict()


class Roll(NamedTuple):
    """The members by rank, those to blame, and that in words."""

    members: list[Member]
    culprits: list[int]
    verdict: str


def call_roll(members: Sequence[Member], size: int | None) -> Roll:
    """Return the roll of a run of so many members, with those that were not found."""
    known = {member.rank for member in members}
    missing = [Member(rank, state="missing") for rank in range(size or 0) if rank not in known]
    culprits = sorted(
        one.rank for one in (*members, *missing) if one.state in ("missing", "dead") and one.rank is not None
    )
    listed = sorted((*members, *missing), key=lambda one: (one.rank is None, one.rank or 0, one.pid))
    absent = f"missing: {', '.join(map(str, culprits))}" if culprits else ""
    return Roll(listed, culprits, absent or "nobody is missing")
