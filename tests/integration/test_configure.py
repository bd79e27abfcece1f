"""``configure``: an object, a path, the environment, a private server, and back.

Each test runs in a process of its own, because what is configured is the process. The private server is a
real one: started, killed, found by ``status --all``, and gone when nobody needs it.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer.client.control import ping
from aiotimer.server.server import OwnedServer
from tests.fakes.clock import PATIENCE
from tests.fakes.places import private_runtime
from tests.fakes.server import ServerThread
from tests.fakes.worker import environment, parent_of, wait_dead
from tests.unit.test_structure import not_for_a_synchronous_worker


@pytest.fixture(autouse=True)
def _own_runtime() -> Iterator[None]:
    with private_runtime():
        yield


def run(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    prelude = "import asyncio, os, sys, time, aiotimer\nfrom aiotimer import expires, configure\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True, text=True, timeout=PATIENCE, env=environment(**more), check=False,
    )  # fmt: skip


def start(code: str) -> subprocess.Popen[str]:
    """Start a program that talks over pipes."""
    prelude = "import asyncio, os, sys, time, aiotimer\nfrom aiotimer import expires, configure\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


@pytest.mark.parametrize(
    "block",
    [
        "with expires(after=5): pass",
        "asyncio.run(main())",
        "expires(after=5)(lambda: None)()",
    ],
)
def test_nothing_configured_is_an_error_that_says_what_to_do(block: str) -> None:
    result = run(f"async def main():\n    async with expires(after=5): pass\n{block}")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("aiotimer.errors.NotConfigured: ")
    assert "aiotimer.configure()" in last
    assert "aiotimer run" in last


def test_a_process_is_called_what_it_says() -> None:
    with ServerThread() as server:
        path = server.path
        ask = f"import aiotimer.client.control as c; print(c.status({path!r})['workers'][0]['name'])\n"
        named = run(f"configure({path!r}, name='a\\x1b[2J' + 'b' * 100)\n{ask}", RANK="3")
        assert named.stdout == f"a\\x1b[2J{'b' * 59}\n", named.stderr
        ranked = run(f"configure({path!r})\n{ask}configure({path!r}, name=7)", RANK="3", WORLD_SIZE="8")
        assert ranked.stdout == "rank 3/8\n"
        assert "TypeError: name must be a str, not int" in ranked.stderr


def test_a_process_says_which_member_it_is_of_which_run() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "4711", "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}
    with ServerThread() as server:
        path = server.path
        ask = f"""
