"""Faults 61 to 63: who starts a private server, when, and for whom.

The laws of this file: a program whose private server has gone has another one; nothing is started that is not
known to be a Python; a tree of processes has one private server.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer._linux.paths import PRIVATE
from tests.fakes.places import private_runtime
from tests.fakes.worker import PRELUDE, SpawnedWorker, parent_of, spawn_worker, wait_dead


@pytest.fixture(autouse=True)
def _own_runtime() -> Iterator[None]:
    with private_runtime():
        yield


def end_server(pid: int) -> None:
    """End a private server, its supervisor first, as the end of their container might."""
    for victim in (parent_of(pid), pid):
        os.kill(victim, signal.SIGKILL)
        wait_dead(victim)


# -- fault 61 ------------------------------------------------------------------------------------------

DAEMON = """
import aiotimer
from aiotimer.client.control import ping
aiotimer.configure()
say("server", ping(os.environ["AIOTIMER_SOCKET"]).pid)
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    "block",
    [
        'with expires(0.5, "late"): time.sleep(1000)\n',
        'async def main():\n    async with expires(0.5, "late"): time.sleep(1000)\nasyncio.run(main())\n',
        'async def main():\n    with expires(0.5, "late"): time.sleep(1000)\nasyncio.run(main())\n',
        'TimerClient().acquire("late", time.monotonic() + 0.5); time.sleep(1000)\n',
    ],
    ids=["plain", "async with", "plain in a coroutine", "acquire"],
)
def test_fault_61_a_daemon_whose_private_server_has_ended_has_another(block: str) -> None:
    code = PRELUDE + DAEMON + "say('pid', os.getpid())\n" + block
    with spawn_worker(code, None) as worker:
        end_server(int(worker.wait_line("server ").split()[-1]))
        worker.say()
        daemon = int(worker.wait_line("pid ").split()[-1])
        wait_dead(daemon)  # nobody but a server of its own could have reaped it
        assert "late" in worker.wait_line("reaped")


def test_fault_61_a_program_whose_private_server_is_killed_in_a_block() -> None:
    """Its timers are in its table, which the next one gets."""
    code = """
import aiotimer
from aiotimer.client.control import ping
aiotimer.configure()
with expires(1000, "hangs"):
    say("server", ping(os.environ["AIOTIMER_SOCKET"]).pid)
    sys.stdin.readline()
    with expires(0.5, "notices"):
        time.sleep(1000)
"""
    with spawn_worker(PRELUDE + code, None) as worker:
        end_server(int(worker.wait_line("server ").split()[-1]))
        worker.say()
        assert worker.wait() == -signal.SIGKILL, worker.output


