"""What is recorded, as people and programs get it: why, history, suggest, dump, and the end of run."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aiotimer._core import wire
from aiotimer._core.durations import FIRST, Durations, leave
from aiotimer._linux import paths
from aiotimer.cli import run_command
from aiotimer.cli.group import cli
from aiotimer.cli.history import Reader
from aiotimer.cli.page import SCREEN, print_page
from aiotimer.cli.suggest import proposal
from aiotimer.errors import HistoryUnreadable, Refused
from aiotimer.evidence.record import Record
from aiotimer.evidence.verdict import is_users
from aiotimer.server.history import History
from aiotimer.server.recorded import DATABASE
from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.server import stand_in

pytestmark = pytest.mark.usefixtures("no_other_state")

SOURCE = """import asyncio

async def rollout(future):
    started = True
    return await future  # the line in question

asyncio.run(rollout())
"""


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("AIOTIMER_SOCKET", raising=False)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The worker's program, last changed before it was reaped."""
    path = tmp_path / "train.py"
    path.write_text(SOURCE)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def record(program: object = "/nowhere/train.py", **more: Any) -> dict[str, Any]:
    """A record in which everything is known."""
    own = [["/usr/lib/python3.11/asyncio/runners.py", 190, "run"], [str(program), 5, "rollout"]]
    known: dict[str, Any] = {
        "id": "20261123T031205-4242-1",
        "event": "reaped",
        "outcome": "reaped",
        "time": 1795403525.1,
        "pid": 4242,
        "name": "python",
        "scope": "train.py:42",
        "limit_s": 60.0,
        "exact": True,
        "first": False,
        "entered": 1795403465.0,
        "ran_s": 60.001,
        "late_s": 0.001,
        "verdict": "awaiting (loop alive) at train.py:5 in rollout",
        "where": "train.py:5",
        "evidence": "",
        "ladder": "dump,KILL",
        "signals": [{"signal": "SIGKILL", "after_s": 0.21}],
        "detail": "its parent does not wait for it",
        "timers": [
            {
                "scope": "train.py:42", "remaining_s": -0.001, "limit_s": 60.0, "expired": True,
                "observed": False,
                "ran": {"count": 1234, "sampled": 200, "median_s": 0.8, "p99_s": 1.2, "max_s": 2.5},
            },
            {
                "scope": "epoch", "remaining_s": 3000.0, "limit_s": 3600.0, "expired": False,
                "observed": True,
                "ran": {"count": 1, "sampled": 0, "median_s": None, "p99_s": None, "max_s": None},
            },
            {
                "scope": "job", "remaining_s": None, "limit_s": None, "expired": False, "observed": False,
                "ran": None,
            },
        ],
        "tasks": [
            {
                "loop": "uvloop", "thread": "MainThread", "name": "Task-1", "count": 1, "own": True,
                "frames": own, "waits_for": "<Future pending>",
            },
            {
                "loop": "uvloop", "thread": "MainThread", "name": "reader", "count": 12, "own": False,
                "frames": [[str(program), 4, "read"], ["/usr/lib/python3.11/asyncio/queues.py", 158, "get"]],
                "waits_for": "a queue",
            },
        ],
        "stacks": [
            {
                "thread": "MainThread", "current": True, "gil": True, "state": "idle",
                "frames": [["/usr/lib/python3.11/selectors.py", 468, "select"]],
            },
        ],
        "process": {
            "state": "S (sleeping)", "wchan": "do_epoll_wait", "syscall": "232", "kernel_stack": ["x"],
            "threads": [{"tid": 1, "name": "a", "state": "S", "wchan": ""}] * 4,
            "rss_bytes": 128 * 2**20, "descriptors": [["0", "/dev/pts/0"]] * 12,
            "children": [{"pid": 9, "name": "b", "state": "S"}] * 2, "cgroup": "/user.slice",
            "command": ["python", "train.py"], "tracer": 77, "cwd": "/", "libraries": [],
        },
        "probes": {
            "proc": "0.002 s", "tasks": "no answer within 0.5 s", "py-spy": "not installed",
            "stacks": "not needed: every loop answered",
        },
        "host": "node7",
        "run": "job-7",
    }  # fmt: skip
    return known | more


