"""Roll calls of runs of any size, whose members stand in any places: what always holds of a verdict."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiotimer.evidence.findings import stack
from aiotimer.evidence.roll_call import Member, Roll, call_roll

C10D = "/usr/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
slowly = settings(suppress_health_check=[HealthCheck.too_slow])
"""A run is made of many draws, which take long on a busy machine."""

PLACES: dict[str, list[list[Any]]] = {
    "all_reduce": [["/srv/train.py", 40, "step"], [C10D, 3252, "all_reduce"]],
    "all_reduce elsewhere": [["/srv/eval.py", 12, "score"], [C10D, 3252, "all_reduce"]],
    "barrier": [["/srv/train.py", 52, "main"], [C10D, 5300, "barrier"]],
    "recv": [["/srv/pipe.py", 7, "stage"], [C10D, 2800, "recv"]],
    "loader": [["/srv/loader.py", 88, "read_shard"]],
    "save": [["/srv/train.py", 70, "save_checkpoint"]],
    "nowhere": [],
}
STATES = st.sampled_from(["expired", "armed", "connected", "dead", "stopped"])
THREADS = st.fixed_dictionaries(
    {
        "moves": st.sampled_from([None, -1, -1, 0]),
        "ran": st.sampled_from([None, 0.0, 0.9]),
        "gil": st.sampled_from([None, False, True]),
        "syscall": st.sampled_from(["", "futex", "read", "clock_nanosleep"]),
    }
)


def found(place: str, thread: dict[str, Any]) -> dict[str, Any]:
    """Return the evidence of a member that stands somewhere."""
    frames = PLACES[place]
    stacks = [stack("MainThread", frames) | {"main": True} | thread] if frames else []
    return {"stacks": stacks, "tasks": [], "process": {"state": "S (sleeping)"}, "probes": {}}


EVIDENCE = st.builds(found, st.sampled_from(list(PLACES)), THREADS)
SIZES = st.sampled_from([1, 2, 3, 4, 8, 64])


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Member], int]:
    """A run in which some may be missing, and its size."""
    size = draw(SIZES)
    here = draw(st.lists(st.integers(0, size - 1), unique=True, max_size=12))
    common = draw(EVIDENCE)
    members = []
    for rank in here:
        evidence = common if draw(st.booleans()) else draw(EVIDENCE)
        members.append(Member(rank, 1000 + rank, "node7", state=draw(STATES), evidence=evidence))
    return members, size


@slowly
@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(run: tuple[list[Member], int], chance: Any) -> None:
    members, size = run
    roll = call_roll(members, size)
    shuffled = list(members)
    chance.shuffle(shuffled)
    assert call_roll(shuffled, size) == roll
    assert call_roll(roll.members, size) == roll  # nor does it, to be called again


@slowly
@given(runs())
def test_no_culprit_is_in_the_camp_in_which_most_wait(run: tuple[list[Member], int]) -> None:
    members, size = run
    roll = call_roll(members, size)
    waits: dict[int, list[Member]] = {}
    for one in roll.members:
        if one.wait and one.camp is not None:
            waits.setdefault(one.camp, []).append(one)
    most = max(map(len, waits.values()), default=0)
    for camp in waits.values():
        if len(camp) == most and 2 * most > sum(map(len, waits.values())):
            assert not {one.rank for one in camp} & set(roll.culprits)
    everybody = {one.rank for one in roll.members}
    assert everybody == set(range(size))
    assert everybody >= set(roll.culprits)
    assert roll.verdict.isprintable()
    assert Roll.from_json(roll.as_json()) == roll


@given(st.integers(2, 64), st.data())
def test_one_that_is_elsewhere_is_named_in_a_run_of_any_size(size: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, size - 1))
    still = {"moves": -1, "ran": 0.0, "gil": False, "syscall": "futex"}
    members = [
        Member(
            rank, 1000 + rank, state="expired",
            evidence=found("loader" if rank == culprit else "all_reduce", still),
        )
        for rank in range(size)
    ]  # fmt: skip
    roll = call_roll(members, size)
    assert roll.culprits == [culprit]
    assert f"rank {culprit} never arrived: it is in `read_shard` at loader.py:88" in roll.verdict


@given(EVIDENCE, st.sampled_from(["expired", "connected"]))
def test_a_run_of_one_waits_for_nobody(evidence: dict[str, Any], state: str) -> None:
    roll = call_roll([Member(0, 1000, state=state, evidence=evidence)], 1)
    assert roll.culprits in ([], [0])
    if roll.members[0].wait:
        assert roll.culprits == []


@given(EVIDENCE, EVIDENCE)
def test_of_two_that_stand_alike_neither_is_named(one: dict[str, Any], other: dict[str, Any]) -> None:
    roll = call_roll([Member(rank, 1000 + rank, evidence=one) for rank in (0, 1)], 2)
    assert roll.culprits == []
    pair = call_roll([Member(0, 1000, evidence=one), Member(1, 1001, evidence=other)], 2)
    if all(member.wait for member in pair.members):
        assert pair.culprits == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["frames", "state", "x"]), inner)
    ),
    max_leaves=6,
)


@slowly
@given(st.dictionaries(st.sampled_from(["stacks", "tasks", "process"]), JSON), st.lists(JSON, max_size=2))
def test_any_evidence_is_judged(evidence: dict[str, Any], timers: list[Any]) -> None:
    member = Member.from_json({"rank": 0, "pid": 7, "evidence": evidence, "timers": timers})
    assert call_roll([member], 1).verdict
