"""A context manager, the block that ``expires`` returns: entering it arms a timer, leaving it releases that.

The laws of this file:

* Entering and leaving a block is stores into shared memory: no system call, no message, nothing awaited,
  unless the table says that the server must be told.
* An entry keeps the pool it took its slot from, and gives the slot back there, whatever is configured,
  closed or forked meanwhile.
* Interrupted anywhere, nothing stays armed: arming is the last step of entering, releasing the first
  of leaving, and ``__del__`` releases what was never left (CPython delivers signals before the first
  instruction of ``__exit__``, so a handler that raises can keep it from running at all).

``__enter__`` and ``__exit__`` are ``WorkerQueue.put`` of ``client/connection.py``, and what that does to the
table, written out in line (``tests/property/test_cells.py`` holds the two to the same meaning). The order of
their statements is the protocol, and every one of them is paid for in the benchmark.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from collections.abc import Callable, Coroutine
from math import inf, nan
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from .._core import durations
from .._core.layout import COUNT_OF, LATE, PROMISE, row_of
from .._core.locks import Lock
from .._core.table import SAMPLE_EVERY, Pool
from ..errors import AiotimerError, ServerUnavailable
from .arguments import named_pool, seconds
from .clients import BaseClient, configured, default, default_client
from .waiting import within

if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn, Self

    from .connection import WorkerQueue

P = ParamSpec("P")
R = TypeVar("R")


class Block:
    """A countdown around a block of code. Made by :func:`aiotimer.expires`, see there.

    It serves ``with``, ``async with`` and as a decorator, one block at a time.
    """

    __slots__ = ("_after", "_client", "_deadline", "_exit_state", "_pool", "_slot")

    _after: float  # seconds from entering to being reaped
    _client: BaseClient | None
    _deadline: float | None  # when to be reaped, on the table's clock; None outside the block
    _pool: Pool
    _slot: int | None  # the word index of the armed deadline; None: nothing to release
    _exit_state: ExitState | None  # once leaving needs more than a store

    # -- the block -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Arm the timer."""
        pool = self._pool
        try:
            slot = pool.pop()
        except IndexError:
            pool, slot = self._take()
        if (
            self._slot is not None
        ):  # from here to the store nothing is called: no other thread gets in between
            pool.append(slot)
            raise RuntimeError(IN_USE)
        self._slot = slot
        cells = pool.cells
        cells[slot + COUNT_OF] += 1.0  # first: whoever finds the deadline finds it counted
        clock = pool.now  # called through a local: CPython 3.11 does not specialise it otherwise
        now = clock()
        self._deadline = cells[slot] = deadline = now + self._after
        if now >= pool.sample_at:
            self._sample(pool, slot, now, deadline)
        if not now - LATE <= cells[PROMISE] <= deadline:
            self._send(deadline, now)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the timer."""
        self._deadline = None  # from here on, renew() refuses
        if self._exit_state is not None:
            self._leave(self._exit_state)
            return
        slot = self._slot
        pool = self._pool
        try:
            pool.cells[slot] = inf  # type: ignore[index]  # an int, between enter and exit
        except TypeError:
            if slot is None:  # the collector came to __del__ first, then to the coroutine inside the block
                return
            raise
        self._slot = None
        pool.append(slot)  # type: ignore[arg-type]

    async def __aenter__(self) -> Self:
        """Connect if need be, and arm the timer."""
        client = self._client or default.client or configured()
        if self._pool.table is not client._queue.watched:
            return await self._enter_async(client)
        return Block.__enter__(self)

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        """Release the timer, before anything is awaited."""
        exit_state = self._exit_state
        if exit_state is not None:
            self._deadline = None
            if exit_state.sends_release:
                return self._send_release(exit_state, self._disarm(exit_state))
        self.__exit__(kind, error, traceback)
        return nothing()

    def __del__(self) -> None:
        """Release what an interruption kept from being left."""
        try:
            slot = self._slot
        except AttributeError:
            return  # interrupted while it was being made
        if slot is not None:
            self._release_nowait()

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied: two objects would release one timer."""
        raise TypeError("expires() cannot be copied or pickled; make a new one for every block")

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function or coroutine function: every call is a block of its own.

        Raises:
            TypeError: it is a generator or asynchronous generator function, whose body does not run
                when it is called.
        """
        import functools  # what only a decorator needs
        import inspect

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("expires() cannot decorate a generator: its body runs piecemeal, later")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                async with self._another():
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", call_async)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._another():
                return function(*args, **kwargs)

        return call

    # -- what it is ------------------------------------------------------------------------------

    @property
    def scope(self) -> str:
        """The timer's name."""
        return self._pool.scope

    @property
    def deadline(self) -> float:
        """When ``after`` is over, in ``time.monotonic()`` seconds. RuntimeError outside the block."""
        return self._reaped_at() - self._pool.table.offset

    def remaining(self) -> float:
        """Return the seconds left until :attr:`deadline` (negative when it is over).

        Raises:
            RuntimeError: outside the block.
        """
        return self._reaped_at() - self._pool.now()

    def _reaped_at(self) -> float:
        deadline = self._deadline
        if deadline is None:
            raise RuntimeError("a deadline is known only inside the block")
        return deadline

    def renew(self, after: float | None = None) -> None:
        """Start the countdown again, from now. May be called from any thread.

        Args:
            after: seconds from now; by default as many as this object was made with.

        Raises:
            RuntimeError: outside the block.
            TypeError, ValueError: as for ``expires``.
        """
        if after is not None:
            self._after = seconds(after, "after")
        # Another thread may be leaving the block just now, and its slot be the next entry's. Whichever
        # of "publish the lock, then see whether the block is being left" (here) and "publish that it is being
        # left, then look for a lock" (__exit__) comes second sees the other. The GIL orders the four
        # steps; the free-threaded build's attribute accesses are sequentially consistent too.
        exit_state = self._exit_state
        if exit_state is None:
            exit_state = self._exit_state = ExitState()
        lock = exit_state.lock
        nested = lock.is_mine()
        try:  # as in ``Lock.holding``, which takes longer
            if not nested:
                lock.acquire()
            if self._deadline is None or self._slot is None:
                raise RuntimeError("only a block that is active can be renewed")
            pool = self._pool
            now = pool.now()
            self._deadline = deadline = now + self._after
            pool.cells[self._slot] = deadline
            if exit_state.entered_at == exit_state.entered_at:  # it is sampled
                durations.renew(pool.cells, row_of(self._slot), self._after, deadline)
        finally:
            if not nested:
                try:
                    lock.release()
                except RuntimeError:
                    pass
        if not now - LATE <= pool.cells[PROMISE] <= deadline:
            self._send(deadline, now)

    # -- slow paths ------------------------------------------------------------------------------

    def _another(self) -> Self:
        """Return a new block like this one, for another entry."""
        block = type(self)()
        block._slot = block._exit_state = block._deadline = None
        block._after = self._after
        block._client = self._client
        client, pool = self._client or default_client(), self._pool
        block._pool = named_pool(pool.scope, client, observed=pool.observed)
        return block

    def _take(self) -> tuple[Pool, int]:
        """Return a new slot and its pool: the name is new, or all its slots are in use."""
        if self._slot is not None:
            raise RuntimeError(IN_USE)
        pool = self._pool
        self._pool, slot = pool.table.take(pool)
        return self._pool, slot

    def _sample(self, pool: Pool, slot: int, now: float, deadline: float) -> None:
        """Of this entry it is counted how long it takes; one in ``SAMPLE_EVERY`` seconds of each scope is."""
        try:
            pool.sample_at = now + SAMPLE_EVERY
            exit_state = self._exit_state
            if exit_state is None:
                exit_state = self._exit_state = ExitState()
            durations.enter(pool.cells, row_of(slot), now, self._after, deadline)
            exit_state.entered_at = now
            self._open_inspection_channel()
        except BaseException:
            self._release_nowait()
            raise

    def _open_inspection_channel(self) -> None:
        """See to it that the server can inspect the running event loop, if there is one."""
        if "asyncio" in sys.modules:
            client = self._client or default.client
            if client is not None and client.connected:
                from .inspection import open_inspection_channel

                open_inspection_channel(client._queue, Block, self._slot)

    def _send(self, deadline: float, now: float) -> None:
        """Send this timer to the server, if the table says that it must be told."""
        try:
            client = self._client or configured()
            queue = client._queue
            if queue.ended:
                if queue.ended == get_ident():  # other threads are not going to run much longer
                    client._missing(ServerUnavailable(queue.path, "this interpreter is ending"))
            elif self._pool.table is not queue.table:
                self._move(client, queue)
            elif queue.shared:
                if self._pool.table.must_ring(deadline, now):
                    queue.send("", deadline, client._budget)
            elif (
                slot := self._slot
            ) is not None:  # else renewed by one thread, and left by another meanwhile
                self._note(client, queue)
                try:
                    queue.send(self._pool.table.key_of(slot), deadline, client._budget, slot)
                except (AiotimerError, OSError) as error:
                    client._missing(error)
        except BaseException:
            self._release_nowait()
            raise

    def _note(self, client: BaseClient, queue: WorkerQueue) -> None:
        """Note that leaving has to be sent, by way of a queue that is socket-only."""
        former = self._exit_state
        if former is None or not former.sends_release:
            self._exit_state = ExitState(queue, client._budget, nan if former is None else former.entered_at)

    def _move(self, client: BaseClient, queue: WorkerQueue) -> None:
        """The slot is in scratch (no server yet, or we are a forked child): get one that is watched."""
        if queue.must_connect(insist=client._insists):
            try:
                queue.connection.connect(within(client._budget))
            except (AiotimerError, OSError) as error:
                client._missing(error)
        if queue.table is not None:
            # Another block enters in our place: there is no moment at which this one is not in use.
            other = Block()
            other._slot = other._exit_state = other._deadline = None
            other._after, other._client = self._after, client
            other._pool = queue.table.pool(self._pool.scope, observed=self._pool.observed)
            other.__enter__()
            pool, slot = self._pool, self._slot
            self._pool, self._slot, self._deadline = other._pool, other._slot, other._deadline
            self._exit_state, other._slot = other._exit_state, None
            if slot is not None:
                pool.append(slot)

    async def _enter_async(self, client: BaseClient) -> Self:
        """Enter by way of what must be awaited: a connection, or an acknowledgement."""
        queue = client._queue
        if not queue.shared and not queue.ended:
            return await self._enter_by_socket(client, queue)
        connection = queue.connection
        if queue.must_connect(insist=client._insists) or (
            not connection.connected and connection.may_attempt()
        ):
            try:
                await connection.connect_async(client._budget)
            except (AiotimerError, OSError) as error:
                if queue.table is None:
                    client._missing(error)
                else:
                    connection.outage(str(error))  # the table is there, and the next server adopts it
        return Block.__enter__(self)

    async def _enter_by_socket(self, client: BaseClient, queue: WorkerQueue) -> Self:
        table = queue.table
        assert table is not None
        pool, slot = table.take(table.pool(self._pool.scope, observed=self._pool.observed))
        if self._slot is not None:
            pool.append(slot)
            raise RuntimeError(IN_USE)
        self._slot, self._pool = slot, pool
        self._deadline = deadline = table.now() + self._after
        table.cells[slot] = deadline  # how long it takes is noted by the server, in its own table
        try:
            self._note(client, queue)
            try:
                await queue.send_async(table.key_of(slot), deadline, client._budget, slot)
            except (AiotimerError, OSError) as error:
                client._missing(error)
            self._open_inspection_channel()
        except BaseException:
            self._release_nowait()
            raise
        return self

    def _disarm(self, exit_state: ExitState) -> str:
        """Release under the lock of ``renew``; return the key of the timer if its release must be sent."""
        slot = self._slot
        if slot is None:
            return ""
        exit_state.lock.holding(self._store_release, exit_state, slot)
        return self._pool.table.key_of(slot) if exit_state.sends_release else ""

    def _store_release(self, exit_state: ExitState, slot: int) -> None:
        cells = self._pool.cells
        cells[slot] = inf
        entered_at, exit_state.entered_at = exit_state.entered_at, nan
        if entered_at == entered_at:
            durations.leave(cells, row_of(slot), self._pool.now() - entered_at)

    def _give_back(self) -> None:
        slot = self._slot
        if slot is not None:
            self._pool.cells[slot] = inf
            self._exit_state = None  # before the slot: then the next entry has its own
            self._slot = None
            self._pool.append(slot)

    def _leave(self, exit_state: ExitState) -> None:
        """Release, and send that if need be; what an interruption leaves undone is left to ``__del__``."""
        key = self._disarm(exit_state)
        if key and exit_state.queue is not None:
            exit_state.queue.send_release(key, exit_state.budget, cast(int, self._slot))
        exit_state.lock.holding(self._give_back)  # a thread whose renew() failed may be at it too

    async def _send_release(self, exit_state: ExitState, key: str) -> None:
        try:
            if key and exit_state.queue is not None:
                await exit_state.queue.send_release_async(key, exit_state.budget, cast(int, self._slot))
        except BaseException:
            self._release_nowait()
            raise
        exit_state.lock.holding(self._give_back)

    def _release_nowait(self) -> None:
        """Release, and wait for nobody."""
        self._deadline = None
        exit_state = self._exit_state
        if exit_state is None:
            self._give_back()
            return
        key = self._disarm(exit_state)
        if key and exit_state.queue is not None:
            exit_state.queue.send_release_nowait(key, cast(int, self._slot))
        exit_state.lock.holding(self._give_back)


class ExitState:
    """What leaving a block must mind besides a store. Made once it must mind anything.

    Attributes:
        lock: held by ``renew`` while it stores.
        queue: where the release must be sent, if it is socket-only.
        budget: seconds that this may take: those of the client that entered.
        pid: the process that entered: a forked child sends nothing about its parent's block.
        entered_at: when the block was entered, on its table's clock, if its duration is to be counted.
    """

    __slots__ = ("budget", "entered_at", "lock", "pid", "queue")

    def __init__(
        self, queue: WorkerQueue | None = None, budget: float = 0.0, entered_at: float = nan
    ) -> None:
        self.lock = Lock()  # a signal's handler may renew, too
        self.queue = queue
        self.budget = budget
        self.entered_at = entered_at
        self.pid = os.getpid() if queue is not None else 0

    @property
    def sends_release(self) -> bool:
        """Whether the release has to be sent."""
        return self.queue is not None and self.pid == os.getpid()


IN_USE = "this expires() is in use; make a new one for every block"


async def nothing() -> None:
    """What ``__aexit__`` returns when there is nothing to wait for."""
