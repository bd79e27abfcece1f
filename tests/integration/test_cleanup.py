"""Cleanup: what private servers found out stays, a bounded number of times, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiotimer._core.requests import WorkerId
from aiotimer._linux import paths, table_files
from aiotimer._linux.process import pin
from aiotimer.client import control
from aiotimer.evidence.record import Record
from aiotimer.server import listener, recorded
from aiotimer.server.history import History
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_directory, short_socket
from tests.fakes.server import ServerThread
from tests.fakes.worker import bystander

pytestmark = pytest.mark.usefixtures("no_other_state")

GONE = 2**22 + 1
"""A pid above the greatest that there can be."""


def private(pid: int = GONE) -> str:
    """Return the path of a private server's socket."""
    return str(paths.base() / f"run-{pid}.sock")


def left_by(path: str, *, expiry: bool, table_of: int | None = None) -> Path:
    """Leave behind what a server does that was killed."""
    directory = paths.state_directory(path)
    made = History(directory)
    made.event({"event": "worker_gone", "time": 1.0})
    if expiry:
        number = 1 + len(list(directory.parent.iterdir()))
        made.record(Record(f"20261123T031205-{number}-1", pid=number), "stacks", "tasks")
    assert made.close(PATIENCE)
    if table_of is not None:
        try:
            worker, pidfd = pin(table_of)
        except ProcessLookupError:
            worker, pidfd = WorkerId(table_of, 1), -1
        file = table_files.create_table(directory, worker, 1, "shared")
        os.close(file.descriptor)
        if pidfd >= 0:
            os.close(pidfd)
    for suffix in ("", ".lock"):
        Path(path + suffix).touch()
    return directory


def names(directory: Path) -> set[str]:
    """What is in a directory."""
    return {path.name for path in directory.iterdir()}


def test_what_a_private_server_found_out_stays_and_nothing_else() -> None:
    path = private()
    directory = left_by(path, expiry=True, table_of=GONE)
    listener.clean_up(path)
    assert names(directory) == {"history.db", "evidence", "ended", "namespaces"}
    assert names(directory.parent) == {directory.name}
    assert len(recorded.expiries(directory)) == 1
    assert paths.state_directories() == [directory]
    assert paths.state_directories(path) == [directory]
    assert paths.socket_of(directory) == path
    assert paths.known_sockets() == []


def test_a_private_server_that_found_out_nothing_leaves_nothing() -> None:
    path = private()
    directory = left_by(path, expiry=False, table_of=GONE)
    listener.clean_up(path)
    assert names(directory.parent) == set()
    listener.clean_up(path)


def test_evidence_without_a_history_stays_too() -> None:
    path = private()
    directory = left_by(path, expiry=True)
    (directory / recorded.DATABASE).write_bytes(b"garbage" * 1000)
    listener.clean_up(path)
    assert "evidence" in names(directory)


def test_a_history_that_tells_nothing_does_not_stay() -> None:
    path = private()
    directory = left_by(path, expiry=False)
    (directory / recorded.DATABASE).write_bytes(b"garbage" * 1000)
    listener.clean_up(path)
    assert not directory.exists()


def test_the_oldest_directories_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "KEEP", 2)
    made = []
    for number in range(4):
        path = private(GONE + number)
        made.append(left_by(path, expiry=True))
        listener.clean_up(path)
        os.utime(made[-1] / paths.ENDED, (number, number))
    listener.remove_orphaned()
    assert [directory.exists() for directory in made] == [False, False, True, True]


def test_a_server_where_another_one_has_ended_leaves_that_ones_history_alone() -> None:
    """The pid of another `aiotimer run` comes round: it is another socket, of the same name."""
    path = private()
    directory = left_by(path, expiry=True)
    listener.clean_up(path)
    with ServerThread(path) as server:
        assert paths.known_sockets() == [path]
        assert names(directory) == {"history.db", "evidence", "ended", "namespaces"}
        assert not [event for event in server.events if "ignoring" in str(event)]
        assert directory in paths.state_directories(path)
    assert len(recorded.expiries(directory)) == 1


