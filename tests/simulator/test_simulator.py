"""Whole histories of workers and servers, with everything that goes wrong, in virtual time: the laws hold.

``laws.py`` says what is checked after each step, ``world.py``, ``worker.py`` and ``server.py`` what a step
is, ``simulation.py`` what goes wrong. A history follows from its seed; a failure says how to see it again.
That a law can fail at all is shown by ``broken.py``: each variant there is caught.

``make soak`` takes histories for ``AIOTIMER_SOAK_S`` seconds (600), from the seed ``AIOTIMER_SOAK_SEED`` on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from .broken import CASES
from .simulation import MISFORTUNES, Failure, Simulation, Variant

LENGTH = 4000
"""Steps of a history."""

HISTORIES = 10
"""Histories of one test."""

TESTS = 5

MOST_STEPS = 400_000
"""Steps within which a variant must be caught. Most are within 20,000."""

SOAK_S = float(os.environ.get("AIOTIMER_SOAK_S", "600"))


@pytest.mark.parametrize("first", range(0, TESTS * HISTORIES, HISTORIES))
def test_the_laws_hold(first: int) -> None:
    signals = 0
    for seed in range(first, first + HISTORIES):
        signals += Simulation(seed, LENGTH).run().signals
    assert signals > 0


def test_everything_happens() -> None:
    steps = "adopts greets hears marks notes promises reads removes signals unregisters welcomes"
    events = "expired held late reap_failed reaped observed finished breaker worker_gone exec"
    missing = {*MISFORTUNES, *steps.split(), *events.split()}
    for seed in range(TESTS * HISTORIES):
        simulation = Simulation(seed, LENGTH)
        simulation.run()
        missing -= simulation.happened.keys()
        if not missing:
            return
    pytest.fail(f"never happened: {missing}")


def test_a_history_follows_from_its_seed() -> None:
    one, two, other = (Simulation(seed, LENGTH) for seed in (7, 7, 8))
    for simulation in (one, two, other):
        simulation.run()
    assert list(one.trace) == list(two.trace)
    assert list(one.trace) != list(other.trace)


@pytest.mark.parametrize("name", CASES)
def test_the_simulator_catches(name: str) -> None:
    law, variant = CASES[name]
    failure = caught(variant)
    assert failure.law == law, failure


def caught(variant: Variant) -> Failure:
    """Return the first failure of a variant."""
    for seed in range(MOST_STEPS // LENGTH):
        try:
            Simulation(seed, LENGTH, variant).run()
        except Failure as failure:
            return failure
    pytest.fail(f"{variant.name} was not caught within {MOST_STEPS:,} steps")


def test_a_failure_can_be_seen_again() -> None:
    failure = caught(CASES["no-ring"].variant)
    command = str(failure).rpartition("again: python ")[2].split()
    root = Path(__file__).parents[2]
    again = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 1
    assert again.stderr == f"{failure}\n"


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 600)
def test_the_laws_hold_for_long() -> None:
    first = seed = int(os.environ.get("AIOTIMER_SOAK_SEED", str(TESTS * HISTORIES)))
    steps = signals = 0
    until = monotonic() + SOAK_S
    while monotonic() < until:
        simulation = Simulation(seed, LENGTH)
        signals += simulation.run().signals
        steps += simulation.world.steps
        seed += 1
    print(f"seeds {first} to {seed - 1}: {steps:,} steps, {signals:,} signals, no law broken")  # noqa: T201
    assert signals > 0
