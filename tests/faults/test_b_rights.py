"""A server serves its own user only: whose processes it acts on, and with which rights.

The laws of this file: a timer cannot be armed on another user's process, by root's server either; a process
that has become another user's by an exec is not acted upon; one that has merely dropped its uid is still the
one that was pinned; and a server of root's has no capability but those that this takes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

import aiotimer
from aiotimer import TimerRequest, WorkerId
from aiotimer._linux.procfs import start_time
from aiotimer.client.control import status
from aiotimer.errors import ForeignProcess
from aiotimer.server.rights import PRIORITY
from tests.fakes.places import short_directory, short_socket
from tests.fakes.server import WatchfulServer, armed, serving
from tests.fakes.worker import (
    PRELUDE,
    SpawnedWorker,
    bystander,
    ended,
    is_alive,
    line,
    number,
    program,
    spawn_worker,
)

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be two users")


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


def become_root(programs: Path) -> str:
    """Return the line with which a shell becomes a program that is root through and through."""
    return f"exec {programs}/setpriv --reuid 0 sh -c 'echo root; read end'"


def request(pid: int, after: float = 60.0) -> TimerRequest:
    return TimerRequest(pid, "of its owner's", monotonic() + after)


def overdue(server: WatchfulServer, pid: int) -> None:
    """Let the timer that is armed on a process be due, without arming it anew, which might be refused."""
    worker = server._registry.find(pid)
    assert worker is not None
    table, cells = worker.own_tables["owner"]
    assert cells.set(("of its owner's", 0), 0.0, monotonic())
    table.rung(0.0)


# -- arming ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def of_another_user(real: int, effective: int, saved: int) -> Iterator[int]:
    """Yield a process with these user ids."""
    code = PRELUDE + "os.setresuid(*map(int, sys.argv[1:]))\nsay('changed')\nsys.stdin.readline()"
    with spawn_worker(code, None, str(real), str(effective), str(saved)) as worker:
        worker.wait_line("changed")
        yield worker.pid


@pytest.mark.parametrize("ids", [(NOBODY, NOBODY, NOBODY), (NOBODY, 0, 0), (0, NOBODY, 0), (0, 0, NOBODY)])
async def test_another_users_process_is_refused(ids: tuple[int, int, int]) -> None:
    """A single id is enough: so it is a set-uid program's process, whoever it acts as just now."""
    async with serving() as server:
        with of_another_user(*ids) as pid:
            with pytest.raises(ForeignProcess, match=f"process {pid} belongs to uid {NOBODY}") as raised:
                server.register_timers([request(pid)])
            assert isinstance(raised.value, PermissionError)
            assert (raised.value.pid, raised.value.uid, raised.value.server_uid) == (pid, NOBODY, 0)
            assert server.status()["workers"] == []
            server.register_timers([TimerRequest(pid, "of its owner's", -1.0)])  # there is nothing to release


async def test_a_batch_with_another_users_process_is_refused_as_a_whole() -> None:
    async with serving() as server:
        with of_another_user(NOBODY, NOBODY, NOBODY) as foreign, bystander() as old, bystander() as new:
            server.register_timers([request(old)])
            former = server.armed(old)
            release = TimerRequest(old, "of its owner's", -1.0)
            with pytest.raises(ForeignProcess, match=f"process {foreign} "):
                server.register_timers([release, request(new), request(old, 0.0), request(foreign)])
            assert [worker["pid"] for worker in server.status()["workers"]] == [old]
            assert server.armed(old) == former
            server.register_timers([request(new, 0.0)])  # which was let go of, and can come again
            await server.told("reaped", new)
            assert is_alive(old)


async def test_another_users_process_that_took_over_a_pid_is_passed_over() -> None:
    """The process that was meant is gone: that is no reason to refuse the others."""
    async with serving() as server:
        with of_another_user(NOBODY, NOBODY, NOBODY) as pid, bystander() as own:
            former = WorkerId(pid, start_time(pid) - 1)
            server.register_timers([TimerRequest(former, "s", monotonic() + 60), request(own)])
            assert [worker["pid"] for worker in server.status()["workers"]] == [own]


# -- what becomes of a process on which a timer is armed -----------------------------------------------------

