"""Faults 36 to 39: wall clocks that jump, loops that wake early, servers and workers that stand still.

The laws of this file: a signal never precedes its deadline, whatever woke the server; what passed while a
server stood still is given back, and what was released meanwhile is released.

Fault 36 is shown with a wall clock of the processes' own: a preloaded library adds an hour to what they read.
Setting the machine's would disturb everybody on it; ``AIOTIMER_TESTS_MAY_SET_THE_CLOCK=1`` allows it.
Fault 39 is shown for both policies, ``reap`` and ``hold``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path
from time import monotonic

import pytest
import uvloop

from aiotimer import TimerRequest
from aiotimer._core.watch import FINE_BEAT, Lifeline, Watch
from aiotimer.server.pinned_process import why_stopped
from aiotimer.server.slices import Alarm
from tests.fakes.clock import clock_passes
from tests.fakes.places import short_socket
from tests.fakes.server import LOOPS, ServerProcess, serving
from tests.fakes.worker import (
    HANGS,
    UNHURRIED,
    all_ready,
    arm_all,
    bystander,
    ended,
    is_alive,
    line,
    program,
    spawn_worker,
    stop,
)

# -- fault 36 ------------------------------------------------------------------------------------------

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long *offset;

__attribute__((constructor)) static void map_offset(void) {
    int fd = open(getenv("WALL_CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    offset = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (where) *where = precise.tv_sec;
    return precise.tv_sec;
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another wall clock, as a library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make another wall clock with")
    directory = tmp_path_factory.mktemp("shim")
    source, library = directory / "shim.c", directory / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def steps_of_the_processes_clock(shim: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A wall clock that all processes started from now on share: a function that moves it by seconds."""
    offset = shim.with_name("offset")  # one for all tests: who has been started for one serves the next, too
    descriptor = os.open(offset, os.O_WRONLY | os.O_CREAT)  # not truncated, for processes have it mapped
    os.write(descriptor, bytes(8))
    os.close(descriptor)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("WALL_CLOCK_OFFSET", str(offset))

    def step(seconds: int) -> None:
        with offset.open("r+b") as file:
            before = int.from_bytes(file.read(8), "little", signed=True)
            file.seek(0)
            file.write((before + seconds).to_bytes(8, "little", signed=True))

    return step


@pytest.fixture
def steps_of_the_machines_clock() -> Iterator[Callable[[int], None]]:
    """The machine's wall clock: a function that moves it by seconds. It is set right at the end."""
    if os.environ.get("AIOTIMER_TESTS_MAY_SET_THE_CLOCK") != "1":
        pytest.skip("it would disturb the machine: AIOTIMER_TESTS_MAY_SET_THE_CLOCK=1 allows it")
    difference = time.time() - monotonic()

    def step(seconds: int) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)

    yield step
    time.clock_settime(time.CLOCK_REALTIME, monotonic() + difference)


TELLS_TIME = "say('wall', time.time()); sys.stdin.readline(); say('wall', time.time()); sys.stdin.readline()"


@pytest.mark.parametrize("whose", ["processes", "machines"])
@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.parametrize("loop", LOOPS)
def test_fault_36_the_wall_clock_is_stepped(
    whose: str, hours: int, loop: str, request: pytest.FixtureRequest
) -> None:
    """Nobody is reaped for it, nobody is spared for it."""
    step: Callable[[int], None] = request.getfixturevalue(f"steps_of_the_{whose}_clock")
    with short_socket() as path, ServerProcess(path, loop) as server:
        with (
            spawn_worker(program("with", TELLS_TIME, after=30.0), path) as healthy,
            spawn_worker(program("async with", HANGS["spin"], after=0.7), path) as hung,
        ):
            healthy.wait_line("deadline ")
            deadline = float(hung.wait_line("deadline ").split()[-1])
            before = float(healthy.wait_line("wall ").split()[-1])
            step(3600 * hours)
            healthy.say()
            after = float(healthy.wait_line("wall ").split()[-1])
            assert round((after - before) / 3600) == hours, "the clock was not stepped: the test is blind"
            assert server.told("reaped", hung.pid)["late_s"] >= 0
            assert hung.wait() == -signal.SIGKILL
            assert monotonic() >= deadline
            server.pass_by(deadline)
            healthy.say()
            assert healthy.wait() == 0
        assert next(event["pid"] for event in server.events if event["event"] == "reaped") == hung.pid


