"""The events of a server: what happened, as an object, as JSON, and as one line in the log.

The law of this file: text that a worker chose (its scopes, its name) is escaped before it reaches a
terminal or a log, whatever bytes it holds.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from ._core.requests import WorkerId

log = logging.getLogger("aiotimer")

Kind: TypeAlias = Literal[
    "expired", "reaped", "unkillable", "reap_failed", "late", "observed", "finished", "held", "breaker",
    "worker_gone", "exec", "adopted", "stalled", "refused", "run",
]  # fmt: skip

KINDS: tuple[str, ...] = get_args(Kind)

OUTCOMES = frozenset(KINDS) - {"expired", "held", "adopted", "stalled", "refused"}
"""Kinds that say what has become of a timer, of a worker, or of a job; the others can be done without."""

_LEVELS = {
    "expired": logging.DEBUG,
    "adopted": logging.DEBUG,
    "worker_gone": logging.DEBUG,
    "late": logging.WARNING,
    "unkillable": logging.ERROR,
    "reap_failed": logging.ERROR,
    "breaker": logging.ERROR,
}


class Event(NamedTuple):
    """One thing that happened.

    Attributes:
        event: its kind. ``expired``: a timer has, and what follows from it begins. ``reaped``: a worker
            was signalled and is dead. ``unkillable``: it was signalled and would not die.
            ``reap_failed``: ``reap_worker`` returned False or raised. ``late``: a timer expired, and was
            released before the signal. ``observed``: a timer expired, and nobody was signalled, as was
            wanted; ``finished``: such a timer was released after all. ``held``: the worker is stopped or
            in a debugger, and is not reaped for that long, as was wanted; or nobody can tell whether it runs
            the program that armed the timer. ``breaker``: too many reaps, the server only observes from now
            on. ``worker_gone``: a worker ended with timers armed, and nothing had been done to it; or an
            expired one runs another program.
            ``exec``: a worker runs another program now, its timers are dropped (those of the server's owner
            only if it is another user's now). ``adopted``: a table of an
            earlier server. ``stalled``: the server stood still. ``refused``: a client that is not served.
            ``run``: a timer of a member of a run expired, and all members on this node were called.
        worker_id: whom it happened to, None for the server itself.
        name: what the worker is called: by its own account, else its command name.
        scope: the timer it was about.
        late_s: seconds between the deadline and the first action on the worker (or its release).
        detail: the rest, in words.
        outcome: what has become of an expiry: ``pending``, ``reaped``, ``unkillable``, ``late``,
            ``observed``, ``finished``, ``gone``; "" for other events. In the history it is ``unknown`` if the
            server ended before.
        verdict: what the worker was doing, in words.
        evidence: the directory with what was found out.
        run: the run that it is about, for ``run`` and members that were reaped with theirs.
        culprit: whom that waits for, ``rank 2``; "" where it cannot be told.
    """

    event: Kind
    worker_id: WorkerId | None = None
    name: str = ""
    scope: str = ""
    late_s: float | None = None
    detail: str = ""
    outcome: str = ""
    verdict: str = ""
    evidence: str = ""
    run: str = ""
    culprit: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the event as the object that goes into a JSON line; ``time`` is wall time, for people."""
        fields = self._asdict()
        worker = fields.pop("worker_id")
        now = time.time()  # noqa: TID251 - for reports; no decision rests on it
        return {"event": self.event, "time": now, "pid": worker and worker.pid, **fields}

    def __str__(self) -> str:
        fields = (
            self.worker_id and f"pid={self.worker_id.pid}",
            self.name and f"name={shown(self.name)}",
            self.scope and f"scope={shown(self.scope)}",
            self.run and f"run={shown(self.run)}",
            self.culprit and f"culprit={shown(self.culprit)}",
            self.late_s is not None and f"late={self.late_s * 1000:.1f}ms",
            self.verdict and f"verdict={shown(self.verdict)}",
            self.evidence and f"evidence={shown(self.evidence)}",
            self.detail and f"({printable(self.detail)})",
        )
        return f"{self.event} " + " ".join(field for field in fields if field)


def write_to_log(event: Event) -> None:
    """Write an event to the ``aiotimer`` logger, at a level that fits it."""
    log.log(_LEVELS.get(event.event, logging.WARNING), "%s", event)


def shown(text: str) -> str:
    """Return untrusted text quoted, with everything that is not printable escaped."""
    return printable(json.dumps(text, ensure_ascii=False))


def printable(text: str) -> str:
    """Return text with everything that is not printable escaped: safe for a terminal, on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
