"""Faults 66 to 70: places that are taken away, foreign, missing, full, or somebody else's.

The laws of this file: whatever becomes of the directories, what is armed fires, and who comes later is
watched; nothing is made before what is there was found to be safe; nothing of ours is left where it does not
belong.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer._linux import paths
from aiotimer.errors import UnsafePath
from tests.fakes.places import private_runtime, short_directory
from tests.fakes.server import ServerProcess
from tests.fakes.worker import HANGS, PRELUDE, SpawnedWorker, program, spawn_worker

CONFIGURES = (
    PRELUDE
    + """
import aiotimer
client = aiotimer.configure()
say("connected", client.connected)
with expires(0.3, "s"):
    ctypes.PyDLL(None).sleep(1000)
"""
)

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root")


@pytest.fixture
def runtime() -> Iterator[Path]:
    with private_runtime() as path:
        yield path


def remove_at_once(path: Path) -> None:
    """Remove a directory, whoever makes it again meanwhile."""
    path.rename(path.with_name("removed"))
    shutil.rmtree(path.with_name("removed"))


def modes(path: Path) -> set[int]:
    """Return the modes of a directory and of all directories in it."""
    found = [path, *(entry for entry in path.rglob("*") if entry.is_dir())]
    return {stat.S_IMODE(entry.stat().st_mode) for entry in found}


# -- fault 65 ------------------------------------------------------------------------------------------

OBSERVED = (
    PRELUDE
    + """
with expires(1.0, "observed") as block:
    say("armed:", block.deadline)
    sys.stdin.readline()
say("left")
"""
)


def in_a_mount(place: Path, *options: str) -> tuple[str, ...]:
    """Return a command prefix: a mount namespace of its own, in which a directory is another file system."""
    prefix = ("unshare", "--mount", *options, "sh", "-c", f'mount -t tmpfs none {place}; exec "$@"', "sh")
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not permitted here: {getattr(error, 'stderr', error)}")
    return prefix


@ROOT
@pytest.mark.parametrize("kind", ["mount", "pid"])
def test_fault_65_the_same_path_is_another_place_in_another_namespace(runtime: Path, kind: str) -> None:
    """As ``PrivateTmp=`` has it: neither server takes over, or removes, what the other one's workers arm."""
    options = ("--pid", "--fork", "--kill-child", "--mount-proc") if kind == "pid" else ()
    launcher = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    with short_directory() as place:
        path = str(place / "s")
        serve = (sys.executable, "-m", "aiotimer", "serve", "--socket", path)
        with ServerProcess(path, observe=True) as server, spawn_worker(OBSERVED, path) as worker:
            worker.wait_line("armed: ")
            (table,) = runtime.rglob("*.shared")
            with spawn_worker(launcher, None, *in_a_mount(place, *options), *serve) as other:
                other.wait_line("serving on")
                server.told("observed", worker.pid)
                assert "adopted" not in other.output
            assert table.exists()
            server.kill()
            server.start()
            server.told("adopted", worker.pid)
            worker.say()
            worker.wait_line("left")
            assert worker.wait() == 0
        assert len([one for one in paths.state_directories() if runtime in one.parents]) == 2


# -- fault 66 ------------------------------------------------------------------------------------------


def test_fault_66_the_runtime_directory_is_removed_under_a_server(runtime: Path) -> None:
    """``RemoveIPC=``, a logout, or somebody who tidies up."""
    base = runtime / "aiotimer"
    path = str(base / "s")
    with (
        ServerProcess(path) as server,
        spawn_worker(program("with", HANGS["gil"], after=4.0), path) as victim,
    ):
        victim.wait_line("deadline")
        remove_at_once(base)
        with spawn_worker(PATIENT + program("with", HANGS["gil"]), path) as newcomer:
            assert newcomer.wait() == -signal.SIGKILL, newcomer.output
        assert victim.wait() == -signal.SIGKILL, victim.output
        assert server.told("reaped", newcomer.pid)["scope"] == "victim"
        assert modes(base) == {0o700}
        with spawn_worker(PRELUDE + "import aiotimer; say(aiotimer.configure().connected)", None) as program_:
            assert program_.wait_line("True")


