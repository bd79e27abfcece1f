"""A report on what the tasks of an event loop wait for, made from inside of it, in slices.

The laws of this file:

* It runs in the loop's thread, between two steps of its tasks. It looks and changes nothing.
* No slice takes longer than ``SLICE``, and one piece of work more: between two the loop runs. The whole takes
  ``WITHIN`` at most; what it has not come to by then is counted. Chains may be cyclic and containers as large
  as they like, so each piece of work is bounded.
* While the loop runs, tasks go on. Nothing but weak references to tasks outlives a slice, and what the answer
  says of a task that it names was true when it was made.
* No code of the program runs: nothing is asked of an object but its type, not even its class, which it may
  make up (``isinstance`` asks for that one); nothing is compared, hashed, measured or written out but what is
  of the interpreter's own types. From CPython 3.14 on asyncio alone can list the tasks, and asks those of a
  class of the program's whether they are done.

This file imports asyncio, so it is imported late.
"""

from __future__ import annotations

import asyncio
import gc
import opcode
import os
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from itertools import islice
from math import inf
from operator import attrgetter
from time import monotonic
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
)
from typing import Any, TypeAlias

from .._core import wire
from .._core.layout import FIRST_DEADLINE
from .._core.table import TimerTable
from .telling import MOST_FRAMES, cut, name_of_type, printable, stack_text

SLICE = 0.003
"""Seconds: the longest that the loop is kept, but for one piece of work that takes longer."""

WITHIN = 0.3
"""Seconds for going through the tasks, what the loop does in between included: the server waits for half a
second (``ASK_WITHIN``)."""

_MOST_TASKS = 50_000
"""Of all loops, that are listed: more are not come to in time, and each takes up to 0.1 us, in one piece."""

_MOST_FRAMED = 2000
"""Tasks whose frames are looked at. To look makes the interpreter make objects, which stay: they would cost a
program of many tasks memory, and bring its garbage collection forward. Of the others those in the same
functions, which wait for the same, count as being at the same place."""

_MOST_PLACES = 1000
"""At which tasks wait: more do not fit into an answer."""

_WITNESSES = 3
"""Of the tasks that waited at one place, how many are looked at again for one that still does."""

_MOST_MOVED_ON = 100
"""Places at which none was found, until the others are left out."""

_MOST_THREADS = 1000
"""Of a process whose threads are all looked at: to list them takes a microsecond each, in one piece."""

_MOST_GATHERED = 10_000
"""Children of a gather or task group that are asked whether they are done: a millisecond."""

_MOST_NAMED = 1000
"""Tasks of a group whose names are looked at for the first one: half a millisecond."""

_MOST_FOLLOWED, _MOST_HOPS = 4, 20
"""Tasks that are in the blocks that are asked for, from which those are followed that they wait for; and how
far: as far as a verdict goes."""

_GATHER = "gather of "
_WAIT = "wait of "
_GROUP = "task group"
_OF_SEVERAL = (_GATHER, _WAIT, _GROUP)

_LEAVES_GROUP = ("asyncio.TaskGroup.__aexit__", "asyncio.TaskGroup._aexit")
"""Where a task waits for those of its group: the second one since 3.13."""

_WAITS = "asyncio._wait"
"""Where a task waits for several others, in ``asyncio.wait``."""

_WAITS_FOR = "asyncio.wait_for"
"""Where it waits for another one, until 3.12: since then it goes on itself."""

_LEAVES_ANYIO_S = "TaskGroup.__aexit__"
_ANYIO = "anyio._backends._asyncio"
"""The same of a group of anyio's, whose module that is."""

_SHIELD = "shield.<locals>._outer_done_callback"
"""What asyncio has a future call that stands for one that is shielded."""

_WRAPPED = "_chain_future.<locals>._call_check_cancel"
"""What asyncio has a future call that stands for a thread's."""

_MOST_CODE = 65_536
"""Bytes of a function that are searched for loops."""

