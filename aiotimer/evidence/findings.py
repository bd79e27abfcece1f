"""The data of an inspection: what is asked about a worker, and what was found out.

They are argument and result of :func:`aiotimer.evidence.gather.gather`.

The law of this file: what is not known is ``""``, ``None`` or empty; no key is ever absent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from .._core import wire
from .._core.requests import WorkerId

Frame: TypeAlias = list[Any]
"""``[file, line, function]``; JSON has no tuples."""

ASK_WITHIN = 0.5
"""Seconds within which a worker's event loops answer, if they are not starved: usually in milliseconds. No
longer is put off what falls due meanwhile."""


class Answers(list[wire.Tasks]):
    """What a worker's loops answered.

    Args:
        answers: of those that did.
        asked: how many loops there are.
    """

    def __init__(self, answers: list[wire.Tasks], asked: int) -> None:
        super().__init__(answers)
        self.asked = asked


class Subject(NamedTuple):
    """A worker to find something out about.

    Attributes:
        id: who it is.
        pidfd: the process, pinned. It is duplicated: it may be closed at any time.
        name: its command name.
        scope: the timer in question, "" if there is none.
        slots: where that timer is in its table; given to its loops by ``ask``.
        table: a descriptor of its table's file, duplicated too; -1: there is none.
        table_inode: of that file.
        ask: ask every loop of the worker, and put what they answer into :class:`Answers` as it comes, until
            cancelled; None: none has said that it would answer.
        connected: its connection stands: it has not closed descriptors that are not its own.
        confirm: asked just before its first thread is sent the dump signal: whether its timer is still armed.
        thread: ``threading.get_ident()`` of the thread that entered the block in question, 0: not known.
        seen: called when all has been seen of it that takes no signal; or not at all, if it is over before.
        kills_next: it is sent SIGKILL next, so it may be stopped for a while before, or sent its dump signal;
            else nothing is done that could harm it.
        libraries: how the paths of its libraries begin; empty if that is not known.
        cancelled: what became of the soft limit of the block in question, in words; "" if it has none, or
            that is yet to come.
    """

    id: WorkerId
    pidfd: int
    name: str
    scope: str
    slots: tuple[int, ...] = ()
    table: int = -1
    table_inode: int = 0
    ask: Callable[[Answers], Awaitable[object]] | None = None
    connected: bool = False
    confirm: Callable[[], bool] = lambda: True
    kills_next: bool = False
    thread: int = 0
    seen: Callable[[], object] = lambda: None
    libraries: tuple[str, ...] = ()
    cancelled: str = ""


class Findings(NamedTuple):
    """What is known about a worker.

    Attributes:
        verdict: what it was doing, in words.
        where: the line of the user's code, ``train.py:42``; "" if that is not known.
        tasks: what the tasks of its loops wait for; those of the timer's own block have ``own``.
        stacks: its threads' Python stacks; ``native`` are the C functions on top, if they are known; ``ran``
            is the share of the time between two looks for which the thread ran, ``moves`` and ``lines`` are
            what ``motion`` says of them.
        process: what /proc says, as ``evidence/proc.py`` reads it.
        probes: how each probe went: how long it took, or why there is nothing from it.
        stacks_text: the stacks for people.
        tasks_text: the tasks for people.
    """

    verdict: str
    where: str
    tasks: list[dict[str, Any]]
    stacks: list[dict[str, Any]]
    process: dict[str, Any]
    probes: dict[str, str]
    stacks_text: str
    tasks_text: str


_NO_KINDS: Mapping[str, Any] = {}

NO_FINDINGS = Findings("", "", [], [], {}, {}, "", "")


def known_of(
    unknown: Mapping[str, Any], value: Mapping[str, Any], kinds: Mapping[str, Any] = _NO_KINDS
) -> dict[str, Any]:
    """Return what an object that was read as JSON says, as far as it can be right.

    Args:
        unknown: by key, what stands there if it is not known; None: a number.
        value: the object.
        kinds: of some keys, of which type it is, where what stands for unknown does not tell.
    """
    known = {}
    for key, nothing in unknown.items():
        kind = kinds.get(key) or ((int, float) if nothing is None else type(nothing))
        if isinstance(value.get(key), kind):
            known[key] = value[key]
    return known


def stack(
    thread: str = "", frames: list[Frame] | None = None, *, current: bool = False, ident: int = 0
) -> dict[str, Any]:
    """Return the stack of one thread, with nothing else known about it.

    Args:
        thread: its name.
        frames: outermost first.
        current: this thread wrote the stacks.
        ident: ``threading.get_ident()`` of it.
    """
    return {
        "thread": thread,
        "ident": ident,
        "tid": 0,
        "main": False,
        "current": current,
        "entered": False,  # whether it entered the block in question
        "gil": None,
        "state": "",
        "syscall": "",
        "waits": "",
        "holder": "",
        "frames": [] if frames is None else frames,
        "native": [],
        "ran": None,
        "awake": False,
        "moves": None,
        "lines": [],
    }
