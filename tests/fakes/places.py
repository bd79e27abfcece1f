"""Places: short directories, free sockets, and a runtime directory of a test's own.

The law of this file: what is made here is gone at the end of its ``with``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aiotimer.server.history import History
from tests.fakes.clock import PATIENCE


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Yield an empty directory whose path leaves room for a socket's name (107 bytes in all)."""
    path = Path(tempfile.mkdtemp(prefix="at-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def short_socket() -> Iterator[str]:
    """Yield the path of a socket that nobody serves yet."""
    with short_directory() as directory:
        yield str(directory / "s")


@contextlib.contextmanager
def private_runtime() -> Iterator[Path]:
    """Give this process and its children a runtime directory of their own, on tmpfs.

    Servers that a test kills leave their tables behind; this is where, and they go with it.
    """
    path = Path(tempfile.mkdtemp(prefix="at-", dir="/dev/shm"))
    former = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(path)
    try:
        yield path
    finally:
        if former is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = former
        shutil.rmtree(path, ignore_errors=True)


def open_descriptors() -> int:
    """Return how many descriptors this process has open.

    Those that wait for the collector do not count, nor those of a history. That is written by a thread, which
    opens others (its directory, a source of random numbers) while it is at it: it is waited for.
    """
    gc.collect()
    for history in [one for one in gc.get_objects() if isinstance(one, History)]:
        assert history.flush(PATIENCE), "a history is not written"
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # listdir's own
            found += "/history.db" not in os.readlink(f"/proc/self/fd/{descriptor}")
    return found
