"""At which line a child stands."""

from typing import Any

import pytest

from aiotimer.evidence.children import place_of
from aiotimer.evidence.findings import Frame, stack

STD = "/usr/lib/python3.11"
STEP: Frame = ["/app/step.py", 7, "step"]
LOCK: Frame = [f"{STD}/threading.py", 320, "wait"]
ROLLOUT: Frame = ["/app/train.py", 42, "rollout"]
SHARD: Frame = ["/app/data.py", 15, "read_shard"]


def main(*frames: Frame) -> dict[str, Any]:
    return {**stack("", list(frames)), "main": True}


def test_the_place_of_a_process() -> None:
    found = {"line": "in step at step.py:7", "stack": [STEP, LOCK], "role": ""}
    assert place_of([main(STEP, LOCK)]) == found
    assert place_of([]) == {"line": "", "stack": [], "role": ""}


@pytest.mark.parametrize(
    ("file", "role"),
    [
        ("torch/utils/data/_utils/worker.py", "DataLoader worker"),
        ("multiprocessing/pool.py", "pool worker"),
        ("concurrent/futures/process.py", "pool worker"),
    ],
)
def test_the_frames_of_a_childs_parent_are_not_its_own(file: str, role: str) -> None:
    """A forked child has them, below where it began."""
    bootstrap, loop = [f"{STD}/multiprocessing/process.py", 314, "_bootstrap"], [f"{STD}/{file}", 9, "loop"]
    idle = place_of([main(ROLLOUT, bootstrap, loop)])
    assert (idle["line"], idle["role"]) == (f"in loop at {file.rpartition('/')[2]}:9", role)
    busy = place_of([main(ROLLOUT, bootstrap, loop, SHARD)])
    assert (busy["line"], busy["stack"]) == ("in read_shard at data.py:15", [bootstrap, loop, SHARD])
    assert busy["role"] == role
