"""What a server says when it starts, and when it does not; and what its command line means without click."""

import dataclasses
import inspect
import logging
from pathlib import Path
from typing import Any

import click
import pytest

from aiotimer.cli.group import cli
from aiotimer.cli.serve_command import NO_PRIORITY, plain, serve, serve_until_told
from aiotimer.errors import UnsafePath
from aiotimer.server.policy import Policy


def complete(given: dict[str, Any]) -> tuple[dict[str, Any], Policy]:
    """Return what :func:`serve` makes of some arguments, with its defaults: its own, and the policy."""
    parameters = inspect.signature(serve).parameters.values()
    own = {one.name: one.default for one in parameters if one.kind is not one.VAR_KEYWORD}
    policy = {option.name for option in dataclasses.fields(Policy) if option.init}
    assert given.keys() <= own.keys() | policy
    own |= {name: value for name, value in given.items() if name in own}
    return own, Policy(**{name: value for name, value in given.items() if name in policy})


def as_click_parses(arguments: list[str]) -> dict[str, Any]:
    """Return what click hands to the command; no command is run for events."""
    command = cli.get_command(click.Context(cli), "serve")
    assert command is not None
    given = command.make_context("serve", [*arguments], **cli.context_settings).params
    assert given.pop("on_event") is None
    return given


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--socket /run/s",
        "--socket /run/s --loop asyncio",
        "--loop uvloop --loop asyncio",
        "--reap dump,TERM:2,KILL --target group --observe --on-expiry run --evidence-dir e",
        "--socket s --owner 7:8 --events-fd 3 --command-fd 4 --target tree --torch-timer-fd 5",
        "--socket s --store-fds 6 7 --ready-fd 8 --lock-fd 9 --listener-fd 10",
        "--socket s --owner 7:8 --idle-before-end 0.5 --store-fds 6 7 --ready-fd 8 --lock-fd 9",
    ],
)
def test_what_is_parsed_without_click_is_what_click_makes_of_it(text: str) -> None:
    given = plain(text.split())
    assert given is not None
    assert complete(given) == complete(as_click_parses(text.split()))


@pytest.mark.parametrize(
    "text",
    [
        "--help",
        "--no-such-option",
        "more",
        "--socket",
        "--socket --observe",
        "--socket=/run/s",
        "--store-fds 6",
        "--ready-fd x",
        "--loop trio",
        "--reap TERM",
        "--target nobody",
        "--on-expiry nothing",
        "--max-grace 5m",
        "--on-event true",
        f"--evidence-dir {__file__}",
    ],
)
def test_what_is_not_plain_is_left_to_click(text: str) -> None:
    assert plain(text.split()) is None


def test_what_the_environment_says_is_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOTIMER_OBSERVE", "0")
    assert plain([]) is None


def test_a_directory_for_evidence_may_be_there(tmp_path: Path) -> None:
    assert plain(["--evidence-dir", str(tmp_path)]) == {"evidence_dir": str(tmp_path)}


class Place:
    """A server that starts if its place is safe, and ends at once."""

    socket_path = "/run/s"

    def __init__(self, *, safe: bool) -> None:
        self._safe = safe

    async def __aenter__(self) -> None:
        if not self._safe:
            raise UnsafePath("no place for a server")

    async def __aexit__(self, *_raised: object) -> None:
        pass

    async def serve_forever(self) -> None:
        pass


async def test_that_it_has_no_priority_is_said_by_a_server_that_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    server: Any = Place(safe=False)
    with pytest.raises(UnsafePath):
        await serve_until_told(server, "asyncio", None, NO_PRIORITY, quiet=False)
    assert not caplog.records, "an error is one line"
    server = Place(safe=True)
    await serve_until_told(server, "asyncio", None, NO_PRIORITY, quiet=True)
    assert not caplog.records
    await serve_until_told(server, "asyncio", None, NO_PRIORITY, quiet=False)
    assert [record.message for record in caplog.records] == [NO_PRIORITY]
