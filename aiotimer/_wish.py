"""How a process asks to be reaped. The law of this file: one wish per server, the first one that is made."""

from __future__ import annotations

import os
from typing import NamedTuple

from ._core.layout import policy

OBSERVE_VARIABLE = "AIOTIMER_OBSERVE"
"""1: nobody is signalled for this process's timers; their expiry is recorded."""


class Wish(NamedTuple):
    """What is asked for: ``reap`` and ``observe`` of ``wire.Hello``."""

    reap: str = ""
    observe: bool = False

    def and_also(self, path: str, reap: str, *, observe: bool) -> Wish:
        """Return the wish that holds after another client has made its own.

        Raises:
            TypeError, ValueError: that is no wish, or not the one that holds.
        """
        if not isinstance(reap, str):
            raise TypeError(f"reap must be a str, not {type(reap).__name__}")
        policy(reap)
        new = Wish(reap, bool(observe))
        if NOTHING in (self, new) or self == new:
            return self if new == NOTHING else new
        raise ValueError(
            f"this process has asked {path!r} for reap={self.reap!r}, observe={self.observe} already, "
            f"and cannot ask for reap={new.reap!r}, observe={new.observe}"
        )

    @property
    def observed(self) -> bool:
        """Whether this process is to be observed only: it was asked for, or the environment says so."""
        return self.observe or os.environ.get(OBSERVE_VARIABLE) == "1"


NOTHING = Wish()
