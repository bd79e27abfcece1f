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
from typing import NamedTuple, TypeAlias

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
    Slot,
    Slots,
    Thread,
    Threads,
    broken,
    by_identity,
    connecting_moves,
    counted,
    drained,
    hold_back,
    one,
    same,
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


@by_identity
class Begun(NamedTuple):
    """How many operations have begun, and how many slots and threads they use."""

    operations: int = 0
    slots: int = 0
    threads: int = 0


State: TypeAlias = tuple[Slots, int, int, Line, Server, Threads, Begun]
"""The slots, the promise, the ring that is remembered, the line, the server, the threads, and what has begun.

That is everything; but of the look count, only how the counts that are kept relate to it. All but the two
numbers are compared and hashed by identity, for there are hundreds of thousands of states.
"""

Step: TypeAlias = tuple[str, State, "tuple[int, Operation] | None"]
"""A move from outside: in words, where it leads, and which operation of which thread it began."""


class Model:
    """All steps from a state."""

    def __init__(self, protocol: Protocol, scope: Scope) -> None:
        self.scope = scope
        self._all_begun = same(Begun(scope.operations, scope.slots, threads=2))

        # A mover sees little of a state, so that most states have the moves of another one.
        @cache
        def moves_of_worker(
            threads: Threads, who: int, promise: int, rung: int, line: Line
        ) -> list[tuple[str, int, Line, Threads]]:
            moves = worker_moves(protocol, threads[who], promise, rung, line)
            return [
                (f"{'AB'[who]} {text}", left[0], same(line_after), left[1])
                for text, then, rung_after, line_after in moves
                for left in [counted(rung_after, replaced(threads, who, then), 0)]
            ]

        @cache
        def moves_of_connecting(
            rung: int, line: Line, threads: Threads, server_is_up: bool
        ) -> list[tuple[str, int, Line, Threads]]:
            moves = connecting_moves(protocol, scope, rung, line, server_is_up)
            return [
                (text, left[0], same(line_after), left[1])
                for text, rung_after, line_after in moves
                for left in [counted(rung_after, threads, 0)]
            ]

        @cache
        def moves_of_server(
            server: Server, slots: Slots, promise: int, line: Line
        ) -> list[tuple[str, Server, Slots, int, Line, int]]:
            moves = server_moves(protocol, scope, server, slots, promise, line)
            return [
                (f"the server {text}", same(then), slots_after, promise_after, same(line_after), looks)
                for text, then, slots_after, promise_after, line_after, looks in moves
            ]

        self._moves_of_worker = moves_of_worker
        self._moves_of_connecting = moves_of_connecting
        self._moves_of_server = moves_of_server

    def start(self) -> State:
        """Return the state in which nothing is armed, and the worker is connected or has never been."""
        slots = one((Slot(),) * self.scope.slots)
        line, server = Line(), Server()
        if not self.scope.connected:
            line, server = Line(up=False), Server(owner="unknown")
        threads = one((Thread(), Thread()))
        return slots, NEVER, NONE, same(line), same(server), threads, same(Begun())

    def steps(self, state: State) -> list[Step]:
        """Return every step from a state."""
        slots, promise, rung, line, server, threads, begun = state
        steps: list[Step] = []
        for who in (0, 1):
            if threads[who].at != "idle":
                steps += self._go_on(state, who)
            elif begun.operations < self.scope.operations and who <= begun.threads:
                steps += self._begin(state, who)
        connecting = self._moves_of_connecting(rung, line, threads, server.at != "down")
        for text, rung_after, line_after, left in connecting:
            steps.append((text, (slots, promise, rung_after, line_after, server, left, begun), None))
        serving = self._moves_of_server(server, slots, promise, line)
        for text, then, slots_after, promise_after, line_after, looks in serving:
            rung_after, left = counted(rung, threads, looks) if looks else (rung, threads)
            after = (slots_after, promise_after, rung_after, line_after, then, left, begun)
            steps.append((text, after, None))
        return steps

    def canonical(self, state: State) -> State:
        """Return the one state that stands for all that differ from this one in names alone."""
        slots, promise, rung, line, server, threads, begun = state
        if begun.operations < self.scope.operations:
            return state  # names are still being given
        slots, threads = _canonical(slots, threads)
        return slots, promise, rung, line, server, threads, self._all_begun

    def _begin(self, state: State, who: int) -> Iterator[Step]:
        before, promise, rung, line, server, others, (operations, slots, threads) = state
        for slot in range(min(slots + 1, self.scope.slots)):
            begun = same(Begun(operations + 1, max(slots, slot + 1), max(threads, who + 1)))
            for deadline in (EARLY, LATE, NEVER):
                thread = Thread() if deadline == NEVER else Thread("header", slot, deadline)
                held, after = hold_back(before, slot, who, deadline), replaced(others, who, thread)
                text = f"{'AB'[who]} stores {NAMES[deadline]} into slot {slot}"
                yield text, (held, promise, rung, line, server, after, begun), (who, (slot, deadline))

    def _go_on(self, state: State, who: int) -> list[Step]:
        slots, promise, rung, line, server, threads, begun = state
        thread = threads[who]
        steps: list[Step] = []
        if self.scope.interrupts:
            released = hold_back(slots, thread.slot, who, NEVER)
            rung_after, left = counted(rung, replaced(threads, who, Thread()), 0)
            text = f"{'AB'[who]} is interrupted and releases slot {thread.slot}"
            after = (released, promise, rung_after, line, server, left, begun)
            steps.append((text, after, None))
        if self.scope.fenced_sends and thread.at == "send":
            slots = drained(slots, who)
        moves = self._moves_of_worker(threads, who, promise, rung, line)
        for text, rung_after, line_after, left in moves:
            steps.append((text, (slots, promise, rung_after, line_after, server, left, begun), None))
        return steps


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


def explore(
    protocol: Protocol, scope: Scope, *, by_program: bool = False, until: Law | None = None
) -> Verdict:
    """Take every step from every state that can be reached.

    Args:
        by_program: tell the programs apart. It takes longer.
        until: no further than until this law is broken.
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
            if law is until:
                break
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
