"""A formatter of what an inspected process tells of itself: frames and names, as text that can be sent.

The law of this file: no code of the program runs, and nothing is longer than there is room for.
"""

from __future__ import annotations

import os
from types import FrameType
from typing import Any

MOST_FRAMES = 100
"""Of one stack."""

_INSPECTING = frozenset(
    f"{os.path.dirname(__file__)}/{name}" for name in ("hub_channel.py", "inspection.py", "tasks.py")
)
"""What is on the stack only because somebody asked."""


def stack_text(frame: FrameType | None, room: int) -> str:
    """Return the innermost frames of a stack."""
    text, left = "", MOST_FRAMES
    while frame is not None and left:
        code = frame.f_code
        if code.co_filename not in _INSPECTING:
            line = f'  File "{cut(printable(code.co_filename), 200)}", line {frame.f_lineno or 0} in '
            line += cut(printable(code.co_name), 100) + "\n"
            room -= len(line.encode())
            if room < 0:
                break
            text, left = text + line, left - 1
        frame = frame.f_back
    return text


def name_of_type(thing: Any) -> str:
    """Return the name of a thing's type, which nobody can make up: ``uvloop.Loop``."""
    return type.__repr__(type(thing)).removeprefix("<class '").removeprefix("_asyncio.").removesuffix("'>")


def cut(text: str, most: int) -> str:
    """Return a text that can be sent, and is at most so many bytes long."""
    return str.encode(text, errors="backslashreplace")[:most].decode(errors="ignore")


def printable(text: str) -> str:
    """Return a text in one line, with nothing in it that a terminal would obey."""
    return text if str.isprintable(text) else str.encode(text, "unicode_escape").decode()
