"""The history: written by one thread, read by anybody at any time, whatever ended the writer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from aiotimer._core.durations import Durations
from aiotimer.errors import HistoryUnreadable
from aiotimer.evidence.record import Record
from aiotimer.evidence.store import load
from aiotimer.server import history as module
from aiotimer.server.history import History
from aiotimer.server.recorded import DATABASE, events, expiries, scopes
from tests.fakes.clock import PATIENCE
from tests.fakes.worker import FORKS, spawn_worker


def record(number: int = 1, **more: Any) -> Record:
    """A record of which the history keeps all."""
    path = f"20261123T03{number:04}-{4000 + number}-{number}"
    known = Record(path, outcome="pending", time=100.0 + number, pid=4000 + number, scope="train.py:42")
    return known._replace(**more)


def event(number: int = 1, **more: Any) -> dict[str, Any]:
    """An event as its sinks get it."""
    return {"event": "expired", "time": 100.0 + number, "pid": number, "detail": ""} | more


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of the server's state; it is made by what is written first."""
    return tmp_path / "state"


def write(directory: Path, *records: Record) -> None:
    """Write records and close."""
    history = History(directory)
    for one in records:
        history.record(one)
    assert history.close(PATIENCE)


def test_nothing_is_made_before_there_is_something_to_write(directory: Path) -> None:
    history = History(directory)
    assert (expiries(directory), events(directory), scopes(directory)) == ([], [], [])
    assert history.close(PATIENCE)
    assert not directory.exists()


def test_an_expiry_is_one_row_that_changes_and_one_directory(directory: Path) -> None:
    history = History(directory)
    history.record(record(), "stacks", "tasks")
    history.record(record(2))
    history.record(record(outcome="reaped", verdict="stopped", tasks=[{"name": "t"}]))
    assert history.close(PATIENCE)
    newest, first = expiries(directory)
    assert (newest.pid, newest.outcome) == (4002, "pending")
    assert (first.pid, first.outcome, first.verdict) == (4001, "reaped", "stopped")
    assert expiries(directory, pid=4001) == [first]
    assert expiries(directory, limit=1) == [newest]
    assert expiries(directory, pid=1) == []
    kept = directory / "evidence" / first.id
    assert load(kept) == first._replace(tasks=[{"name": "t"}]), "of which the row is a summary"
    assert first.evidence == str(kept)
    assert (kept / "stacks.txt").read_text() == "stacks"
    assert (kept / "tasks.txt").read_text() == "tasks"
    assert (directory / DATABASE).stat().st_mode & 0o777 == 0o600


def test_evidence_that_could_not_be_kept_is_not_pointed_at(directory: Path) -> None:
    directory.mkdir()
    (directory / "evidence").write_text("in the way")
    whole = record(evidence="/x", tasks=[{"name": "t"}])
    write(directory, whole)
    assert expiries(directory) == [whole._replace(evidence="")], "the row has what the directory cannot have"


def test_events_are_read_in_their_order_and_from_where_one_was(directory: Path) -> None:
    history = History(directory)
    for number in range(1, 6):
        history.event(event(number, detail="\udcff\x1b"))
    assert history.flush(PATIENCE)
    read = events(directory)
    assert [found["pid"] for _, found in read] == [1, 2, 3, 4, 5]
    assert read[0][1] == event(1, detail="\udcff\x1b")
    assert [found["pid"] for _, found in events(directory, limit=2)] == [4, 5]
    last = read[-1][0]
    assert events(directory, after=last) == []
    history.event(event(6))
    assert history.close(PATIENCE)
    assert [found["pid"] for _, found in events(directory, after=last)] == [6]


def test_a_long_event_is_cut(directory: Path) -> None:
    history = History(directory)
    history.event(event(detail="x" * 100_000))
    assert history.close(PATIENCE)
    ((_, found),) = events(directory)
    assert found["event"] == "expired"
    assert len(json.dumps(found)) <= module.EVENT_BYTES


