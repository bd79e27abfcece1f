"""The plugin of pytest, as its users have it: pytest is a process of its own, and is really killed.

The laws of this file: what a test has is read from inside, as the deadline of its block, and not told from
how long something takes; only what hangs has a limit that passes.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.server import ServerThread
from tests.fakes.worker import environment

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def limits(pytestconfig):
    return pytestconfig.pluginmanager.get_plugin("aiotimer-limits")
"""
"""What holds the block of the test that is being carried out."""


INSTALLED = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""}
"""For a run with every plugin that is installed. It takes half as long again to start as one with ours."""


def run(directory: Path, text: str, *arguments: str, stdin: str = "", **more: str) -> Ran:
    """Run pytest on a module of tests, with our plugin, and xdist for ``-n``; or all (:data:`INSTALLED`)."""
    variables = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more}
    options, configuration = ["-p", "no:cacheprovider"], "[pytest]\n"
    if variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]:
        options += ["-p", "aiotimer.integrations.pytest_plugin"]
        options += ["-p", "xdist.plugin"] if "-n" in arguments else []
    else:
        options += ["-p", "no:hypothesispytest"]
        configuration += "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    (directory / "pytest.ini").write_text(configuration)
    if not (directory / "conftest.py").exists():
        (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        input=stdin, capture_output=True, text=True, cwd=directory, timeout=3 * PATIENCE, check=False,
        env=environment(**variables),
    )  # fmt: skip


Ran = subprocess.CompletedProcess[str]


def check_outcome(ran: Ran, outcome: str) -> None:
    """Check the last line of a session, durations apart: ``1 failed, 2 passed``."""
    last = ran.stdout.splitlines()[-1] if ran.stdout else ""
    assert re.sub(r" in [\d.]+s.*", "", last.strip("= ")) == outcome, f"{ran.stdout}\n{ran.stderr}"


# --- what hangs


def test_pytest_is_killed_and_its_terminal_names_the_test_and_the_line(tmp_path: Path) -> None:
    ran = run(tmp_path, """if True:
        import pytest, time
        def test_before():
            print("captured")
        @pytest.mark.aiotimer(0.5)
        def test_hangs():
            time.sleep(3600)
        """, "--aiotimer=60")  # fmt: skip
    assert ran.returncode == -signal.SIGKILL
    assert "aiotimer: 60 s for each test\n" in ran.stdout
    assert ran.stdout.endswith("test_it.py .")
    [line] = ran.stderr.splitlines()
    assert line.startswith("aiotimer: reaped pid=")
    assert ' scope="test_it.py::test_hangs" ' in line
    assert "test_it.py:7 in test_hangs" in line


HANGS = """if True:
    import asyncio, ctypes, os, time, pytest
    from aiotimer import expires
    pytestmark = pytest.mark.aiotimer(0.5)
    @pytest.fixture
    def at_set_up():
        time.sleep(3600)
    @pytest.fixture
    def at_teardown():
        yield
        time.sleep(3600)
    def test_set_up(at_set_up): pass
    def test_teardown(at_teardown): pass
    def test_native(): ctypes.PyDLL(None).sleep(3600)
    async def test_async(): await asyncio.Event().wait()
    @pytest.mark.aiotimer(60)
    def test_inner_block():
        with expires(0.5, "step"): time.sleep(3600)
    @pytest.mark.aiotimer(60)
    def test_dies_by_itself(): os._exit(3)
    @pytest.mark.aiotimer(60)
    def test_fine(): assert os.environ["AIOTIMER_SOCKET"]
"""


VERDICTS = {
    "test_set_up": "sleeps at test_it.py:7 in at_set_up",
    "test_teardown": "sleeps at test_it.py:11 in at_teardown",
    "test_native": "holding the GIL in native code, called at test_it.py:14 in test_native",
    "test_async": "awaiting (loop alive) an event, at test_it.py:15 in test_async",
    "test_inner_block": "sleeps at test_it.py:18 in test_inner_block",
}


