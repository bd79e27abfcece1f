"""A runner of blocking probes, each in a thread of its own: whatever blocks there, the loop does not.

The laws of this file: threads are daemons, so that none holds up the end of the process; one that does not
come back is given up and counted, and when too many are stuck no further one is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from operator import methodcaller
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

MAX_STUCK = 16
"""Threads that have been given up and have not ended: so many and no further one is started."""

MAX_RUNNING = 64
"""Threads in all; who comes when there are so many waits, within its limit."""

_running: set[threading.Thread] = set()
_stuck: set[threading.Thread] = set()


class TooManyStuck(Exception):
    """So many probes of other processes hang that no further one is begun."""

    def __str__(self) -> str:
        return f"{MAX_STUCK} probes hang"


async def in_thread(
    function: Callable[[], T],
    limit: float,
    give_up: Callable[[], object],
    release: Callable[[], object] = lambda: None,
) -> T:
    """Call a function in a thread of its own and return what it returns.

    Args:
        function: may block, may raise.
        limit: seconds to wait for it.
        give_up: called when it is not waited for any more; may make it end.
        release: called once, when the function has returned or will not be called at all.

    Raises:
        TimeoutError: it did not return within the limit.
        TooManyStuck: see there.
        Exception: what the function raised.
    """
    until = monotonic() + limit
    try:
        await _admitted(until)
    except BaseException:
        release()
        raise
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(outcome: Callable[[asyncio.Future[T]], None]) -> None:
        if not done.done():
            outcome(done)

    def run() -> None:
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - raised again in the coroutine
            # A SystemExit would end the loop there, and a StopIteration cannot be raised there at all.
            ordinary = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
            outcome = methodcaller("set_exception", raised if ordinary else RuntimeError(repr(raised)))
        else:
            outcome = methodcaller("set_result", result)
        release()
        _running.discard(thread)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(finish, outcome)

    thread = threading.Thread(target=run, name="aiotimer probe", daemon=True)
    _running.add(thread)
    try:
        thread.start()
    except BaseException:
        _running.discard(thread)
        release()
        raise
    try:
        return await asyncio.wait_for(done, max(0.0, until - monotonic()))
    except BaseException:
        if not done.done() or done.cancelled():
            _stuck.add(thread)
            give_up()
        raise


async def _admitted(until: float) -> None:
    """Wait until there is room for another thread."""
    _stuck.intersection_update(_running)
    if len(_stuck) >= MAX_STUCK:
        raise TooManyStuck
    while len(_running) >= MAX_RUNNING:
        if monotonic() >= until:
            raise TimeoutError
        await asyncio.sleep(0.01)
