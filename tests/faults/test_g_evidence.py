"""Fault 45: helpers that are missing, hang, print without end or are refused; and probes that never end.

The laws of this file: the budget holds whatever a probe does, which is shown by order: the result is there,
and the probe has not ended. Limits that must not run out are as long as a test's patience.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiotimer._linux import procfs
from aiotimer._linux.process import pin
from aiotimer.evidence import Answers, Findings, Subject, proc, pyspy, threads, unwind
from aiotimer.evidence import gather as gathering
from aiotimer.evidence.findings import stack
from aiotimer.evidence.gather import gather
from tests.fakes.clock import PATIENCE
from tests.fakes.worker import bystander, is_alive, wait_dead

SHORT = 0.3
"""Seconds for a helper that is to run out of them."""

HELPERS = {
    "hangs": "echo $$ > {pid}; exec sleep 1000",
    "prints without end": "echo $$ > {pid}; exec yes '[1, 2, 3]'",
    "complains without end": "echo $$ > {pid}; exec yes '[1, 2, 3]' >&2",
    "hangs with its output closed": "echo $$ > {pid}; exec sleep 1000 >&- 2>&-",
    "refused by ptrace": "echo 'Error: Permission denied (os error 13)' >&2; exit 1",
    "fails at length": "printf 'Error: what it is\\n\\nStack backtrace:\\n  0: main\\n' >&2; exit 1",
    "fails silently": "exit 3",
    "prints nonsense": "echo nonsense",
    "prints nothing": "exit 0",
    "dies": "kill -9 $$",
}
"""What stands in for py-spy, as shell scripts."""

WORDS = {
    "hangs": "took too long",
    "prints without end": "wrote too much",
    "complains without end": "took too long",
    "hangs with its output closed": "took too long",
    "refused by ptrace": "failed: Error: Permission denied (os error 13)",
    "fails at length": "failed: Error: what it is",
    "fails silently": "failed: exit status 3",
    "prints nonsense": "wrote what is no dump: JSONDecodeError",
    "prints nothing": "wrote what is no dump: JSONDecodeError",
    "dies": "failed: killed by signal 9",
}


TOO_LONG = re.compile(r"took too long|no answer within .* s")
"""The second: its thread has not been heard of either, on a busy machine."""


@pytest.fixture(autouse=True)
def patient_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No probe gives up before the budget runs out; and there is no unwinder, unless a test wants it."""
    monkeypatch.setattr(gathering, "PROC_WITHIN", PATIENCE)
    monkeypatch.setattr(pyspy, "unwind_command", lambda _pid: None)


@pytest.fixture
def subject() -> Iterator[Subject]:
    """A process to find something out about, that knows nothing of us."""
    with bystander() as pid:
        worker, pidfd = pin(pid)
        yield Subject(worker, pidfd, "sleep", "s")
        os.close(pidfd)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Install a script as the only py-spy; return the file in which it leaves its pid."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # py-spy is looked for beside it
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def install(body: str) -> Path:
        script, pid = tmp_path / "bin" / "py-spy", tmp_path / "pid"
        script.write_text(f"#!/bin/sh\n{body.format(pid=pid)}\n")
        script.chmod(0o755)
        return pid

    return install


def nothing_lost(found: Findings) -> None:
    """The other probes are none the worse for it."""
    assert found.probes["proc"].endswith(" s")
    assert found.process["command"] == ["sleep", "1000"]
    assert found.verdict.startswith("no Python stack; the main thread is ")


