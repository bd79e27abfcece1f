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
from .._core.layout import COUNT_OF, LABEL_WORDS, LATE, PROMISE, THREAD_OF, row_of
from .._core.locks import Lock
from .._core.table import NOBODYS, SAMPLE_EVERY, Pool
from .._linux.forks import notice
from ..errors import AiotimerError, ServerUnavailable, TableFull
from .arguments import named_pool, seconds
from .clients import BaseClient, configured, default, default_client
from .greenlets import entered_by
from .memory import scratch

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType
    from typing import NoReturn, Self

    from .._core.table import TimerTable
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
        try:
            cells[slot + COUNT_OF] += 1.0  # first: whoever finds the deadline finds it counted
        except IndexError:  # a child, which has another place
            cells = self._cells_of_a_child(pool)
            cells[slot + COUNT_OF] += 1.0
        if not pool.owner.is_mine():  # another thread than the last one
            cells[LABEL_WORDS * slot + THREAD_OF] = entered_by()
            pool.owner = NOBODYS
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
        except IndexError:
            self._cells_of_a_child(pool)[slot] = inf  # type: ignore[index]  # as above
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

    def __repr__(self) -> str:
        """Show the scope and the limit; and how much is left of it, while the block is armed."""
        try:
            left = "not armed" if self._deadline is None else f"{self.remaining():.3f} s left"
            return f"<expires {self.scope!r} after {self._after_entering():g} s: {left}>"
        except (AttributeError, RuntimeError):  # it is being made, or another thread is leaving it
            return object.__repr__(self)

    def _after_entering(self) -> float:
        return self._after

    def _reaped_at(self) -> float:
        deadline = self._deadline
        if deadline is None:
            raise RuntimeError("a deadline is known only inside the block")
        return deadline

    def renew(self, after: float | timedelta | None = None) -> None:
        """Start the countdown again, from now. May be called from any thread.

        Args:
            after: seconds from now, or a ``timedelta``; by default as long as this object was made with.

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
        notice()
        try:  # as in ``Lock.holding``, which takes longer
            if not nested:
                lock.acquire()
            if self._deadline is None or self._slot is None:
                raise RuntimeError("only a block that is active can be renewed")
            pool = self._pool
            now = pool.now()
            deadline = self._restart(pool, self._slot, exit_state, now)
        finally:
            if not nested:
                try:
                    lock.release()
                except RuntimeError:
                    pass
        if not now - LATE <= pool.cells[PROMISE] <= deadline:
            self._send(deadline, now)

    def note(self, **values: object) -> None:
        """Say what this entry of the block is about, for reports: ``block.note(uid=17, step=3)``.

        Blocks without a note pay nothing. It is kept in this process's table, and read when evidence is
        gathered. So it is short: what does not fit into the 230 bytes that it shares with the scope is cut
        off, and a value after 100 characters. It may be called again, from any thread: a key that is given
        again has the new value, and None takes it back. A socket-only client has no such table: it notes
        nothing.

        Raises:
            RuntimeError: outside the block.
        """
        told = {key: "" if value is None else str(value) for key, value in values.items()}
        exit_state = self._exit_state  # published and looked at in the order that ``renew`` explains
        if exit_state is None:
            exit_state = self._exit_state = ExitState()
        notice()
        exit_state.lock.holding(self._store_note, told)

    def _store_note(self, told: dict[str, str]) -> None:
        slot = self._slot
        if self._deadline is None or slot is None:
            raise RuntimeError("only a block that is active can have a note")
        self._pool.table.note(slot, told)

    def _restart(self, pool: Pool, slot: int, exit_state: ExitState, now: float) -> float:
        self._deadline = pool.cells[slot] = deadline = now + self._after
        if exit_state.entered_at == exit_state.entered_at:  # it is sampled
            limit = -self._after if exit_state.first else self._after
            durations.renew(pool.cells, row_of(slot), limit, deadline)
        return deadline

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

    def _cells_of_a_child(self, pool: Pool) -> memoryview[float]:
        """Return where a child, forked in C, stores what it would have stored into its parent's table."""
        former = pool.cells
        notice()
        if pool.cells is former:  # or another thread has noticed
            raise RuntimeError("a timer table has come to an end")
        return pool.cells

    def _take(self) -> tuple[Pool, int]:
        """Return a new slot and its pool: the name is new, or all its slots are in use."""
        notice()
        if self._slot is not None:
            raise RuntimeError(IN_USE)
        pool = self._pool
        try:
            self._pool, slot = pool.table.take(pool)
        except TableFull as error:
            client = self._client or default.client
            if client is None:
                raise
            client._missing(error)
            self._pool, slot = scratch.take(scratch.pool(pool.scope, observed=pool.observed))
        return self._pool, slot

    def _sample(self, pool: Pool, slot: int, now: float, deadline: float) -> None:
        """Of this entry it is counted how long it takes; one in ``SAMPLE_EVERY`` seconds of each scope is."""
        try:
            pool.sample_at = now + SAMPLE_EVERY
            exit_state = self._exit_state
            if exit_state is None:
                exit_state = self._exit_state = ExitState()
            limit = -self._after if exit_state.first else self._after
            durations.enter(pool.cells, row_of(slot), now, limit, deadline)
            exit_state.entered_at = now
            self._open_inspection_channel()
        except BaseException:
            self._release_nowait()
            raise

    def _open_inspection_channel(self) -> None:
        """See to it that the server can inspect the running event loop, if there is one."""
        if "asyncio" in sys.modules:
            client = self._client or default.client
            if client is not None and not client.connected:
                client._queue.want_channel(
                    Block, self._slot
                )  # and then look once more: it may be connected by now
            if client is not None and client.connected:
                from .inspection import open_inspection_channel

                open_inspection_channel(client._queue, Block, self._slot)
        if "gevent._hub_local" in sys.modules:
            client = self._client or default.client
            if client is not None and client.connected:
                from .hub_channel import open_hub_channel

                open_hub_channel(client._queue, self._slot)

    def _send(self, deadline: float, now: float) -> None:
        """Send this timer to the server, if the table says that it must be told."""
        try:
            notice()
            client = self._client or configured()
            queue = client._queue
            if queue.ended:
                if queue.ended == get_ident():  # other threads are not going to run much longer
                    client._missing(ServerUnavailable(queue.path, "this interpreter is ending"))
            elif not queue.shared:
                if self._pool.table is not queue.table:
                    self._begin(client, queue)
                self._send_by_socket(client, queue)
            elif self._pool.table is not queue.table or not queue.connection.welcomed:
                self._begin(client, queue)
            elif self._pool.table.must_ring(deadline, now):
                queue.send("", deadline, client._budget)
        except BaseException:
            self._release_nowait()
            raise

    def _send_by_socket(self, client: BaseClient, queue: WorkerQueue) -> None:
        slot, deadline = self._slot, self._deadline
        if slot is None or deadline is None:  # renewed by one thread, and left by another meanwhile
            return
        self._note(client, queue)
        try:
            queue.send(self._pool.table.key_of(slot), deadline, client._budget, slot)
        except (AiotimerError, OSError) as error:
            client._missing(error)

    def _note(self, client: BaseClient, queue: WorkerQueue) -> None:
        """Note that leaving has to be sent, by way of a queue that is socket-only."""
        former = self._exit_state
        if former is None or not former.sends_release:
            self._exit_state = ExitState(queue, client._budget, nan if former is None else former.entered_at)

    def _begin(self, client: BaseClient, queue: WorkerQueue) -> None:
        """Be in the table of this process, which a server has, or is going to have.

        No server has welcomed this process, or the block is in scratch: it was made before there was a table,
        or this is a forked child.
        """
        absent = None
        has_waited = queue.must_connect(insist=client._insists)
        if has_waited:
            absent = queue.connection.attempt(client._budget)
        try:
            table = queue.make_table()
        except OSError as error:
            absent = absent or error
        else:
            if has_waited or table is not self._pool.table:
                if self._exit_state is None:
                    self._exit_state = ExitState()  # its lock keeps out who renews, or leaves after that
                self._exit_state.lock.holding(self._enter_again, table)
        if absent is not None:
            client._missing(absent)
        deadline, table = self._deadline, self._pool.table
        if deadline is not None and table is queue.table and table.must_ring(deadline, table.now()):
            queue.ring(deadline)

    def _enter_again(self, table: TimerTable) -> None:
        """Begin the countdown once more, in a table; there is no moment at which this block is not in use."""
        pool, slot, exit_state = self._pool, self._slot, self._exit_state
        if slot is None or self._deadline is None or exit_state is None:
            return  # renewed by one thread, and left by another meanwhile
        if pool.table is table:
            self._restart(pool, slot, exit_state, pool.now())
            return
        other = Block()
        other._slot = other._exit_state = other._deadline = None
        other._after, other._client = self._after, self._client
        other._pool = table.pool(pool.scope, observed=pool.observed)
        if exit_state.first:
            other._exit_state = ExitState(first=True)
        other._arm()
        self._pool, self._slot, self._deadline = other._pool, other._slot, other._deadline
        other._slot = None
        if other._exit_state is not None:
            exit_state.entered_at = other._exit_state.entered_at
        pool.cells[slot] = inf
        pool.append(slot)

    def _arm(self) -> None:
        """Do what ``__enter__`` does, but for telling the server."""
        pool, slot = self._take()
        self._slot = slot
        cells, now = pool.cells, pool.now()
        cells[slot + COUNT_OF] += 1.0
        cells[LABEL_WORDS * slot + THREAD_OF] = entered_by()
        self._deadline = cells[slot] = deadline = now + self._after
        if now >= pool.sample_at or (self._exit_state is not None and pool.table.sampled_from < inf):
            self._sample(pool, slot, now, deadline)

    async def _enter_async(self, client: BaseClient) -> Self:
        """Enter by way of what must be awaited: a connection, or an acknowledgement."""
        notice()
        queue = client._queue
        if queue.shared:
            await self._connect(client, queue)
        return await self._enter_connected(client, queue)

    async def _enter_connected(self, client: BaseClient, queue: WorkerQueue) -> Self:
        """Enter, whether or not it has been possible to connect before."""
        if not queue.shared and not queue.ended:
            return await self._enter_by_socket(client, queue)
        return Block.__enter__(self)

    async def _connect(self, client: BaseClient, queue: WorkerQueue) -> None:
        """Connect before entering, which begins after it, for no longer than the client's budget."""
        connection = queue.connection
        if queue.must_connect(insist=client._insists):
            absent = await connection.attempt_async(client._budget)
            if absent is not None:
                client._missing(absent)
        elif not connection.connected and connection.may_attempt():
            absent = await connection.attempt_async(client._budget)
            if absent is not None and queue.shared:
                connection.outage(str(absent))  # the table is there, and the next server adopts it

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
        notice()
        return exit_state.lock.holding(self._store_release, exit_state)

    def _store_release(self, exit_state: ExitState) -> str:
        pool, slot = self._pool, self._slot
        if slot is None:
            return ""
        pool.cells[slot] = inf
        entered_at, exit_state.entered_at = exit_state.entered_at, nan
        if entered_at == entered_at:
            durations.leave(pool.cells, row_of(slot), pool.now() - entered_at)
        return pool.table.key_of(slot) if exit_state.sends_release else ""

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
        notice()
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
        first: it is one of the first entries of its scope, and has a limit of its own for that.
    """

    __slots__ = ("budget", "entered_at", "first", "lock", "pid", "queue")

    def __init__(
        self,
        queue: WorkerQueue | None = None,
        budget: float = 0.0,
        entered_at: float = nan,
        *,
        first: bool = False,
    ) -> None:
        self.lock = Lock()  # a signal's handler may renew, too
        self.queue = queue
        self.budget = budget
        self.entered_at = entered_at
        self.first = first
        self.pid = os.getpid() if queue is not None else 0

    @property
    def sends_release(self) -> bool:
        """Whether the release has to be sent."""
        return self.queue is not None and self.pid == os.getpid()


IN_USE = "this expires() is in use; make a new one for every block"


async def nothing() -> None:
    """What ``__aexit__`` returns when there is nothing to wait for."""
