"""The server as its owner sees it: the ancestor's verbs, its socket, its life, and its names.

The laws of this file: one expired timer reaps its worker once and clears all its timers; what fails is tried
again; nobody can start a server where it is not safe; a launcher that subclasses it has all names to itself
but the documented ones and those that begin with ``_``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import pytest

from aiotimer import AsyncTimerClient, TimerRequest, TimerServer, WorkerId, __version__
from aiotimer._core import layout, wire
from aiotimer._core.reader import Timer
from aiotimer._core.watch import Due
from aiotimer._linux import paths
from aiotimer._linux.procfs import start_time
from aiotimer.errors import AlreadyServing, UnsafePath
from aiotimer.events import Event
from aiotimer.server.listener import SocketLock
from aiotimer.server.watched_table import WatchedTable
from tests.fakes.clock import PATIENCE
from tests.fakes.places import open_descriptors, short_socket
from tests.fakes.server import WatchfulServer, answer, raw_client, serving, serving_as
from tests.fakes.worker import bystander, ended, is_alive, line, number, soon, spawn_worker, wait_dead


class SparingServer(WatchfulServer):
    """Reaps nobody; says what was due instead.

    Attributes:
        due: what had expired, one list of names per call of ``reap_worker``.
        calls: when (``CLOCK_MONOTONIC``).
        verdicts: what the calls answer; an exception is raised. When they are used up: True.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.due: list[list[str]] = []
        self.calls: list[float] = []
        self.verdicts: list[bool | Exception] = []

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        return self.decide(worker_id)

    def decide(self, worker_id: WorkerId) -> bool:
        now = monotonic()
        self.calls.append(now)
        self.due.append(sorted(r.scope_id for r in self.get_expired_timers(now).get(worker_id, [])))
        self.changed()
        verdict = self.verdicts.pop(0) if self.verdicts else True
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    async def calls_made(self, count: int) -> None:
        await self.until(lambda: len(self.calls) >= count, f"call {count} of reap_worker")


