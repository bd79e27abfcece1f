"""What a history takes place in: a clock, processes, files on tmpfs, connections. No decision is made here.

The laws of this file:

* What is known here is the truth: which process stored what, and when that became visible. What the server
  may know of it, it has to find out through :meth:`TableFile.read`, :meth:`Kernel.pin` and a :class:`Line`.
* A store may wait in its core's buffer for up to ``HELD`` seconds. Stores into one slot land in their order.
* Pids are few, so that they are reused all the time.
"""

from __future__ import annotations

import mmap
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple, TypeAlias

from aiotimer._core import layout
from aiotimer._core.requests import WorkerId

HELD = 0.001
"""Seconds for which a store waits in a buffer at most: a thousand times longer than on real machines, and
shorter than ``LATER_READ``, which relies on it."""

DELAY = 0.01
"""Seconds that a message is under way at most."""

UNREAD = 2
"""Messages that a socket holds at most; a ring that does not fit is EAGAIN."""

PIDS = range(100, 105)

Law: TypeAlias = Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8"]
Kind: TypeAlias = Literal["hello", "ring", "bye", "end"]


class Broken(BaseException):
    """A law does not hold. No ``except Exception`` of real code hides that.

    Attributes:
        law: which.
    """

    def __init__(self, law: Law, text: str) -> None:
        super().__init__(f"{law}: {text}")
        self.law = law


class Process:
    """One process, for as long as it lives."""

    def __init__(self, pid: int, started: int, inode: int) -> None:
        self.pid = pid
        self.id = WorkerId(pid, started)
        self.inode = inode
        self.program = 0  # how often it has called exec
        self.alive = True
        self.waited_for = False
        self.frozen_until = -inf
        self.dies_at = inf
        self.execs_at = inf
        self.protected_until = -inf  # signals to it are not permitted
        self.signalled = False
        self.reaped_program = 0
        self.last_signal_at = inf
        self.killed = 0  # by which server, counted from 1
        self._text = f"{pid}.{started}"

    def __str__(self) -> str:
        return self._text


class Armed(NamedTuple):
    """A timer as its owner knows it. Equal only to itself."""

    number: int
    slot: int
    deadline: float
    stored_at: float
    observed: bool


class Held(NamedTuple):
    """A store that has not landed."""

    before: float
    armed: Armed | None
    lands_by: float


