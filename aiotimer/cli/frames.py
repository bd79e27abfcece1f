"""A shortener of stacks for people: paths as one would type them, and a library's frames in one line.

The laws of this file: a frame of the user's code is never left out, nor is the innermost one, at which a
thread stands; what is shortened is shortened from the left, and says so. Text stays untrusted: whoever prints
it escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from ..evidence.verdict import is_users

Frame: TypeAlias = Sequence[Any]

_INSTALLED = re.compile(r".*/(?:site|dist)-packages/|.*/lib(?:64)?/python3(?:\.\d+t?/|\d+\.zip/)", re.DOTALL)
"""What the path of a library begins with, which is the same for all of them."""

_FROZEN = re.compile(r"<frozen ([\w.]+)>")

_WAITS = re.compile(r"(^|/)(queue|threading)\.py\Z")
_POOLS = re.compile(
    r"(^|/)concurrent/futures/thread\.py:_worker\Z"
    r"|(^|/)multiprocessing/pool\.py:(worker|_handle_\w+|_wait_for_updates|wait)\Z"
    r"|(^|/)anyio/_backends/_asyncio\.py:run\Z"
)
"""Where an idle thread of a pool stands, but for the queue that it waits for."""

_MOST_NAMES = 3


def relative(path: str, directory: str) -> str:
    """Return a path as it is seen from a directory: from there if it is below it, else whole."""
    base = directory.rstrip("/") + "/"
    return path[len(base) :] if len(base) > 1 and path.startswith(base) else path


def short(path: str, directory: str, room: int, libraries: Sequence[str] = ()) -> str:
    """Return a path for people.

    Args:
        directory: see :func:`relative`.
        room: so many characters, if that can be: leading directories are left out.
        libraries: how the paths of libraries begin, if that is known; see :func:`is_users`. So of the others.
    """
    shorter = path if is_users(path, libraries) else _INSTALLED.sub("", path)
    if shorter == path:
        shorter = relative(path, directory)
    parts = shorter.split("/")
    while len(shorter) > room and len(parts) > 1:
        parts = parts[1:]
        shorter = "/".join(["...", *parts])
    return shorter


def library_of(file: str) -> str:
    """Return the name of the library that a file is of."""
    frozen = _FROZEN.match(file)
    if frozen is not None:
        return frozen[1].split(".")[0]
    inside = _INSTALLED.sub("", file)
    if inside == file and file.startswith("/"):  # it is none that is installed: its directory says most
        inside = "/".join(file.split("/")[-2:])
    return inside.partition("/")[0].removesuffix(".py")


def folded(frames: Sequence[Frame], libraries: Sequence[str] = ()) -> Iterator[Frame | str]:
    """Yield frames; of two or more library frames in a row, what they are, in words."""
    for users, run in groupby(frames[:-1], lambda frame: is_users(str(frame[0]), libraries)):
        several = list(run)
        if users or len(several) < 2:
            yield from several
            continue
        names = list(dict.fromkeys(library_of(str(frame[0])) for frame in several))
        more = ", ..." if len(names) > _MOST_NAMES else ""
        yield f"... {len(several)} frames in {', '.join(names[:_MOST_NAMES])}{more}"
    yield from frames[-1:]


def innermost(frames: Sequence[Frame], libraries: Sequence[str] = ()) -> Frame | None:
    """Return the innermost frame of the user's code; if there is none, the innermost of all."""
    users = next((frame for frame in reversed(frames) if is_users(str(frame[0]), libraries)), None)
    return users or (frames[-1] if frames else None)


def is_idle(stack: Mapping[str, Any], libraries: Sequence[str] = ()) -> bool:
    """Whether a thread is one of a pool, and waits for work."""
    frames = list(stack.get("frames") or ())
    if not frames or any(is_users(str(frame[0]), libraries) for frame in frames):
        return False
    while frames and _WAITS.search(str(frames[-1][0])):
        frames.pop()
    return bool(frames) and _POOLS.search(f"{frames[-1][0]}:{frames[-1][2]}") is not None


def guilty_first(
    stacks: Sequence[Mapping[str, Any]], where: str, libraries: Sequence[str] = ()
) -> list[Mapping[str, Any]]:
    """Return stacks, with the one that a verdict is about first, if it can be told.

    Args:
        where: the line that the verdict names.
    """
    at = [one for one in stacks if frame_at(one.get("frames") or (), where)]
    stand = [
        one for one in at if frame_at([innermost(one["frames"], libraries) or ()], where)
    ]  # others only passed it
    current = [one for one in stacks if one.get("entered")] or [one for one in stacks if one.get("current")]
    busy = [one for one in stacks if not is_idle(one, libraries)]
    guilty = (stand or at or current or busy or stacks)[:1]
    return [*guilty, *(one for one in stacks if one is not guilty[0])]


def frame_at(frames: Sequence[Frame], where: str) -> Frame | None:
    """Return the innermost frame at a line, which may name the file as the frames do, or by its last part."""
    file, _, line = where.rpartition(":")
    for frame in reversed(frames) if file else ():
        path = str(frame[0])
        if str(frame[1]) == line and (path == file or path.endswith("/" + file)):
            return frame
    return None
