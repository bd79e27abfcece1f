"""Children of a worker, as evidence about it: real ones, and what helpers say of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiotimer._linux import procfs
from aiotimer._linux.process import pin
from aiotimer.evidence import Subject, pyspy
from aiotimer.evidence import children as probe
from aiotimer.evidence.gather import gather
from tests.fakes.clock import PATIENCE
from tests.fakes.worker import FORKS, SpawnedWorker

CODE = """
import os, subprocess, sys, time
def read_shard():
    os.write(1, b"child\\n"); time.sleep(1000)
if sys.argv[1:]:
    read_shard()
child = subprocess.Popen([sys.executable, __file__, "child"])
gone = os.fork() or os._exit(9)
killed = subprocess.Popen(["sleep", "1000"])
killed.kill()
for pid in (gone, killed.pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.write(1, b"child\\n")
os.waitpid(child.pid, 0)  # here
"""
LINE = 4
"""The line in which the child hangs."""


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[SpawnedWorker]:
    """A worker with three children: one that hangs, and two that are dead."""
    source = tmp_path / "loader.py"
    source.write_text(CODE)
    with SpawnedWorker(
        subprocess.Popen(
            [sys.executable, str(source)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )
    ) as worker:  # fmt: skip
        for _each in range(3):
            worker.wait_line("child")
        try:
            yield worker
        finally:
            os.killpg(worker.pid, signal.SIGKILL)


async def children_of(worker: SpawnedWorker, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr("aiotimer.evidence.gather.PROC_WITHIN", PATIENCE)
    monkeypatch.setattr(probe, "WITHIN", PATIENCE)
    worker_id, pidfd = pin(worker.pid)
    try:
        found = await gather(Subject(worker_id, pidfd, "python", "s"), PATIENCE)
    finally:
        os.close(pidfd)
    children: list[dict[str, Any]] = found.process["children"]
    return sorted(children, key=lambda child: str(child["exit"]))


async def test_children_are_told_of(loader: SpawnedWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    if pyspy.find_pyspy() is None:
        pytest.skip("py-spy is not installed")
    alive, killed, gone = await children_of(loader, monkeypatch)
    assert alive["line"] == f"in read_shard at loader.py:{LINE}"
    assert alive["stack"][-1][1:] == [LINE, "read_shard"]
    assert alive["command"].endswith("loader.py child")
    assert [(one["state"][:1], one["line"], one["stack"]) for one in (killed, gone)] == [("Z", "", [])] * 2
    assert (killed["exit"], gone["exit"]) == ("SIGKILL", "exit 9")


async def test_what_cannot_be_looked_into_is_left_out(
    loader: SpawnedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyspy, "find_pyspy", lambda: "/nowhere/py-spy")
    monkeypatch.setattr(pyspy, "unwind_command", lambda _pid: ["/nowhere/python"])
    alive, *_dead = await children_of(loader, monkeypatch)
    assert (alive["line"], alive["stack"], alive["exit"]) == ("", [], "")


def test_who_is_no_child_is_not_looked_into(loader: SpawnedWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid may be another process's by now."""
    monkeypatch.setattr(pyspy, "run", lambda *_: pytest.fail("it was looked into"))
    assert probe._see(loader.pid, loader.pid, PATIENCE, threading.Event()) == []


@FORKS
def test_how_a_child_has_ended_is_not_always_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork() or os._exit(9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert procfs.wait_status(pid) == 9 << 8
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert procfs.wait_status(pid) is None
    monkeypatch.undo()
    os.waitpid(pid, 0)
    assert procfs.wait_status(os.getpid()) is None
