"""The command-line options that say how a server reaps, for the commands that start one; and how long.

The laws of this file: an option has the name and the default of its field in the policy; what a server would
refuse is refused on the command line, in words that say what to write instead.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from .._core.ladder import TARGETS, seconds
from .._linux.paths import OBSERVE_VARIABLE
from ..server.policy import ON_EXPIRY, STOPPED, Policy


def _checked(_context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    assert parameter.name is not None
    try:
        if value is not None:
            Policy(**{parameter.name: value})
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


if TYPE_CHECKING:
    _Seconds = click.ParamType[float]
else:
    _Seconds = click.ParamType  # which has no type arguments before click 8.2


class Duration(_Seconds):
    """A duration, in seconds: ``90``, ``90s``, ``5m``, ``2h``."""

    name = "duration"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return the seconds."""
        if not isinstance(value, str):
            return float(value)
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)


def _max_reaps(context: click.Context, parameter: click.Parameter, text: str) -> Any:
    count, _slash, within = text.partition("/")
    try:
        numbers = int(count), seconds(within)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not N/DURATION, such as 256/60 or 256/1m") from None
    return _checked(context, parameter, numbers)


_OPTIONS: dict[str, dict[str, Any]] = {
    "reap": {
        "metavar": "LADDER",
        "help": "How a worker is reaped: in steps, each a signal and its grace, with KILL the last one.",
    },
    "target": {
        "type": click.Choice(TARGETS),
        "help": "Who is signalled: the worker, its process group, (by KILL) its cgroup, or its tree.",
    },
    "observe": {
        "is_flag": True,
        "envvar": OBSERVE_VARIABLE,
        "help": "Signal nobody; record what expires, and when it ends after all "
        f"[also: ${OBSERVE_VARIABLE}=1].",
    },
    "stopped": {
        "type": click.Choice(STOPPED),
        "help": "What happens to a worker that is stopped, frozen, or in a debugger.",
    },
    "on_expiry": {
        "type": click.Choice(ON_EXPIRY),
        "help": "Who is reaped: the worker whose timer expired, or with it all of its run on this node.",
    },
    "evidence_budget": {
        "type": Duration(),
        "metavar": "DURATION",
        "help": "How long evidence may delay the first signal; 0: gather none.",
    },
    "max_grace": {
        "type": Duration(),
        "metavar": "DURATION",
        "help": "The longest that a worker's own ladder may take to KILL.",
    },
    "max_reaps": {
        "default": "{}/{:g}".format(*Policy.max_reaps),
        "callback": _max_reaps,
        "metavar": "N/DURATION",
        "help": "After more reaps than that in one job only observe its workers, until `aiotimer resume`.",
    },
    "resume_after": {
        "type": Duration(),
        "metavar": "DURATION",
        "help": "Reap again by itself so long after that; 0: never.",
    },
    "evidence_dir": {
        "type": click.Path(file_okay=False),
        "metavar": "DIRECTORY",
        "help": "Where evidence is kept [default: under the state directory].",
    },
}


def _add(command: Any, name: str, **changed: Any) -> Any:
    attributes = {"default": getattr(Policy, name), "show_default": True, "callback": _checked}
    return click.option(f"--{name.replace('_', '-')}", **attributes | _OPTIONS[name] | changed)(command)


def policy_options(command: Any) -> Any:
    """Add all of them; the function gets the keyword arguments of ``TimerServer``."""
    for name in reversed(_OPTIONS):
        command = _add(command, name)
    return command


def run_options(command: Any) -> Any:
    """Add those of ``run``.

    The function gets ``reap``, ``target``, ``on_expiry``, ``observe`` and ``evidence_dir``.

    ``$AIOTIMER_OBSERVE`` reaches its server by inheritance.
    """
    from .run_command import RUN_TARGET

    command = _add(_add(command, "evidence_dir"), "observe", envvar=None)
    command = _add(command, "on_expiry")
    return _add(_add(command, "target", default=RUN_TARGET), "reap", default=None)


def as_arguments(
    reap: str | None, target: str, on_expiry: str, observe: bool, evidence_dir: str | None
) -> tuple[str, ...]:
    """Return these as arguments of ``aiotimer serve``."""
    arguments = ["--target", target] + ([] if reap is None else ["--reap", reap])
    if on_expiry != Policy.on_expiry:
        arguments += ["--on-expiry", on_expiry]
    if observe:
        arguments.append("--observe")
    if evidence_dir is not None:
        arguments += ["--evidence-dir", os.path.abspath(evidence_dir)]
    return tuple(arguments)
