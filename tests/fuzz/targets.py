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


def frames(data: bytes) -> None:
    """The decoders of both sides: messages or ProtocolError, and a bounded rest."""
    for decoder in (wire.server_decoder(), wire.client_decoder()):
        try:
            for message in decoder.feed(data[: len(data) // 2]):
                wire.encode(message)
            for message in decoder.feed(data[len(data) // 2 :]):
                wire.encode(message)
        except ProtocolError as error:
            str(error).encode("utf-8", "backslashreplace")


def bodies(data: bytes) -> None:
    """The same, behind a length that is right."""
    if data:
        frames(len(data).to_bytes(4, "big") + data)


def tables(data: bytes) -> None:
    """Any bytes as a table, of any size."""
    reader = TableReader(lambda size, offset: data[offset : offset + size])
    deadlines = reader.deadlines()
    assert len(deadlines) <= layout.SLOTS
    look = Watch(Lifeline(NOW), connected=True).look(deadlines, NOW)
    assert NOW < look.wake_at <= NOW + BOUND
    for timer in reader.timers():
        assert timer.name


TARGETS: dict[str, Callable[[bytes], None]] = {"frames": frames, "bodies": bodies, "tables": tables}


def main() -> None:
    """Run one target until libFuzzer's options end it."""
    atheris = importlib.import_module("atheris")  # an extra, not for every Python
    name = sys.argv.pop(1)
    atheris.instrument_all()
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
