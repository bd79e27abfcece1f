"""A table under watch: the look of ``_core.watch``, carried out on a file, by a clock, with ``call_at``.

The laws of this file:

* One alarm per table wakes the server at its promise; a handle has it read once more after every look.
* Nothing here knows what a worker is: what is due is handed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic
from typing import Protocol, TypeAlias

from .._core import layout, wire
from .._core.reader import TableReader, Timer
from .._core.watch import ADOPTED_EVERY, LATER_READ, RESTARTS, Due, Watch
from .._linux.paths import remove
from .._linux.table_files import TableFile
from ..events import log
from .slices import Alarm

LARGE = 65_536
"""Bytes of deadlines that make a table large: looking at it takes long."""

REST, MOST_REST = 8.0, 0.05
"""How many times as long nobody looks at it again, seconds at most: so one worker of many thousand timers
that rings all the time has a ninth of the server's loop."""


AskPeer: TypeAlias = Callable[[Callable[[bool], None]], object]
"""``ask_peer(answered)``: finds out whether a peer that stores nothing itself has something to say and could
not. That can take long, so the answer goes to ``answered``."""


class Connection(Protocol):
    """A connection, as far as a table knows one."""

    def close(self) -> None:
        """Close it."""

    def hung_up(self) -> bool:
        """Whether the other end is closed."""


