"""A work queue, on a loop and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from aiotimer.server import slices
from aiotimer.server.slices import SLICE, TOGETHER, TURN, Steps, WorkQueue, finish
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
        self.done: list[Any] = []

    def work(self, name: object, takes: float = 0.0) -> None:
        self.done.append(name)
        self.clock.now += takes

    def steps(self, name: object, count: int, takes: float = SLICE) -> Steps[int]:
        """Return something long: so many steps, which take as long as they are told to."""
        for number in range(count):
            self.work((name, number), takes)
            yield
        return count


def test_nothing_is_done_at_once_and_all_in_order() -> None:
    bench = Bench()
    for number in range(5):
        bench.queue.put(None, bench.work, number)
    assert bench.done == []
    assert len(bench.loop.soon) == 1
    bench.loop.turn()
    assert bench.done == [0, 1, 2, 3, 4]
    assert bench.loop.soon == [], "nothing waits"


def test_a_slice_ends_and_others_have_a_turn() -> None:
    bench = Bench()
    for number in range(4):
        bench.queue.put(None, bench.work, number, 0.6 * SLICE)
    bench.loop.turn()
    assert bench.done == [0, 1]
    bench.loop.turn()
    assert bench.done == [0, 1, 2, 3]


def test_work_may_bring_more_work_about() -> None:
    bench = Bench()
    bench.queue.put(None, lambda: bench.queue.put(None, bench.work, "second"))
    bench.queue.put(None, bench.work, "first", SLICE)
    bench.loop.turn()
    assert bench.done == ["first"]
    bench.queue.flush()
    assert bench.done == ["first", "second"]
    bench.loop.turn()
    assert bench.done == ["first", "second"]


def test_an_error_is_no_others(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.queue.put(None, int, "no number")
    bench.queue.put(None, bench.work, "next")
    bench.loop.turn()
    assert bench.done == ["next"]
    assert "no number" in caplog.text


def test_who_puts_too_much_has_to_help() -> None:
    bench = Bench()
    for number in range(slices.MOST + 3):
        bench.queue.put(None, bench.work, number)
    assert bench.done == [0, 1, 2]


def test_thousands_of_reports_of_one_worker_keep_no_others_waiting() -> None:
    bench = Bench()
    for number in range(5000):
        bench.queue.put("flood", bench.work, number)
    bench.queue.put("long", bench.steps, "steps", 5000, 0.0)
    bench.queue.put("other", bench.work, "reaped")
    bench.queue.put("other", bench.work, "gone")
    bench.queue.flush()
    assert bench.done[:TOGETHER] == [*range(TOGETHER)], "whoever came first has more than one piece done"
    others = [*range(TOGETHER), *(("steps", number) for number in range(TOGETHER - 1)), "reaped", "gone"]
    assert bench.done[: len(others)] == others
    assert [one for one in bench.done if isinstance(one, int)] == [*range(5000)]
    assert [one for one in bench.done if isinstance(one, tuple)] == [("steps", n) for n in range(5000)]


def test_steps_come_before_what_was_put_meanwhile_about_the_same_worker() -> None:
    bench = Bench()

    def steps() -> Steps[None]:
        bench.queue.put("worker", bench.work, "put meanwhile")
        yield
        bench.work("second step")

    bench.queue.put("worker", steps)
    bench.queue.put("other", bench.work, "other")
    bench.queue.flush()
    assert bench.done == ["other", "second step", "put meanwhile"]


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


def test_who_finds_nobody_waiting_does_not_have_the_loop_called_back() -> None:
    """A look at an idle worker every few milliseconds: none of them costs the loop a turn of its own."""
    bench = Bench()
    for number in range(9):
        bench.queue.do_first(partial(bench.work, number, 0.1 * TURN))
        bench.clock.now += TURN
    assert bench.done == [*range(9)]
    assert bench.loop.soon == []


def test_all_that_is_urgent_comes_before_any_work_and_in_order() -> None:
    bench = Bench()
    bench.queue.put(None, bench.work, "described")
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


def test_connections_have_their_turns_one_after_the_other() -> None:
    """However much one of them has to say: it goes behind all others after each step."""
    bench = Bench()
    bench.queue.take_turn(bench.steps("long", 4))
    assert bench.done == [("long", 0)], "the first step is taken at once, if nobody waits"
    bench.queue.take_turn(bench.steps("short", 1))
    bench.queue.take_turn(bench.steps("other", 1))
    while bench.loop.soon:
        bench.loop.turn()
    turns = ["long", "long", "short", "other", "long", "long"]
    assert [name for name, _number in bench.done] == turns


def test_looks_come_before_connections_and_these_before_work() -> None:
    bench = Bench()
    bench.queue.put(None, bench.work, "work")
    bench.queue.take_turn(bench.steps("first", 1, SLICE))
    bench.queue.take_turn(bench.steps("second", 1))
    bench.queue.do_first(partial(bench.work, "look", 1.1 * TURN))
    bench.queue.do_first(partial(bench.work, "another look"))
    bench.queue.take_turn(bench.steps("third", 1))
    assert bench.done == [("first", 0), "look"]
    while bench.loop.soon:
        bench.loop.turn()
    assert bench.done == [("first", 0), "look", "another look", ("second", 0), "work", ("third", 0)]


def test_work_that_is_long_keeps_its_place_and_leaves_the_loop_free() -> None:
    bench = Bench()
    bench.queue.put(None, bench.steps, "long", 3)
    bench.queue.put(None, bench.work, "described later")
    bench.loop.turn()
    assert bench.done == [("long", 0)]
    bench.queue.do_first(partial(bench.work, "look"))
    while bench.loop.soon:
        bench.loop.turn()
    assert bench.done == [("long", 0), "look", ("long", 1), ("long", 2), "described later"]


def test_what_is_left_of_a_look_goes_on_among_the_connections() -> None:
    """There may be thousands of timers of one worker: the looks at others do not wait for them."""
    bench = Bench()
    bench.queue.do_first(partial(bench.steps, "storm", 3, TURN))
    bench.loop.turn()
    bench.queue.do_first(partial(bench.work, "look"))
    bench.queue.take_turn(bench.steps("connection", 1))
    while bench.loop.soon:
        bench.loop.turn()
    assert bench.done == [("storm", 0), "look", ("storm", 1), ("connection", 0), ("storm", 2)]


def test_an_error_of_a_step_is_no_others(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Steps[None]:
        yield
        raise ValueError("a step that fails")

    bench = Bench()
    bench.queue.take_turn(failing())
    bench.queue.take_turn(bench.steps("next", 1))
    bench.loop.turn()
    assert bench.done == [("next", 0)]
    assert "a step that fails" in caplog.text


def test_all_steps_at_once() -> None:
    bench = Bench()
    assert finish(bench.steps("s", 3)) == 3
    assert bench.done == [("s", 0), ("s", 1), ("s", 2)]
