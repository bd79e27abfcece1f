"""What commands print, whoever reads it: one that has seen enough, or a terminal that lacks characters."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiotimer._core.durations import Durations
from aiotimer._linux.paths import state_directory
from aiotimer.cli.group import cli
from aiotimer.evidence.record import Record
from aiotimer.server.history import History
from tests.fakes.clock import PATIENCE
from tests.fakes.places import private_runtime
from tests.fakes.server import ServerThread
from tests.fakes.worker import AIOTIMER, environment

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server's, which has recorded something of scope ``Prüfung``."""
    monkeypatch.setenv("COLUMNS", "80")
    with private_runtime(), ServerThread() as server:
        made = History(state_directory("/nowhere/s"))
        made.record(Record("20261123T031205-4242-1", outcome="reaped", time=1e9, pid=4242, scope="Prüfung"))
        made.event({"event": "reaped", "time": 1e9, "pid": 4242, "scope": "Prüfung", "detail": ""})
        durations = Durations([[0.0] * 3 + [1.0] + [9.0] * 20]).as_json()
        made.durations([{"scope": "Prüfung", "count": 180, "limit_s": None, "durations": durations}])
        assert made.close(PATIENCE)
        yield server.path


RECORDED = [[name, "--socket", "/nowhere/s"] for name in ("why", "history", "suggest")]


def start(command: list[str], stdout: int, **more: str) -> subprocess.Popen[bytes]:
    """Start a command. Those of a test run side by side."""
    return subprocess.Popen(
        [*AIOTIMER, *command], stdout=stdout, stderr=subprocess.PIPE, env=environment(**more)
    )


def test_a_command_whose_reader_has_gone_ends_with_141_and_without_a_word(path: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    follow = ["history", "--follow", "--lines", "0", "--socket", "/nowhere/s"]
    commands = [*RECORDED[::2], follow, ["why", "--help"], ["status", "--socket", path]]
    started = [start(command, writing) for command in commands]
    os.close(writing)
    for command, process in zip(commands, started, strict=True):
        _, said = process.communicate(timeout=PATIENCE)
        assert (process.returncode, said) == (141, b""), command


def test_what_a_terminal_lacks_is_escaped(path: str) -> None:
    commands = [*RECORDED, ["status", "--socket", path]]
    started = [start(command, subprocess.PIPE, **ASCII) for command in commands]
    for command, process in zip(commands, started, strict=True):
        printed, said = process.communicate(timeout=PATIENCE)
        assert (process.returncode, said) == (0, b""), command
        assert printed.isascii(), command
        assert (b"Pr\\xfcfung" in printed) is (command in RECORDED), command


def test_a_full_disk_is_one_line(path: str, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [*AIOTIMER, "status", "--socket", path]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=PATIENCE, check=False
        )
    assert done.returncode == 71
    assert done.stderr.startswith(b"aiotimer: ")
    assert done.stderr.count(b"\n") == 1


def test_every_command_that_prints_a_result_prints_it_as_json(path: str) -> None:
    asked = [[name, "--socket", path] for name in ("status", "ping", "resume")]
    for command in [*RECORDED, *asked]:
        done = CliRunner().invoke(cli, [*command, "--json"])
        assert done.exit_code == 0, command
        assert isinstance(json.loads(done.stdout), (dict, list)), command
