"""Fault 2: the server is killed again and again, at random moments, while workers arm and release.

The laws of this file:

* No armed timer is lost: every victim, armed shortly before a kill or while no server runs, is reaped in the
  end; a timer that is held is there after every restart, with its deadline.
* No released timer is reaped: of all the others, who enter and leave blocks all the time, nobody is harmed.
* Nobody is held up: after a kill, and before the next server starts, every worker goes on.

The figures are printed. The longest entry is wall time on a shared machine: it is judged in the soak only,
against the client's budget and the longest time for which a loop that does nothing was not run meanwhile.
Everything random comes from a seed, which is printed; ``AIOTIMER_SEED`` sets it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from time import monotonic
from typing import NamedTuple

import pytest

from aiotimer.client.control import status
from tests.fakes.clock import PATIENCE, clock_passes
from tests.fakes.places import short_socket
from tests.fakes.server import ServerProcess, armed
from tests.fakes.worker import PRELUDE, SpawnedWorker, is_alive, spawn_worker

BUDGET = 0.25
"""Seconds: the clients' budget, as it is by default."""

# -- the board: what workers tell without being asked ---------------------------------------------------

_ENTRY = struct.Struct("=qdd")
_STOP = 4088


class Figures(NamedTuple):
    """What a worker has done.

    Attributes:
        entries: how often it armed a timer.
        longest: seconds the longest of them took.
        noise: seconds of the longest pause in a loop that does nothing.
    """

    entries: int
    longest: float
    noise: float


class Board:
    """A page that workers write their figures into, and the test its wish that they stop."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._page = mmap.mmap(descriptor, 4096)

    def figures(self, place: int) -> Figures:
        """Return the figures of the worker at a place."""
        return Figures(*_ENTRY.unpack_from(self._page, _ENTRY.size * place))

    def stop(self) -> None:
        """Tell every worker to stop."""
        self._page[_STOP] = 1


@contextlib.contextmanager
def new_board() -> Iterator[Board]:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(4096)
        yield Board(file.name, file.fileno())


# -- workers ------------------------------------------------------------------------------------------

TRAFFIC = (
    PRELUDE
    + """
import mmap, struct
from time import monotonic

logging.disable(logging.CRITICAL)
kind, place, pause, held = sys.argv[1], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
board = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 4096)
entries, longest, noise = 0, 0.0, 0.0

def count(began):
    global entries, longest, noise
    now = monotonic()
    entries, longest = entries + 1, max(longest, now - began)
    for _ in range(100):  # how long is a loop that does nothing kept from running
        before, now = now, monotonic()
        noise = max(noise, now - before)
    struct.pack_into("=qdd", board, 24 * place, entries, longest, noise)

def stopped():
    return board[4088]

def sync():
    while not stopped():
        began = monotonic()
        with expires(4.0, "outer", client):
            count(began)
            began = monotonic()
            with expires(5.0, "inner", client):
                count(began)
        time.sleep(pause)

def keyed():
    while not stopped():
        for scope in ("a", "b"):
            began = monotonic()
            client.acquire(scope, began + 4.0)
            count(began)
        for scope in ("a", "b"):
            client.release(scope)
        time.sleep(pause)

async def one_task():
    while not stopped():
        began = monotonic()
        async with expires(4.0, "outer", client):
            count(began)
            await asyncio.sleep(0)
            began = monotonic()
            with expires(5.0, "inner", client):
                count(began)
        await asyncio.sleep(pause)

async def tasks():
    await client.acquire("held", held)
    say("at work")
    await asyncio.gather(*(one_task() for _ in range(3)))
    await client.release("held")

if kind == "tasks":
    client = AsyncTimerClient(unavailable="warn", budget=BUDGET)
    client._budget = 30.0
    async def main():
        await client.connect()
        client._budget = BUDGET
        await tasks()
    asyncio.run(main())
else:
    client = TimerClient(unavailable="warn", budget=30, shared=kind != "socket-only")
    client.connect()
    client._budget = BUDGET
    client.acquire("held", held)
    say("at work")
    {"blocks": sync, "keyed": keyed, "socket-only": keyed}[kind]()
    client.release("held")
say("done")
"""
).replace("BUDGET", repr(BUDGET))

HERD = (
    PRELUDE
    + """
import random
from aiotimer._core import wire  # loaded here, once, rather than in every child

logging.disable(logging.CRITICAL)
chance = random.Random(sys.argv[1])

def victim(kind, after, gate):
    client = TimerClient(unavailable="raise", budget=30, shared=kind != "socket-only")
    client.connect()
    say("connected")
    os.read(gate, 1)
    if kind == "nested":
        with expires(60.0, "outer", client), expires(after, "victim", client) as block:
            say("deadline", os.getpid(), block.deadline)
            time.sleep(1000)
    elif kind == "with":
        with expires(after, "victim", client) as block:
            say("deadline", os.getpid(), block.deadline)
            time.sleep(1000)
    elif kind == "async with":
        async def main():
            own = AsyncTimerClient(unavailable="raise", budget=30)
            async with expires(after, "victim", own) as block:
                say("deadline", os.getpid(), block.deadline)
                await asyncio.Event().wait()
        asyncio.run(main())
    else:
        deadline = time.monotonic() + after
        client.acquire("victim", deadline)
        say("deadline", os.getpid(), deadline)
        time.sleep(1000)
    os._exit(1)

