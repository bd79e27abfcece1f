"""A judge of a run: who waits in a collective, and for whom; in words.

The laws of this file:

* Whose timer expired does not matter, as long as anybody is known to wait for somebody else: who waits in a
  collective is late because of others.
* Who is apart from those that wait is to blame, whether it is elsewhere, dead, or in another collective; but
  of two halves, or of collectives that ranks may call at different lines, nobody is.
* Launchers put equal blocks of ranks on nodes. So ranks that are missing may be on another node if those that
  are here are one such block, and are missing if they are not.
* Nobody is blamed of whom nothing is known. What cannot be told is said.
* Those that wait at one line may wait for one another, or each for a machine that does not answer: nobody is
  blamed for being elsewhere then, and none of them because its time was up first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import inf
from typing import NamedTuple

from . import collectives
from .standing import (
    BLOCKED,
    CHECKPOINT,
    COLLECTIVE,
    COMPUTES,
    DEAD,
    DEEP,
    HOLDS_GIL,
    IDLE,
    MISSING,
    MOVES,
    SPINS,
    STOPPED,
    TRACED,
    UNKNOWN,
    Standing,
)

_MOST_GROUPS = 4
"""Groups of odd ones that are told, each with its place."""

_MOST_NUMBERS = 12
_SPAN = 4
"""Ranks in a row that are told as *4 to 7*."""

_ALIKE = 1.5
"""How many times as long as the others one may have been in its block, to be told for how long it hangs."""

_ALL_THERE = "all are there: the network between them, or what one of them does inside of it; "
_CANNOT_TELL = "who is to blame cannot be told"


class Stander(NamedTuple):
    """A member that answers for its rank, and where it stands.

    Attributes:
        rank: None if it has said none.
        pid: 0 if it is missing.
        node: its machine; of one that is missing, "" if that is not known.
        expired: its timer did.
        since_s: seconds since it entered its soonest armed block.
        standing: see :func:`~.standing.standing`.
        ended: of one that is dead, how it ended, in words.
    """

    rank: int | None
    pid: int
    node: str
    expired: bool
    since_s: float | None
    standing: Standing
    ended: str = ""


class Judgement(NamedTuple):
    """Who is to blame, in no order, nobody if it cannot be told; and all of it in words."""

    blamed: list[Stander]
    text: str


def judge(members: Sequence[Stander], size: int = 0) -> Judgement:
    """Say for whom a run waits.

    Args:
        members: one for each rank, those that are missing, too.
        size: of the run, 0 if it is not known.
    """
    if not members:
        return Judgement([], "nothing is known of its members")
    members = sorted(members, key=_order)
    away = _away(members, size)
    elsewhere = set(away)
    absent = [one for one in members if one.standing.how in (MISSING, DEAD) and one not in elsewhere]
    present = [one for one in members if one.standing.how not in (MISSING, DEAD)]
    waiting = [one for one in present if one.standing.how == COLLECTIVE] or _at_one_place(present)
    unknown = [one for one in present if one.standing.how == UNKNOWN]
    known, all_there = {*waiting, *unknown}, len(present) == size and not unknown
    odd = absent + [one for one in present if one not in known]
    if waiting and odd:
        said = Judgement(odd, f"{_camps_in_words(waiting)}; {_all_in_words(_since_then(odd, waiting))}")
    elif waiting:
        said = _of_collectives(waiting, all_there=all_there)
    else:
        said = _of_nobody_waiting(absent, present, all_there=all_there)
    also = [_unknown_in_words(unknown), _away_in_words(away), _expired_in_words(members, said.blamed)]
    return said._replace(text="; ".join(filter(None, [said.text, *also])))


def camps(members: Iterable[Stander]) -> dict[tuple[str, str], int]:
    """Return the number of each camp, by what is waited for and where; the largest has 0."""
    sizes: dict[tuple[str, str], list[Stander]] = {}
    for one in sorted(members, key=_order):
        if one.standing.where or one.standing.wait:
            sizes.setdefault(_place(one), []).append(one)
    ordered = sorted(sizes, key=lambda place: (-len(sizes[place]), _order(sizes[place][0]), place))
    return {place: number for number, place in enumerate(ordered)}


def _place(one: Stander) -> tuple[str, str]:
    return one.standing.wait, one.standing.where


def _order(one: Stander) -> tuple[bool, int, str, int]:
    return one.rank is None, one.rank or 0, one.node, one.pid


# -- who waits, and who is apart --------------------------------------------------------------------------


def _away(members: Sequence[Stander], size: int) -> list[Stander]:
    """Return those that are missing, and may be on nodes that nobody here knows of."""
    nodes: dict[str, set[int]] = {}
    for one in members:
        if one.rank is not None and (one.standing.how != MISSING or one.node):
            nodes.setdefault(one.node, set()).add(one.rank)
    blocks = [sorted(ranks) for ranks in nodes.values()]
    length = len(blocks[0]) if blocks else size
    if length >= size or size % length or any(not _is_block(block, length) for block in blocks):
        return []
    return [one for one in members if one.standing.how == MISSING and not one.node]


def _is_block(ranks: Sequence[int], length: int) -> bool:
    """Whether ranks, in order, are one of the equal blocks that all ranks are divided into."""
    return len(ranks) == length and ranks[0] % length == 0 and ranks[-1] == ranks[0] + length - 1


def _at_one_place(present: Sequence[Stander]) -> list[Stander]:
    """Return those that stand at one line in C, if they are most: in a collective without a name."""
    in_c = [
        one for one in present if one.standing.where and (one.standing.still or one.standing.how == COMPUTES)
    ]
    if not in_c:
        return []
    ((where, count),) = Counter(one.standing.where for one in in_c).most_common(1)
    if count < 2 or 2 * count <= len(present):
        return []
    return [one for one in in_c if one.standing.where == where]


def _at_one_line(present: Sequence[Stander]) -> set[Stander]:
    """Return those that wait at one line, for whatever it is, if they are several, and most."""
    waits = [one for one in present if one.standing.where and one.standing.how in (BLOCKED, IDLE)]
    most = Counter(one.standing.where for one in waits).most_common(1)
    if not most or most[0][1] < 2 or 2 * most[0][1] <= len(present):
        return set()
    return {one for one in waits if one.standing.where == most[0][0]}


def _since_then(odd: Sequence[Stander], waiting: Sequence[Stander]) -> list[Stander]:
    """Return those that are apart; of one in a block much longer than the others' nobody knows since when."""
    waited = [one.since_s for one in waiting if one.since_s is not None]
    most = _ALIKE * max(waited) if waited else inf
    return [one if (one.since_s or 0.0) <= most else one._replace(since_s=None) for one in odd]


