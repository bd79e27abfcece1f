"""Faults 41 to 46: killing, and what only looks like it.

The laws of this file: one SIGKILL is sent, through the pidfd; only a readable pidfd means dead. Fault 41, a
worker hung in every way, is in ``tests/integration/test_reaping.py``.

Of fault 45 what is shown here is that no gathering of evidence, whatever it does, delays the kill beyond its
budget; nor does the owner's own ``on_event``, which is called after the signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import TypeAlias

import pytest

from aiotimer import TimerRequest, WorkerId
from aiotimer._linux import procfs
from aiotimer._linux.procfs import start_time
from aiotimer._linux.signals import CGROUP_ROOTS
from aiotimer.events import Event
from aiotimer.evidence import Findings, Subject
from aiotimer.server.inspector import AT_ONCE
from aiotimer.server.pinned_process import classify
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.server import ServerProcess, WatchfulServer, serving, serving_as
from tests.fakes.worker import (
    HANGS,
    PRELUDE,
    bystander,
    ended,
    is_alive,
    line,
    number,
    program,
    spawn_worker,
    stop,
    wait_dead,
)
from tests.integration.test_ladder import KeepingServer


class TooLateServer(WatchfulServer):
    """A server whose every victim dies by itself between the decision and the signal."""

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        os.kill(worker_id.pid, signal.SIGTERM)
        wait_dead(worker_id.pid)
        return super().reap_worker(worker_id)


WITH_CHILD = """
import signal, subprocess, time
from aiotimer import expires
child = ["bash", "-c", "trap '' TERM; echo $$; exec sleep 1000"]
child = subprocess.Popen(child, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
print(child.stdout.readline(), end="", flush=True)
if {stays}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with expires(0.3, "s"):
    time.sleep(1000)
"""


@pytest.mark.parametrize("stays", [True, False])
def test_fault_88_a_server_that_is_killed_while_a_tree_has_its_grace(stays: bool) -> None:
    """The next one takes the whole tree again; but of a worker that has died nobody knows whose it was."""
    with short_socket() as path, contextlib.ExitStack() as stack:
        with ServerProcess(path, target="tree", reap="TERM:1000,KILL", max_grace=1000) as first:
            worker = stack.enter_context(spawn_worker(WITH_CHILD.format(stays=stays), path))
            child = int(worker.wait_line(""))
            pidfd = os.pidfd_open(child)
            stack.callback(os.close, pidfd)
            if stays:
                first.told("expired", worker.pid)
            else:
                assert worker.wait() == -signal.SIGTERM
            first.kill()
        assert is_alive(child)
        with ServerProcess(path, target="tree") as second:
            if stays:
                second.told("reaped", worker.pid)
                wait_dead(child)
            else:
                second.pass_by(monotonic())
                assert is_alive(child)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)


async def test_fault_89_a_look_up_that_hangs_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a child whose command stands in a page that nobody delivers."""
    goes_on, command_of = threading.Event(), procfs.command_of

    def hangs(pid: int, most: int) -> list[str]:
        if pid not in workers:
            goes_on.wait(PATIENCE)
        return command_of(pid, most)

    monkeypatch.setattr("aiotimer._linux.procfs.command_of", hangs)
    script = "sleep 1000 & echo; wait"
    with contextlib.ExitStack() as stack:
        stack.callback(goes_on.set)
        workers: list[int] = []
        for _ in range(2):
            shell = stack.enter_context(
                subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
            )
            stack.callback(os.killpg, shell.pid, signal.SIGKILL)
            workers.append(shell.pid)
            assert shell.stdout is not None
            assert shell.stdout.readline() == b"\n"
        async with serving_as(KeepingServer, reap="dump,KILL", evidence_budget=0.5) as server:
            for pid in workers:
                server.register_timers([TimerRequest(pid, "s", monotonic())])
                assert (await server.told("reaped", pid)).detail == ""
                probe = server.kept[-1][0]["probes"].get("proc", "")
                assert not re.fullmatch(r"\d+\.\d+ s", probe), "it was not finished"
            assert not goes_on.is_set()


async def test_fault_43_a_worker_that_dies_just_before_the_signal(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_as(TooLateServer) as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "s", 0.0)])
            await server.told("worker_gone", pid)
            assert server.reaps == [server.events[-1].worker_id]
            assert server.status()["workers"] == []
        assert server.all_told("reaped") == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


