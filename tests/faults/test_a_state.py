"""Faults 6 and 7: whatever lies in the state directory, and memory that runs out.

The laws of this file:

* A server starts whatever it finds, says one line about each thing it ignores or removes, and adopts the
  tables beside it. It signals nobody for what it found. Only a newer layout stops it: exit status 78.
* A full tmpfs costs newcomers an error. It costs nobody who is there anything: no SIGBUS, no lost timer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from aiotimer import TimerRequest
from aiotimer._core import layout
from aiotimer._linux.paths import NOTES, state_directory
from aiotimer._linux.procfs import program_of, start_time
from aiotimer.errors import NewerLayout
from tests.fakes.clock import PATIENCE, clock_passes
from tests.fakes.interruptions import collector_rests
from tests.fakes.places import open_descriptors, short_directory, short_socket
from tests.fakes.server import ServerProcess, WatchfulServer, serving
from tests.fakes.worker import (
    AIOTIMER,
    HANGS,
    PRELUDE,
    SpawnedWorker,
    bystander,
    environment,
    is_alive,
    program,
    spawn_worker,
)

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


# -- fault 6 --------------------------------------------------------------------------------------------


def table(
    path: Path, deadline: float = 1.0, version: int = layout.LAYOUT_VERSION, program: float = 0.0
) -> None:
    """Write a table whose first slot is armed: whoever took it over would reap at once."""
    with path.open("wb") as file:
        file.truncate(layout.TABLE_SIZE)
        file.write(layout.header().replace(b"\1\0\0\0", version.to_bytes(4, "little"), 1))
        file.seek(8 * layout.PROMISE)
        file.write(layout.server_line(0.0, 0.0))
        file.seek(8 * layout.PROGRAM)
        file.write(layout.word(program))
        file.seek(8 * layout.HIGH_WATER)
        file.write(layout.word(16.0))
        file.seek(layout.deadline_offset(0))
        file.write(layout.word(deadline))
        file.seek(layout.label_offset(0))
        file.write(layout.encode_label(b"planted", 0))


def name_of(pid: int, *, boot: str = BOOT, started: int | None = None, inode: int | None = None) -> str:
    """Return the name of a shared table of a process: its true one, but for what is given."""
    pidfd = os.pidfd_open(pid)
    facts = os.fstat(pidfd)
    os.close(pidfd)
    started = start_time(pid) if started is None else started
    return f"{boot}-{pid}-{started}-{facts.st_ino if inode is None else inode}-7.shared"


def a_dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def truncated(path: Path, size: int) -> None:
    table(path)
    os.truncate(path, size)


def unreadable(path: Path) -> None:
    table(path)
    path.chmod(0)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(path.parent):
        listener.bind(path.name)


def garbage(path: Path) -> None:
    table(path)
    with path.open("r+b") as file:
        file.seek(layout.SNAPSHOT_OFFSET)
        file.write(os.urandom(65_536))


Plant = Callable[[Path, int], object]
"""``plant(directory, pid)``: put something into a state directory; the pid is a living process's."""