@pytest.mark.parametrize("kind", HELPERS)
async def test_fault_45_a_helper_that_does_not_help(
    kind: str, subject: Subject, helper: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    too_long = TOO_LONG.fullmatch(WORDS[kind])
    monkeypatch.setattr(gathering, "HELPER_WITHIN", SHORT if too_long else PATIENCE)
    pid = helper(HELPERS[kind])
    found = await gather(subject, PATIENCE)
    said = found.probes["py-spy"]
    assert TOO_LONG.fullmatch(said) if too_long else said == WORDS[kind]
    nothing_lost(found)
    if pid.exists() and (text := pid.read_text()):
        await asyncio.to_thread(wait_dead, int(text))  # it does not outlive the question
        assert not is_alive(int(text))
    assert is_alive(subject.id.pid)


async def test_fault_45_a_helper_that_is_missing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await gather(subject, PATIENCE)
    assert found.probes["py-spy"] == "not installed"
    nothing_lost(found)


async def test_fault_45_a_helper_that_cannot_be_run(subject: Subject, helper: Callable[[str], Path]) -> None:
    script = helper("").parent / "bin" / "py-spy"
    script.write_text("#!/nowhere/interpreter\n")
    found = await gather(subject, PATIENCE)
    assert found.probes["py-spy"] == "cannot be run: No such file or directory"
    nothing_lost(found)


@pytest.mark.parametrize("native", ["exit 1", "exec sleep 1000"])
async def test_fault_45_a_helper_without_native_stacks(
    native: str, subject: Subject, helper: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyspy, "_SHARE", 0.01)
    frame = '{"name": "f", "filename": "/app/x.py", "line": 3, "module": null}'
    trace = f'[{{"os_thread_id": {subject.id.pid}, "thread_id": 1, "owns_gil": false, "frames": [{frame}]}}]'
    helper(f"case $* in *--native*) {native};; esac; echo '{trace}'".replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr(gathering, "HELPER_WITHIN", PATIENCE)
    found = await gather(subject._replace(kills_next=True), PATIENCE)
    assert found.where == "x.py:3"
    assert found.verdict.endswith(" at x.py:3 in f")


async def test_fault_45_a_helper_that_leaves_the_worker_stopped(
    subject: Subject, helper: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "HELPER_WITHIN", SHORT)
    helper(f"kill -STOP {subject.id.pid}; exec sleep 1000")
    found = await gather(subject, PATIENCE)
    assert TOO_LONG.fullmatch(found.probes["py-spy"])
    await asyncio.to_thread(threads_ended)
    assert not procfs.state_of(subject.id.pid).startswith("T")


def threads_ended() -> None:
    """Wait until no probe's thread is left."""
    for thread in list(threads._running):
        thread.join(PATIENCE)
        assert not thread.is_alive()


# -- probes that never end ---------------------------------------------------------------------------------


class Stuck:
    """A function that blocks until the test is over."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.over = threading.Event()
        self.left = threading.Event()

    def __call__(self, *_: Any) -> None:
        self.entered.set()
        self.over.wait(PATIENCE)
        self.left.set()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    """A probe that hangs, like a read from /proc of a process whose memory is locked for ever."""
    probe = Stuck()
    yield probe
    probe.over.set()
    threads_ended()


@pytest.fixture(autouse=True)
def no_pyspy(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """py-spy has no part in the tests that do not install one."""
    if "helper" not in request.fixturenames and "missing" not in request.node.name:
        monkeypatch.setattr(pyspy, "find_pyspy", lambda: None)


async def test_a_probe_that_hangs_is_given_up(
    subject: Subject, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "PROC_WITHIN", 0.5)
    monkeypatch.setattr(proc, "_command", stuck)  # the last thing that is read
    found = await gather(subject, PATIENCE)
    assert found.probes["proc"].startswith("no answer within")
    assert found.process["state"]  # what was read before is there
    assert found.process["command"] == []
    assert stuck.entered.is_set()
    assert not stuck.left.is_set()


async def test_the_budget_ends_it_all(
    subject: Subject, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(_answers: Answers) -> None:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    monkeypatch.setattr(proc, "collect", stuck)
    found = await gather(subject._replace(ask=ask), 0.1)
    assert found.verdict == "nothing is known"
    assert not stuck.left.is_set()
    assert found.process == proc.nothing()


async def test_a_budget_of_nothing(subject: Subject) -> None:
    found = await gather(subject, 0.0)
    assert found.verdict == "nothing is known"


async def test_cancelling_lets_go_of_everything(
    subject: Subject, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "collect", stuck)
    task = asyncio.ensure_future(gather(subject, PATIENCE))
    await asyncio.to_thread(stuck.entered.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not stuck.left.is_set()


async def test_so_many_probes_may_hang_and_no_more(
    subject: Subject, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MAX_STUCK", 1)
    monkeypatch.setattr(gathering, "PROC_WITHIN", 0.05)
    monkeypatch.setattr(proc, "collect", stuck)
    assert (await gather(subject, PATIENCE)).probes["proc"].startswith("no answer")
    assert (await gather(subject, PATIENCE)).probes["proc"] == "1 probes hang"
    stuck.over.set()
    await asyncio.to_thread(threads_ended)
    monkeypatch.undo()
    monkeypatch.setattr(pyspy, "find_pyspy", lambda: None)
    monkeypatch.setattr(pyspy, "unwind_command", lambda _pid: None)
    assert (await gather(subject, PATIENCE)).process["command"] == ["sleep", "1000"]


async def test_so_many_probes_run_at_once_and_the_others_wait(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MAX_RUNNING", 1)
    released: list[str] = []
    first = asyncio.ensure_future(threads.in_thread(stuck, PATIENCE, int))
    await asyncio.to_thread(stuck.entered.wait, PATIENCE)
    with pytest.raises(TimeoutError):
        await threads.in_thread(stuck, 0.05, int, lambda: released.append("too late"))
    assert released == ["too late"]
    second = asyncio.ensure_future(threads.in_thread(lambda: 2, PATIENCE, int))
    await asyncio.sleep(0)
    assert not second.done()
    stuck.over.set()
    assert await second == 2
    await first


async def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    released: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        await threads.in_thread(int, PATIENCE, int, lambda: released.append("not started"))
    assert released == ["not started"]


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyboardInterrupt()])
async def test_what_would_end_the_loop_is_an_error_like_others(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError):
        await threads.in_thread(fail, PATIENCE, int)


def test_a_loop_that_is_closed_meanwhile(stuck: Stuck) -> None:
    async def begin() -> None:
        with pytest.raises(TimeoutError):
            await threads.in_thread(stuck, 0.05, int)

    asyncio.run(begin())
    stuck.over.set()
    threads_ended()
    assert stuck.left.is_set()


async def test_a_probe_with_a_fault_is_a_word_and_a_line_in_the_log(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(proc, "collect", fail)
    found = await gather(subject, PATIENCE)
    assert found.probes["proc"] == "failed: a fault of ours"
    assert found.probes["stacks"] == "not sent, because SIGKILL is not what comes next"
    assert "the probe proc" in caplog.text


async def test_a_fault_of_the_gatherer_is_a_line_in_the_log(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gathering._Probing, "_probe", fail)
    found = await gather(subject, PATIENCE)
    assert found.verdict == "nothing is known"
    assert "gathering evidence" in caplog.text


async def test_a_worker_that_dies_meanwhile_is_gone(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = proc.collect

    def kill(*arguments: Any) -> None:
        collect(*arguments)
        os.kill(subject.id.pid, signal.SIGKILL)
        wait_dead(subject.id.pid)

    monkeypatch.setattr(proc, "collect", kill)
    found = await gather(subject, PATIENCE)
    assert found.verdict == "gone"
    assert found.process["command"] == ["sleep", "1000"]


async def test_a_moment_in_uninterruptible_sleep_is_no_verdict(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(_worker: object, found: dict[str, Any], _thread: int) -> None:
        found["state"] = "D (disk sleep)"

    monkeypatch.setattr(proc, "collect", collect)
    found = await gather(subject, PATIENCE)
    assert found.process["state"] in ("S (sleeping)", "R (running)")
    monkeypatch.setattr(procfs, "state_of", lambda _pid: "D (disk sleep)")
    found = await gather(subject, PATIENCE)
    assert found.verdict == "in uninterruptible sleep"


# -- CPython 3.14 ------------------------------------------------------------------------------------------

UNWOUND = """[{{"os_thread_id": {pid}, "owns_gil": {gil}, "frames":
[{{"name": "{outermost}", "filename": "/app/x.py", "line": 3, "module": null}}]}}]"""
"""What stands in for the interpreter's unwinder prints this."""


def unwinding(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a script stand in for the unwinder."""
    monkeypatch.setattr(pyspy, "unwind_command", lambda _pid: ["sh", "-c", script])


@pytest.mark.parametrize(
    ("gil", "outermost", "needed"),
    [("false", "<module>", False), ("true", "<module>", True), ("false", "f", True)],
    ids=["all is seen", "who holds the GIL may be in C", "what called C is not seen"],
)
async def test_py_spy_is_asked_for_what_the_unwinder_does_not_see(
    gil: str, outermost: str, needed: bool, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = UNWOUND.format(pid=subject.id.pid, gil=gil, outermost=outermost)
    unwinding(monkeypatch, f"echo '{trace}'")
    found = await gather(subject, PATIENCE)
    assert found.probes["unwinder"].endswith(" s")
    said = "not installed" if needed else "not needed: the unwinder saw all that it would"
    assert found.probes["py-spy"] == said
    assert found.where == "x.py:3"
    assert "stacks" not in found.probes


async def test_an_unwinder_that_may_not_look(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    unwinding(monkeypatch, "echo '[Errno 1] Operation not permitted' >&2; exit 1")
    found = await gather(subject, PATIENCE)
    assert found.probes["unwinder"] == "failed: [Errno 1] Operation not permitted"
    assert found.probes["py-spy"] == "not installed"
    nothing_lost(found)


async def test_what_is_seen_of_a_pid_that_another_process_has_by_now_is_dropped(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object) -> list[dict[str, Any]]:
        os.kill(subject.id.pid, signal.SIGKILL)
        wait_dead(subject.id.pid)
        return [stack("", [["/app/x.py", 3, "<module>"]])]

    unwinding(monkeypatch, "true")
    monkeypatch.setattr(pyspy, "parse", parse)
    found = await gather(subject, PATIENCE)
    assert (found.verdict, found.stacks) == ("gone", [])


def test_the_program_says_why_it_cannot_read() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", unwind.__file__, "4194305"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip()
