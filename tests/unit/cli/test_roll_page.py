"""The page about a run: what its first lines tell, that it fits on a screen, and what it never does."""

import io
from typing import Any

import pytest

from aiotimer.cli.page import SCREEN, print_page
from aiotimer.cli.roll_page import print_roll, roll_as_html
from aiotimer.evidence.record import Record
from aiotimer.evidence.roll_call import Member, call_roll
from aiotimer.evidence.run_record import RunRecord
from tests.fakes.ranks import FOUND, ranks
from tests.unit.cli.test_html_page import HOSTILE, Reader


def of(members: list[Member], size: int = 4, **more: Any) -> RunRecord:
    """The record of a run."""
    roll = call_roll(members, size)
    record = RunRecord("20261123T031205-run-1", "job-7", size, 1795403525.1, "node7", "b", 1.0)
    return record._replace(**roll._asdict() | more)


def lines(record: RunRecord, width: int | None = 80, *, full: bool = False) -> list[str]:
    """The lines of a page."""
    file = io.StringIO()
    print_roll(record, file, width, full=full)
    return file.getvalue().splitlines()


def test_the_first_lines_name_the_culprit() -> None:
    assert lines(of(ranks("loader")))[:11] == [
        'the roll of run "job-7" (4 ranks, on node7), 2026-11-23 03:12:05 UTC',
        "why       ranks 0, 1, 3 wait together in `backward` at train.py:54; rank 2 never",
        "          arrived: it is in `read_shard` at loader.py:7, for 61 s",
        "culprit   rank 2 (pid 1002 on node7, expired)",
        "            waits for a pipe (read) at loader.py:7 in read_shard; its other end",
        "          is held by the process itself",
        "time's up ranks 0 to 3",
        "camps     0: ranks 0, 1, 3: wait in `backward`, in `train` at train.py:54",
        "          1: rank 2: in `read_shard` at loader.py:7",
        "stack     rank 2 (pid 1002 on node7, expired), MainThread (entered the block, S",
        "          (sleeping))",
    ]


def test_then_come_the_members_and_the_stack_of_one_that_waits() -> None:
    page = "\n".join(lines(of(ranks("loader"))))
    assert '\nmembers   rank 2 (pid 1002 on node7, expired), camp 1, 61.0 s in "step"\n' in page
    assert "\n            torch/autograd/graph.py:979 in _engine_run_backward\n" in page
    assert page.endswith("more      aiotimer why PID: the page of a member whose time was up")


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("width", [40, 80])
def test_a_page_fits_on_a_screen(kind: str, width: int) -> None:
    page = lines(of(ranks(kind)), width)
    assert max(map(len, page)) <= width
    assert len(page) <= SCREEN


def test_a_page_of_many_fits_too_and_full_has_them_all() -> None:
    waits, culprit = ranks("loader")[0], ranks("loader")[2]
    members = [(culprit if rank == 17 else waits)._replace(rank=rank, pid=2000 + rank) for rank in range(64)]
    record = of(members, 64)
    page = lines(record)
    assert len(page) <= SCREEN
    assert any("and 48 more, with --full" in line for line in page)
    full = "\n".join(lines(record, full=True))
    assert all(f"rank {rank} (pid {2000 + rank} " in full for rank in range(64))


def test_where_it_cannot_be_told_that_is_said() -> None:
    waits = ranks("loader")[0]
    page = lines(of([waits._replace(rank=rank, pid=9 + rank) for rank in range(4)]))
    assert "culprit   cannot be told" in page
    assert not any("stack" in line for line in lines(of([], 2, verdict="")))


def test_what_is_missing_is_a_member() -> None:
    page = "\n".join(lines(of([one for one in ranks("loader") if one.rank != 2])))
    assert "culprit   rank 2 (missing)" in page


def test_nothing_is_printed_as_it_came() -> None:
    bad = "\x1b[31mred\n"
    members = [one._replace(name=bad, node=bad, verdict=bad) for one in ranks("future")]
    record = of(members, run=bad, host=bad, verdict=bad, clocks=bad)
    assert "\x1b" not in "".join(lines(record, full=True))


def test_as_html_each_member_is_a_row_that_unfolds_in_the_colour_of_its_camp() -> None:
    read = Reader(roll_as_html(of(ranks("loader"))))
    assert not read.still_open
    rows = [attributes["class"] for tag, attributes in read.elements if tag == "details"]
    assert rows == ["camp-0", "camp-0", "camp-1 culprit", "camp-0"]
    said = [text for tag, text in read.said if tag == "summary"]
    assert said[2] == 'rank 2 (pid 1002 on node7, expired), in `read_shard` at loader.py:7, 61.0 s in "step"'
    assert any("loader.py:7 in read_shard" in text for tag, text in read.said if tag == "p")


def test_html_escapes_what_members_say_and_loads_nothing() -> None:
    members = [one._replace(node=HOSTILE, verdict=HOSTILE) for one in ranks("loader")]
    read = Reader(roll_as_html(of(members, run=HOSTILE, verdict=HOSTILE)))
    tags = {tag for tag, _attributes in read.elements}
    assert not tags & {"script", "img", "a", "link", "iframe"}
    assert not read.still_open


def test_the_page_of_a_member_leads_to_its_run() -> None:
    file = io.StringIO()
    print_page(Record(pid=7, run="job 7"), file, 80)
    assert "run       job 7: aiotimer why --run 'job 7'" in file.getvalue().splitlines()
