"""Load: thousands of workers, a hundred thousand timers, and a storm of them due in one millisecond.

The workers are forked processes, each with its own connection and table. All of them connect at once, so the
listen backlog fills. With everything armed and idle, the server's resident set, descriptors and processor
time are read from ``/proc``. In the storm, some workers have all their timers due within one millisecond;
meanwhile somebody pings the server without a pause. At last the server is killed, and the next one adopts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep

from aiotimer import ServerUnavailable, TimerClient
from aiotimer.client.control import ping, status
from aiotimer.client.launch import python_command

from ._report import Row
from ._server import serving
from .memory import resident_kib

_PATIENCE = 120.0
_LEAD = 6.0
"""Seconds between arming the storm and the millisecond in which it breaks: longer than arming takes."""

_IDLE = 10.0
"""Seconds over which an idle server's processor time is read."""


class Herd:
    """Forked workers that connect, all at once, arm what they are told to, and stay until the end.

    Args:
        count: how many.
        arm: what each does once it is connected, with its number.
    """

    def __init__(self, path: str, count: int, arm: Callable[[TimerClient, int], object]) -> None:
        client = TimerClient(path, unavailable="raise", budget=_PATIENCE)
        reports, told = os.pipe()
        self._stay, self._gate = os.pipe()
        before = perf_counter()
        self.pids = []
        for number in range(count):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(self._gate)
                    client.connect(_PATIENCE)
                    os.write(told, b"c")
                    arm(client, number)
                    os.write(told, b"a")
                    os.read(self._stay, 1)
                finally:
                    os._exit(0)
            self.pids.append(pid)
        os.close(told)
        self.connected, armed = 0, 0
        while armed < count and (data := os.read(reports, 4096)):
            self.connected += data.count(b"c")
            armed += data.count(b"a")
            if self.connected == count and not hasattr(self, "connect_s"):
                self.connect_s = perf_counter() - before
        self.armed = armed
        self.arm_s = perf_counter() - before
        os.close(reports)
        client.close()

    def close(self) -> None:
        """End those that live."""
        os.close(self._gate)
        os.close(self._stay)
        for pid in self.pids:
            os.waitpid(pid, 0)

    def __enter__(self) -> Herd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pings:
    """Pings a server without a pause; how long each answer took, in seconds."""

    def __init__(self, path: str) -> None:
        self.took: list[float] = []
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ping)

    def __enter__(self) -> Pings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _ping(self) -> None:
        while not self._done.is_set():
            before = perf_counter()
            with contextlib.suppress(ServerUnavailable):
                ping(self._path)
            self.took.append(perf_counter() - before)


def measure(quick: bool) -> Iterator[Row]:
    """Yield what a server of many workers costs, and how it takes a storm."""
    workers, timers = (200, 20) if quick else (2_000, 50)
    yield from _idle_and_storm(workers, timers, stormers=20 if quick else 200)
    yield from _restart(workers, timers)


def _arm(timers: int, first: float, step: float) -> Callable[[TimerClient, int], object]:
    def arm(client: TimerClient, _number: int) -> None:
        for timer in range(timers):
            client.acquire(f"timer {timer}", first + timer * step)

    return arm


