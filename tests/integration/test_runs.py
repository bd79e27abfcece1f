"""Roll calls: a member of a run expires, and all of them are looked at before anybody is signalled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from aiotimer import TimerRequest, WorkerId
from aiotimer._core import wire
from aiotimer._core.reaping import State
from aiotimer._linux.procfs import time_namespace
from aiotimer.evidence import Findings, Subject, gather
from aiotimer.evidence.store import load, runs
from aiotimer.server import runs as module
from aiotimer.server.inspector import Turns
from aiotimer.server.server import TimerServer
from tests.fakes.clock import PATIENCE
from tests.fakes.server import WatchfulServer, answer, raw_client, serving, serving_as
from tests.fakes.worker import (
    HANGS,
    PRELUDE,
    SpawnedWorker,
    bystander,
    is_alive,
    line,
    program,
    spawn_worker,
    stop,
)

WAITS = program("with", HANGS["lock"], told=True)
"""A member that connects, and is then told to enter a block that it never leaves."""

WAITS_LONG = program("with", HANGS["lock"], after=600, told=True)


def member(
    stack: contextlib.ExitStack, server: TimerServer, rank: int, code: str = WAITS, **more: str
) -> SpawnedWorker:
    """Start a member of the run 4711, of four."""
    said = {"TORCHELASTIC_RUN_ID": "4711", "RANK": str(rank), "WORLD_SIZE": "4", **more}
    return stack.enter_context(spawn_worker(code, server.socket_path, env=said))


async def ready(*workers: SpawnedWorker) -> None:
    """Wait until they have connected."""
    for worker in workers:
        await line(worker, "ready")


async def armed(*workers: SpawnedWorker) -> None:
    """Have them enter their blocks."""
    for worker in workers:
        worker.say()
    for worker in workers:
        await line(worker, "deadline")


async def record_of(server: WatchfulServer, count: int = 1) -> dict[str, Any]:
    """Return the record of the newest roll call, when so many have been told, and they are written."""
    await server.until(lambda: len(server.all_told("run")) >= count, f"roll call {count}")
    await server._reporter.told()
    event = server.all_told("run")[count - 1]
    found = next(runs(Path(event.evidence).parent))
    assert found["id"] == Path(event.evidence).name
    return found


def by_rank(record: dict[str, Any]) -> dict[int | None, dict[str, Any]]:
    return {one["rank"]: one for one in record["members"]}


async def test_all_members_are_looked_at_and_the_missing_one_is_named() -> None:
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in (0, 1, 2)]
            stranger = member(stack, server, 3, TORCHELASTIC_RUN_ID="4712")
            await ready(*workers, stranger)
            await armed(workers[0])
            await server.told("reaped", workers[0].pid)
            record = await record_of(server)
            event = await server.told("run")
            assert (event.run, event.worker_id, event.detail) == (
                "4711", None, "of 4 members 2 connected, 1 expired, 1 missing"
            )  # fmt: skip
            assert 'run run="4711" ' in str(event)
            assert (record["event"], record["run"], record["size"]) == ("run", "4711", 4)
            assert record["host"] == os.uname().nodename
            members = by_rank(record)
            assert {rank: one["state"] for rank, one in members.items()} == {
                0: "expired", 1: "connected", 2: "connected", 3: "missing"
            }  # fmt: skip
            assert [members[rank]["pid"] for rank in range(4)] == [*(one.pid for one in workers), 0]
            assert record["expired"] == [members[0]["record"]]
            reaped = await server.told("reaped", workers[0].pid)
            assert load(Path(reaped.evidence)).run == "4711", "its page leads to that of its run"
            assert members[0]["timers"][0]["scope"] == "victim"
            assert members[0]["since_s"] >= 0.3
            assert members[1]["timers"] == []
            assert members[1]["record"] == ""
            for rank in (0, 1, 2):
                assert members[rank]["evidence"]["process"]["threads"], members[rank]
                assert members[rank]["node"] == record["host"]
            assert all(is_alive(one.pid) for one in (*workers[1:], stranger)), "nobody else is due"


async def test_a_member_that_has_died_since_the_run_began_is_told_apart_from_one_that_never_came() -> None:
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in (0, 1)]
            await ready(*workers)
            os.kill(workers[1].pid, signal.SIGTERM)
            workers[1].wait()
            await server.until(lambda: server._registry.find(workers[1].pid) is None, "it is known")
            await armed(workers[0])
            record = await record_of(server)
            members = by_rank(record)
            assert {rank: one["state"] for rank, one in members.items()} == {
                0: "expired", 1: "dead", 2: "missing", 3: "missing"
            }  # fmt: skip
            assert (members[1]["pid"], members[1]["verdict"]) in (
                (workers[1].pid, "by SIGTERM"), (workers[1].pid, "")
            )  # fmt: skip


async def test_who_died_in_an_earlier_attempt_is_missing_in_this_one() -> None:
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            for rank in (0, 1):
                with member(stack, server, rank) as earlier:
                    await ready(earlier)
                await server.until(lambda: not server._registry.workers, "it is gone")
            worker = member(stack, server, 0)
            await ready(worker)
            await armed(worker)
            members = by_rank(await record_of(server))
            assert (members[0]["pid"], members[1]["state"]) == (worker.pid, "missing")


async def record_of_the_only_one(rank: int, **here: str) -> dict[str, Any]:
    """Have a timer expire of a run's only member that has come, the first of its node; return the record."""
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            worker = member(stack, server, rank, LOCAL_RANK="0", **here)
            await ready(worker)
            await armed(worker)
            return await record_of(server)


