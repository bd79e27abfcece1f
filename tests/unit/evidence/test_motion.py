"""Comparing looks: who stands, who runs, and between which lines."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from aiotimer.evidence import motion
from aiotimer.evidence.findings import Frame, stack
from tests.fakes.worker import bystander

MODULE: Frame = ["/app/x.py", 30, "<module>"]


def solve(line: int, *inner: Frame) -> list[Frame]:
    return [MODULE, ["/app/x.py", line, "solve"], *inner]


def look(*stacks: list[Frame], gil: bool | None = False) -> list[dict[str, Any]]:
    return [{**stack("", frames), "tid": tid, "gil": gil} for tid, frames in enumerate(stacks, 1)]


@pytest.mark.parametrize(
    ("stacks", "moves", "lines"),
    [
        ([solve(8), solve(8)], -1, []),
        ([solve(8), solve(12), solve(10)], 1, [8, 10, 12]),
        ([solve(8), solve(8, ["/lib/x.py", 3, "norm"])], 2, []),
        ([solve(8, ["/lib/x.py", 3, "norm"]), solve(8)], 2, []),
        ([solve(8), [MODULE, ["/app/x.py", 3, "other"]]], 1, []),
        ([[], []], -1, []),
        ([[], solve(8)], 0, []),
    ],
)
def test_where_a_thread_moves(stacks: list[list[Frame]], moves: int, lines: list[int]) -> None:
    [found] = motion.compare([look(frames) for frames in stacks])
    assert (found["moves"], found["lines"]) == (moves, lines)
    assert found["frames"] == stacks[-1]
    assert motion.stands(found) is (moves == -1)


def test_who_was_seen_once_is_not_known_to_stand() -> None:
    [alone] = motion.compare([look(solve(8))])
    assert alone["moves"] is None
    _old, new = motion.compare([look(solve(8)), look(solve(8), solve(9))])
    assert new["moves"] is None
    assert not motion.stands(new)


def test_who_holds_the_gil_does_so_at_every_look() -> None:
    for gils, holds in (([True, True], True), ([True, False], False), ([False, True], False)):
        [found] = motion.compare([look(solve(8), gil=gil) for gil in gils])
        assert found["gil"] is holds
    [found] = motion.compare([look(solve(8), gil=None)] * 2)
    assert found["gil"] is None


@pytest.mark.parametrize(
    ("facts", "holds"),
    [
        ({"gil": True, "moves": -1, "ran": 0.0}, True),
        ({"gil": True, "moves": -1, "ran": 0.5}, False),
        ({"gil": True, "moves": -1, "ran": 0.5, "native": ["x (y.so)"]}, True),
        ({"gil": True, "moves": None, "native": ["x (y.so)"]}, True),
        ({"gil": True, "moves": 1, "ran": 0.5, "native": ["x (y.so)"]}, False),
        ({"gil": False, "moves": -1, "ran": 0.0}, False),
        ({"gil": None, "moves": -1, "ran": 0.0}, False),
        ({"gil": True, "moves": -1, "ran": None}, False),
    ],
)
def test_who_holds_the_gil_in_native_code(facts: dict[str, Any], holds: bool) -> None:
    assert motion.holds_gil_in_c({**stack(), **facts}) is holds


@pytest.mark.parametrize(
    ("before", "after", "ran"),
    [
        ((5, True), (5, True), 0.0),
        ((5, True), (5, False), None),  # it waits for a processor, or runs and has not been counted yet
        ((5, False), (5, True), None),
        ((5, True), (2_000_000_005, False), 2.0),
        ((5, False), (2_000_000_005, True), 2.0),
        (None, (5, True), None),
    ],
)
def test_for_how_long_a_thread_has_run(
    before: tuple[int, bool] | None, after: tuple[int, bool], ran: float | None
) -> None:
    former = None if before is None else motion.Sample(*before)
    assert motion.Sample(*after).ran_since(former) == ran


def test_of_threads_that_are_not_there_it_is_not_known_whether_they_ran() -> None:
    looks = [look(solve(8)), look(solve(9))]
    [found] = motion.watch(lambda: looks.pop(0), 2**30, lambda _seconds: None)
    assert (found["moves"], found["lines"]) == (
        1,
        [8, 9],
    )


def test_who_runs_is_looked_at_until_it_is_known_between_which_lines() -> None:
    lines = iter([8, 9, 12, 10, 99])
    tid = threading.get_native_id()

    def seen() -> list[dict[str, Any]]:
        return [{**stack("", solve(next(lines))), "tid": tid}]

    [found] = motion.watch(seen, os.getpid(), lambda _seconds: None)
    assert (found["moves"], found["lines"]) == (1, [8, 9, 10, 12])


@pytest.mark.parametrize(
    ("facts", "runs"),
    [
        ({"ran": 0.5, "moves": -1}, True),
        ({"ran": 0.01, "moves": 1}, False),
        ({"ran": 0.01, "moves": 1, "awake": True}, True),
        ({"ran": None, "moves": 1, "awake": True}, True),
        ({"ran": None, "moves": -1, "awake": True}, False),
        ({"ran": None, "moves": None, "awake": True}, False),
    ],
)
def test_who_runs_though_it_has_had_no_processor(facts: dict[str, Any], runs: bool) -> None:
    assert motion.runs({**stack(), **facts}) is runs


def test_who_is_awake_at_both_looks_is_told_from_who_sleeps() -> None:
    done = threading.Event()
    sleeper = threading.Thread(target=done.wait)
    sleeper.start()
    tids = {"runs": threading.get_native_id(), "sleeps": sleeper.native_id}
    try:
        while not motion.sample(os.getpid())[sleeper.native_id or 0].asleep:
            pass

        def seen() -> list[dict[str, Any]]:
            return [{**stack(name, solve(8)), "tid": tid} for name, tid in tids.items()]

        found = motion.watch(seen, os.getpid(), lambda _seconds: None)
    finally:
        done.set()
        sleeper.join()
    assert {one["thread"]: one["awake"] for one in found} == {"runs": True, "sleeps": False}


def test_of_threads_that_sleep_there_is_no_second_look() -> None:
    with bystander() as pid:
        while not all(one.asleep for one in motion.sample(pid).values()):
            pass
        looks = [[{**stack("", solve(8)), "tid": pid}]]
        [found] = motion.watch(lambda: looks.pop(0), pid, lambda _seconds: None)
        assert (found["moves"], found["ran"]) == (-1, 0.0)


def test_a_later_look_that_fails_leaves_what_was_seen() -> None:
    looks = [look(solve(8))]
    [found] = motion.watch(lambda: looks.pop(0), os.getpid(), lambda _seconds: None)
    assert (found["moves"], found["frames"]) == (None, solve(8))


def test_a_first_look_that_fails_is_raised() -> None:
    with pytest.raises(IndexError):
        motion.watch(lambda: list[list[dict[str, Any]]]().pop(0), os.getpid(), lambda _seconds: None)
