"""Timers that are observed: nobody is signalled, and what happened is told all the same.

The laws of this file: a worker is alive after it has been told of; of a figure no more is asked than that it
is not less than what has passed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from math import inf, nan
from time import monotonic
from typing import Any

import pytest

from aiotimer import TimerRequest
from aiotimer._core import layout
from aiotimer.events import Event
from aiotimer.evidence import Findings, Subject
from aiotimer.server.expiry import Entry, entry
from tests.fakes.places import short_socket
from tests.fakes.server import WatchfulServer, serving, serving_as
from tests.fakes.worker import PRELUDE, bystander, ended, is_alive, soon, spawn_worker, wait_dead
from tests.integration.test_ladder import KeepingServer, during_evidence


def arm(server: WatchfulServer, pid: int, *scopes: str) -> float:
    """Arm timers that expire at once; return when."""
    deadline = monotonic()
    server.register_timers([TimerRequest(pid, scope, deadline) for scope in scopes])
    return deadline


def release(server: WatchfulServer, pid: int, *scopes: str) -> None:
    server.register_timers([TimerRequest(pid, scope, -1.0) for scope in scopes])


async def test_a_server_that_observes_signals_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = during_evidence(monkeypatch, lambda _subject: None)
    async with serving_as(KeepingServer, observe=True) as server:
        with bystander() as pid:
            deadline = arm(server, pid, "s")
            event = await server.told("observed", pid)
            assert (event.scope, event.outcome, event.verdict) == ("s", "observed", "idle")
            assert server.status()["server"]["observing"] == "asked"
            assert [(subject.scope, subject.kills_next) for subject in subjects] == [("s", False)]
            least = monotonic() - deadline
            release(server, pid, "s")
            event = await server.told("finished", pid)
            first, number, last = event.detail.partition(f"{float(event.detail.split()[1]):.1f}")
            assert (first, last) == ("finished ", " s after its limit")
            assert float(number) >= least - 0.05
            assert is_alive(pid)
            assert server.outcomes(pid) == ["observed", "finished"]
            assert [e.event for e in server.events] == ["expired", "observed", "finished"]
            assert server.reaps == []


async def test_a_worker_that_is_observed_is_told_of_when_it_dies() -> None:
    async with serving_as(KeepingServer, observe=True) as server:
        with bystander() as pid:
            arm(server, pid, "kept", "released")
            await server.until(lambda: len(server.all_told("observed", pid)) == 2, "both")
            release(server, pid, "released")
            os.kill(pid, signal.SIGKILL)
            event = await server.told("worker_gone", pid)
            assert (event.scope, event.outcome) == ("kept", "gone")
            assert [e.scope for e in server.all_told("finished", pid)] == ["released"]
            assert len(server.all_told("worker_gone")) == 1


async def test_a_worker_may_ask_to_be_observed() -> None:
    async with serving() as server:
        with bystander() as pid, bystander() as other:
            server.register_timers([TimerRequest(pid, "later", monotonic() + 1000)])
            (worker,) = server._registry.workers.values()
            worker.reap_grant = server._policy.reap_grant("", observe=True)
            arm(server, pid, "s")
            arm(server, other, "s")
            await server.told("observed", pid)
            await server.told("reaped", other)
            assert is_alive(pid)
            assert server.status()["server"]["observing"] == ""


async def test_a_timer_may_be_observed_beside_others_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is in the label; the next timer of the worker reaps it."""
    async with serving() as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "observed", monotonic() + 1000)])
            (worker,) = server._registry.workers.values()
            (table,) = worker.tables
            label = layout.encode_label(b"observed", 0, layout.OBSERVED)
            os.pwrite(table.file.descriptor, label, layout.label_offset(0))
            arm(server, pid, "observed")
            await server.told("observed", pid)
            await server.pass_by(monotonic())
            assert is_alive(pid)
            arm(server, pid, "s")
            event = await server.told("reaped", pid)
            assert event.scope == "s"
            assert len(server.all_told("observed", pid)) == 1
            await server.told("worker_gone", pid)
            assert [e.scope for e in server.all_told("worker_gone", pid)] == ["observed"]


