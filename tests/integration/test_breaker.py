"""The breaker, and what a server's policy may be."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from aiotimer import TimerServer
from aiotimer._core.ladder import Ladder, ReapGrant
from aiotimer.server.policy import Breaker, Policy, parse_max_reaps, policy


def test_so_many_reaps_and_no_more() -> None:
    breaker = Breaker((3, 10.0))
    assert [breaker.allows(now) for now in (0.0, 4.0, 8.0)] == [True] * 3
    assert breaker.allows(10.0), "the first one is ten seconds ago"
    assert not breaker.broken
    assert not breaker.allows(13.9)
    assert breaker.broken
    assert not breaker.allows(1000.0), "for good"
    assert str(breaker) == "more than 3 reaps within 10 s"


def test_the_smallest_breaker() -> None:
    breaker = Breaker((1, 1.0))
    assert [breaker.allows(now) for now in (0.0, 1.0, 2.0, 2.5)] == [True, True, True, False]


def test_what_is_written_on_a_command_line() -> None:
    assert parse_max_reaps("256/60") == (256, 60.0)
    assert parse_max_reaps("1/0.5") == (1, 0.5)
    for text in ("", "256", "256/", "/60", "0/60", "-1/60", "1/0", "1/inf", "1/nan", "a/b", "1.5/60"):
        with pytest.raises(ValueError, match="is not N/SECONDS, such as 256/60"):
            parse_max_reaps(text)


def test_the_default_policy() -> None:
    assert policy() == Policy()
    assert str(Policy().ladder) == "dump,KILL"
    assert Policy().read_reap_grant("observe TERM:60,KILL") == ReapGrant(
        Ladder.parse("TERM:60,KILL"), observe=True
    )
    assert Policy().read_reap_grant("observe TERM:61,KILL") == ReapGrant(), (
        "not allowed: as if it had said nothing"
    )
    assert Policy().read_reap_grant("\ufffd\x1b") == ReapGrant()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reap": "TERM"}, "a ladder ends with KILL"),
        ({"target": "everybody"}, "target must be one of process, group, cgroup, not 'everybody'"),
        ({"stopped": "maybe"}, "stopped must be one of reap, hold, not 'maybe'"),
        ({"evidence_budget": -1.0}, "evidence_budget must be a number of seconds, 0 or more, not -1.0"),
        ({"evidence_budget": nan}, "evidence_budget must be"),
        ({"max_grace": inf}, "max_grace must be"),
        ({"max_reaps": (0, 60.0)}, "max_reaps must be .N, SECONDS., both above 0"),
        ({"max_reaps": (1, 0.0)}, "max_reaps must be"),
        ({"max_reaps": (1, nan)}, "max_reaps must be"),
    ],
)
def test_what_is_no_policy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimerServer("/tmp/s", **options)
