"""Reading what faulthandler, py-spy and /proc write, and writing it for people."""

import json
from typing import Any

import pytest

from aiotimer.evidence import proc, pyspy, stacks
from aiotimer.evidence.findings import stack
from aiotimer.evidence.pyspy import HelperFailed
from aiotimer.evidence.texts import stacks_text, tasks_text

WRITTEN = """\
Thread 0x00007faa116ff6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/app/a "b".py", line 4 in bg

Thread 0x00007faa116ff6c1 [a name] (most recent call first):
  <no Python frame>

Current thread 0x00007faa12bf3b80 (most recent call first):
  Garbage-collecting
  File ???, line ??? in ???
  File "/app/train.py", line 9 in <module>

Extension modules: numpy.core (total: 1)
  File "/not/a/frame.py", line 1 in anything
"""


def test_what_faulthandler_writes() -> None:
    one, two, three = stacks.parse(WRITTEN)
    assert one["frames"] == [['/app/a "b".py', 4, "bg"], ["/usr/lib/python3.11/threading.py", 327, "wait"]]
    assert (one["ident"], one["thread"], one["current"], one["main"]) == (0x7FAA116FF6C0, "", False, False)
    assert (two["thread"], two["frames"]) == ("a name", [])
    assert three["frames"] == [["/app/train.py", 9, "<module>"], ["?", 0, "???"]]
    assert (three["thread"], three["current"], three["main"]) == ("MainThread", True, True)


def test_the_main_thread_is_not_called_as_the_kernel_calls_it() -> None:
    """From CPython 3.14 on faulthandler writes the kernel's names: for the main thread, the program's."""
    written = WRITTEN.replace("80 (most", "80 [python] (most")
    assert [one["thread"] for one in stacks.parse(written)] == ["", "a name", "MainThread"]


def test_of_many_threads_the_last_is_not_the_main_one() -> None:
    found = stacks.parse("Thread 0x1 (most recent call first):\n" * 100)
    assert len(found) == 100
    assert not any(one["main"] for one in found)


def test_what_is_written_without_end_is_cut() -> None:
    header, frame = (
        "Thread 0x1 (most recent call first):\n",
        f'  File "{"f" * 5000}", line 1 in {"g" * 5000}\n',
    )
    found = stacks.parse(header + frame * 1000 + header * 1000)
    assert len(found) == stacks.MAX_STACKS
    assert len(found[0]["frames"]) == stacks.MAX_FRAMES
    assert found[0]["frames"][0] == ["f" * stacks.MAX_NAME, 1, "g" * stacks.MAX_NAME]


@pytest.mark.parametrize(
    "text", ["", "\n\n", '  File "x", line 1 in y', "Thread 0xg (most recent call first):"]
)
def test_what_is_no_dump_gives_nothing(text: str) -> None:
    assert stacks.parse(text) == []


# --- py-spy


def spied(name: str, line: int = 1, module: str | None = None) -> dict[str, Any]:
    return {"name": name, "filename": "/app/x.py", "line": line, "module": module}


def test_what_pyspy_writes() -> None:
    frames = [spied("read", 0, "/lib/libc.so.6"), spied("os_read", 9, "/lib/libpython.so"), spied("inner", 3)]
    frames += [spied("task_step", 0, "/lib/_asyncio.so"), spied("outer", 5)]
    trace = {"os_thread_id": 7, "thread_id": 77, "thread_name": None, "owns_gil": True, "frames": frames}
    other = {"os_thread_id": 8, "thread_id": 88, "thread_name": "w", "owns_gil": False, "frames": []}
    one, two = pyspy.parse(json.dumps([trace, other]).encode(), 7)
    assert one["native"] == ["os_read (libpython.so)", "read (libc.so.6)"]
    assert one["frames"] == [["/app/x.py", 5, "outer"], ["/app/x.py", 3, "inner"]]
    assert (one["thread"], one["main"], one["gil"], one["tid"], one["ident"]) == (
        "MainThread",
        True,
        True,
        7,
        77,
    )
    assert (two["thread"], two["main"], two["gil"]) == ("w", False, False)


INNER = [spied("outer", 3), spied("<module>", 9)]
LIBC, CTYPES, ASYNCIO = "/lib/libc.so.6", "/lib/_ctypes.so", "/lib/_asyncio.so"
STARTS = [spied("0x7fb800151fba", 0, LIBC)]
STEPS = [spied("0x7fb7ffd2d081", 0, ASYNCIO), spied("0x7fb7ffd2cf16", 0, ASYNCIO)]
CALLED = [spied("0x7fb800150a02", 0, LIBC), spied("sleep", 0, LIBC), spied("0x7f1797825585", 0, CTYPES)]
NAMES = ["0x7f1797825585 (_ctypes.so)", "sleep (libc.so.6)", "0x7fb800150a02 (libc.so.6)"]


@pytest.mark.parametrize(
    ("frames", "native"),
    [
        (STARTS + INNER, []),
        (STEPS + STARTS + INNER, []),
        (CALLED + STEPS + STARTS + INNER, NAMES),
        (CALLED + STARTS + STARTS + INNER, NAMES),
        (CALLED + INNER, NAMES),
        (CALLED[:2] + INNER + STARTS, NAMES[1:]),
    ],
    ids=["Python", "Python in a task", "C in a task", "C in a thread", "C, cut off", "with symbols"],
)
def test_an_interpreter_without_symbols(frames: list[dict[str, Any]], native: list[str]) -> None:
    """py-spy does not see where native frames run Python: all come first, down to the thread's start."""
    trace = {"os_thread_id": 7, "thread_id": 77, "thread_name": None, "owns_gil": True, "frames": frames}
    [one] = pyspy.parse(json.dumps([trace]).encode(), 7)
    assert one["native"] == native
    assert one["frames"] == [["/app/x.py", 9, "<module>"], ["/app/x.py", 3, "outer"]]


@pytest.mark.parametrize(
    "output", [b"", b"null", b"{}", b"[1]", b"[{}]", b'[{"frames": 1}]', b"\xff", b"[" * 10**6]
)
def test_what_is_no_dump_of_pyspy(output: bytes) -> None:
    with pytest.raises(HelperFailed, match="no dump"):
        pyspy.parse(output, 7)


# --- /proc


@pytest.mark.parametrize(
    ("text", "machine", "words"),
    [
        ("202 0x7f 0x189", "x86_64", "futex"),
        ("98 0x7f 0x189", "aarch64", "futex"),
        ("230 0x0", "x86_64", "clock_nanosleep"),
        ("9999 0x0", "x86_64", "system call 9999"),
        ("0 0x0", "sparc", "system call 0"),
        ("-1 0x7ffe 0x7f", "x86_64", "no system call"),
        ("running", "x86_64", "running"),
        ("", "x86_64", ""),
        ("²", "x86_64", "²"),
    ],
)
def test_the_name_of_a_system_call(text: str, machine: str, words: str) -> None:
    assert proc.syscall_name(text, machine) == words


# --- for people


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
    assert tasks_text([one, two], "more") == (
        "Task Task-1 and 2 more like it (of the timer's block), a loop in thread MainThread\n"
        '  File "/app/x.py", line 3, in f\n'
        "  waits for a queue\n"
        "\n"
        "Task Task-2, a loop in thread MainThread\n"
        "  runs, or is about to\n"
        "\n"
        "more"
    )
    assert tasks_text([], "") == ""
