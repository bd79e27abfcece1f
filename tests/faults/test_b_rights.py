"""Servers of root's: with whose rights a signal is sent, and which capabilities are left.

The laws of this file: what a user may not kill, root's server does not kill on that user's account; what the
user may kill it does, and its own workers in any case; and it has no capability but those that this takes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from aiotimer import TimerRequest
from aiotimer._control import status
from aiotimer._rights import CAPABILITIES
from tests.programs import PRELUDE, program
from tests.serving import WatchfulServer, armed, ended, is_alive, line, number, serving
from tests.support import SpawnedWorker, short_socket, spawn_worker

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be a server of root's")


@pytest.fixture
def programs() -> Iterator[Path]:
    """Yield a directory with set-uid root copies of ``sleep`` and ``setpriv``."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv(1) is not installed")
    path = Path(tempfile.mkdtemp(prefix="at-"))
    try:
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            pytest.skip(f"{path} is on a file system that is mounted nosuid")
        path.chmod(0o755)
        for original in ("/bin/sleep", setpriv):
            shutil.copy(original, path)
            (path / Path(original).name).chmod(0o4755)
        yield path
    finally:
        shutil.rmtree(path)


def uids(pid: int) -> set[str]:
    """Return the real, effective, saved and file system uid of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return set(next(line for line in text.splitlines() if line.startswith("Uid:")).split()[1:])


@contextlib.contextmanager
def users_shell(then: str) -> Iterator[SpawnedWorker]:
    """Yield a shell of another user's that runs a line when it is told."""
    with SpawnedWorker(
        subprocess.Popen(
            ["/bin/sh", "-c", f"echo ready; read go; {then}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
        )
    ) as shell:
        shell.wait_line("ready")
        yield shell


def become_root(programs: Path) -> str:
    """Return the line with which a shell becomes a program that is root through and through."""
    return f"exec {programs}/setpriv --reuid 0 sh -c 'echo root; read end'"


def arm(server: WatchfulServer, pid: int, after: float) -> float:
    deadline = monotonic() + after
    server.register_timers([TimerRequest(pid, "of root's", deadline)])
    return deadline


async def assert_refused(server: WatchfulServer, pid: int, deadline: float) -> None:
    """It is told once why a process lives on, which is tried again with pauses."""
    event = await server.told("reap_failed", pid)
    assert f"as uid {NOBODY}: Operation not permitted" in event.detail
    await server.until(lambda: [worker.pid for worker in server.reaps].count(pid) >= 3, "the third attempt")
    await server.pass_by(deadline)
    assert is_alive(pid)
    assert len(server.all_told("reap_failed", pid)) == 1
    assert server.armed(pid).keys() == {"of root's"}


async def test_another_users_process_is_killed_with_its_users_rights() -> None:
    async with serving() as server:
        with users_shell("exit 1") as shell:
            deadline = arm(server, shell.pid, 0.1)
            assert await ended(shell) == -signal.SIGKILL
            assert (await server.told("reaped", shell.pid)).scope == "of root's"
            assert server.acted[shell.pid] >= deadline


async def test_a_set_uid_program_is_not_killed_by_proxy(programs: Path) -> None:
    """Its user could not kill it: the timer that was armed before does not either."""
    async with serving() as server:
        with users_shell(become_root(programs)) as shell:
            arm(server, shell.pid, 60)
            shell.say()
            await line(shell, "root")
            assert uids(shell.pid) == {"0"}
            await assert_refused(server, shell.pid, arm(server, shell.pid, 0.1))


async def test_nor_by_the_next_server(programs: Path) -> None:
    """Whose process it was when the timer was armed is noted with the timer."""
    with short_socket() as path, users_shell(become_root(programs)) as shell:
        async with serving(path) as server:
            arm(server, shell.pid, 60)
        shell.say()
        await line(shell, "root")
        async with serving(path) as server:
            assert server.all_told("adopted", shell.pid)
            await assert_refused(server, shell.pid, arm(server, shell.pid, 0.1))


async def test_a_set_uid_program_that_its_user_may_kill_is_killed(programs: Path) -> None:
    """It keeps its user as its real uid, as ``passwd`` does: kill(2) lets that user signal it."""
    async with serving() as server:
        with users_shell(f"exec {programs}/sleep 1000") as shell:
            arm(server, shell.pid, 60)
            shell.say()
            while "0" not in uids(shell.pid):  # sleep says nothing
                assert is_alive(shell.pid)
            arm(server, shell.pid, 0.1)
            assert await ended(shell) == -signal.SIGKILL
            await server.told("reaped", shell.pid)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
async def test_a_worker_of_roots_that_runs_a_set_uid_program(shared: bool, programs: Path) -> None:
    """It armed a timer, gave up root, and executed: what had been armed is dropped, as by any exec."""
    body = f"os.setuid({NOBODY})\nos.execv('{programs}/sleep', ['sleep', '1000'])"
    async with serving() as server:
        with spawn_worker(program("with", body, shared=shared, after=2.0), server.socket_path) as worker:
            deadline = await number(worker, "deadline")
            await server.told("exec", worker.pid)
            assert server.armed(worker.pid) == {}
            await server.pass_by(deadline)
            assert is_alive(worker.pid)
            assert uids(worker.pid) == {str(NOBODY), "0"}
            assert worker.pid not in server.acted


UNPRIVILEGED = (
    PRELUDE
    + f"""
import subprocess
from aiotimer.process import program_of, runs_another_program

os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
with subprocess.Popen(["/bin/sh", "-c", "read go; " + sys.argv[1]], stdin=subprocess.PIPE) as shell:
    mark = program_of(shell.pid)
    same = runs_another_program(shell.pid, mark)
    shell.stdin.write(b"\\n")
    shell.stdin.flush()
    sys.stdin.readline()
    say("marks", mark > 0, same, program_of(shell.pid), runs_another_program(shell.pid, mark))
"""
)


def test_a_set_uid_program_is_another_program_to_an_unprivileged_server(programs: Path) -> None:
    """It may not see where the program lies in memory any more, and sees that it is root's."""
    with spawn_worker(UNPRIVILEGED, None, become_root(programs)) as worker:
        worker.wait_line("root")
        worker.say()
        assert worker.wait_line("marks") == "marks True False 0 True"


# -- capabilities ------------------------------------------------------------------------------------------


def test_a_server_of_roots_keeps_the_capabilities_it_needs() -> None:
    """And no more; with them it reaps a worker that has given up root, and sees it execute."""
    mask = sum(1 << capability for capability in CAPABILITIES)
    with short_socket() as path, served(path) as server:
        text = Path(f"/proc/{server.pid}/status").read_text()
        sets = dict(entry.split(":\t") for entry in text.splitlines() if entry.startswith("Cap"))
        assert {name: int(bits, 16) for name, bits in sets.items()} == {
            "CapInh": 0,
            "CapPrm": mask,
            "CapEff": mask,
            "CapBnd": mask,
            "CapAmb": 0,
        }
        hang = f"os.setuid({NOBODY})\nctypes.PyDLL(None).sleep(1000)"
        with spawn_worker(program("with", hang), path) as worker:
            assert worker.wait() == -signal.SIGKILL
        changed = f"os.setuid({NOBODY})\nos.execv('/bin/sh', ['sh', '-c', 'echo new; read go'])"
        for shared in (True, False):
            with spawn_worker(program("with", changed, shared=shared, after=60), path) as worker:
                worker.wait_line("new")
                server.wait_line(f"exec pid={worker.pid} ")
                assert armed(status(path), worker.pid) == {}


@contextlib.contextmanager
def served(path: str) -> Iterator[SpawnedWorker]:
    with spawn_worker("import sys; from aiotimer.cli import main; sys.exit(main())", path, "serve") as server:
        server.wait_line("serving on")
        yield server
