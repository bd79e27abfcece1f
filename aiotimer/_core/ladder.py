"""A ladder and its parser: in which steps a worker is reaped. How it is carried out stands in ``reaping``.

A ladder is written ``dump,ABRT:2,TERM:10,KILL``: find out what the worker is doing; send SIGABRT and give it
two seconds to die of it; send SIGTERM and give it ten; send SIGKILL.

The law of this file: SIGKILL comes last and is never missing; evidence is gathered first, or not at all.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from .layout import encode_grant

KILL, CONT = 9, 18

SIGNALS = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": KILL,
    "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "CONT": CONT, "URG": 23,
    "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
}  # fmt: skip
"""signal(7), as on x86, ARM and RISC-V. Left out are the signals that stop a process: it would not die."""

_NAMES = {number: name for name, number in SIGNALS.items()}

TARGETS = ("process", "group", "cgroup", "tree")
"""Whom the signals of a ladder are for."""

GRACE = 5.0
"""Seconds that a signal is given if the ladder does not say."""


class Step(NamedTuple):
    """One step.

    Attributes:
        signal: its number; 0: gather evidence.
        grace: seconds that the worker is given to die of it.
    """

    signal: int
    grace: float = 0.0


DUMP = Step(0)
_LAST = Step(KILL)


class Ladder(tuple[Step, ...]):
    """The steps of a ladder, first to last."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Ladder:
        """Return the ladder that a text describes. Signals' names are those of kill(1), in any case.

        Raises:
            ValueError: it describes none; the message says what to write.
        """
        steps = [_step(word.strip()) for word in text.split(",")]
        if steps[-1] != _LAST:
            raise ValueError(f"a ladder ends with KILL, and {text!r} does not: add ',KILL'")
        if _LAST in steps[:-1]:
            raise ValueError(f"nothing comes after KILL: leave out what follows it in {text!r}")
        if DUMP in steps[1:]:
            raise ValueError(f"dump comes first, and once: write it at the beginning of {text!r} only")
        return cls(steps)

    def __str__(self) -> str:
        return ",".join(_word(step) for step in self)

    @property
    def total_grace(self) -> float:
        """Seconds from the first signal to SIGKILL."""
        return sum(step.grace for step in self)

    @property
    def kills_at_once(self) -> bool:
        """Whether SIGKILL is the only signal.

        Only then may a worker be sent its dump signal, which might crash it: it has no time to recover, or to
        end by itself, that it could lose.
        """
        return all(step in (DUMP, _LAST) for step in self)


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """Return a duration in seconds that is written as ``90``, ``90s``, ``1.5m``, ``2h`` or ``1d``.

    Raises:
        ValueError: it is none of these; the message says what to write.
    """
    text = text.strip()
    unit = _UNITS.get(text[-1:].lower())
    try:
        return float(text) if unit is None else float(text[:-1]) * unit
    except ValueError:
        raise ValueError(f"{text!r} is no duration: write 90, 90s, 5m or 2h") from None


def name_of(number: int) -> str:
    """Return the name of a signal of a ladder, as kill(1) prints it but for its prefix: ``SIGTERM``."""
    return f"SIG{_NAMES[number]}"


def _step(word: str) -> Step:
    name, colon, seconds = word.partition(":")
    name = name.strip().upper()
    if name == "DUMP":
        if colon:
            raise ValueError("dump has no grace: the evidence budget is its limit; write 'dump'")
        return DUMP
    number = SIGNALS.get(name.removeprefix("SIG"))
    if number is None:
        raise ValueError(
            f"{word!r} is no step: write 'dump', or a signal that can end a process, such as TERM:10"
        )
    if number == KILL:
        if colon:
            raise ValueError("nothing comes after KILL, so it has no grace: write 'KILL'")
        return _LAST
    return Step(number, _grace(word, seconds) if colon else GRACE)


