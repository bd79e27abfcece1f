"""Interruptions: a handler that runs, or raises, before any bytecode of the package.

The law of this file: where CPython delivers no signal, nothing is interrupted; what the language relies on
there is no fault of ours.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Self, TypeAlias

import pytest

import aiotimer


class _Opcodes:
    """The bytecodes that one thread runs of some code objects: ``visit`` is called before each of them.

    CPython 3.11 tells them to a trace function. From 3.12 on that misses the first call of a function, and
    ``sys.monitoring`` tells all of them; there the code objects are looked up beforehand, and stay
    instrumented until :meth:`close`.

    Args:
        code: which code objects.
        where: at which offsets of one.
        after_calls: instead, after each call of a function of C has returned, as if it were still running.
    """

    def __init__(
        self,
        code: Callable[[CodeType], bool],
        where: Callable[[CodeType], frozenset[int]] | None = None,
        *,
        after_calls: bool = False,
    ) -> None:
        self._code = code
        self._after_calls = after_calls
        self._where = where or _every_bytecode
        self._known: dict[int, tuple[frozenset[int], CodeType]] = {}
        self._tracers: dict[int, tuple[_Tracer | None, CodeType]] = {}
        self._visit: Callable[[], object] | None = None
        self._thread = threading.get_ident()
        self._base: FrameType | None = None  # destructors are looked for from here on
        self._former: Any = None
        self._instrumented: list[CodeType] = []
        if sys.version_info >= (3, 12):
            sys.monitoring.use_tool_id(_TOOL, "tests")
            self._instrumented = [one for one in _all_code() if code(one)]
            events = sys.monitoring.events
            for one in self._instrumented:
                sys.monitoring.set_local_events(
                    _TOOL, one, events.CALL if after_calls else events.INSTRUCTION
                )
        elif after_calls:
            pytest.skip("CPython 3.11 does not tell when a call has returned")
        elif sys.gettrace() is not None:
            pytest.skip("another tracer is at work (coverage, a debugger), and CPython 3.11 has room for one")

    def close(self) -> None:
        """Leave no trace."""
        if sys.version_info >= (3, 12):
            for one in self._instrumented:
                sys.monitoring.set_local_events(_TOOL, one, 0)
            sys.monitoring.free_tool_id(_TOOL)

    def start(self, visit: Callable[[], object], base: FrameType) -> None:
        """Visit what is called from ``base``, a frame of this thread."""
        self._visit, self._base = visit, base
        if sys.version_info >= (3, 12):
            events = sys.monitoring.events
            if self._after_calls:
                sys.monitoring.register_callback(_TOOL, events.C_RETURN, self._on_return)
            else:
                sys.monitoring.register_callback(_TOOL, events.INSTRUCTION, self._on_instruction)
        else:
            sys.settrace(self._trace)

    def stop(self) -> None:
        """Visit no more."""
        if sys.version_info >= (3, 12):
            for event in (sys.monitoring.events.INSTRUCTION, sys.monitoring.events.C_RETURN):
                sys.monitoring.register_callback(_TOOL, event, None)
        else:
            sys.settrace(None)
        self._visit = self._base = None

    def _offsets(self, code: CodeType) -> frozenset[int]:
        known = self._known.get(id(code))  # code objects are hashed by what is in them, at length
        if known is None:
            known = self._known[id(code)] = self._where(code) & _every_bytecode(code), code
        return known[0]

    def _on_instruction(self, code: CodeType, offset: int) -> None:
        if offset in self._offsets(code):
            self._on_return(code)

    def _on_return(self, *_: object) -> None:
        if self._visit is None or threading.get_ident() != self._thread:
            return
        frame = sys._getframe(1)
        if self._is_in_destructor(frame):
            return
        try:
            self._visit()
        except BaseException:
            self._visit = None
            raise

    def _trace(self, frame: FrameType, _event: str, _argument: object) -> _Tracer | None:
        """Trace a call: by a function of its code's own, which is called for every bytecode of it."""
        code = frame.f_code
        known = self._tracers.get(id(code))
        if known is None:
            known = self._tracers[id(code)] = self._new_tracer(code) if self._code(code) else None, code
        if known[0] is None or self._is_in_destructor(frame):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return known[0]

    def _new_tracer(self, code: CodeType) -> _Tracer:
        offsets = self._offsets(code)

        def tracer(frame: FrameType, event: str, _argument: object) -> _Tracer:
            if event == "opcode" and frame.f_lasti in offsets and self._visit is not None:
                self._visit()  # what it raises ends the tracing
            return tracer

        return tracer

    def _is_in_destructor(self, frame: FrameType | None) -> bool:
        while frame is not None and frame is not self._base:
            if frame.f_code.co_name == "__del__":
                return True
            frame = frame.f_back
        return False


