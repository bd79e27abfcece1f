"""A record of a run: one roll call, as a server has found it on its node, or as several are merged.

The laws of this file: what is not known is ``None``, ``""`` or empty; no key is ever absent from its JSON;
what another version wrote is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .findings import known_of
from .roll_call import Member, Roll

_NO_MEMBERS: list[Member] = []
_NO_RANKS: list[int] = []
_NO_IDS: list[str] = []


class RunRecord(NamedTuple):
    """What is known of a run at a moment.

    Attributes:
        id: the name of its directory, "" if it was merged from several.
        run: what its members call it.
        size: how many members it has, by their own account; 0 if that is not known.
        time: when its roll was called, Unix time.
        host: the name of the machine.
        boot_id: of the machine since it was started.
        monotonic: what ``CLOCK_MONOTONIC`` said at ``time``.
        expired: ids of the records of those whose timers had expired.
        members, culprits, verdict: see :class:`~.roll_call.Roll`.
        clocks: of several nodes, how well their clocks are known to agree, in words.
    """

    id: str = ""
    run: str = ""
    size: int = 0
    time: float | None = None
    host: str = ""
    boot_id: str = ""
    monotonic: float | None = None
    expired: list[str] = _NO_IDS
    members: list[Member] = _NO_MEMBERS
    culprits: list[int] = _NO_RANKS
    verdict: str = ""
    clocks: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as the object that ``aiotimer why --run --json`` prints."""
        roll = Roll(self.members, self.culprits, self.verdict)
        return {"event": "run"} | self._asdict() | roll.as_json()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRecord:
        """Return what :meth:`as_json` gave; what is absent, or cannot be right, is not known."""
        known = known_of(cls._field_defaults, value)
        ids: list[Any] = known.get("expired", [])
        known["expired"] = [one for one in ids if isinstance(one, str)]
        return cls(**known | Roll.from_json(value)._asdict())
