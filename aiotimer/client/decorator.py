"""The decorator that a block can be used as: every call of the decorated function is a block of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def decorate(function: Callable[P, R], new_block: Callable[[], Any]) -> Callable[P, R]:
    """Return ``function`` inside a block from ``new_block``, a new one for every call.

    Raises:
        TypeError: ``function`` is a generator or asynchronous generator function.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("expires() cannot decorate a generator: its body runs piecemeal, later")
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            async with new_block():
                return await function(*args, **kwargs)

        return cast("Callable[P, R]", call_async)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with new_block():
            return function(*args, **kwargs)

    return call
