"""The command line, as a user meets it: real processes, their output and their exit statuses.

The law of this file: an error is one line on standard error; a result is on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import aiotimer
from aiotimer._core import wire
from aiotimer._core.layout import LATE
from aiotimer.cli import entry, group
from aiotimer.cli.common import HELP, Failed
from aiotimer.client.control import ping
from tests.fakes.clock import PATIENCE
from tests.fakes.memory import memory_table
from tests.fakes.places import private_runtime, short_socket
from tests.fakes.server import stand_in
from tests.fakes.worker import AIOTIMER, environment, wait_dead

HANG = """
import sys, time
from aiotimer import expires
with expires(after=0.2, scope="the-hang"):
    print("inside", flush=True)
    time.sleep(600)
print("never")
"""


@pytest.fixture(autouse=True)
def _own_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A server of `aiotimer run` answers once it is there, which may be later than its command is.
    monkeypatch.setattr("aiotimer.client.control.ANSWER_WITHIN", PATIENCE)
    with private_runtime():
        yield


def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``aiotimer`` to its end."""
    return subprocess.run(
        [*AIOTIMER, *arguments],
        capture_output=True, text=True, timeout=PATIENCE, env=environment(**more), check=False,
    )  # fmt: skip


def assert_one_line(error: str, *words: str) -> None:
    """Check that an error is one line that starts with the program's name and holds these words."""
    assert error.startswith("aiotimer: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


@contextlib.contextmanager
def serving(path: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``aiotimer serve`` and yield it once it says that it is ready."""
    command = [*AIOTIMER, "serve", "--socket", path, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as server:
        assert server.stdout is not None
        assert path in server.stdout.readline()
        try:
            yield server
        finally:
            server.terminate()
            assert server.wait(PATIENCE) in (0, 69, -signal.SIGKILL)


# -- serve, status, ping ---------------------------------------------------------------------------


def done(
    call: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> object:
    """What comes of a command line in this process: its exit status, or its failure, and what it printed."""
    try:
        code: object = call(arguments)
    except (Failed, aiotimer.AiotimerError) as error:
        code = type(error), str(error), vars(error)
    return code, *capsys.readouterr()


def test_help_teaches_and_version_is_the_packages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # a terminal may be wider
    text = call("--help").stdout
    assert "aiotimer run -- python train.py" in text
    assert done(group.call, ["why", "--help"], capsys) == (0, call("why", "--help").stdout, "")
    for command in ("serve", "run", "status", "ping", "why", "history", "suggest", "dump", "resume"):
        assert command in text
        explained = done(group.call, [command, "--help"], capsys)
        assert "Usage: aiotimer " + command in str(explained)
        assert explained == done(group.call, ["help", command], capsys)
    assert aiotimer.__version__ in call("--version").stdout


def test_a_command_spares_the_collector_of_garbage_what_stays_anyway() -> None:
    program = """
import atexit, gc
from aiotimer.cli import entry
atexit.register(lambda: print(gc.get_threshold()[0] == entry.COLLECTED_AFTER, gc.get_freeze_count() > 10_000))
entry.main(["why", "--help"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "True True"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["-h"], ["help"]], ids=" ".join)
def test_what_is_done_without_click_is_what_click_does(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = done(entry._call, arguments, capsys)
    assert plain == done(group.call, arguments, capsys)
    assert plain[:1] == (0,)  # type: ignore[index]


@pytest.mark.parametrize("lag_s", [0.0125, 1.5, None], ids=["fine", "late", "gone"])
@pytest.mark.parametrize("explicit", [False, True], ids=["environment", "--socket"])
def test_ping_without_click_is_what_click_does(
    lag_s: float | None,
    explicit: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = None if lag_s is None else wire.encode(wire.Pong(4242, lag_s))
    results = []
    for call in (entry._call, group.call):
        with short_socket() as path, contextlib.ExitStack() as stack:
            monkeypatch.setenv("AIOTIMER_SOCKET", "/nowhere/s" if explicit else path)
            if answer is not None:
                stack.enter_context(stand_in(path, answer))
            arguments = ["ping", "--socket", path] if explicit else ["ping"]
            results.append(repr(done(call, arguments, capsys)).replace(path, "PATH"))
    assert results[0] == results[1]
    assert "PATH" in results[0]


def test_the_help_is_what_click_makes_of_the_commands() -> None:
    settings = {**group.cli.context_settings, "terminal_width": 80, "max_content_width": 80}
    context = click.Context(group.cli, info_name="aiotimer", **settings)
    formatter = context.make_formatter()
    group.cli.format_usage(context, formatter)
    assert HELP.startswith(formatter.getvalue())
    formatter = context.make_formatter()
    group.cli.format_options(context, formatter)  # and commands
    assert HELP.endswith("\n\n" + formatter.getvalue())
    assert max(map(len, HELP.splitlines())) < 80


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_serve_says_that_it_is_ready_and_stops_on_a_signal(loop: str) -> None:
    with short_socket() as path:
        with serving(path, "--loop", loop) as server:
            assert ping(path).pid == server.pid
        assert server.returncode == 0
        assert not os.path.exists(path)


def test_status_shows_workers_and_timers_soonest_first() -> None:
    worker = """
import sys, aiotimer, time
client = aiotimer.TimerClient()
client.acquire("later", time.monotonic() + 600)
with aiotimer.expires(after=300, scope="so\\x1b[31mon"):
    print("armed", flush=True)
    sys.stdin.read()
"""
    with (
        short_socket() as path,
        serving(path),
        subprocess.Popen(
            [sys.executable, "-c", worker],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(AIOTIMER_SOCKET=path),
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"armed\n"
        report = json.loads(call("status", "--json", AIOTIMER_SOCKET=path).stdout)
        assert report["server"]["socket"] == path
        assert set(report["server"]) == {"pid", "version", "uptime_s", "socket", "observing", "broken"}
        (shown,) = report["workers"]
        assert shown["pid"] == process.pid
        assert shown["connected"] is True
        assert [t["scope"] for t in shown["timers"]] == ["so\x1b[31mon", "later"]
        assert all(set(t) == {"scope", "deadline", "remaining_s"} for t in shown["timers"])
        text = call("status", "--socket", path).stdout
        assert "1 worker, 2 timers armed" in text
        assert "\x1b" not in text
        assert text.index("[31mon") < text.index("later")
        assert "RANK" not in text
        everything = json.loads(call("status", "--all", "--json").stdout)
        assert path in [r["server"]["socket"] for r in everything]
        process.kill()


def test_status_shows_which_members_of_which_runs_are_connected() -> None:
    worker = """
import sys, aiotimer
aiotimer.configure(group=sys.argv[1], rank=int(sys.argv[2]), size=4)
print("connected", flush=True)
sys.stdin.read()
"""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(short_socket())
        stack.enter_context(serving(path))
        for arguments in (("4711", "2"), ("run [b]", "0")):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", worker, *arguments],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(AIOTIMER_SOCKET=path),
                )
            )  # fmt: skip
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"connected\n"
        report = json.loads(call("status", "--json", AIOTIMER_SOCKET=path).stdout)
        members = [(one["group"], one["rank"], one["size"]) for one in report["workers"]]
        assert sorted(members) == [("4711", 2, 4), ("run [b]", 0, 4)]
        lines = call("status", "--socket", path).stdout.splitlines()
        assert any(line.split() == ["PID", "WORKER", "RUN", "RANK", "SCOPE", "REMAINING"] for line in lines)
        assert sum(line.split()[-4:] == ["4711", "2/4", "-", "-"] for line in lines) == 1
        assert sum(line.split()[-5:] == ["run", "[b]", "0/4", "-", "-"] for line in lines) == 1


def test_ping_answers_or_exits_69() -> None:
    with short_socket() as path:
        with serving(path) as server:
            fine = call("ping", "--socket", path)
            assert (fine.returncode, fine.stderr) == (0, "")
            told = json.loads(call("ping", "--json", "--socket", path).stdout)
            assert (told["socket"], told["pid"], set(told)) == (path, server.pid, {"socket", "pid", "lag_s"})
        gone = call("ping", "--socket", path)
        assert gone.returncode == 69
        assert_one_line(gone.stderr, path, "aiotimer serve")


def test_ping_calls_a_server_that_was_stuck_late() -> None:
    with short_socket() as path, serving(path) as server:
        server.send_signal(signal.SIGSTOP)
        stuck = call("ping", "--socket", path)
        server.send_signal(signal.SIGCONT)
        assert stuck.returncode == 69
        assert_one_line(stuck.stderr, "no answer")
        slow = call("ping", "--socket", path)
        assert slow.returncode == 69
        assert_one_line(slow.stderr, "alive but slow")


@pytest.mark.parametrize("beyond", [0.0, 0.001], ids=["just on time", "late"])
def test_ping_and_the_workers_call_the_same_server_late(beyond: float) -> None:
    late_s = LATE + beyond
    worker = memory_table(promise=0.0)
    with short_socket() as path, stand_in(path, wire.encode(wire.Pong(os.getpid(), late_s))):
        asked = call("ping", "--socket", path)
    assert ("alive but slow" in asked.stderr) is worker.is_late(late_s) is (beyond > 0), asked


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("serve", "--loop", "trio"), 2, ("trio",)),
        (("frobnicate",), 2, ("frobnicate",)),
        (("serve", "--socket", "/" + "x" * 200), 77, ("201 bytes", "107")),
        (("serve", "--socket", "/proc/no/where"), 77, ("/proc/no/where",)),
        (("run",), 2, ("COMMAND",)),
        (("why", "--socket", "/nowhere/s"), 1, ("no expiry", "/nowhere/s")),
        (("why", "x"), 2, ("PID",)),
        (("dump", "1", "--socket", "/nowhere/s"), 69, ("/nowhere/s",)),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], code: int, words: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.returncode == code
    assert_one_line(result.stderr, *words)


def test_resume_has_a_job_reaped_again_whose_breaker_has_tripped() -> None:
    with short_socket() as path, serving(path, "--reap", "KILL", "--max-reaps", "1/1000"):
        assert call("resume", "--socket", path).stdout == "the breaker has not tripped\n"
        hang = [sys.executable, "-c", HANG]
        mine = environment(AIOTIMER_SOCKET=path, AIOTIMER_RUN="mine \x1b")
        other = environment(AIOTIMER_SOCKET=path, AIOTIMER_RUN="other")
        assert subprocess.run(hang, env=mine, check=False, stdout=subprocess.DEVNULL).returncode == -9
        with subprocess.Popen(hang, env=mine, stdout=subprocess.DEVNULL) as spared:
            assert subprocess.run(hang, env=other, check=False, stdout=subprocess.DEVNULL).returncode == -9
            while "too many reaps" not in (text := call("status", "--socket", path).stdout):
                assert spared.poll() is None
            assert "too many reaps in job mine \\x1b: only observing until `aiotimer resume`" in text
            (broken,) = json.loads(call("status", "--json", "--socket", path).stdout)["server"]["broken"]
            assert broken == {"job": "job mine \x1b", "resumes_in_s": None}
            assert call("resume", "--socket", path).stdout == "reaping again: job mine \\x1b\n"
            assert subprocess.run(hang, env=mine, check=False, stdout=subprocess.DEVNULL).returncode == -9
            assert spared.poll() is None, "what has been observed stays so"
            spared.kill()


def test_fault_86_an_evidence_directory_in_which_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with short_socket() as path:
        result = call("serve", "--socket", path, "--evidence-dir", str(tmp_path))
    assert result.returncode == 77
    assert_one_line(result.stderr, str(tmp_path), "can be written by others")


def test_fault_74_an_evidence_directory_in_which_nothing_can_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with short_socket() as path:
        result = call("serve", "--socket", path, "--evidence-dir", str(tmp_path / "file" / "evidence"))
    assert result.returncode == 77
    assert_one_line(result.stderr, "no evidence can be kept in", "Not a directory")


def test_fault_74_a_command_for_events_that_does_not_exist_is_refused_at_the_start() -> None:
    with short_socket() as path:
        result = call("serve", "--socket", path, "--on-event", "no-such-command-anywhere --flag")
    assert result.returncode == 2
    assert "there is no command 'no-such-command-anywhere'" in result.stderr


def test_a_server_whose_place_is_taken_ends_and_takes_nothing_with_it() -> None:
    with short_socket() as path, serving(path) as first:
        os.unlink(path)
        assert first.stderr is not None
        told = iter(first.stderr.readline, "")  # first of all, perhaps, that it has no priority
        assert any("was gone: this server listens there again" in line for line in told)
        assert ping(path).pid == first.pid
        first.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        os.unlink(path)
        os.unlink(path + ".lock")
        with serving(path) as second:
            first.send_signal(signal.SIGCONT)
            assert first.wait(PATIENCE) == 69
            assert "another timer server is at" in first.stderr.read()
            assert ping(path).pid == second.pid


def test_without_a_socket_commands_use_the_per_user_default() -> None:
    result = call("ping")
    assert result.returncode == 69
    assert_one_line(result.stderr, os.path.join(os.environ["XDG_RUNTIME_DIR"], "aiotimer", "aiotimer.sock"))


# -- run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("/dev/null",), 126),
        (("no-such-command-anywhere",), 127),
    ],
)
def test_fault_57_run_passes_the_exit_status_through(command: tuple[str, ...], code: int) -> None:
    result = call("run", "--", *command)
    assert result.returncode == code
    if code in (126, 127):
        assert_one_line(result.stderr, command[0])
    else:
        assert result.stderr == ""


