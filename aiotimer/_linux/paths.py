"""A resolver of paths: where sockets and state directories lie, by the environment or not, and whether they
can be trusted.

The laws of this file:

* What holds tables lies on tmpfs, checked and not assumed (``table_files.py`` says why). Where there is none,
  the directory is on a disk, and tables have no names in it.
* Directories that we make are 0700, with all that was missing above; nothing is made before what is there was
  found to be safe. One of ours that is too open is repaired; a way through others' hands is refused.
* A command that asks one question of a server, and a worker, import no more than they need: what only servers
  need is imported where it is used.

Layout: ``BASE/`` is the first of ``$XDG_RUNTIME_DIR/aiotimer``, ``/run/aiotimer`` (root),
``/dev/shm/aiotimer-UID`` (and ``.1`` to ``.3``, should somebody else have taken that name) that is safe, lies
on tmpfs and has room; else the first of these, or ``/tmp/aiotimer-UID``, that is safe and has room. The
tables of a socket are in ``BASE/<digest of its path>/``, next to a file ``socket`` that holds the path, by
which ``aiotimer status --all`` finds every server, and to what was recorded (``history.db``, ``evidence/``).
If nobody will serve there again, that file is ``ended``.
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

PRIVATE = "private-"
"""How the name of a private server's socket begins."""

MAX_SOCKET_PATH = 107
"""Bytes in ``sockaddr_un.sun_path`` less the final NUL (unix(7))."""

RUN_VARIABLES = ("AIOTIMER_RUN", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
"""What names the job that a process belongs to; the first of them that is set does."""

RUN_LENGTH = 64
"""Characters of such a name that count."""

NAME_LENGTH = 64
"""Characters of a worker's name that count."""

OBSERVE_VARIABLE = "AIOTIMER_OBSERVE"
"""1: nobody is signalled for this process's timers; their expiry is recorded."""

SOCKET, ENDED, NAMESPACES = NOTES = ("socket", "ended", "namespaces")
"""Files in a state directory. Two hold the path of its socket, while a server may live, and afterwards; the
third says in which mount and pid namespace that path and the workers' pids have a meaning."""

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
    for suffix in ("", ".1", ".2", ".3"):
        yield Path(f"/dev/shm/aiotimer-{uid}{suffix}")  # noqa: S108 - checked for owner and mode before use
    yield Path(f"/tmp/aiotimer-{uid}")  # noqa: S108 - likewise


def base(holding: str = "", *, socket_name: str = "") -> Path:
    """Return the base in which something is, or else the first in which there is room, made if need be.

    Those on tmpfs come first.

    Args:
        holding: the name of what is looked for; it may be on a file system that is full by now.
        socket_name: of a socket that is to be there: its path must not be too long for one.

    Raises:
        UnsafePath: none can be used.
    """
    candidates, reasons = list(bases()), {}
    for candidate in candidates if holding else ():
        if os.path.lexists(candidate / holding):
            try:
                check_socket_path(str(candidate / socket_name))
                _private_directory(candidate)
            except (OSError, UnsafePath) as error:
                reasons[candidate] = _about(candidate, error)
            else:
                return candidate
    for wanted in (True, False):
        for candidate in candidates:
            try:
                if in_memory(candidate.parent) is wanted:
                    check_socket_path(str(candidate / socket_name))
                    _private_directory(candidate)
                    _check_room(candidate)
                    return candidate
            except (OSError, UnsafePath) as error:
                reasons[candidate] = _about(candidate, error)
    raise UnsafePath("no directory for the socket and the timer tables: " + "; ".join(reasons.values()))


def _about(path: Path, error: Exception) -> str:
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _check_room(directory: Path) -> None:
    """Raise OSError if nothing can be written in a directory: it is read-only, or full."""
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, 4096)
    finally:
        os.close(descriptor)


def is_private(socket_path: str) -> bool:
    """Whether it is the path of a private server's socket."""
    directory, name = os.path.split(socket_path)
    return name.startswith(PRIVATE) and any(directory == str(base) for base in bases())


def default_socket() -> str:
    """Return the per-user default socket path: ``aiotimer.sock`` in :func:`base`."""
    name = "aiotimer.sock"
    return str(base(name, socket_name=name) / name)


def state_directory(socket_path: str) -> Path:
    """Return the directory for the tables of a socket, made and checked.

    Raises:
        UnsafePath: it cannot be trusted.
    """
    try:
        name = _state_name(socket_path)
        directory = base(name) / name
    except OSError as error:
        raise UnsafePath(f"cannot use {socket_path}.lock: {error.strerror}") from error
    make_state_directory(directory, socket_path)
    return directory


def make_state_directory(directory: Path, socket_path: str) -> None:
    """Make the directory for the tables of a socket, or check it.

    Raises:
        UnsafePath: it cannot be trusted.
    """
    try:
        _private_directory(directory)
        _leave_note(directory / SOCKET, os.fsencode(socket_path))
        _leave_note(directory / NAMESPACES, _namespaces())
        (directory / ENDED).unlink(missing_ok=True)
    except OSError as error:
        raise UnsafePath(f"{directory}: {error.strerror}") from error


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


