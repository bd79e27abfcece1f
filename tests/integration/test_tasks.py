"""A worker tells what its tasks wait for, and writes its stacks when it is sent its signal."""

import asyncio
import contextlib
import ctypes
import gc
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine, Iterator
from math import inf
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar

import anyio
import pytest

import aiotimer
from aiotimer import Block, expires
from aiotimer._core import layout, wire
from aiotimer._core.table import Pool, TimerTable
from aiotimer.client import dump_signal, inspection
from aiotimer.client.tasks import SLICE, WITHIN, TaskWalk
from aiotimer.evidence import stacks
from aiotimer.testing import virtual
from tests.fakes.clock import PATIENCE, Clock


@pytest.fixture(autouse=True)
def no_task_of_another_test() -> None:
    """A task that a test has left in a cycle stays in asyncio's set of tasks until that is collected."""
    gc.collect()


def decoded(frame: bytes) -> wire.Tasks:
    assert len(frame) <= wire.MAX_FRAME
    (message,) = wire.server_decoder().feed(frame)
    assert isinstance(message, wire.Tasks)
    return message


class Jumping:
    """A clock that is later each time that it is read: so that every piece of work takes a slice."""

    def __init__(self, by: float = SLICE) -> None:
        self.now = 0.0
        self.by = by
        self.has_been_read = asyncio.Event()

    def __call__(self) -> float:
        self.now += self.by
        self.has_been_read.set()
        return self.now


def walk(table: TimerTable | None = None, *slots: int, **handed_in: Any) -> TaskWalk:
    return TaskWalk(asyncio.get_running_loop(), wire.Inspect(1, slots), table, Block, **handed_in)


def slices(walking: TaskWalk) -> Iterator[wire.Tasks | None]:
    """Yield what each slice comes to, at last the answer."""
    frame = None
    while frame is None:
        frame = walking.go_on()
        yield None if frame is None else decoded(frame)


def answer_of(walking: TaskWalk) -> wire.Tasks:
    (answer,) = filter(None, slices(walking))
    return answer


async def told(table: TimerTable | None, *slots: int) -> wire.Tasks:
    return answer_of(walk(table, *slots, clock=Clock()))


