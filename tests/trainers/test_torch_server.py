"""Torch's server and queue over ours: what its own promise to a launcher that embeds them.

Requests are torch's own objects, and its ``LocalTimerClient`` puts them into a ``multiprocessing.Queue``.
"""

import contextlib
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from math import nan
from time import monotonic
from typing import Any

import pytest

from aiotimer.client.control import status
from aiotimer.errors import AlreadyServing, UnsafePath
from aiotimer.events import Event
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_directory
from tests.fakes.worker import bystander, is_alive, spawn_worker, wait_dead

pytest.importorskip("torch", reason="torch is not installed: make test-integrations")

from torch.distributed.elastic import timer
from torch.distributed.elastic.timer.api import RequestQueue, TimerRequest

from aiotimer.integrations.torch_elastic import TorchRequestQueue, TorchTimerClient, TorchTimerServer

SPAWN = mp.get_context("spawn")
HOUR = 3600.0


def request(worker_id: int, scope: str = "s", within: float = HOUR) -> TimerRequest:
    return TimerRequest(worker_id, scope, time.time() + within)


def release(worker_id: int, scope: str = "s") -> TimerRequest:
    return TimerRequest(worker_id, scope, -1)


class Told:
    """The events of a server, which come from a thread of its own."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, kind: str, pid: int) -> Event:
        """Wait for an event about a process."""

        def found() -> Event | None:
            about = (e for e in self.events if e.worker_id is not None and e.worker_id.pid == pid)
            return next((event for event in about if event.event == kind), None)

        with self._changed:
            self._changed.wait_for(found, PATIENCE)
            event = found()
        assert event is not None, f"no {kind!r} of {pid}: {self.events}"
        return event


@contextlib.contextmanager
def serving(
    kind: type[TorchTimerServer] = TorchTimerServer, *arguments: Any, **options: Any
) -> Iterator[tuple[TorchTimerServer, Told]]:
    told = Told()
    server = kind(*arguments, on_event=told, **{"reap": "KILL"} | options)
    server.start()
    try:
        yield server, told
    finally:
        server.stop()


def armed(server: TorchTimerServer, pid: int) -> list[str]:
    workers = [worker for worker in status(server.socket_path)["workers"] if worker["pid"] == pid]
    return sorted(one["scope"] for worker in workers for one in worker["timers"])


def wait_armed(server: TorchTimerServer, pid: int, scopes: list[str]) -> None:
    until = monotonic() + PATIENCE
    while (found := armed(server, pid)) != scopes:
        assert monotonic() < until, f"armed are {found}, and not {scopes}"


# --- the queue


@pytest.fixture(params=["alone", "over another queue"])
def queues(request: pytest.FixtureRequest) -> tuple[TorchRequestQueue, Callable[[Any], None]]:
    """A queue, and what puts something into it. The other one is as of multiprocessing, without delays."""
    if request.param == "alone":
        requests = TorchRequestQueue()
        return requests, requests.put
    other: queue.Queue[Any] = queue.Queue()
    return TorchRequestQueue(other), other.put


def test_it_is_torchs(queues: Any) -> None:
    assert isinstance(queues[0], RequestQueue)


def test_an_empty_queue_has_nothing(queues: Any) -> None:
    requests, _put = queues
    assert requests.size() == 0
    assert requests.get(1, timeout=0.01) == []
    assert requests.get(0, timeout=0) == []


def test_what_comes_out_is_what_was_put_in_and_as_many(queues: Any) -> None:
    requests, put = queues
    given = [request(number) for number in range(10)]
    for one in given:
        put(one)
    assert requests.size() == 10
    assert requests.get(4, timeout=0) == given[:4]
    size = requests.size()
    assert requests.get(size, timeout=0) == given[4:]
    assert requests.size() == 0


def test_it_returns_what_is_there_when_the_time_is_over(queues: Any) -> None:
    requests, put = queues
    put(request(1))
    assert len(requests.get(2, timeout=0.01)) == 1


def test_it_waits_for_what_comes(queues: Any) -> None:
    requests, put = queues

    def produce() -> None:
        for number in range(10):
            put(request(number))

    thread = threading.Thread(target=produce)
    thread.start()
    assert len(requests.get(10, timeout=PATIENCE)) == 10
    thread.join(PATIENCE)


def test_of_one_timer_the_newest_request_counts(queues: Any) -> None:
    requests, put = queues
    other = request(1, "t")
    for one in (request(1), other, release(1)):
        put(one)
    assert requests.size() == 2
    assert requests.get(2, timeout=0) == [release(1), other]


def test_a_time_that_is_none_is_refused() -> None:
    requests = TorchRequestQueue()
    with pytest.raises(ValueError, match="finite"):
        requests.put(TimerRequest(1, "s", nan))
    with pytest.raises(TypeError, match="a number"):
        requests.put(TimerRequest(1, "s", "soon"))
    assert requests.size() == 0


@pytest.mark.parametrize("junk", [7, "text", TimerRequest(1, "s", nan), TimerRequest(1, "s", "soon")])
def test_what_is_no_request_costs_no_other(junk: Any) -> None:
    other: queue.Queue[Any] = queue.Queue()
    requests = TorchRequestQueue(other)
    other.put(junk)
    other.put(request(1))
    assert requests.size() == 1


class Unpicklable:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


def test_what_cannot_be_unpickled_costs_no_other() -> None:
    other = SPAWN.Queue()
    requests = TorchRequestQueue(other)
    other.put(Unpicklable())
    wanted = request(1)
    other.put(wanted)
    assert requests.get(1, timeout=PATIENCE) == [wanted]
    other.close()


def test_a_queue_that_was_closed_is_read_no_more() -> None:
    other = SPAWN.Queue()
    requests = TorchRequestQueue(other)
    other.close()
    assert requests.size() == 0
    assert requests.get(1, timeout=0.01) == []


# --- the server


def stuck(mp_queue: Any) -> None:
    timer.configure(timer.LocalTimerClient(mp_queue))
    with timer.expires(after=0.2, scope="stuck"):
        time.sleep(1000)


def happy(mp_queue: Any) -> None:
    timer.configure(timer.LocalTimerClient(mp_queue))
    with timer.expires(after=HOUR):
        pass


def test_workers_of_torchs_local_client_are_reaped_and_others_are_not() -> None:
    """As in torch's example: only the line that makes the server is another one."""
    mp_queue = SPAWN.Queue()
    with serving(TorchTimerServer, mp_queue, 60.0):
        processes = [SPAWN.Process(target=stuck if n % 2 else happy, args=(mp_queue,)) for n in range(4)]
        for process in processes:
            process.start()
        for number, process in enumerate(processes):
            process.join(4 * PATIENCE)  # each of them imports torch
            assert process.exitcode == (-signal.SIGKILL if number % 2 else 0)
    mp_queue.close()


