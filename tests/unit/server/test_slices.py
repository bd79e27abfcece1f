"""A work queue, on a loop and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from aiotimer.server import slices
from aiotimer.server.slices import SLICE, TURN, WorkQueue
from tests.fakes.clock import Clock


class Turns:
    """A loop that calls back when it is told.

    Attributes:
        soon: what it was asked to call.
    """

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        """Call what is there now."""
        calls, self.soon = self.soon, []
        for call in calls:
            call()


class Bench:
    """A queue whose work takes as long as it is told to."""

    def __init__(self) -> None:
        self.clock = Clock(100.0)
        self.loop = Turns()
        loop: Any = self.loop
        self.queue = WorkQueue(loop, self.clock)
        self.done: list[object] = []

    def work(self, name: object, takes: float = 0.0) -> None:
        self.done.append(name)
        self.clock.now += takes


def test_nothing_is_done_at_once_and_all_in_order() -> None:
    bench = Bench()
    for number in range(5):
        bench.queue.put(bench.work, number)
    assert bench.done == []
    assert len(bench.loop.soon) == 1
    bench.loop.turn()
    assert bench.done == [0, 1, 2, 3, 4]
    assert bench.loop.soon == [], "nothing waits"


def test_a_slice_ends_and_others_have_a_turn() -> None:
    bench = Bench()
    for number in range(4):
        bench.queue.put(bench.work, number, 0.6 * SLICE)
    bench.loop.turn()
    assert bench.done == [0, 1]
    bench.loop.turn()
    assert bench.done == [0, 1, 2, 3]


def test_work_may_bring_more_work_about() -> None:
    bench = Bench()
    bench.queue.put(lambda: bench.queue.put(bench.work, "second"))
    bench.queue.put(bench.work, "first", SLICE)
    bench.loop.turn()
    assert bench.done == ["first"]
    bench.queue.flush()
    assert bench.done == ["first", "second"]
    bench.loop.turn()
    assert bench.done == ["first", "second"]


def test_an_error_is_no_others(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.queue.put(int, "no number")
    bench.queue.put(bench.work, "next")
    bench.loop.turn()
    assert bench.done == ["next"]
    assert "no number" in caplog.text


def test_who_puts_too_much_has_to_help() -> None:
    bench = Bench()
    for number in range(slices.MOST + 3):
        bench.queue.put(bench.work, number)
    assert bench.done == [0, 1, 2]


def test_what_is_urgent_is_done_at_once_while_there_is_time() -> None:
    bench = Bench()
    for number in range(3):
        bench.queue.do_first(partial(bench.work, number, 0.4 * TURN))
    assert bench.done == [0, 1, 2]
    bench.queue.do_first(lambda: bench.work(3))
    assert bench.done == [0, 1, 2], "the loop has a turn first"
    bench.loop.turn()
    assert bench.done == [0, 1, 2, 3]
    bench.queue.do_first(lambda: bench.work(4))
    assert bench.done == [0, 1, 2, 3, 4], "a new turn of the loop"


def test_all_that_is_urgent_comes_before_any_work_and_in_order() -> None:
    bench = Bench()
    bench.queue.put(bench.work, "described")
    for number in range(6):
        bench.queue.do_first(partial(bench.work, number, 0.6 * TURN))
    assert bench.done == [0, 1]
    bench.loop.turn()
    assert bench.done == [0, 1, 2, 3]
    bench.loop.turn()
    bench.loop.turn()
    assert bench.done == [0, 1, 2, 3, 4, 5, "described"]
    bench.loop.turn()
    assert bench.loop.soon == []


def test_an_error_of_what_is_urgent_is_no_others(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.queue.do_first(partial(bench.work, "first", TURN))
    bench.queue.do_first(partial(int, "no number"))
    bench.queue.do_first(partial(bench.work, "last"))
    bench.loop.turn()
    assert bench.done == ["first", "last"]
    assert "no number" in caplog.text
