"""Reading what py-spy writes."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aiotimer.evidence import pyspy
from aiotimer.evidence.findings import Frame, stack
from aiotimer.evidence.pyspy import HelperFailed


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


THREAD_OF_3_14: list[Frame] = [["/lib/threading.py", 1, "Thread.run"], ["/app/x.py", 3, "f"]]
THREAD_OF_3_15: list[Frame] = [["/lib/threading.py", 1, "Thread._bootstrap"], *THREAD_OF_3_14]
PROGRAM: list[Frame] = [["/app/x.py", 9, "<module>"], ["/app/x.py", 3, "f"]]
CALLED_BY_C: list[Frame] = [["/app/x.py", 3, "f"]]


@pytest.mark.parametrize(
    ("frames", "gil", "more"),
    [
        (PROGRAM, False, False),
        (THREAD_OF_3_14, False, False),
        (THREAD_OF_3_15, False, False),
        (PROGRAM, True, True),
        (CALLED_BY_C, False, True),
        ([], False, True),
    ],
)
def test_what_the_unwinder_does_not_show(frames: list[Frame], gil: bool, more: bool) -> None:
    """Native frames of a thread that holds the GIL; and in 3.14, what has called the C that called Python."""
    assert pyspy.shows_more([stack("", PROGRAM), {**stack("", frames), "gil": gil}]) is more


def test_of_nothing_py_spy_shows_more() -> None:
    assert pyspy.shows_more([])


def looks_of(directory: Path, looks: Sequence[list[dict[str, Any]]], *, gil: bool = True) -> str:
    """Write a helper that prints one dump after the other, and fails when there are no more.

    It notes its last argument in a file.
    """
    for number, frames in enumerate(looks):
        trace = {"os_thread_id": 7, "thread_id": 77, "thread_name": None, "owns_gil": gil, "frames": frames}
        (directory / f"look{number}").write_text(json.dumps([trace]))
    program = directory / "helper"
    program.write_text(
        f"""#!/bin/sh
        cd {directory}
        for last; do :; done
        echo " $last" >>asked
        for look in look*; do mv $look seen.$look && exec cat seen.$look; done
        """
    )
    program.chmod(0o755)
    return str(program)


LOOP = [spied("spin", 3), spied("<module>", 9)]
INSIDE = [spied("__tls_get_addr", 0, "/lib/ld-linux.so"), *LOOP]


FURTHER = [spied("spin", 4), spied("<module>", 9)]


def looked_at(program: str) -> list[dict[str, Any]]:
    own = os.pidfd_open(os.getpid())
    try:
        return pyspy.collect(program, os.getpid(), own, 60, threading.Event())
    finally:
        os.close(own)


@pytest.mark.parametrize(
    ("looks", "native", "left"),
    [
        ([LOOP, FURTHER, LOOP, LOOP, INSIDE], False, 1),
        ([LOOP, LOOP, LOOP, INSIDE], False, 1),
        ([LOOP, LOOP, INSIDE, LOOP, INSIDE], False, 1),
        ([LOOP, LOOP, INSIDE, INSIDE, INSIDE, LOOP], False, 0),
        ([LOOP, LOOP] + [INSIDE] * 6, True, 2),
        ([LOOP, LOOP, INSIDE, INSIDE], True, 0),
        ([LOOP, LOOP], False, 0),
    ],
    ids=["it moves", "it is in Python", "at the 2nd look", "at the last", "in C", "no more", "none"],
)
def test_native_stacks_are_asked_for_if_a_thread_stands_with_the_gil_until_it_is_in_python(
    tmp_path: Path, looks: list[list[dict[str, Any]]], native: bool, left: int
) -> None:
    [one] = looked_at(looks_of(tmp_path, looks))
    assert bool(one["native"]) is native
    assert len(list(tmp_path.glob("look*"))) == left
    assert one["frames"] == [["/app/x.py", 9, "<module>"], ["/app/x.py", 3, "spin"]]
    moves = FURTHER in looks
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:2] == ["--json"] * 2
    assert set(asked[2:]) <= {"--json" if moves else "--native"}
    assert (one["moves"], one["lines"]) == ((1, [3, 4]) if moves else (-1, []))


def test_who_lets_go_of_the_gil_is_not_asked_for_native_stacks(tmp_path: Path) -> None:
    looked_at(looks_of(tmp_path, [LOOP, LOOP, INSIDE], gil=False))
    assert (tmp_path / "asked").read_text().split() == ["--json"] * 2


def test_who_was_seen_standing_by_another_helper_is_asked_for_native_stacks_at_once(tmp_path: Path) -> None:
    [seen] = pyspy.parse(json.dumps([TRACE]).encode(), 7)
    seen.update(gil=True, moves=-1, ran=0.0, frames=[["/app/x.py", 3, "qualified.spin"]])
    own = os.pidfd_open(os.getpid())
    try:
        program = looks_of(tmp_path, [INSIDE, INSIDE])
        [one] = pyspy.collect(program, os.getpid(), own, 60, threading.Event(), [seen])
    finally:
        os.close(own)
    assert (tmp_path / "asked").read_text().split() == ["--native"]  # who does not run is in no loop
    assert (one["moves"], one["ran"], bool(one["native"])) == (-1, 0.0, True)


TRACE = {"os_thread_id": 7, "thread_id": 77, "thread_name": None, "owns_gil": True, "frames": LOOP}


@pytest.mark.parametrize(
    "frame", [{"name": "0x7f2a10", "filename": "?", "line": 0}, {"name": "f", "filename": "?", "line": 0}]
)
def test_what_a_compiler_made_is_no_frame_of_python(frame: dict[str, Any]) -> None:
    trace = {**TRACE, "frames": [{**frame, "module": None}, *LOOP]}
    [one] = pyspy.parse(json.dumps([trace]).encode(), 7)
    assert one["frames"] == [["/app/x.py", 9, "<module>"], ["/app/x.py", 3, "spin"]]
    assert one["native"] == [f"{frame['name']} (no file)"]
