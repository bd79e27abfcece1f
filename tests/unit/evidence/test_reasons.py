"""What else is known that may be why a wait does not end."""

from collections.abc import Sequence
from typing import Any

import pytest

from aiotimer.evidence import reasons


def child(pid: int, state: str = "S (sleeping)", **facts: Any) -> dict[str, Any]:
    nothing = {"command": "", "exit": "", "started": 0.0, "line": "", "role": "", "stack": []}
    return {"pid": pid, "name": "python", "state": state, **nothing, **facts}


LOADER = child(7, line="in read_shard at data.py:15")
DEAD = child(8, "Z (zombie)", exit="exit 9")


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (child(7), "child 7 (python, sleeping)"),
        (child(7, command="sleep 1000"), "child 7 (sleep 1000, sleeping)"),
        (child(7, command="python x.py", role="pool worker"), "child 7 (pool worker, sleeping)"),
        (child(7, command="x" * 100), f"child 7 ({'x' * 57}..., sleeping)"),
        (DEAD, "child 8 (python, dead: zombie, exit 9)"),
        (child(8, "Z (zombie)"), "child 8 (python, dead: zombie)"),
        ({"pid": 9, "name": "b", "state": "S"}, "child 9 (b)"),
        ({"pid": 9}, "child 9"),
    ],
)
def test_a_child_in_words(one: dict[str, Any], words: str) -> None:
    assert reasons.child_in_words(one) == words


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit 0"), (3 << 8, "exit 3"), (15, "SIGTERM"), (0x8B, "SIGSEGV"), (63, "signal 63"), (None, "")],
)
def test_how_a_process_ended(status: int | None, words: str) -> None:
    assert reasons.status_in_words(status) == words


@pytest.mark.parametrize(
    ("grace", "remaining", "limit", "words"),
    [
        (0.0, -1.0, 1.0, ""),
        (5.0, 5.5, 15.0, ""),
        (5.0, 4.5, 15.0, "not cancelled after 10 s: its loop has not got to that"),
        (5.0, -0.1, None, "not cancelled at its soft limit: its loop has not got to that"),
        (-5.0, -0.1, 15.0, "cancelled after 10 s, and did not end"),
        (-0.7, 0.1, 1.0, "cancelled after 0.3 s, and did not end"),
        (-5.0, -0.1, None, "cancelled at its soft limit, and did not end"),
    ],
)
def test_what_became_of_a_soft_limit(grace: float, remaining: float, limit: float | None, words: str) -> None:
    assert reasons.of_grace(grace, remaining, limit) == words


# --- children


def of_children(said: str, syscall: str, *children: dict[str, Any]) -> str:
    return reasons.of_children(said, syscall, children, [one for one in children if one["line"]])


def test_what_children_do() -> None:
    line = "; child 7 (python, sleeping): in read_shard at data.py:15"
    dead = "; child 8 (python, dead: zombie, exit 9)"
    assert of_children("blocked", "read", LOADER, child(9)) == line
    assert of_children("blocked", "wait4", LOADER, DEAD) == dead + line
    well = child(6, "Z (zombie)", exit="exit 0")
    assert of_children("blocked", "futex", well, DEAD, LOADER) == (
        dead + "; child 6 (python, dead: zombie, exit 0); and 1 more"
    )
    assert of_children("blocked", "futex", child(9)) == of_children("blocked", "futex") == ""


def test_what_the_wait_has_said_of_a_child_is_not_said_again() -> None:
    waits = "waits for child 7 (python data.py, sleeping) at loader.py:3 in <module>"
    assert of_children(waits, "wait4", LOADER) == "; child 7: in read_shard at data.py:15"
    line, dead = "; child 7: in read_shard at data.py:15", "; child 8 (python, dead: zombie, exit 9)"
    assert of_children(waits, "wait4", LOADER, DEAD, DEAD) == f"{line}{dead}; and 1 more"
    assert of_children("waits for child 8 (python, dead: zombie, exit 9)", "wait4", DEAD) == ""


def test_who_cannot_wait_for_a_child_is_told_of_none() -> None:
    assert of_children("waits for a socket (recvfrom)", "recvfrom", LOADER, DEAD) == ""
    assert of_children("sleeps", "clock_nanosleep", DEAD) == of_children("running", "running", DEAD) == ""
    asks_again = "waits for a child to end at train.py:3 in evaluate"
    assert of_children(asks_again, "clock_nanosleep", DEAD) == "; child 8 (python, dead: zombie, exit 9)"


# --- other threads, and other processes of a pool


def of_wait(
    waits: str, *children: dict[str, Any], others: Sequence[str] = (), alone: bool = False
) -> list[str]:
    return list(reasons.of_wait(waits, children, others, alone=alone))


def test_the_other_threads() -> None:
    assert of_wait("waits for a queue", alone=True) == ["no other thread is alive"]
    assert of_wait("waits for a queue", others=["x.py:1 in f"]) == ["other threads: x.py:1 in f"]
    assert of_wait("waits for a queue") == []  # there are some, and what they do is not known
    assert of_wait("waits for a socket (read)", others=["x.py:1 in f"], alone=True) == []
    assert of_wait("waits for a thread to end", others=["x.py:1 in f", "y.py:2 in g", "x.py:1 in f"]) == [
        "other threads: x.py:1 in f (2 threads) and y.py:2 in g"
    ]
    assert of_wait("waits for a lock that processes share", alone=True) == [], "another process may have it"


def test_a_process_in_the_place_of_another() -> None:
    pool = "waits for a result of a process pool"
    at = [child(number, started=50.0 + started) for number, started in ((7, 0), (8, 0.02), (9, 1.52))]
    assert of_wait(pool, *at) == ["child 9 was started 1.5 s after the others"]
    assert of_wait(pool, *at, child(10, started=51.53)) == [
        "child 9 and child 10 were started 1.5 s after the others"
    ]
    assert of_wait(pool, *at[:2]) == of_wait(pool, at[0]) == of_wait(pool, child(1), child(2)) == []
    assert of_wait("waits for a queue", *at) == []
