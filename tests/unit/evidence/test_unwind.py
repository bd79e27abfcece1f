"""The interpreter's own unwinder as a helper: it prints what py-spy prints, whichever version it is of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aiotimer.evidence import pyspy, unwind

FRAME_OF_3_14 = SimpleNamespace(filename="/app/x.py", lineno=3, funcname="f")
FRAME_OF_3_15 = SimpleNamespace(filename="/app/x.py", location=SimpleNamespace(lineno=3), funcname="f")
NATIVE_OF_3_15 = SimpleNamespace(filename="~", location=None, funcname="<native>")


def thread(tid: int, *frames: object) -> SimpleNamespace:
    return SimpleNamespace(thread_id=tid, frame_info=list(frames))


class Unwinder:
    """An interpreter's unwinder: what it is asked for is counted, and what it gives comes from a script.

    Args:
        holders: who holds the GIL at each look, or an error.
        threads: what there is at each look, or an error.
    """

    def __init__(self, holders: list[Any], threads: list[Any]) -> None:
        self.left = {"only_active_thread": holders, "all_threads": threads}

    def __call__(self, pid: int, **which: bool) -> SimpleNamespace:
        assert pid == 7
        ((name, wanted),) = which.items()
        assert wanted

        def get_stack_trace() -> Any:
            found = self.left[name].pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        return SimpleNamespace(get_stack_trace=get_stack_trace)


def stacks_of(unwinder: Unwinder) -> Iterator[tuple[int, bool, list[tuple[str, int, str]]]]:
    for trace in unwind.stacks_of(unwinder, 7, lambda _seconds: None):
        frames = [(frame["filename"], frame["line"], frame["name"]) for frame in trace["frames"]]
        yield trace["os_thread_id"], trace["owns_gil"], frames


def test_the_threads_of_3_14() -> None:
    unwinder = Unwinder([[]], [[thread(8, FRAME_OF_3_14), thread(7)]])
    assert list(stacks_of(unwinder)) == [(8, False, [("/app/x.py", 3, "f")]), (7, False, [])]


def test_the_threads_of_all_interpreters_of_3_15() -> None:
    first = SimpleNamespace(interpreter_id=0, threads=[thread(8, NATIVE_OF_3_15, FRAME_OF_3_15)])
    second = SimpleNamespace(interpreter_id=1, threads=[thread(7)])
    frames = [("~", 0, "<native>"), ("/app/x.py", 3, "f")]
    assert list(stacks_of(Unwinder([[]], [[first, second]]))) == [(8, False, frames), (7, False, [])]


def test_it_is_read_as_py_spy_is() -> None:
    unwinder = Unwinder([[thread(7)]] * 4, [[thread(7, FRAME_OF_3_14, FRAME_OF_3_14)]])
    (one,) = pyspy.parse(json.dumps(unwind.stacks_of(unwinder, 7, lambda _seconds: None)).encode(), 7)
    assert (one["tid"], one["main"], one["thread"], one["gil"]) == (7, True, "MainThread", True)
    assert one["frames"] == [["/app/x.py", 3, "f"]] * 2


@pytest.mark.parametrize(
    ("holders", "holds"),
    [
        ([7, 7, 7, 7], True),
        ([7, 7, 7, 8], False),
        ([7, 8], False),
        ([7, None], False),
        ([None], False),
        ([8, 8, 8, 8], False),
    ],
)
def test_who_is_seen_with_the_gil_at_every_look_holds_it(holders: list[int | None], holds: bool) -> None:
    looks: list[Any] = [[] if tid is None else [thread(tid)] for tid in holders]
    unwinder = Unwinder(looks, [[thread(7)]])
    assert list(stacks_of(unwinder)) == [(7, holds, [])]
    assert unwinder.left["only_active_thread"] == []


def test_a_look_that_fails_is_taken_again() -> None:
    moved = [
        RuntimeError("it has moved"),
        OSError("and its memory too"),
        UnicodeDecodeError("u", b"", 0, 0, ""),
    ]
    unwinder = Unwinder([*moved, []], [*moved, [thread(7)]])
    assert list(stacks_of(unwinder)) == [(7, False, [])]


def test_what_never_stands_still_cannot_be_read() -> None:
    looks: list[Any] = [RuntimeError("it has moved")] * 100
    with pytest.raises(RuntimeError, match="moved"):
        unwind.stacks_of(Unwinder(looks, []), 7)
    assert len(looks) == 80


def test_what_is_not_ours_to_read_is_not_tried_again() -> None:
    tried = []

    def refuse(pid: int, **_: bool) -> None:
        tried.append(pid)
        raise PermissionError

    with pytest.raises(PermissionError):
        unwind.stacks_of(refuse, 7)
    assert tried == [7]


def test_it_is_there_from_3_14_on() -> None:
    command = pyspy.unwind_command(7)
    wanted = [sys.executable, "-I", "-S", unwind.__file__, "7"] if sys.version_info >= (3, 14) else None
    assert command == wanted