PATIENT = """
import os, time
while not os.path.exists(os.environ["AIOTIMER_SOCKET"]):
    time.sleep(0.01)
"""


def test_fault_66_aiotimer_run_goes_on_where_it_was_removed(runtime: Path) -> None:
    code = (
        PRELUDE
        + """
path = os.environ["AIOTIMER_SOCKET"]
with expires(1000, "first"):
    pass
os.rename(os.path.dirname(path), os.path.dirname(path) + ".old")

while not os.path.exists(path):
    time.sleep(0.01)
with expires(0.3, "second"):
    time.sleep(1000)
"""
    )
    command = [sys.executable, "-m", "aiotimer", "run", "--quiet", "--", sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "AIOTIMER_SOCKET"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 124, done.stderr
    assert 'scope="second"' in done.stderr
    assert "was gone: this server listens there again" in done.stderr


def test_fault_66_where_it_was_removed_nothing_is_left_at_the_end(runtime: Path) -> None:
    code = (
        PRELUDE
        + """
import shutil
path = os.environ["AIOTIMER_SOCKET"]
with expires(1000):
    pass
shutil.rmtree(os.path.dirname(path))
while not os.path.exists(path):
    time.sleep(0.01)
with expires(1000):
    pass
"""
    )
    command = [sys.executable, "-m", "aiotimer", "run", "--", sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "AIOTIMER_SOCKET"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "was gone: this server listens there again" in done.stderr
    assert list((runtime / "aiotimer").iterdir()) == []


def test_fault_66_a_directory_of_ours_that_is_too_open_is_repaired(runtime: Path) -> None:
    base = runtime / "aiotimer"
    base.mkdir(mode=0o755)
    assert paths.base() == base
    assert modes(base) == {0o700}


def test_fault_66_all_that_is_missing_is_made_for_this_user_alone(runtime: Path) -> None:
    umask = os.umask(0)
    try:
        paths.make_directories(runtime / "a" / "b" / "c")
    finally:
        os.umask(umask)
    assert modes(runtime / "a") == {0o700}


# -- fault 67 ------------------------------------------------------------------------------------------


@ROOT
def test_fault_67_in_another_users_runtime_directory_nothing_is_left(runtime: Path) -> None:
    """``su`` without a dash: root has the other one's ``$XDG_RUNTIME_DIR``."""
    theirs = runtime / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 65_533, 65_533)
    code = CONFIGURES.replace("ctypes.PyDLL(None).sleep(1000)", "pass")
    with spawn_worker(code, None, env={"XDG_RUNTIME_DIR": str(theirs)}) as worker:
        assert worker.wait() == 0
        assert worker.lines == ["connected True"]
    assert list(theirs.iterdir()) == []


# -- faults 68 and 69 ----------------------------------------------------------------------------------


def unshared(script: str, *options: str, code: str = CONFIGURES) -> SpawnedWorker:
    """Run a program in namespaces of its own, after a script; skip if that is not permitted."""
    try:
        subprocess.run(["unshare", *options, "sh", "-c", script], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not permitted here: {getattr(error, 'stderr', error)}")
    launcher = "import os, sys; os.execvp('unshare', ['unshare', *sys.argv[1:]])"
    command = ("sh", "-c", f'{script}; exec "$0" -c "$1"', sys.executable, code)
    return spawn_worker(launcher, None, *options, *command)


@pytest.mark.parametrize("uid", [0, 1000])
def test_fault_68_a_user_namespace_that_maps_one_user(runtime: Path, uid: int) -> None:
    """As bubblewrap, apptainer and rootless containers make them: root's directories are nobody's there."""
    options = ("--user", f"--map-user={uid}", f"--map-group={uid}")
    with unshared("true", *options) as worker:
        assert worker.wait() == -signal.SIGKILL, worker.output
        assert "connected True" in worker.lines


PLACES = {
    "no /dev/shm": (
        "mkdir $DISK/dev; cp -a /dev/null /dev/zero /dev/random /dev/urandom $DISK/dev; "
        "mount --bind $DISK/dev /dev"
    ),
    "read-only": "mount -t tmpfs -o ro none /dev/shm",
    "full": "mount -t tmpfs -o size=4k none /dev/shm; head -c 4096 /dev/zero > /dev/shm/full",
    "on a disk": "mkdir $DISK/shm; mount --bind $DISK/shm /dev/shm",
}


@ROOT
@pytest.mark.parametrize("place", PLACES)
def test_fault_69_the_usual_memory_is_not_there(place: str) -> None:
    """Tables have no names then, in memory all the same, and are handed over by descriptor."""
    with short_directory() as disk:
        nowhere = f"DISK=$(mktemp -d -p {disk}); export XDG_RUNTIME_DIR=$DISK; mount -t tmpfs -o ro none /run"
        with unshared(f"{nowhere}; {PLACES[place]}", "--mount") as worker:
            assert worker.wait() == -signal.SIGKILL, worker.output
            assert "connected True" in worker.lines


LOSES_ITS_SERVER = (
    PRELUDE
    + """
import aiotimer
from aiotimer.client.control import ping
aiotimer.configure()
client = TimerClient(shared=SHARED, unavailable="raise", budget=30)
with expires(1.5, "s", client):
    os.kill(ping(os.environ["AIOTIMER_SOCKET"]).pid, signal.SIGKILL)
    ctypes.PyDLL(None).sleep(1000)
"""
)


@ROOT
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "socket"])
def test_fault_69_what_has_no_name_survives_its_server(shared: bool) -> None:
    """The worker hangs in C, holding the GIL: it cannot bring its table along. The supervisor has kept it."""
    with short_directory() as disk:
        nowhere = f"DISK=$(mktemp -d -p {disk}); export XDG_RUNTIME_DIR=$DISK; mount -t tmpfs -o ro none /run"
        script, code = f"{nowhere}; {PLACES['on a disk']}", LOSES_ITS_SERVER.replace("SHARED", repr(shared))
        with unshared(script, "--mount", code=code) as worker:
            assert worker.wait() == -signal.SIGKILL, worker.output
            worker.wait_line("reaped")


