"""Ladders carried out on real processes: the signals, the graces, and what spares a worker on the way.

The laws of this file: which signals were sent is read off a record of them; evidence is a coroutine of the
test's own, which does what happens meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import pytest

from aiotimer import TimerRequest, WorkerId
from aiotimer._core import layout, wire
from aiotimer._core.ladder import Ladder, ReapGrant
from aiotimer._linux.process import pin, send_signal
from aiotimer.evidence import Findings, Subject
from aiotimer.evidence.record import Record
from aiotimer.server.inspector import Unseen
from aiotimer.server.pinned_process import PinnedProcess
from aiotimer.server.reaper import ENDS_WITH_IT, LEFT
from aiotimer.server.reporter import Reporter
from aiotimer.server.slices import WorkQueue
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.server import WatchfulServer, answer, raw_client, serving, serving_as
from tests.fakes.worker import bystander, is_alive, stop, wait_dead

FINDINGS = Findings(
    "idle", "x.py:1", [], [], {"state": "S (sleeping)"}, {"proc": "0.001 s"}, "stacks", "tasks"
)


Kept: TypeAlias = tuple[dict[str, Any], str, str]
"""A record, its stacks and its tasks."""


class KeepingServer(WatchfulServer):
    """A server that keeps records in memory.

    Attributes:
        kept: what it was given to keep, oldest first.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept: list[Kept] = []

    def _new_reporter(self, queue: WorkQueue, directory: Path) -> Reporter:
        reporter = super()._new_reporter(queue, directory)
        reporter.keep = self.keep
        reporter.path_of = lambda record_id: f"/evidence/{record_id}"
        return reporter

    def keep(self, record: Record, stacks_text: str, tasks_text: str) -> None:
        """Keep a record."""
        self.kept.append((record.as_json(), stacks_text, tasks_text))

    def outcomes(self, pid: int) -> list[str]:
        """Return what was kept about a process: the outcomes, each change once."""
        outcomes = [record["outcome"] for record, _, _ in self.kept if record["pid"] == pid]
        return [one for n, one in enumerate(outcomes) if n == 0 or outcomes[n - 1] != one]


@contextlib.contextmanager
def stubborn() -> Iterator[int]:
    """Yield the pid of a child that ignores SIGTERM."""

    def ignore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    with subprocess.Popen(["sleep", "1000"], preexec_fn=ignore) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def during_evidence(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[Subject], Awaitable[None] | None]
) -> list[Subject]:
    """Let something happen while evidence is gathered; return of whom it has been, in order."""
    subjects: list[Subject] = []

    async def gather(subject: Subject, _budget: float) -> Findings:
        subjects.append(subject)
        happening = happens(subject)
        if happening is not None:
            await happening
        return FINDINGS

    monkeypatch.setattr("aiotimer.evidence.gather.gather", gather)
    return subjects


def due(pid: int, scope: str = "s") -> TimerRequest:
    return TimerRequest(pid, scope, monotonic())


# -- signals -------------------------------------------------------------------------------------------


async def test_every_step_is_taken_until_the_worker_is_dead(sent: list[int]) -> None:
    async with serving_as(KeepingServer, reap="HUP:0.01,TERM:0.05,KILL") as server:
        with stubborn() as pid:
            stop(pid)  # HUP waits for the SIGCONT that follows it
            server.register_timers([due(pid)])
            await server.told("reaped", pid)
            assert sent[:2] == [signal.SIGHUP, signal.SIGCONT]
    async with serving_as(KeepingServer, reap="TERM:0.05,KILL") as server:
        with stubborn() as pid:
            sent.clear()
            server.register_timers([due(pid)])
            event = await server.told("reaped", pid)
            assert sent == [signal.SIGTERM, signal.SIGCONT, signal.SIGKILL]
            assert event.outcome == "reaped"
            assert [e.event for e in server.events if e.worker_id is not None] == ["expired", "reaped"]
            record, _, _ = server.kept[-1]
            assert [step["signal"] for step in record["signals"]] == ["SIGTERM", "SIGKILL"]
            assert record["ladder"] == "TERM:0.05,KILL"
            assert record["evidence"] == event.evidence == f"/evidence/{record['id']}"


# -- evidence ------------------------------------------------------------------------------------------