NOTHING: dict[str, Any] = {
    "id": "20261123T031205-1-1", "event": "expired", "outcome": "pending", "time": 1795403525.1, "pid": 1,
    "name": "", "scope": "s", "limit_s": None, "exact": False, "first": False, "entered": None, "ran_s": None,
    "late_s": 0.0, "verdict": "", "where": "", "evidence": "", "ladder": "", "signals": [], "detail": "",
    "timers": [], "tasks": [], "stacks": [], "process": {}, "probes": {}, "host": "", "run": "",
}  # fmt: skip
"""A record in which nothing is known."""


def page(record: dict[str, Any], width: int | None = None, *, full: bool = False) -> str:
    """Return the page about a record, without a terminal."""
    file = io.StringIO()
    print_page(Record.from_json(record), file, width, full=full)
    return file.getvalue()


def kept(**more: Any) -> Record:
    """A record as a server keeps it."""
    return Record.from_json(record(**more))


def call(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, arguments)


def state(socket_path: str = "/nowhere/s") -> Path:
    """Return the state directory of a socket."""
    return paths.state_directory(socket_path)


@contextlib.contextmanager
def recorded(socket_path: str = "/nowhere/s") -> Iterator[History]:
    """Yield a history that is complete afterwards."""
    made = History(state(socket_path))
    yield made
    assert made.close(PATIENCE)


# -- the page ---------------------------------------------------------------------------------------------


def test_every_line_of_the_page(program: Path) -> None:
    text = page(record(program, evidence="/dev/shm/x"))
    assert text.splitlines() == [
        (
            'worker 4242 (python, on node7) was reaped, in "train.py:42" for 60.0 s (limit 60.0 s), '
            "2026-11-23 03:12:05 UTC"
        ),
        "          its parent does not wait for it",
        "why       awaiting (loop alive) at train.py:5 in rollout",
        f"where     {program}:5 in rollout",
        "                3 | async def rollout(future):",
        "                4 |     started = True",
        "          >     5 |     return await future  # the line in question",
        "                6 | ",
        "                7 | asyncio.run(rollout())",
        "timer     entered 2026-11-23 03:11:05 UTC; first action 1 ms after the deadline",
        "before    entered 1234 times (200 sampled), median 0.800 s, p99 1.200 s, maximum 2.500 s",
        "task      Task-1 in MainThread",
        "            asyncio/runners.py:190 in run",
        f"          > {program}:5 in rollout",
        "            waits for <Future pending>",
        "thread    MainThread (current, holds the GIL, idle)",
        "            selectors.py:468 in select",
        'also      "epoch": limit 1 h 00 min, 50 min 00 s left, only observed',
        '          "job": armed',
        f"tasks     12 × reader in MainThread at {program}:4 in read, waits for a queue",
        "ladder    dump,KILL: SIGKILL after 0.210 s",
        (
            "process   S (sleeping), in do_epoll_wait, syscall 232, traced by 77, 4 threads, 128 MiB, "
            "12 descriptors, 2 children"
        ),
        "command   python train.py; cgroup /user.slice",
        "unknown   tasks: no answer within 0.5 s; py-spy: not installed",
        "run       job-7: aiotimer why --run job-7",
        "evidence  /dev/shm/x",
    ]