async def test_each_expiry_is_told_once_and_a_later_one_again() -> None:
    async with serving(observe=True, bound=0.05) as server:
        with bystander() as pid:
            arm(server, pid, "s")
            await server.told("observed", pid)
            (worker,) = server._registry.workers.values()
            for _ in range(5):
                worker.tables[0].look()
            arm(server, pid, "s")
            await server.until(lambda: len(server.all_told("observed", pid)) == 2, "the second one")
            await server.told("finished", pid)
            release(server, pid, "s")
            await server.until(lambda: len(server.all_told("finished", pid)) == 2, "the second one")
            assert len(server.all_told("observed", pid)) == 2


async def test_a_worker_that_ends_just_before_its_server_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under ``aiotimer run``: there is no next server, and the evidence will not come any more."""
    subjects = during_evidence(monkeypatch, lambda _subject: asyncio.sleep(1000))
    async with serving(observe=True) as server:
        with bystander() as pid:
            arm(server, pid, "released", "kept")
            await server.told("expired", pid)
            assert await soon(lambda: subjects)
            release(server, pid, "released")
            os.kill(pid, signal.SIGKILL)
            wait_dead(pid)  # the loop has had no turn since: it has not heard of it
            await server.stop()
        told = [(event.event, event.scope) for event in server.events]
        assert [kind for kind, scope in told if scope == "released"] == ["expired", "observed", "finished"]
        assert [kind for kind, scope in told if scope == "kept"] == ["expired", "worker_gone"]


async def test_a_server_that_stops_forgets_and_the_next_one_tells() -> None:
    with short_socket() as path, bystander() as pid:
        async with serving(path, observe=True) as server:
            arm(server, pid, "s")
            await server.told("observed", pid)
        async with serving(path, observe=True) as server:
            await server.told("observed", pid)
        assert is_alive(pid)


async def test_a_record_has_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_subject: Subject, _budget: float) -> Findings:
        raise LookupError

    monkeypatch.setattr("aiotimer.evidence.gather.gather", silent)
    async with serving_as(KeepingServer, observe=True) as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, f"t{n}", monotonic() + 1000 + n) for n in range(150)])
            arm(server, pid, "s")
            await server.told("observed", pid)
            record: dict[str, Any] = server.kept[-1][0]
    assert record.keys() == {
        "id", "event", "outcome", "time", "pid", "name", "scope", "limit_s", "exact", "first", "entered",
        "ran_s", "late_s", "verdict", "where", "evidence", "ladder", "signals", "detail", "timers", "tasks",
        "stacks", "process", "probes", "host", "run",
    }  # fmt: skip
    assert record["probes"] == {"all": "failed: LookupError"}
    assert record["process"]["threads"] == []
    assert [timer["scope"] for timer in record["timers"]][:3] == ["s", "t0", "t1"]
    assert len(record["timers"]) == 100
    assert [timer["expired"] for timer in record["timers"]][:2] == [True, False]


async def test_an_overdue_timer_whose_table_goes_has_not_finished() -> None:
    async with serving(observe=True) as server:
        with bystander() as pid:
            arm(server, pid, "s")
            await server.told("observed", pid)
            (worker,) = server._registry.workers.values()
            worker.drop(worker.tables[0])
            event = await server.told("worker_gone", pid)
            assert event.detail.startswith("it left its timers ")
            assert server.all_told("finished") == []


async def test_an_overdue_timer_that_was_released_before_its_table_goes_has_finished() -> None:
    """A program that ends closes its connection and its table a little before it is dead."""
    async with serving(observe=True) as server:
        with bystander() as pid:
            arm(server, pid, "s")
            await server.told("observed", pid)
            (worker,) = server._registry.workers.values()
            release(server, pid, "s")
            worker.drop(worker.tables[0])
            assert (await server.told("finished", pid)).scope == "s"
            assert server.all_told("worker_gone") == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((90.0, 10.0, 100.0), Entry(10.0, 90.0, exact=True)),
        ((80.0, 10.0, 90.0), Entry(10.0, 90.0)),
        ((0.0, 0.0, 0.0), Entry()),
        ((90.0, nan, 100.0), Entry()),
        ((90.0, inf, 100.0), Entry()),
        ((90.0, -10.0, 100.0), Entry(10.0, 90.0, exact=True, first=True)),
        ((80.0, -10.0, 90.0), Entry()),
        ((nan, -10.0, 100.0), Entry()),
        ((90.0, -inf, 100.0), Entry()),
        ((nan, 10.0, 100.0), Entry(10.0, 90.0)),
        ((inf, 10.0, 100.0), Entry(10.0, 90.0)),
    ],
)
def test_what_a_row_tells_of_an_entry(row: tuple[float, ...], expected: Entry) -> None:
    assert entry(row, 100.0) == expected


async def test_the_record_tells_the_limit_and_when_the_block_was_entered() -> None:
    async with serving_as(KeepingServer, observe=True) as server:
        with bystander() as pid:
            deadline = monotonic() + 0.2
            server.register_timers([TimerRequest(pid, "s", deadline)])
            (worker,) = server._registry.workers.values()
            row = struct.pack("=3d", deadline - 7.0, 7.0, deadline)
            os.pwrite(worker.tables[0].file.descriptor, row, layout.ROWS_OFFSET)
            await server.told("observed", pid)
            record = server.kept[-1][0]
    assert (record["limit_s"], record["exact"]) == (7.0, True)
    assert record["ran_s"] == pytest.approx(7.0 + record["late_s"])
    assert record["entered"] == pytest.approx(record["time"] - record["ran_s"])
    assert record["timers"][0]["limit_s"] == 7.0


FIRST_ENTRIES = (
    PRELUDE
    + """