@pytest.mark.parametrize(
    "names",
    [
        ("test_set_up", "test_teardown", "test_inner_block"),  # the call of test_teardown passes
        ("test_native", "test_async", "test_dies_by_itself", "test_fine"),
    ],
    ids=["blocks", "ends"],
)
def test_a_worker_of_xdist_is_killed_and_the_failure_says_why(names: tuple[str, ...], tmp_path: Path) -> None:
    chosen = ("-n", "2", "-k", " or ".join(names))
    ran = run(tmp_path, HANGS, *chosen, "--aiotimer=60", "--junitxml=report.xml", **INSTALLED)
    check_outcome(ran, "3 failed, 1 passed")
    failures = re.split(r"^worker '\w+' crashed while running ", ran.stdout, flags=re.MULTILINE)[1:]
    told = {re.findall(r"::(\w+)'", text)[0]: text.partition("\nevidence ")[0] for text in failures}
    assert told.keys() == {*names} - {"test_fine"}
    for name, text in told.items():
        if name == "test_dies_by_itself":
            assert "aiotimer" not in text.partition("= short test summary")[0]
            continue
        scope = "step" if name == "test_inner_block" else f"test_it.py::{name}"
        assert f"\nreaped by aiotimer: {VERDICTS[name]}" in text
        assert "- aiotimer why -" in text
        assert f' was reaped, in "{scope}" ' in text
        assert f"\nwhy       {VERDICTS[name]}" in text
    report = (tmp_path / "report.xml").read_text()
    assert len(re.findall(r">[^<]*reaped by aiotimer: ", report)) == len(VERDICTS.keys() & told)