def at(tasks: wire.Tasks, name: str) -> wire.TaskReport:
    return next(report for report in tasks.tasks if report.name == name)


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def ended(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_waits_are_told_in_words() -> None:
    lock, queue = asyncio.Lock(), asyncio.Queue[int]()
    await lock.acquire()
    future, left = asyncio.get_running_loop().create_future(), threading.Event()

    async def waits(what: Callable[[], Any]) -> None:
        await what()

    async def for_future() -> None:
        await future

    async def for_gather() -> None:
        await asyncio.gather(tasks[4], asyncio.sleep(0), tasks[5])

    async def polls() -> None:
        for _ in range(2):
            await asyncio.sleep(PATIENCE)

    async def sleeps() -> None:
        for _ in range(2):
            pass
        await asyncio.sleep(PATIENCE)

    async def for_executor() -> None:
        await asyncio.get_running_loop().run_in_executor(None, left.wait, PATIENCE)

    tasks = [
        asyncio.create_task(polls(), name="polls"),
        asyncio.create_task(sleeps(), name="sleeps"),
        asyncio.create_task(for_executor(), name="executor"),
        asyncio.create_task(asyncio.to_thread(left.wait, PATIENCE), name="thread"),
        asyncio.create_task(waits(lock.acquire), name="lock"),
        asyncio.create_task(waits(queue.get), name="queue"),
        asyncio.create_task(for_future(), name="future"),
        asyncio.create_task(for_gather(), name="gather"),
    ]
    await settled()
    found = await told(None)
    left.set()
    assert at(found, "lock").waits_for == "asyncio.Lock.acquire"
    assert at(found, "queue").waits_for == "asyncio.Queue.get"
    assert "Future" in at(found, "future").waits_for
    assert at(found, "gather").waits_for == "gather of 3, of which 2 are not done: 'lock', 'queue'"
    assert at(found, "polls").waits_for == "asyncio.sleep in a loop"
    assert at(found, "sleeps").waits_for == "asyncio.sleep"
    assert at(found, "executor").waits_for == "run_in_executor"
    assert at(found, "thread").waits_for == "asyncio.to_thread"
    functions = [function.rpartition(".")[2] for _, _, function in at(found, "lock").frames]
    assert functions == ["waits", "acquire"]
    assert "test_tasks.py" in found.stacks
    assert "aiotimer/client/tasks.py" not in found.stacks, "what answers is not what it was doing"
    await ended(*tasks)


async def test_who_waits_by_way_of_a_library_is_followed() -> None:
    forever, queue = asyncio.Event(), asyncio.Queue[None]()

    async def waits_for(awaitable: Callable[[], Any]) -> None:
        await awaitable()

    async def yields() -> None:
        for _ in iter(int, 1):
            await asyncio.sleep(0)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def polls() -> None:
        while True:
            await sleep(PATIENCE)

    lost = [asyncio.create_task(forever.wait(), name=f"lost-{n}") for n in range(12)]
    left = threading.Event()
    loop = asyncio.get_running_loop()
    shielded = asyncio.create_task(queue.get(), name="shielded")
    ways: dict[str, Callable[[], Any]] = {
        "wait": lambda: asyncio.wait(lost[3:]),
        "shield": lambda: asyncio.shield(shielded),
        "shield of several": lambda: asyncio.shield(asyncio.gather(*lost[:2])),
        "wait_for": lambda: asyncio.wait_for(asyncio.gather(lost[5], lost[6]), PATIENCE),
        "limited": lambda: asyncio.wait_for(loop.run_in_executor(None, left.wait, PATIENCE), PATIENCE),
        "future": lambda: asyncio.wait_for(loop.create_future(), PATIENCE),
        "yields": yields,
        "polls": polls,
    }
    tasks = [asyncio.create_task(waits_for(way), name=name) for name, way in ways.items()]
    await settled()
    found = await told(None)
    left.set()
    named = ", ".join(f"'lost-{n}'" for n in (3, 4, 5, 6, 7, 8, 9, 10, 11))
    assert at(found, "wait").waits_for == f"wait of 9, of which 9 are not done: {named}"
    assert at(found, "shield").waits_for == "task 'shielded'"
    several = "gather of 2, of which 2 are not done: "
    assert at(found, "shield of several").waits_for == several + "'lost-0', 'lost-1'"
    assert at(found, "wait_for").waits_for == several + "'lost-5', 'lost-6'"
    assert at(found, "limited").waits_for == "run_in_executor"
    assert at(found, "future").waits_for == "asyncio.wait_for"
    assert at(found, "yields").waits_for == "asyncio.sleep in a loop"
    assert at(found, "polls").waits_for == "asyncio.sleep in a loop"
    await ended(*tasks, *lost, shielded)


async def test_a_group_of_anyio_s() -> None:
    forever = asyncio.Event()

    async def leaves() -> None:
        async with anyio.create_task_group() as group:
            for n in range(3):
                group.start_soon(forever.wait, name=f"lost-{n}")

    task = asyncio.create_task(leaves(), name="leaves")
    await settled()
    await settled()
    found = await told(None)
    assert at(found, "leaves").waits_for == (
        "task group, of which 3 are not done: 'lost-0', 'lost-1', 'lost-2'"
    )
    await ended(task)


async def test_of_several_the_first_one_is_told_of_by_name() -> None:
    forever = asyncio.Event()

    async def outer() -> None:
        async with expires(60, "slot") as block:
            entered.append(block)
            await asyncio.gather(*lost)

    entered: list[Block] = []
    others = [asyncio.create_task(forever.wait(), name=f"other-{n}") for n in range(50)]
    lost = [asyncio.create_task(forever.wait(), name=f"lost-{n}") for n in range(3)]
    with virtual():
        task = asyncio.create_task(outer(), name="outer")
        await settled()
        (block,) = entered
        assert block._slot is not None
        found = await told(block._pool.table, block._slot - layout.FIRST_DEADLINE)
        await ended(task, *others)
    waits_for = "gather of 3, of which 3 are not done: 'lost-0', 'lost-1', 'lost-2'"
    assert at(found, "outer").waits_for == waits_for
    assert at(found, "lost-0").count == 53


async def test_a_task_group_s_first_task_is_told_of_by_name() -> None:
    forever = asyncio.Event()

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            for n in reversed(range(30)):
                group.create_task(forever.wait(), name=f"lost-{n}")

    async def outer() -> None:
        async with expires(60, "slot") as block, asyncio.TaskGroup() as group:
            entered.append(block)
            group.create_task(asyncio.sleep(0), name="ends")
            group.create_task(inner(), name="inner")

    entered: list[Block] = []
    others = [asyncio.create_task(forever.wait(), name=f"other-{n}") for n in range(100)]
    with virtual():
        task = asyncio.create_task(outer(), name="outer")
        await settled()
        await settled()
        (block,) = entered
        assert block._slot is not None
        found = await told(block._pool.table, block._slot - layout.FIRST_DEADLINE)
        await ended(task, *others)
    assert at(found, "outer").waits_for == "task group, of which 1 is not done: 'inner'"
    first_ten = ", ".join(f"'lost-{n}'" for n in range(10))
    waits_for = f"task group, of which 30 are not done: {first_ten} and 20 more"
    assert at(found, "inner").waits_for == waits_for
    assert at(found, "lost-0").count == 130, "of all that wait there, it is the one that the block waits for"
    assert sum(one.count for one in found.tasks) == len(others) + len(("outer", "inner")) + 30 + 1
    assert found.left_out == 0


async def test_a_thousand_equal_waits_are_one_report() -> None:
    event = asyncio.Event()
    tasks = [asyncio.create_task(event.wait()) for _ in range(1000)]
    await settled()
    found = await told(None)
    assert 1000 in [report.count for report in found.tasks]
    await ended(*tasks)


async def test_what_does_not_fit_is_counted() -> None:
    event = asyncio.Event()
    source = "async def f{n}(event):\n    await event.wait()\n"
    names: dict[str, Any] = {}
    for n in range(2000):
        exec(source.format(n=n), names)
    tasks = [asyncio.create_task(names[f"f{n}"](event), name="\udcff" * 500) for n in range(2000)]
    await settled()
    found = await told(None)
    assert found.left_out + sum(report.count for report in found.tasks) == 2001
    assert found.left_out > 0
    await ended(*tasks)


async def test_the_task_that_entered_a_block_is_told() -> None:
    with virtual():
        entered: list[Block] = []
        event = asyncio.Event()

        async def plain() -> None:
            async with expires(60, "slot") as block:
                entered.append(block)
                await event.wait()

        async def stacked() -> None:
            async with __import__("contextlib").AsyncExitStack() as stack:
                entered.append(await stack.enter_async_context(expires(60, "slot")))
                await event.wait()

        @expires(60, "decorated")
        async def decorated() -> None:
            await event.wait()

        tasks = [
            asyncio.create_task(plain(), name="plain"),
            asyncio.create_task(stacked(), name="stacked"),
            asyncio.create_task(decorated(), name="decorated"),
        ]
        await settled()
        table = entered[0]._pool.table
        slots = [layout.FIRST_DEADLINE + n for n in range(table.high_water)]
        found = await told(table, *(word - layout.FIRST_DEADLINE for word in slots))
        for block, name in zip(entered, ("plain", "stacked"), strict=True):
            assert block._slot is not None
            assert at(found, name).slots == (block._slot - layout.FIRST_DEADLINE,)
        assert len(at(found, "decorated").slots) == 1
        assert not any(report.slots for report in (await told(None, 0, 1, 2)).tasks)
        await ended(*tasks)


async def test_a_task_that_was_cancelled_and_did_not_end_is_told() -> None:
    with virtual() as timers:
        entered: list[Block] = []
        event = asyncio.Event()

        async def swallows() -> None:
            async with expires(1, "s", grace=60) as block:
                entered.append(block)
                with contextlib.suppress(asyncio.CancelledError):
                    await event.wait()
                await event.wait()

        task = asyncio.create_task(swallows(), name="swallows")
        await settled()
        (block,) = entered
        assert block._slot is not None
        table, slot = block._pool.table, block._slot - layout.FIRST_DEADLINE
        assert at(await told(table, slot), "swallows").waits_for == "asyncio.Event.wait"
        timers.advance(1)
        await settled()
        said = at(await told(table, slot), "swallows").waits_for
        assert said == "asyncio.Event.wait; cancelled after 1 s, and did not end"
        await ended(task)


# -- in slices -------------------------------------------------------------------------------------------


def functions(number: int) -> list[Callable[[Any], Coroutine[Any, Any, Any]]]:
    """Return coroutine functions that await what they are given, each at a place of its own."""
    names: dict[str, Any] = {}
    for n in range(number):
        exec(f"async def f{n}(waited_for):\n    await waited_for\n", names)
    return [names[f"f{n}"] for n in range(number)]


async def waiting_tasks(number: int) -> "tuple[list[asyncio.Future[None]], list[asyncio.Task[None]]]":
    """Return futures, and tasks that wait for them, each at a place of its own and named by its number."""
    futures = [asyncio.get_running_loop().create_future() for _ in range(number)]
    tasks = [
        asyncio.create_task(function(future), name=f"{n}")
        for n, (function, future) in enumerate(zip(functions(number), futures, strict=True))
    ]
    await settled()
    return futures, tasks


async def test_each_slice_ends_when_its_time_is_over() -> None:
    _, tasks = await waiting_tasks(20)
    pieces = sum(1 for _ in slices(walk(clock=Jumping())))
    assert pieces > len(tasks)
    assert sum(1 for _ in slices(walk(clock=Clock()))) == 2, "what is said last has a slice of its own"
    await ended(*tasks)


async def test_what_the_time_is_not_enough_for_is_counted() -> None:
    _, tasks = await waiting_tasks(20)
    found = answer_of(walk(clock=Jumping(WITHIN)))
    assert sum(report.count for report in found.tasks) == 1
    assert found.left_out == len(tasks)
    await ended(*tasks)


RUNNING = """
import asyncio
import subprocess
import sys
from aiotimer._core import wire
from aiotimer.client.block import Block
from aiotimer.client.tasks import TaskWalk

class Look:
    def __call__(self):
        walking = TaskWalk(asyncio.get_running_loop(), wire.Inspect(1, ()), None, Block)
        while walking.go_on() is None:
            pass

async def main():
    look = Look()
    for _ in range(3000):
        look()

asyncio.run(main())
"""
"""A loop is inspected from inside of one of its tasks, whatever the interpreter notes there."""


def test_a_task_that_runs_may_be_looked_at() -> None:
    assert subprocess.run([sys.executable, "-c", RUNNING], check=False).returncode == 0


async def test_a_task_that_ends_meanwhile_is_left_out() -> None:
    moment, moments = 0, 1
    while moment < moments:
        futures, tasks = await waiting_tasks(4)
        for number, found in enumerate(slices(walk(clock=Jumping()))):
            if number == moment and found is None:
                futures[2].set_result(None)
                await settled()
        assert found is not None
        moment, moments = moment + 1, number + 1
        named = [report.name for report in found.tasks]
        assert sorted(named)[:-1] == [f"{n}" for n in range(4) if n != 2 or not futures[2].done()]
        assert found.left_out <= 1, "it ended when all was counted"
        await ended(*tasks)
    assert moments > 4


async def test_a_task_that_goes_on_meanwhile_is_not_where_it_was() -> None:
    async def goes_on(first: Awaitable[None]) -> None:
        await first
        await asyncio.Event().wait()

    moment, moments = 0, 1
    while moment < moments:
        first = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(goes_on(first), name="goes on")
        await settled()
        before = at(await told(None), "goes on").frames
        for number, found in enumerate(slices(walk(clock=Jumping()))):
            if number == moment and found is None:
                first.set_result(None)
                await settled()
        assert found is not None
        moment, moments = moment + 1, number + 1
        assert (before in [report.frames for report in found.tasks]) == (not first.done())
        assert found.left_out + sum(report.count for report in found.tasks) == 2
        await ended(task)


async def test_what_many_share_is_looked_into_once_and_what_is_big_never() -> None:
    shared, big = [["something"]], [object()] * 1000
    looked_into: Counter[int] = Counter()

    def referents(*things: object) -> list[Any]:
        looked_into.update(map(id, things))
        return gc.get_referents(*things)

    async def holds(shared: object, big: object) -> None:
        await asyncio.Event().wait()

    with virtual():
        async with expires(60, "slot") as block:
            tasks = [asyncio.create_task(holds(shared, big)) for _ in range(100)]
            await settled()
            answer_of(walk(block._pool.table, layout.SLOTS - 1, clock=Clock(), referents=referents))
    assert looked_into[id(shared)] == looked_into[id(shared[0])] == 1
    assert looked_into[id(big)] == 0
    await ended(*tasks)


async def test_what_one_task_is_too_far_from_another_one_is_near() -> None:
    async def holds(what: object) -> None:
        await asyncio.Event().wait()

    with virtual():
        async with expires(60, "slot") as block:
            near = [[block]]
            far = [[[[near]]]]
            tasks = [asyncio.create_task(holds(far), name="far") for _ in range(20)]
            tasks.append(asyncio.create_task(holds(near), name="near"))
            await settled()
            assert block._slot is not None
            slot = block._slot - layout.FIRST_DEADLINE
            found = answer_of(walk(block._pool.table, slot, clock=Clock()))
    assert at(found, "near").slots == (slot,)
    assert at(found, "far").slots == ()
    await ended(*tasks)


async def test_who_is_likely_to_be_in_the_block_comes_first_and_may_be_wrong() -> None:
    with virtual():
        async with expires(60, "slot") as block:
            assert block._slot is not None
            table, slot = block._pool.table, block._slot - layout.FIRST_DEADLINE
            own = asyncio.current_task()
            assert own is not None
            _, tasks = await waiting_tasks(100)
            in_a_hurry = answer_of(walk(table, slot, likely=[weakref.ref(own)], clock=Jumping(WITHIN)))
            at_leisure = answer_of(walk(table, slot, likely=[weakref.ref(own)], clock=Clock()))
            wrong = answer_of(walk(table, slot, likely=[weakref.ref(tasks[0])], clock=Clock()))
    assert in_a_hurry.tasks[0].slots == at_leisure.tasks[0].slots == wrong.tasks[0].slots == (slot,)
    assert {report.name for report in in_a_hurry.tasks} < {report.name for report in at_leisure.tasks}
    for found in in_a_hurry, at_leisure, wrong:
        assert found.left_out + sum(report.count for report in found.tasks) == 1 + len(tasks)
    await ended(*tasks)


async def test_of_many_tasks_that_are_alike_only_some_have_their_frames_made() -> None:
    if sys.gettrace() is not None:
        pytest.skip("a tracer (coverage, a debugger) has the interpreter make every frame")
    event = asyncio.Event()

    async def waits() -> None:
        await event.wait()

    tasks = [asyncio.create_task(waits()) for _ in range(2500)]
    await settled()
    found = await told(None)
    assert 2500 in [report.count for report in found.tasks]
    coroutines = [task.get_coro() for task in tasks]
    made = [any(isinstance(thing, FrameType) for thing in gc.get_referents(one)) for one in coroutines]
    assert 0 < sum(made) <= 2000
    await ended(*tasks)


class Watched(type):
    """A class of a program's, of which nothing may be asked: it writes down who did."""

    asked: ClassVar[list[str]] = []

    def __hash__(cls) -> int:
        Watched.asked.append("hash of the class")
        return type.__hash__(cls)

    def __eq__(cls, other: object) -> bool:
        Watched.asked.append("== of the class")
        return cls is other

    def __getattribute__(cls, name: str) -> Any:
        Watched.asked.append(f"{name} of the class")
        return type.__getattribute__(cls, name)


class Hostile(metaclass=Watched):
    """A thing of a program's, of which nothing may be asked."""

    def __getattribute__(self, name: str) -> Any:
        Watched.asked.append(name)
        return object.__getattribute__(self, name)

    def __hash__(self) -> int:
        Watched.asked.append("hash")
        return 1

    def __eq__(self, other: object) -> bool:
        Watched.asked.append("==")
        return self is other

    def __len__(self) -> int:
        Watched.asked.append("len")
        return 0

    def __repr__(self) -> str:
        Watched.asked.append("repr")
        return ""


class HostileWaiter(Hostile):
    """What a program awaits, and what goes on waiting for a future."""

    def __await__(self) -> Any:
        return self

    def __next__(self) -> object:
        return self.future


class HostileFuture(Hostile, asyncio.Future[None]):
    """A future of a program's."""


class HostileTask(Hostile, asyncio.Task[None]):
    """A task of a program's."""


class HostileList(HostileWaiter, list[Any]):  # type: ignore[misc]
    """A list of a program's, and as large as it likes."""


async def test_no_code_of_the_program_runs() -> None:
    loop = asyncio.get_running_loop()

    async def waits(what: Any, *holds: object) -> None:
        await what

    def wrapper(kind: type[Any]) -> Any:
        one = kind()
        one.future = loop.create_future()
        one.future._asyncio_future_blocking = True
        return one

    tasks = [
        asyncio.create_task(waits(HostileFuture(loop=loop), Hostile(), [Hostile()], {1: Hostile()})),
        asyncio.create_task(waits(wrapper(HostileWaiter))),
        asyncio.create_task(waits(wrapper(HostileList))),
        HostileTask(waits(loop.create_future()), loop=loop, name="hostile"),
    ]
    await settled()
    with virtual():
        async with expires(60, "slot") as block:
            Watched.asked.clear()
            walking = walk(block._pool.table, 0, clock=Jumping())
            walking.go_on()
            if sys.version_info >= (3, 14):
                Watched.asked.clear()  # by asyncio, which alone can list the tasks
            found = answer_of(walking)
            assert Watched.asked == []
    assert found.left_out == 0
    assert sum(report.count for report in found.tasks) == 1 + len(tasks)
    assert any(report.waits_for.endswith("HostileFuture pending>") for report in found.tasks)
    await ended(*tasks)


# -- the stacks of threads -------------------------------------------------------------------------------


def deep(levels: int, reached: threading.Event, until: threading.Event) -> None:
    if levels:
        deep(levels - 1, reached, until)
    else:
        reached.set()
        until.wait(PATIENCE)


@contextlib.contextmanager
def threads(number: int, levels: int) -> Iterator[None]:
    """Have so many threads, each of which is so many calls deep in a function."""
    until, each = threading.Event(), [threading.Event() for _ in range(number)]
    with contextlib.ExitStack() as stack:
        stack.callback(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 2 * levels))
        made = [
            threading.Thread(target=deep, args=(levels, reached, until), name=f"deep\n{n}")
            for n, reached in enumerate(each)
        ]
        for one in made:
            stack.callback(one.join)
        stack.callback(until.set)
        for one, reached in zip(made, each, strict=True):
            one.start()
            assert reached.wait(PATIENCE)
            while not is_waiting(one):
                time.sleep(0)
        yield