def test_workers_of_our_client_find_it_by_its_socket() -> None:
    code = """
        import time
        from torch.distributed.elastic import timer
        from aiotimer.integrations.torch_elastic import TorchTimerClient
        timer.configure(TorchTimerClient())
        with timer.expires(after=0.2, scope="stuck"):
            time.sleep(1000)
    """
    with serving() as (server, told), spawn_worker(code, server.socket_path) as worker:
        assert worker.wait() == -signal.SIGKILL
        assert told.wait("reaped", worker.pid).scope == "stuck"


def test_one_expired_timer_ends_the_process_and_clears_its_others() -> None:
    with serving() as (server, told), bystander() as pid:
        server.register_timers([request(pid, "valid"), request(pid, "expired", -60.0)])
        assert told.wait("reaped", pid).scope == "expired"
        wait_dead(pid)
        assert armed(server, pid) == []


def test_a_timer_is_released_and_what_is_not_armed_may_be() -> None:
    with serving() as (server, _told), bystander() as pid:
        server.register_timers([request(pid, "a"), release(pid, "a"), release(pid, "b"), request(pid, "c")])
        assert armed(server, pid) == ["c"]
        assert is_alive(pid)


def test_valid_timers_leave_everybody_alone() -> None:
    with serving() as (server, _told), bystander() as one, bystander() as other:
        server.register_timers([request(pid, scope) for pid in (one, other) for scope in ("a", "b")])
        assert armed(server, one) == armed(server, other) == ["a", "b"]
        assert server.get_expired_timers(time.time()) == {}