def test_a_process_that_is_forked_for_a_test_is_killed_alone(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("""if True:
        import os
        from _pytest.runner import runtestprotocol
        def pytest_runtest_protocol(item):
            pid = os.fork()
            if not pid:
                runtestprotocol(item, log=False)
                os._exit(0)
            print(item.name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return True
        """)
    ran = run(tmp_path, """if True:
        import pytest, time
        def test_fine(): pass
        @pytest.mark.aiotimer(0.5)
        def test_hangs(): time.sleep(3600)
        """, "--aiotimer=60", "-s")  # fmt: skip
    assert re.findall(r"test_\w+ -?\d+", ran.stdout) == ["test_fine 0", "test_hangs -9"]
    assert ' scope="test_it.py::test_hangs" ' in ran.stderr


# --- what has which limit


def test_a_marker_says_more_than_the_option(tmp_path: Path) -> None:
    ran = run(tmp_path, """if True:
        import pytest
        def test_option(limits):
            assert 50 < limits._block.remaining() <= 60
            assert limits._block.scope == "test_it.py::test_option"
        @pytest.mark.aiotimer(30)
        def test_number(limits): assert 20 < limits._block.remaining() <= 30
        @pytest.mark.aiotimer(after="5m")
        def test_duration(limits): assert 290 < limits._block.remaining() <= 300
        @pytest.mark.parametrize(
            "none", [pytest.param(none, marks=pytest.mark.aiotimer(none)) for none in (0, None)])
        def test_none(limits, none): assert limits._block is None
        @pytest.mark.aiotimer("soon")
        def test_mistake(): pass
        @pytest.mark.aiotimer(limit=5)
        def test_other_mistake(): pass
        """, "--aiotimer=1m", "--strict-markers", "-W", "error")  # fmt: skip
    check_outcome(ran, "5 passed, 2 errors")
    assert "@pytest.mark.aiotimer of test_it.py::test_mistake: 'soon' is no duration" in ran.stdout
    assert "@pytest.mark.aiotimer of test_it.py::test_other_mistake: it takes one argument" in ran.stdout


def test_what_tests_share_has_the_limit_for_itself(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(f"""{CONFTEST}
def pytest_runtest_setup(item):
    limits = item.config.pluginmanager.get_plugin("aiotimer-limits")
    item.config.began = limits._block.deadline
""")
    ran = run(tmp_path, """if True:
        import pytest
        seen = []
        @pytest.fixture(scope="session", autouse=True)
        def first(outermost, limits):
            seen.append(limits._block.deadline)
            yield
            seen.append(limits._block.deadline)
        @pytest.fixture(scope="module")
        def shared(limits, first):
            seen.append(limits._block.deadline)
            yield
            seen.append(limits._block.deadline)
        @pytest.fixture
        def own(limits, shared):
            seen.append(limits._block.deadline)
            yield
            assert seen[-1] == limits._block.deadline
        def test_it(limits, own):
            assert seen == sorted(set(seen)), "each begins later"
            assert seen[-1] == limits._block.deadline, "its own fixture and the test are one countdown"
        def test_last(limits):
            seen.append(limits._block.deadline)
        @pytest.fixture(scope="session")
        def outermost(request):
            limits = request.config.pluginmanager.get_plugin("aiotimer-limits")
            seen.extend([request.config.began, limits._block.deadline])
            yield
            print(len(seen), seen == sorted(set(seen)))
        """, "--aiotimer=60", "-s")  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    assert "8 True\n" in ran.stdout


def test_a_test_that_does_not_run_to_its_end_leaves_nothing_armed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(f"""if True:
        {CONFTEST.replace(chr(10), chr(10) + " " * 8)}
        def pytest_runtest_logfinish(nodeid):
            print(nodeid, watched[0]._block)
        def pytest_sessionfinish(session):
            print("left", watched[0]._block)
        watched = []
        def pytest_collection_finish(session):
            watched.append(session.config.pluginmanager.get_plugin("aiotimer-limits"))
        """)
    ran = run(
        tmp_path,
        """if True:
        import pytest
        @pytest.fixture
        def fails(): raise ValueError
        @pytest.fixture
        def stops(limits):
            assert limits._block
            pytest.exit("enough")
        def test_set_up(fails): pass
        def test_skips(): pytest.skip()
        def test_fails(): assert False
        def test_stops(stops): pass
        """,
        "--aiotimer=60", "-s",
    )  # fmt: skip
    assert re.findall(r"test_it.py::(\w+) None\n", ran.stdout) == [
        "test_set_up", "test_skips", "test_fails",
    ]  # fmt: skip
    assert "left None\n" in ran.stdout
    check_outcome(ran, "1 failed, 1 skipped, 1 error")


def test_nobody_is_killed_who_is_in_a_debugger(tmp_path: Path) -> None:
    ran = run(tmp_path, """if True:
        import sys
        def test_breakpoint(limits):
            assert limits._block
            breakpoint()
            assert limits._block
        def test_fails(limits):
            assert not limits
        def tracer(frame, event, arg): return None
        tracer.__module__ = "pydevd"
        def test_attaches(): sys.settrace(tracer)
        def test_traced(limits):
            sys.settrace(None)
            assert limits._block is None
        """, "--aiotimer=60", "--pdb",
        stdin="p 'in it', limits._block\nc\np 'after it', limits._block\nc\n")  # fmt: skip
    assert "('in it', None)" in ran.stdout
    assert "('after it', None)" in ran.stdout
    assert "1 failed, 3 passed" in ran.stdout, ran.stdout


def test_a_test_may_configure_what_it_wants(tmp_path: Path) -> None:
    ran = run(tmp_path, """if True:
        import os, aiotimer
        from aiotimer.testing import virtual
        def test_configures():
            assert aiotimer.configure().path == os.environ["AIOTIMER_SOCKET"]
            assert f"/private-{os.getpid()}-" in os.environ["AIOTIMER_SOCKET"], "it has a server of its own"
            aiotimer.configure(None)
            del os.environ["AIOTIMER_SOCKET"]
        def test_is_virtual(limits):
            with virtual() as timers:
                timers.advance(3600)
            assert timers.reaped == []
        def test_is_watched(limits):
            assert limits._client.connected
            assert limits._block.remaining() > 50
        """, "--aiotimer=60")  # fmt: skip
    check_outcome(ran, "3 passed")


# --- the session


@pytest.mark.parametrize(
    ("arguments", "socket_path", "message"),
    [
        (["--aiotimer=soon"], "", "ERROR: --aiotimer: 'soon' is no duration: write 90, 90s, 5m or 2h"),
        (["--aiotimer=-1", "-n", "1"], "", "ERROR: --aiotimer: '-1' is no limit"),
        (["-o", "aiotimer=nan"], "", "ERROR: aiotimer in the configuration file: 'nan' is no limit"),
        (["-o", "aiotimer=5", "-n", "1"], "/nowhere/s", "ERROR: --aiotimer: no test can be watched: "),
    ],
)
def test_a_mistake_ends_the_session_before_it_begins(
    tmp_path: Path, arguments: list[str], socket_path: str, message: str
) -> None:
    ran = run(tmp_path, "def test_it(): pass", *arguments, AIOTIMER_SOCKET=socket_path)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in ran.stderr
    assert "passed" not in ran.stdout


def test_tests_that_are_only_collected_need_no_server(tmp_path: Path) -> None:
    ran = run(
        tmp_path, "def test_it(): pass", "--aiotimer=60", "--collect-only", AIOTIMER_SOCKET="/nowhere/s"
    )
    assert ran.returncode == 0
    assert "1 test collected" in ran.stdout


def test_without_the_option_the_plugin_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("""if True:
        import json, sys
        def pytest_unconfigure(config):
            print(json.dumps(sorted(name for name in sys.modules if name.startswith("aiotimer"))))
            print(config.pluginmanager.get_plugin("aiotimer-limits"))
        """)
    ran = run(tmp_path, """if True:
        import os, pytest
        @pytest.mark.aiotimer(0.001)
        def test_it(): assert "AIOTIMER_SOCKET" not in os.environ
        """, "--strict-markers", "-W", "error", **INSTALLED)  # fmt: skip
    *_, loaded, plugin = ran.stdout.splitlines()
    ours = ["", "._version", ".errors", ".integrations", ".integrations.pytest_plugin"]
    assert json.loads(loaded) == [f"aiotimer{name}" for name in ours]
    assert plugin == "None"
    assert "1 passed" in ran.stdout
    assert "aiotimer:" not in ran.stdout + ran.stderr


def test_the_server_that_is_there_is_used(tmp_path: Path) -> None:
    with ServerThread() as server:
        ran = run(tmp_path, """if True:
            def test_it(limits):
                print("watched at", limits._client.path, limits._private_socket or "and no other")
            """, "-o", "aiotimer=60", "-s", AIOTIMER_SOCKET=server.path)  # fmt: skip
        assert not server.armed()
    check_outcome(ran, "1 passed")
    assert f"watched at {server.path} and no other\n" in ran.stdout


def test_a_program_that_runs_pytest_is_as_before_afterwards(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(): pass")
    done = subprocess.run(
        [sys.executable, "-c", """if True:
            import os, aiotimer, pytest, sys
            path = ["-p", "no:cacheprovider", "-p", "no:asyncio", "--aiotimer=60", "-W", "error"]
            reader, writer = os.pipe()
            standard_error = os.dup(2)
            os.dup2(writer, 2)
            os.close(writer)
            print(pytest.main(path), "AIOTIMER_SOCKET" in os.environ)
            os.dup2(standard_error, 2)
            os.set_blocking(reader, False)
            try:
                print("said", os.read(reader, 10_000))
            except BlockingIOError:
                print("said nothing")
            from aiotimer.client.connection import _every_connection
            print([one.users for one in _every_connection])
            """],
        capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-3:] == ["0 False", "said nothing", "[0]"]
