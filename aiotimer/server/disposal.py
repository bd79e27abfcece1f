"""A disposal of tables: a thread gives back to the kernel what that takes long for.

The laws of this file:

* The memory of a full table is freed with its last descriptor or mapping, and that takes the kernel ten
  milliseconds, in which no timer would have its turn. Little is given back at once.
* Only what has no name any more waits here: whoever removes a table has unlinked it by then, so nothing that
  a directory holds, or lacks, depends on when the thread comes to it.
* The thread holds no state, and has ended when :meth:`Disposal.close` returns.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from mmap import mmap
from pathlib import Path

from .._linux import paths

LITTLE = 1_048_576
"""Bytes that the kernel frees in a small part of a millisecond."""


class Disposal:
    """Closes descriptors and mappings, soon if that takes long."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "aiotimer disposal")
        self._waiting: deque[Callable[[], object]] = deque()

    def close_descriptor(self, descriptor: int) -> None:
        """Close a descriptor; its number is another file's when that is done, and not before."""
        facts = os.fstat(descriptor)
        self._give_back(partial(os.close, descriptor), 0 if facts.st_nlink else 512 * facts.st_blocks)

    def remove(self, path: Path) -> None:
        """Remove a file that nobody has open, if it can be: its name at once."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # it is gone; or there is no descriptor to hold it with
            paths.remove(path)
            return
        paths.remove(path)
        self.close_descriptor(descriptor)

    def close_mapping(self, mapping: mmap, used: int) -> None:
        """Close a mapping of which so many bytes have been used."""
        self._give_back(mapping.close, used)

    def close(self) -> None:
        """Give back all that waits. What comes after that is given back at once."""
        self._thread.shutdown()

    def abandon(self) -> None:
        """In a forked child, which has no such thread: give back its own share of all that waits."""
        while self._waiting:
            self._next()

    def _give_back(self, give_back: Callable[[], object], size: int) -> None:
        if size <= LITTLE:
            give_back()
            return
        self._waiting.append(give_back)
        try:
            self._thread.submit(self._next)
        except RuntimeError:  # it has ended, or there is no memory or no right for one more
            self._next()

    def _next(self) -> None:
        if self._waiting:  # else whoever could not start the thread has done it
            self._waiting.popleft()()
