"""Stacks and tasks, written for people."""

from aiotimer.evidence.findings import stack
from aiotimer.evidence.texts import stacks_text, tasks_text


def test_stacks_for_people() -> None:
    one = stack("worker\n\x1b[2J", [["/app/x.py", 3, "f"], ["/app/y.py", 4, "g"]], ident=255)
    two = {**stack("MainThread"), "tid": 7, "gil": True, "state": "S (sleeping)", "syscall": "futex"}
    two["native"] = ["sleep (libc.so.6)"]
    assert stacks_text([one, two], "raw") == (
        "Thread worker\\n\\x1b[2J (0xff)\n"
        '  File "/app/x.py", line 3, in f\n'
        '  File "/app/y.py", line 4, in g\n'
        "\n"
        "Thread MainThread (tid 7): S (sleeping), holds the GIL, in futex\n"
        "  sleep (libc.so.6)\n"
    )
    assert stacks_text([], "raw\x1b\n") == "raw\\x1b\n"


def test_tasks_for_people() -> None:
    one = {"loop": "a loop", "thread": "MainThread", "name": "Task-1", "count": 3, "own": True}
    one.update(frames=[["/app/x.py", 3, "f"]], waits_for="a queue")
    two = {**one, "name": "Task-2", "count": 1, "own": False, "frames": [], "waits_for": ""}
    assert tasks_text([one, two]) == (
        "Task Task-1 and 2 more like it (of the timer's block), a loop in thread MainThread\n"
        '  File "/app/x.py", line 3, in f\n'
        "  waits for a queue\n"
        "\n"
        "Task Task-2, a loop in thread MainThread\n"
        "  runs, or is about to\n"
    )
    left_out = "and 7 tasks more: there was no room, or no time, for them\n"
    assert tasks_text([two], 7).endswith(f"\n  runs, or is about to\n\n{left_out}")
    assert tasks_text([]) == ""