def _of_collectives(waiting: Sequence[Stander], *, all_there: bool) -> Judgement:
    """Of a run of which everybody waits, as far as is known."""
    groups: dict[tuple[str, str], list[Stander]] = {}
    for one in waiting:
        groups.setdefault(_what(one), []).append(one)
    if len(groups) == 1:
        text = _camps_in_words(waiting)
        if len({_place(one) for one in waiting}) > 1:
            return Judgement([], f"{text}: whether these belong together, and {_CANNOT_TELL}")
        after = _ALL_THERE if all_there else ""
        return Judgement([], f"{text}; {after}{_CANNOT_TELL}")
    text = f"the ranks wait in different collectives: {_camps_in_words(waiting, each=True)}"
    largest = max(groups.values(), key=len)
    if 2 * len(largest) <= len(waiting):
        return Judgement([], f"{text}; {_CANNOT_TELL}")
    most = set(largest)
    apart = [one for one in waiting if one not in most]
    return Judgement(apart, f"{text}; {who(apart)} {'is' if len(apart) == 1 else 'are'} apart from the rest")


def _what(one: Stander) -> tuple[str, str]:
    """Return what must be equal for two to be in the same collective."""
    wait, where = _place(one)
    if collectives.is_point_to_point(wait):
        return "", ""
    return (wait, "") if collectives.may_be_called_apart(wait) else (wait, where)


def _of_nobody_waiting(
    absent: Sequence[Stander], present: Sequence[Stander], *, all_there: bool
) -> Judgement:
    """Of a run of which nobody is known to wait in a collective: then who is late is so by itself.

    But not who waits at the line at which most do.
    """
    late = [one for one in present if one.expired and one.standing.how != UNKNOWN and not one.standing.still]
    alike = _at_one_line(present)
    if not alike.isdisjoint(late):
        late = []
    blamed = [*absent, *(late if 2 * len(late) <= len(present) or len(present) == 1 else [])]
    if blamed:
        return Judgement(
            blamed, f"nobody is known to wait in a collective; {_all_in_words(blamed, arrives=False)}"
        )
    apart = [one for one in present if one not in alike]
    if alike and all_there and len(apart) == 1:
        return Judgement([], _one_is_elsewhere([one for one in present if one in alike], apart))
    known = [one for one in present if one.standing.how != UNKNOWN]
    told = f"; {_all_in_words(known, arrives=False)}" if known else ""
    return Judgement([], f"nobody is known to wait in a collective{told}; {_CANNOT_TELL}")


# -- in words ---------------------------------------------------------------------------------------------


def who(members: Sequence[Stander]) -> str:
    """Return who that is: ``rank 2``, ``ranks 0, 1, 4 to 7``, ``pid 4242``."""
    ranks = sorted({one.rank for one in members if one.rank is not None})
    pids = sorted(one.pid for one in members if one.rank is None)
    parts = [
        f"{noun}{'s' if len(numbers) > 1 else ''} {numbers_in_words(numbers)}"
        for noun, numbers in (("rank", ranks), ("pid", pids))
        if numbers
    ]
    return " and ".join(parts)


