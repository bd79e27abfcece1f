"""Whole histories of workers and servers, with everything that goes wrong, in virtual time: the laws hold.

``laws.py`` says what is checked after each step, ``world.py``, ``worker.py`` and ``server.py`` what a step
is, ``simulation.py`` what goes wrong. A history follows from its seed; a failure says how to see it again.
That a law can fail at all is shown by ``broken.py``: each variant there is caught.

``make soak`` takes ``AIOTIMER_SOAK_STEPS`` steps (10 million), from the seed ``AIOTIMER_SOAK_SEED`` on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .broken import CASES
from .simulation import MISFORTUNES, Failure, Simulation, Variant

LENGTH = 4000
"""Steps of a history."""

HISTORIES = 50
"""Histories in the ordinary suite, in two tests that take half of them each."""

MOST_STEPS = 400_000
"""Steps within which a variant must be caught. From where it is looked for, most are within 500."""

SOAK_STEPS = int(os.environ.get("AIOTIMER_SOAK_STEPS", "10_000_000"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [0, HISTORIES])  # in each of which everything happens
def test_the_laws_hold_and_everything_happens(first: int) -> None:
    happened = many_histories(first, HISTORIES // 2)
    steps = "adopts answers asks greets hears marks notes promises reads removes signals unregisters welcomes"
    events = "expired held late reap_failed reaped observed finished breaker worker_gone exec"
    missing = {*MISFORTUNES, *steps.split(), *events.split()} - happened.keys()
    assert not missing, "never happened"


def many_histories(first: int, histories: int) -> Counter[str]:
    """Take histories, and return what has happened in them."""
    happened: Counter[str] = Counter()
    for seed in range(first, first + histories):
        simulation = Simulation(seed, LENGTH)
        simulation.run()
        happened.update(simulation.happened)
    return happened


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
    for seed in range(variant.seed, variant.seed + MOST_STEPS // LENGTH):
        try:
            Simulation(seed, LENGTH, variant).run()
        except Failure as failure:
            return failure
    pytest.fail(f"{variant.name} was not caught within {MOST_STEPS:,} steps")


def test_a_failure_can_be_seen_again() -> None:
    failure = caught(CASES["never-rings"].variant)
    command = str(failure).rpartition("again: python ")[2].split()
    root = Path(__file__).parents[2]
    again = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 1
    assert again.stderr == f"{failure}\n"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_laws_hold_for_long() -> None:
    first = int(os.environ.get("AIOTIMER_SOAK_SEED", str(2 * HISTORIES)))
    histories = SOAK_STEPS // LENGTH
    signals = many_histories(first, histories)["signals"]
    last = first + histories - 1
    print(f"seeds {first} to {last}: {SOAK_STEPS:,} steps, {signals:,} signals, no law broken")  # noqa: T201
    assert signals > 0