children, gate = [], -1
for order in sys.stdin:
    verb, *words = order.strip().split(":")
    if verb == "fork":
        read, gate = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate)
            victim(words[0], float(words[1]), read)
        os.close(read)
        children.append(pid)
    elif verb == "go":
        os.close(gate)
    elif verb == "wait":
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        say("codes", *codes)
"""
)

KINDS = ("blocks", "keyed", "tasks", "socket-only")
VICTIMS = ("with", "nested", "async with", "acquire", "socket-only")


class Loop:
    """One crash loop: a server, its workers, and a herd of victims.

    Attributes:
        expected: what is armed on each worker all the time.
        deadlines: of the victims, by pid.
    """

    def __init__(
        self,
        path: str,
        server: ServerProcess,
        board: Board,
        chance: random.Random,
        stack: contextlib.ExitStack,
    ) -> None:
        self.server = server
        self.board = board
        self.chance = chance
        self.path = path
        self.held = monotonic() + 10_000
        pause = "0.003"
        self.workers = [
            stack.enter_context(
                spawn_worker(TRAFFIC, path, kind, board.path, str(place), pause, repr(self.held))
            )
            for place, kind in enumerate(KINDS)
        ]
        for worker in self.workers:
            worker.wait_line("at work")
        self.herd: SpawnedWorker = stack.enter_context(spawn_worker(HERD, path, str(chance.random())))
        self.armed_while_down = 0

    def kill(self, number: int) -> None:
        """Kill the server once, and start the next one."""
        kind = VICTIMS[number % len(VICTIMS)]
        self.herd.say(f"fork:{kind}:{self.chance.uniform(0.05, 1.5)}")
        self.herd.wait_line("connected")
        before = kind == "socket-only" or self.chance.random() < 0.5
        clock_passes(monotonic() + self.chance.uniform(0.0, 0.03))
        if before:
            self.herd.say("go")
            if kind == "socket-only":
                self.herd.wait_line("deadline")  # it has been acknowledged: only that means armed
            else:
                clock_passes(monotonic() + self.chance.uniform(0.0, 0.003))
        self.server.kill()
        if not before:
            self.herd.say("go")
            self.armed_while_down += 1
            if self.chance.random() < 0.5:
                self.herd.wait_line("deadline")
        if number % 4 == 0:
            self.everybody_goes_on()
        self.server.start()
        report = status(self.path)
        for worker in self.workers:
            assert is_alive(worker.pid), worker.output
            assert armed(report, worker.pid).get("held") == self.held

    def everybody_goes_on(self) -> None:
        """No server runs, and every worker enters three more blocks all the same."""
        before = [self.board.figures(place).entries for place in range(len(KINDS))]
        until = monotonic() + PATIENCE
        for place, entries in enumerate(before):
            while self.board.figures(place).entries < entries + 3:
                assert monotonic() < until, f"{KINDS[place]} stands still without a server"
                clock_passes(monotonic() + 0.002)

    def end(self) -> list[int]:
        """Stop everybody; return the exit codes of the victims."""
        self.board.stop()
        for worker in self.workers:
            worker.wait_line("done")
            assert worker.wait() == 0
        self.herd.say("wait")
        return [int(code) for code in self.herd.wait_line("codes").split()[1:]]

    def show(
        self, seed: int, codes: list[int], figures: list[Figures], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Print the figures."""
        entries = sum(figure.entries for figure in figures)
        longest = 1000 * max(figure.longest for figure in figures)
        noise = 1000 * max(figure.noise for figure in figures)
        with capsys.disabled():
            print(  # noqa: T201 - figures are to be seen
                f"\nfault 2, seed {seed}: {len(codes)} kills; {len(codes)} timers armed to expire, "
                f"{self.armed_while_down} of them while no server ran, {codes.count(-9)} reaped; "
                f"{entries} entries left again, none reaped; the longest took {longest:.1f} ms "
                f"(budget {1000 * BUDGET:g} ms; an empty loop paused for {noise:.1f} ms)"
            )


@pytest.mark.parametrize(
    "kills", [15, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]
)
def test_fault_02_sigkill_at_random_moments_under_traffic(
    kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("AIOTIMER_SEED", random.randrange(10**9)))
    print(f"AIOTIMER_SEED={seed}")  # noqa: T201 - for the report of a failure
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(short_socket())
        board = stack.enter_context(new_board())
        server = stack.enter_context(ServerProcess(path, "uvloop"))
        loop = Loop(path, server, board, random.Random(seed), stack)
        for number in range(kills):
            loop.kill(number)
        codes = loop.end()
        server.pass_by(0.0)  # it has told all: whoever could be reaped has ended
        figures = [board.figures(place) for place in range(len(KINDS))]
        reaped = {event["pid"]: event for event in server.events if event["event"] == "reaped"}
        loop.show(seed, codes, figures, capsys)
    assert codes == [-9] * kills, "an armed timer was lost"
    assert reaped.keys().isdisjoint(worker.pid for worker in loop.workers), "a released timer was reaped"
    assert all(event["late_s"] is None or event["late_s"] >= 0 for event in reaped.values())
    assert min(f.entries for f in figures) > kills
    if kills > 15:
        for place, kind in enumerate(KINDS):
            assert figures[place].longest <= BUDGET + 20 * figures[place].noise + 0.1, kind
