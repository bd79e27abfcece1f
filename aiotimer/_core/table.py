"""An allocator of the slots of a timer table, on the worker's side: cells, and pools that entries take from.

The laws of this file:

* Arming is one 8-byte store, releasing is another. Labels and growth happen while the slot is not armed, so
  a reader never meets a half-made timer; the count follows the store.
* A slot has one owner at a time: the pool it lies idle in, the entry that popped it, or the keyed cell
  it belongs to. ``list.pop`` and ``list.append`` hand it over; each is atomic, so entries take no lock.
* Everything slower (a new slot, a new label, a keyed timer) holds the table's lock. A signal's handler may
  find its own thread in there: it goes in too, takes the spare slot if it needs one, and makes no room.
* ``pools`` gets new names without the lock, and a collection, with the finalisers of others, may run wherever
  an object is made: so what goes through ``pools`` goes through a copy. ``dict.copy`` is atomic too.
* The table does no I/O. Memory for more slots is made by the ``grow`` it was given; a ring is rung by
  whoever called, when :meth:`TimerTable.must_ring` says so.

*Entries and cells.* ``expires`` takes a :class:`Pool`'s idle slot per entry and stores into it directly:
that code is :meth:`TimerTable.set` written out where it runs, because a call costs as much as the stores
do. ``put`` goes through :class:`Cell` objects, one per name. The two kinds share slots of
one table but never a timer. ``tests/property/test_cells.py`` holds them to the same meaning.

*Labels.* A slot keeps its label while it lies idle in its pool, so a known call site writes none. When
more than half the slots in use lie idle, new labels reuse them instead of growing the table, oldest
pools first: a program that names its scopes ``rollout-{i}`` for ever stays small.
"""

from __future__ import annotations

import contextlib
from _thread import get_ident
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from math import inf, nan
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, TypeAlias

from ..errors import TableFull
from . import durations, layout, notes
from .layout import (
    COUNT_OF,
    FIRST_DEADLINE,
    HIGH_WATER,
    LABEL_WORDS,
    LATE,
    LOOKS,
    PROMISE,
    RETIRED,
    SLOTS,
    THREAD_OF,
)
from .locks import Lock

if TYPE_CHECKING:
    from mmap import mmap
    from typing import Self

SAMPLE_EVERY = 0.01
"""Seconds from one entry of a scope that is sampled to the next."""

FIRST_CHUNK = 16
"""Slots of a new table: their labels are one page. It doubles as it grows, up to a limit."""

Buffer: TypeAlias = "bytearray | memoryview | mmap"

_LABELS = layout.LABELS_OFFSET // 8 - LABEL_WORDS * FIRST_DEADLINE

_MOST_GROWTH = 1024
"""Slots by which a table grows at most: a look reads all of them, in use or not."""

_SPARE = 1
"""Slots that are left when room is made."""

_SMALL = 64
"""Tables up to this many slots grow rather than take labels away from idle call sites."""


NOBODYS = Lock()
"""The owner of a pool whose entries several threads make. Nobody takes it, ever."""


_THREADS_ARE_REAL = isinstance(get_ident, BuiltinFunctionType)
"""Whether ``get_ident`` is the interpreter's own. gevent's tells greenlets apart, and locks go by threads."""


class Pool(list[int]):
    """The idle slots of one scope, as word indices of their deadlines; entries pop and append.

    ``cells`` is the table's buffer and ``now`` its clock, kept here to save entries an attribute look-up.
    ``cells`` is swapped for private scratch in a forked child, where entries of the parent's are still
    to be left.

    ``owner`` is a lock that is never given back. Who has it is the one thread that has made all entries of
    this pool so far: then every idle slot says so already, and an entry need not. To ask a lock
    takes much less than to store ``get_ident()``. From the first entry of another thread on it is one that
    nobody has (``NOBODYS``), and every entry says which thread makes it.

    ``LABEL_WORDS`` times a slot of it, plus ``grace_at``, is the index of the words in which an entry with
    grace says so (``_core/notes.py``). It is 0 if there is no room for them.

    ``first_over`` is the argument ``first`` of ``expires`` that has nothing more to say: as many entries have
    been made as were to have a limit of their own. ``last_after`` is a number of seconds: the last ``after``,
    which need not be looked at again. Both are known again by their identity, for next to nothing.
    """

    __slots__ = (
        "cells", "first_over", "grace_at", "key", "last_after", "next_ordinal", "now", "observed", "owner",
        "sample_at", "scope", "size", "table", "text",
    )  # fmt: skip

    def __init__(self, table: TimerTable, scope: str, *, observed: bool) -> None:
        self.text = layout.encode_scope(scope)
        self.scope = scope
        self.observed = observed
        self.key = pool_key(scope, observed=observed)
        self.sample_at = table.sampled_from  # the first entry from then on is sampled
        self.first_over: object = None
        self.last_after: float = 1.0  # a number of seconds, too
        self.table = table
        self.cells = table.cells
        self.now = table.now
        self.owner = NOBODYS
        self.size = 0  # slots that belong to this scope, idle or not
        self.next_ordinal = 1
        at = notes.grace_at(self.text)
        self.grace_at = at and _LABELS + at


