"""Reading what faulthandler writes."""

import pytest

from aiotimer.evidence import stacks

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


def test_a_thread_that_writes_its_own_stack() -> None:
    (one,) = stacks.parse('Stack (most recent call first):\n  File "/app/train.py", line 9 in <module>\n')
    assert one["frames"] == [["/app/train.py", 9, "<module>"]]
    assert (one["ident"], one["thread"], one["current"]) == (0, "MainThread", True)


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
