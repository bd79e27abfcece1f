"""The protocol of the look and the ring, in every interleaving: see ``protocol.py`` for the laws.

Proofs are made on the worst machine, where a store may wait across a ``send``. Counterexamples are
looked for on a kinder and more real one, where a ``send`` drains the buffer: they mean more there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from .checker import Program, Verdict, explore, programs
from .protocol import Law, Protocol, Scope

ANY_ORDER = Protocol(header_reads="either", header_writes="either")

CRASHING = Scope(operations=2, restless=True, crashes=True)
INTERRUPTED = Scope(operations=2, restless=True, interrupts=True)
EVERYTHING = Scope(operations=2, restless=True, generous=True, crashes=True, interrupts=True)
CRASHES = Scope(operations=3, crashes=True)
STARTING = Scope(operations=2, restless=True, connected=False, connects=True)
CONNECTING = replace(EVERYTHING, connects=True)
HEARTBEAT = Scope(operations=3, restless=True, generous=True, fenced_sends=True)
REAL_MACHINE = Scope(operations=3, fenced_sends=True)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """A model is hundreds of thousands of tuples, and no cycle: to walk them again and again takes long."""
    gc.disable()
    yield
    gc.enable()


def show(verdict: Verdict) -> None:
    """Print what was found, for ``pytest -rP``."""
    print(verdict)  # noqa: T201


def threads(program: Program) -> int:
    """Return how many threads have something to do."""
    return sum(1 for operations in program if operations)


# --- with all its guards, the protocol keeps the laws


@pytest.mark.parametrize(
    ("protocol", "scope"),
    [
        pytest.param(Protocol(), CRASHING, id="crashing-2-operations"),
        pytest.param(Protocol(), INTERRUPTED, id="interrupted-2-operations"),
        pytest.param(Protocol(), EVERYTHING, id="everything-2-operations", marks=pytest.mark.soak),
        pytest.param(Protocol(), STARTING, id="never-connected-2-operations"),
        pytest.param(Protocol(), CONNECTING, id="connecting-2-operations", marks=pytest.mark.soak),
        pytest.param(
            Protocol(),
            replace(CONNECTING, connected=False),
            id="everything-never-connected-2-operations",
            marks=pytest.mark.soak,
        ),
        pytest.param(ANY_ORDER, EVERYTHING, id="any-order-2-operations", marks=pytest.mark.soak),
        pytest.param(Protocol(), CRASHES, id="crashes-3-operations", marks=pytest.mark.soak),
        pytest.param(Protocol(), HEARTBEAT, id="heartbeat-3-operations", marks=pytest.mark.soak),
        pytest.param(
            Protocol(),
            replace(EVERYTHING, operations=3),  # 1.5 million states, 1.3 GB
            id="everything-3-operations",
            marks=[pytest.mark.soak, pytest.mark.timeout(1800)],
        ),
    ],
)
def test_keeps_the_laws(protocol: Protocol, scope: Scope) -> None:
    verdict = explore(protocol, scope)
    show(verdict)
    assert not verdict.traces, verdict


@pytest.mark.soak
def test_the_count_may_be_read_again_before_the_send() -> None:
    verdict = explore(Protocol(recount=True), EVERYTHING)
    show(verdict)
    assert not verdict.traces, verdict


def test_a_ring_need_not_be_forgotten_while_the_count_goes_on() -> None:
    """A restarted server goes on counting in the table, so that what was remembered is old."""
    verdict = explore(Protocol(forget_on_reconnect=False), CRASHING)
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
        pytest.param(Protocol(look_at_orphans=False), Law.LOST, id="look-at-orphans"),
        pytest.param(Protocol(adopt_at_hangup=False), Law.LOST, id="adopt-at-hangup"),
        pytest.param(Protocol(release_orphans=False), Law.UNHEARD, id="release-orphans"),
        pytest.param(Protocol(count_orphans=False), Law.UNHEARD, id="count-orphans"),
    ],
)
def test_needs_its_guard_against_crashes(protocol: Protocol, law: Law) -> None:
    verdict = explore(protocol, replace(CRASHES, operations=2), until=law)
    show(verdict)
    assert law in verdict.traces


@pytest.mark.parametrize("connected", [True, False], ids=["again", "first"])
@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(Protocol(ring_when_connected=False), id="ring-when-connected"),
        pytest.param(Protocol(ask_again=False), id="ask-again"),
    ],
)
def test_needs_its_guard_while_somebody_connects(protocol: Protocol, connected: bool) -> None:
    scope = Scope(operations=2, crashes=connected, connected=connected, connects=True)
    verdict = explore(protocol, scope, until=Law.LOST)
    show(verdict)
    assert Law.LOST in verdict.traces


# --- what the guards are for, in detail


def test_the_second_read_is_for_time_and_the_third_for_safety() -> None:
    """What the second read would have found, the third finds: a few milliseconds later."""
    verdict = explore(Protocol(second_read=False), CRASHING)
    assert set(verdict.traces) == {Law.LATE}


def test_a_ring_remembered_too_early_takes_two_threads_or_an_interrupt() -> None:
    protocol = Protocol(remember_after_send=False)
    calm = replace(REAL_MACHINE, operations=2)
    verdict = explore(protocol, calm, by_program=True)
    assert {threads(program) for program in verdict.guilty[Law.LOST]} == {2}
    verdict = explore(protocol, replace(calm, interrupts=True), by_program=True)
    assert {threads(program) for program in verdict.guilty[Law.LOST]} == {1, 2}


def test_a_trace_tells_a_story() -> None:
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