async def test_of_a_run_on_several_nodes_those_of_this_node_are_missed() -> None:
    here = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}
    record = await record_of_the_only_one(4, **here)
    assert record["size"] == 8
    states = {rank: one["state"] for rank, one in by_rank(record).items()}
    assert states == {4: "expired", 5: "missing"}


async def test_of_two_on_one_node_the_one_that_is_missing_is_to_blame() -> None:
    """It has said that both are to be here: else the other one might be on another node."""
    here = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    record = await record_of_the_only_one(0, **here)
    assert record["culprits"] == [1], record["verdict"]


async def test_what_expires_while_the_roll_is_called_belongs_to_it() -> None:
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in range(4)]
            await ready(*workers)
            await armed(*workers)
            for worker in workers:
                await server.told("reaped", worker.pid)
            await server.until(
                lambda: all(not call._under_way for call in server._runs._calls.values()), "it"
            )
            record = await record_of(server)
            (call,) = server._runs._calls.values()
            assert record["id"] == call.id
            assert {one["state"] for one in record["members"]} == {"expired"}
            assert sorted(record["expired"]) == sorted(one["record"] for one in record["members"])
            assert {event.evidence for event in server.all_told("run")} == {
                str(server._reporter.path_of(call.id))
            }


async def test_no_roll_is_called_before_all_are_known_that_an_earlier_server_knew() -> None:
    async with serving(reap="dump,KILL", evidence_budget=PATIENCE) as server:
        with contextlib.ExitStack() as stack:
            worker = member(stack, server, 0)
            await ready(worker)
            server._registry._adoption = (None for _ in ())  # it is still at that
            await armed(worker)
            await server.told("expired", worker.pid)
            other = member(stack, server, 1)
            await ready(other)
            (call,) = server._runs._calls.values()
            assert not call.mustered
            server._registry._adoption = None
            members = by_rank(await record_of(server))
            assert {rank: one["pid"] for rank, one in members.items() if one["pid"]} == {
                0: worker.pid, 1: other.pid
            }  # fmt: skip


async def test_nobody_is_signalled_before_all_have_been_called(monkeypatch: pytest.MonkeyPatch) -> None:
    real, order, going_on = gather.gather, list[int | str](), asyncio.Event()

    async def slow(subject: Subject, budget: float) -> Findings:
        if subject.id.pid == workers[1].pid:
            await going_on.wait()
        found = await real(subject, budget)
        order.append(subject.id.pid)
        if subject.id.pid == workers[0].pid:
            going_on.set()
        return found

    class Server(WatchfulServer):
        def happened(self, event: Any) -> None:
            order.append(event.event)
            super().happened(event)

    monkeypatch.setattr(gather, "gather", slow)
    async with serving_as(Server, reap="dump,KILL", evidence_budget=30.0) as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in (0, 1)]
            await ready(*workers)
            await armed(workers[0])
            await server.told("reaped", workers[0].pid)
            assert order.index(workers[0].pid) < order.index(workers[1].pid) < order.index("reaped")