async def test_evidence_comes_before_the_signal(monkeypatch: pytest.MonkeyPatch, sent: list[int]) -> None:
    seen: list[list[int]] = []
    async with serving_as(KeepingServer, reap="dump,KILL") as server:
        subjects = during_evidence(monkeypatch, lambda _subject: seen.append(list(sent)))
        with bystander() as pid:
            server.register_timers([due(pid, "victim")])
            event = await server.told("reaped", pid)
            assert seen == [[]]
            assert sent == [signal.SIGKILL]
            (subject,) = subjects
            assert subject[0].pid == pid
            assert subject[2:5] == ("sleep", "victim", ())
            assert subject.kills_next
            assert (event.verdict, event.outcome) == ("idle", "reaped")
            assert server.outcomes(pid) == ["pending", "reaped"]
            for record, stacks, tasks in server.kept:
                assert (record["where"], stacks, tasks) == ("x.py:1", "stacks", "tasks")
                assert record["process"]["state"] == "S (sleeping)"
            assert [timer["scope"] for timer in record["timers"]] == ["victim"]


@pytest.mark.parametrize("dies", [False, True])
async def test_of_a_child_of_process_1_it_is_written_first_what_is_known(
    dies: bool, monkeypatch: pytest.MonkeyPatch, sent: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """All of its pid namespace may end with it."""
    monkeypatch.setattr("aiotimer._linux.procfs.is_first_pid_namespace", lambda: False)
    monkeypatch.setattr("aiotimer._linux.procfs.parent_and_session", lambda _pid: (1, 0))
    told, known = Reporter.told, []

    async def tells(reporter: Reporter) -> None:
        await told(reporter)
        known.append((list(sent), [record.getMessage() for record in caplog.records]))
        if dies:
            os.kill(pid, signal.SIGKILL)
            await server.told("worker_gone", pid)

    monkeypatch.setattr(Reporter, "told", tells)
    monkeypatch.setattr("aiotimer.server.reaper.TOLD_WITHIN", PATIENCE)
    async with serving_as(KeepingServer, reap="dump,KILL") as server:
        during_evidence(monkeypatch, lambda _subject: None)
        with bystander() as pid:
            server.register_timers([due(pid, "victim")])
            await server.told("worker_gone" if dies else "reaped", pid)
            ((signals, lines),) = known
    assert signals == []
    (line,) = (line for line in lines if "verdict" in line)
    assert line.startswith(f'expired pid={pid} name="sleep" scope="victim"')
    assert 'verdict="idle"' in line
    assert line.endswith(f"({ENDS_WITH_IT})")
    assert sent == ([] if dies else [signal.SIGKILL])


@pytest.mark.parametrize("first", [False, True])
async def test_who_is_a_child_of_process_1(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotimer._linux.procfs.is_first_pid_namespace", lambda: first)
    with bystander() as pid:
        process = PinnedProcess(*pin(pid))
        assert process.is_child_of_init() == (os.getpid() == 1 and not first)
        process.close()
    gone = PinnedProcess(*pin(os.getpid()))
    gone.id = WorkerId(2**22 + 1, 0)
    assert not gone.is_child_of_init()
    gone.close()


@pytest.mark.parametrize("how", ["it says so", "it is over", "it fails"])
async def test_everybody_is_seen_before_anybody_is_killed(
    how: str, monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    """Else whoever started them would end the rest, as soon as the first one is dead, unseen."""
    looked_at: list[int] = []
    others_killed = asyncio.Event()
    first_killed: list[bool] = []

    async def gather(subject: Subject, _budget: float) -> Findings:
        looked_at.append(subject.id.pid)
        if subject.id.pid == pids[0]:
            for _ in range(100):  # turns of the loop, in which the other one is done
                await asyncio.sleep(0)
            first_killed.append(bool(sent))
            if how == "it fails":
                raise LookupError
            if how == "it says so":
                subject.seen()
                await asyncio.wait_for(others_killed.wait(), PATIENCE)
        return FINDINGS

    monkeypatch.setattr("aiotimer.evidence.gather.gather", gather)
    async with serving_as(KeepingServer, reap="dump,KILL", evidence_budget=PATIENCE) as server:
        with bystander() as one, bystander() as other:
            pids = [one, other]
            server.register_timers([due(pid) for pid in pids])
            await server.told("reaped", other)
            others_killed.set()
            await server.told("reaped", one)
    assert sorted(looked_at) == sorted(pids)
    assert first_killed == [False]


async def test_whoever_is_not_seen_in_time_keeps_nobody_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gather(subject: Subject, _budget: float) -> Findings:
        if subject.id.pid == one:
            await asyncio.Event().wait()
        return FINDINGS

    monkeypatch.setattr("aiotimer.evidence.gather.gather", gather)
    async with serving_as(KeepingServer, reap="dump,KILL", evidence_budget=0.2) as server:
        with bystander() as one, bystander() as other:
            server.register_timers([due(pid) for pid in (one, other)])
            reaped = [await server.told("reaped", pid) for pid in (one, other)]
    assert [event.outcome for event in reaped] == ["reaped", "reaped"]


async def test_whoever_falls_due_later_is_not_waited_for() -> None:
    loop = asyncio.get_running_loop()
    unseen = Unseen(loop)
    await asyncio.wait_for(unseen.all_seen(), PATIENCE)
    first, second = unseen.begin(), unseen.begin()
    by_then = asyncio.ensure_future(unseen.all_seen())
    await asyncio.sleep(0)
    later = unseen.begin()
    by_now = asyncio.ensure_future(unseen.all_seen())
    given_up = asyncio.ensure_future(unseen.all_seen())
    await asyncio.sleep(0)
    given_up.cancel()
    unseen.seen(second)
    await asyncio.sleep(0)
    assert not by_then.done()
    unseen.seen(first)
    unseen.seen(first)
    await asyncio.wait_for(by_then, PATIENCE)
    assert not by_now.done()
    unseen.seen(later)
    await asyncio.wait_for(by_now, PATIENCE)
    assert given_up.cancelled()


async def test_a_release_while_evidence_is_gathered_spares_the_worker(
    monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    async with serving_as(KeepingServer, reap="dump,KILL") as server:
        with bystander() as pid:

            def release(subject: Subject) -> None:
                if subject.id.pid == pid:
                    server.register_timers([TimerRequest(pid, "s", -1.0)])

            during_evidence(monkeypatch, release)
            server.register_timers([due(pid), TimerRequest(pid, "other", monotonic() + 1000)])
            event = await server.told("late", pid)
            assert (event.scope, event.outcome, event.verdict) == ("s", "late", "idle")
            await server.pass_by(monotonic())
            assert is_alive(pid)
            assert server.armed(pid).keys() == {"other"}
            assert server.outcomes(pid)[-1:] == ["late"], "whether or not it was kept before that was known"
            assert sent == [signal.SIGKILL], "the one for the other bystander"
            server.register_timers([due(pid, "again")])
            server.register_timers([due(pid, "s")])
            await server.told("reaped", pid)


async def test_of_two_timers_one_is_released_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_as(KeepingServer, reap="dump,KILL") as server:
        with bystander() as pid:
            until = monotonic() + 0.1
            subjects = during_evidence(
                monkeypatch, lambda _subject: server.register_timers([TimerRequest(pid, "a", -1.0)])
            )
            server.register_timers([TimerRequest(pid, "a", until), TimerRequest(pid, "b", until)])
            event = await server.told("reaped", pid)
            assert (event.scope, event.verdict) == ("b", "idle")
            assert [e.scope for e in server.all_told("late", pid)] == ["a"]
            assert [e.scope for e in server.all_told("expired", pid)] == ["a", "b"]
            assert len(subjects) == 1, "it is not asked again"


async def test_a_worker_that_dies_while_evidence_is_gathered_was_not_reaped(
    monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    async with serving_as(KeepingServer, reap="dump,KILL") as server:
        with bystander() as pid:

            async def die(_subject: Subject) -> None:
                os.kill(pid, signal.SIGTERM)
                await asyncio.Event().wait()

            during_evidence(monkeypatch, die)
            server.register_timers([due(pid)])
            event = await server.told("worker_gone", pid)
            assert (event.scope, event.outcome) == ("s", "gone")
            assert event.detail == "by SIGTERM, with timers armed"
            assert server.all_told("reaped") == []
            assert sent == []


async def test_who_has_some_grace_is_not_looked_at_in_a_way_that_could_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving_as(KeepingServer, reap="dump,TERM:60,KILL") as server:
        subjects = during_evidence(monkeypatch, lambda _subject: None)
        with bystander() as pid:
            server.register_timers([due(pid)])
            await server.told("reaped", pid)
            assert [subject.kills_next for subject in subjects] == [False]


async def test_a_server_that_stops_while_evidence_is_gathered_has_reaped_nobody(
    monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    with short_socket() as path, bystander() as pid:
        asked = asyncio.Event()

        async def wait(_subject: Subject) -> None:
            asked.set()
            await asyncio.Event().wait()

        during_evidence(monkeypatch, wait)
        async with serving(path, reap="dump,KILL") as server:
            server.register_timers([due(pid)])
            await asked.wait()
        assert sent == []
        async with serving(path) as server:
            await server.told("reaped", pid)


async def test_without_a_budget_there_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = during_evidence(monkeypatch, lambda _subject: None)
    async with serving(reap="dump,KILL", evidence_budget=0.0) as server:
        with bystander() as pid:
            server.register_timers([due(pid)])
            await server.told("reaped", pid)
    assert subjects == []


class AskingServer(WatchfulServer):
    """A server that awaits something of its owner's before it reaps."""

    async def reap_worker(self, worker_id: WorkerId) -> bool:
        await asyncio.sleep(0)
        done = super().reap_worker(worker_id)
        return done if isinstance(done, bool) else await done


@pytest.mark.parametrize("ladder", ["KILL", "dump,TERM:0.01,KILL"])
async def test_an_override_may_await_what_the_default_returns(ladder: str) -> None:
    async with serving_as(AskingServer, reap=ladder) as server:
        with stubborn() as pid:
            server.register_timers([due(pid)])
            assert (await server.told("reaped", pid)).scope == "s"


async def test_reap_worker_may_be_called_without_an_expiry(sent: list[int]) -> None:
    async with serving(reap="dump,KILL") as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "s", monotonic() + 1000)])
            (worker_id,) = (w["pid"] for w in server.status()["workers"])
            assert worker_id == pid
            assert server.reap_worker(next(iter(server._registry.workers))) is True
            await server.told("worker_gone", pid)
            assert sent == [signal.SIGKILL]


# -- a worker's own ladder -----------------------------------------------------------------------------

LADDER = "TERM:2,KILL"


def hello(reap: str, *, observe: bool = False) -> bytes:
    return wire.encode(
        wire.Hello(wire.PROTOCOL_VERSION, "0", os.getpid(), False, 0, monotonic(), False, (), reap, observe)
    )


async def test_a_workers_own_ladder_is_remembered_by_the_next_server() -> None:
    with short_socket() as path:
        async with serving(path) as server:
            with raw_client(path) as client:
                client.sendall(hello(LADDER, observe=True))
                await answer(client, wire.Welcome)
                (worker,) = server._registry.workers.values()
                assert worker.reap_grant == ReapGrant(Ladder.parse(LADDER), observe=True)
                assert worker.tables[0].reap_grant() == "observe TERM:2,KILL"
        for max_grace, grant in ((60.0, ReapGrant(Ladder.parse(LADDER), observe=True)), (1.0, ReapGrant())):
            async with serving(path, max_grace=max_grace) as server:
                (worker,) = server._registry.workers.values()
                assert worker.reap_grant == grant


@pytest.mark.parametrize(
    ("reap", "reason"),
    [
        ("TERM:61,KILL", r"takes 61 s to reach KILL, and this server allows 60 s"),
        ("TERM", r"a ladder ends with KILL"),
        (",".join(["TERM:0.001"] * 20) + ",KILL", rf"at most {layout.GRANT_SIZE} fit"),
    ],
)
async def test_a_ladder_that_is_not_allowed_is_refused(reap: str, reason: str) -> None:
    async with serving() as server:
        with raw_client(server.socket_path) as client:
            client.sendall(hello(reap))
            (refusal,) = await answer(client)
            assert isinstance(refusal, wire.Refused)
            assert reason in refusal.reason
        assert server.status()["workers"] == []


OWN_LADDER = "HUP:1000,KILL"


async def test_a_worker_is_reaped_by_its_own_ladder(sent: list[int]) -> None:
    async with serving(reap="KILL", max_grace=1000) as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "s", monotonic() + 1000)])
            (worker,) = server._registry.workers.values()
            worker.reap_grant = server._policy.reap_grant(OWN_LADDER, observe=False)
            server.register_timers([due(pid)])
            await server.told("reaped", pid)
            assert sent[0] == signal.SIGHUP
            assert signal.SIGKILL not in sent


