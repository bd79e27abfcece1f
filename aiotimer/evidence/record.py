"""A record: all that is kept of one expiry, or of one look at a live worker, in one shape.

The laws of this file: what is not known is ``None``, ``""`` or empty; no key is ever absent from its JSON;
what another version wrote is read; nothing that a record holds is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .findings import Findings, known_of

Json = dict[str, Any]

_NO_PROCESS: Json = {
    "state": "", "wchan": "", "syscall": "", "kernel_stack": [], "threads": [], "rss_bytes": 0,
    "descriptors": [], "children": [], "cgroup": "", "command": [], "tracer": 0,
    "cwd": "",
    "libraries": [],
}  # fmt: skip

_NONE: list[Json] = []
_NOTHING: Json = {}


class Record(NamedTuple):
    """What is known of an expiry; again, with the same id, when more is.

    Attributes:
        id: the name of its directory: wall time, the worker's pid, a serial number.
        event: what has happened last.
        outcome: what has become of the worker.
        time: when that began, Unix time.
        pid: whose.
        name: what it is called.
        scope: the timer that expired.
        limit_s: the limit of its block.
        exact: limit and entry are its own, and not those of the last entry that was sampled.
        first: it was one of the first entries of its scope, and has a limit of its own for that.
        entered: when the block was entered, Unix time.
        ran_s: seconds from there to ``time``.
        late_s: seconds from the deadline to the first action.
        verdict, where: see :class:`Findings`.
        evidence: the directory where it is kept.
        ladder: what was to happen, as text.
        signals: what was sent, and when.
        detail: the rest, in words.
        timers: what was armed on the worker, the expired one first.
        tasks, stacks, process, probes: see :class:`Findings`.
        host: the name of the machine.
        run: the id of the run that it is a member of, "" if it is of none.
    """

    id: str = ""
    event: str = ""
    outcome: str = ""
    time: float | None = None
    pid: int = 0
    name: str = ""
    scope: str = ""
    limit_s: float | None = None
    exact: bool = False
    first: bool = False
    entered: float | None = None
    ran_s: float | None = None
    late_s: float | None = None
    verdict: str = ""
    where: str = ""
    evidence: str = ""
    ladder: str = ""
    signals: list[Json] = _NONE
    detail: str = ""
    timers: list[Json] = _NONE
    tasks: list[Json] = _NONE
    stacks: list[Json] = _NONE
    process: Json = _NO_PROCESS
    probes: Json = _NOTHING
    host: str = ""
    run: str = ""

    def with_findings(self, found: Findings) -> Record:
        """Return it with what was found out."""
        return self._replace(
            verdict=found.verdict, where=found.where, tasks=found.tasks, stacks=found.stacks,
            process=_NO_PROCESS | found.process, probes=found.probes,
        )  # fmt: skip

    def summary(self) -> Record:
        """Return it without what is long: what the history knows for as long as it knows the expiry."""
        return self._replace(tasks=_NONE, stacks=_NONE, process=_NO_PROCESS)

    def as_json(self) -> Json:
        """Return it as the object that ``aiotimer why --json`` prints."""
        return self._asdict()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Return what :meth:`as_json` gave; what is absent, or cannot be right, is not known."""
        record = cls(**known_of(cls._field_defaults, value))
        return record._replace(process=_NO_PROCESS | record.process)
