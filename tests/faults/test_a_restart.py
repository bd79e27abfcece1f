"""Faults 8 and 9: one server per socket, and the next one when it has died.

The laws of this file:

* Whoever serves keeps serving. A second server is turned away by the lock, a foreign listener by a probe, and
  nothing that lives is unlinked.
* Whatever kills a server, ``aiotimer run`` starts the next one, and its command goes on. How soon is printed
  here, and asserted in ``python -m benchmarks --only load``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from aiotimer import AsyncTimerClient, ServerUnavailable
from aiotimer.client.control import ping, status
from aiotimer.errors import AlreadyServing
from aiotimer.server.server import TimerServer
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.server import ServerProcess, armed, raw_client, serving
from tests.fakes.worker import (
    AIOTIMER,
    HANGS,
    PRELUDE,
    environment,
    program,
    spawn_worker,
    wait_dead,
)

# -- fault 8 ----------------------------------------------------------------------------------------------


async def test_fault_08_a_second_server_is_turned_away() -> None:
    """The first keeps its socket and its workers."""
    async with serving() as server:
        inode = os.stat(server.socket_path).st_ino
        with pytest.raises(AlreadyServing) as caught:
            await TimerServer(server.socket_path).start()
        assert server.socket_path in str(caught.value)
        assert os.stat(server.socket_path).st_ino == inode
        async with AsyncTimerClient(server.socket_path, unavailable="raise") as client:
            assert client.connected


def test_fault_08_a_second_command_says_so_and_exits_69() -> None:
    """In one line, and the workers of the first one do not notice."""
    with short_socket() as path, ServerProcess(path) as server:
        with spawn_worker(program("with", HANGS["gil"], after=1000), path) as worker:
            worker.wait_line("deadline")
            before = server.armed(worker.pid)
            second = subprocess.run(
                [*AIOTIMER, "serve", "--socket", path],
                capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False,
            )  # fmt: skip
            assert second.returncode == 69
            assert second.stderr == f"aiotimer: another timer server is serving {path}\n"
            assert second.stdout == ""
            assert ping(path).pid == server.pid
            assert server.armed(worker.pid) == before


def test_fault_08_a_lock_that_was_removed_costs_the_next_server_no_timer() -> None:
    """By the lock's file the directory of the tables is known: now there are two of them."""
    lasting = program("with", HANGS["gil"], after=1000)
    with short_socket() as path, ServerProcess(path) as server, spawn_worker(lasting, path) as first:
        first.wait_line("deadline")
        os.unlink(path + ".lock")
        until = monotonic() + PATIENCE
        while not os.path.exists(path + ".lock"):
            assert monotonic() < until
            sleep(0.01)
        with spawn_worker(lasting, path) as newcomer:
            newcomer.wait_line("deadline")
            workers = {worker.pid: server.armed(worker.pid) for worker in (first, newcomer)}
            assert all(workers.values())
            server.kill()
            server.start()
            assert {pid: server.armed(pid) for pid in workers} == workers


