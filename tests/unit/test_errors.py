"""Errors: caught as what they are, and tell their reader what to do.

(That all of them have one root and pickle is in test_structure.py; here are the facts they carry.)
"""

import pickle

import pytest

from aiotimer import AiotimerError, NotConfigured, Refused, ServerUnavailable, TableFull
from aiotimer.client.control import nobody_at
from aiotimer.errors import (
    AlreadyServing,
    ForeignProcess,
    NewerLayout,
    ProtocolError,
    ServerError,
    UnsafePath,
)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (NotConfigured, RuntimeError),
        (TableFull, RuntimeError),
        (ForeignProcess, PermissionError),
        (ServerUnavailable, ConnectionError),
        (Refused, ConnectionError),
        (ProtocolError, ConnectionError),
        (ServerError, RuntimeError),
    ],
)
def test_code_that_catches_the_builtin_catches_ours(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, AiotimerError)
    assert issubclass(kind, builtin)


def test_not_configured_says_what_to_do() -> None:
    message = str(NotConfigured())
    for way_out in ("aiotimer.configure()", "$AIOTIMER_SOCKET", "aiotimer run -- ", "client="):
        assert way_out in message


def test_an_absent_server_is_named_with_what_to_do() -> None:
    error = ServerUnavailable("/run/x.sock", "Connection refused", "start it")
    assert (error.path, error.reason, error.advice) == ("/run/x.sock", "Connection refused", "start it")
    assert str(error) == "no timer server at '/run/x.sock': Connection refused (start it)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(ServerUnavailable("/run/x.sock", "no answer")) == "no timer server at '/run/x.sock': no answer"


@pytest.mark.parametrize(
    ("path", "starting", "advice"),
    [
        ("/run/x.sock", "", "start one with `aiotimer serve --socket /run/x.sock`"),
        ("/run/x.sock", "1:0.0", "`aiotimer run`, under which this program was started"),
        ("/run/me/aiotimer/private-1-2.sock", "", "the programs that share it start it again"),
    ],
)
def test_the_advice_is_true_where_the_program_runs(
    path: str, starting: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOTIMER_SOCKET", path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/me")
    if starting:
        monkeypatch.setenv("AIOTIMER_STARTING", starting)
    assert advice in str(nobody_at(path, FileNotFoundError(2, "No such file or directory")))


def test_a_refusal_carries_the_servers_words() -> None:
    error = Refused("/run/x.sock", "it speaks protocol 2")
    assert (error.path, error.reason) == ("/run/x.sock", "it speaks protocol 2")
    assert "/run/x.sock" in str(error)
    assert "it speaks protocol 2" in str(error)


def test_a_full_table_says_how_full() -> None:
    error = TableFull(65_536, "all of them are armed")
    assert (error.armed, error.reason) == (65_536, "all of them are armed")
    assert "65536 armed" in str(error)
    assert "all of them are armed" in str(error)


def test_another_users_process_is_named_with_both_ways_out() -> None:
    error = ForeignProcess(7, 1000, 0)
    assert (error.pid, error.uid, error.server_uid) == (7, 1000, 0)
    assert "process 7 belongs to uid 1000, and this server serves uid 0 only" in str(error)
    assert "run a server as uid 1000" in str(error)
    assert "start the process as uid 0" in str(error)


@pytest.mark.parametrize(
    ("kind", "code"), [(ServerError, 70), (AlreadyServing, 69), (UnsafePath, 77), (NewerLayout, 78)]
)
def test_a_server_that_cannot_start_has_an_exit_code(kind: type[ServerError], code: int) -> None:
    assert kind("why").exit_code == code
    assert str(kind("why")) == "why"
