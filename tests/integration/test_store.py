"""The evidence's directories: whole or not there, private, capped, and no trouble to anybody."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from aiotimer.errors import UnsafePath
from aiotimer.evidence import store as module
from aiotimer.evidence.record import Record
from aiotimer.evidence.store import RUN_BYTES, Store, as_json, cut, entries, load, runs


def record(number: int = 1, **more: Any) -> Record:
    """A record with an id of its own."""
    return Record(f"20261123T03{number:04}-4242-{number}", scope="s")._replace(**more)


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def test_an_expiry_is_a_private_directory_of_three_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "evidence")
    assert store.save(record(), "stacks\udcff", "tasks")
    path = store.path_of(record().id)
    assert names(path) == ["expiry.json", "stacks.txt", "tasks.txt"]
    assert load(path) == record()
    assert (path / "stacks.txt").read_text() == "stacks\\udcff"
    assert (path / "tasks.txt").read_text() == "tasks"
    assert {p.stat().st_mode & 0o777 for p in (store.directory, path)} == {0o700}
    assert {p.stat().st_mode & 0o777 for p in path.iterdir()} == {0o600}
    assert [path] == entries(store.directory)


def test_what_is_saved_again_keeps_the_texts_that_are_not_given_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(record(), "stacks", "tasks")
    assert store.save(record(outcome="reaped"))
    path = store.path_of(record().id)
    assert load(path).outcome == "reaped"
    assert (path / "stacks.txt").read_text() == "stacks"
    assert names(path) == ["expiry.json", "stacks.txt", "tasks.txt"]
    assert store.save(record(outcome="again"), "more", "")
    assert (path / "stacks.txt").read_text() == "more"
    assert (path / "tasks.txt").read_text() == "tasks"


def test_the_oldest_go_first_by_number(tmp_path: Path) -> None:
    (tmp_path / "20261123T030000-of-somebody").mkdir()
    (tmp_path / "notes").mkdir()
    store = Store(tmp_path, keep=3)
    for number in range(5):
        store.save(record(number), "", "")
    kept = [record(number).id for number in (2, 3, 4)]
    assert names(tmp_path) == sorted([*kept, "20261123T030000-of-somebody", "notes"])


def test_of_one_second_the_oldest_go_first_too(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=3)
    for number in (8, 9, 10, 11):
        name = f"20261123T031205-{5000 - number}-{number}"
        store.save(record(id=name), "", "")
        os.utime(tmp_path / name, (1, 1))
    assert [path.name.rpartition("-")[2] for path in entries(tmp_path)] == ["9", "10", "11"]


def test_the_oldest_go_first_by_size(tmp_path: Path) -> None:
    store = Store(tmp_path, size=25_000)
    for number in range(5):
        store.save(record(number), "x" * 10_000, "")
    assert names(tmp_path) == [record(number).id for number in (3, 4)]


def test_no_worker_crowds_out_another(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=20)
    store.save(record(1, id="20261123T030000-1-1"), "", "")
    for number in range(100):
        store.save(record(number), "", "")
    assert names(tmp_path) == ["20261123T030000-1-1", *(record(number).id for number in range(81, 100))]


@pytest.mark.parametrize("where", ["evidence", "above"])
def test_a_directory_in_which_others_can_write_is_refused(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    above = tmp_path / "above"
    directory = above / "evidence"
    store = Store(directory)
    assert store.save(record())
    kept = store.path_of(record().id)
    (directory if where == "evidence" else above).chmod(0o777)
    with pytest.raises(UnsafePath, match="can be written by others"):
        Store(directory)
    with pytest.raises(UnsafePath, match="can be written by others"):
        load(kept)
    assert not store.save(record(2))
    (line,) = caplog.messages
    assert "no evidence can be kept" in line
    assert "can be written by others" in line
    assert names(directory) == [kept.name]


def test_a_directory_behind_a_link_is_as_safe_as_where_it_leads(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(target)
    assert Store(tmp_path / "link").save(record())
    target.chmod(0o770)
    with pytest.raises(UnsafePath):
        load(tmp_path / "link" / record().id)


def test_texts_that_come_later_count_too(tmp_path: Path) -> None:
    store = Store(tmp_path, size=25_000)
    for number in range(3):
        store.save(record(number), "", "")
    for number in range(3):
        store.save(record(number), "x" * 10_000, "")
    assert names(tmp_path) == [record(number).id for number in (1, 2)]


def test_stores_that_share_a_directory_keep_it_bounded(tmp_path: Path) -> None:
    first, second = Store(tmp_path, keep=3), Store(tmp_path, keep=3)
    for number in range(20):
        (first, second)[number % 2].save(record(number), "", "")
    assert len(names(tmp_path)) <= 6
    assert names(tmp_path)[-1] == record(19).id


def test_what_a_killed_process_did_not_finish_is_no_entry_and_goes(tmp_path: Path) -> None:
    gone = 2**22 + 1  # above the greatest pid_max
    unfinished = tmp_path / f".new-{gone}-{record().id}"
    unfinished.mkdir()
    (unfinished / "expiry.json").write_text("{")
    of_another = tmp_path / f".new-1-{record().id}"
    of_another.mkdir()
    assert entries(tmp_path) == []
    Store(tmp_path).save(record(), "", "")
    assert names(tmp_path) == [of_another.name, record().id]


@pytest.mark.parametrize("bad", ["", "..", "../../etc", "20261123T031205-1-1/..", "20261123T031205"])
def test_only_ids_name_directories(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="not the id"):
        Store(tmp_path).path_of(bad)


def test_a_file_system_that_takes_nothing_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    assert store.save(record(), "", "")
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(module, "_create", full)
        assert not store.save(record(2), "", "")
        assert not store.save(record(3), "", "")
        assert not store.save(record())
    (line,) = caplog.messages
    assert "No space left" in line
    assert names(tmp_path) == [record().id], "nothing half made is left"
    assert store.save(record(2), "", "")


def test_a_store_that_is_a_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("")
    assert not Store(tmp_path / "evidence").save(record(), "", "")
    assert entries(tmp_path / "evidence") == []


@pytest.mark.parametrize("text", ["x" * 1_000_000, "é" * 500_000, "\udcff" * 100_000])
def test_long_texts_are_cut_and_say_so(text: str) -> None:
    short = cut(text)
    assert len(short.encode(errors="backslashreplace")) <= module.TEXT_BYTES
    assert short.endswith("bytes in all: cut here\n")
    assert text.startswith(short[:1000]) or "\\udcff" in short
    assert cut("short") == "short"


def test_one_expiry_takes_less_than_a_mebibyte(tmp_path: Path) -> None:
    frames = [["/some/where/train.py", 42, "rollout"]] * 50
    huge = record(
        tasks=[{"name": str(n), "frames": frames} for n in range(5_000)],
        stacks=[{"thread": str(n), "frames": frames} for n in range(500)],
        process={"children": [{"pid": n, "name": "x"} for n in range(50_000)]},
    )
    store = Store(tmp_path)
    assert store.save(huge, "x" * 5_000_000, "\n" * 5_000_000)
    path = store.path_of(huge.id)
    assert sum(p.stat().st_size for p in path.iterdir()) < 1024 * 1024
    kept = load(path)
    assert kept.tasks[0] == huge.tasks[0]
    assert kept.stacks


def test_json_is_strict_and_small_whatever_it_is_made_of() -> None:
    odd: dict[Any, Any] = {
        "id": "x",
        "a": float("inf"),
        "b": [float("nan"), (1, 2)],
        "c": Path("/x"),
        "d": "\udcff",
        1: True,
    }
    assert json.loads(as_json(odd, 1000)) == {
        "id": "x", "a": None, "b": [None, [1, 2]], "c": "/x", "d": "\udcff", "1": True,
    }  # fmt: skip
    assert json.loads(as_json({"id": "x", "verdict": "v" * 9_999, "tasks": "t" * 9_999}, 1000))["id"] == "x"
    assert len(as_json({"id": "x", "verdict": "\x00" * 9_999, "other": [1] * 9_999}, 1000)) < 1000


def test_what_is_not_a_record_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path)
    (tmp_path / "expiry.json").write_text("[]")
    with pytest.raises(ValueError, match="no object"):
        load(tmp_path)
    (tmp_path / "expiry.json").write_text("{")
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        load(tmp_path)
    (tmp_path / "expiry.json").unlink()
    os.mkfifo(tmp_path / "expiry.json")
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        load(tmp_path)


def run(number: int = 1, **more: Any) -> dict[str, Any]:
    """What the record of a roll call says besides its members."""
    return {"id": f"20261123T03{number:04}-run-{number}", "event": "run", "run": "4711"} | more


def test_a_roll_call_is_kept_beside_the_expiries_and_is_none_of_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(record(1), "stacks", "")
    members = [{"rank": 0, "evidence": {"stacks": [{"frames": []}]}}, {"rank": 1, "evidence": {}}]
    assert store.save_run(run(2), members)
    assert store.save_run(run(3, run="4712"), [])
    assert store.save_run(run(2, verdict="rank 1"), members), "again, when more is known"
    path = store.path_of(run(2)["id"])
    assert names(path) == ["run.json"]
    assert (path / "run.json").stat().st_mode & 0o777 == 0o600
    assert list(runs(tmp_path)) == [run(3, run="4712", members=[]), run(2, verdict="rank 1", members=members)]
    assert entries(tmp_path) == [store.path_of(record(1).id)]


def test_the_members_of_a_run_have_the_same_share_of_room(tmp_path: Path) -> None:
    frames = [["/srv/app/train.py", line, "step"] for line in range(200)]
    evidence = {"stacks": [{"frames": frames} for _ in range(10)], "process": {"state": "S"}}
    members = [{"rank": rank, "name": "x" * 64, "evidence": evidence} for rank in range(64)]
    store = Store(tmp_path)
    assert store.save_run(run(), members)
    assert (store.path_of(run()["id"]) / "run.json").stat().st_size <= RUN_BYTES + 4096
    (found,) = runs(tmp_path)
    assert [member["rank"] for member in found["members"]] == list(range(64))
    assert all(member["evidence"]["process"] == {"state": "S"} for member in found["members"])


def test_runs_crowd_out_no_expiries(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=4)
    for number in range(3):
        store.save(record(id=f"20261123T030000-{number + 7}-{number}"), "", "")
    for number in range(3, 9):
        store.save_run(run(number), [])
    assert len(entries(tmp_path)) == 2, "one has made room for the second, then a run for a run"
    assert [found["id"] for found in runs(tmp_path)] == [run(8)["id"], run(7)["id"]]


def test_what_is_no_record_of_a_run_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_run(run(1), [])
    for number, text in ((2, "[]"), (3, "{"), (4, None)):
        path = tmp_path / run(number)["id"]
        path.mkdir(mode=0o700)
        if text is not None:
            (path / "run.json").write_text(text)
    assert [found["id"] for found in runs(tmp_path)] == [run(1)["id"]]
    assert list(runs(tmp_path / "nowhere")) == []