import aiotimer.client.control as c
worker = c.status({path!r})["workers"][0]
print([worker[key] for key in ("group", "rank", "size")])
"""
        found = run(f"configure({path!r})\n{ask}", **torchrun)
        assert found.stdout == "['4711', 3, 8]\n", found.stderr
        named = f"{ask}print(worker['name'])"
        told = run(f"configure({path!r}, group='a b', rank=0, size=2)\n{named}", **torchrun)
        assert told.stdout == "['a b', 0, 2]\nrank 0/2\n", told.stderr
        partly = run(f"configure({path!r}, rank=5)\n{named}", **torchrun)
        assert partly.stdout == "['4711', 5, 8]\nrank 5/8\n", partly.stderr
        nothing = run(f"configure({path!r})\n{ask}")
        assert nothing.stdout == "['', None, None]\n", nothing.stderr
        wrong = run(f"try: configure({path!r}, rank=2, size=2)\nexcept ValueError as e: print(e)")
        assert wrong.stdout == "rank 2 is none of a run of 2: ranks begin with 0\n", wrong.stderr


def test_the_environment_is_enough_without_configure() -> None:
    with ServerThread() as server:
        result = run(
            "with expires(after=600, scope='s'):\n"
            "    from aiotimer.client.control import status\n"
            "    print(status(os.environ['AIOTIMER_SOCKET'])['workers'][0]['timers'][0]['scope'])",
            AIOTIMER_SOCKET=server.path,
        )
    assert (result.stdout, result.stderr) == ("s\n", "")


def test_a_path_and_an_object_and_none() -> None:
    with ServerThread() as first, ServerThread() as second:
        result = run(
            f"a = configure({first.path!r})\n"
            f"b = aiotimer.TimerClient({second.path!r})\n"
            "block = expires(after=600, scope='old')\n"
            "block.__enter__()\n"
            "assert configure(b) is b\n"
            "with expires(after=600, scope='new'):\n"
            "    table = b._queue.table\n"
            "    assert [k for k, p in table.pools.items() if not p] == ['new']\n"
            "block.__exit__(None, None, None)\n"
            "assert configure(None) is None\n"
            "try:\n"
            "    with expires(after=5): pass\n"
            "except aiotimer.NotConfigured: print('undone')\n"
        )
    assert (result.stdout, result.stderr) == ("undone\n", "")


@pytest.mark.parametrize("policy", ["raise", "warn", "ignore"])
def test_a_path_where_nobody_listens_follows_the_policy(policy: str, tmp_path: Path) -> None:
    result = run(
        f"client = aiotimer.TimerClient({str(tmp_path / 's')!r}, unavailable={policy!r})\n"
        "configure(client)\n"
        "with expires(after=5): print('inside')\n"
        "with expires(after=5): print('again')\n"
    )
    if policy == "raise":
        assert "ServerUnavailable" in result.stderr
        assert result.stdout == ""
    else:
        assert result.stdout == "inside\nagain\n"
        assert result.stderr.count("not being watched") == (policy == "warn")


# -- what it costs a worker --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["", "PATH", "aiotimer.TimerClient(PATH, shared=False, budget=30)"],
    ids=["private", "path", "socket"],
)
def test_a_synchronous_worker_loads_neither_a_loop_nor_the_server(arguments: str) -> None:
    with ServerThread() as server:
        program = (
            "import json, sys, time\n"
            "before = set(sys.modules)\n"
            "import aiotimer\n"
            f"PATH = {server.path!r}\n"
            f"client = aiotimer.configure({arguments})\n"
            "after = set(sys.modules)\n"
            "client.connect(30)\n"  # what a block has time for depends on the machine
            "with aiotimer.expires(after=600) as block: block.renew()\n"
            "client.acquire('s', time.monotonic() + 600)\n"
            "client.release('s')\n"
            "assert client.connected\n"
            "aiotimer.configure(None)\n"
            "print(json.dumps([sorted(after - before), sorted(set(sys.modules) - after)]))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    configuring, afterwards = json.loads(result.stdout)
    assert "aiotimer.client.configure" in configuring
    assert not not_for_a_synchronous_worker(configuring)
    assert not not_for_a_synchronous_worker(afterwards)


# -- the private server ------------------------------------------------------------------------------


def test_a_private_server_reaps_its_owner_and_says_so() -> None:
    result = run("configure()\nwith expires(after=0.2, scope='stuck'): time.sleep(600)")
    assert result.returncode == -signal.SIGKILL
    assert "reaped pid=" in result.stderr
    assert 'scope="stuck"' in result.stderr


def test_a_private_server_is_nobodys_child_and_has_its_own_session() -> None:
    result = run(
        "configure()\n"
        "from aiotimer.client.control import ping\n"
        "pid = ping(os.environ['AIOTIMER_SOCKET']).pid\n"
        "try: os.wait()\n"
        "except ChildProcessError: print('no child')\n"
        "print(os.getsid(pid) != os.getsid(0), os.getpgid(pid) != os.getpgid(0))\n"
    )
    assert (result.stdout, result.stderr) == ("no child\nTrue True\n", "")


def test_descendants_find_it_and_status_all_shows_it() -> None:
    result = run(
        "import json, subprocess\n"
        "configure()\n"
        "code = 'import aiotimer as a; a.configure(); print(a.client.clients.default.client.path)'\n"
        "child = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "assert child.stdout.strip() == os.environ['AIOTIMER_SOCKET'], child\n"
        "every = subprocess.run([sys.executable, '-m', 'aiotimer', 'status', '--all', '--json'],"
        " capture_output=True, text=True, env={**os.environ, 'AIOTIMER_SOCKET': ''})\n"
        "print(os.environ['AIOTIMER_SOCKET'] in [r['server']['socket'] for r in json.loads(every.stdout)])\n"
    )
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_it_is_restarted_when_it_dies_and_keeps_its_timers() -> None:
    program = start(
        "configure()\n"
        "with expires(after=600, scope='kept'):\n"
        "    print(os.environ['AIOTIMER_SOCKET'], flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        path = program.stdout.readline().strip()
        first = ping(path).pid
        os.kill(first, signal.SIGKILL)
        wait_dead(first)
        code = (
            "import sys\nfrom aiotimer.client.control import status\nfrom aiotimer import ServerUnavailable\n"
            "while True:\n"
            "    try: report = status(sys.argv[1])\n"
            "    except ServerUnavailable: continue\n"
            "    if report['workers']: break\n"
            "print(report['workers'][0]['timers'][0]['scope'], report['server']['pid'])"
        )
        seen = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        scope, pid = seen.stdout.split()
        assert scope == "kept"
        assert int(pid) != first
        program.stdin.close()
        assert program.wait(PATIENCE) == 0


def test_it_ends_and_leaves_nothing_when_its_owner_is_gone() -> None:
    program = start(
        "import functools\n"
        "from aiotimer.client import launch\n"
        "start = launch.start_private_server\n"
        "launch.start_private_server = lambda path: start(path, ('--idle-before-end', '1'))\n"
        "configure()\n"
        "print(os.environ['AIOTIMER_SOCKET'], flush=True)\n"
        "sys.stdin.readline()"
    )
    with program:
        assert program.stdout is not None
        assert program.stderr is not None
        pid = ping(program.stdout.readline().strip()).pid
        supervisor = parent_of(pid)
        program.kill()
        # Its owner's standard error is let go of at once, before it ends.
        assert program.stderr.read() == ""
    wait_dead(pid)
    wait_dead(supervisor)
    assert list(Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer").iterdir()) == []


def test_it_lives_for_ten_seconds_without_a_worker_unless_it_is_told_otherwise() -> None:
    assert inspect.signature(OwnedServer).parameters["idle_before_end"].default == 10.0


def test_fault_74_a_ladder_that_is_none_is_refused_at_the_call_and_the_next_one_is_taken() -> None:
    result = run("""
