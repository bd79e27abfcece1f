"""The page on a terminal of 80 columns: what its first lines tell, and what it leaves to --full."""

import io
import re
from pathlib import Path
from typing import Any

import pytest

from aiotimer.cli.page import SCREEN, print_page
from aiotimer.evidence.findings import stack
from aiotimer.evidence.record import Record

LIB = "/usr/lib/python3.11"
POOL = [
    [f"{LIB}/threading.py", 1002, "_bootstrap"],
    [f"{LIB}/concurrent/futures/thread.py", 81, "_worker"],
]
MAIN = [
    ["/srv/app/serve.py", 40, "<module>"],
    [f"{LIB}/asyncio/runners.py", 190, "run"],
    [f"{LIB}/asyncio/base_events.py", 640, "run_until_complete"],
    [f"{LIB}/asyncio/base_events.py", 1900, "_run_once"],
    [f"{LIB}/asyncio/events.py", 80, "_run"],
    ["/srv/app/handlers.py", 12, "score"],
]


def record(**more: Any) -> Record:
    """A record of a hang in a handler, in a process whose directory is /srv/app."""
    known: dict[str, Any] = {
        "id": "20261123T031205-4242-1", "event": "reaped", "outcome": "reaped", "time": 1795403525.1,
        "pid": 4242, "name": "serve.py rank 3/8", "host": "node7", "scope": "request", "limit_s": 5.0,
        "exact": True, "entered": 1795403520.0, "ran_s": 5.001, "late_s": 0.001,
        "verdict": "event loop blocked in Python at handlers.py:12 in score", "where": "handlers.py:12",
        "ladder": "dump,KILL", "signals": [{"signal": "SIGKILL", "after_s": 0.2}],
        "timers": [timer("request")], "process": {"state": "R (running)", "cwd": "/srv/app"},
        "stacks": [stack("MainThread", MAIN)],
    }  # fmt: skip
    return Record.from_json(known | more)


def timer(scope: str, left: float = -0.001, **more: Any) -> dict[str, Any]:
    """What a record says of a timer."""
    ran = {"count": 9, "sampled": 0}
    return {"scope": scope, "remaining_s": left, "limit_s": 5.0, "observed": False, "ran": ran} | more


def lines(of: Record, width: int | None = 80, *, full: bool = False) -> list[str]:
    """The lines of a page."""
    file = io.StringIO()
    print_page(of, file, width, full=full)
    return file.getvalue().splitlines()


def test_the_first_five_lines_answer_who_where_why_and_since_when() -> None:
    assert lines(record(verdict="stopped"))[:6] == [
        'worker 4242 (serve.py rank 3/8, on node7) was reaped, in "request" for 5.001 s',
        "(limit 5.000 s), 2026-11-23 03:12:05 UTC",
        "why       stopped",
        "where     handlers.py:12 in score",
        "timer     entered 2026-11-23 03:12:00 UTC; first action 1 ms after the deadline",
        "before    entered 9 times",
    ]


def test_of_a_first_entry_the_page_says_so_beside_its_limit() -> None:
    said = "\n".join(lines(record(first=True, limit_s=60.0, ran_s=60.001), None))
    assert 'in "request" for 60.0 s (limit 60.0 s, first entry of this scope), 2026' in said


def test_of_what_was_sampled_the_page_says_that_it_is_about() -> None:
    said = "\n".join(lines(record(exact=False), None))
    assert 'in "request" for about 5.001 s' in said
    assert "limit and entry are those of the last entry that was sampled" in said


def test_the_guilty_thread_comes_first_with_its_native_frames_and_idle_ones_are_counted() -> None:
    loader = stack("loader", [*POOL[:1], ["/srv/app/data.py", 15, "read"]])
    guilty = stack("MainThread", MAIN) | {
        "native": [
            "call (_ctypes.cpython-311-x86_64-linux-gnu.so)",
            "clock_nanosleep (libc.so.6)",
            "0x7f9fce6aed90 (libc.so.6)",
        ]
    }
    nameless = stack("", [["/srv/app/data.py", 7, "scan"]]) | {"tid": 77}
    said = lines(record(stacks=[*[stack("pool", POOL)] * 7, loader, nameless, guilty]))
    first = next(number for number, line in enumerate(said) if line.startswith("thread "))
    assert said[first : first + 8] == [
        "thread    MainThread",
        "          > serve.py:40 in <module>",
        "            ... 4 frames in asyncio",
        "          > handlers.py:12 in score",
        "            in C: call (_ctypes), clock_nanosleep (libc.so.6)",
        "threads   loader at data.py:15 in read",
        "          tid 77 at data.py:7 in scan",
        "          7 idle pool threads",
    ]


def test_a_hundred_requests_of_one_scope_leave_room_for_the_line() -> None:
    siblings = [timer(f"request#{number}", 5.0 - number / 100) for number in range(2, 101)]
    siblings[1]["limit_s"] = None  # it was not sampled
    other = timer("epoch", 3000.0, limit_s=3600.0)
    tasks = [
        {"name": f"request-{number}", "thread": "MainThread", "frames": [["/srv/app/other.py", number, "f"]]}
        for number in range(99)
    ]
    said = lines(record(timers=[timer("request"), *siblings, other], tasks=tasks))
    assert len(said) <= SCREEN
    assert "where     handlers.py:12 in score" in said
    assert said[said.index("          > handlers.py:12 in score") + 1 :][:2] == [
        'also      99 × "request": limit 5.000 s, the soonest: 4.000 s left',
        '          "epoch": limit 1 h 00 min, 50 min 00 s left',
    ]
    assert "          and 89 more, in tasks.txt" in said