def is_waiting(thread: threading.Thread) -> bool:
    """Whether a thread is in ``Event.wait`` and, of that, in ``Condition.wait``."""
    assert thread.ident is not None
    frame = sys._current_frames()[thread.ident]
    back = frame.f_back
    return back is not None and frame.f_code.co_name == back.f_code.co_name == "wait"


async def test_the_stacks_of_threads_are_the_innermost_frames() -> None:
    with threads(1, 5000):
        found = stacks.parse((await told(None)).stacks)
    (other,) = (one for one in found if one["thread"].startswith("deep"))
    main = found[-1]
    assert (main["main"], main["current"], other["main"], other["current"]) == (True, True, False, False)
    assert main["ident"] == threading.get_ident()
    assert other["thread"] == r"deep\n0"
    assert len(other["frames"]) <= 100
    assert [function for *_, function in other["frames"]][-3:] == ["deep", "wait", "wait"]


@pytest.mark.parametrize(("number", "told_of"), [(150, range(2, 101)), (1001, (1,))])
async def test_of_too_many_threads_the_own_one_is_told(number: int, told_of: Container[int]) -> None:
    with threads(number, 2):
        found = stacks.parse((await told(None)).stacks)
    assert len(found) in told_of
    assert found[-1]["current"]
    assert any("test_of_too_many_threads" in function for *_, function in found[-1]["frames"])


