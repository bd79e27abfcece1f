"""A cleanup: of a server that nobody will start again only what it found out about expiries stays.

The laws of this file:

* Private servers (of ``aiotimer run``, of ``configure()``) leave no socket, no lock and no tables. If a timer
  expired, their history and evidence stay, so that ``aiotimer why`` works at 3 a.m.
* At most :data:`KEEP` such directories stay per user; the oldest go.
* What others left is touched only if its server cannot come back: its owner is gone and no worker of it
  lives, or there is no place for its socket any more. POSIX locks are the process's: one that serves a
  private socket itself must not remove what is orphaned.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from .._linux import paths, table_files
from .._linux.process import pin
from .._linux.procfs import is_taken
from ..errors import HistoryUnreadable, ServerError
from . import listener

KEEP = 20
"""Directories of ended servers that are kept per user."""

_PRIVATE = re.compile(r"(?:run|private)-(\d{1,9})\b.*\.sock", re.ASCII)
"""The sockets of private servers, in the runtime directory, and the pid of their owner."""


def clean_up(socket_path: str) -> None:
    """Remove what belongs to a private socket that nobody will serve again, but what was found out."""
    for directory in paths.state_directories(socket_path):
        _keep_records_only(directory)
    for file in (socket_path, socket_path + ".lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
    remove_orphaned()


def remove_orphaned() -> None:
    """Remove what servers that died left and nobody needs, and what was kept for long enough."""
    for directory in paths.state_directories():
        if (directory / paths.SOCKET).exists():
            _remove_if_orphaned(directory)
    ended = [d for d in paths.state_directories() if (d / paths.ENDED).exists()]
    ended.sort(key=_ended_at)
    for directory in ended[: max(0, len(ended) - KEEP)]:
        paths.remove_directory(directory)


def tells_of_expiries(directory: Path) -> bool:
    """Whether a state directory has something to say about an expiry."""
    if not any((directory / name).exists() for name in paths.RECORDED):
        return False
    with contextlib.suppress(OSError):
        # Each expiry has a directory that begins with its date; what is unfinished begins with a dot.
        if any(name[:1].isdigit() for name in os.listdir(directory / "evidence")):
            return True
    from . import history  # only now: it takes longer to import than most commands of `aiotimer run` take

    try:
        return bool(history.expiries(directory, limit=1))
    except HistoryUnreadable:
        return False


def _keep_records_only(directory: Path) -> None:
    """Keep what a directory tells, and remove everything else."""
    if not tells_of_expiries(directory):
        paths.remove_directory(directory)
        return
    for path in directory.iterdir():
        if path.name not in paths.NOTES and not path.name.startswith(paths.RECORDED):
            paths.remove(path)
    with contextlib.suppress(OSError):
        paths.end(directory)


def _remove_if_orphaned(directory: Path) -> None:
    path = paths.socket_of(directory)
    if not path or _has_living_workers(directory):
        return
    parent, name = os.path.split(path)
    if not os.path.isdir(parent):  # nobody can listen there
        if not tells_of_expiries(directory):
            paths.remove_directory(directory)
        return
    private = _PRIVATE.match(name)
    if private is None or directory.parent != Path(parent) or is_taken(private[1]):
        return  # one that dies is started again, and must not find its lock taken by us at that moment
    try:
        lock = listener.SocketLock(path)
    except ServerError:
        return  # it is about to end
    try:
        _keep_records_only(directory)
        for file in (path, path + ".lock"):
            with contextlib.suppress(OSError):
                os.unlink(file)
    finally:
        lock.release()


def _has_living_workers(directory: Path) -> bool:
    try:
        found, _ = table_files.find_tables(directory)
    except (ServerError, OSError):
        return True  # of a newer aiotimer, perhaps: not ours to judge
    return any(entry.of_this_boot and _lives(entry) for entry in found)


def _lives(entry: table_files.Found) -> bool:
    try:
        worker, pidfd = pin(entry.worker.pid)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    os.close(pidfd)
    return worker == entry.worker


def _ended_at(directory: Path) -> float:
    try:
        return (directory / paths.ENDED).stat().st_mtime
    except OSError:
        return 0.0
