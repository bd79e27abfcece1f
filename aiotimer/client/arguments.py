"""A parser of what ``expires`` is given: it makes seconds of numbers, and finds the pool of a scope.

The default scope is the caller's ``file:line``. It is found once per call site: by the id of the code object
and the instruction, since hashing a code object costs more than entering the block.
"""

from __future__ import annotations

import os
from math import inf
from typing import TYPE_CHECKING, Any

from .._core.layout import SCOPE_BYTES, encode_scope
from .memory import scratch

if TYPE_CHECKING:
    from types import FrameType

    from .._core.table import Pool
    from .clients import BaseClient

MOST = 1e308
"""The largest ``after``: what is added to a clock reading must stay finite."""


def seconds(value: Any, name: str) -> float:
    """Return ``value`` as seconds: a number of them, or a ``timedelta``.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite, or not greater than 0.
    """
    if hasattr(type(value), "total_seconds"):  # a timedelta; to ask its type would load datetime
        value = value.total_seconds()
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int or a fraction may be larger than any float
        number = inf
    if not 0 < number <= MOST:
        raise ValueError(f"{name} must be a finite number of seconds greater than 0, not {value!r}")
    return number


def named_pool(scope: str, client: BaseClient | None, *, observed: bool = False) -> Pool:
    """Return the pool of a scope that is new, or whose client is not connected.

    Raises:
        TypeError, ValueError: the scope cannot be a name.
        RuntimeError: the client is closed.
    """
    encode_scope(scope)
    if client is None:
        return scratch.pool(scope, observed=observed)
    client._check_open()
    return client._queue.pool(scope, observed=observed)


def site_pool(caller: FrameType, client: BaseClient | None, *, observed: bool = False) -> Pool:
    """Return the pool of a call that names no scope, and remember it for that call if it is not observed."""
    pool = named_pool(site_name(caller), client, observed=observed)
    if not observed and client is not None and client._queue.table is pool.table:
        client._queue.remember_site(caller.f_code, caller.f_lasti, pool)
    return pool


def site_name(frame: FrameType) -> str:
    """Return ``file:line`` of a frame as a scope, shortened from the left if need be."""
    file = os.path.basename(frame.f_code.co_filename) or "?"
    name = f"{file}:{frame.f_lineno}".encode(errors="backslashreplace").replace(b"\0", b"?")
    return name[-SCOPE_BYTES:].decode(errors="replace")