def test_the_frames_that_stand_out_are_those_that_the_verdict_takes_for_the_user_s() -> None:
    files = ["/srv/lib/python3-jobs/train.py", "uvloop/loop.pyx", "/usr/lib/python3.11/queue.py", "train.py"]
    frames = [[file, 1, "f"] for file in files]
    (task,) = record()["tasks"][1:]
    stack = record()["stacks"][0] | {"frames": frames}
    text = page(record(tasks=[task | {"frames": frames[:3]}], stacks=[stack]), full=True)
    marked = re.findall(r"^ +(> )?(.*):1 in f$", text, re.MULTILINE)
    assert [file for _mark, file in marked] == files
    assert {file for mark, file in marked if mark} == {file for file in files if is_users(file)}
    assert {file for mark, file in marked if mark} == {"/srv/lib/python3-jobs/train.py", "train.py"}
    assert "reader in MainThread at /srv/lib/python3-jobs/train.py:1 in f" in text


def test_what_is_not_known_is_left_out() -> None:
    assert page(NOTHING).splitlines() == [
        'worker 1 is being dealt with, in "s", 2026-11-23 03:12:05 UTC',
        "why       not known",
        "timer     first action 0 ms after the deadline",
        "evidence  none was kept",
    ]
    assert "evidence" not in page(NOTHING | {"outcome": "dump"})
    sampled = page(NOTHING | {"limit_s": 5.0})
    assert 'in "s" (limit 5.000 s), ' in sampled
    assert "limit and entry are those of the last entry that was sampled; first action" in sampled


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("unkillable", "was signalled and did not die"),
        ("late", "left its block before the signal"),
        ("observed", "was only observed"),
        ("finished", "finished after its limit"),
        ("gone", "ended after its deadline"),
        ("failed", "could not be reaped"),
        ("dump", "was asked what it is doing"),
        ("of a later version", "of a later version"),
    ],
)
def test_the_first_line_says_what_has_become_of_it(outcome: str, words: str) -> None:
    assert words in page(record(outcome=outcome)).splitlines()[0]


def test_hostile_text_is_escaped_wherever_it_stands(tmp_path: Path) -> None:
    hostile = "\x1b[2J\n[bold red]\u202e\x07\r"
    program = tmp_path / "train.py"
    program.write_text(SOURCE.replace("question", hostile.replace("\n", "")))

    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return value if key in ("where", "outcome") or value == str(program) else value + hostile
        if isinstance(value, dict):
            return {name: poisoned(inner, name) for name, inner in value.items()}
        return [poisoned(inner, key) for inner in value] if isinstance(value, list) else value

    text = page(poisoned(record(program)))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "\\x1b[2J\\n[bold red]\\u202e\\x07\\r" in text
    assert "in \\x1b[2J[bold red]\\u202e" in text, "the source"
    assert len(text.splitlines()) == len(page(record(program)).splitlines())


@pytest.mark.parametrize("width", [20, 40, 80])
def test_nothing_is_lost_and_nothing_is_too_wide_on_a_narrow_terminal(width: int, program: Path) -> None:
    wide = record(program, verdict="v" * 100, scope="界" * 30)
    assert all(len(line) <= width for line in page(wide, width).splitlines())
    text = page(wide, width, full=True)
    assert all(len(line) <= width for line in text.splitlines())
    for original in page(wide, full=True).splitlines():
        words = "".join(original.split())
        assert words in "".join(text.split()), original


def test_without_a_terminal_there_is_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in page(record())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1m" in page(record(), 80)


def test_the_source_is_shown_only_if_it_can_be_read(tmp_path: Path, program: Path) -> None:
    def sources(path: object, where: str) -> list[str]:
        text = page(record(path, where=where))
        return [line for line in text.splitlines() if " | " in line or "has changed" in line]

    assert len(sources(program, "train.py:5")) == 5
    assert len(sources("/nowhere/x.py", f"{program}:1")) == 3, "where itself says it"
    assert sources(program, "other.py:5") == []
    assert sources(program, "train.py:x") == []
    assert sources(program, f"{program}:0") == []
    assert sources(program, f"{program}:999") == []
    os.utime(program, (2_000_000_000, 2_000_000_000))
    assert sources(program, "train.py:5")[-1].strip() == "this file has changed since"
    os.mkfifo(tmp_path / "fifo.py")
    assert sources(tmp_path / "fifo.py", "fifo.py:5") == [], "which would wait for ever"
    assert sources("/dev/zero", "/dev/zero:5") == []
    assert sources("/x\x00.py", "/x\x00.py:5") == []
    with open(tmp_path / "large.py", "wb") as file:
        file.truncate(10**9)
    assert sources(tmp_path / "large.py", "large.py:5") == []