def pool_key(scope: str, *, observed: bool) -> str:
    """Return the name of a pool: of one scope, observed entries never share a slot with others."""
    return scope + "\0o" if observed else scope


class Cell:
    """One keyed timer: what ``put`` stores into.

    Like a :class:`Pool` it has a ``sample_at``. ``entered_at`` is when it was armed, if that is being
    sampled, else NaN.
    """

    __slots__ = ("entered_at", "sample_at", "word")

    def __init__(self, word: int, sample_at: float) -> None:
        self.entered_at = nan
        self.sample_at = sample_at
        self.word = word


class TimerTable:
    """A timer table over any writable buffer of ``layout.TABLE_SIZE`` bytes, or one that has no rows.

    Args:
        buffer: a mapping of a table file, or anonymous memory.
        grow: called with a number of slots before the table uses so many of them; it makes the
            memory behind them usable, or raises OSError.
        pools: the dict to keep the pools in, so that its owner can look there without asking.
        now: the clock of the deadlines, in seconds: the server's ``CLOCK_MONOTONIC``.
        offset: what ``now`` adds to this process's own ``CLOCK_MONOTONIC`` (0.0 outside time namespaces).
    """

    def __init__(
        self,
        buffer: Buffer,
        grow: Callable[[int], None] = lambda _slots: None,
        pools: dict[str, Pool] | None = None,
        *,
        now: Callable[[], float],
        offset: float = 0.0,
    ) -> None:
        self.now = now
        self.offset = offset
        self.raw = memoryview(buffer).cast("B")
        self.cells: memoryview[float] = self.raw.cast("d")
        self.sampled_from = -inf if len(self.raw) >= layout.TABLE_SIZE else inf  # there are no rows
        self.pools = {} if pools is None else pools
        self.lock = Lock()  # taken in line, as ``Lock.holding`` does it: put is measured
        self.rung_at = -inf
        self._rung = nan  # the look count read before the last ring that was sent; NaN equals none
        self._grow = grow
        self._fresh: list[int] = []
        self._cells_of: dict[tuple[str, int], Cell] = {}

    # -- entries ---------------------------------------------------------------------------------

    def pool(self, scope: str, *, observed: bool = False) -> Pool:
        """Return the pool of a scope, a new one if need be.

        Raises:
            TypeError, ValueError: the scope cannot be a label.
        """
        key = pool_key(scope, observed=observed)
        pool = self.pools.get(key)
        return pool if pool is not None else self.pools.setdefault(key, Pool(self, scope, observed=observed))

    def take(self, pool: Pool) -> tuple[Pool, int]:
        """Return a slot (the word index of its deadline) labelled with ``pool``'s scope, not armed.

        Returns:
            The pool that the slot must be given back to (another one, if this one was retired), and
            the slot.

        Raises:
            TableFull: every slot is in use, or there is no memory for more.
        """
        return self.lock.holding(self._take, pool, nested=self.lock.is_mine())

    def _take(self, pool: Pool, *, nested: bool) -> tuple[Pool, int]:
        pool = self.pools.setdefault(pool.key, pool)
        try:
            word = pool.pop()
        except IndexError:
            pool, word = self._new_slot_of(pool, make_room=not nested)
        self.cells[LABEL_WORDS * word + THREAD_OF] = get_ident()
        if not pool.owner.is_mine():
            pool.owner = NOBODYS  # before this slot is idle
        return pool, word

    def _new_slot_of(self, pool: Pool, *, make_room: bool) -> tuple[Pool, int]:
        """Return one more slot with the name of a pool, and that pool, which may be another one by then."""
        word = self._new_slot(make_room=make_room)
        pool = self.pools.setdefault(pool.key, pool)  # making room may have retired it
        pool.cells = self.cells  # a pool that was retired before a fork has the parent's
        if not pool.size and _THREADS_ARE_REAL:
            pool.owner = Lock()
            pool.owner.acquire()
        self._label(word, pool.text, -pool.next_ordinal if pool.observed else pool.next_ordinal)
        pool.next_ordinal += 1
        pool.size += 1
        return pool, word

    def note(self, word: int, values: Mapping[str, str]) -> None:
        """Keep what a program says of the entry in a slot, until that is armed again; the caller owns it.

        A value of "" takes it back; what was said before, and is not said again, stays.
        """
        if len(self.raw) < layout.ROWS_OFFSET:
            return  # it is scratch, which has no labels
        offset = layout.label_offset(word - FIRST_DEADLINE)
        cell = bytes(self.raw[offset : offset + layout.LABEL_SIZE])
        count = self.cells[word + COUNT_OF]
        stored = layout.word(count)
        told = notes.decode_note(cell, stored) | dict(values)
        data = notes.encode_note(cell, {key: value for key, value in told.items() if value}, stored)
        if not data:
            return  # there is no room for one
        start = offset + notes.start_of(cell, stored)
        self.cells[start // 8] = nan
        self.raw[start + 8 : start + 8 + len(data)] = data
        self.cells[start // 8] = count  # last: it says that the others hold

    # -- keyed timers ----------------------------------------------------------------------------

    def set(self, key: tuple[str, int], expiration_time: float, now: float) -> bool:
        """Arm, move or (strictly negative) release a keyed timer; an unknown release is a no-op.

        Args:
            key: its scope, and 0, or n for the n-th concurrent entry of a peer that has no table of its own.
            expiration_time: ``CLOCK_MONOTONIC`` seconds.
            now: the present on the same clock.

        Returns:
            True when the server must be rung, with this deadline.

        Raises:
            TypeError, ValueError: the scope cannot be a label, or ``expiration_time`` is not finite.
            TableFull: the timer is new and there is no slot left.
        """
        stored = layout.as_stored(expiration_time)
        lock = self.lock
        nested = lock.is_mine()
        try:
            if not nested:
                lock.acquire()
            cell = self._cells_of.get(key)
            if cell is None:
                if stored == inf:
                    layout.encode_scope(key[0])
                    return False
                cell = self._new_cell(key, make_room=not nested)
            self._store(cell, stored, now)
        finally:
            if not nested:
                try:
                    lock.release()
                except RuntimeError:
                    pass
        return stored != inf and self.must_ring(stored, now)

    def _store(self, cell: Cell, stored: float, now: float) -> None:
        word = cell.word
        self.cells[word] = stored
        if stored == inf:
            since, cell.entered_at = cell.entered_at, nan
            if since == since:  # it is sampled
                durations.leave(self.cells, layout.row_of(word), self.now() - since)
            return
        self.cells[word + COUNT_OF] += 1.0  # last: else what it is moved from would pass for armed again
        if now >= cell.sample_at:
            cell.sample_at = now + SAMPLE_EVERY
            if cell.entered_at != cell.entered_at:
                cell.entered_at = now
            left = max(stored - now, 0.0)  # a negative one would say something else
            durations.enter(self.cells, layout.row_of(word), cell.entered_at, left, stored)

    def adopt_cells(self, timers: Iterable[tuple[int, str, int]]) -> None:
        """Take over a table that others stored into: these timers, as (slot, scope, ordinal), no others."""
        for _ in self.adopt_batches([timers]):
            pass

    def adopt_batches(self, batches: Iterable[Iterable[tuple[int, str, int]]]) -> Iterator[None]:
        """Do so, and yield after every few of them: there may be thousands. Nothing may be put meanwhile."""
        taken: dict[int, tuple[str, int]] = {}
        for batch in batches:
            for slot, scope, ordinal in batch:
                self._cells_of[scope, ordinal] = Cell(FIRST_DEADLINE + slot, self.sampled_from)
                taken[FIRST_DEADLINE + slot] = scope, ordinal
            yield
        mark = FIRST_DEADLINE + self.high_water
        for first in range(FIRST_DEADLINE, mark, _MOST_GROWTH):
            for word in range(first, min(first + _MOST_GROWTH, mark)):
                if word not in taken or self._cells_of[taken[word]].word != word:
                    self._fresh.append(word)
                    self.cells[word] = inf
            yield

    def forget_cells(self) -> Generator[None, None, None]:
        """Forget the keyed timers, and yield after every few of them: to free thousands takes long."""
        while self._cells_of:
            for _ in range(min(_MOST_GROWTH, len(self._cells_of))):
                self._cells_of.popitem()
            yield

    def disarm(self) -> None:
        """Release everything, whoever holds it: this process's last client is leaving."""
        mark = self.high_water
        self.cells[FIRST_DEADLINE : FIRST_DEADLINE + mark] = array("d", [inf]) * mark

    def requested(self, key: str, word: int) -> float | None:
        """Return what is asked for under a name now, as an ``expiration_time``.

        Args:
            key: the timer's name (``layout.timer_key``).
            word: the word index of its deadline, if it is an entry's.

        Returns:
            None if the slot has been given to another name since: then it takes a reading of all to know.
        """
        if not layout.split_key(key)[1]:
            cell = self._cells_of.get((key, 0))
            word = 0 if cell is None else cell.word
        elif self.key_of(word) != key:
            return None
        return layout.as_requested(self.cells[word] if word else inf)

    # -- the doorbell ----------------------------------------------------------------------------

    def must_ring(self, deadline: float, now: float) -> bool:
        """Whether the server must be told of a deadline that has just been stored.

        It must if it promised to look later than that and has not been rung since its last look;
        and, at most once a second, if its promise passed or a ring has gone unanswered for more than a
        second: then it is late, stuck or gone.
        """
        cells = self.cells
        looks = cells[LOOKS]  # before or after the promise: tests/model shows that either will do
        promise = cells[PROMISE]
        if promise <= deadline and not promise < now - LATE:
            return False
        return looks != self._rung or now - self.rung_at >= LATE

    def is_late(self, now: float) -> bool:
        """Whether the server broke its promise, or left a ring unanswered, for more than a second."""
        cells = self.cells
        unanswered = cells[LOOKS] == self._rung and now - self.rung_at > LATE
        return cells[PROMISE] < now - LATE or unanswered

    def looks(self) -> float:
        """Return the count of looks; read it before a ring is sent and give it to :meth:`rang`."""
        return self.cells[LOOKS]

    def rang(self, looks: float, now: float) -> None:
        """Remember a ring. Call it after ``send`` returned, never before.

        Remembered earlier, this thread could be preempted between the two, and another one would
        leave out its own ring for the sake of one that was not sent.
        """
        self._rung = looks
        self.rung_at = now

    def forget_rings(self) -> None:
        """A new connection: no ring sent on an older one counts."""
        self._rung = nan

    def abandon(self, scratch: Buffer) -> None:
        """Turn every reference to this table to ``scratch``: what a forked child does.

        Entries that are active keep their slots and release them there, which is to say nowhere.
        ``scratch`` is of a table's size. Its promise is NaN, so that every later entry notices and asks
        for a table of its own.
        """
        self._grow = lambda _slots: None
        self._fresh = []
        self.unlock()
        self.raw = memoryview(scratch).cast("B")
        self.cells = self.raw.cast("d")
        self.cells[PROMISE] = nan
        self.cells[HIGH_WATER] = 0.0
        for pool in self.pools.values():
            pool.cells = self.cells
        self.pools = {}

    def unlock(self) -> None:
        """Make a new lock, in a forked child: another thread of the parent's may have held the old one."""
        self.lock = Lock()

    def key_of(self, word: int) -> str:
        """Return the key (``layout.timer_key``) of the timer whose deadline is at a word index."""
        start = layout.label_offset(word - FIRST_DEADLINE)
        return layout.label_key(bytes(self.raw[start : start + layout.LABEL_SIZE]))

    # -- slots -----------------------------------------------------------------------------------

    def prepared(self) -> Self:
        """Make the first slots while nobody else knows this table: from now on there is a spare one."""
        if not self.high_water:
            with contextlib.suppress(TableFull):  # when one is needed, it is said that there is no memory
                self._extend(0)
        return self

    @property
    def high_water(self) -> int:
        """The number of slots in use or lying idle."""
        return int(self.cells[HIGH_WATER])

    def _new_cell(self, key: tuple[str, int], *, make_room: bool) -> Cell:
        text = layout.encode_scope(key[0])
        word = self._new_slot(make_room=make_room)
        self._label(word, text, key[1])
        cell = self._cells_of.setdefault(key, Cell(word, self.sampled_from))
        if cell.word != word:  # a signal's handler has made it meanwhile
            self._fresh.append(word)
        return cell

    def _label(self, word: int, text: bytes, ordinal: int) -> None:
        """Write a slot's label; the ordinal of an observed entry is negative."""
        cells = self.cells
        count = cells[word + COUNT_OF]
        if count >= 1.0:
            if self.sampled_from < inf:
                row = layout.row_offset(word - FIRST_DEADLINE)
                self.raw[row : row + layout.ROW_SIZE] = bytes(layout.ROW_SIZE)  # of another scope
            cells[RETIRED] += count // 1.0
            # Else armed as often under the new label, for the same time, it would pass for the old timer.
            cells[word + COUNT_OF] = (count + layout.RELABELLED) % 1.0
        label = layout.encode_label(text, abs(ordinal), layout.OBSERVED if ordinal < 0 else 0)
        start = layout.label_offset(word - FIRST_DEADLINE)
        self.raw[start : start + len(label)] = label
        cells[LABEL_WORDS * word + THREAD_OF] = 0.0  # of another scope

    def _new_slot(self, *, make_room: bool) -> int:
        """Return a slot that is nobody's; while room is made, there is a spare one for a signal's handler."""
        while True:
            if make_room and len(self._fresh) <= _SPARE:
                self._make_room()
            try:
                return self._fresh.pop()
            except IndexError:  # a signal's handler has taken it
                if not make_room:
                    raise TableFull(self.high_water, "a signal's handler wants more than is spare") from None

    def _make_room(self) -> None:
        mark = self.high_water
        idle = self._idle()
        if mark >= SLOTS or (mark > _SMALL and idle > mark // 2):
            self._reclaim(max(1, idle // 2))
        if len(self._fresh) <= _SPARE:
            self._extend(mark)

    def _idle(self) -> int:
        keyed = sum(self.cells[cell.word] == inf for cell in list(self._cells_of.values()))
        return keyed + sum(map(len, self.pools.copy().values()))

    def _reclaim(self, wanted: int) -> None:
        """Take idle slots from their names, oldest names first."""
        if inf not in self.cells[FIRST_DEADLINE : FIRST_DEADLINE + self.high_water].tolist():
            return  # who is full and asks on is told so in a moment
        for key, cell in list(self._cells_of.items()):
            if len(self._fresh) >= wanted:
                return
            word = cell.word
            if self.cells[word] == inf:
                # Taken away before it is given on: interrupted between the two, it is nobody's.
                del self._cells_of[key]
                if self.cells[word] == inf:
                    self._fresh.append(word)
                else:
                    self._cells_of[key] = cell  # a signal's handler has just armed it
        for scope, pool in self.pools.copy().items():
            while pool and len(self._fresh) < wanted:
                try:
                    self._fresh.append(pool.pop())  # an entry may pop the last one first
                except IndexError:
                    break
                pool.size -= 1
            if not pool.size:
                del self.pools[scope]  # an entry that still holds it comes back through take()

    def _extend(self, mark: int) -> None:
        """Make more slots: memory first, then ``inf``, and only then the high-water mark.

        If there is no memory, call sites lose their idle slots, once the spare one is used.
        """
        if mark >= SLOTS:
            if self._fresh:
                return
            raise TableFull(mark, f"a worker has {SLOTS:,} slots and all of them are armed")
        target = min(SLOTS, max(FIRST_CHUNK, mark + min(mark, _MOST_GROWTH)))
        try:
            self._grow(target)
        except OSError as error:
            if not self._fresh:
                self._reclaim(1 + _SPARE)
            if not self._fresh:
                raise TableFull(mark, f"the table cannot grow: {error}", no_memory=True) from error
            return
        first, last = FIRST_DEADLINE + mark, FIRST_DEADLINE + target
        for word in range(first, last):
            self.cells[word] = inf
        self.cells[HIGH_WATER] = float(target)
        self._fresh.extend(range(last - 1, first - 1, -1))
