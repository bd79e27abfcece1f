"""The factory of blocks: ``expires`` puts one timer around one block.

A function rather than a class, because CPython passes keyword arguments to a class by way of a dict: made so,
a block costs a fifth less (``python -m benchmarks --only entry``). The default of a keyword-only parameter
comes from a dict as well, for every block that does not give it: so there is none, which is 5 % of a block.
"""

from __future__ import annotations

from sys import _getframe
from typing import TYPE_CHECKING

from .arguments import MOST, named_pool, seconds, site_pool
from .block import Block
from .clients import BaseClient, default, default_client

if TYPE_CHECKING:
    from datetime import timedelta

    from .._core.table import Pool

_MOST_INT = 10**9
"""Up to here an int is compared with an int, which is quicker; beyond, ``seconds`` decides."""


def expires(
    after: float | timedelta,
    scope: str | None = None,
    client: BaseClient | None = None,
    first: float | timedelta | tuple[float | timedelta, int] | None = None,
    grace: float | timedelta | None = None,
    observe: bool = False,
    stacklevel: int = 1,
) -> Block:
    """Return a countdown around a block: if the block is not left in time, this process is reaped.

    Use it in ``with``, in ``async with``, or as a decorator of a function or coroutine function. What it
    returns serves one block at a time; a decorated function gets a new one for every call. Once the
    interpreter ends, blocks are armed no more: what shall limit that end is armed by a client's ``acquire``.
    What follows ``client`` is to be given by its name: only the names are promised, not their order.

    Args:
        after: seconds from entering the block, a finite number greater than 0; or a ``timedelta``.
        scope: the timer's name in reports, at most 240 bytes of UTF-8; by default the caller's
            ``file:line``. Entries never share a timer, whatever their scope: a second concurrent entry
            shows as ``name#2``.
        client: the client whose server watches; by default the configured one.
        first: a longer ``after`` for the first entry of this scope in this process, which may have to compile
            or fill caches; ``first=(60, 3)``: for the first three. Entries without ``first`` do not count. Of
            entries that are made side by side, some more may have it.
        grace: only in ``async with``: at ``after`` the block's own task is cancelled, and leaves the
            block with TimeoutError as from ``asyncio.timeout``; this many seconds later, if the block has
            still not been left, the process is reaped.
        observe: nobody is signalled for this block: that it was not left in time is only reported.
        stacklevel: whose ``file:line`` names the timer: 1 the caller's, 2 that of whoever called the caller,
            as in ``warnings.warn``; for libraries that wrap this function.

    Returns:
        The block. In it, ``.scope``, ``.deadline``, ``.remaining()`` and ``.renew()`` are about its timer.

    Raises:
        TypeError: ``after``, ``grace`` or ``first`` is not a number, ``scope`` is not a str.
        ValueError: ``after``, ``grace`` or ``first`` is not finite or not positive; ``first`` is less than
            ``after``, or for less than one entry; the scope cannot be a name; there is no caller at that
            ``stacklevel``.
        NotConfigured: on entering, if there is no client and no ``$AIOTIMER_SOCKET``.
        TableFull: on entering, if this process has 65,536 timers armed; for want of memory, only if the
            client is told to raise.
        ServerUnavailable, Refused: on entering, only if the client is told to raise.
    """
    block = Block()
    block._slot = block._exit_state = block._deadline = None
    block._client = client
    if client is None:
        client = default.client
    if observe:  # such blocks have pools of their own
        pool = _new_pool(after, scope, client, stacklevel, observed=True)
    else:
        try:
            if scope is None:
                frame = _getframe(stacklevel)
                pool = client._sites[id(frame.f_code), frame.f_lasti]  # type: ignore[union-attr]
            else:
                pool = client._pools[scope]  # type: ignore[union-attr]
        except (KeyError, AttributeError):  # a new name, or nothing is configured
            pool = _new_pool(after, scope, client, stacklevel, observed=False)
    if after is not pool.last_after:  # what was good enough once is so again
        kind = type(after)
        if kind is int:
            if not 0 < after <= _MOST_INT:  # type: ignore[operator]  # by its kind
                after = seconds(after, "after")
        elif kind is not float or not 0.0 < after <= MOST:  # type: ignore[operator]
            after = seconds(after, "after")
        pool.last_after = after  # type: ignore[assignment]  # a float, or an int
    block._after = after  # type: ignore[assignment]  # as above
    block._pool = pool
    if first is not None and pool.first_over is not first:
        _ask_for_first(block, first)
    return block if grace is None else _with_grace(block, grace)


def _new_pool(
    after: float | timedelta, scope: str | None, client: BaseClient | None, stacklevel: int, *, observed: bool
) -> Pool:
    seconds(after, "after")  # there is no new pool for the sake of one that is not
    client = client or default_client()
    if scope is None:
        if stacklevel < 1:
            raise ValueError(f"stacklevel must be 1 or greater, not {stacklevel}")
        return site_pool(_getframe(1 + stacklevel), client, observed=observed)
    return named_pool(scope, client, observed=observed)


def _ask_for_first(block: Block, first: object) -> None:
    from .first_entries import ask_for  # only now: most programs have no use for it

    ask_for(block, first)


def _with_grace(block: Block, grace: float | timedelta) -> Block:
    from .grace import with_grace  # only now: it loads asyncio

    return with_grace(block, seconds(grace, "grace"))