REMOVED: dict[str, Plant] = {
    "of another boot": lambda d, pid: table(d / name_of(pid, boot="01234567")),
    "of a dead process": lambda d, pid: table(d / f"{BOOT}-{a_dead_pid()}-12345-678-0.shared"),
    "of another start time": lambda d, pid: table(d / name_of(pid, started=start_time(pid) - 1)),
    "of another pidfd": lambda d, pid: table(d / name_of(pid, inode=12345)),
    "of a thread's number": lambda d, pid: table(d / f"{BOOT}-{a_threads_number()}-12345-678-0.shared"),
    "of pid 0": lambda d, pid: table(d / f"{BOOT}-0-0-0-0.shared"),
    "empty": lambda d, pid: (d / name_of(pid)).touch(),
    "truncated in the header": lambda d, pid: truncated(d / name_of(pid), 12),
    "truncated after the header": lambda d, pid: truncated(d / name_of(pid), 5000),
    "too short": lambda d, pid: truncated(d / name_of(pid), layout.TABLE_SIZE - 1),
    "without the magic": lambda d, pid: (d / name_of(pid)).write_bytes(bytes(layout.TABLE_SIZE)),
    "of an older layout": lambda d, pid: table(d / name_of(pid), version=0),
}
IGNORED: dict[str, Plant] = {
    "a foreign file": lambda d, pid: (d / "notes.txt").write_text("mine"),
    "a foreign file with a strange name": lambda d, pid: (d / "a\nb\x1b[31m\udcff").write_text("mine"),
    "an almost right name": lambda d, pid: table(d / name_of(pid).replace("-7.", "-7x.")),
    "a pid that is none": lambda d, pid: table(d / f"{BOOT}-{10**20}-1-1-0.shared"),
    "a directory": lambda d, pid: (d / "directory").mkdir(),
    "a directory with a table's name": lambda d, pid: (d / name_of(pid)).mkdir(),
    "a link": lambda d, pid: (d / "link").symlink_to("/etc/passwd"),
    "a link with a table's name": lambda d, pid: (d / name_of(pid)).symlink_to("/dev/zero"),
    "a link to itself": lambda d, pid: (d / name_of(pid)).symlink_to(name_of(pid)),
    "a FIFO": lambda d, pid: os.mkfifo(d / "fifo"),
    "a FIFO with a table's name": lambda d, pid: os.mkfifo(d / name_of(pid)),
    "a socket with a table's name": lambda d, pid: listening(d / name_of(pid)),
}


def a_threads_number() -> int:
    """Return the number of a thread that is no process: one of this process will do."""
    ready, done = threading.Event(), threading.Event()

    def stay() -> None:
        ready.set()
        done.wait(PATIENCE)

    thread = threading.Thread(target=stay, daemon=True)
    thread.start()
    ready.wait(PATIENCE)
    assert thread.native_id is not None
    return thread.native_id


@contextlib.contextmanager
def state_of(path: str) -> Iterator[Path]:
    """The state directory of a socket that nobody serves, to plant things in."""
    directory = state_directory(path)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def assert_it_starts(
    path: str, directory: Path, pid: int, caplog: pytest.LogCaptureFixture
) -> list[str]:
    """A server starts, adopts the good table that is there, and harms nobody; return its log's lines."""
    good = directory / f"{name_of(pid).replace('-7.', '-8.')}"
    later = monotonic() + 0.4
    table(good, deadline=monotonic() + 1000)
    caplog.set_level(logging.INFO, logger="aiotimer")
    with collector_rests():  # so that counting twice does not walk all that the process has
        before = open_descriptors()
        async with serving(path) as server:
            assert server.armed(pid) == {"planted": pytest.approx(monotonic() + 1000, abs=PATIENCE)}
            await server.pass_by(later)
            assert is_alive(pid)
            assert pid not in server.acted
            assert [event.event for event in server.all_told("adopted")] == ["adopted"]
        assert open_descriptors() <= before
    good.unlink()
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith(("ignoring", "removing"))]


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("what", REMOVED)
async def test_fault_06_tables_of_nobody_are_removed(what: str, caplog: pytest.LogCaptureFixture) -> None:
    with short_socket() as path, state_of(path) as directory, bystander() as pid:
        REMOVED[what](directory, pid)
        lines = await assert_it_starts(path, directory, pid, caplog)
        assert len(lines) == 1
        assert lines[0].startswith("removing")
        assert list(directory.glob("*-*")) == []


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("what", IGNORED)
async def test_fault_06_what_is_no_table_is_left_alone(what: str, caplog: pytest.LogCaptureFixture) -> None:
    with short_socket() as path, state_of(path) as directory, bystander() as pid:
        IGNORED[what](directory, pid)
        (planted,) = (entry for entry in directory.iterdir() if entry.name not in NOTES)
        lines = await assert_it_starts(path, directory, pid, caplog)
        assert len(lines) == 1
        assert lines[0].startswith("ignoring")
        assert lines[0].isprintable()
        assert planted.lstat()


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("slots", ["random", "nan", "inf", "1e300", "-5.0", "65537.0", "0.5", "16.0"])
@pytest.mark.parametrize("kind", ["shared", "owner", "socket"])
async def test_fault_06_a_table_full_of_random_bytes(kind: str, slots: str) -> None:
    """Its worker is alive and the same one. Whatever stands in there can harm that one only."""
    with short_socket() as path, state_of(path) as directory, bystander() as pid, bystander() as victim:
        planted = directory / name_of(victim).replace(".shared", f".{kind}")
        garbage(planted)
        if slots != "random":
            with planted.open("r+b") as file:
                file.seek(8 * layout.HIGH_WATER)
                file.write(layout.word(float(slots)))
        table(directory / name_of(pid), deadline=monotonic() + 1000)
        async with serving(path) as server:
            await server.told("adopted", pid)
            await server.pass_by(monotonic())
            assert is_alive(pid)
            server.register_timers([TimerRequest(pid, "s", 0.0)])
            await server.told("reaped", pid)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("plant", ["fifo", "link", "unreadable"])
