"""The roll call: of ranks that were really looked at, and of every case that has words of its own."""

from typing import Any

import pytest

from aiotimer.evidence.findings import stack
from aiotimer.evidence.roll_call import Member, Roll, call_roll
from tests.fakes.ranks import FOUND, SEVEN, culprit, ranks

TORCH = "/usr/lib/python3.11/site-packages/torch"
WAITS_IN = {
    "all_reduce": [
        ["/srv/train.py", 9, "<module>"],
        ["/srv/train.py", 40, "step"],
        [f"{TORCH}/distributed/c10d_logger.py", 83, "_exception_logger.<locals>.wrapper"],
        [f"{TORCH}/distributed/distributed_c10d.py", 3252, "all_reduce"],
    ],
    "barrier": [
        ["/srv/train.py", 52, "evaluate"],
        [f"{TORCH}/distributed/distributed_c10d.py", 5300, "barrier"],
    ],
    "recv": [["/srv/pipe.py", 7, "stage"], [f"{TORCH}/distributed/distributed_c10d.py", 2800, "recv"]],
    "send": [["/srv/pipe.py", 9, "stage"], [f"{TORCH}/distributed/distributed_c10d.py", 2700, "send"]],
    "backward": [
        ["/srv/train.py", 41, "step"],
        [f"{TORCH}/_tensor.py", 623, "Tensor.backward"],
        [f"{TORCH}/autograd/__init__.py", 395, "backward"],
        [f"{TORCH}/autograd/graph.py", 979, "_engine_run_backward"],
    ],
}
SLOW = "rank 2 has not arrived yet: it is slow, but moving: now in `read_shard`"
READS = {"syscall": "read", "waits": "waits for a pipe (read)"}
LOADER = [["/srv/train.py", 9, "<module>"], ["/srv/loader.py", 88, "read_shard"]]


def member(rank: int | None, frames: list[Any] | None = None, **more: Any) -> Member:
    """A member whose main thread stands in frames; ``stack`` and ``process`` say more about that."""
    thread = stack("MainThread", frames) | {"main": True, "moves": -1, "ran": 0.0, "gil": False}
    thread |= {"syscall": "futex"} | more.pop("stack", {})
    process = {"state": "S (sleeping)"} | more.pop("process", {})
    found = {"stacks": [thread] if frames else [], "tasks": [], "process": process, "probes": {}}
    known: dict[str, Any] = {"pid": 100 + (rank or 0), "node": "node7", "state": "armed", "evidence": found}
    return Member(rank, **known | more)


def waiting(*numbers: int, wait: str = "all_reduce", **more: Any) -> list[Member]:
    """Members that wait in a collective, and whose time was up."""
    return [member(rank, WAITS_IN[wait], state="expired", **more) for rank in numbers]


@pytest.mark.parametrize("kind", FOUND)
def test_the_rank_that_was_not_there_is_named(kind: str) -> None:
    roll = call_roll(ranks(kind), 4)
    assert roll.culprits == [culprit(kind)], roll.verdict
    assert f"rank {culprit(kind)} " in roll.verdict
    camps = {one.camp for one in roll.members if one.rank != culprit(kind)}
    assert kind == "recv" or camps == {0}
    assert culprit(kind) not in [one.rank for one in roll.members if one.camp == 0]


def test_the_ways_that_people_ask_of_are_among_them() -> None:
    assert set(SEVEN) <= FOUND.keys()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("loader", "rank 2 never arrived: it is in `read_shard` at loader.py:7, for 61 s"),
        (
            "loop",
            "rank 1 never arrived: it is spinning in `augment` at train.py:18 (lines 17 to 18), for 61 s",
        ),
        ("gil", "rank 0 never arrived: it is holding the GIL in C, called in `train` at train.py:37"),
        ("future", "rank 3 never arrived: it is in `next_batch` at pipeline.py:7, for 61 s"),
        ("stop", "rank 2 never arrived: it is stopped in `train` at train.py:39"),
        (
            "swallow",
            "rank 1 never arrived: it is idle, asleep in `train` at train.py:45 (has it swallowed an",
        ),
        (
            "other",
            "ranks 0, 1, 3 in `backward` at train.py:56, rank 2 in `barrier` at train.py:23; rank 2 is apart",
        ),
    ],
)
def test_each_way_has_its_own_words(kind: str, words: str) -> None:
    assert words in call_roll(ranks(kind), 4).verdict