def test_fault_69_a_place_whose_path_is_too_long_for_a_socket() -> None:
    with private_runtime() as runtime:
        long = runtime / ("x" * 90)
        long.mkdir(mode=0o700)
        code = CONFIGURES.replace("ctypes.PyDLL(None).sleep(1000)", "pass")
        with spawn_worker(code, None, env={"XDG_RUNTIME_DIR": str(long)}) as worker:
            assert worker.wait() == 0
            assert worker.lines == ["connected True"]


@pytest.mark.parametrize("unavailable", ["raise", "warn", "ignore"])
def test_fault_69_no_place_at_all(unavailable: str) -> None:
    code = """
import aiotimer
from aiotimer._linux import paths
logging.basicConfig(format="%(message)s", stream=sys.stdout)
paths.bases = lambda: iter(())
client = aiotimer.configure(unavailable=sys.argv[1])
with expires(1000, "s"): pass
say("went on")
"""
    with spawn_worker(PRELUDE + code, None, unavailable) as worker:
        assert worker.wait() == (1 if unavailable == "raise" else 0), worker.output
        if unavailable == "raise":
            assert worker.lines[-1].startswith("aiotimer.errors.UnsafePath: no directory for the socket")
        else:
            said = [line for line in worker.lines if "not being watched: no directory for the socket" in line]
            assert len(said) == (1 if unavailable == "warn" else 0)
            assert worker.lines[-1] == "went on"


# -- fault 70 ------------------------------------------------------------------------------------------


@ROOT
def test_fault_70_a_name_that_somebody_else_has_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_directory() as directory:
        names = [directory / "ours", directory / "ours.1", directory / "ours.2"]
        names[0].mkdir()
        os.chown(names[0], 65_533, 65_533)
        names[1].symlink_to("/tmp")
        monkeypatch.setattr(paths, "bases", lambda: iter(names))
        assert paths.base() == names[2]
        assert modes(names[2]) == {0o700}
        monkeypatch.setattr(paths, "bases", lambda: iter(names[:2]))
        with pytest.raises(UnsafePath, match=r"belongs to uid 65533, not to 0; .* is not a directory"):
            paths.base()
