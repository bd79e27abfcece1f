"""The options of a command line, and the policy that they describe."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import click
import pytest

from aiotimer.cli.options import as_arguments, policy_options, run_options
from aiotimer.server.policy import Policy


@click.command
@policy_options
def serve(**policy: Any) -> dict[str, Any]:
    """Return the options."""
    return policy


@click.command
@run_options
def run(**policy: Any) -> dict[str, Any]:
    """Return the options."""
    return policy


def options(*arguments: str, command: click.Command = serve) -> dict[str, Any]:
    """Return what a command gets of its arguments."""
    found: dict[str, Any] = command.main([*arguments], standalone_mode=False)
    return found


def test_every_option_of_a_policy_has_its_default() -> None:
    found = options()
    assert found.keys() == {option.name for option in dataclasses.fields(Policy) if option.init}
    assert Policy(**found) == Policy()


def test_every_option_can_be_written() -> None:
    written = (
        "--reap TERM:2,KILL --target group --observe --stopped hold --evidence-budget 0 --max-grace 2.5 "
        "--max-reaps 1/0.5 --evidence-dir e --resume-after 9 --on-expiry run"
    )
    expected = Policy("TERM:2,KILL", "group", True, "hold", 0.0, 2.5, (1, 0.5), "e", 9.0, "run")
    assert Policy(**options(*written.split())) == expected


def test_durations_may_have_units() -> None:
    found = options(
        *["--max-grace", "2h", "--evidence-budget", "1.5s", "--resume-after", "5M", "--max-reaps", "9/1d"]
    )
    assert (found["max_grace"], found["evidence_budget"], found["resume_after"]) == (7200.0, 1.5, 300.0)
    assert found["max_reaps"] == (9, 86_400.0)


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("--max-reaps", ("", "256", "256/", "/60", "a/b", "1.5/60"), "is not N/DURATION, such as 256/60"),
        ("--max-reaps", ("0/60", "-1/60", "1/0", "1/inf", "1/nan"), "both above 0"),
        ("--resume-after", ("-1", "nan", "inf"), "must be a number of seconds, 0 or more"),
        ("--evidence-budget", ("-1", "nan", "inf"), "must be a number of seconds, 0 or more"),
        ("--max-grace", ("-1", "nan", "inf"), "must be a number of seconds, 0 or more"),
        ("--max-grace", ("", "s", "5x", "1h30"), "is no duration: write 90, 90s, 5m or 2h"),
        ("--reap", ("TERM",), "a ladder ends with KILL"),
        ("--target", ("everybody",), "is not one of 'process', 'group', 'cgroup', 'tree'"),
        ("--stopped", ("maybe",), "is not one of 'reap', 'hold'"),
        ("--on-expiry", ("everybody",), "is not one of 'worker', 'run'"),
    ],
)
def test_what_a_server_would_refuse_is_refused(option: str, values: tuple[str, ...], message: str) -> None:
    for value in values:
        with pytest.raises(click.BadParameter, match=message):
            options(option, value)


def test_what_run_hands_to_its_server() -> None:
    assert as_arguments(**options(command=run)) == ("--target", "tree")
    written = "--reap KILL --target group --observe --evidence-dir e"
    expected = ("--target", "group", "--reap", "KILL", "--observe", "--evidence-dir", os.path.abspath("e"))
    assert as_arguments(**options(*written.split(), command=run)) == expected
    assert as_arguments(**options("--on-expiry", "run", command=run))[2:] == ("--on-expiry", "run")
    with pytest.raises(click.BadParameter, match="a ladder ends with KILL"):
        options("--reap", "TERM", command=run)
