"""An outage: timers are armed, and nobody looks at them.

The laws of this file:

* It is said once, in the log and to every hook; that it is over is said once too.
* While it lasts, one thread tries to mend it, at most four times a second. It ends with the outage, or with
  the last client. Without an outage there is no thread.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from _thread import start_new_thread
from collections.abc import Callable
from time import sleep
from typing import TypeAlias

from ..errors import AiotimerError

log = logging.getLogger("aiotimer")

Hook: TypeAlias = Callable[[str | None], object]
"""``on_unwatched``: called with the reason when timers are not being watched, and with None when they are."""

_FIRST_PAUSE, _LAST_PAUSE = 0.25, 1.0
"""Seconds between two attempts to mend an outage. ``_table_files.PEERS_RETURN_WITHIN`` must be longer: for so
long a restarted server waits to hear what a peer without a shared table released meanwhile."""


class Mended:
    """What can fall out of its server's sight, and gets back by itself.

    Attributes:
        path: the server's socket.
        hooks: whom to tell, see :data:`Hook`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.hooks: list[Hook] = []
        self.start_afresh()

    def start_afresh(self) -> None:
        """Forget the outage, and the thread: there is none of ours in a forked child."""
        self._saying = threading.RLock()
        self._unwatched = False
        self._said = False
        self._mending = False

    # -- what the kinds of connection differ in --------------------------------------------------

    def needs_mending(self) -> bool:
        """Whether there is anything left to do, or to wait for."""
        raise NotImplementedError

    def mend(self) -> None:
        """Try once. Blocks this thread for a second or two; raises AiotimerError or OSError if in vain."""
        raise NotImplementedError

    # -- saying so -------------------------------------------------------------------------------

    def outage(self, reason: str, *, aloud: bool = True) -> None:
        """Timers are not being watched: say so, once.

        Args:
            reason: why.
            aloud: whether to say it in the log; the hooks are told in any case.
        """
        with self._saying:
            begins, self._unwatched = not self._unwatched, True
            say, self._said = aloud and not self._said, self._said or aloud
        if say:
            log.warning("timers are not being watched: %s", reason)
        if begins:
            self._tell(reason)
        if say or (begins and self.hooks):
            self.mend_in_background()

    def outage_over(self) -> None:
        """They are being watched: say so if the contrary has been said."""
        if not self._unwatched:
            return
        with self._saying:
            ends, self._unwatched = self._unwatched, False
            say, self._said = self._said, False
        if say:
            log.warning("the timer server at %r looks again", self.path)
        if ends:
            self._tell(None)

    def _tell(self, reason: str | None) -> None:
        for hook in list(self.hooks):
            try:
                hook(reason)
            except Exception:
                log.exception("on_unwatched failed")

    # -- the thread ------------------------------------------------------------------------------

    def mend_in_background(self) -> None:
        """See that there is a thread at it. Waits for nothing: finalisers come here. Two at it do no harm.

        When the interpreter ends, its timers end with it; a thread would not run any more.
        """
        if self._mending or sys.is_finalizing():
            return
        self._mending = True
        try:
            # Not threading.Thread: its start() takes locks, and waits until the thread runs.
            start_new_thread(self._keep_mending, ())
        except RuntimeError:  # no thread can be had
            self._mending = False

    def _keep_mending(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            if not self.needs_mending():
                self._mending = False
                if not self.needs_mending():  # or somebody came just now, and saw a thread at it
                    return
                self._mending = True
            with contextlib.suppress(AiotimerError, OSError):
                self.mend()
                if not self.needs_mending():
                    continue
            sleep(pause)
            pause = min(1.5 * pause, _LAST_PAUSE)
