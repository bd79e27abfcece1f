"""Coverage-guided fuzzing with atheris: ``python -m tests.fuzz.targets TARGET [libFuzzer options]``.

The laws of this file: a target takes any bytes; the only exceptions it lets through are bugs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from aiotimer._core import layout, wire
from aiotimer._core.reader import TableReader
from aiotimer._core.watch import BOUND, Lifeline, Watch
from aiotimer.errors import ProtocolError

NOW = 1000.0


def frames(data: bytes) -> int:
    """The decoders of both sides: messages or ProtocolError. Return how many messages."""
    count = 0
    for decoder in (wire.server_decoder(), wire.client_decoder()):
        try:
            for message in decoder.feed(data[: len(data) // 2]):
                count += wire.encode(message) != b""
            for message in decoder.feed(data[len(data) // 2 :]):
                count += wire.encode(message) != b""
        except ProtocolError as error:
            str(error).encode("utf-8", "backslashreplace")
    return count


def bodies(data: bytes) -> int:
    """The same, behind a length that is right."""
    return frames(len(data).to_bytes(4, "big") + data)


def tables(data: bytes) -> int:
    """Any bytes as a table, of any size. Return how many timers are in it."""
    reader = TableReader(lambda size, offset: data[offset : offset + size])
    deadlines = reader.deadlines()
    assert len(deadlines) <= layout.SLOTS
    look = Watch(Lifeline(NOW), connected=True).look(deadlines, NOW)
    assert NOW < look.wake_at <= NOW + BOUND
    timers = reader.timers()
    assert all(timer.name for timer in timers)
    return len(timers)


TARGETS: dict[str, Callable[[bytes], int]] = {"frames": frames, "bodies": bodies, "tables": tables}


def void(_count: int) -> None:
    """What libFuzzer wants returned."""


def main() -> None:
    """Run one target until libFuzzer's options end it."""
    atheris = importlib.import_module("atheris")  # an extra, not for every Python
    name = sys.argv.pop(1)
    atheris.instrument_all()
    atheris.Setup(sys.argv, lambda data: void(TARGETS[name](data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