def _idle_and_storm(workers: int, timers: int, stormers: int) -> Iterator[Row]:
    where = f"{workers:,} workers, {workers * timers:,} timers"
    with serving("uvloop") as server:
        empty, busy = resident_kib(server.pid), _cpu_seconds(server.pid)
        with Herd(server.path, workers, _arm(timers, monotonic() + 10_000, 1.0)) as herd:
            yield Row(f"{where}: not connected", workers - herd.connected, "", 0, exact=True)
            yield Row(f"{where}: not armed", workers - herd.armed, "", 0, exact=True)
            note = f"the server worked for {_cpu_seconds(server.pid) - busy:.2f} s of it, arming included"
            yield Row(f"{where}: connected, all at once, after", herd.connect_s, "s", note=note)
            full = resident_kib(server.pid)
            yield Row(f"{where}: server memory", full / 1024, "MiB", note=f"{empty / 1024:.1f} MiB empty")
            descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
            yield Row(f"{where}: server descriptors", descriptors, note="3 for each worker")
            before = perf_counter()
            report = status(server.path)
            took = perf_counter() - before
            assert sum(len(worker["timers"]) for worker in report["workers"]) == workers * timers
            yield Row(f"{where}: status, asked and answered", took, "s")
            busy = _cpu_seconds(server.pid)
            sleep(_IDLE)
            share = (_cpu_seconds(server.pid) - busy) / _IDLE
            yield Row(
                f"{where}: processor time while idle", 100 * share, "%", note="each is looked at every 5 s"
            )
            storm = Storm(server.path, stormers, timers)
    yield from _storm_rows(
        storm, server.reaps.acted_at, f"storm of {stormers * timers:,}, {stormers} workers"
    )


class Storm:
    """Workers whose timers are all due within one millisecond.

    Attributes:
        pids: the workers.
        deadline: of the first timer, ``CLOCK_MONOTONIC`` seconds.
        pings_s: how long each ping took meanwhile, seconds.
    """

    def __init__(self, path: str, workers: int, timers: int) -> None:
        self.deadline = monotonic() + _LEAD
        with Herd(path, workers, _arm(timers, self.deadline, 0.001 / timers)) as herd:
            self.pids = herd.pids
            sleep(max(0.0, self.deadline - 0.1 - monotonic()))
            with Pings(path) as pings:
                for pid in self.pids:
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            self.pings_s = pings.took


def _storm_rows(storm: Storm, acted_at: dict[int, float], what: str) -> Iterator[Row]:
    late = [acted_at[pid] - storm.deadline for pid in storm.pids if pid in acted_at]
    yield Row(f"{what}: not reaped", len(storm.pids) - len(late), "", 0, exact=True)
    yield Row(f"{what}: reaped early", sum(moment < 0 for moment in late), "", 0, exact=True)
    yield Row(f"{what}: lateness, median", median(late) * 1e3, "ms")
    yield Row(f"{what}: lateness, worst", max(late) * 1e3, "ms")
    note = f"median {median(storm.pings_s) * 1e3:.2f} ms of {len(storm.pings_s)}"
    yield Row(f"{what}: slowest ping", max(storm.pings_s) * 1e3, "ms", 50.0, note=note)


def _restart(workers: int, timers: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "socket"))
        empty_s, process = _served(path)
        with Herd(path, workers, _arm(timers, monotonic() + 10_000, 1.0)):
            process.kill()
            process.wait()
            full_s, process = _served(path)
            report = status(path)
            lost = workers * timers - sum(len(worker["timers"]) for worker in report["workers"])
        process.terminate()
        process.wait()
    where = f"{workers:,} workers, {workers * timers:,} timers"
    yield Row(f"{where}: lost in a restart", lost, "", 0, exact=True)
    yield Row(f"{where}: a server starts in", full_s, "s", note=f"{empty_s:.2f} s without workers")
    yield Row("aiotimer run: restarts a killed server in", _run_restart(), "s", 0.5)


def _served(path: str) -> tuple[float, subprocess.Popen[bytes]]:
    """Start ``aiotimer serve``; return how long it took to say that it is ready, and the process."""
    before = perf_counter()
    process = subprocess.Popen(
        python_command("serve", "--socket", path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout as output:
        if not output.readline():
            raise RuntimeError("the server did not start")
    return perf_counter() - before, process


def _run_restart() -> float:
    """Kill the server of an ``aiotimer run`` and return after how many seconds the next one answers."""
    command = [*python_command("run", "--"), "sh", "-c", "echo $AIOTIMER_SOCKET; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        path = run.stdout.readline().strip()
        first = ping(path).pid
        before = perf_counter()
        os.kill(first, signal.SIGKILL)
        while True:
            with contextlib.suppress(ServerUnavailable):
                if ping(path).pid != first:
                    break
        took = perf_counter() - before
        run.communicate("\n")
    return took


def _cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
