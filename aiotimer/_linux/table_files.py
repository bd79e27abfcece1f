"""A store of timer tables, which are files on tmpfs: it makes, checks and finds them.

The laws of this file:

* A table lies on tmpfs, checked and not assumed: the dirty pages of a file on disk are written back, and a
  store into a page under write-back waits for the disk.
* Identity is in a table's file name (boot, pid, start time, pidfd inode), never in what a worker can write.
* Its pages are allocated before anybody stores into them: a sparse page on a full tmpfs is SIGBUS.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

from .._core import layout
from .._core.requests import WorkerId
from ..errors import NewerLayout, ServerError
from .paths import NOTES, RECORDED, is_in_memory, is_regular_file

PEERS_RETURN_WITHIN = 2.0
"""Seconds that a restarted server gives a peer without a shared table to come back and say what is still
armed: a release it could not send is known to nobody else."""
# As many digits as a C int and a 64-bit number can have: pidfd_open(2) is not asked about others.
_TABLE_NAME = re.compile(
    r"([0-9a-f]{8})-(\d{1,9})-(\d{1,20})-(\d{1,20})-\d+\.(shared|socket|owner)", re.ASCII
)
# The version is in the name, not only in the header: a worker can write that, and would keep every server of
# its owner from starting.
_NEWER_NAME = re.compile(r".*\.v(\d{1,9})", re.ASCII)


Kind: TypeAlias = Literal["shared", "socket", "owner"]
"""Who stores into a table: the worker itself, the server for a worker that cannot map memory, or the
server for its owner (``register_timers``)."""


class TableFile:
    """A table on tmpfs.

    Attributes:
        descriptor: open for reading and writing; -1 when it has been closed.
        path: its file, None if it was offered by its worker and has no name here.
        inode: of the file.
        kind: who stores into it.
    """

    __slots__ = ("descriptor", "inode", "kind", "path")

    def __init__(self, descriptor: int, path: Path | None, inode: int, kind: Kind) -> None:
        self.descriptor = descriptor
        self.path = path
        self.inode = inode
        self.kind = kind

    def read(self, size: int, offset: int) -> bytes:
        """Return ``size`` bytes, fewer at its end, none of a closed one: its number may be another file's."""
        return b"" if self.descriptor < 0 else os.pread(self.descriptor, size, offset)

    def write(self, data: bytes, offset: int) -> None:
        """Write into it.

        Raises:
            OSError: its worker has cut it off, and the file system is full; or it is closed.
        """
        os.pwrite(self.descriptor, data, offset)

    def close(self, close: Callable[[int], object] = os.close) -> None:
        """Close the descriptor, or have it closed; the file stays."""
        descriptor, self.descriptor = self.descriptor, -1
        close(descriptor)


class Found(NamedTuple):
    """A table file of an earlier server: whose it says it is."""

    path: Path
    worker: WorkerId
    pidfd_inode: int
    kind: Kind
    boot: str

    @property
    def of_this_boot(self) -> bool:
        """Whether its worker may be alive."""
        return self.boot == _boot()


def create_table(
    directory: Path, worker: WorkerId, pidfd_inode: int, kind: Kind, known: int = 0
) -> TableFile:
    """Make a table of a worker, which has so many: pages allocated, header written, first slots ready.

    Raises:
        OSError: no memory or no descriptor; nothing is left behind.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    identity = f"{_boot()}-{worker.pid}-{worker.started}-{pidfd_inode}"
    for serial in itertools.count(known):
        path = directory / f"{identity}-{serial}.{kind}"
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            continue  # another table of this worker
        break
    try:
        os.posix_fallocate(descriptor, 0, layout.PAGE)
        os.ftruncate(descriptor, layout.TABLE_SIZE)
        os.pwrite(descriptor, layout.server_line(float("inf"), 0.0), 8 * layout.PROMISE)
        os.pwrite(descriptor, layout.header(), 0)
        inode = os.fstat(descriptor).st_ino
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return TableFile(descriptor, path, inode, kind)


def allocate(descriptor: int, slots: int, first: int = 0) -> None:
    """Allocate the pages of a table that ``slots`` slots need: a sparse page on a full tmpfs is SIGBUS.

    Those of the slots before the first one are there already.

    Raises:
        OSError: ENOSPC, or the descriptor is not the table's any more.
    """
    more = slots - first
    start = layout.deadline_offset(first) if first else 0  # with the header
    os.posix_fallocate(descriptor, start, layout.deadline_offset(slots) - start)
    os.posix_fallocate(descriptor, layout.count_offset(first), 8 * more)
    os.posix_fallocate(descriptor, layout.label_offset(first), layout.LABEL_SIZE * more)
    os.posix_fallocate(descriptor, layout.row_offset(first), layout.ROW_SIZE * more)


def check_offered(descriptor: int) -> TableFile:
    """Check a table that a worker brought along to a server that does not know it.

    Raises:
        ServerError: it is not a table file on tmpfs that is ours.
    """
    facts = os.fstat(descriptor)
    ours = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()
    if not ours or facts.st_size < layout.TABLE_SIZE or not is_in_memory(descriptor):
        raise ServerError("the offered descriptor is not a timer table on tmpfs")
    if _can_be_sealed(descriptor):
        raise ServerError("the offered table could be sealed against the server's writing")
    if layout.layout_version(os.pread(descriptor, 16, 0)) != layout.LAYOUT_VERSION:
        raise ServerError("the offered table has another layout")
    return TableFile(descriptor, None, facts.st_ino, "shared")


def _can_be_sealed(descriptor: int) -> bool:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) != fcntl.F_SEAL_SEAL
    except OSError:
        return False  # ramfs knows no seals


def open_table(found: Found) -> TableFile:
    """Open a table that was found in the state directory.

    Raises:
        ServerError: it is not a table (truncated, foreign, of another layout).
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(found.path, flags)
    try:
        table = check_offered(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    table.path, table.kind = found.path, found.kind
    return table


def find_tables(directory: Path) -> tuple[list[Found], list[tuple[Path, str]]]:
    """Return the tables in a state directory, and what does not belong there, with the reason.

    Nothing but regular files is opened: a FIFO would block, a link lead elsewhere.

    Raises:
        NewerLayout: a table of a newer layout is there.
    """
    found: list[Found] = []
    strangers: list[tuple[Path, str]] = []
    for path in sorted(directory.iterdir()):
        if path.name in NOTES or path.name.startswith(RECORDED):
            continue
        if not is_regular_file(path):
            strangers.append((path, "it is not a regular file"))
            continue
        newer = _NEWER_NAME.fullmatch(path.name)
        if newer is not None and int(newer[1]) > layout.LAYOUT_VERSION:
            known = layout.LAYOUT_VERSION
            raise NewerLayout(f"{path} has table layout {newer[1]}; this aiotimer knows {known}")
        match = _TABLE_NAME.fullmatch(path.name)
        if match is None:
            strangers.append((path, "it is not a timer table"))
            continue
        worker = WorkerId(int(match[2]), int(match[3]))
        found.append(Found(path, worker, int(match[4]), cast(Kind, match[5]), match[1]))
    return found, strangers


@functools.cache
def _boot() -> str:
    """Return the first eight hexadecimal digits of this boot's id (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
