"""The pages about torch: docs/how-to/torch-timers.md, its programs and its table of equivalents, executed."""

import ast
import asyncio
import contextlib
import inspect
import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiotimer
from aiotimer._linux.process import pin
from tests.fakes.clock import PATIENCE
from tests.fakes.pages import PAGES, Block, assert_shown, blocks_of, workplace
from tests.fakes.places import short_directory
from tests.fakes.server import ServerThread
from tests.fakes.services import service_environment
from tests.fakes.worker import bystander

pytest.importorskip("torch", reason="torch is not installed: make test-integrations")

from torch.distributed.elastic import timer
from torch.distributed.elastic.timer.local_timer import MultiprocessingRequestQueue

from aiotimer.integrations import torch_elastic
from aiotimer.integrations.torch_elastic import TorchRequestQueue, TorchTimerClient, TorchTimerServer

PAGE = "docs/how-to/torch-timers.md"


def commands(page: str) -> list[Block]:
    return [block for block in blocks_of(page) if block.commands]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", commands(PAGE), ids=lambda block: block.commands[0].split()[-1])
def test_what_the_page_shows_is_what_happens(block: Block) -> None:
    with workplace(PAGE) as directory:
        done = subprocess.run(
            ["bash", "-c", block.commands[0]],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=directory, env=service_environment(directory), timeout=10 * PATIENCE, check=False,
        )  # fmt: skip
        reaped = "python epoch.py" in block.commands[0]
        assert done.returncode == (124 if reaped else 0), done.stdout
        assert_shown(block.output, done.stdout, directory, f"{PAGE}:{block.line + 1}")


# --- the table of equivalents


def equivalents() -> list[list[str]]:
    """The cells of its rows, each a line of code."""
    table = PAGES[PAGE].read_text().partition("\n## Equivalents\n")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", line) for line in lines]


COLUMNS = ("torch", "over aiotimer", "aiotimer")
CELLS = [
    pytest.param(column, cell, id=f"row {number}, {column}")
    for number, row in enumerate(equivalents(), 1)
    for column, cell in zip(COLUMNS, row, strict=True)
]


class Room:
    """Where a cell is executed: what its names are, and what came of it.

    Attributes:
        names: of the cell.
        seen: what was armed on this process at each ``step()``.
    """

    def __init__(self, server: ServerThread, directory: Path, pid: int) -> None:
        self._server = server
        self.seen: list[list[str]] = []
        self.names: dict[str, Any] = {
            "aiotimer": aiotimer, "signal": signal, "time": time, "timer": timer,
            "MultiprocessingRequestQueue": MultiprocessingRequestQueue,
            **{kind.__name__: kind for kind in (TorchTimerClient, TorchTimerServer, TorchRequestQueue)},
            "mp_queue": multiprocessing.get_context("spawn").Queue(),
            "path": str(directory / "path"), "pid": pid, "step": self.step,
        }  # fmt: skip

    def step(self) -> None:
        """What a block is around."""
        self.seen.append(self._server.armed())

    async def run(self, cell: str) -> None:
        """Execute a cell."""
        code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, self.names)
        if inspect.isawaitable(result):
            await result


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """A room, with a server for its clients, and a process for its servers."""
    with ServerThread() as server, short_directory() as directory, bystander() as pid:
        monkeypatch.setenv("AIOTIMER_SOCKET", server.path)
        yield Room(server, directory, pid)


@contextlib.asynccontextmanager
async def given(room: Room, column: str, cell: str) -> Any:
    """Make what a cell uses and does not make itself."""
    names = room.names
    async with contextlib.AsyncExitStack() as stack:
        if ("client" in cell and "client = " not in cell) or "step()" in cell:
            made = {
                "torch": lambda: timer.LocalTimerClient(names["mp_queue"]),
                "over aiotimer": TorchTimerClient,
                "aiotimer": aiotimer.TimerClient,
            }[column]()
            names["client"] = made
            if column == "aiotimer":
                await asyncio.to_thread(made.connect)
                stack.callback(made.close)
                aiotimer.configure(made)
            else:
                timer.configure(made)
        if "server." in cell:
            if column == "aiotimer":
                names["server"] = aiotimer.TimerServer(names["path"])
                if "start()" not in cell:
                    await stack.enter_async_context(names["server"])
                    names["server"].register_timers([aiotimer.TimerRequest(names["pid"], "s", 1e9)])
                names["worker_id"], pidfd = pin(names["pid"])
                os.close(pidfd)
            else:
                kind = timer.LocalTimerServer if column == "torch" else TorchTimerServer
                names["server"] = kind(names["mp_queue"], 0.1)
                stack.callback(names["server"].stop)
        yield


@pytest.mark.parametrize(("column", "cell"), CELLS)
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_cell_of_the_table_does_what_the_others_do(room: Room, column: str, cell: str) -> None:
    async with given(room, column, cell):
        await room.run(cell)
        if "step()" in cell:
            assert len(room.seen) == 1
            assert [len(armed) for armed in room.seen] == [0 if column == "torch" else 1]
        if "server = " in cell:
            assert "TimerServer" in type(room.names["server"]).__name__
        if "acquire" in cell and column != "torch":
            assert await asyncio.to_thread(room._server.armed) == ["step"]
        if "_worker(" in cell:
            assert await asyncio.to_thread(os.waitid, os.P_PID, room.names["pid"], os.WEXITED | os.WNOWAIT)


def test_the_table_has_a_row_for_each_public_name_of_torchs_timer() -> None:
    torchs = " ".join(row[0] for row in equivalents())
    public = {
        name for name, value in vars(timer).items() if inspect.isclass(value) or inspect.isfunction(value)
    }
    abstract = {"TimerClient", "TimerServer", "FileTimerRequest"}
    assert {name for name in public - abstract if name not in torchs} == set()


def test_every_public_name_of_the_adapter_is_in_the_reference() -> None:
    reference = PAGES["docs/reference/api.md"].read_text()
    told = set(re.findall(r"autoclass:: aiotimer\.integrations\.torch_elastic\.(\w+)", reference))
    assert told == set(torch_elastic.__all__)