class AsyncSparingServer(SparingServer):
    """The same with a coroutine function.

    Attributes:
        gate: a call waits for it before it answers.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.gate = asyncio.Event()
        self.gate.set()

    async def reap_worker(self, worker_id: WorkerId) -> bool:
        try:
            return self.decide(worker_id)
        finally:
            await self.gate.wait()


both_kinds = pytest.mark.parametrize("kind", [SparingServer, AsyncSparingServer], ids=["plain", "coroutine"])


def acquire(pid: int | WorkerId, scope: str, after: float) -> TimerRequest:
    return TimerRequest(pid, scope, monotonic() + after)


def release(pid: int | WorkerId, scope: str) -> TimerRequest:
    return TimerRequest(pid, scope, -1.0)


def identity(pid: int) -> WorkerId:
    return WorkerId(pid, start_time(pid))


# -- the verbs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["pid", "WorkerId"])
async def test_a_launcher_arms_timers_on_its_children(by: str) -> None:
    async with serving() as server:
        with bystander() as victim, bystander() as spared, bystander() as forgotten:
            whom = {pid: pid if by == "pid" else identity(pid) for pid in (victim, spared, forgotten)}
            request = acquire(whom[victim], "training", 0.3)
            server.register_timers(
                [request, acquire(whom[spared], "training", 0.2), acquire(whom[spared], "other", 60)]
            )
            server.register_timers([release(whom[spared], "training"), release(whom[forgotten], "unknown")])
            assert server.armed(victim) == {"training": request.expiration_time}
            assert server.armed(spared).keys() == {"other"}

            event = await server.told("reaped", victim)
            assert event.scope == "training"
            assert server.acted[victim] >= request.expiration_time
            assert not is_alive(victim)
            assert is_alive(spared)
            assert server.reaps == [event.worker_id]


async def test_a_timer_is_replaced_and_rearmed_by_its_name() -> None:
    async with serving() as server:
        with bystander() as pid:
            server.register_timers([acquire(pid, "s", 1.0)])
            first = server.armed(pid)["s"]
            server.register_timers([acquire(pid, "s", 60)])
            assert server.armed(pid)["s"] > first
            await server.pass_by(first)
            assert is_alive(pid)
            server.register_timers([TimerRequest(pid, "s", 0.0)])  # zero has expired already
            assert (await server.told("reaped", pid)).scope == "s"


async def test_timers_on_a_process_that_is_gone_are_moot() -> None:
    async with serving() as server:
        with bystander() as pid:
            gone = identity(pid)
        server.register_timers([acquire(gone, "s", 60), acquire(gone.pid, "s", 60)])
        assert server.status()["workers"] == []
        other = WorkerId(os.getpid(), start_time(os.getpid()) - 1)  # who had this pid before
        server.register_timers([TimerRequest(other, "s", 0.0)])
        assert server.status()["workers"] == []


async def test_expired_timers_are_listed_until_they_are_cleared() -> None:
    async with serving_as(SparingServer) as server:
        with bystander() as pid:
            who = identity(pid)
            first, second = acquire(who, "first", 50), acquire(who, "second", 60)
            server.register_timers([second, first])
            assert server.get_expired_timers(monotonic()) == {}
            assert server.get_expired_timers(first.expiration_time) == {who: [first]}
            assert server.get_expired_timers(second.expiration_time) == {who: [first, second]}
            server.clear_timers([who])
            assert server.get_expired_timers(second.expiration_time) == {}
            assert server.armed(pid) == {}
            third = acquire(who, "first", 70)
            server.register_timers([third])
            assert server.get_expired_timers(third.expiration_time) == {who: [third]}


async def test_cleared_timers_are_not_acted_upon() -> None:
    async with serving() as server:
        with bystander() as pid:
            request = acquire(pid, "s", 1.0)
            server.register_timers([request])
            server.clear_timers([pid, 1])  # of the other nothing is known
            await server.pass_by(request.expiration_time)
            assert is_alive(pid)
            assert pid not in server.acted


# -- reaping in another way ----------------------------------------------------------------------------


@both_kinds
async def test_one_expired_timer_reaps_once_and_clears_all(kind: type[SparingServer]) -> None:
    async with serving_as(kind) as server:
        with bystander() as pid:
            last = acquire(
                pid, "c", 1.1
            )  # a second ahead: what has expired when it is armed is dealt with alone
            server.register_timers([acquire(pid, "a", 1.0), acquire(pid, "b", 1.05), last])
            await server.calls_made(1)
            assert await soon(lambda: not server.armed(pid))
            server.register_timers([acquire(pid, "d", 0.3)])  # the next timers are honoured
            await server.calls_made(2)
            assert [scopes[0] for scopes in server.due] == ["a", "d"]  # on a busy machine b is due with a
            assert server.calls[1] >= last.expiration_time


@both_kinds
async def test_a_reap_that_fails_is_tried_again_with_pauses(kind: type[SparingServer]) -> None:
    async with serving_as(kind) as server:
        with bystander() as pid:
            server.verdicts = [False, False, False]
            server.register_timers([acquire(pid, "a", 1.0), acquire(pid, "b", 1.05), acquire(pid, "c", 60)])
            await server.calls_made(4)
            assert [scopes[0] for scopes in server.due] == ["a"] * 4
            assert server.due[-1] == ["a", "b"]
            pauses = [late - soon for soon, late in zip(server.calls, server.calls[1:], strict=False)]
            assert all(pause >= 0.9 * least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True))
            assert len(server.all_told("reap_failed", pid)) == 3
            assert await soon(lambda: not server.armed(pid))


@both_kinds
async def test_a_reap_that_raises_counts_as_reaped(
    kind: type[SparingServer], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_as(kind) as server:
        with bystander() as pid:
            server.verdicts = [RuntimeError("the owner's mistake")]
            server.register_timers([acquire(pid, "a", 1.0), acquire(pid, "b", 1.05)])
            await server.calls_made(1)
            assert await soon(lambda: not server.armed(pid))
            server.register_timers([acquire(pid, "c", 0.25)])
            await server.calls_made(2)
            assert [scopes[0] for scopes in server.due] == ["a", "c"]  # on a busy machine b is due with a
        failures = [record for record in caplog.records if record.exc_info]
        assert len(failures) == 1
        assert "the owner's mistake" in str(failures[0].exc_info)


async def test_a_worker_is_not_reaped_again_while_it_is_being_reaped() -> None:
    """A slow coroutine reaps; the worker's other timers fall due meanwhile."""
    async with serving_as(AsyncSparingServer) as server:
        with bystander() as pid:
            server.gate.clear()
            last = acquire(pid, "b", 0.2)
            server.register_timers([acquire(pid, "a", 0.1), last])
            await server.calls_made(1)
            with bystander() as other:
                server.register_timers([acquire(other, "o", last.expiration_time - monotonic() + 0.1)])
                await server.calls_made(2)
            assert [scopes[0] for scopes in server.due] == ["a", "o"]  # on a busy machine b is due with a
            server.gate.set()
            assert await soon(lambda: not server.armed(pid))
            server.register_timers([acquire(pid, "c", 0.2)])
            await server.calls_made(3)
            assert [scopes[0] for scopes in server.due] == ["a", "o", "c"]


