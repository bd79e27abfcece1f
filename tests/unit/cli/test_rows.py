"""Rows: one for each expiry, never wrapped, and no two scopes cut alike."""

from typing import Any

import pytest
from rich.cells import cell_len

from aiotimer.cli.rows import cut, fitted, lines, merged


def event(kind: str, outcome: str, at: float, **more: Any) -> dict[str, Any]:
    """An event of an expiry."""
    return {"event": kind, "outcome": outcome, "time": at, "pid": 7, "scope": "s", "evidence": ""} | more


def kinds(*events: dict[str, Any]) -> list[tuple[float, list[str]]]:
    """Return when each row begins, and its kinds."""
    return [(row["time"], row["events"]) for row in merged(events)]


def test_an_expiry_is_one_row_of_its_newest_event() -> None:
    (row,) = merged(
        [event("expired", "pending", 1.0), event("reaped", "reaped", 2.0, verdict="v", evidence="/e")]
    )
    assert (row["event"], row["outcome"], row["time"], row["verdict"]) == ("reaped", "reaped", 1.0, "v")


def test_expiries_that_end_in_another_order_are_told_apart() -> None:
    both = [event("expired", "pending", 1.0), event("expired", "pending", 2.0, scope="t")]
    ends = [event("late", "late", 3.0), event("reaped", "reaped", 4.0, scope="t")]
    assert kinds(*both, *ends) == [(1.0, ["expired", "late"]), (2.0, ["expired", "reaped"])]


def test_what_is_observed_may_finish() -> None:
    found = [
        event("observed", "observed", 1.0, evidence="/e"),
        event("finished", "finished", 2.0, evidence="/e"),
    ]
    assert kinds(*found) == [(1.0, ["observed", "finished"])]
    assert kinds(*({**one, "evidence": ""} for one in found)) == [(1.0, ["observed", "finished"])]


def test_what_has_ended_is_not_continued() -> None:
    """A pid and a scope come again."""
    first = [event("expired", "pending", 1.0), event("reaped", "reaped", 2.0, evidence="/1")]
    second = [event("expired", "pending", 3.0), event("reaped", "reaped", 4.0, evidence="/2")]
    assert kinds(*first, *second) == [(1.0, ["expired", "reaped"]), (3.0, ["expired", "reaped"])]
    observed = [event("observed", "observed", at, evidence=f"/{at}") for at in (1.0, 2.0)]
    assert kinds(*observed) == [(1.0, ["observed"]), (2.0, ["observed"])]


def test_other_events_have_rows_of_their_own() -> None:
    stalled = {"event": "stalled", "time": 1.0, "pid": None, "detail": "d"}
    assert kinds(stalled, {**stalled, "time": 2.0}) == [(1.0, ["stalled"]), (2.0, ["stalled"])]


def test_the_place_is_the_last_to_be_cut() -> None:
    found = event(
        "reaped", "reaped", 1e9, verdict="blocked in Python at pipeline.py:11 in main (in clock_nanosleep)"
    )
    (line,) = lines([found], 60)
    assert line.endswith("pipeline.py:11 in main")
    assert lines([found], 200)[0].endswith("(in clock_nanosleep)")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_row_is_never_too_wide(width: int) -> None:
    found = [
        event("reaped", "reaped", 1e9, scope="层" * 40, verdict="waits " * 40 + "at x.py:7 in main"),
        event("reap_failed", "failed", 1e300, pid=4_000_000, scope="\x1b[2J\n", verdict="", detail="d"),
    ]
    first, second = lines(found, width)
    assert max(cell_len(first), cell_len(second)) <= width
    assert (first.endswith("in main"), "unknown time    reap_failed  4000000" in second) == (width > 60, True)
    assert "\x1b" not in second


@pytest.mark.parametrize(
    ("text", "cells", "shown"),
    [
        ("short", 5, "short"),
        ("0123456789", 8, "0..56789"),
        ("0123456789", 2, ".."),
        ("层层层层", 6, "..层层"),
    ],
)
def test_what_is_cut_loses_its_middle(text: str, cells: int, shown: str) -> None:
    assert cut(text, cells).replace(" ", "") == shown


@pytest.mark.parametrize("cells", [8, 12, 20])
def test_no_two_texts_are_cut_alike(cells: int) -> None:
    layers = [f"model/layers/{number}/attention/forward" for number in range(120)]
    others = ["short", "a" * 50, "a" * 51, "model/layers/1/attention/backward"]
    shown = fitted(layers + others, cells)
    assert len(set(shown.values())) == len(layers + others)
    assert max(map(cell_len, shown.values())) <= cells
    assert shown["short"] == "short"
