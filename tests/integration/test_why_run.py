"""``aiotimer why --run``: which roll calls it finds, how it prints them, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aiotimer._linux import paths
from aiotimer.cli.group import cli
from aiotimer.evidence.record import Record
from aiotimer.evidence.roll_call import call_roll
from aiotimer.evidence.store import Store
from aiotimer.server.history import History
from tests.fakes.clock import PATIENCE
from tests.fakes.ranks import ranks

pytestmark = pytest.mark.usefixtures("no_other_state")

NOON = 1795403520.0
ALL = (0, 1, 2, 3)


def call(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, arguments)


def evidence(socket_path: str = "/nowhere/s") -> Path:
    """Return where a server keeps its evidence."""
    directory = paths.state_directory(socket_path) / "evidence"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def keep(directory: Path, numbers: tuple[int, ...] = ALL, number: int = 1, **more: Any) -> None:
    """Keep the record of a roll call as a server does; rank 2 of the job hangs in its loader."""
    host = more.get("host", "node7")
    roll = call_roll([one._replace(node=host) for one in ranks("loader") if one.rank in numbers], 4)
    members = [member.as_json() for member in roll.members]
    record = {
        "id": f"20261123T0312{number:02}-run-{number}", "event": "run", "run": "job-7", "size": 4,
        "time": NOON + number, "host": host, "boot_id": f"of {host}", "monotonic": 100.0 + number,
        "expired": [], "culprits": roll.culprits, "verdict": roll.verdict,
    }  # fmt: skip
    assert Store(directory).save_run(record | more, members)


def test_it_prints_the_newest_run() -> None:
    keep(evidence(), run="job-6")
    keep(evidence("/nowhere/else"), number=2)
    for arguments in ((), ("job-7",), ("--socket", "/nowhere/else")):
        page = call("why", "--run", *arguments).stdout
        assert page.startswith('the roll of run "job-7" (4 ranks, on node7), 2026-'), arguments
        assert "rank 2 never arrived: it is in `read_shard` at loader.py:7" in page
    assert call("why", "--run", "job-6").stdout.startswith('the roll of run "job-6"')
    assert call("why", "--run", "--socket", "/nowhere/s").stdout.startswith('the roll of run "job-6"')


def test_it_prints_one_json_object() -> None:
    keep(evidence())
    found = json.loads(call("why", "--run", "--json").stdout)
    assert (found["run"], found["size"], found["culprits"]) == ("job-7", 4, [2])
    assert [member["rank"] for member in found["members"]] == list(ALL)
    assert {"rank", "pid", "node", "state", "where", "camp", "timers"} <= found["members"][0].keys()
    assert [member["camp"] for member in found["members"]] == [0, 0, 1, 0]


def test_it_writes_one_html_page(tmp_path: Path) -> None:
    keep(evidence())
    file = tmp_path / "run.html"
    assert call("why", "--run", "job-7", "--html", str(file)).output == ""
    assert file.read_text() == call("why", "--html", "-", "--run").stdout
    assert file.read_text().count("<details") == 4


def test_it_merges_the_directories_of_several_nodes(tmp_path: Path) -> None:
    for number, (host, numbers) in enumerate([("node1", (0, 1)), ("node2", (2, 3))], 1):
        (tmp_path / host).mkdir(mode=0o700)
        keep(tmp_path / host, numbers, number, host=host)
    alone = json.loads(call("why", "--json", "--run", "job-7", str(tmp_path / "node1")).stdout)
    assert (alone["culprits"], alone["host"]) == ([], "node1")
    both = call("why", "--run", "job-7", str(tmp_path / "node1"), str(tmp_path / "node2"))
    assert "rank 2 never arrived" in both.stdout
    assert "node1's clock " in both.stdout
    merged = json.loads(
        call("why", "--json", "--run", "job-7", str(tmp_path / "node2"), str(tmp_path / "node1")).stdout
    )
    assert merged["culprits"] == [2]
    assert [member["node"] for member in merged["members"]] == ["node1", "node1", "node2", "node2"]


def test_several_nodes_may_share_a_directory_and_servers_of_one_machine_are_merged_unasked(
    tmp_path: Path,
) -> None:
    shared = tmp_path / "evidence"
    shared.mkdir(mode=0o700)
    keep(shared, (0, 1), 1, host="node1")
    keep(shared, (2, 3), 2, host="node2")
    assert "rank 2 never arrived" in call("why", "--run", "job-7", str(tmp_path)).stdout
    keep(evidence("/nowhere/a"), (0, 1), 1)
    keep(evidence("/nowhere/b"), (2, 3), 2)
    page = call("why", "--run").stdout
    assert "rank 2 never arrived" in page
    assert "clocks    the servers of node7 have one clock" in page


def test_it_looks_where_a_server_was_told_to_keep_evidence(tmp_path: Path) -> None:
    keep(tmp_path)
    made = History(paths.state_directory("/nowhere/s"), tmp_path)
    made.record(Record("20261123T031205-1000-1", "reaped", "reaped", NOON, 1000), "", "")
    assert made.close(PATIENCE)
    assert "rank 2 never arrived" in call("why", "--run").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--run",), 1, "no roll call of a run has been recorded by a server of this user"),
        (
            ("--run", "x", "--socket", "/nowhere/s"),
            1,
            "of run 'x' has been recorded by the server at /nowhere/s",
        ),
        (("--run", "x", "."), 1, "no roll call of run 'x' is in ."),
        (("--run", "x", "/nowhere/at/all"), 2, "/nowhere/at/all is no directory"),
        (("--run", "."), 2, "name the run, too: --run ID ."),
        (("--run", "", "."), 2, "--run ID DIR..."),
        (("--run", "--list"), 2, "it goes without --list, and without filters"),
        (("--run", "--scope", "s"), 2, "it goes without --list, and without filters"),
        (("x",), 2, "it is a number; directories go with --run ID"),
        (("7", "8"), 2, "there is one PID at most"),
    ],
)
def test_what_it_cannot_do_is_said(arguments: tuple[str, ...], status: int, message: str) -> None:
    result = call("why", *arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert message in result.stderr


def test_runs_that_are_there_are_named_to_who_asks_for_another() -> None:
    keep(evidence())
    assert "; there is 'job-7'" in call("why", "--run", "job-8").stderr


def test_it_does_not_look_where_others_can_write() -> None:
    keep(evidence())
    assert call("why", "--run").exit_code == 0
    evidence().chmod(0o777)
    assert call("why", "--run").exit_code == 1
