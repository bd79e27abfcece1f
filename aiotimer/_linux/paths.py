"""A resolver of paths: where sockets and state directories lie, by the environment or not, and whether they
can be trusted.

The laws of this file:

* What holds tables lies on tmpfs, checked and not assumed (``table_files.py`` says why).
* Directories that we make are 0700 and owned by us; a path through somebody else's hands is refused, not
  repaired.
* A command that asks one question of a server, and a worker, import no more than they need: what only servers
  need is imported where it is used.

Layout: ``BASE/`` is the first of ``$XDG_RUNTIME_DIR/aiotimer``, ``/run/aiotimer`` (root),
``/dev/shm/aiotimer-UID`` that is on tmpfs; the tables of a socket are in ``BASE/<digest of its path>/``,
next to a file ``socket`` that holds the path, by which ``aiotimer status --all`` finds every server, and to
what was recorded (``history.db``, ``evidence/``). If nobody will serve there again, that file is ``ended``.
"""

from __future__ import annotations

import os
import stat

from ..errors import UnsafePath

TYPE_CHECKING = False  # as in the package's __init__
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET_VARIABLE = "AIOTIMER_SOCKET"
"""The path of the socket of the server that watches this process and those that it starts."""

STARTING_VARIABLE = "AIOTIMER_STARTING"
"""Set by ``aiotimer run`` for its command, see ``client/launch``."""

MAX_SOCKET_PATH = 107
"""Bytes in ``sockaddr_un.sun_path`` less the final NUL (unix(7))."""

RUN_VARIABLES = ("AIOTIMER_RUN", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
"""What names the job that a process belongs to; the first of them that is set does."""

RUN_LENGTH = 64
"""Characters of such a name that count."""

OBSERVE_VARIABLE = "AIOTIMER_OBSERVE"
"""1: nobody is signalled for this process's timers; their expiry is recorded."""

SOCKET, ENDED = NOTES = ("socket", "ended")
"""Files in a state directory that hold the path of its socket: while a server may live, and afterwards."""

RECORDED = ("history.db", "evidence")
"""How files in a state directory begin that hold what was recorded."""

_MEMORY_FILESYSTEMS = frozenset({0x01021994, 0x858458F6})  # tmpfs, ramfs (statfs(2))


def observes() -> bool:
    """Whether the environment says that nobody is to be signalled for this process's timers."""
    return os.environ.get(OBSERVE_VARIABLE) == "1"


def run_name() -> str:
    """Return what the environment says of the job that this process belongs to, "" if nothing."""
    name = next(filter(None, map(os.environ.get, RUN_VARIABLES)), "")
    return name.encode(errors="replace").decode()[:RUN_LENGTH]  # what is no text cannot be sent


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


def bases() -> Iterator[Path]:
    """Yield the directories, best first, in which this user's runtime files may lie."""
    from pathlib import Path

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


def state_directory(socket_path: str) -> Path:
    """Return the directory for the tables of a socket, made and checked.

    Raises:
        UnsafePath: it cannot be trusted.
    """
    directory = base() / _digest(socket_path)
    try:
        _private_directory(directory)
        _leave_note(directory / SOCKET, os.fsencode(socket_path))
        (directory / ENDED).unlink(missing_ok=True)
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
        return note.read_bytes() if is_regular_file(note) else None
    except OSError:
        return None  # it went away between the two, or it is not ours to read


def is_regular_file(path: Path) -> bool:
    """Whether it is a regular file itself: no link to one, and nothing that blocks whoever opens it."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def remove_if_empty(directory: Path) -> None:
    """Remove a state directory that holds nothing: no tables, and no history either."""
    if not directory.is_dir():
        return  # somebody cleaned up under us
    if all(path.name in NOTES for path in directory.iterdir()):
        remove_directory(directory)


def remove_directory(directory: Path) -> None:
    """Remove a directory and what is in it; what cannot be removed stays."""
    import shutil  # archives and their compression come with it

    shutil.rmtree(directory, ignore_errors=True)


def known_sockets() -> list[str]:
    """Return the socket path of every state directory of this user whose server may live."""
    notes = [_read_note(directory / SOCKET) for directory in state_directories()]
    return sorted({os.fsdecode(text) for text in notes if text is not None})


def socket_of(directory: Path) -> str | None:
    """Return the socket path that a state directory is about; None if nothing says so."""
    text = _read_note(directory / SOCKET) or _read_note(directory / ENDED)
    return None if text is None else os.fsdecode(text)


def state_directories(socket_path: str | None = None) -> list[Path]:
    """Return the state directories of this user that are there: of living servers, and of others.

    Args:
        socket_path: only what belongs to that socket.
    """
    pattern = "*" if socket_path is None else _digest(socket_path)
    return sorted(
        directory
        for candidate in bases()
        if _is_ours(candidate)
        for directory in candidate.glob(pattern)
        if _is_ours(directory)
    )


def _is_ours(path: Path) -> bool:
    """Whether it is a directory itself, and nobody else can have put something there."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def end(directory: Path) -> None:
    """Mark a state directory as one whose server has ended for good: it is kept for what it says.

    Raises:
        OSError: it cannot be marked.
    """
    text = _read_note(directory / SOCKET)
    _leave_note(directory / ENDED, text or b"")
    (directory / SOCKET).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, if it can be: what stays is no reason to stop."""
    try:
        path.unlink()
    except OSError:
        pass


def _digest(socket_path: str) -> str:
    import hashlib  # OpenSSL comes with it

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
    _check_above(path)


def _check_above(path: Path) -> None:
    for parent in path.parents:
        try:
            facts = parent.lstat()
        except FileNotFoundError:
            continue  # it is going to be made
        if facts.st_uid not in (0, os.geteuid()):
            raise UnsafePath(f"{parent}, above {path}, belongs to uid {facts.st_uid}")
        if facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX and stat.S_ISDIR(facts.st_mode):
            raise UnsafePath(f"{parent}, above {path}, can be written by others")


def check_ours(path: Path) -> None:
    """Check that only this user can put something into a directory, whether or not it is there yet.

    Raises:
        UnsafePath: others can, or they can put something else in its place.
    """
    directory = path.resolve()
    if directory.exists():
        facts = directory.stat()
        if facts.st_uid != os.geteuid():
            raise UnsafePath(f"{path} belongs to uid {facts.st_uid}, not to {os.geteuid()}")
        if facts.st_mode & 0o022:
            raise UnsafePath(f"{path} can be written by others (mode {facts.st_mode & 0o7777:o}; chmod go-w)")
    for way in (path, directory):  # and the links on the way
        _check_above(way)


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