def test_it_says_who_waits_for_whom() -> None:
    roll = call_roll([*waiting(0, 1, 3), member(2, LOADER, since_s=61.2)], 4)
    assert roll.verdict == (
        "ranks 0, 1, 3 wait together in `all_reduce` at train.py:40; rank 2 never arrived: it is in "
        "`read_shard` at loader.py:88, for 61 s; it was the time of ranks 0, 1, 3 that was up"
    )
    assert roll.culprits == [2]
    assert [(one.where, one.wait, one.camp) for one in roll.members[1:3]] == [
        ("in step at train.py:40", "all_reduce", 0),
        ("in read_shard at loader.py:88", "", 1),
    ]


def test_whose_time_was_up_is_told_apart_from_who_is_to_blame() -> None:
    both = call_roll([*waiting(0, 1, 3), member(2, LOADER, state="expired")], 4)
    assert both.culprits == [2]
    assert "time" not in both.verdict  # it was the culprit's, too


def test_of_two_the_one_that_does_not_wait_is_named() -> None:
    assert call_roll([*waiting(0), member(1, LOADER)], 2).culprits == [1]


def test_of_two_in_different_collectives_neither_is_named() -> None:
    roll = call_roll([*waiting(0), *waiting(1, wait="barrier")], 2)
    assert roll.culprits == []
    assert roll.verdict == (
        "the ranks wait in different collectives: rank 0 in `all_reduce` at train.py:40, rank 1 in "
        "`barrier` at train.py:52; who is to blame cannot be told"
    )


def test_one_in_another_collective_than_most_is_named() -> None:
    roll = call_roll([*waiting(0, 1, 3), *waiting(2, wait="barrier")], 4)
    assert roll.culprits == [2]
    assert "rank 2 is apart from the rest" in roll.verdict


def test_one_at_another_line_of_a_collective_that_all_call_alike_is_named() -> None:
    frames = [["/srv/eval.py", 12, "score"], WAITS_IN["all_reduce"][-1]]
    assert call_roll([*waiting(0, 1, 3), member(2, frames)], 4).culprits == [2]


def test_ranks_may_call_a_barrier_at_different_lines() -> None:
    frames = [["/srv/train.py", 60, "main"], WAITS_IN["barrier"][-1]]
    roll = call_roll([*waiting(1, 2, 3, wait="barrier"), member(0, frames)], 4)
    assert roll.culprits == []
    assert roll.verdict.endswith("whether these belong together, and who is to blame cannot be told")


def test_senders_and_receivers_are_no_mismatch() -> None:
    roll = call_roll([*waiting(1, 2, 3, wait="recv"), *waiting(0, wait="send")], 4)
    assert roll.culprits == []


def test_if_all_are_there_nobody_is_named() -> None:
    roll = call_roll(waiting(0, 1, 2, 3), 4)
    assert roll.culprits == []
    assert roll.verdict == (
        "ranks 0 to 3 wait together in `all_reduce` at train.py:40; all are there: the network "
        "between them, or what one of them does inside of it; who is to blame cannot be told"
    )


def test_if_nobody_knows_how_many_there_are_all_may_not_be_there() -> None:
    assert call_roll(waiting(0, 1), None).verdict == (
        "ranks 0, 1 wait together in `all_reduce` at train.py:40; who is to blame cannot be told"
    )


def test_one_that_is_missing_is_named() -> None:
    roll = call_roll(waiting(0, 1, 3), 4)
    assert roll.culprits == [2]
    assert "rank 2 is missing: it has ended, or never connected" in roll.verdict
    assert [(one.rank, one.state, one.pid) for one in roll.members if one.camp is None] == [(2, "missing", 0)]


def test_a_block_of_ranks_that_is_missing_may_be_on_another_node() -> None:
    roll = call_roll(waiting(2, 3), 4)
    assert roll.culprits == []
    assert roll.verdict.endswith("ranks 0, 1 are on other nodes, or have ended")


def test_one_that_is_known_to_belong_to_a_node_is_missing_there() -> None:
    roll = call_roll([*waiting(0), Member(1, node="node7", state="missing")], 4)
    assert roll.culprits == [1]
    assert [one.state for one in roll.members] == ["armed"] * 0 + ["expired", "missing", "missing", "missing"]