async def test_a_loop_in_another_thread_is_told_from_the_main_one() -> None:
    found = stacks.parse((await asyncio.to_thread(asyncio.run, told(None))).stacks)
    assert found[-1]["main"]
    assert found[-1]["ident"] == threading.main_thread().ident
    assert [one["current"] for one in found].count(True) == 1
    assert not found[-1]["current"]


# -- channels --------------------------------------------------------------------------------------------


async def test_a_channel_answers_from_inside_of_the_loop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "s")
        listener.bind(path)
        listener.listen()
        before = set(os.listdir("/proc/self/fd"))
        client = aiotimer.AsyncTimerClient(path)
        inspection.open_inspection_channel(client._queue, Block, None)
        inspection.open_inspection_channel(client._queue, Block, None)
        peer, _ = listener.accept()
        with peer:
            peer.setblocking(False)
            loop = asyncio.get_running_loop()
            (first,) = wire.server_decoder().feed(await loop.sock_recv(peer, 1000))
            assert first == wire.Attend(wire.PROTOCOL_VERSION)
            decoder = wire.server_decoder()
            await loop.sock_sendall(peer, wire.encode(wire.Inspect(7)))
            answers: list[Any] = []
            while not answers:
                answers += decoder.feed(await loop.sock_recv(peer, 65_536))
            assert answers[0].number == 7
            assert any("test_a_channel" in name for task in answers[0].tasks for *_, name in task.frames)
            await client.aclose()
            assert await loop.sock_recv(peer, 10) == b""
        assert set(os.listdir("/proc/self/fd")) == before