# -- targets -------------------------------------------------------------------------------------------

FAMILY = ["sh", "-c", "sleep 1000 & echo $!; wait"]


@contextlib.contextmanager
def family(*, new_group: bool) -> Iterator[tuple[int, int]]:
    """Yield the pids of a shell and of its child."""
    with subprocess.Popen(FAMILY, stdout=subprocess.PIPE, text=True, start_new_session=new_group) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        try:
            yield shell.pid, child
        finally:
            shell.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def end(leader: int) -> None:
    """End the leader of a family, and leave nothing of it."""
    os.kill(leader, signal.SIGKILL)  # our own child, and not waited for yet: the pid is still its
    os.waitid(os.P_PID, leader, os.WEXITED)


@pytest.fixture
def needs_group_signals() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(pidfd, 0, None, 4)
    except ProcessLookupError:
        pass  # it is no leader
    except OSError as error:
        pytest.skip(f"no signals to groups through a pidfd (Linux >= 6.9): {error}")
    finally:
        os.close(pidfd)


@pytest.mark.usefixtures("needs_group_signals")
@pytest.mark.parametrize("victim", ["leader", "member"])
async def test_a_group_is_reaped(victim: str) -> None:
    async with serving(reap="TERM:1000,KILL", max_grace=1, target="group") as server:
        with family(new_group=True) as (leader, member):
            pid = leader if victim == "leader" else member
            server.register_timers([due(pid)])
            event = await server.told("reaped", pid)
            wait_dead(leader)
            wait_dead(member)
            assert event.detail == ""