def test_one_that_is_dead_is_named() -> None:
    roll = call_roll([*waiting(0, 1, 3), member(2, state="dead", verdict="exit 9")], 4)
    assert roll.culprits == [2]
    assert "rank 2 is dead (exit 9)" in roll.verdict


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"stack": {"moves": 1, "ran": 0.9}}, SLOW),
        ({"moving": True}, SLOW),
        ({"stack": {"moves": 1, "lines": [86, 88]}}, "it is spinning in `read_shard` at loader.py:88 (lines"),
        ({"stack": {"ran": 0.9, "gil": True, "syscall": "running"}}, "it is spinning in `read_shard` at"),
        ({"stack": {"ran": 0.9, "syscall": "running"}}, "it is computing in C, called in `read_shard` at"),
        ({"stack": {"ran": 0.0, "gil": True}}, "it is holding the GIL in C, called in `read_shard` at"),
        ({"stack": READS}, "rank 2 never arrived: it is in `read_shard` at loader.py:88"),
        ({"stack": {"syscall": "clock_nanosleep", "waits": "sleeps"}}, "it is idle, asleep in `read_shard`"),
        ({"process": {"state": "T (stopped)"}}, "rank 2 never arrived: it is stopped in `read_shard`"),
        ({"state": "stopped"}, "rank 2 never arrived: it is stopped in `read_shard`"),
        ({"process": {"state": "t (tracing stop)", "tracer": 7}}, "it is in a debugger in `read_shard`"),
        ({"process": {"state": "D (disk sleep)"}}, "it is in uninterruptible sleep in `read_shard`"),
        ({"process": {"state": "Z (zombie)"}}, "rank 2 is dead"),
    ],
)  # fmt: skip
def test_how_one_is_away_has_words(more: dict[str, Any], words: str) -> None:
    roll = call_roll([*waiting(0, 1, 3), member(2, LOADER, **more)], 4)
    assert roll.culprits == [2]
    assert words in roll.verdict


@pytest.mark.parametrize(
    "frames",
    [
        [["/srv/train.py", 70, "save_checkpoint"], ["/srv/io.py", 4, "write"]],
        [["/srv/train.py", 70, "step"], [f"{TORCH}/serialization.py", 967, "save"]],
        [["/srv/train.py", 70, "step"], [f"{TORCH}/distributed/checkpoint/state_dict_saver.py", 7, "save"]],
    ],
)
def test_a_checkpoint_is_called_one(frames: list[Any]) -> None:
    assert "it is in a checkpoint in `" in call_roll([*waiting(0, 1, 3), member(2, frames)], 4).verdict


def test_what_is_computed_again_in_a_backward_pass_is_no_checkpoint() -> None:
    frames = [["/srv/train.py", 70, "step"], [f"{TORCH}/utils/checkpoint.py", 7, "checkpoint"], LOADER[-1]]
    assert "checkpoint" not in call_roll([*waiting(0, 1, 3), member(2, frames)], 4).verdict


def test_who_computes_a_backward_pass_does_not_wait_in_it() -> None:
    slow = member(2, WAITS_IN["backward"], stack={"ran": 0.8})
    roll = call_roll([*waiting(0, 1, 3, wait="backward"), slow], 4)
    assert roll.culprits == [2]


def test_a_collective_without_a_name_is_known_by_most_standing_in_it() -> None:
    frames = [["/srv/train.py", 44, "wait_for_all"]]  # work.wait(), in C
    roll = call_roll([*(member(rank, frames, state="expired") for rank in (0, 1, 3)), member(2, LOADER)], 4)
    assert roll.culprits == [2]
    assert roll.verdict.startswith("ranks 0, 1, 3 wait together at train.py:44 in wait_for_all; rank 2 never")


def test_the_name_that_native_frames_have_is_that_of_all_at_its_line() -> None:
    frames = [["/srv/train.py", 44, "wait_for_all"]]
    known = member(0, frames, stack={"native": ["PMPI_Allreduce (libmpi.so.40)"]})
    roll = call_roll([known, member(1, frames), member(2, LOADER)], 3)
    assert [one.wait for one in roll.members] == ["MPI_Allreduce", "MPI_Allreduce", ""]
    assert roll.culprits == [2]