async def test_a_release_just_before_the_signal_spares_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot is read again before the signal, and what was released by then is late and no more."""
    async with serving() as server:
        with bystander() as pid:
            read_again = WatchedTable.timer

            def release_first(table: WatchedTable, due: Due) -> Timer | None:
                monkeypatch.setattr(WatchedTable, "timer", read_again)
                server.register_timers([release(pid, "a")])
                return table.timer(due)

            request = acquire(pid, "a", 1.0)
            server.register_timers([request])
            monkeypatch.setattr(WatchedTable, "timer", release_first)
            event = await server.told("late", pid)
            assert event.late_s is not None
            assert event.late_s >= 0.0
            await server.pass_by(request.expiration_time)
            assert is_alive(pid)
            assert pid not in server.acted


LONG = """
import sys, aiotimer
with aiotimer.expires(after=1000, scope="long"):
    print("armed", flush=True)
    sys.stdin.readline()
"""


async def test_fault_84_whoever_stops_removes_only_its_own_socket() -> None:
    async with serving() as first:
        path = first.socket_path
        with bystander() as pid:
            os.unlink(path)
            os.unlink(path + ".lock")
            async with serving(path) as second:
                await first.stop()
                assert os.path.exists(path)
                second.register_timers([TimerRequest(pid, "s", 0.0)])  # its state directory is there, too
                await second.told("reaped", pid)
                assert not second.all_told("refused")
        assert not os.path.exists(path)


async def test_no_task_of_a_server_outlives_it() -> None:
    """When its connection is closed, it is asked in a thread what this process maps, and by then stopped."""
    async with serving() as server:
        client = AsyncTimerClient(server.socket_path)
        await client.connect()
        before = asyncio.all_tasks()
        await server.stop()
        left = asyncio.all_tasks() - before
        await client.aclose()
        assert not left


async def test_a_socket_that_was_touched_is_still_the_servers() -> None:
    async with serving() as server:
        os.utime(server.socket_path, (1, 1))
        server._check_place()
        assert server._displaced is None
    assert not os.path.exists(server.socket_path)


async def test_fault_84_a_server_whose_place_is_taken_leaves_it(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as first:
        path = first.socket_path
        with spawn_worker(LONG, path) as worker:
            await line(worker, "armed")
            os.unlink(path)
            os.unlink(path + ".lock")
            serving_first = asyncio.create_task(first.serve_forever())
            async with serving(path) as second:
                with pytest.raises(AlreadyServing):
                    await serving_first
                await second.until(lambda: second.armed(worker.pid), "it comes over")
                assert worker.process.poll() is None
        assert "another timer server is at" in caplog.text


async def test_a_lock_that_was_removed_is_made_and_locked_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as server:
        path = server.socket_path
        directory = server._registry.directory
        os.unlink(path + ".lock")
        with monkeypatch.context() as played:
            played.setattr(paths, "state_directory", lambda path: os.stat(path + ".gone"))
            server._check_place()
            server._check_place()
        other = SocketLock(path, inherited=True)  # of a server that is starting
        server._check_place()
        assert server._lock is not None
        assert not server._lock.is_in_place()
        other.release()
        for _ in range(2):
            server._check_place()
        with pytest.raises(AlreadyServing):
            SocketLock(path, inherited=True)
        assert server._registry.directory != directory
        told = [record.getMessage() for record in caplog.records if "was gone" in record.getMessage()]
        assert told == [f'"{path}.lock" was gone: it is made and locked again']
        assert caplog.text.count("cannot be locked") == 1
    assert not os.path.exists(path)


async def test_what_is_not_a_socket_is_refused_and_not_removed() -> None:
    with short_socket() as path:
        Path(path).write_text("precious")
        with pytest.raises(UnsafePath, match="not a socket"):
            await TimerServer(path).start()
        assert Path(path).read_text() == "precious"


# -- where it may live -------------------------------------------------------------------------------------


async def test_what_a_server_makes_is_private(runtime_directory: Path) -> None:
    async with serving() as server:
        with bystander() as pid:
            server.register_timers([acquire(pid, "s", 60)])
            (tables,) = (runtime_directory / "aiotimer").iterdir()
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tables, *tables.glob("*.owner")]}
            modes[Path(server.socket_path)] = stat.S_IMODE(os.stat(server.socket_path).st_mode)
            assert sorted(modes.values()) == [0o600, 0o600, 0o700]


# -- its life ------------------------------------------------------------------------------------------------


async def test_it_stops_and_starts_again_in_one_loop() -> None:
    with short_socket() as path, bystander() as pid:
        before = open_descriptors()
        server = WatchfulServer(path)
        request = acquire(pid, "s", 60)
        for _ in range(3):
            await server.start()
            with pytest.raises(RuntimeError, match="running already"):
                await server.start()
            server.register_timers([request])  # the second time it is there already: adopted
            assert server.armed(pid) == {"s": request.expiration_time}
            await server.stop()
            await server.stop()
            assert not os.path.exists(path)
        assert len(server.all_told("adopted", pid)) == 2
        await server.start()
        server.register_timers([TimerRequest(pid, "s", 0.0)])
        await server.told("reaped", pid)
        await server.stop()
        assert await soon(lambda: open_descriptors() == before)


async def test_a_server_that_could_not_start_leaves_nothing_open() -> None:
    async with serving() as server:
        before = open_descriptors()
        for _ in range(3):
            with pytest.raises(AlreadyServing):
                await TimerServer(server.socket_path).start()
        assert open_descriptors() == before


async def test_serve_forever_ends_with_stop_and_with_cancellation() -> None:
    with short_socket() as path:
        server = TimerServer(path)
        await server.start()
        serving_task = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        await server.stop()
        await asyncio.wait_for(serving_task, PATIENCE)
        again = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        assert os.path.exists(path)
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        assert not os.path.exists(path)


async def test_stopping_leaves_no_state_behind_when_nobody_is_watched(runtime_directory: Path) -> None:
    async with serving() as server:
        with bystander() as pid:
            server.register_timers([TimerRequest(pid, "s", 0.0)])
            await server.told("reaped", pid)
    left = {
        path.name for directory in (runtime_directory / "aiotimer").iterdir() for path in directory.iterdir()
    }
    assert left <= {"socket", "namespaces", "history.db", "evidence"}, "what it found out, and no tables"


STATUS = """
    import sys, time
    from aiotimer import TimerClient, expires

    client = TimerClient(unavailable="raise", budget=30)
    later = time.monotonic() + 100
    client.acquire("later", later)
    with expires(50, "soon") as outer, expires(60, "soon") as inner:
        print("soon", outer.deadline)
        print("inner", inner.deadline)
        print("later", later)
        sys.stdin.readline()