async def test_a_group_with_the_server_in_it_is_not_signalled() -> None:
    async with serving(target="group") as server:
        with family(new_group=False) as (shell, child):
            server.register_timers([due(shell)])
            event = await server.told("reaped", shell)
            assert event.detail == "only the process was signalled: the server is in its process group"
            assert is_alive(child)


async def test_a_group_with_the_server_in_it_is_told_so_without_its_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with family(new_group=True) as (shell, child):
        end(shell)
        monkeypatch.setattr("os.getpgrp", lambda: shell)  # as where a shell starts the server, and ends
        async with serving(target="group") as server:
            server.register_timers([due(child)])
            event = await server.told("reaped", child)
            assert event.detail == "only the process was signalled: the server is in its process group"


async def test_a_group_whose_leader_is_gone_cannot_be_reached() -> None:
    async with serving(target="group") as server:
        with family(new_group=True) as (shell, child):
            end(shell)
            server.register_timers([due(child)])
            event = await server.told("reaped", child)
            assert (
                event.detail
                == "only the process was signalled: its process group has no leader to reach it by"
            )


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup of version 2."""
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        path = f"{root}/aiotimer-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            os.mkdir(path)
            if os.path.exists(f"{path}/cgroup.kill"):
                break
            os.rmdir(path)
    else:
        pytest.skip("no cgroup of version 2 can be made here")
    yield path
    with open(f"{path}/cgroup.kill", "w") as file:
        file.write("1")
    while "populated 1" in Path(f"{path}/cgroup.events").read_text():
        pass  # they have been killed
    os.rmdir(path)


async def test_a_cgroup_is_reaped(cgroup: str) -> None:
    async with serving(reap="URG:0.01,KILL", target="cgroup") as server:
        with bystander() as pid, bystander() as other:
            for one in (pid, other):
                with open(f"{cgroup}/cgroup.procs", "w") as file:
                    file.write(str(one))
            server.register_timers([due(pid)])
            event = await server.told("reaped", pid)
            wait_dead(other)
            assert event.detail == ""


async def test_the_cgroup_of_everybody_is_not_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, reason in (("/", "it is in no cgroup of its own"), ("/a", "the server is in its cgroup")):
        monkeypatch.setattr(
            "aiotimer._linux.signals.cgroup_of", lambda pid, path=path: "/a/b" if pid == "self" else path
        )
        async with serving(target="cgroup") as server:
            with bystander() as pid:
                server.register_timers([due(pid)])
                event = await server.told("reaped", pid)
                assert event.detail == f"only the process was signalled: {reason}"


async def test_a_cgroup_that_was_not_delegated_is_not_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "aiotimer._linux.signals.cgroup_of", lambda pid: "/own" if pid == "self" else "/nowhere"
    )
    async with serving(target="cgroup") as server:
        with bystander() as pid:
            server.register_timers([due(pid)])
            event = await server.told("reaped", pid)
            assert "cgroup.kill" in event.detail


# -- what goes wrong on the way ------------------------------------------------------------------------


async def test_a_record_that_cannot_be_kept_keeps_nobody_alive(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(KeepingServer):
        def keep(self, record: Record, stacks_text: str, tasks_text: str) -> None:
            raise OSError("no space left")

    async with serving_as(Forgetful, reap="dump,KILL") as server:
        with bystander() as pid:
            server.register_timers([due(pid)])
            await server.told("reaped", pid)
    assert "could not be kept" in caplog.text


async def test_an_exec_while_evidence_is_gathered_spares(
    monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    async with serving(reap="dump,KILL") as server:
        with bystander() as pid:

            def execute(_subject: Subject) -> None:
                monkeypatch.setattr("aiotimer.server.worker.Worker.runs_program_of", lambda *_: False)

            during_evidence(monkeypatch, execute)
            server.register_timers([due(pid)])
            await server.told("exec", pid)
            assert (await server.told("worker_gone", pid)).detail == LEFT
            assert server.armed(pid) == {}
            assert sent == []
            assert is_alive(pid)


async def test_a_group_that_cannot_be_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an older kernel, say, which does not know the flag."""

    def refuses(pidfd: int, signum: int, flags: int = 0) -> None:
        if flags:
            raise OSError(errno.EINVAL, "Invalid argument")
        send_signal(pidfd, signum)

    monkeypatch.setattr("aiotimer._linux.signals.send_signal", refuses)
    async with serving(target="group") as server:
        with family(new_group=True) as (shell, child):
            server.register_timers([due(shell)])
            event = await server.told("reaped", shell)
            assert event.detail.endswith("its process group cannot be signalled: Invalid argument")
            assert is_alive(child)