def test_what_is_put_into_its_queue_is_registered() -> None:
    requests = TorchRequestQueue()
    with serving(TorchTimerServer, requests) as (server, told), bystander() as pid:
        requests.put(request(pid, "step"))
        wait_armed(server, pid, ["step"])
        requests.put(TimerRequest(pid, "step", 0))
        assert told.wait("reaped", pid).scope == "step"


class OwnQueue(RequestQueue):  # type: ignore[misc]  # torch's is of any type here
    """One of a launcher's own."""

    def __init__(self, given: list[TimerRequest]) -> None:
        self.given = given
        self.stopped = threading.Event()

    def size(self) -> int:
        return len(self.given)

    def get(self, size: int, timeout: float) -> list[TimerRequest]:
        taken, self.given = self.given[:size], self.given[size:]
        if not taken:
            self.stopped.wait(timeout)
        return taken


def test_a_queue_of_a_launchers_own_is_read() -> None:
    with bystander() as pid:
        requests = OwnQueue([request(pid, "step")])
        with serving(TorchTimerServer, requests, 5.0) as (server, _told):
            wait_armed(server, pid, ["step"])
            assert not requests.given
            requests.stopped.set()


def test_a_watchdogs_turn_may_be_taken_by_hand() -> None:
    requests = TorchRequestQueue()
    server = TorchTimerServer(requests, 0.01, reap="KILL")
    try:
        server._run_watchdog()  # nothing is there
        with bystander() as pid:
            requests.put(request(pid, "step"))
            server._run_watchdog()
            assert armed(server, pid) == ["step"]
    finally:
        server.stop()


@pytest.mark.parametrize(
    "bad",
    [
        TimerRequest(-3, "s", 0), TimerRequest(0, "s", 0), TimerRequest(2**40, "s", 0),
        TimerRequest("x", "s", 0), TimerRequest(1, 7, 0), TimerRequest(1, "s", "soon"),
        TimerRequest(1, "s", nan),
    ],
    ids=["negative pid", "pid 0", "large pid", "text", "no scope", "no time", "nan"],
)  # fmt: skip
def test_a_request_that_cannot_be_one_costs_no_other(bad: TimerRequest) -> None:
    with serving() as (server, _told), bystander() as pid:
        server.register_timers([bad, request(pid, "step")])
        assert armed(server, pid) == ["step"]


def test_it_tells_what_has_expired_as_torch_does() -> None:
    with serving(observe=True) as (server, told), bystander() as pid:
        asked = [request(pid, "late", -60.0), request(pid, "valid")]
        server.register_timers(asked)
        told.wait("observed", pid)
        [found] = server.get_expired_timers(time.time())[pid]
        assert (found.worker_id, found.scope_id) == (pid, "late")
        assert abs(found.expiration_time - asked[0].expiration_time) < 1
        assert len(server.get_expired_timers(time.time() + 2 * HOUR)[pid]) == 2
        server.clear_timers({pid})
        assert server.get_expired_timers(time.time() + 2 * HOUR) == {}
        assert is_alive(pid)


def test_timers_that_were_cleared_reap_nobody() -> None:
    with serving() as (server, told), bystander() as pid, bystander() as other:
        server.register_timers([request(pid, "step", 4.0)])
        server.clear_timers({pid, 2**22 - 1})
        server.register_timers([request(other, "step", 4.1)])
        told.wait("reaped", other)
        assert is_alive(pid)


def test_it_reaps_whom_it_is_told_to() -> None:
    with serving() as (server, _told), bystander() as pid, bystander() as other:
        server.register_timers([request(pid)])
        assert server._reap_worker(pid) is True
        wait_dead(pid)
        assert server._reap_worker(other) is True  # which has no timer
        wait_dead(other)