async def test_a_member_that_is_not_due_gets_back_what_its_answer_took() -> None:
    """And it is sent no signal: every one of its would be told."""
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            other = member(stack, server, 1)
            await ready(other)
            said = wire.Hello(
                wire.PROTOCOL_VERSION, "test", os.getpid(), True, time_namespace(), 1.0,
                group="4711", rank=0, size=2,
            )  # fmt: skip
            loop = asyncio.get_running_loop()
            connection = stack.enter_context(raw_client(server.socket_path))
            await loop.sock_sendall(connection, wire.encode(said))
            assert isinstance((await answer(connection, wire.Welcome))[0], wire.Welcome)
            channel = stack.enter_context(raw_client(server.socket_path))
            await loop.sock_sendall(channel, wire.encode(wire.Attend(wire.PROTOCOL_VERSION)))
            worker = server._registry.find(os.getpid())
            assert worker is not None
            await server.until(lambda: worker.inspection_channels, "the channel")
            await armed(other)
            (question,) = await answer(channel, wire.Inspect)
            assert isinstance(question, wire.Inspect)
            assert len(worker.askings) == 1, "what falls due meanwhile is put off"
            task = wire.TaskReport("rollout-1", 1, (), (("/app/train.py", 42, "rollout"),), "a future")
            told = wire.Tasks(question.number, "a loop", "MainThread", (task,), 0, "")
            await loop.sock_sendall(channel, wire.encode(told))
            members = by_rank(await record_of(server))
            assert members[0]["evidence"]["tasks"][0]["name"] == "rollout-1"
            assert members[0]["state"] == "connected"


async def test_what_is_only_observed_has_its_roll_called_and_nobody_is_signalled() -> None:
    async with serving(reap="dump,KILL", observe=True, on_expiry="run") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in range(2)]
            await ready(*workers)
            await armed(workers[0])
            assert by_rank(await record_of(server))[0]["state"] == "expired"
            await server.told("observed", workers[0].pid)
            assert all(is_alive(one.pid) for one in workers)
            assert server.reaps == []


async def test_a_run_that_goes_on_has_its_roll_called_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = """
client = TimerClient(unavailable="raise", budget=30)
client.connect()
say("ready")
while sys.stdin.readline():
    with expires(0.1, "slow", client, observe=True):
        say("in")
        sys.stdin.readline()
"""
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            worker = member(stack, server, 0, PRELUDE + slow)
            await ready(worker)

            async def overdue(count: int) -> None:
                worker.say()
                observed = "observed", worker.pid
                await server.until(lambda: len(server.all_told(*observed)) == count, f"expiry {count}")
                worker.say()
                finished = "finished", worker.pid
                await server.until(lambda: len(server.all_told(*finished)) == count, f"end {count}")

            await overdue(1)
            first = await record_of(server)
            await overdue(2)
            await server._reporter.told()
            assert len(server.all_told("run")) == 1
            monkeypatch.setattr(module, "TOGETHER", 0.0)
            await overdue(3)
            assert (await record_of(server, 2))["id"] != first["id"]


async def test_the_odd_ones_are_looked_at_before_the_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = gather.gather

    async def note(subject: Subject, budget: float) -> Findings:
        seen.append(subject.id.pid)
        return await real(subject, budget)

    def stand(_pids: list[int], found: dict[int, str]) -> None:
        found.update((worker.pid, "R" if worker is workers[2] else "S futex") for worker in workers)

    monkeypatch.setattr(gather, "gather", note)
    monkeypatch.setattr(module, "_stand", stand)
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in range(4)]
            await ready(*workers)
            await armed(workers[0])
            await record_of(server)
            others = [pid for pid in seen if pid != workers[0].pid]
            assert others[0] == workers[2].pid
            assert sorted(others[1:]) == sorted((workers[1].pid, workers[3].pid))


async def test_a_worker_of_no_run_has_no_roll_called() -> None:
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(spawn_worker(WAITS, server.socket_path))
            await ready(worker)
            await armed(worker)
            await server.told("reaped", worker.pid)
            assert server.all_told("run") == []
            assert server._runs._calls == {}


