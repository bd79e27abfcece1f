"""Fault 40: no wake-up is lost between a worker that stores and a server that looks.

The laws of this file: two real processes, no bound on the promise; the worker's stores fall into every gap
of the server's look, on purpose (see ``storm.py``), and a timer that nobody wakes for is found. What shows
that it would be: the same storm, with the second and the later read left out.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from aiotimer.evidence.pyspy import find_pyspy
from tests.fakes.places import short_socket
from tests.fakes.server import LOOPS
from tests.fakes.worker import SpawnedWorker, spawn_worker
from tests.faults.storm import PLACES

RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"

STORM = str(Path(__file__).with_name("storm.py"))


def storm(loop: str, reads: str, *, entries: int, rounds: int, patience: float) -> dict[str, int]:
    """Let a server and a worker run against each other; return the worker's record."""
    stage = os.memfd_create("stage")
    os.truncate(stage, os.sysconf("SC_PAGESIZE"))
    told, tells = os.pipe()
    serve = ("serve", loop, stage, tells, reads)
    work = ("work", stage, told, entries, rounds, patience)
    try:
        with short_socket() as path:
            role, *arguments = map(str, serve)
            with spawn_worker(RUN, None, STORM, role, path, *arguments, pass_fds=[stage, tells]) as server:
                server.wait_line("ready")
                role, *arguments = map(str, work)
                with spawn_worker(RUN, None, STORM, role, path, *arguments, pass_fds=[stage, told]) as worker:
                    try:
                        record = worker.wait_line("done", timeout=100)
                    except AssertionError as error:
                        raise AssertionError(f"{error}\n{standing(stage, server, worker)}") from None
                    assert worker.wait() == 0, worker.output
                assert server.process.poll() is None, server.output
    finally:
        for descriptor in (stage, told, tells):
            os.close(descriptor)
    return dict(json.loads(record.removeprefix("done")))


def standing(stage: int, *processes: SpawnedWorker) -> str:
    """Return where the two stand that have not come to an end: twice, so that it is seen who moves."""
    found = []
    for _ in range(2):
        found.append(f"pause, answer, place: {struct.unpack('3q', os.pread(stage, 24, 0))}")
        for process in processes:
            look = [find_pyspy() or "py-spy", "dump", "--pid", str(process.pid)]
            stacks = subprocess.run(look, capture_output=True)
            found.append(f"{process.output}\n{(stacks.stdout or stacks.stderr).decode()}")
    return "\n".join(found)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_fault_40_no_wake_up_is_lost(loop: str, rounds: int) -> None:
    done = storm(loop, "all", entries=3_000 * rounds, rounds=rounds, patience=20.0)
    assert done["lost"] == 0
    assert done["entries"] >= 3_000 * rounds
    # The storm was where it had to be: the server was caught in every gap of its look.
    assert all(done[place] >= rounds // 8 for place in PLACES), done


@pytest.mark.parametrize("loop", LOOPS)
def test_fault_40_without_the_later_reads_one_is_lost(loop: str) -> None:
    """The same storm finds the fault that the second and the later read are there for."""
    done = storm(loop, "first", entries=1_000_000, rounds=300, patience=2.0)
    assert done["lost"] == done["unwatched"] == 1, done
