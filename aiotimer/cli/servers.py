"""A finder of the servers of this user: those that are there, and the one that knows a worker.

The laws of this file:

* A socket is found by a state directory of this user, and whoever listens there is told nothing and believed
  nothing unless it is this user's or root's.
* All are asked side by side. A socket that nobody listens at is passed over, for private servers leave such;
  those that give no answer cost two seconds, together, and are said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ..client import control
from ..errors import AiotimerError, Refused, ServerUnavailable
from .common import EX_UNAVAILABLE, Failed, count, warn

Answer = TypeVar("Answer")

_AT_ONCE = 32


def reports_of(paths: Iterable[str], *, scopes: bool = False) -> list[dict[str, Any]]:
    """Return what those servers report that are there: see :func:`~aiotimer.client.control.status`."""
    answers = _ask(paths, lambda path: control.status(path, scopes=scopes, trusted=True))
    return [report for _path, report in answers]


def dump_of(pid: int, paths: Iterable[str]) -> dict[str, Any]:
    """Return the evidence of what a worker is doing, from the first server that knows it.

    Raises:
        Refused, Failed: none does.
    """
    refusals: list[Refused] = []
    living = [path for path, _pong in _ask(paths, lambda path: control.ping(path, trusted=True))]
    for path in living:
        try:
            return control.dump(path, pid, trusted=True)
        except Refused as error:
            refusals.append(error)
        except AiotimerError as error:
            pass_over(path, error)
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        servers = count(len(refusals), "timer server")
        raise Failed(f"none of the {servers} of this user watches a worker with pid {pid}", EX_UNAVAILABLE)
    raise Failed("no timer server of this user is running", EX_UNAVAILABLE)


def _ask(paths: Iterable[str], question: Callable[[str], Answer]) -> list[tuple[str, Answer]]:
    """Ask at every path; return the answers, in the order of the paths."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        asked = [(path, threads.submit(question, path)) for path in paths]
    answers = []
    for path, answer in asked:
        try:
            answers.append((path, answer.result()))
        except AiotimerError as error:
            pass_over(path, error)
    return answers


def pass_over(path: str, error: AiotimerError) -> None:
    """Say that a server is passed over, and why; nothing of a socket at which nobody listens."""
    if not (
        isinstance(error, ServerUnavailable) and error.advice
    ):  # there is advice on who is not there only
        reason = getattr(error, "reason", str(error))
        warn(f"the timer server at {path!r} is passed over: {reason}")