def _grace(word: str, text: str) -> float:
    try:
        grace = seconds(text)
    except ValueError:
        grace = 0.0
    if not (isfinite(grace) and grace > 0.0):
        raise ValueError(f"the grace in {word!r} is no number of seconds above 0, such as 2.5, or 2m")
    return grace


def _word(step: Step) -> str:
    if step == DUMP:
        return "dump"
    if step == _LAST:
        return "KILL"
    return f"{_NAMES[step.signal]}:{repr(step.grace).removesuffix('.0')}"


# -- what a worker asks for, and what its server allows ----------------------------------------------

_OBSERVE = "observe"


class ReapRequest(NamedTuple):
    """How a process asks to be reaped; one request holds per server, the first one that is made.

    Attributes:
        reap: its own ladder as text, "" for the server's.
        observe: not at all; its expiries are recorded.
        target: for whom the signals are, "" for the server's.
    """

    reap: str = ""
    observe: bool = False
    target: str = ""

    @property
    def text(self) -> str:
        """What of it stands in HELLO besides ``observe``: the target, the ladder, or both."""
        return " ".join(filter(None, (self.target, self.reap)))

    def combined(self, path: str, reap: str, *, observe: bool, target: str = "") -> ReapRequest:
        """Return the request that holds after another client of the process has made its own.

        Raises:
            TypeError, ValueError: that is no request, or not the one that holds.
        """
        if not isinstance(reap, str):
            raise TypeError(f"reap must be a str, not {type(reap).__name__}")
        if target not in ("", *TARGETS):
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
        new = ReapRequest(reap, bool(observe), target)
        encode_grant(new.text)  # it must fit into a table
        if reap:
            Ladder.parse(reap)  # else its server would refuse this process, and every later request with it
        if NO_REQUEST in (self, new) or self == new:
            return self if new == NO_REQUEST else new
        asked, asks = (
            f"reap={one.reap!r}, observe={one.observe}" + (f", target={one.target!r}" if one.target else "")
            for one in (self, new)
        )
        raise ValueError(f"this process has asked {path!r} for {asked} already, and cannot ask for {asks}")


NO_REQUEST = ReapRequest()


class ReapGrant(NamedTuple):
    """What a server allows of a reap request: how the worker is to be reaped.

    Attributes:
        ladder: its own, None: the server's.
        observe: not at all; its expiries are recorded.
        target: for whom the signals are, "" for the server's.
    """

    ladder: Ladder | None = None
    observe: bool = False
    target: str = ""

    def __str__(self) -> str:
        words = (_OBSERVE if self.observe else "", self.target, str(self.ladder) if self.ladder else "")
        return " ".join(filter(None, words))


def reap_grant(reap: str, *, observe: bool, max_grace: float) -> ReapGrant:
    """Return the grant that answers a reap request.

    Args:
        reap: its target, its own ladder, or both with a space between; "" as the server does it.
        observe: whether it is only to be observed.
        max_grace: the longest that the server lets a worker live after the first signal, seconds.

    Raises:
        ValueError: that is no ladder, or too long a one.
    """
    target, _, rest = reap.partition(" ")
    if target in TARGETS:
        reap = rest
    else:
        target = ""
    if not reap:
        return ReapGrant(None, observe, target)
    ladder = Ladder.parse(reap)
    if ladder.total_grace > max_grace:
        raise ValueError(
            f"the ladder {str(ladder)!r} takes {ladder.total_grace:g} s to reach KILL, and this server "
            f"allows {max_grace:g} s (--max-grace)"
        )
    return ReapGrant(ladder, observe, target)


def read_reap_grant(text: str, *, max_grace: float) -> ReapGrant:
    """Return the reap grant of which ``str()`` is in a table; a worker may have written anything else there.

    Raises:
        ValueError: that is none, or it is not allowed.
    """
    head, _, rest = text.partition(" ")
    if head == _OBSERVE:
        return reap_grant(rest, observe=True, max_grace=max_grace)
    return reap_grant(text, observe=False, max_grace=max_grace)