def durations(*buckets: int, maximum: float = 1.0) -> Any:
    """Return the JSON of durations with an entry in each of these buckets."""
    made = Durations()
    for bucket in buckets:
        made.counts[bucket] += 1
    made.maximum = maximum
    return made.as_json()


def took(scope: str, durations: Any, count: int, limit: float | None) -> dict[str, Any]:
    """Return what a worker has done in a scope."""
    return {"scope": scope, "durations": durations, "count": count, "limit_s": limit}


def test_durations_of_a_scope_are_added_up(directory: Path) -> None:
    history = History(directory)
    history.durations([took("a\udcff", durations(30, maximum=2.0), 7, 60.0)])
    history.durations([took("b", durations(31), 1, None)])
    history.durations([took("a\udcff", durations(30, 32, maximum=1.0), 3, None)])
    assert history.close(PATIENCE)
    b, a = scopes(directory)
    assert (b["scope"], b["count"], b["limit_s"]) == ("b", 1, None)
    assert (a["scope"], a["count"], a["limit_s"]) == ("a\\udcff", 10, 60.0)
    assert Durations.from_json(a["durations"]).as_json() == durations(30, 30, 32, maximum=2.0)


def test_every_table_is_capped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS", 3)
    monkeypatch.setattr(module, "EXPIRIES", 4)
    monkeypatch.setattr(module, "SCOPES", 2)
    history = History(directory)
    for number in range(10):
        history.record(record(number))
        history.record(record(number, outcome="reaped"))
        history.event(event(number))
        history.durations([took(f"s{number}", durations(30), 1, None)])
        history.durations([took("s0", durations(30), 1, None)])
    assert history.close(PATIENCE)
    assert [one.pid for one in expiries(directory)] == [4009, 4008, 4007, 4006]
    assert [one["pid"] for _, one in events(directory)] == [7, 8, 9]
    assert [one["scope"] for one in scopes(directory)] == ["s9", "s0"], "what is in use stays"