CHANGED = {
    "dropped its uid": f"os.setuid({NOBODY})\nsay('changed')\nsys.stdin.readline()",
    "executed": "os.execv('/bin/sh', ['sh', '-c', 'echo changed; read end'])",
    "both": f"os.setuid({NOBODY})\nos.execv('/bin/sh', ['sh', '-c', 'echo changed; read end'])",
}
"""What a process of this user's does with a timer that the server's owner has armed on it."""


@contextlib.contextmanager
def changing(how: str) -> Iterator[SpawnedWorker]:
    """Yield a process that changes when it is told to."""
    code = PRELUDE + "say('ready')\nsys.stdin.readline()\n" + CHANGED[how]
    with spawn_worker(code, None) as worker:
        worker.wait_line("ready")
        yield worker


async def change(worker: SpawnedWorker) -> None:
    worker.say()
    await line(worker, "changed")


@pytest.mark.parametrize("restart", [False, True], ids=["the same server", "the next server"])
@pytest.mark.parametrize("how", ["dropped its uid", "executed", "both"])
async def test_it_is_acted_upon_unless_it_is_another_users_by_an_exec(how: str, restart: bool) -> None:
    """It is the process that was pinned; and either its program is the one of then, or its user is."""
    with short_socket() as path, changing(how) as worker:
        async with serving(path) as server:
            server.register_timers([request(worker.pid)])
            await change(worker)
            if not restart:
                overdue(server, worker.pid)
                await assert_acted_upon(server, worker, how != "both")
        if restart:
            async with serving(path) as server:
                if how != "both":
                    assert server.armed(worker.pid).keys() == {"of its owner's"}
                    overdue(server, worker.pid)
                await assert_acted_upon(server, worker, how != "both")


async def assert_acted_upon(server: WatchfulServer, worker: SpawnedWorker, reaped: bool) -> None:
    if reaped:
        assert await ended(worker) == -signal.SIGKILL
        assert server.all_told("exec") == []
    else:
        await assert_let_go(server, worker.pid)


async def test_a_table_of_a_version_that_noted_no_program_is_not_enough() -> None:
    """Nothing says that the program is still the one of then: to be on the safe side it is not."""
    with short_socket() as path, changing("dropped its uid") as worker:
        async with serving(path) as server:
            server.register_timers([request(worker.pid)])
            known = server._registry.find(worker.pid)
            assert known is not None
            known.own_tables["owner"][0].note_program(0)
            await change(worker)
        async with serving(path) as server:
            await assert_let_go(server, worker.pid)


async def assert_let_go(server: WatchfulServer, pid: int) -> None:
    await server.told("exec", pid)
    assert len(server.all_told("exec", pid)) == 1
    assert server.armed(pid) == {}
    assert server.reaps == []
    assert is_alive(pid)
    with pytest.raises(ForeignProcess):
        server.register_timers([request(pid)])


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
from aiotimer._linux.procfs import program_of, runs_program

os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
command = ["/bin/sh", "-c", "echo here >&2; read go; " + sys.argv[1]]
with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as shell:
    shell.stderr.readline()  # it is through with its exec
    mark = program_of(shell.pid)
    same = runs_program(shell.pid, mark)
    shell.stdin.write(b"\\n")
    shell.stdin.flush()
    sys.stdin.readline()
    say("marks", mark > 0, same, program_of(shell.pid), runs_program(shell.pid, mark))
"""
)


def test_a_set_uid_program_is_another_program_to_an_unprivileged_server(programs: Path) -> None:
    """It may not see where the program lies in memory any more, and sees that it is root's."""
    with spawn_worker(UNPRIVILEGED, None, become_root(programs)) as worker:
        worker.wait_line("root")
        worker.say()
        assert worker.wait_line("marks") == "marks True True 0 False"


