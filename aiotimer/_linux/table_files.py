"""A store of timer tables, which are files on tmpfs: it makes, checks and finds them.

The laws of this file:

* A table lies on tmpfs, checked and not assumed: the dirty pages of a file on disk are written back, and a
  store into a page under write-back waits for the disk.
* Identity is in a table's file name (boot, pid, start time, pidfd inode), never in what a worker can write.
* Its pages are allocated before anybody stores into them: a sparse page on a full tmpfs is SIGBUS.
* A worker makes its table itself, without a name, before it knows a server; the server gives it one.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

from .._core import layout
from .._core.requests import WorkerId
from ..errors import NewerLayout, ServerError
from .paths import NOTES, RECORDED, bases, in_memory, is_in_memory, is_regular_file
from .procfs import boot_id

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
        kept_as: the name under which its descriptor is kept, "" if it is not (``descriptor_store``).
        inode: of the file.
        kind: who stores into it.
    """

    __slots__ = ("descriptor", "inode", "kept_as", "kind", "path")

    def __init__(self, descriptor: int, path: Path | None, inode: int, kind: Kind) -> None:
        self.descriptor = descriptor
        self.path = path
        self.inode = inode
        self.kind = kind
        self.kept_as = ""

    @property
    def name(self) -> str:
        """What the next server finds it by, "" if that will not."""
        return self.kept_as if self.path is None else self.path.name

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
    """A table file of an earlier server: whose it says it is.

    Attributes:
        path: where it lies, or would lie.
        descriptor: of it, if it was kept and has no path; -1: it has one.
    """

    path: Path
    worker: WorkerId
    pidfd_inode: int
    kind: Kind
    boot: str
    descriptor: int = -1

    @property
    def of_this_boot(self) -> bool:
        """Whether its worker may be alive."""
        return self.boot == boot_id()

    def close(self) -> None:
        """Close the descriptor, if it has one."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


def create_table(
    directory: Path, worker: WorkerId, pidfd_inode: int, kind: Kind, known: int = 0
) -> TableFile:
    """Make a table of a worker, which has so many: pages allocated, header written, first slots ready.

    Raises:
        OSError: no memory or no descriptor; nothing is left behind.
    """
    if not in_memory(directory):
        descriptor = _formatted(os.memfd_create("aiotimer"))
        return TableFile(descriptor, None, os.fstat(descriptor).st_ino, kind)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    for path in _names(directory, worker, pidfd_inode, kind, known):
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            continue  # another table of this worker
        break
    try:
        _format(descriptor)
        inode = os.fstat(descriptor).st_ino
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return TableFile(descriptor, path, inode, kind)


def create_unnamed_table() -> int:
    """Make a table without a name, where a server can give it one, else in a memfd; return a descriptor.

    Raises:
        OSError: no memory or no descriptor, or files may not be so large.
    """
    for base in bases():
        with contextlib.suppress(OSError):
            return _formatted(os.open(base.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    return _formatted(os.memfd_create("aiotimer"))  # nobody can seal it, as it is not said that one may


def _formatted(descriptor: int) -> int:
    """Make a table of a new file, and return its descriptor.

    Raises:
        OSError: there is no room, or it does not lie in memory. It is closed then.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)  # only what lies in memory has seals
        _format(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def give_name(table: TableFile, directory: Path, worker: WorkerId, pidfd_inode: int, known: int = 0) -> None:
    """Give a worker's table, which has none, a name in a state directory: there the next server finds it.

    Raises:
        OSError: it is of another file system or mount, or had a name once, or there is no room for one.
    """
    anywhere = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in _names(directory, worker, pidfd_inode, table.kind, known):
            try:
                # Only beside a directory's descriptor it is linkat(2), which follows the link in /proc.
                os.link(f"/proc/self/fd/{table.descriptor}", path, src_dir_fd=anywhere)
            except FileExistsError:
                continue
            table.path = path
            return
    finally:
        os.close(anywhere)


def name_of(worker: WorkerId, pidfd_inode: int, kind: Kind, known: int) -> str:
    """Return the likeliest name of a worker's table."""
    return next(_names(Path(), worker, pidfd_inode, kind, known)).name


def _names(directory: Path, worker: WorkerId, pidfd_inode: int, kind: Kind, known: int) -> Iterator[Path]:
    """Yield the names that a worker's table may have, the likeliest first."""
    identity = f"{boot_id()}-{worker.pid}-{worker.started}-{pidfd_inode}"
    for serial in itertools.count(known):
        yield directory / f"{identity}-{serial}.{kind}"


def _format(descriptor: int) -> None:
    os.posix_fallocate(descriptor, 0, layout.PAGE)
    os.ftruncate(descriptor, layout.TABLE_SIZE)
    os.pwrite(descriptor, layout.server_line(float("inf"), 0.0), 8 * layout.PROMISE)
    os.pwrite(descriptor, layout.header(), 0)


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
    descriptor = os.open(found.path, flags) if found.descriptor < 0 else os.dup(found.descriptor)
    try:
        table = check_offered(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    table.kind = found.kind
    if found.descriptor < 0:
        table.path = found.path
    else:
        table.kept_as = found.path.name
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
        entry = named(path)
        if entry is None:
            strangers.append((path, "it is not a timer table"))
        else:
            found.append(entry)
    return found, strangers


def named(path: Path, descriptor: int = -1) -> Found | None:
    """Return what a table's name says, None if it is none's; ``descriptor``: see ``Found``."""
    match = _TABLE_NAME.fullmatch(path.name)
    if match is None:
        return None
    worker = WorkerId(int(match[2]), int(match[3]))
    return Found(path, worker, int(match[4]), cast(Kind, match[5]), match[1], descriptor)