_BACK = frozenset(
    number for name, number in opcode.opmap.items() if re.fullmatch(r"(POP_)?JUMP_BACKWARD(_IF_\w+)?", name)
)
"""Instructions that end a loop of the program's; what awaits ends its own with one of another name."""

_MOST_LINKS = 1000
_MOST_STACKS = 16 * 1024
_ROOM = wire.MAX_FRAME - _MOST_STACKS - 8 * 1024
"""Bytes for what is said of tasks."""

_DEPTH = 6
"""From a frame to a block that it has entered: by a stack of contexts, its queue, a pair, a bound method."""

_BIG = 256
"""Things in a container that is not looked into."""

_MOST_LOOKED_AT = 10_000
"""Things in all containers that are looked into for one task: that takes less than a millisecond."""

_CONTAINERS: dict[int, Callable[[Any], int]] = {
    **{id(kind): kind.__len__ for kind in (tuple, list, dict, deque)},
    **{id(kind): lambda _thing: 2 for kind in (MethodType, ExitStack, AsyncExitStack)},
}
"""By the identity of their type, how much there is in things that are looked into. To look a type up would
hash it, and compare it: its own class may say how."""

_SUSPENDED: dict[int, tuple[Callable[[Any], Any], ...]] = {
    id(CoroutineType): tuple(map(attrgetter, ("cr_await", "cr_code", "cr_frame", "cr_running"))),
    id(GeneratorType): tuple(map(attrgetter, ("gi_yieldfrom", "gi_code", "gi_frame", "gi_running"))),
    id(AsyncGeneratorType): (*map(attrgetter, ("ag_await", "ag_code", "ag_frame")), lambda _link: False),
}
"""By the identity of their type, what coroutines and generators wait for, code and frame, and if they
run. Of those that do (a loop may be run inside of a task, as nest_asyncio has it) it must not be asked what
they wait for: before 3.13 CPython takes what stands behind the running instruction for the next one, and
crashes. An asynchronous generator cannot tell, but it runs only within a coroutine that does."""

_KNOWN_TASKS = {11: "_all_tasks", 12: "_scheduled_tasks", 13: "_scheduled_tasks"}.get(sys.version_info[1], "")
"""In :mod:`asyncio.tasks` the weak set of the tasks of all loops. CPython 3.14 has none."""

Reference: TypeAlias = Callable[[], Any]
"""A weak one, to a task."""

Frame: TypeAlias = tuple[str, int, str]
Place: TypeAlias = tuple[tuple[int, ...], tuple[Frame, ...], str]
"""Slots, frames, and what is waited for: as in :class:`~aiotimer._core.wire.TaskReport`."""