UNPRIVILEGED_SERVER = (
    PRELUDE
    + f"""
import concurrent.futures.thread, ctypes, hashlib, shutil, sqlite3, subprocess
import aiotimer.server.server  # before the modules are out of reach
from aiotimer import TimerRequest, TimerServer
from aiotimer.errors import ForeignProcess
from aiotimer.server.rights import PRIORITY
from aiotimer._linux.procfs import foreign_uid

line, path, restart = sys.argv[1:]

def told(events):
    return [event.event for event in events if event.worker_id and event.worker_id.pid == shell.pid]

async def main():
    events = []
    async with TimerServer(path, on_event=events.append) as server:
        request = TimerRequest(shell.pid, "s", time.monotonic() + 60)
        server.register_timers([request])
        shell.stdin.write(b"\\n")
        shell.stdin.flush()
        while foreign_uid(shell.pid) is None:  # sleep says nothing
            assert shell.poll() is None
        try:
            server.register_timers([request])
        except ForeignProcess as error:
            say("refused", error.uid, error.server_uid)
        if restart == "no":
            table, cells = server._registry.find(shell.pid).own_tables["owner"]
            cells.set(("s", 0), 0.0, time.monotonic())
            table.rung(0.0)
            left = server.status()["workers"][0]["timers"]
            say("left", left)
    if restart == "yes":
        async with TimerServer(path, on_event=events.append) as server:
            say("left", server.status()["workers"])
    say("told", *told(events), shell.poll())

os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
with subprocess.Popen(["/bin/sh", "-c", "read go; " + line], stdin=subprocess.PIPE) as shell:
    asyncio.run(main())
    sys.stdin.readline()
    shell.stdin.close()
    try:
        shell.kill()
    except PermissionError:
        pass  # it ends at the end of its input
"""
)


@pytest.mark.parametrize("restart", ["no", "yes"])
@pytest.mark.parametrize("what", ["root through and through", "root, and its user may kill it"])
def test_a_set_uid_program_is_not_acted_upon_by_an_unprivileged_server(
    what: str, restart: str, programs: Path
) -> None:
    """The kernel would let the user kill the second one: as ``passwd``, it keeps the user as its real uid."""
    text = become_root(programs) if "through" in what else f"exec {programs}/sleep 1000"
    directory = tempfile.mkdtemp(prefix="at-", dir="/dev/shm")
    try:
        os.chown(directory, NOBODY, NOBODY)
        environment = {"XDG_RUNTIME_DIR": directory}
        with spawn_worker(
            UNPRIVILEGED_SERVER, None, text, f"{directory}/s", restart, env=environment
        ) as server:
            assert server.wait_line("refused") == f"refused 0 {NOBODY}"
            assert server.wait_line("left") == "left []"
            assert server.wait_line("told") == "told exec None"
            server.say()
            assert server.wait() == 0
    finally:
        shutil.rmtree(directory)


IMPORTED = (
    PRELUDE
    + """
import concurrent.futures.thread, hashlib, importlib, pkgutil, select, shutil, sqlite3, subprocess
import aiotimer
for module in pkgutil.walk_packages(aiotimer.__path__, "aiotimer."):  # before they are out of reach
    if not module.name.endswith("__main__") and ".integrations." not in module.name:
        importlib.import_module(module.name)
from aiotimer import TimerServer
"""
)

BECOMES_NOBODY = f"""
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})  # which makes it not dumpable
"""

NOT_DUMPABLE = (
    IMPORTED
    + """
from aiotimer._linux.procfs import name_of, program_of

path, shared, executes = sys.argv[1], sys.argv[2] == "shared", sys.argv[3] == "executes"

def worker():
    os.read(orders, 1)
    block = expires(2.0, "s", TimerClient(path, unavailable="raise", budget=30, shared=shared)).__enter__()
    os.write(armed, b".")
    os.read(orders, 1)
    if executes:
        os.execv("/bin/sleep", ["sleep", "1000"])
    time.sleep(1000)

async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)

async def main():
    events = []
    async with TimerServer(path) as server:
        os.write(order, b".")
        await until(lambda: select.select([arms], [], [], 0)[0])
    os.write(order, b".")
    await until(lambda: not executes or name_of(pid) == "sleep")
    async with TimerServer(path, on_event=events.append, reap="KILL") as server:
        kinds = lambda: [event.event for event in events]
        await until(lambda: set(kinds()) & {"exec" if executes and shared else "held", "reaped"})
        say("told", *kinds())
"""
    + BECOMES_NOBODY
    + """
(orders, order), (arms, armed) = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    worker()
assert program_of(pid) == 0
asyncio.run(main())
alive = os.waitpid(pid, os.WNOHANG) == (0, 0)
os.kill(pid, signal.SIGKILL)
say("alive", alive)
"""
)