async def test_a_roll_that_cannot_be_compared_is_kept_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "call_roll", lambda _members, _size: 1 // 0)
    async with serving(reap="dump,KILL") as server:
        with contextlib.ExitStack() as stack:
            worker = member(stack, server, 2)
            await ready(worker)
            await armed(worker)
            record = await record_of(server)
            assert (record["culprits"], record["verdict"], by_rank(record)[2]["pid"]) == ([], "", worker.pid)
            assert "the members of a run could not be compared" in caplog.text


async def test_who_has_expired_has_its_turn_before_members_that_have_not() -> None:
    turns, order = Turns(asyncio.get_running_loop(), 1), list[str]()

    async def take(name: str, *, first: bool) -> None:
        await turns.take(first=first)
        order.append(name)
        turns.give_back()

    await turns.take(first=True)
    members = [asyncio.ensure_future(take(name, first=False)) for name in ("a", "b", "c")]
    await asyncio.sleep(0)
    expired = asyncio.ensure_future(take("x", first=True))
    await asyncio.sleep(0)
    assert turns.others == 3
    members[0].cancel()
    await asyncio.wait(members[:1])
    turns.give_back()
    await asyncio.wait([expired, *members[1:]])
    assert order == ["x", "b", "c"]
    await turns.take(first=False)  # there is one again


async def test_a_turn_that_is_given_to_who_has_left_is_the_next_ones() -> None:
    turns = Turns(asyncio.get_running_loop(), 1)
    await turns.take(first=True)
    first, second = (asyncio.ensure_future(turns.take(first=False)) for _ in range(2))
    await asyncio.sleep(0)
    turns.give_back()
    first.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.exception() is None


# -- on_expiry="run" ---------------------------------------------------------------------------------------


async def test_all_members_of_the_run_are_reaped_at_once_and_nobody_else() -> None:
    async with serving(reap="dump,KILL", on_expiry="run") as server:
        with contextlib.ExitStack() as stack, bystander() as pid:
            workers = [member(stack, server, rank) for rank in (0, 1)]
            workers += [member(stack, server, 2, WAITS_LONG)]
            others = [member(stack, server, 0, TORCHELASTIC_RUN_ID="4712")]
            others += [stack.enter_context(spawn_worker(WAITS_LONG, server.socket_path))]
            await ready(*workers, *others)
            await armed(workers[2], others[1])
            server.register_timers([TimerRequest(pid, "later", 1e9)])
            await armed(workers[0])
            for worker in workers:
                await server.told("reaped", worker.pid)
            first, *rest = (server.all_told("reaped", worker.pid)[0] for worker in workers)
            assert first.scope == "victim"
            assert {(event.detail, event.run) for event in rest} == {
                ("with its run, for a timer of rank 0", "4711")
            }
            assert sorted(worker.pid for worker in server.reaps) == sorted(one.pid for one in workers)
            await server.pass_by(0.0)
            assert all(is_alive(one.pid) for one in others)
            assert is_alive(pid)
            assert len(server.all_told("run")) == 1
            assert server.all_told("worker_gone") == []


async def test_a_member_is_reaped_once_whether_for_its_own_timer_or_with_its_run() -> None:
    async with serving(reap="dump,TERM:0.2,KILL", on_expiry="run") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in range(4)]
            await ready(*workers)
            await armed(*workers)
            for worker in workers:
                await server.told("reaped", worker.pid)
            await server.until(lambda: not server._registry.workers, "all are gone")
            for worker in workers:
                assert len(server.all_told("reaped", worker.pid)) == 1
                assert [one.pid for one in server.reaps].count(worker.pid) == 1


async def test_by_default_only_who_has_expired_is_reaped() -> None:
    async with serving(reap="KILL") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, rank) for rank in range(2)]
            await ready(*workers)
            await armed(workers[0])
            await server.told("reaped", workers[0].pid)
            await server.pass_by(0.0)
            assert is_alive(workers[1].pid)
            assert server.all_told("run") == [], "the ladder wants no evidence"


