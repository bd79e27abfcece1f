"""Neighbours: how late hung workers are reaped while a process of the same user does its worst to the server.

Each case is a process that is as expensive for its server as it can be: thousands of timers that are only
observed, questions without a pause, tables that are full, connections without end. Meanwhile thirty innocent
workers hang, one after the other, and newcomers connect. None of them may notice.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import count, repeat
from math import nan
from statistics import median
from time import monotonic, sleep

from aiotimer import AiotimerError, TimerClient
from aiotimer._core import layout, wire
from aiotimer.client.control import dump, status

from ._report import Row
from ._server import serving
from ._timing import percentile
from ._workers import workers

INNOCENT, NEWCOMERS = 30, 10
SPREAD = 2.0
"""Seconds over which the innocent hang."""

LEAD = 1.0
"""Seconds after the noise has begun."""

MOST_MS = 50.0


class Peer:
    """A connection that says what it likes."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self._decoder = wire.client_decoder()

    def say(self, *messages: wire.ToServer) -> None:
        """Send messages."""
        with contextlib.suppress(OSError):
            self.socket.sendall(b"".join(map(wire.encode, messages)))

    def hello(self, *, shared: bool) -> int:
        """Say HELLO; return the descriptor of the table that comes with WELCOME, -1 if there is none."""
        self.say(wire.Hello(wire.PROTOCOL_VERSION, "0", os.getpid(), shared, _time_namespace(), monotonic()))
        data, descriptors, _flags, _address = socket.recv_fds(self.socket, 65_536, 1)
        list(self._decoder.feed(data))
        return descriptors[0] if descriptors else -1

    def hear(self) -> list[wire.ToClient]:
        """Wait for messages."""
        data = self.socket.recv(2**20)
        return list(self._decoder.feed(data)) if data else []

    def hear_all(self) -> None:
        """Read whatever comes, in a thread of its own."""

        def read() -> None:
            with contextlib.suppress(OSError):
                while self.socket.recv(2**20):
                    pass

        threading.Thread(target=read, daemon=True).start()


def _time_namespace() -> int:
    return os.stat("/proc/self/ns/time").st_ino


# -- what a neighbour may do -----------------------------------------------------------------------


def _nothing(_path: str) -> None:
    signal.pause()


def _observed(timers: int) -> Callable[[str], None]:
    """Many timers that are only observed are due together."""

    def noise(path: str) -> None:
        client = TimerClient(path, observe=True, unavailable="raise", budget=30)
        until = monotonic() + 3 * LEAD
        for number in range(timers):
            client.acquire(f"timer {number}", until)
        signal.pause()

    return noise


def _status(path: str) -> None:
    """One client asks without waiting for answers."""
    peer = Peer(path)
    peer.hear_all()
    while True:
        peer.say(*repeat(wire.StatusRequest(scopes=True), 100))


def _socket_only(path: str) -> None:
    """All slots are armed, and more is asked for all the time."""
    peer = Peer(path)
    peer.hello(shared=False)
    peer.hear_all()
    numbers = count(1)
    later = monotonic() + 10_000
    for first in range(0, layout.SLOTS, 256):
        peer.say(*(wire.Acquire(next(numbers), f"{n}", later) for n in range(first, first + 256)))
    for slot in count():
        after = 5.0 - slot % 1000 * 0.001
        peer.say(wire.Acquire(next(numbers), f"{slot % layout.SLOTS}", monotonic() + after))


def _connections(path: str) -> None:
    """One process connects, again and again."""
    peers: list[Peer] = []
    while True:
        with contextlib.suppress(OSError):
            for _ in range(1500 - len(peers)):
                peers.append(Peer(path))
                peers[-1].hello(shared=True)
        peers.clear()
        gc.collect()


def _dumps(path: str) -> None:
    """Somebody wants to know, all the time, what the ten thousand tasks of sixty-four loops do."""
    Peer(path).hello(shared=False)
    worker = Peer(path)
    worker.hello(shared=False)
    loops = [Peer(path) for _ in range(64)]

    def ask() -> None:
        while True:
            with contextlib.suppress(AiotimerError):
                dump(path, os.getpid(), 30)

    def answer(loop: Peer) -> None:
        loop.say(wire.Attend(wire.PROTOCOL_VERSION))
        report = wire.TaskReport("", 1, (), (), "")
        while True:
            for question in loop.hear():
                assert isinstance(question, wire.Inspect)
                tasks = tuple(repeat(report, 9000))
                loop.say(wire.Tasks(question.number, "", "", tasks, 0, ""))

    for loop in loops:
        threading.Thread(target=answer, args=(loop,), daemon=True).start()
    for _ in range(64):
        threading.Thread(target=ask, daemon=True).start()
    signal.pause()


