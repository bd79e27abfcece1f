"""Twelve programs that hang are reaped, and the evidence says why: see ``tests/hangs``.

The law of this file: a verdict is right if its words are right and the line is the one that hangs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from . import HANGS, Hang, run

PAGE = Path(__file__).parent.parent.parent / "docs" / "explanation" / "evidence.md"


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """What running the programs gives, some of them at a time: most of it is waiting."""
    with ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 1))) as pool:
        yield {hang.program: pool.submit(run, hang) for hang in HANGS if not hang.missing()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.program)
def test_the_verdict_and_the_line_are_right(hang: Hang, found: dict[str, Future[dict[str, Any]]]) -> None:
    if hang.missing():
        pytest.skip(f"{hang.missing()} is not installed")
    record = found[hang.program].result()
    assert record["verdict"].startswith(hang.verdict), record
    assert record["where"] in hang.lines(), record
    assert record["where"] in record["verdict"]
    assert record["outcome"] == "reaped"


@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.program)
def test_the_page_shows_the_right_ones(hang: Hang) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {hang.what} |")]
    assert len(rows) == 1, f"print the table anew: python -m tests.hangs ({PAGE.name})"
    assert hang.verdict in rows[0]
    assert any(line in rows[0] for line in hang.lines())
