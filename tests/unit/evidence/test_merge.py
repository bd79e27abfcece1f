"""Records of several nodes, merged: which belong together, and what is known of their clocks."""

from math import inf
from typing import Any

import pytest

from aiotimer.evidence.merge import Clock, clock_of, merge
from aiotimer.evidence.roll_call import Member, call_roll
from aiotimer.evidence.run_record import RunRecord
from tests.fakes.ranks import ranks

NOON = 1795403520.0


def record(numbers: tuple[int, ...], host: str, **more: Any) -> RunRecord:
    """What one node has found of a job of four, whose rank 2 hangs in its loader."""
    members = [one._replace(node=host) for one in ranks("loader") if one.rank in numbers]
    roll = call_roll(members, 4)
    known: dict[str, Any] = {
        "id": f"20261123T031205-run-{numbers[0]}", "run": "job-7", "size": 4, "time": NOON + 61, "host": host,
        "boot_id": f"of {host}", "monotonic": 1000.0, "expired": [f"of {host}"], **roll._asdict(),
    }  # fmt: skip
    return RunRecord(**known | more)


def since(seconds: float, count: int = 7, p99_s: object = None) -> Member:
    """A member that has been in its block for so long, whose earlier entries took hardly longer than that."""
    ran = {"count": count, "p99_s": p99_s}
    return Member(0, 7, "n", since_s=seconds, timers=[{"scope": "step", "limit_s": 60.0, "ran": ran}])


def test_two_nodes_together_name_whom_neither_could() -> None:
    first, second = record((0, 1), "node1"), record((2, 3), "node2")
    assert first.culprits == []
    merged = merge([first, second])
    assert merged.culprits == [2]
    assert "rank 2 never arrived: it is in `read_shard` at loader.py:7" in merged.verdict
    assert [(one.rank, one.node) for one in merged.members] == [
        (0, "node1"), (1, "node1"), (2, "node2"), (3, "node2")
    ]  # fmt: skip
    assert (merged.size, merged.expired) == (4, ["of node2", "of node1"])
    assert merge([second, first]) == merged


def test_one_record_is_as_it_was_written() -> None:
    alone = record((2, 3), "node2")
    assert merge([alone]) is alone
    assert merge([alone, alone]) is alone


def test_who_is_on_no_node_that_is_there_may_be_on_another() -> None:
    eight = [record((0, 1), "node1", size=8), record((2, 3), "node2", size=8)]
    assert merge(eight).culprits == [2]
    assert "ranks 4 to 7 are on other nodes, or have ended" in merge(eight).verdict


def test_a_rank_that_was_found_is_not_missing() -> None:
    gone = [*record((0, 1), "node1").members, Member(2, node="node1", state="missing")]
    merged = merge([record((0, 1), "node1", members=gone), record((2, 3), "node2")])
    assert [one.state for one in merged.members] == ["expired"] * 4


def test_of_several_rounds_the_newest_counts() -> None:
    old = record((2, 3), "node2", time=NOON - 600, verdict="old")
    assert merge([old, record((2, 3), "node2")]).verdict != "old"
    assert merge([old, record((0, 1), "node1")]).host == "node1"  # ten minutes before: another round
    assert merge([record((2, 3), "node2", time=NOON - 30), record((0, 1), "node1")]).host == "node1, node2"


def test_the_clock_of_one_boot_is_one_whatever_it_was_set_to() -> None:
    one = record((0, 1), "node1", boot_id="b", monotonic=1000.0)
    other = record((2, 3), "node1", boot_id="b", monotonic=1001.0, time=NOON + 62)
    assert clock_of(other, one) == Clock(0.0, 0.0)
    assert clock_of(other._replace(time=NOON + 65), one) == Clock(3.0, 0.0)
    assert merge([one, other]).clocks == "the servers of node1 have one clock"
    assert clock_of(other._replace(time=NOON + 62.0001), one) == Clock(0.0, 0.0)
    assert "which was set by +3.000 s" in merge([one._replace(time=NOON + 64), other]).clocks


@pytest.mark.parametrize(
    ("mine", "ahead"),
    [((61.0, 61.1), 0.0), ((58.5, 58.6), 2.5), ((63.5, 63.6), -2.5)],
)
def test_clocks_of_two_machines_are_compared_by_what_both_entered(
    mine: tuple[float, float], ahead: float
) -> None:
    base = RunRecord(time=NOON, host="node1", members=[since(61.0), since(61.1)])
    found = clock_of(RunRecord(time=NOON, host="node2", members=[since(each) for each in mine]), base)
    assert (round(found.ahead_s, 3), found.scope) == (ahead, "step")
    assert found.error_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("p99_s", "error"), [(0.4, 0.4), (0.05, 0.2), (None, 0.2), ("1", 0.2), (inf, 0.2), (10**400, 0.2)]
)
def test_who_enters_first_has_waited_for_the_last_so_they_may_be_as_far_apart(
    p99_s: object, error: float
) -> None:
    """A block with a collective takes as long as the first of its ranks has waited for the last."""
    base = RunRecord(time=NOON, host="node1", members=[since(61.0), since(61.1)])
    mine = [since(61.3), since(61.4, p99_s=p99_s)]
    found = clock_of(RunRecord(time=NOON, host="node2", members=mine), base)
    assert found.error_s == pytest.approx(error)
    assert found.ahead_s == (0.0 if error > 0.3 else pytest.approx(-0.3))


def test_without_an_entry_of_both_nothing_is_known_of_their_clocks() -> None:
    base = RunRecord(time=NOON, members=[since(61.0, count=7)])
    assert clock_of(RunRecord(time=NOON, members=[since(61.0, count=8)]), base) == Clock()
    assert clock_of(RunRecord(time=NOON), base) == Clock()


def test_the_error_is_stated() -> None:
    first = record((0, 1), "node1")
    assert merge([first, record((2, 3), "node2")]).clocks == (
        "node1's clock agrees with node2's to within about 0.001 s, by when both entered step"
    )
    ahead = merge([first, record((2, 3), "node2", time=NOON + 59)])  # entered at 2 s before
    assert (
        ahead.clocks
        == "node2's clock is 2.000 s behind node1's, to within about 0.001 s, by when both entered step"
    )
    assert {one.since_s for one in ahead.members} == {61.0}
    unknown = [one._replace(timers=[]) for one in record((2, 3), "node2").members]
    assert merge([first, record((2, 3), "node2", members=unknown)]).clocks.startswith(
        "node1's clock is taken as it is"
    )


def test_how_long_is_as_of_the_latest() -> None:
    early = record((0, 1), "node1", boot_id="b", time=NOON + 41, monotonic=980.0)
    merged = merge([early, record((2, 3), "node1", boot_id="b")])
    assert [one.since_s for one in merged.members] == [81.0, 81.0, 61.0, 61.0]
    assert merged.time == NOON + 61


def test_a_record_is_read_as_it_was_written_and_anything_is_read() -> None:
    one = record((2, 3), "node2")
    assert RunRecord.from_json(one.as_json()) == one
    odd = RunRecord.from_json({"run": 7, "size": None, "members": {}, "expired": [1, "x"], "time": "now"})
    assert odd == RunRecord(expired=["x"])
