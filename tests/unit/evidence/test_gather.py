"""What the coordinator of the probes adds to stacks from what /proc says, and its words."""

from __future__ import annotations

from typing import Any

import pytest

from aiotimer._linux import procfs
from aiotimer.evidence import proc
from aiotimer.evidence.findings import stack
from aiotimer.evidence.gather import _know_threads, unanswered


def known(tid: int, name: str) -> dict[str, Any]:
    facts = {"state": "S (sleeping)", "wchan": "", "syscall": "futex", "waits": "", "holder": ""}
    return {"tid": tid, "name": name, **facts}


@pytest.mark.parametrize(
    ("kernels", "own", "name"),
    [
        ("loader", "", "loader"),
        ("ThreadPoolExecu", "", "ThreadPoolExecu…"),
        ("ThreadPoolExecu", "ThreadPoolExecutor-0_0", "ThreadPoolExecutor-0_0"),
        ("python", "", ""),
        (procfs.UNSENT, "", procfs.UNSENT),
    ],
    ids=["its own", "cut by the kernel", "known in full", "the program's", "ours"],
)
def test_a_thread_has_the_best_name_that_is_known(kernels: str, own: str, name: str) -> None:
    process = {**proc.nothing(), "threads": [known(7, "python"), known(8, kernels)]}
    found = [{**stack(own), "tid": 8}]
    _know_threads(found, process, 0)
    assert found[0]["thread"] == name
    assert (found[0]["state"], found[0]["syscall"]) == ("S (sleeping)", "futex")


def test_how_many_loops_are_silent_is_said_in_words() -> None:
    assert unanswered(1, 0) == "the event loop did not answer"
    assert unanswered(3, 1) == "2 of 3 event loops did not answer"