def _deaths(path: str) -> None:
    """Thirty-two workers that know a thousand scopes each die at once."""
    ready, tell = os.pipe()
    for _ in range(32):
        if os.fork() == 0:
            client = TimerClient(path, unavailable="raise", budget=30)
            for number in range(1000):
                client.acquire(f"scope {number}", monotonic() + 10_000)
            os.write(tell, b".")
            sleep(2 * LEAD)
            os._exit(0)
    for _ in range(32):
        os.read(ready, 1)
    signal.pause()


def _many_timers(path: str) -> None:
    """Somebody asks for a report on a hundred thousand timers."""
    for _ in range(2):
        if os.fork() == 0:
            client = TimerClient(path, unavailable="raise", budget=30)
            for number in range(50_000):
                client.acquire(f"timer {number}", monotonic() + 10_000)
            signal.pause()
    while True:
        with contextlib.suppress(AiotimerError):
            status(path)


def _maps(path: str) -> None:
    """A process with twenty thousand mappings loses fifty connections."""
    memory = mmap.mmap(-1, 40_000 * mmap.PAGESIZE)
    for page in range(0, 40_000, 2):
        _mprotect(memory, page)
    while True:
        peers = [Peer(path) for _ in range(50)]
        for peer in peers:
            os.close(peer.hello(shared=True))
        for peer in peers:
            peer.socket.close()
        sleep(0.2)


def _mprotect(memory: mmap.mmap, page: int) -> None:
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page * mmap.PAGESIZE), mmap.PAGESIZE, mmap.PROT_READ)


def _rings(path: str) -> None:
    """Three full tables, with nonsense in the first slot, and rings without a pause."""
    peers = [Peer(path) for _ in range(3)]
    for peer in peers:
        table = peer.hello(shared=True)
        deadlines = struct.pack("=d", nan) + struct.pack("=d", monotonic() + 10_000) * (layout.SLOTS - 1)
        os.pwrite(table, deadlines, layout.deadline_offset(0))
        os.pwrite(table, layout.word(float(layout.SLOTS)), 8 * layout.HIGH_WATER)
        peer.hear_all()

    def ring(peer: Peer) -> None:
        while True:
            peer.say(*(wire.Ring(monotonic() + 4.0 - n * 1e-3) for n in range(100)))

    for peer in peers:
        threading.Thread(target=ring, args=(peer,), daemon=True).start()
    signal.pause()


CASES: dict[str, Callable[[str], None]] = {
    "nothing": _nothing,
    "2,000 observed timers due together": _observed(2000),
    "60,000 observed timers due together": _observed(60_000),
    "status? pipelined": _status,
    "65,536 timers without shared memory, asking on": _socket_only,
    "1,500 connections of one process": _connections,
    "dump? in a loop, 64 loops of 9,000 tasks": _dumps,
    "32 workers of 1,000 scopes die at once": _deaths,
    "status of 100,000 timers": _many_timers,
    "50 closes, 20,000 mappings": _maps,
    "three full tables, rings flat out": _rings,
}


def measure(quick: bool) -> Iterator[Row]:
    """Yield how late the innocent are reaped, and how long newcomers wait, beside each neighbour."""
    for loop in ("uvloop",) if quick else ("uvloop", "asyncio"):
        for what, noise in CASES.items():
            yield from _beside(noise, what, loop)


def _beside(noise: Callable[[str], None], what: str, loop: str) -> Iterator[Row]:
    chance = random.Random(7)
    delays = [chance.uniform(0.0, SPREAD) for _ in range(INNOCENT)]
    with serving(loop, "KILL") as server, workers(server.path) as group, workers(server.path) as newcomers:
        group.add(INNOCENT, delays)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            try:
                noise(server.path)
            finally:
                os._exit(0)
        try:
            sleep(LEAD)
            start = monotonic() + LEAD
            deadlines = group.arm(start)
            newcomers.add(NEWCOMERS)
            sleep(max(0.0, start + SPREAD + LEAD - monotonic()))
        finally:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    acted_at = server.reaps.acted_at
    late = [1e3 * (acted_at[pid] - deadline) for pid, deadline in deadlines.items() if pid in acted_at]
    where = f"{what}, {loop}"
    note = f"median {median(late):.2f} ms, 99th percentile {percentile(late, 99):.1f} ms" if late else ""
    yield Row(f"{where}: worst lateness", max(late, default=nan), "ms", MOST_MS, note=note)
    yield Row(f"{where}: not reaped", INNOCENT - len(late), "", 0, exact=True)
    waited = [1e3 * seconds for seconds in newcomers.connect_s]
    yield Row(f"{where}: slowest welcome", max(waited), "ms", note=f"median {median(waited):.1f} ms")