@pytest.mark.parametrize(
    ("shared", "then", "told"),
    [
        ("shared", "executes", "adopted held exec"),
        ("socket", "executes", "adopted held"),
        ("shared", "hangs", "adopted held"),
        ("socket", "hangs", "adopted held"),
    ],
)
def test_fault_80_a_worker_that_is_not_dumpable_is_held_until_it_is_known_which_program_it_runs(
    shared: str, then: str, told: str
) -> None:
    """The server was restarted, and may not see where its program lies; what it maps, if it has executed."""
    directory = tempfile.mkdtemp(prefix="at-", dir="/dev/shm")
    try:
        os.chown(directory, NOBODY, NOBODY)
        environment = {"XDG_RUNTIME_DIR": directory}
        with spawn_worker(NOT_DUMPABLE, None, f"{directory}/s", shared, then, env=environment) as server:
            assert server.wait_line("told") == f"told {told}"
            assert server.wait_line("alive") == "alive True"
    finally:
        shutil.rmtree(directory)


HANGS_AS_NOBODY = (
    IMPORTED
    + """
path, closes = sys.argv[1], sys.argv[2] == "closes"

def hang_of_the_worker():
    if closes:
        os.closerange(3, 65536)
        os.dup2(os.open(os.environ["XDG_RUNTIME_DIR"] + "/file", os.O_RDWR | os.O_CREAT), 64)
    ctypes.PyDLL(None).sleep(1000)

async def main():
    told = asyncio.get_running_loop().create_future()
    def on_event(event):
        if event.event in ("reaped", "held"):
            told.set_result(event.event + " " + event.verdict)
    async with TimerServer(path, on_event=on_event):
        os.write(order, b".")
        say("told", await told)
"""
    + BECOMES_NOBODY
    + """
orders, order = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(orders, 1)
    with expires(0.3, "s", TimerClient(path, unavailable="raise", budget=30)):
        hang_of_the_worker()
asyncio.run(main())
os.kill(pid, signal.SIGKILL)  # whoever is held lives
"""
)


@pytest.mark.parametrize("closes", ["closes", "does not"])
def test_fault_64_a_worker_that_has_changed_its_uid_writes_its_stacks_itself(closes: str) -> None:
    """It shows no debugger anything. If its descriptor may be another file's by now, nothing is written."""
    directory = tempfile.mkdtemp(prefix="at-", dir="/dev/shm")
    try:
        os.chown(directory, NOBODY, NOBODY)
        environment = {"XDG_RUNTIME_DIR": directory}
        with spawn_worker(HANGS_AS_NOBODY, None, f"{directory}/s", closes, env=environment) as server:
            told = server.wait_line("told ")
            assert server.wait() == 0
            if closes == "closes":
                assert told.startswith("told held"), (
                    "without a connection nobody can tell which program it runs"
                )
                assert Path(directory, "file").read_text() == ""
            else:  # the signal ends the call, and the block is left: that does not spare it
                assert told.startswith("told reaped "), told
                assert told.endswith(" in hang_of_the_worker")
    finally:
        shutil.rmtree(directory)


NOT_FOR_US = (
    IMPORTED
    + """
import aiotimer
aiotimer.configure()
if os.fork() == 0:
    BECOMES_NOBODY
    for _ in range(3):
        with expires(60, "s"):
            pass
    say("goes on", aiotimer.TimerClient().connected)
    os._exit(0)
os.wait()
"""
)


def test_fault_64_who_cannot_be_watched_any_more_is_told_what_to_do() -> None:
    """Its parent was configured as root, whose server serves root."""
    changes = BECOMES_NOBODY.strip().replace("\n", "\n    ")
    with spawn_worker(NOT_FOR_US.replace("BECOMES_NOBODY", changes), None) as worker:
        assert worker.wait() == 0, worker.output
        assert "goes on False" in worker.lines
        (told,) = [line for line in worker.lines if "not being watched" in line]
        assert f"it is not for uid {NOBODY}: a process that changes its uid calls configure() after" in told