"""


async def test_no_count_in_a_table_costs_others_their_status() -> None:
    async with serving() as server:
        with bystander() as pid:
            server.register_timers([acquire(pid, "s", 1000)])
            (table,) = server._registry.workers[WorkerId(pid, start_time(pid))].tables
            table.file.write(layout.word(1e300), layout.count_offset(0))
            status = wire.encode(wire.Status(server.status(scopes=True)))
            assert len(status) > 100
            table.file.write(layout.word(7.0), layout.count_offset(0))
            assert server.status(scopes=True)["scopes"][0]["count"] == 7


async def test_status() -> None:
    async with serving() as server:
        with bystander() as pid, spawn_worker(STATUS, server.socket_path) as worker:
            server.register_timers([acquire(pid, "owner's", 10)])
            deadlines = {name: await number(worker, name) for name in ("soon", "inner", "later")}
            report = server.status()
            assert report.keys() == {"server", "workers"}
            assert report["server"].keys() == {"pid", "version", "uptime_s", "socket", "observing", "broken"}
            assert report["server"]["pid"] == os.getpid()
            assert report["server"]["version"] == __version__
            assert report["server"]["socket"] == server.socket_path
            assert report["server"]["uptime_s"] >= 0
            first, second = report["workers"]  # the soonest first
            assert (
                first.keys()
                == second.keys()
                == {"pid", "name", "connected", "group", "rank", "size", "timers"}
            )
            assert (first["pid"], first["name"], first["connected"]) == (pid, "sleep", False)
            assert (second["pid"], second["connected"]) == (worker.pid, True)
            assert second["name"].startswith("python")
            names = [(timer["scope"], timer["deadline"]) for timer in second["timers"]]
            assert names == [
                ("soon", deadlines["soon"]),
                ("soon#2", deadlines["inner"]),
                ("later", deadlines["later"]),
            ]
            for timer in second["timers"]:
                assert timer.keys() == {"scope", "deadline", "remaining_s"}
                assert 0 < timer["remaining_s"] <= timer["deadline"] - monotonic() + PATIENCE
            worker.process.send_signal(signal.SIGKILL)
            await server.told("worker_gone", worker.pid)
            assert [entry["pid"] for entry in server.status()["workers"]] == [pid]


async def test_a_worker_that_ends_is_forgotten() -> None:
    source = """
        import sys
        from aiotimer import expires
        with expires(60):
            print("in")
            sys.stdin.readline()
    """
    async with serving() as server:
        with spawn_worker(source, server.socket_path) as worker:
            await line(worker, "in")
            assert [entry["pid"] for entry in server.status()["workers"]] == [worker.pid]
            worker.say()
            assert await ended(worker) == 0
            wait_dead(worker.pid)
        await server.until(lambda: not server.status()["workers"], "forgotten")
        assert server.all_told("reaped") == []


# -- its names ----------------------------------------------------------------------------------------------


class NamesakeServer(TimerServer):
    """A launcher's, with attributes that the server's own once had the names of."""

    def __init__(self, path: str, on_event: Callable[[Event], object]) -> None:
        super().__init__(path, on_event=on_event, reap="dump,KILL", evidence_budget=0.0)
        self.policy = "restart the worker"
        self.emit = self.keep = self.evidence_path = self.refused = None
        self.handle = self.apply = self.connection_closed = self.owner_gone = None


async def test_a_launcher_may_use_every_other_name() -> None:
    events: asyncio.Queue[Event] = asyncio.Queue()
    with short_socket() as path:
        async with NamesakeServer(path, events.put_nowait) as server:
            with raw_client(path) as connection:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(connection, wire.encode(wire.Disown()))
                assert isinstance((await answer(connection, wire.Pong))[0], wire.Pong)
                await loop.sock_sendall(connection, wire.encode(wire.Bye()))
                assert await answer(connection) == []
            with bystander() as pid:
                server.register_timers([TimerRequest(pid, "s", monotonic())])
                told = [await asyncio.wait_for(events.get(), PATIENCE) for _ in range(3)]
    assert [event.event for event in told] == ["refused", "expired", "reaped"]
    assert server.policy == "restart the worker"