def test_a_page_is_of_bounded_length() -> None:
    frames = [["/x.py", n, "f"] for n in range(500)]
    stack = {"thread": "t", "current": False, "gil": None, "state": "", "frames": frames}
    task = {
        "loop": "",
        "thread": "",
        "name": "t",
        "count": 1,
        "own": False,
        "frames": frames,
        "waits_for": "",
    }
    text = page(record(tasks=[task | {"own": True}, *[task] * 500], stacks=[stack] * 500))
    assert len(text.splitlines()) <= SCREEN
    assert "lines more: --full prints them" in text
    assert "476 lines of frames further out" in text
    assert "/x.py:499 in f" in text


# -- why --------------------------------------------------------------------------------------------------


def test_why_writes_the_page_as_html(tmp_path: Path, program: Path) -> None:
    with recorded() as made:
        made.record(kept(scope="<script>alert(1)</script>"))
    file = tmp_path / "page.html"
    assert call("why", "--html", str(file)).output == ""
    page = file.read_text()
    assert call("why", "--html", "-").stdout == page
    text = unescape(page)
    for line in call("why", "--full").stdout.splitlines():
        assert line[10:].strip() in text
    assert "<script" not in page
    assert call("why", "--html", "-", "--json").exit_code == 2
    assert isinstance(call("why", "--html", "/nowhere/page.html").exception, OSError)


def test_why_is_about_the_newest_of_all_servers() -> None:
    with recorded("/nowhere/a") as a, recorded("/nowhere/b") as b:
        b.record(kept(pid=2, time=200.0, id="20261123T031202-2-1"))
        a.record(kept(pid=1, time=100.0, id="20261123T031201-1-1"))
        a.record(kept(pid=3, time=150.0, id="20261123T031203-3-1"))
    assert call("why").stdout.startswith("worker 2 ")
    assert call("why", "1").stdout.startswith("worker 1 ")
    assert call("why", "--socket", "/nowhere/a").stdout.startswith("worker 3 ")
    found = json.loads(call("why", "--json").stdout)
    expected = record(pid=2, time=200.0, id="20261123T031202-2-1")
    assert found == expected | {"evidence": str(state("/nowhere/b") / "evidence" / expected["id"])}


def test_why_knows_the_rest_if_the_record_itself_is_gone() -> None:
    tasks = [record()["tasks"][0] | {"name": str(n)} for n in range(600)]
    with recorded() as made:
        made.record(kept(tasks=tasks), "stacks", "tasks")
    found = json.loads(call("why", "--json").stdout)
    assert len(found["tasks"]) == 600
    Path(found["evidence"], "expiry.json").write_text("{")
    assert json.loads(call("why", "--json").stdout) == kept(evidence=found["evidence"]).summary().as_json()


def test_why_tells_all_that_an_earlier_version_wrote_into_its_history() -> None:
    """It had whole records there, besides those in directories."""
    old = record(evidence="/gone")
    del old["probes"]
    with recorded() as made:
        made.record(kept())
    with sqlite3.connect(state() / DATABASE) as connection:
        connection.execute("UPDATE expiries SET record = ?", (json.dumps(old),))
    connection.close()
    assert json.loads(call("why", "--json").stdout) == old | {"probes": {}}