def test_the_whole_is_on_one_screen_unless_all_is_asked_for() -> None:
    frames = [["/srv/app/deep.py", number, f"f{number}"] for number in range(300)]
    stacks = [stack(f"t{number}", frames) | {"gil": True} for number in range(20)]
    known = record(stacks=stacks, verdict="v " * 250, where="deep.py:7")
    said = lines(known)
    assert len(said) == SCREEN
    assert re.search(r"\.\.\. \d+ lines more: --full prints them", "\n".join(said))
    assert said[-1].startswith("evidence "), "what comes last is there"
    whole = lines(known, full=True)
    assert sum("deep.py:" in line for line in whole) == 20 * 300 + 1


def test_no_word_is_broken_and_no_path_either() -> None:
    deep = "/home/you/projects/a-long-name/of-another/directory/deeper/still/train.py"
    known = record(
        verdict="blocked in Python " * 9, where="train.py:5", detail="a " * 90, process={"cwd": "/srv"},
        stacks=[stack("MainThread", [[deep, 5, "rollout_of_a_long_name"]])],
        timers=[timer("request", note={"uid": "17", "prompt": "word " * 30})],
    )  # fmt: skip
    said = lines(known)
    assert all(len(line) <= 80 for line in said)
    words = {word for line in lines(known, None) for word in line.split()}
    assert {word for line in said for word in line.split()} - words == {
        ".../directory/deeper/still/train.py:5"
    }
    assert f"          > {deep}:5 in rollout_of_a_long_name" in lines(known, None), (
        "what is no terminal has room"
    )


def test_who_blocks_the_loop_is_not_said_to_be_who_expired() -> None:
    others = [timer(f"request#{n}", 4.0, note={"uid": str(n)}) for n in (2, 3)]
    blocked = record(
        timers=[timer("request", note={"uid": "1"}), *others, timer("epoch", 9.0, note={"n": "7"})]
    )
    said = lines(blocked, None)
    assert "note      uid=1 (of the block that expired)" in said
    at = said.index('also      2 × "request": limit 5.000 s, the soonest: 4.000 s left, notes: uid=2; uid=3')
    assert said[at + 1].endswith("9.000 s left, note: n=7")
    assert (
        said[at + 2].strip()
        == "which of these blocks, or the expired one, the loop is blocked in is not known"
    )
    alone = lines(record(timers=[timer("request", note={"uid": "1"})]), None)
    assert "note      uid=1" in alone
    assert "is not known" not in "".join(alone)
    many = lines(record(timers=[timer("r"), *(timer("r", note={"uid": n}) for n in range(12))]), None)
    assert any(line.endswith("uid=9; and 2 more") for line in many)


def test_a_note_says_which_request_it_was() -> None:
    said = lines(record(timers=[timer("request", note={"uid": "17", "step\n": "\x1b[2J"})]))
    assert "note      uid=17, step\\n=\\x1b[2J" in said


def test_the_first_entry_of_a_scope_is_said_to_be_that() -> None:
    said = lines(record(timers=[timer("request", ran={"count": 1, "sampled": 1, "median_s": None})]))
    assert "before    this is the first entry of this scope" in said


def test_what_there_is_nothing_to_know_about_is_not_unknown() -> None:
    probes = {
        "proc": "0.002 s",
        "tasks": "no loop of the worker has said that it would answer",
        "py-spy": "not needed: the unwinder saw all that it would",
        "stacks": "the worker shares no table to write them to",
    }
    assert not any(line.startswith("unknown") for line in lines(record(probes=probes)))
    assert "unknown   stacks: the worker shares no table to write them to" in lines(
        record(probes=probes, stacks=[])
    )
    silent = probes | {
        "tasks": "no answer within 0.5 s",
        "py-spy": "failed: Error: Permission denied (os error 13)",
    }
    assert "unknown   tasks: no answer within 0.5 s; py-spy: failed: Permission denied" in lines(
        record(probes=silent)
    )


def test_a_child_of_which_something_is_known_has_a_line() -> None:
    children = [
        {"pid": 9, "name": "python", "state": "S (sleeping)"},
        {"pid": 10, "name": "python", "state": "Z (zombie)"},
        {
            "pid": 11,
            "command": ["python", "-c", "x\n"],
            "state": "S (sleeping)",
            "line": "data.py:15 in read",
        },
        {"pid": 12, "command": "cat", "state": "S (sleeping)"},
    ]
    said = lines(record(process={"children": children}))
    start = next(number for number, line in enumerate(said) if line.startswith("children"))
    assert said[start : start + 3] == [
        "children  10 python, Z (zombie)",
        "          11 python -c x\\n, S (sleeping): data.py:15 in read",
        "          12 cat, S (sleeping)",
    ]
    assert "process   4 children" in said


def test_paths_are_seen_from_the_worker_s_directory_or_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "handlers.py"
    program.write_text("\n" * 11 + "score()\n")
    here = record(process={}, stacks=[stack("MainThread", [[str(program), 12, "score"]])])
    assert f"where     {program}:12 in score" in lines(here, None)
    monkeypatch.chdir(tmp_path)
    assert "where     handlers.py:12 in score" in lines(here)
    there = record(process={"cwd": str(tmp_path)}, stacks=[stack("t", [["handlers.py", 12, "score"]])])
    assert "          >    12 | score()" in lines(there), (
        "what the worker called it is below its own directory"
    )
