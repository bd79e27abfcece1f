"""The command-line options that say how a server reaps, for the commands that start one.

The law of this file: what a server would refuse is refused on the command line, in words that say what to
write instead.
"""

from __future__ import annotations

import os
from math import inf
from typing import Any

import click

from .._linux.environment import OBSERVE_VARIABLE


def _ladder(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from .._core.ladder import Ladder

    try:
        return None if value is None else str(Ladder.parse(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _max_reaps(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, float]:
    from ..server.policy import parse_max_reaps

    try:
        return parse_max_reaps(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _seconds(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not 0.0 <= value < inf:
        raise click.BadParameter(f"{value!r} is no number of seconds, 0 or more")
    return value


def _option(*names: str, **attributes: Any) -> Any:
    return click.option(*names, show_default=True, **attributes)


def _reap(default: str | None) -> Any:
    text = "How a worker is reaped: in steps, each a signal and its grace, with KILL the last one."
    return _option("--reap", default=default, callback=_ladder, metavar="LADDER", help=text)


def _observe(variable: str | None) -> Any:
    text = f"Signal nobody; record what expires, and when it ends after all [also: ${OBSERVE_VARIABLE}=1]."
    return _option("--observe", is_flag=True, envvar=variable, help=text)


_EVIDENCE_DIR = _option(
    "--evidence-dir", type=click.Path(file_okay=False), metavar="DIRECTORY",
    help="Where evidence is kept [default: under the state directory].",
)  # fmt: skip

_POLICY = (
    _reap("dump,KILL"),
    _option(
        "--target", type=click.Choice(["process", "group", "cgroup"]), default="process",
        help="Who is signalled: the worker, its process group, or (by KILL) its cgroup.",
    ),
    _observe(OBSERVE_VARIABLE),
    _option(
        "--stopped", type=click.Choice(["reap", "hold"]), default="reap",
        help="What happens to a worker that is stopped, or in a debugger.",
    ),
    _option(
        "--evidence-budget", type=float, default=3.0, callback=_seconds, metavar="SECONDS",
        help="How long evidence may delay the first signal; 0: gather none.",
    ),
    _option(
        "--max-grace", type=float, default=60.0, callback=_seconds, metavar="SECONDS",
        help="The longest that a worker's own ladder may take to KILL.",
    ),
    _option(
        "--max-reaps", default="256/60", callback=_max_reaps, metavar="N/SECONDS",
        help="After more reaps than that only observe, until started again.",
    ),
    _EVIDENCE_DIR,
)  # fmt: skip


def policy_options(command: Any) -> Any:
    """Add all of them; the function gets the keyword arguments of ``TimerServer``."""
    for option in reversed(_POLICY):
        command = option(command)
    return command


def run_options(command: Any) -> Any:
    """Add those of ``run``; the function gets ``reap``, ``observe`` and ``evidence_dir``.

    ``$AIOTIMER_OBSERVE`` reaches its server by inheritance.
    """
    return _reap(None)(_observe(None)(_EVIDENCE_DIR(command)))


def as_arguments(reap: str | None, observe: bool, evidence_dir: str | None) -> tuple[str, ...]:
    """Return what of these is given as arguments of ``aiotimer serve``."""
    arguments = [] if reap is None else ["--reap", reap]
    if observe:
        arguments.append("--observe")
    if evidence_dir is not None:
        arguments += ["--evidence-dir", os.path.abspath(evidence_dir)]
    return tuple(arguments)