# -- fault 62 ------------------------------------------------------------------------------------------


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A program that is no Python; it notes that it has been started."""
    path = tmp_path / "application"
    path.write_text(f"#!/bin/sh\necho started >> {tmp_path}/started\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


CONFIGURES = """
import aiotimer
logging.basicConfig(format="%(message)s", stream=sys.stdout)
client = aiotimer.configure()
with expires(1000, "s"): pass
say("connected", client.connected)
"""


@pytest.mark.parametrize("how", ["frozen", "embedded"])
def test_fault_62_nothing_is_started_that_is_not_known_to_be_a_python(application: Path, how: str) -> None:
    lie = f"sys.executable = {str(application)!r}\nsys.exec_prefix = '/nowhere'\n"
    if how == "frozen":
        lie = f"sys.frozen = True\nsys.executable = {str(application)!r}\n"
    with spawn_worker(PRELUDE + lie + CONFIGURES, None) as worker:
        assert worker.wait() == 0, worker.output
        said, connected = worker.lines
        assert "timers are not being watched" in said
        assert "is none that can be started (set $AIOTIMER_PYTHON to" in said
        assert connected == "connected False"
    assert not application.with_name("started").exists()


@pytest.mark.parametrize("unavailable", ["raise", "ignore"])
def test_fault_62_the_policy_decides_what_becomes_of_it(unavailable: str) -> None:
    code = CONFIGURES.replace("configure()", f"configure(unavailable={unavailable!r})")
    with spawn_worker(PRELUDE + "sys.frozen = True\n" + code, None) as worker:
        assert worker.wait() == (1 if unavailable == "raise" else 0)
        if unavailable == "raise":
            assert worker.lines[-1].startswith("aiotimer.errors.ServerUnavailable: ")
        else:
            assert worker.lines == ["connected False"]


@pytest.mark.parametrize("how", ["frozen", "frozen, by name", "embedded"])
def test_fault_62_a_python_that_is_named_or_known_is_started(application: Path, how: str) -> None:
    """An interpreter that is embedded, as uWSGI's, has its Python beside its library."""
    env = {}
    lie = f"sys.executable = {str(application)!r}\n"
    if how.startswith("frozen"):
        lie += "sys.frozen = True\n"
        env = {"AIOTIMER_PYTHON": sys.executable, "LD_LIBRARY_PATH": "/nowhere"}
    if how.endswith("by name"):
        place, name = os.path.split(sys.executable)
        env |= {"AIOTIMER_PYTHON": name, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    with spawn_worker(PRELUDE + lie + CONFIGURES, None, env=env) as worker:
        assert worker.wait() == 0, worker.output
        assert worker.lines == ["connected True"]
    assert not application.with_name("started").exists()


# -- fault 63 ------------------------------------------------------------------------------------------

MASTER = """
from aiotimer.client.control import ping

def worker():
    import aiotimer
    aiotimer.configure()
    with expires(1000, "s"):
        say("server", ping(os.environ["AIOTIMER_SOCKET"]).pid)
        os.read(0, 1)
    os._exit(0)

for _ in range(4):
    if not os.fork():
        worker()
for _ in range(4):
    os.wait()
"""


def servers(worker: SpawnedWorker, count: int) -> set[str]:
    """Return the servers that so many processes say they have."""
    return {worker.wait_line("server ") for _ in range(count)}


def test_fault_63_the_workers_of_one_master_have_one_private_server() -> None:
    with spawn_worker(PRELUDE + MASTER, None) as worker:
        assert len(servers(worker, 4)) == 1, worker.output
        sockets = list(Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer").glob(f"{PRIVATE}*.sock"))
        assert len(sockets) == 1
        worker.say("1234")
        assert worker.wait() == 0
        assert not [line for line in worker.lines if "aiotimer:" in line], "nobody was told anything"


def test_fault_63_who_leaves_first_does_not_take_it_along() -> None:
    """The one that has started it undoes its ``configure()``; its sibling is watched as before."""
    code = """
import aiotimer, subprocess
from aiotimer.client.control import ping
sibling = \"\"\"
import os, sys, time, aiotimer
aiotimer.configure()
print("sibling", flush=True)
sys.stdin.readline()
with aiotimer.expires(0.3, "s"):
    time.sleep(1000)
\"\"\"
one, two = (
    subprocess.Popen([sys.executable, "-c", sibling], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(2)
)
assert one.stdout.readline() == two.stdout.readline() == b"sibling\\n"
one.stdin.close()
say("one", one.wait())
two.stdin.close()
say("two", two.wait())
"""
    with spawn_worker(PRELUDE + code, None) as worker:
        assert worker.wait() == 0, worker.output
        assert [line for line in worker.lines if not line.startswith("aiotimer:")] == ["one -9", "two -9"]


def test_fault_63_of_a_sibling_nothing_is_written_when_the_starter_has_ended() -> None:
    """Its standard error comes to its end, though the server that it has started lives on."""
    code = """
import subprocess
from aiotimer.client.control import ping
sibling = \"\"\"
import os, sys, time, aiotimer
aiotimer.configure()
print(os.environ["AIOTIMER_SOCKET"], flush=True)
sys.stdin.readline()
with aiotimer.expires(0.3, "s"):
    time.sleep(1000)
\"\"\"
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
one = subprocess.Popen([sys.executable, "-c", sibling], **pipes)
path = one.stdout.readline().strip()
two = subprocess.Popen([sys.executable, "-c", sibling], **pipes)
assert two.stdout.readline().strip() == path
server = ping(path).pid
one.kill()
say("starter", repr(one.stderr.read()))
assert ping(path).pid == server
two.stdin.close()
say("sibling", two.wait(), repr(two.stderr.read()))
"""
    with spawn_worker(PRELUDE + code, None) as worker:
        assert worker.wait() == 0, worker.output
        assert worker.lines == ["starter ''", "sibling -9 ''"]


def test_fault_63_children_of_a_shell_have_nothing_to_do_with_one_another() -> None:
    code = (
        PRELUDE
        + """
import aiotimer
aiotimer.configure()
say("at", os.path.basename(os.environ["AIOTIMER_SOCKET"]).count(":"))
"""
    )
    command = ["/bin/sh", "-c", '"$0" -c "$1"; "$0" -c "$1"', sys.executable, code]
    import subprocess

    env = {name: value for name, value in os.environ.items() if name != "AIOTIMER_SOCKET"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=True)
    assert done.stdout == "at 0\nat 0\n"
