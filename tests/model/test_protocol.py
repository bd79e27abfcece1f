"""The protocol of the look and the ring, in every interleaving: see ``protocol.py`` for the laws.

Proofs are made on the worst machine, where a store may wait across a ``send``. Counterexamples are
looked for on a kinder and more real one, where a ``send`` drains the buffer: they mean more there.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from .checker import Program, Verdict, explore, programs
from .protocol import Law, Protocol, Scope

EVERYTHING = Scope(operations=2, restless=True, generous=True, crashes=True, interrupts=True)
CRASHES = Scope(operations=3, crashes=True, generous=True)
HEARTBEAT = Scope(operations=3, restless=True, generous=True, fenced_sends=True)
REAL_MACHINE = Scope(operations=3, fenced_sends=True)


def show(verdict: Verdict) -> None:
    """Print what was found: ``pytest -rP`` shows it."""
    print(verdict)  # noqa: T201


def threads(program: Program) -> int:
    """Return how many threads have something to do."""
    return len([thread for thread in program if thread])


# --- with all its guards, the protocol keeps the laws


@pytest.mark.parametrize(
    "scope",
    [
        pytest.param(CRASHES, id="crashes-3-operations"),
        pytest.param(HEARTBEAT, id="heartbeat-3-operations"),
        pytest.param(EVERYTHING, id="everything-2-operations"),
        pytest.param(
            replace(EVERYTHING, operations=3),
            id="everything-3-operations",
            marks=[pytest.mark.soak, pytest.mark.timeout(3600)],
        ),
    ],
)
def test_keeps_the_laws(scope: Scope) -> None:
    verdict = explore(Protocol(), scope)
    show(verdict)
    assert not verdict.traces, verdict


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(Protocol(header_reads="either", header_writes="either"), id="either-order"),
        pytest.param(Protocol(recount=True), id="count-read-again-before-the-send"),
        # The look count goes on across crashes: what was remembered before is old after one.
        pytest.param(Protocol(forget_on_reconnect=False), id="rings-not-forgotten"),
    ],
)
def test_does_not_depend_on(protocol: Protocol) -> None:
    verdict = explore(protocol, EVERYTHING)
    show(verdict)
    assert not verdict.traces, verdict


def test_every_program_is_tried() -> None:
    verdict = explore(Protocol(), REAL_MACHINE, by_program=True)
    assert verdict.tried == programs(REAL_MACHINE)
    assert len(verdict.tried) == 249
    assert {threads(program) for program in verdict.tried} == {1, 2}


# --- without one of them, it does not


@pytest.mark.parametrize(
    ("protocol", "law", "guilty"),
    [
        pytest.param(Protocol(second_read=False), Law.LATE, 99, id="second-read"),
        pytest.param(Protocol(third_read="conditional"), Law.LOST, 99, id="third-read-always"),
        pytest.param(Protocol(third_read="never"), Law.LOST, 99, id="third-read"),
        pytest.param(Protocol(remember_after_send=False), Law.LOST, 43, id="remember-after-send"),
    ],
)
def test_needs_its_guard(protocol: Protocol, law: Law, guilty: int) -> None:
    verdict = explore(protocol, REAL_MACHINE, by_program=True)
    show(verdict)
    assert len(verdict.guilty[law]) == guilty


@pytest.mark.parametrize(
    ("protocol", "law"),
    [
        pytest.param(Protocol(look_at_welcome=False), Law.LOST, id="look-at-welcome"),
        pytest.param(Protocol(look_at_orphans=False), Law.LOST, id="look-at-orphans"),
        pytest.param(Protocol(adopt_at_hangup=False), Law.LOST, id="adopt-at-hangup"),
        pytest.param(Protocol(release_orphans=False), Law.UNHEARD, id="release-orphans"),
        pytest.param(Protocol(count_orphans=False), Law.UNHEARD, id="count-orphans"),
    ],
)
def test_needs_its_guard_against_crashes(protocol: Protocol, law: Law) -> None:
    verdict = explore(protocol, Scope(operations=2, crashes=True))
    show(verdict)
    assert law in verdict.traces


# --- what the guards are for, in detail


def test_the_second_read_is_for_speed_the_third_for_safety() -> None:
    """The third read finds what the second would have found, but a few milliseconds later."""
    verdict = explore(Protocol(second_read=False), replace(EVERYTHING, interrupts=False))
    assert set(verdict.traces) == {Law.LATE}


def test_a_ring_remembered_too_early_needs_two_threads_or_an_interrupt() -> None:
    protocol = Protocol(remember_after_send=False)
    calm = explore(protocol, Scope(2, fenced_sends=True), by_program=True)
    assert {threads(program) for program in calm.guilty[Law.LOST]} == {2}
    interrupted = explore(protocol, Scope(2, fenced_sends=True, interrupts=True), by_program=True)
    assert {threads(program) for program in interrupted.guilty[Law.LOST]} == {1, 2}


def test_a_counterexample_reads_like_a_story() -> None:
    verdict = explore(Protocol(remember_after_send=False), REAL_MACHINE)
    assert verdict.traces[Law.LOST] == [
        "A stores early into slot 0",
        "A reads the look count",
        "A reads the promise: never",
        "A remembers a ring",
        "B stores early into slot 1",
        "B reads the look count",
        "B reads the promise: never",
        "B has rung since the last look",
        "a timer is armed and no look is scheduled for it",
    ]