WATCHED = "from aiotimer import expires\nwith expires(60): pass"


@pytest.mark.parametrize(
    ("command", "needed"), [(["true"], set()), ([sys.executable, "-c", WATCHED], {"sqlite3"})]
)
def test_run_loads_what_it_needs_and_no_more(command: list[str], needed: set[str]) -> None:
    program = """
import sys
before = {*sys.modules}  # coverage's, if it is at work
import os, pathlib
from aiotimer._linux import paths
from aiotimer.cli import main
paths.bases = lambda: iter([pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer")])  # nobody else's history
try:
    main(["run", "--", *sys.argv[1:]])
finally:
    print(*{*sys.modules} - before)
"""
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, *command],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    assert "aiotimer.cli.supervisor" in ended.stdout.split()
    heavy = {"aiotimer.server.history", "asyncio", "click", "json", "logging", "msgspec", "rich", "sqlite3"}
    assert heavy & {*ended.stdout.split()} <= needed


def test_fault_57_run_is_124_when_the_command_itself_was_reaped() -> None:
    result = call("run", "--quiet", "--", sys.executable, "-c", HANG)
    assert result.returncode == 124
    assert result.stdout == "inside\n"
    assert_one_line(result.stderr, "reaped", 'scope="the-hang"', "late=")


SAVING = """
import os, signal, sys
def save(*_):
    os.write(1, b"saved\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
"""