def numbers_in_words(numbers: Sequence[int]) -> str:
    """Return numbers, in order, with those that are in a row as a span."""
    told: list[str] = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        row = [number for _, number in run]
        told += [f"{row[0]} to {row[-1]}"] if len(row) >= _SPAN else map(str, row)
    if len(told) > _MOST_NUMBERS:
        told = [*told[:_MOST_NUMBERS], f"... ({len(numbers)} in all)"]
    return ", ".join(told)


def line_in_words(where: str) -> str:
    """Return where that is, with its function marked: ``in `step` at train.py:40``."""
    function, at, line = where.removeprefix("in ").rpartition(" at ")
    return f"in `{function}` at {line}" if at and function else where


def _camps_in_words(waiting: Sequence[Stander], *, each: bool = False) -> str:
    """Say who waits where, the largest camp first."""
    by_place: dict[tuple[str, str], list[Stander]] = {place: [] for place in camps(waiting)}
    for one in waiting:
        by_place[_place(one)].append(one)
    groups = list(by_place.values())
    told = []
    for group in groups[:_MOST_GROUPS]:
        wait, where = _place(group[0])
        function, _, line = where.rpartition(" at ")
        place = f"in `{wait}` at {line}" if wait else f"at {line} {function}".rstrip()
        verb = "" if each else " wait together" if len(group) > 1 else " waits"
        told.append(f"{who(group)}{verb} {place if line or wait else 'somewhere'}")
    if len(groups) > _MOST_GROUPS:
        told.append(f"and {sum(map(len, groups[_MOST_GROUPS:]))} more elsewhere")
    return ", ".join(told)


_HOW = {
    STOPPED: "stopped",
    TRACED: "in a debugger",
    DEEP: "in uninterruptible sleep",
    CHECKPOINT: "in a checkpoint",
    SPINS: "spinning",
    COMPUTES: "computing in C, called",
    MOVES: "slow, but moving: now",
    IDLE: "idle, asleep",
    HOLDS_GIL: "holding the GIL in C, called",
}


def _all_in_words(odd: Sequence[Stander], *, arrives: bool = True) -> str:
    """Say of those that are apart what they do; of those at one place together."""
    groups: dict[tuple[str, str], list[Stander]] = {}
    for one in odd:
        groups.setdefault((one.standing.how, one.standing.where), []).append(one)
    told = [_odd_in_words(group, arrives=arrives) for group in groups.values()]
    if len(told) > _MOST_GROUPS:
        rest = sum(map(len, list(groups.values())[_MOST_GROUPS:]))
        told = [*told[:_MOST_GROUPS], f"{rest} more are elsewhere"]
    return "; ".join(told)


def _one_is_elsewhere(alike: Sequence[Stander], apart: Sequence[Stander]) -> str:
    return (
        f"nobody is known to wait in a collective, but {who(alike)} wait at one line, "
        f"{line_in_words(alike[0].standing.where)}; {who(apart)} is elsewhere, {_doing(apart)}, "
        f"and may be the one that they wait for; {_CANNOT_TELL}"
    )


def _odd_in_words(group: Sequence[Stander], *, arrives: bool) -> str:
    how = group[0].standing.how
    one = len(group) == 1
    it, be = ("it", "is") if one else ("they", "are")
    if how == DEAD:
        ended = {each.ended for each in group}
        return f"{who(group)} {be} dead" + (
            f" ({ended.pop()})" if len(ended) == 1 and "" not in ended else ""
        )
    if how == MISSING:
        return f"{who(group)} {be} missing: {it} {'has' if one else 'have'} ended, or never connected"
    doing = _doing(group)
    if how == IDLE:
        doing += f" ({'has it' if one else 'have they'} swallowed an exception?)"
    if not arrives:
        return f"{who(group)} {be} {doing}"
    arrived = "never arrived" if how != MOVES else f"{'has' if one else 'have'} not arrived yet"
    return f"{who(group)} {arrived}: {it} {be} {doing}"


def _doing(group: Sequence[Stander]) -> str:
    """Say what those do that are at one place, and for how long."""
    how, where, _wait, _moving, lines, _still = group[0].standing
    doing = " ".join(filter(None, [_HOW.get(how, ""), line_in_words(where)])) or "elsewhere"
    if how == SPINS and len(lines) > 1:
        doing += f" (lines {lines[0]} to {lines[-1]})"
    since = max((each.since_s for each in group if each.since_s is not None), default=None)
    return doing if since is None else f"{doing}, for {_seconds(since)}"


def _unknown_in_words(unknown: Sequence[Stander]) -> str:
    return f"of {who(unknown)} nothing is known" if unknown else ""


def _away_in_words(away: Sequence[Stander]) -> str:
    if not away:
        return ""
    is_one = len(away) == 1
    where = "is on another node, or has" if is_one else "are on other nodes, or have"
    return f"{who(away)} {where} ended"


def _expired_in_words(members: Sequence[Stander], blamed: Sequence[Stander]) -> str:
    expired = [one for one in members if one.expired]
    if not blamed or not expired or not set(expired).isdisjoint(blamed):
        return ""
    return f"it was the time of {who(expired)} that was up"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
