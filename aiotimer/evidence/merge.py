"""A merger of the records of one run: those of several nodes are one roll call.

The laws of this file:

* It is a pure function of the records. Of each rank the newest counts; an earlier round's is left out.
* Clocks of one boot are one clock. Those of two machines are compared by what all of a run do at once, which
  is to enter the block that comes after a collective: it is the same entry of the same scope on every node.
* How far that can be wrong is estimated, and said with it: at once is not at the same moment. Whoever enters
  first waits in that block for the last one, so they have been as far apart as the block has usually taken;
  nothing says that they were not farther this time. Without such an entry the clocks are taken as they are,
  and that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from statistics import median
from typing import NamedTuple

from .roll_call import Member, call_roll
from .run_record import RunRecord
from .standing import MISSING

_SPARE = 60.0
"""Seconds: by how much more than a limit the records of one round may be apart."""

_LEAST_ERROR = 0.001
"""Seconds: closer than that nobody enters a block at the same time, or reads two clocks."""

_MOST_TOLD = 8


class _Entry(NamedTuple):
    """When a member entered a block, Unix time; and how long nearly all entries of it took, 0: unknown."""

    at: float
    usual: float


class Clock(NamedTuple):
    """How a node's clock compares with that of another one.

    Attributes:
        ahead_s: seconds that it is ahead; 0 if it agrees, as far as is known.
        error_s: about how far that can be wrong, None if nothing is known.
        scope: by entries of which scope; "" if it is the same clock, or nothing is known.
    """

    ahead_s: float = 0.0
    error_s: float | None = None
    scope: str = ""


def merge(records: Iterable[RunRecord]) -> RunRecord:
    """Return what several records of one run say together.

    Args:
        records: at least one.
    """
    newest, *others = _of_one_round(records)
    if not others:
        return newest
    clocks = [clock_of(one, newest) for one in others]
    moments = [_began(one) - clock.ahead_s for one, clock in zip(others, clocks, strict=True)]
    now = max([_began(newest), *moments])
    members: list[Member] = []
    for one, moment in zip([newest, *others], [_began(newest), *moments], strict=True):
        members += [_later(member, now - moment) for member in one.members if member.node or member.pid]
    roll = call_roll(members, max(one.size for one in (newest, *others)))
    hosts = list(dict.fromkeys(one.host for one in (newest, *others) if one.host))
    return newest._replace(
        id="", size=max(one.size for one in (newest, *others)), time=now, host=", ".join(hosts),
        expired=[one_id for one in (newest, *others) for one_id in one.expired],
        members=roll.members, culprits=roll.culprits, verdict=roll.verdict,
        clocks="; ".join(_in_words(newest, others, clocks)),
    )  # fmt: skip


def clock_of(one: RunRecord, other: RunRecord) -> Clock:
    """Compare the clock of a record's node with that of another one's."""
    if one.boot_id and one.boot_id == other.boot_id:
        if None in (one.time, one.monotonic, other.time, other.monotonic):
            return Clock(error_s=0.0)
        ahead = _offset(one) - _offset(other)  # it has been set in between, if they differ
        return Clock(ahead if abs(ahead) > _LEAST_ERROR else 0.0, 0.0)
    found: list[Clock] = []
    theirs = _entries(other)
    for entry, mine in _entries(one).items():
        if entry in theirs:
            both = mine, theirs[entry]
            ahead = _moment(mine) - _moment(theirs[entry])
            spread = sum(max(entries).at - min(entries).at for entries in both)
            error = max(spread, *(each.usual for entries in both for each in entries), _LEAST_ERROR)
            found.append(Clock(ahead if abs(ahead) > error else 0.0, error, entry[0]))
    return min(found, key=lambda clock: clock.error_s or 0.0, default=Clock())


def _of_one_round(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return those that belong together, the newest first."""
    taken: list[RunRecord] = []
    seen: set[tuple[str, int]] = set()
    for one in sorted(records, key=lambda record: (_began(record), record.host, record.id), reverse=True):
        present = {_who(member) for member in one.members if member.state != MISSING}
        too_old = taken and _began(taken[0]) - _began(one) > _longest([taken[0], one]) + _SPARE
        if (taken and not present) or present & seen or too_old:
            continue
        taken.append(one)
        seen |= present
    return taken


def _who(member: Member) -> tuple[str, int]:
    return ("", member.rank) if member.rank is not None else (member.node, member.pid)


def _longest(records: Sequence[RunRecord]) -> float:
    limits = (timer.get("limit_s") for one in records for member in one.members for timer in member.timers)
    return max((limit for limit in limits if isinstance(limit, int | float)), default=0.0)


def _moment(entries: Sequence[_Entry]) -> float:
    return median(entry.at for entry in entries)


def _entries(record: RunRecord) -> dict[tuple[str, int], list[_Entry]]:
    """Return when members entered their soonest blocks, by scope and number of the entry."""
    found: dict[tuple[str, int], list[_Entry]] = {}
    for member in record.members:
        timer = member.timers[0] if member.timers else {}
        ran = timer.get("ran")
        known = ran if isinstance(ran, dict) else {}
        count, p99 = known.get("count"), known.get("p99_s")
        if member.since_s is not None and isinstance(scope := timer.get("scope"), str):
            number = count if isinstance(count, int) else 0
            usual = p99 if isinstance(p99, float) and isfinite(p99) else 0.0
            found.setdefault((scope, number), []).append(_Entry(_began(record) - member.since_s, usual))
    return found


def _later(member: Member, by: float) -> Member:
    return member if member.since_s is None else member._replace(since_s=max(0.0, member.since_s + by))


def _began(record: RunRecord) -> float:
    return record.time or 0.0


def _offset(record: RunRecord) -> float:
    return (record.time or 0.0) - (record.monotonic or 0.0)


def _in_words(newest: RunRecord, others: Sequence[RunRecord], clocks: Sequence[Clock]) -> Iterator[str]:
    base = newest.host or "the newest"
    for one, clock in list(zip(others, clocks, strict=True))[:_MOST_TOLD]:
        name = one.host or "another node"
        both = f"the servers of {base}" if name == base else f"{name} and {base}"
        if clock.error_s is None:
            yield f"{name}'s clock is taken as it is: nothing that both saw says how far it is from {base}'s"
        elif not clock.scope and not clock.ahead_s:
            yield f"{both} have one clock"
        elif not clock.scope:
            yield f"{both} have one clock, which was set by {-clock.ahead_s:+.3f} s in between"
        else:
            ahead = f"{abs(clock.ahead_s):.3f} s {'ahead of' if clock.ahead_s > 0 else 'behind'} {base}'s"
            words = f"is {ahead}," if clock.ahead_s else f"agrees with {base}'s"
            error = f"to within about {clock.error_s:.3f} s"
            yield f"{name}'s clock {words} {error}, by when both entered {clock.scope}"
    if len(others) > _MOST_TOLD:
        yield f"and {len(others) - _MOST_TOLD} nodes more"