class Queue:
    """What a channel needs to know of its queue."""

    def __init__(self, path: str, table: TimerTable | None) -> None:
        self.shared = True
        self.path = path
        self.table = table
        self.pools: dict[str, Pool] = {}
        self.next_channel_attempt = -inf


@contextlib.asynccontextmanager
async def slow_channel(
    path: str, table: TimerTable | None = None
) -> "AsyncIterator[tuple[inspection.InspectionChannel, socket.socket, Jumping]]":
    """A channel that needs a slice for each piece of work, the server's end of it, and its clock."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        clock, loop, queue = Jumping(), asyncio.get_running_loop(), Queue(path, table)
        channel = inspection.InspectionChannel(loop, queue, Block, clock)
        channel.open()
        peer, _ = listener.accept()
        with peer:
            peer.setblocking(False)
            await loop.sock_recv(peer, 1000)
            yield channel, peer, clock
        channel.close()


async def test_fault_75_the_loop_runs_between_the_slices_of_an_answer(tmp_path: Path) -> None:
    loop, turns = asyncio.get_running_loop(), 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        ticking[0] = loop.call_soon(turn)

    _, tasks = await waiting_tasks(20)
    async with slow_channel(str(tmp_path / "s")) as (_channel, peer, _clock):
        await loop.sock_sendall(peer, wire.encode(wire.Inspect(1)))
        ticking = [loop.call_soon(turn)]
        (answer,) = wire.server_decoder().feed(await loop.sock_recv(peer, 65_536))
        ticking[0].cancel()
    assert isinstance(answer, wire.Tasks)
    assert answer.left_out == 0
    assert turns > len(tasks)
    await ended(*tasks)


async def test_a_channel_knows_which_task_has_taken_a_slot(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    _, tasks = await waiting_tasks(200)  # for which there is not time enough
    with virtual():
        async with expires(60, "slot") as block:
            assert block._slot is not None
            slot = block._slot - layout.FIRST_DEADLINE
            async with slow_channel(str(tmp_path / "s"), block._pool.table) as (channel, peer, _clock):
                channel.note_entry(block._slot)
                await loop.sock_sendall(peer, wire.encode(wire.Inspect(1, (slot,))))
                (answer,) = wire.server_decoder().feed(await loop.sock_recv(peer, 65_536))
    assert isinstance(answer, wire.Tasks)
    assert answer.left_out > 0
    assert answer.tasks[0].slots == (slot,)
    await ended(*tasks)


async def test_a_channel_knows_which_task_had_taken_a_slot_before_it_was_open(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "s")
        listener.bind(path)
        listener.listen()
        client = aiotimer.AsyncTimerClient(path)
        queue, own = client._queue, asyncio.current_task()
        queue.want_channel(Block, 7)
        other = asyncio.create_task(asyncio.to_thread(queue.want_channel, Block, 5), name="other")
        await other  # it is in no loop
        queue.want_channel(Block, 8)
        queue.open_channels()
        await settled()
        (channel,) = [of_loop[path] for of_loop in inspection._channels.values() if path in of_loop]
        assert {slot: known() for slot, known in channel._entries.items()} == {7: own, 8: own}
        assert channel.is_open
        await client.aclose()


async def test_a_channel_that_is_closed_before_it_has_answered_goes_no_further(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    _, tasks = await waiting_tasks(20)
    async with slow_channel(str(tmp_path / "s")) as (channel, peer, clock):
        peer.sendall(wire.encode(wire.Inspect(1)))
        await clock.has_been_read.wait()
        channel.close()
        assert await loop.sock_recv(peer, 10) == b""
        await settled()
    await ended(*tasks)


async def test_a_question_before_the_answer_to_the_last_ends_the_channel(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    _, tasks = await waiting_tasks(20)
    async with slow_channel(str(tmp_path / "s")) as (channel, peer, _clock):
        peer.sendall(wire.encode(wire.Inspect(1)) + wire.encode(wire.Inspect(2)))
        with contextlib.suppress(ConnectionResetError):
            assert await loop.sock_recv(peer, 10) == b""
        assert not channel.is_open
    await ended(*tasks)


PROGRAM = """
    import ctypes, mmap, os, signal, sys, time
    from aiotimer.client import dump_signal
    from aiotimer._core import layout
    from aiotimer._core.table import Pool, TimerTable

    descriptor = os.memfd_create("table")
    os.ftruncate(descriptor, layout.TABLE_SIZE)
    table = TimerTable(mmap.mmap(descriptor, layout.TABLE_SIZE), now=time.monotonic)
    stacks = dump_signal.register(table, descriptor, os.fstat(descriptor).st_ino)
    print(stacks is not None, int(table.cells[layout.DUMP_SIGNAL]), flush=True)
    if stacks is None:
        sys.exit()

    def hang_with_the_gil():
        child = os.fork()
        if not child:
            os.kill(os.getppid(), stacks.signum)
            os._exit(0)
        ctypes.PyDLL(None).usleep(200_000)
        os.waitpid(child, 0)

    hang_with_the_gil()
    print("hang_with_the_gil" in os.pread(descriptor, 4096, layout.STACKS_OFFSET).decode(), flush=True)
    stacks.undo()
    print(signal.getsignal(stacks.signum) == signal.SIG_DFL, flush=True)
"""


def run_program(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.split()


def test_a_worker_writes_its_stacks_while_it_holds_the_gil() -> None:
    stands, signum, written, undone = run_program()
    assert (stands, written, undone) == ("True", "True", "True")
    assert int(signum) > 34


def test_the_dump_signal_can_be_chosen_or_left_out() -> None:
    assert run_program(AIOTIMER_DUMP_SIGNAL="0") == ["False", "0"]
    assert run_program(AIOTIMER_DUMP_SIGNAL="55")[:2] == ["True", "55"]


@pytest.mark.parametrize("scope", ["0", "1", "2"])
def test_the_server_may_trace_where_yama_asks_for_it(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are kernels without Yama: its setting and the system call are made up here."""
    permitted: list[tuple[int, int]] = []

    def prctl(option: int, pid: ctypes.c_ulong, *_: object) -> int:
        permitted.append((option, pid.value))
        return 0

    monkeypatch.setattr(Path, "read_text", lambda _path: scope + "\n")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(prctl=prctl))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        dump_signal.allow_tracing(ours)
    pr_set_ptracer = 0x59616D61  # <linux/prctl.h>: "Yama"
    assert permitted == ([(pr_set_ptracer, os.getpid())] if scope == "1" else [])
