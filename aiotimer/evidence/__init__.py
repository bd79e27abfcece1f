"""What a worker is doing: a stub, which finds out nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from .._core import wire
from .._core.requests import WorkerId


class Subject(NamedTuple):
    """Whom evidence is gathered of."""

    id: WorkerId
    pidfd: int
    name: str
    scope: str
    slots: tuple[int, ...]
    table: int
    table_inode: int
    ask: Callable[[], Awaitable[list[wire.Tasks]]] | None


class Findings(NamedTuple):
    """What was found out."""

    verdict: str = ""
    where: str = ""
    tasks: list[dict[str, Any]] = []
    stacks: list[dict[str, Any]] = []
    process: dict[str, Any] = {}
    probes: dict[str, str] = {}
    stacks_text: str = ""
    tasks_text: str = ""


async def gather(subject: Subject, budget: float) -> Findings:
    """Find out what a worker is doing, within so many seconds."""
    return Findings()