for _ in range(2):
    with expires(0.2, "step", first=0.3):
        sys.stdin.readline()
"""
)


async def test_the_record_tells_that_an_entry_was_the_first_of_its_scope_and_had_another_limit() -> None:
    async with serving_as(KeepingServer, observe=True) as server:
        with spawn_worker(FIRST_ENTRIES, server.socket_path) as worker:
            for limit in (0.3, 0.2):
                many = len(server.all_told("finished"))
                await server.until(lambda n=many: len(server.all_told("observed")) > n, "observed")  # type: ignore[misc]
                record: dict[str, Any] = [one[0] for one in server.kept if one[0]["event"] == "observed"][-1]
                assert (record["limit_s"], record["first"], record["exact"]) == (limit, not many, True)
                worker.say()
                await server.until(lambda n=many: len(server.all_told("finished")) > n, "finished")  # type: ignore[misc]
            assert await ended(worker) == 0


async def test_a_block_cannot_have_been_entered_in_the_future() -> None:
    async with serving_as(KeepingServer, observe=True) as server:
        with bystander() as pid:
            deadline = monotonic() + 0.2
            server.register_timers([TimerRequest(pid, "s", deadline)])
            (worker,) = server._registry.workers.values()
            row = struct.pack("=3d", deadline + 1000.0, 7.0, deadline)  # entered in the future
            os.pwrite(worker.tables[0].file.descriptor, row, layout.ROWS_OFFSET)
            await server.told("observed", pid)
            assert (server.kept[-1][0]["limit_s"], server.kept[-1][0]["entered"]) == (7.0, None)


async def test_a_table_that_goes_before_anything_is_read_from_it() -> None:
    class DroppingServer(KeepingServer):
        def happened(self, event: Event) -> None:
            super().happened(event)
            if event.event == "expired":
                (worker,) = self._registry.workers.values()
                worker.drop(worker.tables[0])

    async with serving_as(DroppingServer, observe=True) as server:
        with bystander() as pid:
            arm(server, pid, "s")
            await server.told("worker_gone", pid)
            assert server.kept[-1][0]["limit_s"] is None