@pytest.mark.parametrize(("options", "status"), [((), 124), (("--preserve-status",), 0)])
def test_run_is_124_when_its_command_saved_what_it_had_and_exited(
    options: tuple[str, ...], status: int
) -> None:
    ladder = ("--reap", "TERM:600,KILL")
    result = call("run", *options, *ladder, "--quiet", "--", sys.executable, "-c", SAVING + HANG)
    assert (result.returncode, result.stdout) == (status, "inside\nsaved\n")


def test_run_preserves_the_status_of_a_command_that_was_ended() -> None:
    result = call("run", "--preserve-status", "--after", "0.2s", "--", "sleep", "600")
    assert result.returncode == 128 + signal.SIGTERM


def test_fault_57_run_is_the_commands_own_status_when_a_child_of_it_was_reaped() -> None:
    parent = f"import subprocess, sys; print(subprocess.call([sys.executable, '-c', {HANG!r}])); sys.exit(3)"
    result = call("run", "--", sys.executable, "-c", parent)
    assert result.returncode == 3
    assert result.stdout.splitlines() == ["inside", "-9"]


def test_run_is_125_when_aiotimer_fails() -> None:
    with short_socket() as path, serving(path):
        result = call("run", "--socket", path, "--", "true")
    assert result.returncode == 125
    assert "another timer server" in result.stderr