async def test_a_worker_that_the_kernel_does_not_let_us_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A security module, say. It is told once, and tried again with pauses, until it can be."""

    def refuses(_pidfd: int, _signum: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    async with serving() as server:
        with bystander() as pid:
            with monkeypatch.context() as played:
                played.setattr("aiotimer._linux.signals.send_signal", refuses)
                server.register_timers([due(pid)])
                event = await server.told("reap_failed", pid)
                assert event.detail.startswith("Operation not permitted; it will be tried again")
                await server.until(lambda: len(server.reaps) >= 3, "the third attempt")
                assert is_alive(pid)
                assert server.armed(pid)
            await server.told("reaped", pid)
            assert len(server.all_told("reap_failed", pid)) == 1


@pytest.mark.parametrize(
    ("how", "said"), [("hangs", "/proc does not answer either"), ("fails", "is not shown: no")]
)
async def test_an_unkillable_worker_of_which_nothing_is_shown(
    how: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL that does nothing stands for one that would not be enough."""
    over = threading.Event()

    def classify(_pid: int) -> str:
        if how == "fails":
            raise OSError(errno.EIO, "no")
        over.wait()
        return "too late"

    monkeypatch.setattr("aiotimer.server.pinned_process.classify", classify)
    patience = 0.05 if how == "hangs" else PATIENCE
    monkeypatch.setattr("aiotimer.server.pinned_process._PATIENCE", patience)
    monkeypatch.setattr("aiotimer._linux.signals.send_signal", lambda *_: None)
    monkeypatch.setattr("aiotimer._core.reaping.UNKILLABLE_AFTER", 0.01)
    try:
        async with serving() as server:
            with bystander() as pid:
                server.register_timers([due(pid)])
                event = await server.told("unkillable", pid)
                assert event.detail.endswith(said)
    finally:
        over.set()