# -- fault 37 ------------------------------------------------------------------------------------------

EARLY = 0.002
"""Seconds by which the loops of fault 37 fire early: more than uvloop's rounding."""


class Early(asyncio.AbstractEventLoop):
    """A loop that is too early."""

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when - EARLY, callback, *args, context=context)


class EarlyLoop(Early, asyncio.SelectorEventLoop):
    """asyncio's."""


class EarlyUvloop(Early, uvloop.Loop):  # type: ignore[misc]  # its signatures are not those of its base
    """uvloop's."""


@pytest.mark.parametrize("loop", [EarlyLoop, EarlyUvloop])
def test_fault_37_a_loop_that_wakes_early(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No early signal, and no spinning until the deadline: a few early calls for each deadline at most."""
    calls = 0
    woken = Alarm._woken

    def counted(alarm: Alarm) -> None:
        nonlocal calls
        calls += 1
        woken(alarm)

    monkeypatch.setattr(Alarm, "_woken", counted)

    async def main() -> None:
        async with serving() as server:
            with contextlib.ExitStack() as stack:
                pids = [stack.enter_context(bystander()) for _ in range(10)]  # nothing starts any more
                due = {pid: monotonic() + 0.5 + 0.0137 * n for n, pid in enumerate(pids)}
                server.register_timers([TimerRequest(pid, "s", deadline) for pid, deadline in due.items()])
                for pid, deadline in due.items():
                    event = await server.told("reaped", pid)
                    assert event.late_s is not None
                    assert event.late_s >= 0.0
                    assert server.acted[pid] >= deadline

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert 0 < calls <= 80


# -- fault 38 ------------------------------------------------------------------------------------------

HELD = "say('held'); sys.stdin.readline()"


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_38_a_server_that_was_stopped(loop: str) -> None:
    """Deadlines pass while it stands still. It kills nobody for that: each gets back what was left."""
    with short_socket() as path, ServerProcess(path, loop) as server:
        with (
            spawn_worker(program("with", HELD, after=UNHURRIED, told=True), path) as releases_meanwhile,
            spawn_worker(
                program("async with", HELD, after=UNHURRIED, told=True), path
            ) as releases_afterwards,
            spawn_worker(program("acquire", HELD, after=UNHURRIED, told=True), path) as never_releases,
            spawn_worker(
                program("with", HANGS["gil"], after=UNHURRIED + 1.0, told=True), path
            ) as not_concerned,
        ):
            workers = [releases_meanwhile, releases_afterwards, never_releases, not_concerned]
            all_ready(*workers)
            *deadlines, later = arm_all(*workers)
            server.freeze()
            releases_meanwhile.say()
            releases_meanwhile.wait_line("left")
            clock_passes(max(deadlines))
            server.thaw()
            server.told("stalled")
            releases_afterwards.say()
            releases_afterwards.wait_line("left")
            for victim in (never_releases, not_concerned):
                assert server.told("reaped", victim.pid)["late_s"] >= 0
                assert victim.wait() == -signal.SIGKILL
            assert monotonic() >= later, "a stop moves no deadline that it did not swallow"
            assert releases_meanwhile.wait() == 0
            assert releases_afterwards.wait() == 0
        about = [(event["event"], event["pid"]) for event in server.events]
        assert about.index(("stalled", None)) < about.index(("reaped", never_releases.pid))
        reaped = {pid for kind, pid in about if kind == "reaped"}
        assert reaped == {never_releases.pid, not_concerned.pid}


def test_fault_38_worker_and_server_frozen() -> None:
    """A machine that was suspended: what was left when it stood still is left when it goes on."""
    with short_socket() as path, ServerProcess(path, "uvloop") as server:
        with (
            spawn_worker(program("with", HELD, after=UNHURRIED, told=True), path) as healthy,
            spawn_worker(program("with", HELD, after=UNHURRIED, told=True), path) as hung,
        ):
            all_ready(healthy, hung)
            deadlines = arm_all(healthy, hung)
            server.freeze()
            for worker in (healthy, hung):
                stop(worker.pid)
            clock_passes(max(deadlines))
            server.thaw()
            for worker in (healthy, hung):
                os.kill(worker.pid, signal.SIGCONT)
            server.told("stalled")
            healthy.say()
            healthy.wait_line("left")
            assert server.told("reaped", hung.pid)["late_s"] >= 0
            assert hung.wait() == -signal.SIGKILL
            assert healthy.wait() == 0


@pytest.mark.parametrize("run", [0.0, 0.1, 0.2, 0.4, 1.0])
def test_fault_78_stalls_cannot_put_off_a_deadline_for_ever(run: float) -> None:
    """Between any two stalls the server runs for a while: what it is seen to run adds up to what was left.

    It looks when it goes on, as at all that has become due meanwhile, and then shows life at its pace.
    """
    now, left = 100.0, 5.0
    lifeline = Lifeline(now)
    watch = Watch(lifeline, connected=True)
    hung = array("d", [now + left])
    for stalls in range(1000):
        until = now + run
        while now <= until:
            if watch.look(hung, now).due:
                seen = max(FINE_BEAT, run - FINE_BEAT)
                assert left / max(FINE_BEAT, run) - 1 <= stalls <= left / seen + 1
                return
            now += lifeline.beat
        now = until + 7.0
    pytest.fail("never reaped")


# -- fault 39 ------------------------------------------------------------------------------------------


def seize(pid: int) -> None:
    """Become the debugger of a process, and stop it: PTRACE_ATTACH (ptrace(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if libc.ptrace(16, pid, None, None):
        pytest.skip(f"ptrace is not permitted here: {os.strerror(ctypes.get_errno())}")
    os.waitpid(pid, os.WUNTRACED)


@pytest.mark.parametrize("stand_still", [stop, seize])
def test_fault_39_a_worker_that_was_stopped(stand_still: Callable[[int], None]) -> None:
    """A stopped worker, or one under a debugger, is as late as any other."""
    with short_socket() as path, ServerProcess(path) as server:
        with spawn_worker(program("with", HELD, after=2.0), path) as worker:
            worker.wait_line("held")
            stand_still(worker.pid)
            assert server.told("reaped", worker.pid)["late_s"] >= 0
            assert worker.wait() == -signal.SIGKILL


def let_go(pid: int) -> None:
    """Be its debugger no more: PTRACE_DETACH."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    assert libc.ptrace(17, pid, None, None) == 0


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("stand_still", "go_on"), [(stop, go_on), (seize, let_go)], ids=["stopped", "debugged"]
)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
async def test_fault_39_a_worker_on_hold(
    stand_still: Callable[[int], None],
    go_on: Callable[[int], None],
    leaves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not reaped while it cannot run; then it has some time to leave its block."""
    monkeypatch.setattr("aiotimer._core.reaping.CHECKED_EVERY", 0.02)
    monkeypatch.setattr("aiotimer._core.reaping.TO_LEAVE", 0.2)
    looks: list[str] = []

    def look(pid: int) -> str:
        looks.append(why_stopped(pid))
        return looks[-1]

    monkeypatch.setattr("aiotimer.server.pinned_process.why_stopped", look)
    async with serving(stopped="hold") as server:
        with spawn_worker(program("with", HELD, after=2.0), server.socket_path) as worker:
            await line(worker, "held")
            stand_still(worker.pid)
            event = await server.told("held", worker.pid)
            assert event.detail == "it is stopped" or event.detail == f"process {os.getpid()} debugs it"
            await server.pass_by(monotonic() + 0.3)
            assert is_alive(worker.pid)
            assert len(looks) > 3, "it is looked at"
            assert server.acted.keys() & {worker.pid} == set()
            if leaves:
                worker.say()
            go_on(worker.pid)
            if leaves:
                assert await ended(worker) == 0
            else:
                assert (await server.told("reaped", worker.pid)).scope == "victim"
                assert await ended(worker) == -signal.SIGKILL
            assert len(server.all_told("held")) == 1
            assert len(server.all_told("expired", worker.pid)) == (0 if leaves else 1)