def test_no_worker_crowds_out_what_is_told_about_another(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS", 30)
    monkeypatch.setattr(module, "EXPIRIES", 30)
    for _ in range(2):  # and a later history knows it too
        history = History(directory)
        history.event(event(1, event="reaped"))
        history.record(record(1, outcome="reaped"))
        for number in range(100):
            history.event(event(2, detail=str(number)))
            history.record(record(2, id=f"20261123T040000-4002-{number}"))
            assert history.flush(PATIENCE)
        assert history.close(PATIENCE)
    about = [found["pid"] for _, found in events(directory)]
    assert (about.count(1), about.count(2)) == (2, 28)
    assert events(directory)[-1][1]["detail"] == "99"
    about = [found.pid for found in expiries(directory)]
    assert (about.count(4001), about.count(4002)) == (1, 29)


def test_fault_85_what_happened_goes_before_how_long_scopes_took(directory: Path) -> None:
    """Sixteen workers die at once, of which each brings more scopes than can wait."""
    write(directory, record(1))
    history = History(directory, capacity=40)  # there is room for their ends, and not for much else
    with contextlib.closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(16):
            history.record(record(number + 2))
            history.event(event(number, event="expired"))
            for scope in range(1500):
                history.durations([took(f"s{scope}", durations(30), 1, None)])
            history.record(record(number + 2, outcome="reaped"))
            history.event(event(number, event="reaped"))
        other.execute("ROLLBACK")
    history.close(PATIENCE)
    assert [found.outcome for found in expiries(directory, limit=16)] == ["reaped"] * 16
    assert [found["event"] for _, found in events(directory)].count("reaped") == 16


def test_nothing_is_pending_for_ever(directory: Path) -> None:
    """The server that dealt with it was killed; what is pending in the next one is its own."""
    write(directory, record(1), record(2, outcome="late"))
    write(directory, record(3))
    assert [found.outcome for found in expiries(directory)] == ["pending", "late", "unknown"]
    assert "its server ended" in expiries(directory)[2].detail


def test_a_later_history_goes_on(directory: Path) -> None:
    write(directory, record(1))
    write(directory, record(2))
    assert [one.pid for one in expiries(directory)] == [4002, 4001]


def test_readers_and_the_writer_do_not_hold_each_other_up(directory: Path) -> None:
    write(directory, record(1))
    location = f"{(directory / DATABASE).as_uri()}?mode=ro"
    reader = sqlite3.connect(location, uri=True, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM expiries").fetchone() == (1,)
    history = History(directory)
    history.record(record(2))
    assert history.flush(PATIENCE), "while somebody reads"
    assert reader.execute("SELECT count(*) FROM expiries").fetchone() == (1,), "what it began with"
    assert len(expiries(directory)) == 2
    reader.close()
    assert history.close(PATIENCE)


def test_readers_only_read(directory: Path) -> None:
    write(directory, record(1))
    before = (directory / DATABASE).read_bytes()
    assert len(expiries(directory)) == 1
    assert (directory / DATABASE).read_bytes() == before


def test_what_is_not_a_database_is_moved_aside(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory.mkdir()
    (directory / DATABASE).write_bytes(b"garbage" * 1000)
    with pytest.raises(HistoryUnreadable, match=DATABASE):
        expiries(directory)
    write(directory, record(1))
    assert [one.pid for one in expiries(directory)] == [4001]
    assert (directory / (DATABASE + ".corrupt")).read_bytes() == b"garbage" * 1000
    (line,) = caplog.messages
    assert "is corrupt" in line


def test_a_database_that_goes_bad_in_the_middle_is_moved_aside(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(directory, *map(record, range(100)))
    path = directory / DATABASE
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    history = History(directory)
    history.record(record(200))
    history.event(event())
    history.durations([took("s", durations(30), 1, None)])
    assert history.close(PATIENCE)
    assert [one.pid for one in expiries(directory)] == [4200]
    assert "is corrupt" in caplog.text


BEFORE = """
CREATE TABLE expiries (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, time REAL, pid INTEGER, scope TEXT, outcome TEXT,
    evidence TEXT, record TEXT NOT NULL);
CREATE INDEX expiries_of_pid ON expiries (pid, number);
CREATE TABLE events (number INTEGER PRIMARY KEY, time REAL, pid INTEGER, event TEXT NOT NULL);
CREATE TABLE scopes (
    number INTEGER PRIMARY KEY, scope TEXT UNIQUE NOT NULL, count INTEGER NOT NULL, limit_s REAL,
    durations TEXT NOT NULL);
INSERT INTO events (time, pid, event) VALUES (1.0, 7, '{"event": "late"}');
INSERT INTO scopes (scope, count, limit_s, durations)
    VALUES ('s', 7, 60.0, '{"": {"max_s": 2.0, "counts": [3]}}');
PRAGMA user_version = 1;
"""
"""What version 1 of the tables was."""


def test_a_history_of_before_is_read_as_it_is_and_loses_nothing_when_it_is_written(directory: Path) -> None:
    directory.mkdir()
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as connection:
        connection.executescript(BEFORE)
    (before,) = scopes(directory)
    assert (before["program"], before["scope"], before["count"], before["limit_s"]) == ("", "s", 7, 60.0)
    history = History(directory)
    history.durations([took("s", durations(30), 1, None) | {"program": "train.py"}])
    history.event(event(8))
    assert history.close(PATIENCE)
    old, new = scopes(directory)
    assert old == before
    assert (new["program"], new["scope"], new["count"]) == ("train.py", "s", 1)
    assert [found["event"] for _, found in events(directory)] == ["late", "expired"]


def test_a_newer_history_is_left_alone(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(directory, record(1))
    with sqlite3.connect(directory / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (directory / DATABASE).read_bytes()
    history = History(directory)
    history.event(event())
    history.record(record(2))
    assert history.close(PATIENCE)
    assert (directory / DATABASE).read_bytes() == before
    assert load(directory / "evidence" / record(2).id).pid == record(2).pid, "which is not in it"
    (line,) = caplog.messages
    assert "newer aiotimer" in line


def test_a_directory_that_is_cleaned_up_is_made_again(directory: Path) -> None:
    history = History(directory)
    history.record(record(1))
    assert history.flush(PATIENCE)
    shutil.rmtree(directory)
    history.record(record(2))
    assert history.close(PATIENCE)
    assert [one.pid for one in expiries(directory)] == [4002]


def test_what_cannot_be_written_costs_one_line_and_comes_back(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.write_text("a file is in the way")
    history = History(directory)
    history.event(event(1))
    history.event(event(2))
    assert history.flush(PATIENCE)
    (line,) = caplog.messages
    assert "no history can be written" in line
    directory.unlink()
    history.event(event(3))
    assert history.close(PATIENCE)
    assert [one["pid"] for _, one in events(directory)] == [3]


def test_the_caller_is_never_held_up(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While another holds the database for itself, what comes waits, and what does not fit is dropped."""
    write(directory, record(1))
    history = History(directory, capacity=2)
    with contextlib.closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(2, 12):
            history.record(record(number))
        other.execute("ROLLBACK")
    assert history.close(PATIENCE)
    dropped = sum(int(count) for count in re.findall(r"(\d+) history dropped", caplog.text))
    assert dropped >= 7, "one is being written, two wait"
    assert len(expiries(directory)) == 1 + 10 - dropped


def test_closing_is_bounded(directory: Path) -> None:
    write(directory, record(1))
    other = sqlite3.connect(directory / DATABASE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    history = History(directory)
    history.record(record(2))
    assert not history.close(0.0)
    other.execute("ROLLBACK")
    other.close()
    for thread in threading.enumerate():
        if thread.name == "aiotimer-history":
            thread.join(PATIENCE)


@FORKS
def test_a_forked_child_writes_nothing(directory: Path) -> None:
    history = History(directory)
    history.record(record(1))
    assert history.flush(PATIENCE)
    pid = os.fork()
    if not pid:
        history.abandon()
        history.record(record(2))
        os._exit(0 if history.close(PATIENCE) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    history.record(record(3))
    assert history.close(PATIENCE)
    assert [one.pid for one in expiries(directory)] == [4003, 4001]


WRITERS = """
import os, sys
from pathlib import Path
from aiotimer.evidence.record import Record
from aiotimer.server.history import History

def write():
    history = History(Path(sys.argv[1]))
    pid = os.getpid()
    number = 0
    while True:
        number += 1
        name = f"20261123T030000-{pid}-{number}"
        history.record(Record(name, pid=pid, tasks=[{"name": "t" * 500}]), "stacks", "tasks")
        history.event({"event": "expired", "time": 1.0, "pid": pid})
        if number % 50 == 0:
            history.flush(30)

for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        write()
    os.write(1, b"writing %d\\n" % pid)
    os.waitpid(pid, 0)
    os.write(1, b"gone\\n")
"""
"""For every line, a process that writes until it is killed."""


def test_a_writer_killed_at_any_moment_leaves_a_history_that_opens(directory: Path) -> None:
    written = 0
    with spawn_worker(WRITERS, None, str(directory)) as nursery:
        for _ in range(20):
            nursery.say()
            pid = int(nursery.wait_line("writing").split()[-1])
            while len(events(directory, after=written)) < 3:
                assert nursery.process.poll() is None
            os.kill(pid, signal.SIGKILL)
            nursery.wait_line("gone")
            found = events(directory)
            assert found[-1][0] > written
            written = found[-1][0]
            newest = expiries(directory, limit=1)[0]
            assert load(Path(newest.evidence)).summary() == newest
            with sqlite3.connect(directory / DATABASE) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()