UNWAITED = (
    PRELUDE
    + f"""
pid = os.fork()
if pid == 0:
    with expires(0.3, "victim", TimerClient(unavailable="raise", budget=30)) as block:
        say("deadline", block.deadline)
        say("child", os.getpid())
        {HANGS["gil"]}
sys.stdin.readline()  # and does not wait for its child
"""
)


async def test_fault_44_a_victim_that_nobody_waits_for(sent: list[int]) -> None:
    async with serving() as server:
        with spawn_worker(UNWAITED, server.socket_path) as parent:
            pid = int(await number(parent, "child"))
            deadline = await number(parent, "deadline")
            event = await server.told("reaped", pid)
            assert event.scope == "victim"
            assert server.acted[pid] >= deadline
            assert sent == [signal.SIGKILL]
            await server.pass_by(deadline + 0.3)
            assert start_time(pid) > 0, "it has not been waited for"
            assert not is_alive(pid)
            assert sent == [signal.SIGKILL] * 2, "one for the victim, one for the bystander"
            assert server.armed(pid) == {}
            parent.say()
            assert await ended(parent) == 0


# -- fault 42 ------------------------------------------------------------------------------------------


def root_only() -> None:
    if os.geteuid():
        pytest.skip("only root may freeze a cgroup or a file system")


Ice: TypeAlias = "AbstractContextManager[tuple[Callable[[int], str], Callable[[], None], Callable[[], None]]]"
"""How a process is got in, frozen, and thawed."""


def frozen_cgroup() -> Ice:
    """A cgroup of version 1, whose frozen processes do not even die."""
    root = "/sys/fs/cgroup/freezer"
    return _cgroup(root, switch="freezer.state", on="FROZEN", off="THAWED", told=("freezer.state", "{}\n"))


def frozen_cgroup_2() -> Ice:
    """One of version 2, whose frozen processes die, as they can be killed."""
    root = next((r for r in CGROUP_ROOTS if Path(r, "cgroup.procs").exists()), "/nowhere")
    return _cgroup(root, switch="cgroup.freeze", on="1", off="0", told=("cgroup.events", "frozen {}\n"))


@contextlib.contextmanager
def _cgroup(
    root: str, *, switch: str, on: str, off: str, told: tuple[str, str]
) -> Iterator[tuple[Callable[[int], str], Callable[[], None], Callable[[], None]]]:
    group = Path(root, f"aiotimer-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no freezer of this version of cgroups: {error}")

    def enter(pid: int) -> str:
        (group / "cgroup.procs").write_text(str(pid))
        return "/"

    def turn(state: str) -> None:
        (group / switch).write_text(state)
        while told[1].format(state) not in (group / told[0]).read_text():
            pass  # FREEZING

    try:
        yield enter, lambda: turn(on), lambda: turn(off)
    finally:
        turn(off)
        while (group / "cgroup.procs").read_text():
            pass  # whoever is in there has been killed
        group.rmdir()


@contextlib.contextmanager
def frozen_file_system() -> Iterator[tuple[Callable[[int], str], Callable[[], None], Callable[[], None]]]:
    """A file system on a loop device: whoever writes while it is frozen is in uninterruptible sleep."""
    tools = ("mkfs.ext4", "fsfreeze", "mount", "umount")
    if not all(map(shutil.which, tools)):
        pytest.skip(f"one of {', '.join(tools)} is missing")
    with tempfile.TemporaryDirectory() as directory:
        image, mounted = Path(directory, "image"), Path(directory, "mounted")
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        if subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True).returncode:
            pytest.skip("loop devices cannot be mounted here")

        def switch(how: str) -> None:
            subprocess.run(["fsfreeze", how, mounted], check=True)

        try:
            yield lambda _pid: str(mounted), lambda: switch("--freeze"), lambda: switch("--unfreeze")
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", mounted], capture_output=True)
            subprocess.run(["umount", mounted], check=True)


STUCK = """
directory = sys.stdin.readline().strip()
say("ready")
sys.stdin.readline()
open(directory + "/file", "w").write("x" * 100)
"""


