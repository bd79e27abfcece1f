"""A context manager, the block of a scope whose first entries may take longer: they compile, or fill caches.

The laws of this file:

* An entry is one of the first if fewer than so many have been made before it, in this process and scope, that
  had such a limit. It is counted once it is armed: who fails to enter is none. So of threads that enter side
  by side as many as were asked for have the longer limit, or more; none has less than ``after``.
* A block is of this class until its scope has had its first entries. From then on it is an ordinary one, as
  the same object: what comes later pays nothing for it.
* A first entry is always sampled, and its limit noted negative (``_core/durations.py``): so reports know it.
* A forked child is another process, whose first entries are still to come. (A child of a fork in C learns
  that by entering a block, see ``_linux/forks.py``.)
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from .._core.locks import Lock
from .._linux.forks import in_child
from .arguments import seconds
from .block import Block, ExitState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from .._core.table import Pool

_MOST_SCOPES = 4096
"""Scopes whose first entries are remembered: the latest ones of a program that makes up names without end."""


class FirstLimit(float):
    """The limit of a scope's first entries, in seconds.

    Attributes:
        after: that of the later ones.
        entries: how many are first ones.
        given: the argument of ``expires`` that says so.
    """

    __slots__ = ("after", "entries", "given")

    after: float
    entries: int
    given: object


class FirstBlock(Block):
    """A block that may be one of the first of its scope."""

    __slots__ = ()  # as those of the block that it becomes

    def __enter__(self) -> Self:
        """Arm the timer."""
        if not self._is_next():
            return self.__enter__()  # the ordinary one's
        super().__enter__()
        self._entered()
        return self

    async def __aenter__(self) -> Self:
        """Connect if need be, and arm the timer."""
        if not self._is_next():
            return await self.__aenter__()
        await super().__aenter__()
        self._entered()
        return self

    def _another(self) -> Self:
        if self._is_over():
            self._become_ordinary()
            return self._another()
        return super()._another()

    def _is_next(self) -> bool:
        """Whether this entry is one of the first; if it is none, this is an ordinary block from here on."""
        if self._is_in_use():
            return True  # and refused
        if self._is_over():
            self._become_ordinary()
            return False
        self._exit_state = ExitState(first=True)
        self._pool.sample_at = self._pool.table.sampled_from
        return True

    def _entered(self) -> None:
        """Count this entry."""
        try:
            limit = self._first_limit()
            if isinstance(limit, FirstLimit):  # else it has been renewed meanwhile, with another one
                _count(self._pool, limit)
        except BaseException:
            self._release_nowait()
            raise

    def _is_over(self) -> bool:
        limit = self._first_limit()  # once it has been renewed, that limit is this object's
        return not isinstance(limit, FirstLimit) or entries.of(self._pool.scope) >= limit.entries

    def _become_ordinary(self) -> None:
        self._exit_state = None
        limit = self._first_limit()
        self._make_ordinary(limit.after if isinstance(limit, FirstLimit) else limit)

    # -- what a block with grace does otherwise --------------------------------------------------

    def _is_in_use(self) -> bool:
        return self._slot is not None

    def _first_limit(self) -> float:
        return self._after

    def _make_ordinary(self, after: float) -> None:
        self._after = after
        self.__class__ = Block  # type: ignore[assignment]


class Entries:
    """How many entries of each scope this process has made, of blocks with a limit for the first ones."""

    def __init__(self) -> None:
        self.forget()
        in_child(self.forget)

    def forget(self) -> None:
        """Begin anew, with a lock that nobody has: in a child."""
        self._made: dict[str, int] = {}
        self._lock = Lock()

    def of(self, scope: str) -> int:
        """Return how many there have been, so many at least as are to be told from later ones."""
        return self._made.get(scope, 0)

    def add(self, scope: str) -> int:
        """Count one more, and return how many there are."""
        return self._lock.holding(self._add, scope)

    def _add(self, scope: str) -> int:
        made = self._made[scope] = self._made.pop(scope, 0) + 1  # the latest one comes last
        if len(self._made) > _MOST_SCOPES:
            del self._made[next(iter(self._made))]
        return made

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Run a block as if nothing had been entered; afterwards all is as before."""
        former, self._made = self._made, {}
        try:
            yield
        finally:
            self._made = former


entries = Entries()


def ask_for(block: Block, first: Any) -> None:
    """Have the first entries of a block's scope have a limit of their own, unless there have been so many.

    Args:
        block: an ordinary one, that is complete.
        first: a number of seconds, or a ``timedelta``; or one of these, and for how many entries.

    Raises:
        TypeError, ValueError: it is something else, or less than the limit of later entries.
    """
    limit, many = _parsed(first)
    if entries.of(block._pool.scope) >= many:
        block._pool.first_over = first
        return
    if limit < block._after:
        raise ValueError(f"first must not be less than after ({block._after:g} s), but is {limit:g} s")
    own = FirstLimit(limit)
    own.after, own.entries, own.given = block._after, many, first
    block._after = own
    block.__class__ = FirstBlock


def _parsed(first: Any) -> tuple[float, int]:
    if not isinstance(first, tuple):
        return seconds(first, "first"), 1
    if len(first) != 2:
        raise ValueError(f"first must be a number of seconds, or that and a number of entries, not {first!r}")
    limit, many = first
    if isinstance(many, bool) or not hasattr(type(many), "__index__"):
        raise TypeError(f"first must be for a whole number of entries, not {many!r}")
    many = cast("Any", many).__index__()
    if many < 1:
        raise ValueError(f"first must be for 1 entry or more, not {many}")
    return seconds(limit, "first"), many


def _count(pool: Pool, limit: FirstLimit) -> None:
    """Count an entry that is armed; with the last of the first ones, note that there is no more to ask."""
    if entries.add(pool.scope) >= limit.entries:
        pool.first_over = limit.given
        pool.sample_at = pool.table.sampled_from  # the next one's limit is another