def test_a_thread_of_a_library_that_waits_for_work_puts_nobody_into_a_collective() -> None:
    """c10d has one in every rank, and a look with native frames sees it."""
    members = ranks("gil")
    evidence = members[culprit("gil")].evidence
    gloo = stack("pt_gloo_runloop") | {"native": ["c10d::ProcessGroupGloo::runLoop (libtorch_cpu.so)"]}
    members[culprit("gil")] = members[culprit("gil")]._replace(
        evidence=evidence | {"stacks": [*evidence["stacks"], gloo]}
    )
    roll = call_roll(members, 4)
    assert roll == call_roll(ranks("gil"), 4)._replace(members=roll.members)


def test_those_that_wait_busily_are_a_camp_too() -> None:
    frames, busy = [["/srv/train.py", 44, "wait_for_all"]], {"ran": 0.9, "syscall": "running"}
    most = [member(rank, frames, state="expired", stack=busy) for rank in (0, 1, 3)]
    assert call_roll([*most, member(2, LOADER)], 4).culprits == [2]
    named = [
        one._replace(evidence=member(0, frames, stack=busy | {"native": ["ncclAllReduce"]}).evidence)
        for one in most[:1]
    ]
    roll = call_roll([*named, *most[1:], member(2, LOADER)], 4)
    assert [one.wait for one in roll.members] == ["ncclAllReduce", "ncclAllReduce", "", "ncclAllReduce"]
    assert roll.culprits == [2]


def test_for_how_long_is_said_only_of_a_block_like_the_others() -> None:
    waits = [one._replace(since_s=60.0) for one in waiting(0, 1, 3)]
    for since, said in ((61.0, True), (3000.0, False)):
        assert (", for " in call_roll([*waits, member(2, LOADER, since_s=since)], 4).verdict) is said


def test_nobody_is_named_of_whom_nothing_is_known() -> None:
    roll = call_roll([*waiting(0, 1, 3), member(2)], 4)
    assert roll.culprits == []
    assert roll.verdict.endswith("who is to blame cannot be told; of rank 2 nothing is known")


def test_if_nobody_waits_in_a_collective_who_is_late_is_so_by_itself() -> None:
    roll = call_roll([member(0, WAITS_IN["barrier"][:1]), member(1, LOADER, state="expired", stack=READS)], 2)
    assert roll.culprits == [1]
    assert roll.verdict.startswith("nobody is known to wait in a collective; rank 1 is in `read_shard`")


EXCHANGE = [["/srv/train.py", 9, "<module>"], ["/srv/exchange.py", 8, "exchange"]]
RECEIVES = {"syscall": "recvfrom", "waits": "waits for a socket (recvfrom, 10.0.0.7:29400)"}
SPINS = {"ran": 0.9, "gil": True, "syscall": "running"}
AUGMENTS = [["/srv/train.py", 9, "<module>"], ["/srv/augment.py", 5, "augment"]]


def receiving(*numbers: int, state: str = "armed") -> list[Member]:
    """Members that wait at one line for the other end of a socket: nobody knows whose that is."""
    return [member(rank, EXCHANGE, state=state, stack=RECEIVES) for rank in numbers]


@pytest.mark.parametrize("late", [(0, 1, 3), (0,), ()])
@pytest.mark.parametrize(
    ("thread", "words"),
    [
        (SPINS, "spinning in `augment` at augment.py:5"),
        ({"syscall": "clock_nanosleep", "waits": "sleeps"}, "idle, asleep in `augment` at augment.py:5"),
        (READS, "in `augment` at augment.py:5"),
        ({"gil": True, "syscall": "read"}, "holding the GIL in C, called in `augment` at augment.py:5"),
    ],
)
def test_if_all_but_one_wait_at_one_line_it_may_be_for_that_one(
    late: tuple[int, ...], thread: dict[str, Any], words: str
) -> None:
    """Or each of them for a server of data, which that one has got an answer of."""
    others = [one._replace(state="expired") if one.rank in late else one for one in receiving(0, 1, 3)]
    roll = call_roll([*others, member(2, AUGMENTS, stack=thread, since_s=61.0)], 4)
    assert roll.culprits == []
    assert roll.verdict == (
        "nobody is known to wait in a collective, but ranks 0, 1, 3 wait at one line, in `exchange` at "
        f"exchange.py:8; rank 2 is elsewhere, {words}, for 61 s, and may be the one that they wait for; "
        "who is to blame cannot be told"
    )