MASTER = """
import os
from aiotimer.client.control import ping
from aiotimer import configure, expires

CONFIGURED
for _ in range(3):
    if not os.fork():
        BECOMES_NOBODY
        configure(unavailable="raise")
        with expires(60, "s"):
            os.write(1, b"server %d\\n" % ping(os.environ["AIOTIMER_SOCKET"]).pid)
            os.read(0, 1)
        os._exit(0)
for _ in range(3):
    os.wait()
"""


def open_to_all(directory: Path) -> list[str]:
    """Return a command prefix under which everybody may run this interpreter, wherever it lies.

    It is a mount namespace in which directories that are closed have an open one laid over them.
    """
    needed = [Path(sys.executable), Path(sys.executable).resolve(), Path(aiotimer.__file__).resolve()]
    ways = {parent for path in needed for parent in path.parents}
    lines = ["set -e", f"mount -t tmpfs none {directory}"]
    for count, way in enumerate(sorted(way for way in ways if not way.stat().st_mode & stat.S_IXOTH)):
        upper, work = f"{directory}/{count}-upper", f"{directory}/{count}-work"
        layers = f"lowerdir={way},upperdir={upper},workdir={work}"
        lines += [f"mkdir {upper} {work}", f"mount -t overlay -o {layers} overlay {way}", f"chmod 755 {way}"]
    prefix = ["unshare", "--mount", "sh", "-c", "\n".join([*lines, 'exec "$0" "$@"'])]
    permitted = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if permitted.returncode:
        pytest.skip(f"not permitted here: {permitted.stderr}")
    return prefix


@pytest.mark.parametrize("configured", ["configure()", "pass"], ids=["preloaded", "not preloaded"])
def test_fault_64_workers_that_change_their_uid_share_a_private_server_of_their_user(configured: str) -> None:
    """As gunicorn's with ``--user``. What their master exported is root's, and not for them."""
    source = MASTER.replace("CONFIGURED", configured)
    source = source.replace("BECOMES_NOBODY", BECOMES_NOBODY.strip().replace("\n", "\n        "))
    with short_directory() as directory:
        code = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
        command = [*open_to_all(directory), sys.executable, "-c", source]
        with spawn_worker(code, None, *command) as master:
            servers = {master.wait_line("server ") for _ in range(3)}
            assert len(servers) == 1, master.output
            master.say("...")
            assert master.wait() == 0, master.output
            assert not [text for text in master.lines if "watched" in text]


# -- capabilities ------------------------------------------------------------------------------------------

CAP_KILL, CAP_SYS_PTRACE = 5, 19  # include/uapi/linux/capability.h


def test_a_server_of_roots_keeps_the_capabilities_it_needs() -> None:
    """And no more; with them it reaps a worker that has given up root, and sees it execute."""
    mask = 1 << CAP_KILL | 1 << CAP_SYS_PTRACE
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


def test_a_server_of_roots_is_preferred_to_what_it_watches() -> None:
    """The commands that it runs for events are not."""
    command = "sh -c 'cat >/dev/null; nice >&2'"
    with short_socket() as path, served(path, "--reap", "KILL", "--on-event", command) as server:
        assert os.getpriority(os.PRIO_PROCESS, server.pid) == PRIORITY
        with spawn_worker(program("with", "ctypes.PyDLL(None).sleep(1000)"), path) as worker:
            assert worker.wait() == -signal.SIGKILL
        server.wait_line("0")


def test_who_may_not_be_preferred_is_no_failure() -> None:
    without_rights = f"""
        import os, resource
        from aiotimer.server.rights import raise_priority
        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        os.setuid({NOBODY})
        print("preferred:", raise_priority())
    """
    with spawn_worker(without_rights, None) as server:
        server.wait_line("preferred: False")
        assert server.wait() == 0


@contextlib.contextmanager
def served(path: str, *options: str) -> Iterator[SpawnedWorker]:
    with spawn_worker(
        "import sys; from aiotimer.cli import main; sys.exit(main())", path, "serve", *options
    ) as server:
        server.wait_line("serving on")
        yield server
