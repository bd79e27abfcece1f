"""Where things lie: the socket, its lock, and the state directory with the timer tables.

The laws of this file:

* Tables lie on tmpfs, checked and not assumed: the dirty pages of a file on disk are written back, and a
  store into a page under write-back waits for the disk.
* Identity is in a table's file name (boot, pid, start time, pidfd inode), never in what a worker can write.
* Directories that we make are 0700 and owned by us, sockets 0600; a path through somebody else's hands is
  refused, not repaired.
* One server per socket: whoever holds the POSIX lock on ``SOCKET.lock``. Stale files are removed only
  under that lock. The kernel drops it with its holder, and forked children do not inherit it.

Layout: ``BASE/`` is the first of ``$XDG_RUNTIME_DIR/aiotimer``, ``/run/aiotimer`` (root),
``/dev/shm/aiotimer-UID`` that is on tmpfs; the tables of a socket are in ``BASE/<digest of its path>/``,
next to a file ``socket`` that holds the path, by which ``aiotimer status --all`` finds every server.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import itertools
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

from ._core import layout
from ._core.requests import WorkerId
from .errors import AlreadyServing, NewerLayout, ServerError, UnsafePath

SOCKET_VARIABLE = "AIOTIMER_SOCKET"
MAX_SOCKET_PATH = 107
"""Bytes in ``sockaddr_un.sun_path`` less the final NUL (unix(7))."""

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
_MEMORY_FILESYSTEMS = frozenset({0x01021994, 0x858458F6})  # tmpfs, ramfs (statfs(2))


def bases() -> Iterator[Path]:
    """Yield the directories, best first, in which this user's runtime files may lie."""
    uid = os.geteuid()
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg and os.path.isabs(xdg):
        yield Path(xdg, "aiotimer")
    if uid == 0:
        yield Path("/run/aiotimer")
    yield Path(f"/dev/shm/aiotimer-{uid}")  # noqa: S108 - checked for owner and mode before use


def base() -> Path:
    """Return the first base on tmpfs, made if need be.

    Raises:
        UnsafePath: none can be used.
    """
    reasons = []
    for candidate in bases():
        try:
            if not _in_memory(candidate.parent):
                reasons.append(f"{candidate}: not on tmpfs")
                continue
            _private_directory(candidate)
        except OSError as error:
            reasons.append(f"{candidate}: {error.strerror}")
            continue
        return candidate
    raise UnsafePath("no memory-backed directory for timer tables: " + "; ".join(reasons))


def default_socket() -> str:
    """Return the per-user default socket path: ``aiotimer.sock`` in :func:`base`."""
    return str(base() / "aiotimer.sock")


def check_socket_path(path: str) -> str:
    """Return an absolute socket path that fits into a socket address.

    Raises:
        UnsafePath: it is too long, or empty.
    """
    if not path:
        raise UnsafePath("the socket path is empty")
    absolute = os.path.abspath(path)
    size = len(os.fsencode(absolute))
    if size > MAX_SOCKET_PATH:
        raise UnsafePath(
            f"the socket path is {size} bytes long, and the kernel takes {MAX_SOCKET_PATH}: {absolute}"
        )
    return absolute


def state_directory(socket_path: str) -> Path:
    """Return the directory for the tables of a socket, made and checked.

    Raises:
        UnsafePath: it cannot be trusted.
    """
    directory = base() / _digest(socket_path)
    try:
        _private_directory(directory)
        _leave_note(directory / "socket", os.fsencode(socket_path))
    except OSError as error:
        raise UnsafePath(f"{directory}: {error.strerror}") from error
    return directory


def _leave_note(note: Path, text: bytes) -> None:
    """Write the path of the socket; a note that says so already is left alone, as on a full file system."""
    if _read_note(note) == text:
        return
    note.unlink(missing_ok=True)  # opening a FIFO would block, a link would lead somewhere else
    descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def _read_note(note: Path) -> bytes | None:
    try:
        return note.read_bytes() if _is_file(note) else None
    except OSError:
        return None  # it went away between the two, or it is not ours to read


