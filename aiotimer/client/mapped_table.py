"""A timer table in a file, which its process has mapped, and the descriptor of that file.

The laws of this file:

* The process makes it, without a name and before it knows a server, and hands it over with HELLO. So a timer
  that was armed before stands where it is going to be looked for.
* The mapping is not a forked child's (MADV_DONTFORK), the descriptor not ours alone: a program may close it.
"""

from __future__ import annotations

import errno
import mmap
import os
from time import monotonic
from typing import TYPE_CHECKING

from .._core.layout import TABLE_SIZE
from .._core.table import TimerTable
from .._linux.forks import end_at_fork
from .._linux.procfs import mapped_path
from .._linux.table_files import allocate, create_unnamed_table
from .memory import identity, is_open, mapped

if TYPE_CHECKING:
    from .._core.table import Pool


class TableDescriptor:
    """A descriptor of a table's file.

    Args:
        number: of an open file; owned from here on.

    Attributes:
        file: its identity.
        path: where its server says that it lies; "" if it has no name, or has one since it was made.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.file = identity(number)
        self.path = ""

    def is_there(self) -> bool:
        """Whether it is there; if the program has closed it, the file is opened anew."""
        if not is_open(self.number, self.file):
            try:
                path = self.path or mapped_path(self.file[1])
                self.number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                if not is_open(self.number, self.file):  # another mount namespace's path
                    os.close(self.number)
                    self.number = -1
            except OSError:
                self.number = -1
        return self.number >= 0

    def duplicate(self) -> int:
        """Return another descriptor of the file, to be closed; -1: the program has closed this one for good.

        Whatever becomes of this one's number meanwhile, that other one is the file's, and stays so.

        Raises:
            OSError: there is no descriptor left.
        """
        if not self.is_there():
            return -1
        try:
            other = os.dup(self.number)
        except OSError as error:
            if error.errno == errno.EBADF:  # another thread has just closed it
                return -1
            raise
        if is_open(other, self.file):
            return other
        os.close(other)
        return -1

    def grow(self, slots: int) -> None:
        """Make room for so many slots."""
        if not self.is_there():
            raise OSError("the program closed the table's descriptor")
        allocate(self.number, slots)

    def close(self) -> None:
        """Close it, if it is still ours."""
        if is_open(self.number, self.file):
            os.close(self.number)


class MappedTable(TimerTable):
    """A table in a file.

    Args:
        descriptor: of the file.
        pools: see ``TimerTable``.
        offset: of its clock to ``CLOCK_MONOTONIC`` here.

    Raises:
        OSError: there is no address space for it.
    """

    def __init__(self, descriptor: TableDescriptor, pools: dict[str, Pool], offset: float = 0.0) -> None:
        mapping = mmap.mmap(descriptor.number, TABLE_SIZE)
        mapping.madvise(mmap.MADV_DONTFORK)
        now = monotonic if offset == 0.0 else lambda: monotonic() + offset
        super().__init__(mapping, descriptor.grow, pools, now=now, offset=offset)
        self.descriptor = descriptor
        end_at_fork(self.raw)
        end_at_fork(self.cells)
        mapped.add(self)


def unnamed_table(pools: dict[str, Pool]) -> MappedTable:
    """Make a table that no server has yet.

    Raises:
        OSError: there is no memory, no descriptor or no address space for it.
    """
    descriptor = TableDescriptor(create_unnamed_table())
    try:
        return MappedTable(descriptor, pools).prepared()
    except BaseException:
        descriptor.close()
        raise