class Overriding(TorchTimerServer):
    """A launcher's own way to reap."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.answers: list[Any] = []

    def _reap_worker(self, worker_id: int) -> bool:
        self.asked.put(worker_id)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer() if callable(answer) else answer)


def test_a_launcher_may_reap_in_its_own_way_and_false_is_asked_again() -> None:
    with serving(Overriding) as (server, _told), bystander() as pid:
        assert isinstance(server, Overriding)
        server.answers = [False, lambda: super(Overriding, server)._reap_worker(pid)]
        server.register_timers([TimerRequest(pid, "s", 0)])
        assert [server.asked.get(timeout=PATIENCE) for _ in range(2)] == [pid, pid]
        wait_dead(pid)


@pytest.mark.parametrize("answer", [True, RuntimeError("test error")], ids=["true", "an error"])
def test_who_was_reaped_or_could_not_be_is_cleared(answer: Any) -> None:
    with serving(Overriding) as (server, _told), bystander() as pid, bystander() as other:
        assert isinstance(server, Overriding)
        server.answers = [answer, True]
        server.register_timers([TimerRequest(pid, "s", 0)])
        assert server.asked.get(timeout=PATIENCE) == pid
        server.register_timers([TimerRequest(other, "s", 0)])
        assert server.asked.get(timeout=PATIENCE) == other
        until = monotonic() + PATIENCE
        while server.get_expired_timers(time.time()):  # it is cleared when the answer has come in
            assert monotonic() < until
        assert is_alive(pid)


def test_it_starts_and_stops_as_often_as_it_is_told() -> None:
    server = TorchTimerServer()
    server.stop()
    with bystander() as pid:
        for _ in range(2):
            server.start()
            server.start()
            server.register_timers([request(pid, "step")])
            assert armed(server, pid) == ["step"]
            server.stop()
            server.stop()
    assert not os.path.exists(server.socket_path)


def test_stopping_does_not_wait_for_a_request() -> None:
    mp_queue = SPAWN.Queue()
    for requests in (TorchRequestQueue(), mp_queue):
        server = TorchTimerServer(requests, max_interval=10 * PATIENCE)
        server.start()
        thread = threading.Thread(target=server.stop)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    mp_queue.close()


def test_it_does_not_start_where_another_one_serves() -> None:
    with short_directory() as directory:
        with serving(socket_path=directory / "s") as (server, _told):
            assert server.socket_path == str(directory / "s")
            other = TorchTimerServer(socket_path=directory / "s")
            with pytest.raises(AlreadyServing):
                other.start()
            other.stop()


def test_options_are_those_of_our_server() -> None:
    with pytest.raises(ValueError, match="ends with KILL"):
        TorchTimerServer(reap="TERM")
    with pytest.raises(TypeError):
        TorchTimerServer(no_such_option=True)


# --- the named pipe


def test_torchs_file_client_is_served() -> None:
    code = """
        import sys, time
        from torch.distributed.elastic import timer
        timer.configure(timer.FileTimerClient(sys.argv[1]))
        for _ in range(10):
            with timer.expires(after=3600):
                pass
        print("in time", flush=True)
        with timer.expires(after=0.2, scope="stuck"):
            time.sleep(1000)
    """
    with short_directory() as directory:
        path = directory / "pipe"
        with serving(timer_file=path) as (_server, told), spawn_worker(code, None, str(path)) as worker:
            worker.wait_line("in time", 2 * PATIENCE)
            assert worker.wait() == -signal.SIGKILL
            assert told.wait("reaped", worker.pid).scope == "stuck"
        assert not path.exists()


def test_a_pipe_that_cannot_be_served_is_said() -> None:
    with short_directory() as directory:
        (directory / "pipe").write_text("precious")
        server = TorchTimerServer(timer_file=directory / "pipe")
        with pytest.raises(UnsafePath, match="is no named pipe"):
            server.start()
        server.stop()
        assert not os.path.exists(server.socket_path)


def test_a_client_without_a_server_says_so_as_torch_does() -> None:
    """Nothing of ours is in the way of torch's own errors."""
    client = timer.FileTimerClient("/nowhere/pipe")
    with pytest.raises(BrokenPipeError):
        client.acquire("s", time.time() + 60)


def test_a_client_in_the_launcher_itself_is_watched() -> None:
    with serving(observe=True) as (server, told):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIOTIMER_SOCKET", server.socket_path)
            client = TorchTimerClient()
            client.acquire("step", 0)
            assert told.wait("observed", os.getpid()).scope == "step"
            client.release("step")
