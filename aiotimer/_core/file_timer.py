"""A decoder of the requests that workers of torch's file timer write into its pipe, and of its clock.

``torch.distributed.elastic.timer.FileTimerClient`` opens a named pipe for each request, writes one line of
JSON, and closes it. Whoever may open the pipe can write anything.

The laws of this file:

* A line is a request, or a reason why it is none; the next one is read in any case. What a writer left
  unfinished costs no request of another's: each begins with the same bytes, which stand nowhere within one.
* What waits for its line's end is bounded.
* A deadline is on the monotonic clock. An expiration time of the wall clock is turned into one as soon as it
  is read, and has nothing to do with that clock any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple

from .layout import SCOPE_BYTES

VERSION = 1
"""Of the requests, as the file timer of torch 2 writes it into each of them."""

MOST = 16_384
"""Bytes of a line at most: four times what the file timer writes at once (PIPE_BUF)."""

_BEGIN = b'{"version"'
"""How each request begins. In a text within one a quotation mark has a backslash before it."""

_MOST_PID = 2**31


class FileTimerRequest(NamedTuple):
    """What a line asks for.

    Attributes:
        pid: of the process that the timer is on, by its writer's account.
        scope: the timer's name, which fits into a table.
        expiration_time: wall-clock seconds; strictly negative is a release.
        signal: the number of the one that its process is to be sent; 0 or less: none.
    """

    pid: int
    scope: str
    expiration_time: float
    signal: int


def monotonic_deadline(expiration_time: float, *, wall: float, now: float) -> float:
    """Return the ``expiration_time`` of a request on the monotonic clock for one on the wall clock.

    Args:
        expiration_time: wall-clock seconds. 0 has already expired, and a strictly negative one is a release:
            they are returned as they are.
        wall: the present on that clock.
        now: the present, ``CLOCK_MONOTONIC`` seconds.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite.
    """
    number = _checked(expiration_time)
    # What expired before this machine was started has expired.
    return number if number <= 0.0 else max(0.0, now + (number - wall))


def _checked(expiration_time: object) -> float:
    """Return an ``expiration_time``, of whatever a program or a line has said.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite, and no release.
    """
    if isinstance(expiration_time, bool) or not isinstance(expiration_time, (int, float)):
        raise TypeError(f"expiration_time must be a number, not {type(expiration_time).__name__}")
    try:
        number = float(expiration_time)
    except OverflowError:
        number = inf if expiration_time > 0 else -inf
    if not number < inf:
        raise ValueError(f"expiration_time must be finite, not {number}")
    return number


def fitting_scope(text: str) -> str:
    """Return a text as a timer's name: shortened from the left if need be, with what no name has replaced."""
    name = text.encode(errors="backslashreplace").replace(b"\0", b"?") or b"?"
    return name[-SCOPE_BYTES:].decode(errors="ignore")


class LineDecoder:
    """Makes requests of the bytes that come out of the pipe."""

    def __init__(self) -> None:
        self._unfinished = b""

    def feed(self, data: bytes) -> Iterator[FileTimerRequest | str]:
        """Yield a request for each line that has come to its end, or the reason why it is none."""
        *lines, unfinished = (self._unfinished + data).split(b"\n")
        # Of what is too long the last request may still come to its end.
        self._unfinished = unfinished[max(0, len(unfinished) - MOST) :]
        for line in lines:
            yield from _requests(line)


def _requests(line: bytes) -> Iterator[FileTimerRequest | str]:
    """Yield what is in a line: one request, as a rule, and before it what others have left unfinished."""
    if not line.strip():
        return
    first, *others = line.split(_BEGIN)
    pieces = [_BEGIN + other for other in others]
    if first.strip():
        pieces.insert(0, first)
    for piece in pieces:
        try:
            yield _request(json.loads(piece))
        except (ValueError, RecursionError) as error:
            yield f"{_shown(piece)} is no request of a file timer: {error}"


def _shown(piece: bytes) -> str:
    text = piece[:80].decode(errors="backslashreplace")
    return f"{text!r}{'...' if len(piece) > 80 else ''}"


def _request(told: Any) -> FileTimerRequest:
    """Return the request that a JSON value is.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(told, dict):
        raise ValueError("it is no object")
    version = told.get("version", VERSION)
    if version != VERSION:
        raise ValueError(f"it is of version {version!r}, and this aiotimer knows {VERSION}")
    pid, scope, at, signal = (told.get(key) for key in ("pid", "scope_id", "expiration_time", "signal"))
    if type(pid) is not int or not 0 < pid < _MOST_PID:
        raise ValueError(f"its pid is {pid!r}")
    if not isinstance(scope, str):
        raise ValueError(f"its scope_id is {scope!r}")
    if type(signal) is not int:
        raise ValueError(f"its signal is {signal!r}")
    try:
        expiration_time = _checked(at)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return FileTimerRequest(pid, fitting_scope(scope), expiration_time, signal)
