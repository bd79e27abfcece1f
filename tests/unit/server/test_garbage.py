"""A collector of garbage: when it collects, by a clock and a count of the test's own."""

from __future__ import annotations

import gc
import subprocess
import sys
from math import inf

from aiotimer.server.garbage import AT_LEAST, FEW, MANY, GarbageCollector
from tests.fakes.clock import Clock


def printed_by(program: str) -> str:
    """Return what a program prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


class Process:
    """A process in which objects are made, and some of its timers are due."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.made = 0
        self.due_in = inf
        self.takes = 0.0
        self.times = 0
        self.collector = GarbageCollector(lambda: self.due_in, self.clock, lambda: self.made, self.collect)

    def collect(self) -> None:
        self.times += 1
        self.clock.now += self.takes

    def times_with(self, made: int, due_in: float) -> int:
        """Return how often it has collected, now with so many new objects, so long before a timer is due."""
        self.made, self.due_in = made, due_in
        self.collector.tick()
        return self.times


def test_a_few_objects_are_not_worth_it() -> None:
    process = Process()
    assert process.times_with(FEW - 1, inf) == 0
    assert process.times_with(FEW, inf) == 1


def test_nobody_who_is_due_waits_for_it() -> None:
    process = Process()
    assert process.times_with(FEW, AT_LEAST) == 0
    process.takes = AT_LEAST
    assert process.times_with(FEW, 1.1 * AT_LEAST) == 1
    assert process.times_with(FEW, 1.9 * AT_LEAST) == 1, "it took as long as that"
    assert process.times_with(FEW, 2.1 * AT_LEAST) == 2


def test_memory_does_not_grow_for_ever() -> None:
    process = Process()
    assert process.times_with(MANY, 0.0) == 1


def test_the_interpreter_leaves_it_to_the_server() -> None:
    program = """
import gc
from aiotimer.server.garbage import GarbageCollector
GarbageCollector(lambda: 1.0).take_over()
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    assert printed_by(program) == "False True\n"
    assert gc.isenabled(), "an embedded server leaves that alone"


def test_what_the_interpreter_counts_is_what_waits() -> None:
    """Of each CPython: whether its young objects are counted on, though nothing is collected by itself."""
    program = """
import gc
from aiotimer.server.garbage import FEW, MANY, GarbageCollector
collector = GarbageCollector(lambda: 1.0)
collector.take_over()
made = collector._made
kept = [[] for _ in range(2 * FEW)]
print(FEW <= made() < MANY)
del kept
print(made() < FEW)
for _ in range(2 * FEW):
    cycle = []
    cycle.append(cycle)
print(made() >= FEW)
collector.tick()
print(made() < FEW, gc.get_stats()[2]["collected"] >= FEW)
"""
    assert printed_by(program) == "True\nTrue\nTrue\nTrue True\n"
