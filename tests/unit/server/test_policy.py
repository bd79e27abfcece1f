"""The breaker, and what a server's policy may be."""

from __future__ import annotations

import dataclasses
import inspect
from math import inf, nan
from typing import Any

import pytest

from aiotimer import TimerServer
from aiotimer._core.ladder import Ladder, ReapGrant
from aiotimer.server.policy import Breaker, Policy


def test_so_many_reaps_and_no_more() -> None:
    breaker = Breaker((3, 10.0))
    assert [breaker.allows("a", now) for now in (0.0, 4.0, 8.0)] == [True] * 3
    assert breaker.allows("a", 10.0), "the first one is ten seconds ago"
    assert not breaker.is_broken("a", 10.0)
    assert not breaker.allows("a", 13.9)
    assert breaker.is_broken("a", 13.9)
    assert not breaker.allows("a", 1e9), "for good"
    assert breaker.broken(1e9) == {"a": None}
    assert breaker.why("a") == (
        "more than 3 reaps within 10 s in a: its workers are only observed until `aiotimer resume`"
    )


def test_the_smallest_breaker() -> None:
    breaker = Breaker((1, 1.0))
    assert [breaker.allows("a", now) for now in (0.0, 1.0, 2.0, 2.5)] == [True, True, True, False]


def test_a_breaker_breaks_for_one_job() -> None:
    breaker = Breaker((1, 10.0))
    assert [breaker.allows(job, 0.0) for job in ("a", "a", "b", "c")] == [True, False, True, True]
    assert [breaker.is_broken(job, 1.0) for job in ("a", "b", "d")] == [True, False, False]


def test_a_breaker_is_whole_again_when_it_is_told() -> None:
    breaker = Breaker((2, 10.0))
    assert [breaker.allows("a", 0.0) for _ in range(3)] == [True, True, False]
    assert breaker.resume() == ["a"]
    assert breaker.resume() == []
    assert [breaker.allows("a", 0.1) for _ in range(3)] == [True, True, False], "it counts anew"


def test_a_breaker_is_whole_again_after_a_time() -> None:
    breaker = Breaker((1, 10.0), resume_after=60.0)
    assert [breaker.allows("a", now) for now in (0.0, 5.0, 64.9)] == [True, False, False]
    assert breaker.broken(45.0) == {"a": 20.0}
    assert breaker.why("a").endswith("until `aiotimer resume`, or for 60 s")
    assert not breaker.is_broken("a", 65.0)
    assert breaker.allows("a", 65.0)
    assert breaker.broken(65.0) == {}


def test_a_breaker_forgets_jobs_that_have_been_quiet() -> None:
    breaker = Breaker((2, 10.0))
    for number in range(5000):
        assert breaker.allows(f"job {number}", float(number))
    assert len(breaker._begun) <= 1000
    assert [breaker.allows("job 4999", 4999.0) for _ in range(2)] == [True, False], "but no recent one"


def test_a_server_takes_every_option_with_its_default() -> None:
    parameters = inspect.signature(TimerServer).parameters.values()
    taken = {p.name: p.default for p in parameters} | {"ladder": dataclasses.MISSING}
    assert taken.items() >= {option.name: option.default for option in dataclasses.fields(Policy)}.items()
    assert taken.keys() - vars(Policy()).keys() == {"socket_path", "on_event", "bound"}
    options: dict[str, Any] = {
        "reap": "TERM:2,KILL", "target": "group", "observe": True, "stopped": "hold", "evidence_budget": 0.0,
        "max_grace": 2.5, "max_reaps": (1, 0.5), "evidence_dir": "e", "resume_after": 9.0,
        "on_expiry": "run",
    }  # fmt: skip
    assert TimerServer("/tmp/s", **options)._policy == Policy(**options)
    assert not [name for name, value in options.items() if getattr(Policy, name) == value]


def test_the_default_policy() -> None:
    assert (str(Policy().ladder), Policy().max_reaps) == ("dump,KILL", (256, 60.0))
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
        ({"target": "everybody"}, "target must be one of process, group, cgroup, tree, not 'everybody'"),
        ({"stopped": "maybe"}, "stopped must be one of reap, hold, not 'maybe'"),
        ({"on_expiry": "maybe"}, "on_expiry must be one of worker, run, not 'maybe'"),
        ({"evidence_budget": -1.0}, "evidence_budget must be a number of seconds, 0 or more, not -1.0"),
        ({"evidence_budget": nan}, "evidence_budget must be"),
        ({"max_grace": inf}, "max_grace must be"),
        ({"resume_after": -1.0}, "resume_after must be"),
        ({"max_reaps": (0, 60.0)}, "max_reaps must be .N, SECONDS., both above 0"),
        ({"max_reaps": (1, 0.0)}, "max_reaps must be"),
        ({"max_reaps": (1, nan)}, "max_reaps must be"),
    ],
)
def test_what_is_no_policy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**options)