_Tracer: TypeAlias = Callable[[FrameType, str, object], Any]

_TOOL = 4
"""Of the numbers that ``sys.monitoring`` has for tools, one without a meaning."""


def _all_code() -> Iterator[CodeType]:
    """Yield the code of all functions there are, and of those inside them."""
    gc.unfreeze()  # what is frozen is not among the objects
    found = {id(one.__code__): one.__code__ for one in gc.get_objects() if isinstance(one, FunctionType)}
    left = list(found.values())
    while left:
        code = left.pop()
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType) and id(constant) not in found:
                found[id(constant)] = constant
                left.append(constant)


@contextlib.contextmanager
def at_every_opcode(visit: Callable[[], object], code: Callable[[CodeType], bool]) -> Iterator[None]:
    """Call ``visit`` before every bytecode of the code objects that ``code`` says yes to, in this thread.

    What ``visit`` raises is raised there, as from a signal handler; nothing is visited after that. Left out
    are the bytecodes that call a ``with``'s ``__exit__``, those up to the release of a lock with which a
    ``finally`` begins, NOP, and those of no line (the ends of handlers): CPython delivers no signal there,
    and relies on it where its tables of handlers have gaps. Left out is ``__del__``: what is raised in
    there CPython ignores.
    """
    opcodes = _Opcodes(code)
    opcodes.start(visit, sys._getframe(2))
    try:
        yield
    finally:
        opcodes.stop()
        opcodes.close()


def _every_bytecode(code: CodeType) -> frozenset[int]:
    """Return the offsets of the bytecodes that a test may be called before, see :func:`at_every_opcode`."""
    instructions = list(dis.get_instructions(code))
    left_out = {i.offset for i in instructions if i.opname == "NOP"}
    left_out.update(i.offset for i in instructions if i.positions is None or i.positions.lineno is None)
    for n, (one, two) in enumerate(itertools.pairwise(instructions)):
        if [_loads_none(i) for i in instructions[n : n + 3]] == [True] * 3:
            first, end = n, n + 3
            while instructions[first - 1].opname in ("SWAP", "PUSH_NULL"):
                first -= 1
            while instructions[end].opname in ("PRECALL", "CALL"):
                end += 1
            if end > n + 3:
                left_out.update(i.offset for i in instructions[first:end])
        if two.opname == "WITH_EXCEPT_START":
            left_out.update((one.offset, two.offset))
    return frozenset(instruction.offset for instruction in instructions) - left_out - _releases(instructions)


def _releases(instructions: list[dis.Instruction]) -> frozenset[int]:
    """Return the offsets of what releases a lock, from the test whether to do so up to the call."""
    found: set[int] = set()
    for n, instruction in enumerate(instructions):
        if instruction.argval == "release" and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            first, end = n, n + 1
            while instructions[first - 1].opname.startswith(_LEADS_TO_RELEASE):
                first -= 1
            while instructions[end - 1].opname != "CALL":
                end += 1
            found.update(i.offset for i in instructions[first:end])
    return frozenset(found)


_LEADS_TO_RELEASE = ("LOAD_FAST", "POP_JUMP", "TO_BOOL", "NOT_TAKEN", "NOP", "PUSH_EXC_INFO")