class WatchedTable:
    """One table file that this server looks at.

    Args:
        file: the table; owned from here on.
        on_due: called with this table and the timers that have expired.
        do_first: calls a look that is due, now or soon.
        close: closes the descriptor of its file, now or soon.
    """

    __slots__ = (
        "_alarm", "_clock", "_close", "_do_first", "_is_asking", "_later", "_looks", "_loop", "_on_due",
        "_rests_until", "_silent_since", "ask_peer", "before_removal", "connection", "file", "program",
        "reader", "watch",
    )  # fmt: skip

    def __init__(
        self,
        file: TableFile,
        watch: Watch,
        loop: asyncio.AbstractEventLoop,
        on_due: Callable[[WatchedTable, tuple[Due, ...]], None],
        clock: Callable[[], float] = monotonic,
        do_first: Callable[[Callable[[], None]], object] = lambda look: look(),
        close: Callable[[int], object] = os.close,
    ) -> None:
        self.file = file
        self.watch = watch
        self.reader = TableReader(file.read)
        self._clock = clock
        self._close = close
        self._do_first = do_first
        self._loop = loop
        self._on_due = on_due
        self._alarm = Alarm(loop, clock, self._woken)
        self._later: asyncio.TimerHandle | None = None
        self._rests_until = -inf
        self.before_removal: Callable[[WatchedTable], object] = lambda _table: None  # to read it once more
        self.ask_peer: AskPeer | None = None  # it may have released what is still armed here
        self._is_asking = False
        self._silent_since = inf
        self.connection: Connection | None = None  # on which rings or requests come for this table
        self.program = self.number(layout.PROGRAM)  # see procfs.program_of
        # Go on counting where an earlier server stopped: a worker may remember its last ring by that.
        self._looks = float(self.number(layout.LOOKS))

    def look(self) -> None:
        """Look now: report what is due, promise, and schedule the next look."""
        if self.connection is None and self.ask_peer is not None:
            if not self._is_asking:
                self._is_asking = True
                self.ask_peer(self._answered)
            return
        self._look()

    def _answered(self, unsent: bool) -> None:
        """Look, unless the peer has yet to say what it has released: then ask again in a while.

        One that has only just nothing to say may have said it a moment ago, which has not been read yet, or
        it is at its end, with its threads gone. So it has to be silent for that while, too.
        """
        self._is_asking = False
        now = self._clock()
        self._silent_since = inf if unsent else min(self._silent_since, now)
        if self.connection is None and now < self._silent_since + ADOPTED_EVERY:
            self._wake_at(now + ADOPTED_EVERY)
        else:
            self._do_first(self._look_at_once_if_open)

    def _look(self) -> None:
        watch = self.watch
        for _ in range(RESTARTS):
            began = self._clock()
            snapshot = self.reader.snapshot()
            now = self._clock()
            deadlines = layout.deadlines(snapshot)
            decision = watch.look(deadlines, now)
            if len(snapshot) >= LARGE:
                self._rests_until = began + min(REST * (self._clock() - began), MOST_REST)
            if decision.due:
                self._report(decision.due)
                if self.closed:
                    return
            self._write(decision.promise)
            if decision.wake_at <= now:
                break  # it is a long look, of which this is a part: others have a turn, then it goes on
            again = self.reader.snapshot()
            same = again == snapshot
            if same and not watch.has_dealt:
                break
            read = deadlines if same else layout.deadlines(again)
            if not watch.overlooked(read, decision.wake_at, same=same):
                break
            decision = decision._replace(wake_at=0.0)  # others have a turn, then it goes on
            if len(snapshot) >= LARGE:
                break
        self._wake_at(decision.wake_at)
        if self._later is not None:
            self._later.cancel()
        self._later = self._loop.call_later(LATER_READ, self._read_later)

    def _report(self, due: tuple[Due, ...]) -> None:
        """Hand over what is due. Whatever goes wrong there, this table goes on being looked at."""
        try:
            self._on_due(self, due)
        except Exception:  # noqa: BLE001 - logged; it is due again at the next look
            log.exception("an expired timer could not be dealt with; it will be tried again")
            self.watch.reopen(due)

    def rung(self, deadline: float) -> None:
        """The worker rang."""
        self.watch.ring(deadline)
        self._look_soon()

    def look_again(self, due: tuple[Due, ...]) -> None:
        """Look now, and report once more what is still due of what has been reported."""
        if not self.closed:
            self.watch.reopen(due)
            self.look()

    def wake_by(self, when: float) -> None:
        """Look at ``when`` at the latest, besides what has been promised."""
        if when < self._alarm.at:
            self._wake_at(when)

    def timer(self, due: Due) -> Timer | None:
        """Return the timer that is due, None if it has been released or re-armed since."""
        return self.reader.timer(due.slot, due.deadline)

    def batches(self, most: int = layout.SLOTS) -> Iterator[list[Timer]]:
        """Yield the timers armed and not dealt with in batches, soonest first: of so many at most."""
        for batch in self.reader.batches(most):
            yield [t for t in batch if not self.watch.cleared(t.slot, t.deadline)]

    def holds_timers(self) -> bool:
        """Whether anything is armed and not dealt with."""
        return self.watch.holds_any(self.reader.deadlines())

    def mark_reaped(self, now: float) -> None:
        """Write into the header that the worker is about to be signalled, for the next server to know."""
        self._store(layout.word(now), 8 * layout.REAPED_AT)

    def note_program(self, mark: int) -> None:
        """Remember which program arms its timers here, and let the next server know."""
        self.program = mark
        self._store(layout.word(mark), 8 * layout.PROGRAM)

    def note_reap_grant(self, text: str) -> None:
        """Let the next server know what the worker was granted of its reap request.

        Raises:
            ValueError: that does not fit.
        """
        self._store(layout.encode_grant(text), layout.GRANT_OFFSET)

    def note_account(self, said: wire.Account) -> None:
        """Let the next server know what the worker has said of itself."""
        self._store(wire.account(said, layout.ACCOUNT_SIZE), layout.ACCOUNT_OFFSET)

    def note_exit_signal(self, number: int) -> None:
        """Remember at which signal the worker exits, if it is pid 1, and let the next server know."""
        self._store(layout.word(number), 8 * layout.EXIT_SIGNAL)

    def reap_grant(self) -> str:
        """Return the text of the reap grant, as an earlier server noted it."""
        return layout.decode_grant(self.file.read(layout.GRANT_SIZE, layout.GRANT_OFFSET))

    def account(self) -> wire.Account | None:
        """Return what the worker has said of itself, as an earlier server noted it; None: nothing."""
        return wire.read_account(self.file.read(layout.ACCOUNT_SIZE, layout.ACCOUNT_OFFSET))

    def number(self, index: int) -> int:
        """Return a whole number from the header, 0 if there is anything else."""
        stored = self.file.read(8, 8 * index)
        number = layout.read_word(stored) if len(stored) == 8 else 0.0
        return int(number) if 0.0 <= number < 2.0**52 else 0

    def connection_lost(self) -> None:
        """The worker cannot ring any more: promise nothing, so that its next acquire finds out."""
        self.watch.connected = False
        self.look()

    def suspend(self) -> None:
        """The server stops: promise nothing, keep the file for the next one."""
        self._write(inf)
        self.close()

    def remove(self) -> None:
        """Stop watching, and delete the file: its name first, and its memory with the last descriptor."""
        if not self.closed:
            self.before_removal(self)
        if self.file.path is not None:
            remove(self.file.path)
        self.close()

    def close(self) -> None:
        """Stop watching. The file stays."""
        if self.closed:
            return
        self._alarm.set(inf)
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self.file.close(self._close)

    @property
    def closed(self) -> bool:
        """Whether the table is not watched any more."""
        return self.file.descriptor < 0

    def _store(self, data: bytes, offset: int) -> None:
        with contextlib.suppress(OSError):  # its worker has cut it off, and the file system is full
            self.file.write(data, offset)

    def _write(self, promise: float) -> None:
        self._looks += 1.0
        self._store(layout.server_line(promise, self._looks), 8 * layout.PROMISE)

    def _wake_at(self, when: float) -> None:
        self._alarm.set(max(when, self._rests_until))

    def _woken(self) -> None:
        self._do_first(self._look_if_open)

    def _look_if_open(self) -> None:
        if not self.closed:
            self.look()

    def _look_at_once_if_open(self) -> None:
        if not self.closed:
            self._look()

    def _read_later(self) -> None:
        self._later = None
        if self.watch.overlooked(self.reader.deadlines(), self._alarm.at):
            self._look_soon()

    def _look_soon(self) -> None:
        """Look now; at a large table, which takes long, not all the time."""
        if self._clock() < self._rests_until:
            self.wake_by(self._rests_until)
        else:
            self.look()