@pytest.mark.parametrize(
    ("rest", "size"),
    [
        ([member(2, AUGMENTS, stack=SPINS)], None),  # there may be more of them
        ([member(2, AUGMENTS, stack=SPINS)], 5),
        ([member(2)], 4),  # nothing is known of it
        ([member(2, AUGMENTS, stack=SPINS), member(4, LOADER, stack=READS)], 5),
        (receiving(2), 4),
    ],
)
def test_that_it_may_be_for_one_is_said_only_if_all_others_are_known_to_wait(
    rest: list[Member], size: int | None
) -> None:
    roll = call_roll([*receiving(0, 1, 3), *rest], size)
    assert "may be the one" not in roll.verdict
    assert roll.culprits == ([4] if size == 5 and len(rest) == 1 else [])  # which is missing


def test_who_waits_at_the_line_of_most_is_not_to_blame_for_being_late_first() -> None:
    for rest, size in (([member(2, AUGMENTS, stack=SPINS)], 4), (receiving(2), 4), ([], 3)):
        roll = call_roll([*receiving(0, state="expired"), *receiving(1, 3), *rest], size)
        assert roll.culprits == [] if size == 4 else [2]
    few = [member(2, AUGMENTS, stack=SPINS), member(3, LOADER, stack=READS)]
    roll = call_roll([*receiving(0, state="expired"), *receiving(1), *few], 4)
    assert roll.culprits == [0], "a half is not most"


def test_who_is_late_by_itself_is_to_blame_though_others_wait_at_one_line() -> None:
    roll = call_roll([*receiving(0, 1, 3), member(2, LOADER, state="expired", stack=READS)], 4)
    assert roll.culprits == [2]
    assert roll.verdict.startswith("nobody is known to wait in a collective; rank 2 is in `read_shard`")


def test_a_run_of_one() -> None:
    assert call_roll([member(0, LOADER, state="expired", stack=READS)], 1).culprits == [0]
    assert call_roll(waiting(0), 1).culprits == []
    assert call_roll([], None) == Roll([], [], "nothing is known of its members")


def test_of_a_ranks_helpers_whoever_is_in_a_collective_answers_for_it() -> None:
    helper = member(0, LOADER, pid=7)
    roll = call_roll([*waiting(0, 1), helper], 2)
    assert roll.culprits == []
    assert [one.camp for one in roll.members] == [None, 0, 0]


def test_a_ranks_children_do_not_answer_for_it() -> None:
    parent = member(2, LOADER, pid=700, process={"children": [{"pid": 7}]}, state="connected")
    child = member(2, [["/srv/fetch.py", 3, "fetch"]], pid=7)
    roll = call_roll([*waiting(0, 1, 3), child, parent], 4)
    assert "it is in `read_shard`" in roll.verdict


def test_those_without_a_rank_are_told_by_their_pids() -> None:
    roll = call_roll([*waiting(0, 1), member(None, LOADER, pid=77)], None)
    assert roll.culprits == []
    assert "pid 77 never arrived" in roll.verdict


def test_many_are_told_in_spans_and_few_places() -> None:
    others = [member(rank, [["/srv/loader.py", rank, "read"]]) for rank in range(40, 64)]
    roll = call_roll([*waiting(*range(40)), *others], 64)
    assert roll.culprits == list(range(40, 64))
    assert "ranks 0 to 39 wait together" in roll.verdict
    assert "20 more are elsewhere" in roll.verdict
    assert len(roll.verdict) < 600


def test_what_was_kept_without_its_evidence_is_judged_by_what_was_said_then() -> None:
    first = call_roll([*waiting(0, 1, 3), member(2, LOADER)], 4)
    short = [one._replace(evidence={}) for one in first.members]
    assert call_roll(short, 4).culprits == [2]
    assert call_roll(first.members, 4) == first


def test_a_roll_is_read_as_it_was_written_and_anything_is_read() -> None:
    roll = call_roll([*waiting(0, 1, 3), member(2, LOADER)], 4)
    assert Roll.from_json(roll.as_json()) == roll
    assert Roll.from_json(
        {"members": [{"rank": "x", "pid": None}, 7], "culprits": "?", "verdict": 3}
    ) == Roll([Member()], [], "")