def _is_file(path: Path) -> bool:
    """Whether it is a regular file itself: no link to one, and nothing that blocks whoever opens it."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def remove_if_empty(directory: Path) -> None:
    """Remove a state directory that holds no tables."""
    if not directory.is_dir():
        return  # somebody cleaned up under us
    if all(path.name == "socket" for path in directory.iterdir()):
        (directory / "socket").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()


def discard(socket_path: str) -> None:
    """Remove everything that belongs to a private socket that nobody will serve again."""
    directory = base() / _digest(socket_path)
    if directory.is_dir():
        for path in directory.iterdir():
            remove(path)
        with contextlib.suppress(OSError):  # a directory that somebody else made in there, say
            directory.rmdir()
    for leftover in (socket_path, socket_path + ".lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leftover)


def known_sockets() -> list[str]:
    """Return the socket path of every state directory of this user, whether or not a server lives."""
    found = set()
    for candidate in bases():
        for note in candidate.glob("*/socket"):
            text = _read_note(note)
            if text is not None:
                found.add(os.fsdecode(text))
    return sorted(found)


def remove(path: Path) -> None:
    """Remove a file, if it can be: what stays is no reason to stop."""
    with contextlib.suppress(OSError):
        path.unlink()


def _digest(socket_path: str) -> str:
    return hashlib.sha256(os.fsencode(socket_path)).hexdigest()[:16]


def _private_directory(path: Path) -> None:
    """Make a directory 0700, or check one that exists, and every component above it."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    uid = os.geteuid()
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise UnsafePath(f"{path} is not a directory (a symbolic link will not do)")
    if facts.st_uid != uid:
        raise UnsafePath(f"{path} belongs to uid {facts.st_uid}, not to {uid}")
    if facts.st_mode & 0o077:
        raise UnsafePath(f"{path} is open to other users (mode {facts.st_mode & 0o7777:o}, want 700)")
    for parent in path.parents:
        facts = parent.lstat()
        if facts.st_uid not in (0, uid):
            raise UnsafePath(f"{parent}, above {path}, belongs to uid {facts.st_uid}")
        if facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX and stat.S_ISDIR(facts.st_mode):
            raise UnsafePath(f"{parent}, above {path}, can be written by others")


def _in_memory(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return is_in_memory(descriptor)
    finally:
        os.close(descriptor)


def is_in_memory(descriptor: int) -> bool:
    """Whether a file lies on tmpfs, by fstatfs(2)."""
    import ctypes  # only servers need it, once per table that is offered

    libc = ctypes.CDLL(None, use_errno=True)
    result = (ctypes.c_ulong * 64)()  # struct statfs is 120 bytes here; f_type is its first word
    if libc.fstatfs(descriptor, result):
        raise OSError(ctypes.get_errno(), "fstatfs failed")
    return result[0] in _MEMORY_FILESYSTEMS


class SocketLock:
    """The right to serve a socket, held until :meth:`release` or the end of the process.

    Raises:
        AlreadyServing: another server holds it.
        UnsafePath: the socket's directory cannot be used.
    """

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        path = socket_path + ".lock"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise UnsafePath(f"cannot use {path}: {error.strerror}") from error
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise AlreadyServing(f"another timer server is serving {socket_path}") from None
            raise UnsafePath(f"cannot lock {path}: {error.strerror}") from error

    def release(self) -> None:
        """Give the lock up. The lock file stays: removing it would let two servers hold 'the' lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def bind(lock: SocketLock, backlog: int) -> socket.socket:
    """Return the listening socket of the lock's path, replacing a stale file there.

    Raises:
        AlreadyServing: somebody listens there.
        UnsafePath: the path is something else than a socket, or cannot be bound.
    """
    path = lock.socket_path
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise UnsafePath(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UnsafePath(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:  # EAGAIN: alive, with a full backlog
                raise UnsafePath(f"cannot tell who owns {path}: {error.strerror}") from error
    raise AlreadyServing(f"somebody else is listening on {path}")


# -- table files ---------------------------------------------------------------------------------


Kind: TypeAlias = Literal["shared", "socket", "owner"]
"""Who stores into a table: the worker itself, the server for a worker that cannot map memory, or the
server for its owner (``register_timers``)."""


class TableFile(NamedTuple):
    """A table on tmpfs.

    Attributes:
        descriptor: open for reading and writing.
        path: its file, None if it was offered by its worker and has no name here.
        inode: of the file.
        kind: who stores into it.
    """

    descriptor: int
    path: Path | None
    inode: int
    kind: Kind


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


def create_table(directory: Path, worker: WorkerId, pidfd_inode: int, kind: Kind) -> TableFile:
    """Make the table of a worker: pages allocated, header written, first slots ready.

    Raises:
        OSError: no memory or no descriptor; nothing is left behind.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    identity = f"{_boot()}-{worker.pid}-{worker.started}-{pidfd_inode}"
    for serial in itertools.count():
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


def allocate(descriptor: int, slots: int) -> None:
    """Allocate the pages of a table that ``slots`` slots need: a sparse page on a full tmpfs is SIGBUS.

    Raises:
        OSError: ENOSPC, or the descriptor is not the table's any more.
    """
    last = slots - 1
    os.posix_fallocate(descriptor, 0, layout.deadline_offset(last) + 8)
    os.posix_fallocate(descriptor, layout.count_offset(0), 8 * slots)
    os.posix_fallocate(descriptor, layout.label_offset(0), layout.LABEL_SIZE * slots)
    os.posix_fallocate(descriptor, layout.row_offset(0), layout.ROW_SIZE * slots)


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
    return table._replace(path=found.path, kind=found.kind)


def find_tables(directory: Path) -> tuple[list[Found], list[tuple[Path, str]]]:
    """Return the tables in a state directory, and what does not belong there, with the reason.

    Nothing but regular files is opened: a FIFO would block, a link lead elsewhere.

    Raises:
        NewerLayout: a table of a newer layout is there.
    """
    found: list[Found] = []
    strangers: list[tuple[Path, str]] = []
    for path in sorted(directory.iterdir()):
        if path.name == "socket":
            continue
        if not _is_file(path):
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