def test_fault_57_run_forwards_signals_and_leaves_nothing_behind() -> None:
    waiting = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # or it may come just before it is waited for
print(os.environ["AIOTIMER_SOCKET"], flush=True)
signal.sigwait({signal.SIGTERM})
sys.exit(9)
"""
    command = [*AIOTIMER, "run", "--", sys.executable, "-c", waiting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as run:
        assert run.stdout is not None
        path = run.stdout.readline().strip()
        server_pid = ping(path).pid
        run.send_signal(signal.SIGTERM)
        assert run.wait(PATIENCE) == 9
    wait_dead(server_pid)
    assert list(Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer").iterdir()) == []


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"TERM\\n"))
print("ready", flush=True)
while True:
    time.sleep(1)
"""


def test_run_ends_a_command_that_runs_for_too_long() -> None:
    result = call("run", "--after", "0.2s", "--", "sleep", "600")
    assert result.returncode == 124
    assert_one_line(result.stderr, "the command has run for too long: it is sent SIGTERM")


def test_run_kills_one_that_does_not_end() -> None:
    result = call("run", "--after", "1.5", "--kill-after", "0.1s", "--", sys.executable, "-c", STUBBORN)
    assert result.returncode == 137
    assert result.stdout == "ready\nTERM\n"
    assert [line.rpartition(" ")[2] for line in result.stderr.splitlines()] == ["SIGTERM", "SIGKILL"]