def test_tables_of_a_server_whose_lock_file_was_removed_are_taken_over() -> None:
    """The path means the same place as long as the namespaces are the same; else nobody touches them."""
    with short_socket() as path, bystander() as pid:
        lost = left_by(path, expiry=False)
        worker, pidfd = pin(pid)
        file = table_files.create_table(lost, worker, os.fstat(pidfd).st_ino, "shared")
        for descriptor in (pidfd, file.descriptor):
            os.close(descriptor)
        foreign = lost.with_name("f" * 16)
        shutil.copytree(lost, foreign)
        (foreign / paths.NAMESPACES).write_text("1 2")
        os.rename(path + ".lock", path + ".kept")  # or the next one might be given its number
        os.unlink(path)
        with ServerThread(path) as server:
            told = server.wait(lambda: [event for event in server.events if event.event == "adopted"])
            (adopted,) = (event.detail for event in told)
            assert not (lost / adopted).exists()
            assert (paths.own_state_directories(path)[0] / adopted).exists()
        assert (foreign / adopted).exists()


def test_what_a_killed_private_server_left_is_removed() -> None:
    with_expiry = left_by(private(GONE + 1), expiry=True, table_of=GONE)
    without = left_by(private(GONE + 2), expiry=False, table_of=GONE)
    listener.remove_orphaned()
    assert names(with_expiry) == {"history.db", "evidence", "ended", "namespaces"}
    assert not without.exists()
    assert names(with_expiry.parent) == {with_expiry.name}


def test_what_may_be_needed_is_not_removed() -> None:
    with short_directory() as elsewhere:
        own = os.getpid()
        owner_lives = left_by(private(own), expiry=False, table_of=GONE)
        worker_lives = left_by(private(GONE + 1), expiry=False, table_of=own)
        public = left_by(str(elsewhere / "s"), expiry=False, table_of=GONE)
        newer = left_by(private(GONE + 2), expiry=False)
        (newer / "x.v99").touch()
        served = left_by(private(GONE + 3), expiry=False)
        lock = (
            "import sys, aiotimer.server.listener as r; lock = r.SocketLock(sys.argv[1]);"
            "print('held', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", lock, private(GONE + 3)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"held\n"
            before = {path: names(path) for path in (owner_lives, worker_lives, public, newer, served)}
            listener.remove_orphaned()
            assert {path: names(path) for path in before} == before
            server.kill()
    listener.remove_orphaned()
    assert not served.exists()


def test_where_nobody_can_listen_any_more_only_what_tells_of_expiries_stays() -> None:
    """As of a server that has ended: such directories are counted, and the oldest go."""
    with short_directory() as elsewhere:
        told = left_by(str(elsewhere / "a"), expiry=True, table_of=GONE)
        nothing = left_by(str(elsewhere / "b"), expiry=False, table_of=GONE)
    listener.remove_orphaned()
    assert names(told) == {"history.db", "evidence", "ended", "namespaces"}
    assert not nothing.exists()


def test_to_see_that_there_is_evidence_nothing_is_imported() -> None:
    """Every command that ends a server looks into what others have left."""
    with short_directory() as elsewhere:
        told = left_by(str(elsewhere / "a"), expiry=True)
    code = (
        "import pathlib, sys; before = {*sys.modules};"  # coverage's, if it is at work
        "from aiotimer._linux import paths; from aiotimer.server import listener;"
        f"paths.bases = lambda: iter([pathlib.Path({str(told.parent)!r})]);"  # nobody else's, as above
        "listener.remove_orphaned();"
        "print([name for name in ('asyncio', 'msgspec', 'sqlite3') if name in {*sys.modules} - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert told.exists()


def test_a_server_with_a_history_leaves_it_for_the_next() -> None:
    with short_directory() as elsewhere:
        path = str(elsewhere / "s")
        directory = left_by(path, expiry=True)
        os.unlink(path)
        with ServerThread(path):
            assert control.status(path)["workers"] == []
        assert {"history.db", "evidence", "socket", "namespaces"} <= names(directory)


def test_state_directories_are_told_by_name_and_those_of_a_path_alone() -> None:
    """A hidden one is one, too; what says nothing of a socket is of none."""
    made = sorted(paths.state_directory(f"/nowhere/{n}") for n in range(5))
    hidden = made[0].with_name(".hidden")
    hidden.mkdir(0o700)
    assert paths.state_directories() == [hidden, *made]
    assert paths.state_directories(paths.socket_of(made[3])) == [made[3]]
    assert paths.state_directories("/nowhere/else") == []


@pytest.mark.parametrize("odd", ["a link", "a file"])
def test_what_is_no_directory_of_ours_is_no_state(odd: str, tmp_path: Path) -> None:
    directory = paths.state_directory("/nowhere/s")
    other = directory.with_name("other")
    if odd == "a link":
        other.symlink_to(directory)
    else:
        other.touch()
    assert paths.state_directories() == [directory]
    assert paths.socket_of(tmp_path) is None