async def test_a_member_that_runs_another_program_is_not_reaped_with_the_run() -> None:
    leaves = program("with", "os.execvp('sleep', ['sleep', '1000'])", after=600, told=True)
    async with serving(reap="KILL", on_expiry="run") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, 0), member(stack, server, 1, leaves)]
            await ready(*workers)
            await armed(workers[1])
            await server.told("exec", workers[1].pid)
            await armed(workers[0])
            await server.told("reaped", workers[0].pid)
            await server.pass_by(0.0)
            assert is_alive(workers[1].pid)


async def test_a_member_that_executes_another_program_in_between_is_signalled_no_more() -> None:
    leaves = "signal.signal(signal.SIGTERM, lambda *_: os.execvp('sleep', ['sleep', '1000']))\n"
    stays = program("with", leaves + "say('waits')\nwhile True: signal.pause()", after=600, told=True)
    async with serving(reap="TERM:0.5,KILL", on_expiry="run") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, 0), member(stack, server, 1, stays)]
            await ready(*workers)
            await armed(workers[1])
            await line(workers[1], "waits")
            await armed(workers[0])
            await server.told("reaped", workers[0].pid)
            await server.told("exec", workers[1].pid)
            await server.pass_by(monotonic() + 1.0)  # its SIGKILL would have been due
            assert is_alive(workers[1].pid)
            worker = server._registry.find(workers[1].pid)
            assert worker is not None
            assert server._reaper._cases[worker].machine.state is State.WATCHED


async def test_a_member_that_is_observed_or_stopped_is_left_alone() -> None:
    async with serving(reap="KILL", on_expiry="run", stopped="hold") as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, 0), member(stack, server, 1)]
            workers += [member(stack, server, 2, AIOTIMER_OBSERVE="1")]
            await ready(*workers)
            stop(workers[1].pid)
            await armed(workers[0])
            await server.told("held", workers[1].pid)
            await server.told("reaped", workers[0].pid)
            await server.pass_by(0.0)
            assert all(is_alive(one.pid) for one in workers[1:])


async def test_a_member_that_was_released_in_time_is_reaped_with_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own timer had expired, and it was being looked at; it goes on, and would wait for the others."""
    late = program("with", "sys.stdin.readline()", told=True) + "\nsys.stdin.readline()\n"
    async with serving(reap="dump,KILL", on_expiry="run", evidence_budget=30.0) as server:
        with contextlib.ExitStack() as stack:
            workers = [member(stack, server, 0), member(stack, server, 1, late)]
            await ready(*workers)
            real, told = gather.gather, list[int]()

            async def release(subject: Subject, budget: float) -> Findings:
                pid = subject.id.pid
                if pid == workers[1].pid and server.all_told("expired", pid) and not told:
                    told.append(pid)
                    workers[1].say()
                    await line(workers[1], "left")
                return await real(subject, budget)

            monkeypatch.setattr(gather, "gather", release)
            await armed(*workers)
            await server.told("late", workers[1].pid)
            for worker in workers:
                await server.told("reaped", worker.pid)
            assert server.all_told("reaped", workers[1].pid)[0].run == "4711"
            assert [one.pid for one in server.reaps].count(workers[1].pid) == 2, "for its timer in vain"


class Owner(WatchfulServer):
    """A server whose owner reaps in its own way."""

    def reap_worker(self, worker_id: WorkerId) -> bool:
        """Note it, and say that it is done."""
        self.reaps.append(worker_id)
        self.changed()
        if worker_id.pid == self.fails:
            raise RuntimeError("on purpose")
        return True

    fails = 0


async def test_an_owner_reaps_the_members_in_its_own_way(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_as(Owner, reap="KILL", on_expiry="run") as server:
        with contextlib.ExitStack() as stack:
            workers = [
                member(stack, server, 0),
                member(stack, server, 1, WAITS_LONG),
                member(stack, server, 2),
            ]
            await ready(*workers)
            await armed(workers[1])
            server.fails = workers[2].pid
            await armed(workers[0])
            await server.until(lambda: len(server.reaps) == 3, "all of them")
            assert sorted(one.pid for one in server.reaps) == sorted(one.pid for one in workers)
            worker = server._registry.find(workers[1].pid)
            assert worker is not None
            assert worker.expired(1e12) == [], "its timers are dealt with"
            assert "it counts as reaped" in caplog.text