class TableFile:
    """A table, as a file and as its owner's memory.

    Attributes:
        owner, program: who maps it.
        name: whose the directory says that it is.
        linked: it is in the state directory, which its server sees to.
        linked_at: when that was.
        unmapped_at: the step at which its owner called exec, -1 if it has not.
        left_at: the step at which its owner's last client was closed, -1 if it has not been.
        size: bytes; a hostile owner may truncate it.
        tame: its owner has stored into it only what the package stores.
        armed: what its owner has armed, by slot.
        visible: the same, as far as it has landed.
        returned: when the entering of a timer was over, by its number.
        gone: the step at which a release or a new value of (slot, deadline) landed.
        stable_since: since when owner and server have been connected without a break.
    """

    def __init__(self, world: World, owner: Process, number: int) -> None:
        self.world = world
        self.number = number
        self.owner = owner
        self.program = owner.program
        self.name = (owner.id, owner.inode)
        self.memory = mmap.mmap(-1, layout.TABLE_SIZE)
        self.raw = memoryview(self.memory)
        self.words: memoryview[float] = self.raw.cast("d")
        self.size = layout.TABLE_SIZE
        self.raw[: len(layout.header())] = layout.header()
        self.pwrite(layout.server_line(inf, 0.0), 8 * layout.PROMISE)
        self.linked = False
        self.linked_at = inf
        self.unmapped_at = -1
        self.left_at = -1
        self.tame = True
        self.held: dict[int, deque[Held]] = {}
        self.armed: dict[int, Armed] = {}
        self.visible: dict[int, Armed] = {}
        self.returned: dict[int, float] = {}
        self.gone: dict[tuple[int, float], int] = {}
        self.stable_since = inf
        self._text = f"table {number} of {owner}"

    def __str__(self) -> str:
        return self._text

    @property
    def mapped(self) -> bool:
        """Whether its owner lives, and still runs the program that maps it."""
        return self.owner.alive and self.owner.program == self.program

    # -- as the server sees it ---------------------------------------------------------------------

    def read(self, size: int, offset: int) -> bytes:
        """Read as ``pread`` does: fewer bytes at the end of the file, and no store that is held."""
        end = min(offset + size, self.size)
        if not self.held:
            return bytes(self.raw[offset:end])
        data = bytearray(self.raw[offset:end])
        for slot, stores in self.held.items():
            start = layout.deadline_offset(slot) - offset
            if start >= 0 and start + 8 <= len(data):
                data[start : start + 8] = layout.word(stores[0].before)
        return bytes(data)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write; a file that was truncated grows again, and it is nobody's loss but its owner's."""
        self.raw[offset : offset + len(data)] = data

    # -- as its owner stores -----------------------------------------------------------------------

    def store(self, slot: int, value: float, *, hold: bool, observed: bool = False) -> None:
        """Store a deadline, or ``inf``; the store may be held back."""
        word = layout.FIRST_DEADLINE + slot
        armed = None
        if layout.is_armed(value):
            armed = Armed(self.world.number(), slot, value, self.world.now, observed)
            self.armed[slot] = armed
        else:
            self.armed.pop(slot, None)
        before, self.words[word] = self.words[word], value
        if hold or slot in self.held:
            lands_by = self.world.now + self.world.rng.uniform(0, HELD)
            self.held.setdefault(slot, deque()).append(Held(before, armed, lands_by))
        else:
            self._land(slot, armed)

    def land(self, *, everything: bool = False) -> None:
        """Let the stores land that must by now; or all of them, as a ``send`` does."""
        for slot, stores in list(self.held.items()):
            while stores and (everything or stores[0].lands_by <= self.world.now):
                self._land(slot, stores.popleft().armed)
            if not stores:
                del self.held[slot]

    def _land(self, slot: int, armed: Armed | None) -> None:
        former = self.visible.pop(slot, None)
        if former is not None:
            self.gone[slot, former.deadline] = self.world.steps
        if armed is not None:
            self.visible[slot] = armed
            self.gone.pop((slot, armed.deadline), None)

    def next_landing(self) -> float:
        """Return when the next store must land."""
        return min((stores[0].lands_by for stores in self.held.values()), default=inf)

    def disown(self) -> None:
        """Its owner does not count on it any more: it is dead, or runs another program, or has left."""
        self.land(everything=True)
        self.armed.clear()
        self.visible.clear()
        if self in self.world.in_use:
            self.world.in_use.remove(self)


class Message(NamedTuple):
    """Something on its way to the server."""

    arrives_at: float
    kind: Kind
    deadline: float = inf
    offered: TableFile | None = None


@dataclass(eq=False)
class Line:
    """A connection.

    Attributes:
        to_server: what the server has not read.
        welcome: the table that the server has welcomed the worker with.
        client_open, server_open: whether that end is open.
    """

    world: World
    process: Process
    to_server: deque[Message] = field(default_factory=deque)
    welcome: TableFile | None = None
    client_open: bool = True
    server_open: bool = True

    def send(self, kind: Kind, deadline: float, offered: TableFile | None) -> bool:
        """Send a message; False: the other end is gone. What does not fit is lost, and counts as sent."""
        if not (self.client_open and self.server_open):
            return False
        if len(self.to_server) < UNREAD or kind == "hello":
            self._put(kind, deadline, offered)
        return True

    def hang_up(self) -> None:
        """Close the worker's end: the server gets to know in time."""
        if self.client_open:
            self.client_open = False
            if self.server_open:
                self._put("end", inf, None)

    def hung_up(self) -> bool:
        """Whether the worker's end is closed."""
        return not self.client_open

    def answered(self) -> bool:
        """Whether the server has welcomed the worker, or hung up."""
        return self.welcome is not None or not self.server_open

    def next_at(self) -> float:
        """Return when the next message arrives at the server."""
        return self.to_server[0].arrives_at if self.to_server else inf

    def _put(self, kind: Kind, deadline: float, offered: TableFile | None) -> None:
        arrives_at = self.world.now + self.world.rng.random() ** 4 * DELAY
        if self.to_server:
            arrives_at = max(arrives_at, self.to_server[-1].arrives_at)
        self.to_server.append(Message(arrives_at, kind, deadline, offered))


class World:
    """The clock, the processes, the state directory.

    Attributes:
        now: ``CLOCK_MONOTONIC``.
        steps: how many have been taken.
        files: tables that somebody may still read, in the state directory or not.
        in_use: those whose owners may still store into them.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1000.0
        self.steps = 0
        self.files: list[TableFile] = []
        self.in_use: list[TableFile] = []
        self.processes: dict[int, Process] = {}
        self.unique_inodes = rng.random() < 0.5  # of pidfds: a newer kernel
        self.holding = rng.choice((0.0, 0.1, 0.9))  # how many stores are held back
        self._numbers = 0
        self._last_start = 0

    def number(self) -> int:
        """Return a number that nothing else has."""
        self._numbers += 1
        return self._numbers

    def clock(self) -> float:
        """Return the present."""
        return self.now

    def start(self) -> Process | None:
        """Start a process, None if all pids are taken.

        No two start within one tick of the kernel's clock: without unique inodes of pidfds such two could not
        be told apart if they had the same pid, which would take a whole round of all pids within 10 ms.
        """
        free = [pid for pid in PIDS if pid not in self.processes]
        if not free:
            return None
        started = self._last_start = max(int(self.now * 100), self._last_start + 1)
        pid = self.rng.choice(free)
        process = Process(pid, started, self.number() if self.unique_inodes else 1)
        self.processes[pid] = process
        return process

    def pin(self, pid: int) -> Process:
        """Return the process that has this pid now: a zombie, too."""
        process = self.processes.get(pid)
        if process is None:
            raise ProcessLookupError(pid)
        return process

    def create_table(self, owner: Process) -> TableFile:
        """Make the table of a process, which has no name yet."""
        file = TableFile(self, owner, self.number())
        self.files.append(file)
        self.in_use.append(file)
        return file

    def link(self, file: TableFile) -> None:
        """Give a table its name in the directory."""
        file.linked, file.linked_at = True, self.now

    def unlink(self, file: TableFile) -> None:
        """Remove a table from the directory."""
        file.linked = False

    def linked(self) -> Iterator[TableFile]:
        """Yield the tables in the directory."""
        return (file for file in list(self.files) if file.linked)
