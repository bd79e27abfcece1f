"""Servers are found: those that are there, and the one that knows a worker, past what is dead or stuck."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aiotimer import TimerClient
from aiotimer._linux.paths import default_socket, state_directory
from aiotimer.cli.common import Failed
from aiotimer.cli.group import cli
from aiotimer.cli.servers import reports_of
from aiotimer.errors import Refused, ServerUnavailable
from tests.fakes.places import short_socket
from tests.fakes.server import ServerThread, stand_in

pytestmark = pytest.mark.usefixtures("no_other_state")

STUCK = 0.2
"""Seconds for which an answer is waited for here."""


@pytest.fixture(autouse=True)
def _no_server_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOTIMER_SOCKET", raising=False)


def call(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, arguments)


@contextlib.contextmanager
def stuck() -> Iterator[str]:
    """Listen as a server that was stopped does: it has a state directory, and never answers."""
    with short_socket() as path, stand_in(path, None):
        state_directory(path)
        yield path


def dead() -> str:
    """Return where a server was that left its state directory behind."""
    state_directory("/nowhere/dead")
    return "/nowhere/dead"


def test_without_a_server_at_the_default_path_those_that_are_there_are_shown() -> None:
    dead()
    with ServerThread() as server:
        assert server.path in call("status").stdout
        (report,) = json.loads(call("status", "--json").stdout)
        assert report["server"]["socket"] == server.path
        result = call("status", "--socket", "/nowhere/named")
        assert isinstance(result.exception, ServerUnavailable), "that one was meant, and no other"


def test_a_server_at_the_default_path_is_the_one_that_is_meant() -> None:
    with ServerThread(), ServerThread(default_socket()) as default:
        assert json.loads(call("status", "--json").stdout)["server"]["socket"] == default.path


def test_where_no_server_is_the_default_one_is_said_to_be_missing() -> None:
    dead()
    error = call("status").exception
    assert isinstance(error, ServerUnavailable)
    assert error.path == default_socket()
    assert "aiotimer serve" in str(error)


def test_a_stuck_server_costs_a_bounded_time_and_is_said_and_a_dead_one_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ServerThread() as server, stuck() as one, stuck() as other:
        reports_of([server.path])  # what takes long the first time
        monkeypatch.setattr("aiotimer.client.control.ANSWER_WITHIN", STUCK)
        before = time.monotonic()
        result = call("status", "--all", "--json")
        assert time.monotonic() - before >= STUCK, "both were waited for"
        assert [report["server"]["socket"] for report in json.loads(result.stdout)] == [server.path]
        assert sorted(line.split("'")[1] for line in result.stderr.splitlines()) == sorted([one, other])
        assert result.stderr.count("no answer within 0.2 s") == 2
        assert dead() not in call("status", "--all").stderr


def test_a_server_of_another_user_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerThread():
        monkeypatch.setattr("aiotimer._linux.process.peer_uid", lambda _connection: 4711)
        result = call("status", "--all", "--json")
    assert json.loads(result.stdout) == []
    assert "it belongs to uid 4711; that server is not trusted" in result.stderr


@pytest.mark.parametrize("names_another", [False, True], ids=["", "environment"])
def test_dump_finds_the_server_that_knows_the_worker(
    names_another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotimer.client.control.ANSWER_WITHIN", STUCK)
    pid = str(os.getpid())
    dead()
    with ServerThread() as one, stuck(), ServerThread() as knows, TimerClient(knows.path) as client:
        if names_another:
            monkeypatch.setenv("AIOTIMER_SOCKET", one.path)
        client.acquire("here", time.monotonic() + 600)
        assert f"worker {pid} " in call("dump", pid).stdout
        found: dict[str, Any] = json.loads(call("dump", pid, "--json").stdout)
        assert [timer["scope"] for timer in found["timers"]] == ["here"]
        client.release("here")


def test_dump_says_that_no_server_knows_the_worker(runtime_directory: Path) -> None:
    dead()
    none = call("dump", "7").exception
    assert isinstance(none, Failed)
    assert (str(none), none.exit_code) == ("no timer server of this user is running", 69)
    with ServerThread():
        one = call("dump", "7").exception
        assert isinstance(one, Refused)
        assert "no worker with pid 7" in str(one)
        with ServerThread():
            several = call("dump", "7").exception
    assert isinstance(several, Failed)
    assert "none of the 2 timer servers of this user watches a worker with pid 7" in str(several)
