"""A worker tells what its tasks wait for, and writes its stacks when it is sent its signal."""

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiotimer
from aiotimer import Block, expires
from aiotimer._core import layout, wire
from aiotimer._core.table import TimerTable
from aiotimer.client import dump_signal, inspection
from aiotimer.client.tasks import report_tasks
from aiotimer.testing import virtual


def decoded(frame: bytes) -> wire.Tasks:
    assert len(frame) <= wire.MAX_FRAME
    (message,) = wire.server_decoder().feed(frame)
    assert isinstance(message, wire.Tasks)
    return message


async def told(table: TimerTable | None, *slots: int) -> wire.Tasks:
    return decoded(report_tasks(asyncio.get_running_loop(), wire.Inspect(1, slots), table, Block))


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
    future = asyncio.get_running_loop().create_future()

    async def waits(what: Callable[[], Any]) -> None:
        await what()

    async def for_future() -> None:
        await future

    async def for_gather() -> None:
        await asyncio.gather(tasks[0], tasks[1])

    tasks = [
        asyncio.create_task(waits(lock.acquire), name="lock"),
        asyncio.create_task(waits(queue.get), name="queue"),
        asyncio.create_task(for_future(), name="future"),
        asyncio.create_task(for_gather(), name="gather"),
    ]
    await settled()
    found = await told(None)
    assert at(found, "lock").waits_for == "asyncio.Lock.acquire"
    assert at(found, "queue").waits_for == "asyncio.Queue.get"
    assert "Future" in at(found, "future").waits_for
    assert at(found, "gather").waits_for == "gather of 'lock', 'queue'"
    functions = [function.rpartition(".")[2] for _, _, function in at(found, "lock").frames]
    assert functions == ["waits", "acquire"]
    assert "test_tasks.py" in found.stacks
    assert "aiotimer/client/tasks.py" not in found.stacks, "what answers is not what it was doing"
    await ended(*tasks)


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


async def test_a_channel_answers_from_inside_of_the_loop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "s")
        listener.bind(path)
        listener.listen()
        before = set(os.listdir("/proc/self/fd"))
        client = aiotimer.AsyncTimerClient(path)
        inspection.open_inspection_channel(client._queue, Block)
        inspection.open_inspection_channel(client._queue, Block)
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


PROGRAM = """
    import ctypes, mmap, os, signal, sys, time
    from aiotimer.client import dump_signal
    from aiotimer._core import layout
    from aiotimer._core.table import TimerTable

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