def _loads_none(instruction: dis.Instruction) -> bool:
    """Whether a bytecode puts None on the stack, as happens three times before an ``__exit__`` is called.

    From CPython 3.15 on None is one of the constants that all code shares.
    """
    return instruction.opname in ("LOAD_CONST", "LOAD_COMMON_CONSTANT") and instruction.argval is None


def _handles_signals(code: CodeType) -> frozenset[int]:
    """Return the offsets at which a signal's handler may run: at a call, after one, at a jump back.

    CPython looks for signals when a function has begun, when a call has returned and when it jumps back;
    and C functions that wait look themselves. The first two count as the bytecode after it.
    """
    found: set[int] = set()
    instructions = list(dis.get_instructions(code))
    for one, two in itertools.pairwise(instructions):
        if one.opname in _CALLS or one.opname == "RESUME":
            found.add(two.offset)
        if two.opname in _CALLS or "JUMP_BACKWARD" in two.opname:
            found.add(two.offset)
    return frozenset(found) - _releases(instructions)


_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})


def is_ours(code: CodeType) -> bool:
    """Whether a code object is the package's: the usual thing to visit with :func:`at_every_opcode`."""
    return code.co_filename.startswith(_PACKAGE)


def _raises() -> None:
    raise KeyboardInterrupt


class Interruption:
    """Run a handler at one bytecode of a ``with`` body. If it raises KeyboardInterrupt, that ends there.

    Attributes:
        number: at which, counted from 0.
        visited: how many the body had before it ended or was interrupted.
        happened: whether the body had so many.
    """

    def __init__(self, number: int, opcodes: _Opcodes, handler: Callable[[], object] = _raises) -> None:
        self.number = number
        self.visited = 0
        self.happened = False
        self._opcodes = opcodes
        self._handler = handler

    def __enter__(self) -> Self:
        self._opcodes.start(self._count, sys._getframe(1))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._opcodes.stop()
        return self.happened and kind is KeyboardInterrupt

    def _count(self) -> None:
        if self.visited == self.number:
            self.happened = True
            self._opcodes.stop()  # the handler's own bytecodes do not count, nor what comes after it
            self._handler()
        else:
            self.visited += 1


def interruptions(
    handler: Callable[[], object] = _raises,
    *,
    by_signals: bool = False,
    after_calls: bool = False,
    first: int = 0,
    step: int = 1,
) -> Iterator[Interruption]:
    """Yield an interruption for every bytecode of a body that is the same each time.

    The last one yielded interrupts nothing: the body has got through. What the body imports for the first
    time must have been imported before. The cyclic collector rests in between, see :func:`collector_rests`.

    Args:
        handler: of the signal.
        by_signals: only where CPython lets a signal interrupt: for code that holds what must be given back.
        after_calls: only there, and as part of the call: behind it, tables of handlers may have a gap.
        first: the number of the first one, and...
        step: ... from each to the next: for several tests that share a long body.
    """
    where = _handles_signals if by_signals else _every_bytecode
    opcodes = _Opcodes(is_ours, where, after_calls=after_calls)
    try:
        with collector_rests():
            for number in itertools.count(first, step):
                interruption = Interruption(number, opcodes, handler)
                yield interruption
                if not interruption.happened:
                    # Else the last bytecodes of a longer one have never been interrupted.
                    assert interruption.visited > number // 2, "the body has become shorter on the way"
                    return
    finally:
        opcodes.close()


@contextlib.contextmanager
def collector_rests() -> Iterator[None]:
    """Collect only when asked to, and only what is made from here on.

    By itself the collector would run the ``__del__`` of what was interrupted before, anywhere. And whoever
    asks it thousands of times would have it walk, each time, what all tests before this one have left in
    the process: a server in a thread beside it stood still for seconds. What they have left as garbage stays
    where it is until then, too: to collect it here would take longer than some of the tests take.
    """
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.enable()
        gc.unfreeze()


_PACKAGE = str(Path(aiotimer.__file__).parent) + os.sep


@contextlib.contextmanager
def every_thread_at_once() -> Iterator[None]:
    """Switch threads as often as CPython can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