@pytest.mark.parametrize("ice", [frozen_cgroup, frozen_file_system])
async def test_fault_42_what_cannot_die_is_reported_and_not_signalled_again(
    ice: Callable[[], Ice],
    sent: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root_only()
    monkeypatch.setattr("aiotimer._core.reaping.UNKILLABLE_AFTER", 0.5)
    async with serving() as server:
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(spawn_worker(PRELUDE + STUCK, server.socket_path))
            enter, freeze, thaw = stack.enter_context(ice())
            stack.callback(worker.process.kill)
            worker.say(enter(worker.pid))
            await line(worker, "ready")
            await asyncio.to_thread(freeze)
            worker.say()
            deadline = monotonic() + 0.3
            server.register_timers([TimerRequest(worker.pid, "s", deadline)])
            event = await server.told("unkillable", worker.pid)
            assert event.outcome == "unkillable"
            assert ("frozen, with its cgroup" if ice is frozen_cgroup else "sleep (D) in") in event.detail
            assert is_alive(worker.pid)
            assert sent == [signal.SIGKILL]
            await server.pass_by(monotonic())
            await server.pass_by(monotonic())
            assert sent == [signal.SIGKILL] * 3, "one for it, one for each of two bystanders"
            assert server.all_told("reaped", worker.pid) == []
            await asyncio.to_thread(thaw)
            assert (await server.told("reaped", worker.pid)).outcome == "reaped"
            assert len(server.all_told("unkillable")) == 1
            assert await ended(worker) == -signal.SIGKILL
            assert server.acted[worker.pid] >= deadline
            assert sent == [signal.SIGKILL] * 3


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
@pytest.mark.parametrize("ice", [frozen_cgroup, frozen_cgroup_2])
async def test_fault_73_a_worker_frozen_by_its_cgroup_is_held(
    ice: Callable[[], Ice], leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by ``docker pause``: it is not reaped while it cannot run; then it has some time to leave."""
    root_only()
    monkeypatch.setattr("aiotimer._core.reaping.CHECKED_EVERY", 0.02)
    monkeypatch.setattr("aiotimer._core.reaping.TO_LEAVE", 0.2)
    body = 'say("in it")\nsys.stdin.readline()'
    async with serving(stopped="hold") as server:
        with contextlib.ExitStack() as stack:
            source = program("with", body, after=2.0)
            worker = stack.enter_context(spawn_worker(source, server.socket_path))
            enter, freeze, thaw = stack.enter_context(ice())
            stack.callback(worker.process.kill)
            enter(worker.pid)
            await line(worker, "in it")
            await asyncio.to_thread(freeze)
            event = await server.told("held", worker.pid)
            assert event.detail.startswith("it is frozen, with its cgroup ")
            await server.pass_by(monotonic() + 0.3)
            assert is_alive(worker.pid)
            if leaves:
                worker.say()
            await asyncio.to_thread(thaw)
            assert await ended(worker) == (0 if leaves else -signal.SIGKILL)
            if not leaves:
                await server.told("reaped", worker.pid)
            assert len(server.all_told("held")) == 1
            assert len(server.all_told("reaped", worker.pid)) == (0 if leaves else 1)


def test_fault_42_what_is_said_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        parent = f"a zombie that its parent {os.getpid()} does not wait for"
        assert classify(process.pid) == f"it is dead, {parent}"
    with pytest.raises(OSError, match="no process"):
        classify(process.pid)
    with bystander() as pid:
        stop(pid)
        assert classify(pid) == "its state is T (stopped)"
        monkeypatch.setattr(
            "aiotimer._linux.procfs.status", lambda *_: {"NSpid": "7\t1", "State": "S (sleeping)"}
        )
        assert classify(pid).startswith("it is pid 1 of its pid namespace")


# -- faults 45 and 46 ------------------------------------------------------------------------------------


async def test_fault_45_an_owner_who_hangs_delays_no_signal(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever ``on_event`` does, it does after the signal; and if it fails, that is logged."""
    dead: list[bool] = []

    def slow(event: Event) -> None:
        if event.event == "reaped" and event.worker_id is not None:
            wait_dead(event.worker_id.pid)
            dead.append(True)
            raise LookupError("the owner's own")

    async with serving(on_event=slow) as server:
        with bystander() as one, bystander() as other:
            server.register_timers([TimerRequest(one, "s", 0.0), TimerRequest(other, "s", 0.0)])
            await server.told("reaped", one)
            await server.told("reaped", other)
    assert dead == [True] * 4  # each call was made once more, since it raised
    failures = [record.getMessage() for record in caplog.records if record.exc_info]
    assert failures == ["on_event failed for reaped"] * 4


async def gathers_for_ever() -> None:
    await asyncio.Event().wait()


async def gathers_and_will_not_be_cancelled() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.sleep(1000)


async def gathers_and_fails() -> None:
    raise LookupError("a helper's mistake")


async def gathers_and_exits() -> None:
    raise SystemError


@pytest.mark.parametrize(
    ("how", "probes"),
    [
        (gathers_for_ever, "no answer within 0.2 s"),
        (gathers_and_will_not_be_cancelled, "no answer within 0.2 s"),
        (gathers_and_fails, "failed: LookupError"),
        (gathers_and_exits, "failed: SystemError"),
    ],
)
async def test_fault_45_evidence_that_cannot_be_had(
    how: Callable[[], Awaitable[None]], probes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill comes when the budget is used up, or at once, and the record says why it knows nothing."""

    within = 0.2 if probes.startswith("no answer") else PATIENCE  # only one that is to run out may

    async def gather(_subject: Subject, budget: float) -> Findings:
        assert 0.0 <= budget <= within
        await how()
        raise AssertionError

    monkeypatch.setattr("aiotimer.evidence.gather.gather", gather)
    async with serving_as(KeepingServer, reap="dump,KILL", evidence_budget=within) as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "s", 0.0)])
            await server.told("reaped", pid)
            assert server.kept[-1][0]["probes"] == {"all": probes}


async def test_fault_45_a_storm_of_evidence_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that may be under way hang for ever; nobody waits for a turn longer than the budget."""
    under_way = 0

    async def gather(_subject: Subject, _budget: float) -> Findings:
        nonlocal under_way
        under_way += 1
        assert under_way <= AT_ONCE
        await gathers_and_will_not_be_cancelled()
        raise AssertionError

    monkeypatch.setattr("aiotimer.evidence.gather.gather", gather)
    async with serving_as(KeepingServer, reap="dump,KILL", evidence_budget=0.2) as server:
        with contextlib.ExitStack() as stack:
            pids = [stack.enter_context(bystander()) for _ in range(12)]
            server.register_timers([TimerRequest(pid, "s", 0.0) for pid in pids])
            for pid in pids:
                await server.told("reaped", pid)
    told = [record["probes"]["all"] for record, _, _ in server.kept if record["outcome"] == "reaped"]
    assert under_way == AT_ONCE
    assert told.count("no answer within 0.2 s") == AT_ONCE
    assert told.count("too many at once") == 12 - AT_ONCE


@pytest.mark.parametrize("ladder", ["KILL", "dump,KILL"])
async def test_fault_46_the_breaker(ladder: str, sent: list[int]) -> None:
    """So many are killed and no more; the others are observed, and one alarm is given."""
    async with serving(reap=ladder, max_reaps=(10, 1000.0)) as server:
        with contextlib.ExitStack() as stack:
            pids = [stack.enter_context(bystander()) for _ in range(30)]
            server.register_timers([TimerRequest(pid, "s", 0.0) for pid in pids])
            for pid in pids[:10]:
                await server.told("reaped", pid)
            for pid in pids[10:]:
                await server.told("observed", pid)
            assert sent == [signal.SIGKILL] * 10
            (alarm,) = server.all_told("breaker")
            job = f"session {os.getsid(0)}"
            assert alarm.detail == (
                f"more than 10 reaps within 1000 s in {job}: "
                "its workers are only observed until `aiotimer resume`"
            )
            assert server.status()["server"]["observing"] == "breaker"
            assert server.status()["server"]["broken"] == [{"job": job, "resumes_in_s": None}]
            assert all(map(is_alive, pids[10:]))
            server.register_timers([TimerRequest(pids[-1], "another", 0.0)])
            await server.until(lambda: len(server.all_told("observed", pids[-1])) == 2, "another one")
            assert len(server.all_told("expired")) == 31