def test_why_needs_no_history_if_there_is_evidence() -> None:
    with recorded() as made:
        made.record(kept(), "stacks", "tasks")
        made.record(kept(id="20261123T031206-7-2", pid=7), "stacks", "tasks")
    (state() / DATABASE).write_bytes(b"garbage" * 1000)
    lost = call("why", "4242")
    assert lost.stdout.startswith("worker 4242 ")
    assert "cannot read the history" in lost.stderr
    assert call("why").stdout.startswith("worker 7 ")
    (state() / "evidence" / "20261123T031206-7-2" / "expiry.json").unlink()
    assert call("why").stdout.startswith("worker 4242 ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no expiry has been recorded by a server of this user"),
        (("7",), "no expiry of process 7 has been recorded by a server of this user"),
        (("--json", "--socket", "/nowhere/s"), "no expiry has been recorded by the server at /nowhere/s"),
    ],
)
def test_why_says_that_nothing_is_recorded(arguments: tuple[str, ...], message: str) -> None:
    result = call("why", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr


def test_why_does_not_look_where_others_can_write(runtime_directory: Path) -> None:
    with recorded() as made:
        made.record(kept())
    (runtime_directory / "aiotimer").chmod(0o777)
    assert call("why").exit_code == 1


# -- history ----------------------------------------------------------------------------------------------

FIELDS = ["event", "time", "pid", "scope", "late_s", "outcome", "verdict", "evidence"]


def event(number: int, **more: Any) -> dict[str, Any]:
    """An event as a server records it."""
    known = {"event": "reaped", "time": 1795403525.0 + number, "pid": number, "name": "python", "scope": "s"}
    known |= {"late_s": 0.001, "detail": "", "outcome": "reaped", "verdict": "stopped", "evidence": ""}
    return known | more


def test_history_prints_the_newest_events_of_all_servers_in_order() -> None:
    with recorded("/nowhere/a") as a, recorded("/nowhere/b") as b:
        for number in (1, 3, 5):
            a.event(event(number))
        for number in (2, 4):
            b.event(event(number))
    found = [json.loads(line) for line in call("history", "--json").stdout.splitlines()]
    assert [one["pid"] for one in found] == [1, 2, 3, 4, 5]
    assert found[0] == event(1)
    assert set(FIELDS) <= set(found[0])
    short = call("history", "-n", "2").stdout.splitlines()
    assert [line.split()[3] for line in short] == ["4", "5"]
    full = call("history", "-n", "2", "--full").stdout.splitlines()
    assert [re.findall(r"pid=(\d)", line) for line in full] == [["4"], ["5"]]
    of_one = call("history", "--socket", "/nowhere/b", "--json").stdout.splitlines()
    assert [json.loads(line)["pid"] for line in of_one] == [2, 4]
    assert call("history", "-n", "0").stdout == ""


def test_history_escapes_what_workers_wrote() -> None:
    with recorded() as made:
        made.event(event(1, scope="\x1b[2J\n", verdict="\x1b", detail="\x07"))
        made.event({"event": "stalled", "time": 1e300, "detail": "stood still"})
    first, second = call("history", "--full").stdout.splitlines()
    assert first == (
        "2026-11-23 03:12:06 UTC  reaped       pid=1  scope=\\x1b[2J\\n  late=1 ms  \\x1b  \\x07"
    )
    assert second == "at an unknown time  stalled      stood still"


def test_history_and_the_list_have_one_row_for_each_expiry_and_filters() -> None:
    with recorded() as made:
        for number, name in enumerate(("python", "ranker", "python"), 1):
            more = {
                "name": name,
                "scope": f"a/very/long/scope/of/step_{number}",
                "verdict": "waits, " * 20 + "at x.py:7",
            }
            made.event(event(number, event="expired", outcome="pending", **more))
            made.event(event(number, **more))
            made.record(
                kept(pid=number, id=f"20261123T031200-{number}-1", time=1795403525.0 + number, **more)
            )
    for command in (["history"], ["why", "--list"]):
        lines = call(*command).stdout.splitlines()
        assert len(lines) == 3
        assert max(map(len, lines)) <= 80
        assert all(line.endswith("at x.py:7") for line in lines)
        assert len({line.split()[4] for line in lines}) == 3, "their scopes can be told apart"
    assert [record["pid"] for record in json.loads(call("why", "--list", "--json").stdout)] == [3, 2, 1]
    for option in (["--name", "rank*"], ["--scope", "*step_2"], ["--since", "2026-11-23T03:12:07+00:00"]):
        assert "2" in {line.split()[3] for line in call("history", *option).stdout.splitlines()}, option
        assert json.loads(call("why", *option, "--json").stdout)["pid"] == (3 if "--since" in option else 2)
    assert len(call("history", "--pid", "2", "--json").stdout.splitlines()) == 2
    assert len(call("history", "--event", "reaped,late", "--json").stdout.splitlines()) == 3
    assert call("why", "--event", "late").exit_code == 1
    assert "that you ask for has been recorded" in call("why", "--event", "late").output
    assert call("history", "--event", "nonsense").exit_code == 2
    assert call("history", "--since", "nonsense").exit_code == 2


def test_history_follows_what_happens_and_new_servers() -> None:
    steps = itertools.count()

    def wait() -> None:
        step = next(steps)
        if step == 0:
            with recorded("/nowhere/a") as made:
                made.event(event(3))
                made.event(event(4))
        if step == 2:
            with recorded("/nowhere/b") as made:
                made.event(event(5))
        if step == 3:
            raise KeyboardInterrupt

    with recorded("/nowhere/a") as made:
        made.event(event(1))
        made.event(event(2))
    told = []
    with pytest.raises(KeyboardInterrupt):
        for one in Reader(None).follow(1, wait):
            told.append(one["pid"])
    assert told == [2, 3, 4, 5]


def test_history_complains_once_about_one_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    (state("/nowhere/a") / DATABASE).write_bytes(b"garbage" * 1000)
    with recorded("/nowhere/b") as made:
        made.event(event(1))
    steps = iter([lambda: None])
    with contextlib.suppress(StopIteration, RuntimeError):
        assert [one["pid"] for one in Reader(None).follow(9, lambda: next(steps)())] == [1]
    assert capsys.readouterr().err.count("cannot read the history") == 1


# -- suggest ----------------------------------------------------------------------------------------------


def durations(bucket: int, count: int, maximum: float) -> Any:
    """Return the JSON of so many durations of one bucket."""
    made = Durations()
    made.counts[bucket] = count
    made.maximum = maximum
    return made.as_json()


def took(scope: str, durations: Any, count: int, limit: float | None) -> dict[str, Any]:
    """Return what a worker has done in a scope."""
    return {"scope": scope, "durations": durations, "count": count, "limit_s": limit}


@pytest.mark.parametrize(
    ("p99", "maximum", "proposed"),
    [
        (0.001, 0.01, 1.0),
        (0.5, 0.5, 1.5),
        (0.5, 1.1, 1.7),
        (1.0, 1.0, 3.0),
        (4.0, 4.0, 12.0),
        (4.1, 4.1, 13.0),
        (12.34, 12.34, 38.0),
        (1.0, 1000.0, 1500.0),
        (1.0, 1001.0, 1600.0),
        (33.4, 33.4, 110.0),
    ],
)
def test_a_proposal_follows_the_rule(p99: float, maximum: float, proposed: float) -> None:
    assert proposal(p99, maximum) == proposed


def test_suggest_adds_up_what_all_servers_recorded() -> None:
    with recorded("/nowhere/a") as a, recorded("/nowhere/b") as b:
        a.durations([took("step", durations(32, 15, 1.25), 100, 60.0)])
        b.durations([took("step", durations(32, 10, 1.0), 50, None)])
        b.durations([took("rare", durations(32, 19, 1.25), 19, 10.0)])
        b.durations([took("never sampled", durations(32, 0, 0.0), 3, None)])
    rows = {row["scope"]: row for row in json.loads(call("suggest", "--json").stdout)}
    step = rows["step"]
    assert (step["count"], step["sampled"], step["max_s"], step["limit_s"]) == (150, 25, 1.25, 60.0)
    assert step["proposed_s"] == proposal(step["p99_s"], 1.25)
    assert step["limit_per_p99"] == 60.0 / step["p99_s"]
    assert step["spare_s"] == 58.75
    assert rows["rare"]["proposed_s"] is None
    assert rows["never sampled"]["p99_s"] is None
    assert [
        row["scope"] for row in json.loads(call("suggest", "--json", "--socket", "/nowhere/a").stdout)
    ] == ["step"]
    text = call("suggest").stdout
    headings = ["SCOPE", "COUNT", "MEDIAN", "P99", "MAX", "FIRST", "LIMIT", "PROPOSED"]
    assert text.splitlines()[0].split() == headings
    assert text.count("too few") == 3, "twice, and what that means"
    assert f"{step['proposed_s']:g} s" in text


def test_a_slow_first_entry_is_told_apart() -> None:
    with recorded() as made:
        together = Durations([first_slow()] * 3)
        made.durations([took("step", together.as_json(), 150, 5.0)])
        once = Durations([first_slow()[:4] + [1.0 + FIRST] + [0.0] * 59] * 30)
        made.durations([took("once", once.as_json(), 30, None)])
    rows = {row["scope"]: row for row in json.loads(call("suggest", "--json").stdout)}
    step = rows["step"]
    assert (step["proposed_s"], step["first_s"], step["proposed_first_s"]) == (1.0, 4.6, 6.9)
    assert step["max_s"] < 0.03
    said = call("suggest").stdout
    assert "step: first entries of processes take longer, and need 6.9 s: after=1, first=6.9\n" in said
    assert (rows["once"]["sampled"], rows["once"]["first_s"]) == (30, None), "of those there are no others"


def first_slow() -> list[float]:
    """The row of a scope whose first entry took 4.6 s, and the others 0.02 s."""
    cells = memoryview(bytearray(512)).cast("d")
    for seconds in (4.6, *[0.02] * 49):
        leave(cells, 0, seconds)
    return list(cells)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_suggest_fits_and_no_two_scopes_look_alike(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    scopes = [f"model/layers/{number}/attention/forward" for number in range(30)]
    with recorded() as made:
        made.durations([took(scope, durations(32, 30, 123.456), 10**9, 3600.0) for scope in scopes])
    heading, *lines = call("suggest").stdout.splitlines()
    assert max(map(len, [heading, *lines])) <= max(width, 76)
    assert len({line.split("  ")[0] for line in lines}) == 30


def test_programs_have_limits_of_their_own() -> None:
    with recorded() as made:
        for program, bucket in (("train.py", 36), ("eval.py", 32)):
            made.durations([took("step", durations(bucket, 30, 2.0), 30, None) | {"program": program}])
    rows = json.loads(call("suggest", "--json").stdout)
    assert [(row["program"], row["scope"], row["count"]) for row in rows] == [
        ("eval.py", "step", 30),
        ("train.py", "step", 30),
    ]
    assert rows[0]["p99_s"] < rows[1]["p99_s"]
    assert [line for line in call("suggest").stdout.splitlines() if line.endswith(":")] == [
        "eval.py:",
        "train.py:",
    ]


def test_suggest_escapes_scopes_and_needs_something_recorded() -> None:
    assert call("suggest").stdout == "no durations have been recorded\n"
    assert json.loads(call("suggest", "--json").stdout) == []
    with recorded() as made:
        made.durations([took("\x1b[2J[red]", durations(32, 30, 1.0), 30, None)])
    assert "\\x1b[2J[red]" in call("suggest").stdout


def test_suggest_goes_on_without_a_history_that_cannot_be_read() -> None:
    (state() / DATABASE).write_bytes(b"garbage" * 1000)
    result = call("suggest")
    assert result.stdout == "no durations have been recorded\n"
    assert "cannot read the history" in result.stderr


def test_suggest_counts_living_workers_if_their_server_tells() -> None:
    found = {"scope": "step", "count": 40, "limit_s": 5.0, "durations": durations(32, 40, 1.0)}
    answer = wire.encode(wire.Status({"server": {}, "workers": [], "scopes": [found]}))
    with short_socket() as path, stand_in(path, answer):
        (row,) = json.loads(call("suggest", "--json", "--socket", path).stdout)
    assert (row["scope"], row["count"], row["limit_s"]) == ("step", 40, 5.0)


def test_a_page_is_not_pending_for_ever() -> None:
    for pid in (1, 2):
        with recorded() as made:
            made.record(kept(pid=pid, id=f"20261123T031200-{pid}-1", outcome="pending"))
    assert "is being dealt with" in call("why", "2").stdout
    assert "was being dealt with when its server ended" in call("why", "1").stdout


# -- what others may have written -----------------------------------------------------------------------


def test_a_page_that_somebody_else_may_have_written_is_not_believed(tmp_path: Path) -> None:
    """What is in the history, which nobody else can write, is still told."""
    directory = tmp_path / "evidence"
    made = History(state(), directory)
    made.record(kept(verdict="it waits for a lock"))
    assert made.close(PATIENCE)
    assert call("why").stderr == ""
    directory.chmod(0o777)
    page = directory / kept().id / "expiry.json"
    page.write_text(page.read_text().replace("it waits for a lock", "forged"))
    result = call("why")
    assert "it waits for a lock" in result.stdout
    assert "forged" not in result.stdout
    assert "not believed" in result.stderr
    assert "can be written by others" in result.stderr


# -- dump -------------------------------------------------------------------------------------------------


def test_dump_prints_what_the_server_answers() -> None:
    answer = wire.encode(wire.Dump(record(outcome="dump")))
    with short_socket() as path, stand_in(path, answer):
        assert "was asked what it is doing" in call("dump", "4242", "--socket", path).stdout
        assert json.loads(call("dump", "4242", "--socket", path, "--json").stdout) == record(outcome="dump")


def test_dump_passes_on_why_there_is_none() -> None:
    answer = wire.encode(wire.Dump({}, "process 7 is not watched here"))
    with short_socket() as path, stand_in(path, answer):
        result = call("dump", "7", "--socket", path)
        assert isinstance(result.exception, Refused)
        assert "process 7 is not watched here" in str(result.exception)


# -- the end of run ---------------------------------------------------------------------------------------


def test_run_says_why_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with recorded() as made:
        made.record(kept(time=50.0, pid=1, id="20261123T031200-1-1"))
        made.record(kept(time=100.0, pid=2, id="20261123T031200-2-1", outcome="late"))
        for number in range(3, 8):
            made.record(kept(time=100.0 + number, pid=number, id=f"20261123T031200-{number}-1"))
    run_command._say_why("/nowhere/s", since=100.0)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.findall(r"^worker (\d+)", printed.err, re.MULTILINE) == ["3", "4", "5"]
    assert "aiotimer: 2 more" in printed.err


def test_run_has_nothing_to_say_about_what_was_not_reaped(capsys: pytest.CaptureFixture[str]) -> None:
    with recorded() as made:
        made.record(kept(outcome="observed"))
    run_command._say_why("/nowhere/s", since=0.0)
    assert capsys.readouterr().err == ""


def test_an_unreadable_history_is_an_error_that_says_where() -> None:
    error = HistoryUnreadable("/x", "reason")
    assert str(error) == "cannot read the history in '/x': reason"
