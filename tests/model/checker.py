"""Trying everything: all states of the model that can be reached, and the programs that reach them.

Theory of operation. No program is given in advance: an idle thread may begin any operation, until
as many have begun as the scope allows. One exploration thus covers all programs, of one thread and
of two, and a state that many programs reach is visited once, with the set of them. States are
visited breadth first, so that the trace that breaks a law is a shortest one.

Slots and threads have no identity. They are used in order, and once every operation has begun,
states that differ in names alone are one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations, product
from typing import Any, NamedTuple, TypeAlias

from .protocol import (
    EARLY,
    LATE,
    NAMES,
    NEVER,
    NONE,
    Law,
    Line,
    Protocol,
    Scope,
    Server,
    ServerMove,
    Slot,
    Slots,
    Thread,
    Threads,
    WorkerMove,
    broken,
    counted,
    drained,
    hold_back,
    one,
    server_moves,
    worker_moves,
)

Operation: TypeAlias = tuple[int, int]
"""A slot, and the deadline stored there: ``NEVER`` releases it."""

Program: TypeAlias = tuple[tuple[Operation, ...], tuple[Operation, ...]]
"""What each of the two threads does."""


def programs(scope: Scope) -> set[Program]:
    """Return every program of a scope. Programs that differ in names alone are one."""
    operations = tuple(product(range(scope.slots), (EARLY, LATE, NEVER)))
    return {
        anonymous((sequence[:split], sequence[split:]))
        for length in range(1, scope.operations + 1)
        for sequence in product(operations, repeat=length)
        for split in range(length + 1)
    }


@cache
def anonymous(program: Program) -> Program:
    """Return the program with its slots numbered in order of use, the longer thread first."""

    def numbered(*program: tuple[Operation, ...]) -> Program:
        numbers: dict[int, int] = {}
        for slot, _ in program[0] + program[1]:
            numbers.setdefault(slot, len(numbers))
        a, b = (tuple((numbers[slot], when) for slot, when in thread) for thread in program)
        return a, b

    return max(numbered(*program), numbered(*program[::-1]), key=lambda p: (len(p[0]), p))


def beginnings(program: Program) -> Iterator[Program]:
    """Yield what a program has done at any time, itself included."""
    a, b = program
    for i, j in product(range(len(a) + 1), range(len(b) + 1)):
        yield anonymous((a[:i], b[:j]))


class Roll:
    """Sets of programs as integers, one bit for each: uniting them must be fast."""

    nothing = 1
    """The set of the program that has done nothing yet."""

    def __init__(self) -> None:
        self._bits: dict[Program, int] = {((), ()): 0}
        self.extended = cache(self._extended)

    def programs(self, members: int = -1) -> set[Program]:
        """Return the programs of a set; of the set of all that there are, if none is given."""
        return {program for program, bit in self._bits.items() if members >> bit & 1}

    def _extended(self, members: int, thread: int, operation: Operation) -> int:
        """Return the set of these programs with one more operation in a thread."""
        extended = 0
        for a, b in self.programs(members):
            program = (a, (*b, operation)) if thread else ((*a, operation), b)
            extended |= 1 << self._bits.setdefault(program, len(self._bits))
        return extended


class Begun(NamedTuple):
    """How many operations have begun, and how many slots and threads they use."""

    operations: int = 0
    slots: int = 0
    threads: int = 0


class State(NamedTuple):
    """Everything; but of the look count, only how the counts that are kept relate to it."""

    slots: Slots
    promise: int
    rung: int
    line: Line
    server: Server
    threads: Threads
    begun: Begun


Step: TypeAlias = tuple[str, State, "tuple[int, Operation] | None"]
"""A move from outside: in words, where it leads, and which operation of which thread it began."""


class Model:
    """All steps from a state."""

    def __init__(self, protocol: Protocol, scope: Scope) -> None:
        self.scope = scope
        self._all_begun = Begun(scope.operations, scope.slots, threads=2)

        # A mover sees little of a state, so that most states have the moves of another one.
        @cache
        def moves_of_worker(*seen: Any) -> tuple[WorkerMove, ...]:
            return tuple(worker_moves(protocol, *seen))

        @cache
        def moves_of_server(*seen: Any) -> tuple[ServerMove, ...]:
            return tuple(server_moves(protocol, scope, *seen))

        self._moves_of_worker = moves_of_worker
        self._moves_of_server = moves_of_server

    def start(self) -> State:
        """Return the state in which nothing is armed and the worker is connected."""
        slots = one((Slot(),) * self.scope.slots)
        return State(slots, NEVER, NONE, Line(), Server(), one((Thread(), Thread())), Begun())

    def steps(self, state: State) -> Iterator[Step]:
        """Yield every step from a state."""
        for who in (0, 1):
            if state.threads[who].at != "idle":
                yield from self._go_on(state, who)
            elif state.begun.operations < self.scope.operations and who <= state.begun.threads:
                yield from self._begin(state, who)
        yield from self._serve(state)

    def canonical(self, state: State) -> State:
        """Return the one state that stands for all that differ from this one in names alone."""
        slots, promise, rung, line, server, threads, begun = state
        if begun.operations < self.scope.operations:
            return state  # names are still being given
        slots, threads = _canonical(slots, threads)
        return State(slots, promise, rung, line, server, threads, self._all_begun)

    def _begin(self, state: State, who: int) -> Iterator[Step]:
        operations, slots, threads = state.begun
        for slot in range(min(slots + 1, self.scope.slots)):
            begun = Begun(operations + 1, max(slots, slot + 1), max(threads, who + 1))
            for deadline in (EARLY, LATE, NEVER):
                thread = Thread() if deadline == NEVER else Thread("header", slot, deadline)
                after = state._replace(
                    slots=hold_back(state.slots, slot, who, deadline),
                    threads=replaced(state.threads, who, thread),
                    begun=begun,
                )
                text = f"{'AB'[who]} stores {NAMES[deadline]} into slot {slot}"
                yield text, after, (who, (slot, deadline))

    def _go_on(self, state: State, who: int) -> Iterator[Step]:
        slots, promise, rung, line, server, threads, begun = state
        thread, name = threads[who], "AB"[who]
        if self.scope.interrupts:
            released = hold_back(slots, thread.slot, who, NEVER)
            rung_after, left = counted(rung, replaced(threads, who, Thread()), 0)
            after = State(released, promise, rung_after, line, server, left, begun)
            yield f"{name} is interrupted and releases slot {thread.slot}", after, None
        if self.scope.fenced_sends and thread.at == "send":
            slots = drained(slots, who)
        moves = self._moves_of_worker(thread, promise, rung, line, server.at != "down")
        for text, then, rung_after, line_after in moves:
            rung_after, left = counted(rung_after, replaced(threads, who, then), 0)
            after = State(slots, promise, rung_after, line_after, server, left, begun)
            yield f"{name} {text}", after, None

    def _serve(self, state: State) -> Iterator[Step]:
        _, _, rung, _, _, threads, begun = state
        moves = self._moves_of_server(state.server, state.slots, state.promise, state.line)
        for text, server, slots, promise, line, looks in moves:
            rung_after, left = counted(rung, threads, looks) if looks else (rung, threads)
            after = State(slots, promise, rung_after, line, server, left, begun)
            yield f"the server {text}", after, None


@cache
def replaced(threads: Threads, who: int, thread: Thread) -> Threads:
    """Return the threads with one of them changed."""
    return one((threads[0], thread) if who else (thread, threads[1]))


@cache
def _canonical(slots: Slots, threads: Threads) -> tuple[Slots, Threads]:
    swapped = tuple(Slot(slot.deadline, slot.buffers[::-1]) for slot in slots)
    best = min(
        (tuple(some[i] for i in order), (_renamed(a, order), _renamed(b, order)))
        for some, (a, b) in ((slots, threads), (swapped, threads[::-1]))
        for order in permutations(range(len(slots)))
    )
    return one(best[0]), one(best[1])


@cache
def _renamed(thread: Thread, order: tuple[int, ...]) -> Thread:
    return thread if thread.slot < 0 else thread._replace(slot=order.index(thread.slot))


@dataclass
class Verdict:
    """What an exploration has found.

    Attributes:
        states: how many there are.
        traces: a shortest trace that breaks a law, for each law that is broken.
        tried: the programs, if they were told apart.
        guilty: those that can break a law, in the end or on the way.
    """

    states: int = 0
    traces: dict[Law, list[str]] = field(default_factory=dict)
    tried: set[Program] = field(default_factory=set)
    guilty: dict[Law, set[Program]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.states:,} states: {'no law is' if not self.traces else 'a law is'} broken"]
        for law, trace in self.traces.items():
            lines += ["", f"{law.name}, in {len(self.guilty.get(law, ()))} programs:", *trace]
        return "\n".join(lines)


def explore(protocol: Protocol, scope: Scope, *, by_program: bool = False) -> Verdict:
    """Take every step from every state that can be reached.

    Args:
        by_program: tell the programs apart. It takes longer.
    """
    model, roll, verdict = Model(protocol, scope), Roll(), Verdict()
    start = model.start()
    reached_by = {start: roll.nothing}
    came_from: dict[State, State] = {}
    guilty: dict[Law, int] = {}
    todo = deque([start])
    while todo:
        state = todo.popleft()
        by = reached_by[state]
        law = broken(protocol, *state[:-1])
        if law is not None:
            guilty[law] = guilty.get(law, 0) | by
            if law not in verdict.traces:
                verdict.traces[law] = [*replay(model, path(state, came_from)), law.value]
            if law is Law.LOST:
                continue
        for _, after, began in model.steps(state):
            then = model.canonical(after)
            by_then = roll.extended(by, *began) if began and by_program else by
            known = reached_by.get(then)
            if known is None:
                reached_by[then] = by_then
                came_from[then] = state
                todo.append(then)
            elif by_then & ~known:
                reached_by[then] = known | by_then
                todo.append(then)  # once more: there are more programs that lead from here
    verdict.states = len(reached_by)
    if by_program:
        verdict.tried = {anonymous(program) for program in roll.programs() if any(program)}
        for law, members in guilty.items():
            ends = {anonymous(program) for program in roll.programs(members)}
            verdict.guilty[law] = {p for p in programs(scope) if not ends.isdisjoint(beginnings(p))}
    return verdict


def path(state: State, came_from: dict[State, State]) -> list[State]:
    """Return the states on the way to this one, the first of all first."""
    states = [state]
    while states[-1] in came_from:
        states.append(came_from[states[-1]])
    return states[::-1]


def replay(model: Model, states: list[State]) -> Iterator[str]:
    """Yield in words the moves along these states, with names that keep their meaning."""
    here = states[0]
    for there in states[1:]:
        text, here, _ = next(s for s in model.steps(here) if model.canonical(s[1]) == there)
        yield text