async def test_fault_08_a_stale_socket_file_is_replaced() -> None:
    """Nobody listens there any more."""
    with short_socket() as path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(path)
        os.chmod(path, 0o755)
        async with serving(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            async with AsyncTimerClient(path, unavailable="raise") as client:
                assert client.connected


@pytest.mark.parametrize("backlog", ["free", "full"])
async def test_fault_08_a_foreign_listener_is_refused_and_not_unlinked(backlog: str) -> None:
    """Somebody who does not know of our lock."""
    with short_socket() as path, contextlib.ExitStack() as stack:
        foreign = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        foreign.bind(path)
        foreign.listen(0)
        inode = os.stat(path).st_ino
        if backlog == "full":
            stack.enter_context(raw_client(path))
        with pytest.raises(AlreadyServing, match="somebody else"):
            await TimerServer(path).start()
        assert os.stat(path).st_ino == inode
        foreign.accept()[0].close()  # it still listens


# -- fault 9 ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Make a cgroup whose processes get so much more memory and no more, of whichever version there is."""
    for base, controller, knob in (
        (Path("/sys/fs/cgroup"), "cgroup.subtree_control", "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.limit_in_bytes"),
    ):
        group = base / f"aiotimer-test-{os.getpid()}"
        try:
            if controller == "cgroup.subtree_control" and "memory" not in (base / controller).read_text():
                continue
            group.mkdir()
        except OSError:
            continue
        try:
            (group / knob).write_text(str(limit))
            yield group
        finally:
            group.rmdir()
        return
    pytest.skip("no memory cgroup can be made here")


def oom_kills(group: Path) -> int:
    """Return how many processes of a cgroup the OOM killer has killed."""
    for name in ("memory.events", "memory.oom_control"):
        if (group / name).exists():
            facts = dict(row.split() for row in (group / name).read_text().splitlines())
            return int(facts.get("oom_kill", -1))
    return -1


HOG = """
    import sys
    print("ready", flush=True)
    sys.stdin.readline()
    memory = []
    while True:
        memory.append(bytearray(1 << 20))
"""


def test_fault_09_the_oom_killer_takes_the_server() -> None:
    """As fault 1: what was armed is there, and what is due is reaped."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_cgroup(32 << 20))
        path = stack.enter_context(short_socket())
        hog = stack.enter_context(spawn_worker(HOG, None))
        server = stack.enter_context(ServerProcess(path, "uvloop"))
        hung = stack.enter_context(spawn_worker(program("with", HANGS["gil"], after=3.0), path))
        healthy = stack.enter_context(spawn_worker(program("acquire", "sys.stdin.read()", after=1000), path))
        deadlines = [float(worker.wait_line("deadline").split()[-1]) for worker in (hung, healthy)]
        hog.wait_line("ready")
        for pid, inclined in ((server.pid, 1000), (hog.pid, 0)):
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(inclined))
            (group / "cgroup.procs").write_text(str(pid))
        hog.say()
        assert server.wait() == -signal.SIGKILL
        assert hog.wait() == -signal.SIGKILL
        assert oom_kills(group) in (2, -1)
        server.start()
        assert server.armed(healthy.pid) == {"victim": deadlines[1]}
        assert server.told("reaped", hung.pid)["scope"] == "victim"
        assert hung.wait() == -signal.SIGKILL
        assert monotonic() >= deadlines[0]


COMMAND = (
    PRELUDE
    + """
import aiotimer
logging.basicConfig(level=logging.DEBUG)  # whatever it notices would be on standard error
aiotimer.configure()
early = TimerClient(budget=30)
early.connect()  # the server is only being started
stop = threading.Event()

def work():
    blocks = 0
    while not stop.is_set():
        with expires(60):
            blocks += 1
            time.sleep(0.002)
    say("blocks", blocks)

worker = threading.Thread(target=work)
with expires(600, "kept"):
    worker.start()
    say(os.environ["AIOTIMER_SOCKET"])
    sys.stdin.readline()
stop.set()
worker.join()
with expires(2.0, "next"):  # earlier than any promise: it rings
    pass
with expires(60, "last"):
    say("went on")
    sys.stdin.readline()
"""
)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV], ids=lambda s: s.name)
def test_fault_09_run_restarts_its_server_and_the_command_does_not_notice(
    signum: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*AIOTIMER, "run", "--", sys.executable, "-c", COMMAND]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        path = run.stdout.readline().strip()
        report = status(path)
        first, pid = report["server"]["pid"], report["workers"][0]["pid"]
        kept = armed(report, pid)["kept"]
        killed_at = monotonic()
        os.kill(first, signum)
        wait_dead(first)
        answer = None
        while answer is None:
            assert monotonic() < killed_at + PATIENCE
            with contextlib.suppress(ServerUnavailable):
                answer = ping(path)
        took = monotonic() - killed_at
        assert answer.pid != first
        assert armed(status(path), pid)["kept"] == kept
        run.stdin.write("\n")
        run.stdin.flush()
        assert int(run.stdout.readline().removeprefix("blocks")) > 0
        assert run.stdout.readline() == "went on\n"
        assert armed(status(path), pid).keys() == {"last"}
        _output, errors = run.communicate("\n", PATIENCE)
        assert run.returncode == 0
        assert errors == ""
    with capsys.disabled():
        print(f"\nfault 9: {signum.name}; a new server answered after {took:.2f} s")  # noqa: T201 - a figure