for make in (configure, lambda **reap: aiotimer.TimerClient("/nowhere", **reap)):
    try:
        make(reap="dump,FOO")
    except ValueError as error:
        print(error)
print("AIOTIMER_SOCKET" in os.environ)
print(configure(reap="dump,TERM:1s,KILL").connected)
""")
    no_step = "'FOO' is no step: write 'dump', or a signal that can end a process, such as TERM:10"
    assert result.stdout.splitlines() == [no_step, no_step, "False", "True"]
    assert result.stderr == ""


def test_configure_none_undoes_the_export() -> None:
    result = run(
        "configure()\n"
        "assert os.environ['AIOTIMER_SOCKET']\n"
        "configure(None)\n"
        "print('AIOTIMER_SOCKET' in os.environ)\n"
    )
    assert (result.stdout, result.stderr) == ("False\n", "")


@pytest.mark.parametrize("factory", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
def test_configure_in_a_running_loop_waits_for_nothing(factory: str, fifo: Path) -> None:
    """The server does not start before the loop has turned a few times in the first block."""
    result = run(
        "import contextlib, uvloop\n"
        "from aiotimer.client.control import status\n"
        "async def main():\n"
        "    client = configure()\n"
        "    async with expires(after=600, scope='first'):\n"
        "        print(client.connected)\n"
        "        while not client.connected:\n"
        "            with contextlib.suppress(OSError):  # nobody is there to read yet\n"
        f"                os.close(os.open({str(fifo)!r}, os.O_WRONLY | os.O_NONBLOCK))\n"
        "            await asyncio.sleep(0.001)\n"
        "        print(status(os.environ['AIOTIMER_SOCKET'])['workers'][0]['timers'][0]['scope'])\n"
        f"with asyncio.Runner(loop_factory={factory}) as runner: runner.run(main())\n"
    )
    assert (result.stdout, result.stderr) == ("False\nfirst\n", "")


def test_modules_of_the_current_directory_do_not_reach_the_server(tmp_path: Path) -> None:
    for name in ("queue", "socket", "click", "uvloop", "aiotimer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')\n")
    result = subprocess.run(
        [sys.executable, "-P", "-c", "import aiotimer, os\naiotimer.configure()\nprint('fine')"],
        capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("fine\n", "")
