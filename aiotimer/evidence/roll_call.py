"""A roll call: who of a run's members waits for the others, and whom they wait for. Data and pure functions.

The laws of this file:

* Whose timer expired does not matter for who is to blame: whoever waits in a collective is late because of
  somebody else. So no culprit is in the camp in which most of those wait.
* Culprits are named only if the evidence tells them apart; else the verdict says that it cannot be told.
* The order of members does not matter. What a member says of itself groups it, and does nothing else.
* Several processes of one rank are one member and its helpers: whoever is in a collective answers for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import camps, collectives
from .findings import known_of
from .standing import BLOCKED, COLLECTIVE, COMPUTES, DEAD, IDLE, MISSING, MOVES, UNKNOWN, Standing, standing

EXPIRED = "expired"
MOST_RANKS = 65_536
"""Of a run's size: what is more is not believed. Every rank that is missing is a member of the roll."""

_NONE: list[dict[str, Any]] = []
_NOTHING: dict[str, Any] = {}


class Member(NamedTuple):
    """One member of a run, as it was found.

    Attributes:
        rank: None if it has said none.
        pid: 0 if it is missing.
        node: the name of its machine.
        name: what it is called.
        state: ``expired``, ``armed``, ``connected``, ``missing``, ``dead`` or ``stopped``.
        where: the innermost line of the user's code, ``in step at train.py:40``.
        wait: the collective below that line, "" if it is in none.
        moving: two looks differ.
        since_s: seconds since it entered its soonest armed block.
        camp: the number of its group: equal numbers wait in the same place.
        timers: as in :class:`~.record.Record`.
        verdict: what it was doing, in words.
        record: the id of its own record, "" if it has none.
        evidence: ``stacks``, ``tasks``, ``process`` and ``probes``, see :class:`~.findings.Findings`.
    """

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

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Member:
        """Return what :meth:`as_json` gave; what is absent, or cannot be right, is not known."""
        member = cls(**known_of(cls._field_defaults, value, {"rank": int, "camp": int}))
        timers: list[Any] = member.timers
        return member._replace(timers=[one for one in timers if isinstance(one, dict)])


class Roll(NamedTuple):
    """A roll call.

    Attributes:
        members: by rank; those of a rank that are missing, too.
        culprits: ranks, in order; empty where it cannot be told.
        verdict: in words.
    """

    members: list[Member]
    culprits: list[int]
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        members = [member.as_json() for member in self.members]
        return {"members": members, "culprits": self.culprits, "verdict": self.verdict}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Roll:
        """Return what :meth:`as_json` gave; what is absent, or cannot be right, is not known."""
        members, culprits = value.get("members"), value.get("culprits")
        verdict = value.get("verdict")
        return cls(
            [Member.from_json(one) for one in members if isinstance(one, dict)]
            if isinstance(members, list)
            else [],
            [one for one in culprits if isinstance(one, int)] if isinstance(culprits, list) else [],
            verdict if isinstance(verdict, str) else "",
        )


class _Seen(NamedTuple):
    """A member, and where it stands."""

    member: Member
    stander: camps.Stander


def call_roll(members: Sequence[Member], size: int | None) -> Roll:
    """Call the roll of a run.

    Args:
        members: those that were found, in any order; and those known to be missing on some node.
        size: of the run, None or 0 if it is not known: ranks below it that were not found are missing.

    Returns:
        The same members, each with ``where``, ``wait``, ``moving`` and ``camp``, and those that are missing.
    """
    found = {member.rank for member in members if member.state != MISSING}
    seen = [_look(member) for member in members if member.state != MISSING]
    gone = {member.rank: member for member in members if member.state == MISSING and member.rank is not None}
    gone = {rank: Member(rank, state=MISSING) for rank in range(min(size or 0, MOST_RANKS))} | gone
    seen = _with_names_of_others(seen) + [_look(one) for rank, one in gone.items() if rank not in found]
    leads = _leads(seen)
    answering = set(map(id, leads))
    judgement = camps.judge([one.stander for one in leads], size or 0)
    numbers = camps.camps(one.stander for one in leads)
    listed = []
    for one in sorted(seen, key=_order):
        standing = one.stander.standing
        camp = numbers.get((standing.wait, standing.where)) if id(one) in answering else None
        listed.append(
            one.member._replace(camp=camp, where=standing.where, wait=standing.wait, moving=standing.moving)
        )
    ranks = sorted({one.rank for one in judgement.blamed if one.rank is not None})
    return Roll(listed, ranks, judgement.text)


def _look(member: Member) -> _Seen:
    scope = str(member.timers[0].get("scope", "")) if member.timers else ""
    found = standing(member.evidence, member.state, scope)
    if found.how == UNKNOWN and member.wait:  # its evidence was too long to be kept
        found = Standing(COLLECTIVE, member.where, member.wait)
    elif found.how == UNKNOWN and member.where:
        found = Standing(MOVES if member.moving else BLOCKED, member.where)
    if member.moving and found.how in (BLOCKED, IDLE):
        found = found._replace(how=MOVES, still=False)
    found = found._replace(moving=found.moving or (member.moving and found.how != COLLECTIVE))
    stander = camps.Stander(
        member.rank, member.pid, member.node, member.state == EXPIRED, member.since_s, found,
        member.verdict if found.how == DEAD else "",
    )  # fmt: skip
    return _Seen(member, stander)


def _with_names_of_others(seen: Sequence[_Seen]) -> list[_Seen]:
    """Give those that stand at one line in C code the name of the collective that others are in there.

    Native frames, which have that name, are known of some and not of others.
    """
    names: dict[str, set[str]] = {}
    for one in seen:
        if one.stander.standing.how == COLLECTIVE:
            names.setdefault(one.stander.standing.where, set()).add(one.stander.standing.wait)
    named = []
    for one in seen:
        stands, known = one.stander.standing, names.get(one.stander.standing.where, set())
        computes = stands.how == COMPUTES and collectives.BACKWARD not in known  # or it computes just that
        if len(known) == 1 and (stands.still or computes):
            there = stands._replace(how=COLLECTIVE, wait=next(iter(known)), still=False)
            named.append(one._replace(stander=one.stander._replace(standing=there)))
        else:
            named.append(one)
    return named


def _leads(seen: Sequence[_Seen]) -> list[_Seen]:
    """Return one for each rank: its helpers, such as the processes of a loader, have its rank, too."""
    children = {
        (one.member.node, child.get("pid"))
        for one in seen
        for child in _children(one.member)
        if isinstance(child, dict)
    }

    def last(one: _Seen) -> tuple[bool, bool, bool, bool, str, int]:
        how, member = one.stander.standing.how, one.member
        return (
            how != COLLECTIVE,
            how in (DEAD, MISSING),
            (member.node, member.pid) in children,
            member.state not in (EXPIRED, "armed"),
            member.node,
            member.pid,
        )

    leads: dict[int, _Seen] = {}
    for one in sorted(seen, key=last):
        if one.member.rank is not None:
            leads.setdefault(one.member.rank, one)
    return [*leads.values(), *(one for one in seen if one.member.rank is None)]


def _children(member: Member) -> list[Any]:
    process = member.evidence.get("process")
    children = process.get("children") if isinstance(process, dict) else None
    return children if isinstance(children, list) else []


def _order(one: _Seen) -> tuple[bool, int, str, int]:
    member = one.member
    return member.rank is None, member.rank or 0, member.node, member.pid