class TaskWalk:
    """A walk over the tasks of a loop, which ends in the answer to an inspector's question.

    Args:
        loop: the loop, whose thread this is.
        question: what is asked.
        table: whose slots are asked for; None: it is not known whose they are.
        block_type: what is entered.
        likely: tasks that are most likely in the blocks that are asked for: they come first, and no other one
            is searched for a block that one of them is in.
        clock: tells how long a slice takes, seconds.
        referents: returns what things refer to.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        question: wire.Inspect,
        table: TimerTable | None,
        block_type: type[Any],
        likely: Sequence[Reference] = (),
        clock: Callable[[], float] = monotonic,
        referents: Callable[..., list[Any]] = gc.get_referents,
    ) -> None:
        self._loop = loop
        self._number = question.number
        self._table = table
        self._asked = frozenset(question.slots) if table is not None else _NOTHING
        self._block_type = block_type
        self._likely = likely
        self._clock = clock
        self._referents = referents
        self._task_type = asyncio.Task  # some replace it by the one that is written in Python
        self._to_frame = _MOST_FRAMED
        self._alike: dict[Any, Place] = {}
        self._boring: dict[int, type] = {}  # by identity, as long as they are kept
        self._wrappers: dict[int, tuple[bool, type]] = {}
        self._words: dict[int, tuple[str, CodeType]] = {}
        self._lines: dict[tuple[int, int], tuple[Frame, CodeType]] = {}
        self._cancelled: dict[int, float] = {}  # by slot, after how many seconds its block cancelled its task
        self._searched: dict[int, tuple[int, Any]] = {}  # in this slice, in vain: how deep from a task
        self._slice_ends = -inf
        self._until = clock() + WITHIN
        self._steps = self._walk()

    def go_on(self) -> bytes | None:
        """Work for one slice; return the frame of the answer if that is complete."""
        self._slice_ends = self._clock() + SLICE
        self._searched.clear()  # in between things have changed, or are other things by now
        for frame in self._steps:
            if frame is not None or self._clock() >= self._slice_ends:
                return frame
        raise RuntimeError("it has been answered")

    def _walk(self) -> Generator[bytes | None]:
        """Yield after each piece of work, at last the answer."""
        places: dict[Place, list[Reference]] = {}
        for reference in self._likely:
            self._visit(reference, self._asked, places)
            yield None
        to_find = self._asked.difference(*(slots for slots, _frames, _waits_for in places))
        references, known = _known_tasks(self._loop)
        yield None
        left_out = known - sum(map(len, places.values()))
        for reference in references:
            if any(reference() is likely() for likely in self._likely):
                continue
            if places and self._clock() >= self._until:
                break
            left_out += self._visit(reference, to_find, places) - 1
            yield None
        left_out -= yield from self._follow(places)
        for place, those in places.items():
            places[place] = yield from self._pending(those)
        self._slice_ends = -inf  # what is said next was true at one and the same time
        yield None
        yield self._answer(places, left_out)

    def _pending(self, references: Iterable[Reference]) -> Generator[None, None, list[Reference]]:
        """Return those of the tasks that are this loop's, and not done."""
        found = []
        for number, reference in enumerate(references):
            if self._is_pending(reference()):
                found.append(reference)
            if not number % 64:
                yield
        return found

    def _is_pending(self, task: Any) -> bool:
        kind = self._task_type
        return issubclass(type(task), kind) and kind.get_loop(task) is self._loop and not kind.done(task)

    def _follow(self, places: dict[Place, list[Reference]]) -> Generator[None, None, int]:
        """See to it that of all at one place those are told of by name that the blocks' own tasks wait for.

        Return how many more tasks have been come to.
        """
        more = 0
        own = [those[0] for (slots, _frames, _waits_for), those in places.items() if slots]
        for one in own[:_MOST_FOLLOWED]:
            reference: Reference | None = one
            for _ in range(_MOST_HOPS):
                yield
                reference = None if reference is None else self._awaited_by(reference())
                if reference is None:
                    break
                before = sum(map(len, places.values()))
                self._visit(reference, _NOTHING, places)
                at = next((those for those in places.values() if those[-1] is reference), None)
                if at is not None:
                    yield from self._put_first(at)
                more += sum(map(len, places.values())) - before
        return more

    def _put_first(self, those: list[Reference]) -> Generator[None, None, None]:
        """Put the last of many tasks first, and leave out where it has been before."""
        reference = those[-1]
        found = [reference]
        for number, one in enumerate(those):
            if one() is not reference():
                found.append(one)
            if not number % 64:
                yield
        those[:] = found

    def _awaited_by(self, task: Any) -> Reference | None:
        """Return the task that another one waits for: of several the first."""
        if not self._is_pending(task):
            return None
        links = self._chain(self._task_type.get_coro(task))
        function = self._innermost(links)
        waiter = self._waiter(task, links, function)
        if not issubclass(type(waiter), self._task_type):
            several = self._several(waiter, links, function)
            waiter = several[1][0] if several is not None and several[1] else None
        return weakref.ref(waiter) if issubclass(type(waiter), self._task_type) else None

    def _visit(
        self, reference: Reference, asked: frozenset[int], places: dict[Place, list[Reference]]
    ) -> int:
        """Note where a task is, and which slots are its; return 1 if there is no room for that."""
        task = reference()
        if not self._is_pending(task):
            return 0
        links, slots, waits_for = self._at(task, asked)
        codes = (id(_SUSPENDED[id(type(link))][1](link)) for link in links)
        alike = slots, waits_for, *codes
        full = len(places) >= _MOST_PLACES and not slots
        place = None if self._to_frame else self._alike.get(alike)
        if place is None and (self._to_frame or not full):
            self._alike[alike] = place = slots, self._frames(links), waits_for
            self._to_frame -= self._to_frame > 0
        if place is None or (full and place not in places):
            return 1
        places.setdefault(place, []).append(reference)
        return 0

    def _answer(self, places: dict[Place, list[Reference]], left_out: int) -> bytes:
        """Return the answer. It has little room, so this takes no longer than a slice either."""
        reports: list[wire.TaskReport] = []
        room, moved_on = _ROOM, 0
        for place, tasks in sorted(places.items(), key=_most_telling_first):
            report = self._report(place, tasks) if room > 0 and moved_on < _MOST_MOVED_ON else None
            room -= 0 if report is None else _size(report)
            moved_on += report is None
            if report is None or room < 0:
                left_out += len(tasks)
            else:
                reports.append(report)
        thread = cut(_name_of_thread(threading.get_ident()), 100)
        loop = cut(f"<{name_of_type(self._loop)}>", 200)
        answer = wire.Tasks(self._number, loop, thread, tuple(reports), left_out, _stacks_of_threads())
        return wire.encode(answer)

    def _report(self, place: Place, tasks: list[Reference]) -> wire.TaskReport | None:
        """Say what is true of the first of these tasks that is still there; None: of none that was tried."""
        for reference in tasks[:_WITNESSES]:
            task = reference()
            if self._is_pending(task):
                links, slots, waits_for = self._at(task, self._asked if place[0] else _NOTHING)
                still = waits_for == place[2] or waits_for.startswith(_OF_SEVERAL)  # of fewer by now
                if still and (slots, self._frames(links)) == place[:2]:
                    return wire.TaskReport(self._name(task), len(tasks), *place[:2], waits_for)
        return None

    def _name(self, task: Any) -> str:
        return cut(self._task_type.get_name(task), 100)

    def _at(self, task: Any, asked: frozenset[int]) -> tuple[list[Any], tuple[int, ...], str]:
        links = self._chain(self._task_type.get_coro(task))
        slots = self._slots_of(links, asked) if asked else ()
        waits_for = self._waits_for(task, links)
        after = next((self._cancelled[slot] for slot in slots if slot in self._cancelled), None)
        if waits_for and after is not None:
            waits_for += f"; cancelled after {after:g} s, and did not end"
        return links, slots, waits_for

    def _chain(self, link: Any) -> list[Any]:
        """Return coroutines and generators, each waiting for the next, outermost first."""
        links: dict[int, Any] = {}
        for _ in range(_MOST_LINKS):
            suspended = _SUSPENDED.get(id(type(link)))
            if suspended is not None:
                links[id(link)] = link
                if suspended[3](link):
                    break
                link = suspended[0](link)
            elif (link := self._wrapped(link)) is None:
                break
        return list(links.values())

    def _wrapped(self, link: Any) -> Any:
        """Return what something wraps, as a step of an asynchronous generator does, if it is suspended."""
        kind = type(link)
        known = self._wrappers.get(id(kind))
        if known is None:
            known = self._wrappers[id(kind)] = issubclass(kind, _NO_WRAPPERS), kind
        if not known[0]:
            for thing in self._referents(link):
                if id(type(thing)) in _SUSPENDED:
                    return thing
        return None

    def _slots_of(self, links: list[Any], asked: frozenset[int]) -> tuple[int, ...]:
        """Return which slots belong to blocks that the frames of these coroutines refer to.

        What has been looked into for one task in vain is not for another one, unless that is nearer to it.
        """
        found: set[int] = set()
        boring, searched, entered = self._boring, self._searched, list[int]()
        level, room = links, _MOST_LOOKED_AT
        for depth in range(_DEPTH):
            things = [thing for thing in self._referents(*level) if id(type(thing)) not in boring]
            level = []
            for thing in things:
                kind = type(thing)
                if (size_of := _CONTAINERS.get(id(kind))) is not None:
                    size = size_of(thing)
                    if size <= min(_BIG, room) and searched.get(id(thing), _NEVER)[0] > depth:
                        room -= size
                        searched[id(thing)] = depth, thing
                        entered.append(id(thing))
                        level.append(thing)
                elif issubclass(kind, self._block_type):
                    found |= self._slot_of(thing) & asked
                else:
                    boring[id(kind)] = kind
            if not level:
                break
        if found:
            for identity in entered:
                searched.pop(identity, None)
        return tuple(sorted(found))

    def _slot_of(self, block: Any) -> frozenset[int]:
        """Return the slot of the table that a block holds, if it does."""
        try:
            word, pool = (object.__getattribute__(block, name) for name in ("_slot", "_pool"))
        except AttributeError:  # it is only being made
            return _NOTHING
        if word is None or pool.table is not self._table:
            return _NOTHING
        slot = word - FIRST_DEADLINE
        self._cancelled.pop(slot, None)
        with suppress(AttributeError):  # it has no grace
            soft = object.__getattribute__(block, "_soft")
            if object.__getattribute__(soft, "fired") is True:
                self._cancelled[slot] = object.__getattribute__(soft, "after")
        return frozenset((slot,))

    def _frames(self, links: list[Any]) -> tuple[Frame, ...]:
        if len(links) > MOST_FRAMES:  # the ends say most
            links = links[: MOST_FRAMES // 2] + links[-MOST_FRAMES // 2 :]
        return tuple(self._line(frame) for frame in map(_frame, links) if frame is not None)

    def _line(self, frame: FrameType) -> Frame:
        code = frame.f_code
        key = id(code), frame.f_lasti
        known = self._lines.get(key)
        if known is None:
            line = cut(code.co_filename, 200), frame.f_lineno or 0, cut(code.co_qualname, 100)
            self._lines[key] = known = line, code  # which keeps it what it is
        return known[0]

    def _within(self, code: CodeType) -> str:
        known = self._words.get(id(code))
        if known is None:
            self._words[id(code)] = known = _in_words(code), code
        return known[0]

    def _waits_for(self, task: Any, links: list[Any]) -> str:
        """Return in words what a task waits for, "" if it is about to run."""
        function = self._innermost(links)
        waiter = self._waiter(task, links, function)
        kind = type(waiter)
        known = issubclass(kind, asyncio.Future)
        if waiter is None:
            return _POLLS if [*map(self._function, links[-2:])] == _YIELDS and _loops(links[:-2]) else ""
        if known and asyncio.Future.done(waiter):
            return ""
        if issubclass(kind, self._task_type):
            return f"task {self._name(waiter)!r}"
        if (several := self._several(waiter, links, function)) is not None:
            return self._in_words(*several)
        if function in ("", _WAITS_FOR) and any(map(_is_of_executor, _callbacks_of(waiter))):
            return "run_in_executor"
        if function:
            return _POLLS if function == "asyncio.sleep" and _loops(links[:-1]) else function
        return cut(f"<{name_of_type(waiter)}{' pending' if known else ''}>", 200)

    def _function(self, link: Any) -> str:
        """Return what a function of asyncio's own is called that a coroutine is of, "" of any other."""
        return self._within(_SUSPENDED[id(type(link))][1](link))

    def _innermost(self, links: list[Any]) -> str:
        """Return what asyncio's own function is called at which a task stands, "" if it is at any other."""
        return self._function(links[-1]) if links else ""

    def _waiter(self, task: Any, links: list[Any], function: str) -> Any:
        """Return the future that a task waits for; of one that stands for another's, that one."""
        waiter = object.__getattribute__(task, "_fut_waiter")
        if type(waiter) is not asyncio.Future or asyncio.Future.done(waiter):
            return waiter
        if function not in ("", _WAITS_FOR):  # asyncio's own functions wait for futures of their own
            return waiter
        behind: list[Any] = self._referents(links[-1]) if function else []
        for call, *_ in _callbacks_of(waiter):
            if type(call) is FunctionType and call.__code__.co_qualname == _SHIELD:
                behind = self._referents(*call.__closure__ or ())
        if not behind:
            return waiter
        futures = {id(one): one for one in behind if issubclass(type(one), asyncio.Future)}
        for one in (waiter, task):  # since 3.14 what a shield calls knows whose it is
            futures.pop(id(one), None)
        return next(iter(futures.values())) if len(futures) == 1 else waiter

    def _several(self, waiter: Any, links: list[Any], function: str) -> tuple[str, list[Any], int] | None:
        """Return what a task waits for if that is several others: in words, and which are not done.

        Those of a group or a set are in the order of their names; of many some, and how many there are.
        """
        if type(waiter) is _Gathering:
            pending = _not_done(waiter._children)
            return f"{_GATHER}{len(waiter._children)}", pending, len(pending)
        if not links:
            return None
        if function == _WAITS:
            found = next((one for one in self._referents(links[-1]) if _are_futures(one)), None)
            what = "" if found is None else f"{_WAIT}{len(found)}"
        else:
            found, what = self._of_group(links[-1], function), _GROUP
        if found is None:
            return None
        pending = _not_done(list(islice(found, _MOST_GATHERED)))
        return what, sorted(pending[:_MOST_NAMED], key=self._rank), len(pending)

    def _of_group(self, link: Any, function: str) -> set[Any] | None:
        """Return the tasks of the group that is being left; None: none is."""
        if function in _LEAVES_GROUP:
            groups = [one for one in self._referents(link) if issubclass(type(one), asyncio.TaskGroup)]
        elif not function and _SUSPENDED[id(type(link))][1](link).co_qualname == _LEAVES_ANYIO_S:
            kind = vars(sys.modules.get(_ANYIO, sys)).get("TaskGroup")
            groups = [one for one in self._referents(link) if type(one) is kind]
        else:
            return None
        tasks = object.__getattribute__(groups[0], "_tasks") if groups else None
        return tasks if type(tasks) is set else None

    def _rank(self, child: Any) -> tuple[int, str]:
        """Return what puts tasks in the order of their names, ``rollout-2`` before ``rollout-11``."""
        name = self._called(child)
        return len(name), name

    def _called(self, child: Any) -> str:
        return self._name(child) if issubclass(type(child), self._task_type) else "future"

    def _in_words(self, what: str, pending: list[Any], count: int) -> str:
        """Return in words which are not done of several."""
        more = f" and {count - 10} more" if count > 10 else ""
        words = f"{what}, of which {count} {'is' if count == 1 else 'are'} not done:"
        return cut(f"{words} {', '.join(repr(self._called(child)) for child in pending[:10])}{more}", 300)


def _not_done(children: list[Any]) -> list[Any]:
    return [
        child
        for child in children[:_MOST_GATHERED]
        if not (issubclass(type(child), asyncio.Future) and asyncio.Future.done(child))
    ]


def _are_futures(thing: Any) -> bool:
    return type(thing) is set and all(
        issubclass(type(one), asyncio.Future) for one in islice(thing, _MOST_GATHERED)
    )


_callbacks: Callable[[Any], Any] = asyncio.Future._callbacks.__get__


def _callbacks_of(future: Any) -> Iterable[tuple[Any, ...]]:
    """Return what a future of asyncio's own calls when it is done; nothing of any other one."""
    return _callbacks(future) or () if type(future) is asyncio.Future else ()


def _is_of_executor(callback: tuple[Any, ...]) -> bool:
    """Whether a future has this callback because it stands for one of a thread (``asyncio.wrap_future``)."""
    function: Any = callback[0]
    return type(function) is FunctionType and function.__code__.co_qualname == _WRAPPED


def _loops(links: list[Any]) -> bool:
    """Whether the innermost of these coroutines that is no sleep itself is in a loop."""
    frames = (_frame(link) for link in reversed(links))
    return _is_in_loop(next((one for one in frames if one and one.f_code.co_name != "sleep"), None))


def _is_in_loop(frame: FrameType | None) -> bool:
    """Whether a frame is suspended between the two ends of a jump back, which a loop ends with."""
    if frame is None:
        return False
    code, at, argument = frame.f_code.co_code[:_MOST_CODE], frame.f_lasti, 0
    for offset in range(0, len(code) - 1, 2):
        operation, argument = code[offset], argument << 8 | code[offset + 1]
        if operation == opcode.EXTENDED_ARG:
            continue
        # Back from behind the instruction: what it caches since 3.12 makes that a word.
        if operation in _BACK and offset + 2 - 2 * argument <= at < offset:
            return True
        argument = 0
    return False


def _in_words(code: CodeType) -> str:
    """Return what a function of asyncio's own is called, "" of any other."""
    ours = os.path.basename(os.path.dirname(code.co_filename)) == "asyncio"
    return cut(f"asyncio.{code.co_qualname}", 300) if ours else ""


_POLLS = "asyncio.sleep in a loop"
_YIELDS = ["asyncio.sleep", "asyncio.__sleep0"]
_NEVER = _DEPTH, None
_NOTHING = frozenset[int]()
_NO_WRAPPERS = (type(None), asyncio.Future, tuple, list, dict, set, frozenset, deque)
_Gathering: type[Any] = asyncio.tasks._GatheringFuture  # type: ignore[attr-defined]


def _known_tasks(loop: asyncio.AbstractEventLoop) -> tuple[Iterable[Reference], int]:
    """Return weak references to what may be tasks of a loop, and how many such tasks there may be."""
    known = getattr(getattr(asyncio.tasks, _KNOWN_TASKS, None), "data", None)
    if type(known) is set:
        listed = list(islice(known, _MOST_TASKS))
        return (listed.pop() for _ in range(len(listed))), len(known)
    # From 3.14 on tasks are in linked lists of the interpreter's own, and nothing else goes through them: all
    # of all loops in one piece, 3 ms for 50,000, but 9 to 16 for 100,000, by when the caches are too small.
    tasks = asyncio.all_tasks(loop)
    return (weakref.ref(tasks.pop()) for _ in range(len(tasks))), len(tasks)


def _most_telling_first(item: tuple[Place, list[Reference]]) -> tuple[bool, int, tuple[Frame, ...]]:
    (slots, frames, _waits_for), tasks = item
    return not slots, -len(tasks), frames


def _frame(link: Any) -> FrameType | None:
    frame: FrameType | None = _SUSPENDED[id(type(link))][2](link)
    return frame


def _stacks_of_threads() -> str:
    """Return stacks of threads as ``faulthandler`` writes them, the main one last: as many as fit.

    It is not asked to, because it writes all stacks in one piece, however many and deep they are.
    """
    own, room = threading.get_ident(), _MOST_STACKS
    few = len(_threads) <= _MOST_THREADS
    frames = sys._current_frames() if few else {own: sys._getframe()}
    texts = []
    for ident in dict.fromkeys((threading.main_thread().ident or 0, own, *frames)):
        text = f"{'Current thread' if ident == own else 'Thread'} 0x{ident:016x}"
        if name := _name_of_thread(ident):
            text += f" [{cut(printable(name), 100)}]"
        text += f" (most recent call first):\n{stack_text(frames.get(ident), room - 200)}"
        room -= len(text.encode()) + 1
        if room < 0:
            break
        texts.append(text)
    return "\n".join(reversed(texts))


_threads: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]


def _name_of_thread(ident: int) -> str:
    """Return the name of a thread, "" if it is not known. ``threading.current_thread`` would make one up."""
    thread = _threads.get(ident)
    name = None if thread is None else object.__getattribute__(thread, "_name")
    return name if type(name) is str else ""


def _size(report: wire.TaskReport) -> int:
    """Return at least as many bytes as a report takes in a frame."""
    texts = sum(len(file.encode()) + len(function.encode()) + 16 for file, _, function in report.frames)
    return texts + len(report.name.encode()) + len(report.waits_for.encode()) + 9 * len(report.slots) + 48