def _read_note(note: str | Path) -> bytes | None:
    if not is_regular_file(note):
        return None
    try:
        with open(note, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return None  # it went away between the two, or it is not ours to read


def is_regular_file(path: str | Path) -> bool:
    """Whether it is a regular file itself: no link to one, and nothing that blocks whoever opens it."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
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


def socket_of(directory: str | Path) -> str | None:
    """Return the socket path that a state directory is about; None if nothing says so."""
    text = _read_note(f"{directory}/{SOCKET}") or _read_note(f"{directory}/{ENDED}")
    return None if text is None else os.fsdecode(text)


def state_directories(socket_path: str | None = None) -> list[Path]:
    """Return the state directories of this user that are there: of living servers, and of others.

    Every server that starts asks, and there may be thousands of others: a ``Path`` is made of those found.

    Args:
        socket_path: only those of sockets with that path, in any mount namespace.
    """
    return [
        candidate / name
        for candidate in sorted(bases())
        if _is_ours(candidate)
        for name, directory in _inside(candidate)
        if _is_ours(directory) and (socket_path is None or socket_of(directory) == socket_path)
    ]


def _inside(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the path of everything in a directory, by name; of nothing if it cannot be read."""
    try:
        names = os.listdir(directory)
    except OSError:
        return  # somebody cleaned up under us
    for name in sorted(names):
        yield name, f"{directory}/{name}"


def own_state_directories(socket_path: str) -> list[Path]:
    """Return the state directories of the very socket that is meant by a path here, and of no other."""
    try:
        name = _state_name(socket_path)
    except OSError:
        return []
    return [directory for directory in state_directories(socket_path) if directory.name == name]


def take_over_tables(directory: Path, socket_path: str) -> None:
    """Move tables into a socket's state directory that are in others of its path, and of these namespaces.

    There the path means the same place: somebody has removed the lock file since. Whoever calls this holds
    the one that is there now.
    """
    for other in state_directories(socket_path):
        if other == directory or not can_be_judged(other):
            continue
        for path in other.iterdir():
            there = directory / path.name
            if path.name not in NOTES and not path.name.startswith(RECORDED) and not os.path.lexists(there):
                try:
                    path.rename(there)
                except OSError:
                    pass  # it is on another file system
        remove_if_empty(other)


def can_be_judged(directory: Path) -> bool:
    """Whether the path and the pids in a state directory mean here what they meant to who wrote them."""
    return _read_note(directory / NAMESPACES) in (None, _namespaces())


def _is_ours(path: str | Path) -> bool:
    """Whether it is a directory itself, and nobody else can have put something there."""
    try:
        facts = os.lstat(path)
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


def _state_name(socket_path: str) -> str:
    """Return the name of the state directory of a socket.

    A path is a name, which means another file in another mount namespace. So the directory is that of the
    lock *file* by which a server has the right to serve there, which is made if need be; and of a pid
    namespace, since it is full of pids.

    Raises:
        OSError: there can be no such file.
    """
    import hashlib  # OpenSSL comes with it

    lock = socket_path + ".lock"
    device = inode = 0
    if os.path.isdir(os.path.dirname(lock)):
        try:
            facts = os.lstat(lock)  # never opened: to close it again would give up this process's lock
        except FileNotFoundError:
            os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            facts = os.lstat(lock)
        device, inode = facts.st_dev, facts.st_ino
    identity = f"{socket_path}\0{device}:{inode}\0{_namespaces().split()[1].decode()}"
    return hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]


def _namespaces() -> bytes:
    from .procfs import namespace

    return f"{namespace('mnt')} {namespace('pid')}".encode()


def _private_directory(path: Path) -> None:
    """Make a directory 0700, or check one that exists, and every component above it."""
    check_above(path)
    make_directories(path)
    uid = os.geteuid()
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise UnsafePath(f"{path} is not a directory (a symbolic link will not do)")
    if facts.st_uid != uid:
        raise UnsafePath(f"{path} belongs to uid {facts.st_uid}, not to {uid}")
    if facts.st_mode & 0o077:
        path.chmod(0o700)


def make_directories(path: Path) -> None:
    """Make a directory, if it is not there, and what is missing above it: all of it for this user alone."""
    missing = []
    for directory in (path, *path.parents):
        if os.path.lexists(directory):
            break
        missing.append(directory)
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            pass  # somebody else needs it, too


def check_above(path: Path) -> None:
    """Check that nobody but this user and root can put something else in the place of a path.

    Raises:
        UnsafePath: somebody can.
    """
    for parent in path.parents:
        try:
            facts = parent.lstat()
        except FileNotFoundError:
            continue  # it is going to be made
        if facts.st_uid not in (0, os.geteuid()) and not _is_unmapped_root(facts.st_uid):
            raise UnsafePath(f"{parent}, above {path}, belongs to uid {facts.st_uid}")
        if facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX and stat.S_ISDIR(facts.st_mode):
            raise UnsafePath(f"{parent}, above {path}, can be written by others")


def _is_unmapped_root(uid: int) -> bool:
    """Whether a user may be root, whom this user namespace does not map: nobody in here is that user."""
    from .procfs import maps_root

    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            if uid != int(file.read()):
                return False
    except (OSError, ValueError):
        return False
    return not maps_root()


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
        check_above(way)


def in_memory(path: Path) -> bool:
    """Whether a directory lies on tmpfs."""
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
