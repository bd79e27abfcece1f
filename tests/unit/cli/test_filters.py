"""What is wanted of what was recorded."""

from datetime import UTC, datetime
from typing import Any

import pytest

from aiotimer.cli.filters import EVERYTHING, Wanted, moment_of

FOUND = {"event": "reaped", "pid": 7, "scope": "a[0]", "name": "ranker", "time": 100.0}
NOW = 1_000_000.0


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"pid": 7},
        {"scope": "a[0]"},  # though it is a pattern for a0
        {"scope": "a*"},
        {"name": "rank?r", "since": 100.0},
        {"events": ("late", "reaped")},
    ],
)
def test_what_is_wanted_is_taken(wanted: dict[str, Any]) -> None:
    assert Wanted(**wanted).takes(FOUND)


@pytest.mark.parametrize(
    "wanted",
    [{"pid": 8}, {"scope": "a"}, {"scope": "A*"}, {"name": "r"}, {"since": 100.5}, {"events": ("late",)}],
)
def test_what_is_not_wanted_is_not(wanted: dict[str, Any]) -> None:
    assert not Wanted(**wanted).takes(FOUND)


def test_the_kind_apart_an_event_is_about_what_is_wanted() -> None:
    assert Wanted(pid=7, events=("late",)).is_about(FOUND)


def test_an_event_of_the_server_itself_is_of_no_worker() -> None:
    event = {"event": "stalled", "pid": None, "time": 1.0}
    assert EVERYTHING.takes(event)
    assert not Wanted(name="*").takes(event)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - 7200),
        ("90", NOW - 90),
        ("2026-11-23T03:12+00:00", datetime(2026, 11, 23, 3, 12, tzinfo=UTC).timestamp()),
        ("2026-11-23 03:12:04Z", datetime(2026, 11, 23, 3, 12, 4, tzinfo=UTC).timestamp()),
        ("2026-11-23", datetime(2026, 11, 23).timestamp()),  # noqa: DTZ001 - local time is meant
    ],
)
def test_a_moment_is_so_long_ago_or_at_a_time(text: str, moment: float) -> None:
    assert moment_of(text, NOW) == moment


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a duration such as 2h nor a time"):
        moment_of("yesterday", NOW)