def test_run_lets_a_command_be_that_ends_in_time() -> None:
    for long in ("1h", "1e300d"):
        result = call("run", "--after", long, "--kill-after", "5", "--", "sh", "-c", "exit 7")
        assert (result.returncode, result.stderr) == (7, "")


@pytest.mark.parametrize("options", [("--after", "0"), ("--after", "inf"), ("--kill-after", "5")])
def test_limits_that_make_no_sense_are_refused(options: tuple[str, ...]) -> None:
    result = call("run", *options, "--", "true")
    assert result.returncode == 2
    assert options[0] in result.stderr


JOB = """
import os, signal, sys, time
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"goes on\\n"))
if sys.argv[1:] == ["handles"]:
    signal.signal(signal.SIGTSTP, lambda *_: os.write(1, b"TSTP\\n"))
print("ready", flush=True)
while True:  # pause() would wait for the next signal, had one come just before it
    time.sleep(0.05)
"""


@contextlib.contextmanager
def running_job(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """Run it as a shell runs a job, in a group of its own; yield ``aiotimer run`` and what reads a line."""
    command = [*AIOTIMER, "run", "--", sys.executable, "-c", JOB, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), process_group=0
    ) as run:
        assert run.stdout is not None
        try:
            assert run.stdout.readline() == "ready\n"
            yield run, run.stdout.readline
            run.terminate()
            assert run.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU])
def test_run_stops_and_goes_on_with_its_command(number: signal.Signals) -> None:
    with running_job() as (run, line):
        run.send_signal(number)
        stopped = os.waitid(os.P_PID, run.pid, os.WSTOPPED)
        assert stopped is not None
        assert stopped.si_status == signal.SIGSTOP
        run.send_signal(signal.SIGCONT)
        assert line() == "goes on\n"


def test_run_goes_on_if_its_command_does_not_stop() -> None:
    with running_job("handles") as (run, line):
        run.send_signal(signal.SIGTSTP)
        assert line() == "TSTP\n"


RECORDING = """
import os, sys
from aiotimer._linux.paths import state_directory
from aiotimer.evidence.record import Record
from aiotimer.server.history import History

directory = state_directory(os.environ["AIOTIMER_SOCKET"])
history = History(directory)
name = "20261123T031205-4242-1"
known = Record(name, "reaped", "reaped", 4e9, 4242, "python", "the-hang", verdict="stopped")
history.record(known, "stacks", "tasks")
history.event({"event": "reaped", "time": 1.0, "pid": 4242})
sys.exit(not history.close(30) or 5)
"""
"""Does what a server does when it reaps."""

WHAT_READERS_MAKE = {"history.db-wal", "history.db-shm"}


@pytest.mark.parametrize("quiet", [False, True])
def test_run_says_why_at_its_end_and_so_does_why_afterwards(quiet: bool) -> None:
    options = ["--quiet"] if quiet else []
    result = call("run", *options, "--", sys.executable, "-c", RECORDING)
    assert result.returncode == 5
    assert ('worker 4242 (python) was reaped, in "the-hang"' in result.stderr) is not quiet
    (left,) = Path(os.environ["XDG_RUNTIME_DIR"], "aiotimer").iterdir()
    assert {path.name for path in left.iterdir()} - WHAT_READERS_MAKE == {
        "history.db", "evidence", "ended", "namespaces",
    }  # fmt: skip
    if quiet:
        return  # what has been recorded is the same
    path = (left / "ended").read_text()
    assert json.loads(call("why", "--json", "--socket", path).stdout)["verdict"] == "stopped"
    assert json.loads(call("history", "--json", "--socket", path).stdout)["pid"] == 4242
    assert path not in call("status", "--all").stdout


def test_history_follows_until_ctrl_c() -> None:
    environ = environment(AIOTIMER_SOCKET="/nowhere/s")
    command = [*AIOTIMER, "history", "--follow", "--json", "--socket", "/nowhere/s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as follower:
        assert follower.stdout is not None
        subprocess.run([sys.executable, "-c", RECORDING], env=environ, check=False, timeout=PATIENCE)
        assert json.loads(follower.stdout.readline())["event"] == "reaped"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE) == 130