async def test_fault_06_the_note_in_the_directory(plant: str) -> None:
    """The file that names the socket may be anything, too: nobody waits for a FIFO, or follows a link."""
    with short_directory() as elsewhere, short_socket() as path, state_of(path) as directory:
        note, target = directory / "socket", elsewhere / "target"
        note.unlink()
        target.write_text("precious")
        if plant == "fifo":
            os.mkfifo(note)
        elif plant == "link":
            note.symlink_to(target)
        else:
            note.write_text("something else")
            note.chmod(0)
        async with serving(path):
            assert note.read_text() == path
        assert target.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_fault_06_an_unreadable_table_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with short_socket() as path, state_of(path) as directory, bystander() as pid:
        unreadable(directory / name_of(pid))
        lines = await assert_it_starts(path, directory, pid, caplog)
        assert len(lines) == 1


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_fault_06_a_table_that_cannot_be_opened(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root, the kernel's refusal is played: EACCES when it is opened."""
    with short_socket() as path, state_of(path) as directory, bystander() as pid:
        planted = directory / name_of(pid)
        table(planted)
        really_open = os.open

        def refusing(file: str | Path, *arguments: int, **options: int) -> int:
            if file == planted:
                raise PermissionError(13, "Permission denied", str(file))
            return really_open(file, *arguments, **options)

        monkeypatch.setattr(os, "open", refusing)
        lines = await assert_it_starts(path, directory, pid, caplog)
        assert len(lines) == 1
        assert "Permission denied" in lines[0]
        assert planted.exists()


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_fault_06_a_table_for_which_there_is_no_descriptor_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """That says nothing about the table: it is tried again, and what has expired meanwhile is reaped."""
    with short_socket() as path, state_of(path) as directory, bystander() as pid, bystander() as other:
        table(directory / name_of(pid), program=float(program_of(pid)))
        table(directory / name_of(other), deadline=monotonic() + 1000)
        server = WatchfulServer(path)
        really_pin = "aiotimer.server.registry.pin"
        with monkeypatch.context() as patch:
            patch.setattr(really_pin, out_of_descriptors)
            await server.start()
        try:
            assert server.status()["workers"] == []
            assert (await server.told("reaped", pid)).scope == "planted"
            await server.told("adopted", other)
            assert is_alive(other)
        finally:
            await server.stop()


def out_of_descriptors(_pid: int) -> None:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("name", ["of a living process", "by any name"])
def test_fault_06_a_newer_layout_is_not_touched(name: str) -> None:
    """The server does not start, and says so: exit status 78. What it found stays as it was."""
    with short_socket() as path, state_of(path) as directory, bystander() as pid:
        newer = directory / ((name_of(pid) if name == "of a living process" else "table") + ".v2")
        table(newer, version=layout.LAYOUT_VERSION + 1)
        older = directory / f"{BOOT}-{a_dead_pid()}-12345-678-0.shared"
        table(older)
        content = newer.read_bytes()
        result = subprocess.run(
            [*AIOTIMER, "serve", "--socket", path],
            capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False,
        )  # fmt: skip
        assert result.returncode == NewerLayout.exit_code == 78
        assert result.stderr.startswith("aiotimer: ")
        assert "table layout 2" in result.stderr
        assert result.stderr.count("\n") == 1
        assert newer.read_bytes() == content
        assert older.exists(), "nothing was touched"
        assert not os.path.exists(path)
        assert is_alive(pid)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_fault_06_a_worker_that_writes_a_version_into_its_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The header is a worker's to spoil. The next server drops that table, and starts."""
    with short_socket() as path, state_of(path) as directory, bystander() as pid:
        planted = directory / name_of(pid)
        table(planted, version=layout.LAYOUT_VERSION + 1)
        lines = await assert_it_starts(path, directory, pid, caplog)
        assert len(lines) == 1
        assert not planted.exists()


# -- fault 7 --------------------------------------------------------------------------------------------

PAGE = 4096


@contextlib.contextmanager
def small_tmpfs(pages: int) -> Iterator[Path]:
    """Give this process and its children a runtime directory on a tmpfs of so many pages.

    Only root may mount. Others skip: a quota is nothing an unprivileged process can set up for itself.
    """
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("needs root, to mount a small tmpfs")
    with short_directory() as place:
        options = f"size={pages * PAGE},mode=700"
        made = subprocess.run([mount, "-t", "tmpfs", "-o", options, "none", place], capture_output=True)
        if made.returncode != 0:
            pytest.skip(f"cannot mount: {made.stderr.decode().strip()}")
        former = os.environ["XDG_RUNTIME_DIR"]
        os.environ["XDG_RUNTIME_DIR"] = str(place)
        try:
            yield place
        finally:
            os.environ["XDG_RUNTIME_DIR"] = former
            subprocess.run([umount, "-l", place], check=True)


def fill(place: Path) -> Path:
    """Use up every page that is left; return the file that holds them."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    return ballast


def free_pages(place: Path) -> int:
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize // PAGE


NEWCOMER = (
    PRELUDE
    + """
from aiotimer.client import mapped_table

def no_table():
    raise OSError("no memory")
mapped_table.create_unnamed_table = no_table
client = TimerClient(unavailable="raise", budget=30)
try:
    client.acquire("s", time.monotonic() + 1000)
    say("armed")
except ConnectionError as error:
    say(type(error).__name__, error)
"""
)


def test_fault_07_no_memory_for_another_table() -> None:
    """A newcomer's table is elsewhere, where no other server finds it. Who is there stays protected."""
    with small_tmpfs(64) as place, short_socket() as path, ServerProcess(path) as server:
        with spawn_worker(program("with", HANGS["gil"], after=7.0), path) as victim:
            deadline = float(victim.wait_line("deadline").split()[-1])
            ballast = fill(place)
            assert free_pages(place) == 0
            with spawn_worker(program("with", HANGS["gil"], after=0.3), path) as newcomer:
                assert newcomer.wait() == -signal.SIGKILL
                assert "deadline" in newcomer.output
            assert len(list(place.glob("aiotimer/*/*.shared"))) == 1, "nothing is left behind"
            assert server.armed(victim.pid) == {"victim": deadline}
            server.kill()
            server.start()  # on a full file system, too
            assert server.told("reaped", victim.pid)["scope"] == "victim"
            assert victim.wait() == -signal.SIGKILL
            ballast.unlink()


def test_fault_07_no_memory_for_another_table_anywhere() -> None:
    """A newcomer that can make no table, and whose server cannot either, gets an error that says so."""
    with small_tmpfs(64) as place, short_socket() as path, ServerProcess(path):
        ballast = fill(place)
        with spawn_worker(NEWCOMER, path) as newcomer:
            assert newcomer.wait() == 0
            assert newcomer.lines[0].startswith("Refused")
            assert "no memory left for another timer table" in newcomer.output
        assert not list(place.glob("aiotimer/*/*.shared")), "nothing is left behind"
        ballast.unlink()
        with spawn_worker(NEWCOMER, path) as newcomer:
            newcomer.wait_line("armed")
            assert newcomer.wait() == 0


GROWING = (
    PRELUDE
    + """
from aiotimer import TableFull

client = TimerClient(unavailable=sys.argv[1], budget=30)
client.acquire("first", time.monotonic() + 1000)
say("connected")
sys.stdin.readline()
armed = 1
try:
    while True:
        client.acquire(f"timer {armed}", time.monotonic() + 1000)
        armed += 1
except TableFull as error:
    say("full", armed, error)
try:
    with expires(60, "block", client):
        say("entered")
except TableFull as error:
    say("full too")
client.acquire("first", time.monotonic() + 500)  # what has a slot goes on
sys.stdin.readline()
client.acquire("soon", time.monotonic())
time.sleep(1000)
"""
)


def test_fault_07_no_memory_for_more_slots() -> None:
    """A table that cannot grow is an error for who wants one, never SIGBUS; what is armed stays armed."""
    with small_tmpfs(64) as place, short_socket() as path, ServerProcess(path) as server:
        with spawn_worker(GROWING, path, "raise") as worker:
            worker.wait_line("connected")
            ballast = fill(place)
            worker.say()
            full = worker.wait_line("full")
            assert "cannot grow" in full
            assert "No space left" in full
            worker.wait_line("full too")
            armed = int(full.split()[1])
            assert len(server.armed(worker.pid)) == armed
            ballast.unlink()
            worker.say()
            assert server.told("reaped", worker.pid)["scope"] == "soon"
            assert worker.wait() == -signal.SIGKILL


GOES_ON = (
    PRELUDE
    + """
logging.basicConfig(format="%(message)s", stream=sys.stdout)
client = TimerClient(unavailable=sys.argv[1], budget=30)
client.acquire("first", time.monotonic() + 1000)
say("connected")
sys.stdin.readline()
for number in range(5000):
    client.acquire(f"timer {number}", time.monotonic() + 1000)
with expires(60, "block", client) as block:
    block.renew(1000)
@expires(60, "another", client)
def decorated():
    async def main():
        async with expires(60, "third", client):
            say("went on")
    asyncio.run(main())
decorated()
sys.stdin.readline()
with expires(0.3, "watched", client):
    time.sleep(1000)
"""
)


@pytest.mark.parametrize("policy", ["warn", "ignore"])
def test_fault_07_who_does_not_want_an_error_goes_on_unwatched_and_is_told_once(policy: str) -> None:
    with small_tmpfs(64) as place, short_socket() as path, ServerProcess(path) as server:
        with spawn_worker(GOES_ON, path, policy) as worker:
            worker.wait_line("connected")
            ballast = fill(place)
            worker.say()
            worker.wait_line("went on")
            assert 0 < len(server.armed(worker.pid)) < 5000
            said = [line for line in worker.lines if "not every timer is being watched" in line]
            assert len(said) == (1 if policy == "warn" else 0)
            ballast.unlink()
            worker.say()
            assert server.told("reaped", worker.pid)["scope"] == "watched"
            assert worker.wait() == -signal.SIGKILL


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_fault_07_no_memory_for_the_servers_own_tables(caplog: pytest.LogCaptureFixture) -> None:
    """A launcher's timers, and a peer's without shared memory: an error for whom it concerns."""
    with small_tmpfs(64) as place, bystander() as pid, bystander() as other:
        async with serving() as server:
            server.register_timers([TimerRequest(pid, "kept", monotonic() + 1000)])
            fill(place)
            with pytest.raises(OSError, match="No space left"):
                server.register_timers([TimerRequest(other, "s", monotonic() + 1000)])
            assert server.armed(pid).keys() == {"kept"}
            server.register_timers([TimerRequest(pid, "kept", 0.0)])
            await server.told("reaped", pid)
            assert is_alive(other)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_fault_07_a_hole_in_the_servers_own_table(caplog: pytest.LogCaptureFixture) -> None:
    """A server maps its own tables: a page that is missing in one, on a full file system, would be SIGBUS."""
    with small_tmpfs(64) as place, short_socket() as path, bystander() as pid, bystander() as other:
        with state_of(path) as directory:
            table(directory / name_of(other), deadline=monotonic() + 1000)
            planted = directory / name_of(pid).replace(".shared", ".owner")
            table(planted, deadline=monotonic() + 1000)
            with planted.open("r+b") as file:
                file.truncate(layout.label_offset(0) - 4096)
                file.truncate(layout.TABLE_SIZE)
            fill(place)
            async with serving(path) as server:
                await server.told("adopted", other)
                assert server.armed(pid) == {}
        assert any("No space left" in record.getMessage() for record in caplog.records)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_fault_07_no_memory_for_the_state_directory() -> None:
    """It is elsewhere then."""
    with small_tmpfs(4) as place, short_socket() as path:
        (place / "aiotimer").mkdir(mode=0o700)
        subprocess.run(["mount", "-o", "remount,nr_inodes=2", place], check=True)
        async with serving(path) as server:
            assert place not in server._registry.directory.parents
            assert list(place.glob("aiotimer/*")) == []


SURVIVOR = (
    PRELUDE
    + """
client = TimerClient(unavailable="raise", budget=30)
client.acquire("before", float(sys.argv[1]))
say("armed")
sys.stdin.readline()
client.acquire("meanwhile", float(sys.argv[1]))
say("armed again")

def work():  # whoever goes on, notices sooner or later that its server is another one
    while True:
        with expires(4.0, "block", client):
            time.sleep(0.005)

threading.Thread(target=work, daemon=True).start()
for line in sys.stdin:
    client.acquire("soon", float(line))
    time.sleep(1000)
"""
)


def remove_state(runtime_directory: Path) -> None:
    for directory in (runtime_directory / "aiotimer").iterdir():
        shutil.rmtree(directory)


def test_fault_07_the_directory_is_removed_under_a_running_server(runtime_directory: Path) -> None:
    """Tables are open files: who is armed stays protected, and newcomers are told."""
    held = monotonic() + 1000
    with short_socket() as path, ServerProcess(path) as server, contextlib.ExitStack() as stack:
        worker = stack.enter_context(spawn_worker(SURVIVOR, path, repr(held)))
        worker.wait_line("armed")
        remove_state(runtime_directory)
        worker.say()
        worker.wait_line("armed again")
        timers = server.armed(worker.pid)
        assert (timers["before"], timers["meanwhile"]) == (held, held)
        worker.say(repr(monotonic()))
        assert server.told("reaped", worker.pid)["scope"] == "soon"
        assert worker.wait() == -signal.SIGKILL


def test_fault_07_the_next_server_takes_the_tables_over_from_the_clients(runtime_directory: Path) -> None:
    """Nothing is left for it to adopt. Each client offers its table's descriptor when it reconnects."""
    held = monotonic() + 1000
    with short_socket() as path, ServerProcess(path, bound=0.5) as server, contextlib.ExitStack() as stack:
        workers: list[SpawnedWorker] = [
            stack.enter_context(spawn_worker(SURVIVOR, path, repr(held + number))) for number in range(3)
        ]
        for worker in workers:
            worker.wait_line("armed")
        remove_state(runtime_directory)
        server.kill()
        for worker in workers:
            worker.say()
            worker.wait_line("armed again")
        server.start()
        until = monotonic() + PATIENCE
        for number, worker in enumerate(workers):
            while not (timers := server.armed(worker.pid)):
                assert monotonic() < until, "not taken over"
                clock_passes(monotonic() + 0.01)
            assert (timers["before"], timers["meanwhile"]) == (held + number, held + number)
        for worker in workers:
            worker.say(repr(monotonic()))
            assert server.told("reaped", worker.pid)["scope"] == "soon"
            assert worker.wait() == -signal.SIGKILL
