"""Programs that hang are reaped, and the evidence says why: see ``tests/hangs``.

The law of this file: a verdict is right if its words are right and the line is the one that hangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import HANGS, Hang, Runs, escaped

PAGE = Path(__file__).parent.parent.parent / "docs" / "explanation" / "evidence.md"


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """What runs the programs of this process, one after the other."""
    with Runs() as runs:
        yield runs


@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.program)
def test_the_verdict_and_the_line_are_right(hang: Hang, runs: Runs) -> None:
    if hang.missing():
        pytest.skip(f"{hang.missing()} is not installed")
    record = runs.run(hang)
    assert record["verdict"].startswith((hang.verdict, hang.without_symbols or hang.verdict)), record
    assert record["where"] in hang.lines(), record
    assert record["where"] in record["verdict"]
    assert hang.besides in record["verdict"], record
    assert hang.detail in record["detail"], record
    assert record["outcome"] == "reaped"


@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.program)
def test_the_page_shows_the_right_ones(hang: Hang) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {hang.what} |")]
    assert len(rows) == 1, f"print the table anew: python -m tests.hangs ({PAGE.name})"
    assert escaped(hang.verdict) in rows[0]
    assert any(line in rows[0] for line in hang.lines())
