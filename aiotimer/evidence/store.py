"""A store of evidence, with one directory for each expiry and each roll call, for people and programs.

The laws of this file:

* A directory is whole or not there: it is filled under another name and renamed. A file in it is replaced,
  never rewritten. A crash leaves nothing that a reader trips over, and its remains are removed later.
* It is capped, in number and in size: the oldest go; but first those of a worker that has more than a tenth
  of all, or those of runs if these are more. Nothing is removed that was not made here.
* A directory in which others can write is refused, and what lies in one is not believed.
* A file system that is full or read-only costs the evidence and one line in the log, nothing else.

It blocks: only the history's thread calls it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._linux.paths import check_ours, make_directories
from .._linux.procfs import is_taken
from ..errors import UnsafePath
from ..events import log, shown
from .record import Record

KEEP = 100
"""Expiries that are kept."""

SIZE = 16 * 1024 * 1024
"""Bytes that all of them take, at most."""

JSON_BYTES = 512 * 1024
TEXT_BYTES = 240 * 1024
"""What one expiry takes at most: its record and two texts, less than 1 MiB in all."""

RUN_BYTES = 2 * 1024 * 1024
"""What the record of a run takes, at most about so much; each of its members has the same share."""

RECORD, STACKS, TASKS, RUN = "expiry.json", "stacks.txt", "tasks.txt", "run.json"

_OF_RUN = "run"
"""What the name of a run's directory has in place of a pid."""

_NAME = re.compile(r"(\d{8}T\d{6}\w*)-(\d+|run)-(\d{1,18})", re.ASCII)
_LEAST_OF_MEMBER = 2048
_UNFINISHED = re.compile(r"\.new-(\d{1,9})-.*", re.ASCII)
_ITEMS = 1000
"""Items of any list that are kept. Turning one into JSON holds the GIL, which the server's loop needs."""


class Store:
    """A directory of evidence.

    Args:
        directory: made when something is first saved.
        keep: how many expiries are kept.
        size: how many bytes they may take together.

    Raises:
        UnsafePath: others can write there.
    """

    def __init__(self, directory: Path, keep: int = KEEP, size: int = SIZE) -> None:
        self.directory = directory.absolute()
        check_ours(self.directory)
        self._keep = keep
        self._size = size
        self._saves = 0
        self._sizes: dict[Path, int] = {}  # of what is kept, the oldest first
        self._told = False

    def check_writable(self) -> None:
        """See that evidence can be kept there, as whoever has named the directory expects.

        Raises:
            UnsafePath: it cannot be; the message says why, and what to do.
        """
        probe = self.directory / f".new-{os.getpid()}"
        try:
            make_directories(self.directory)
            probe.mkdir(mode=0o700, exist_ok=True)
            probe.rmdir()
        except OSError as error:
            raise UnsafePath(
                f"no evidence can be kept in {shown(str(self.directory))}: {error.strerror}; "
                "name a directory that this server may write"
            ) from error

    def path_of(self, record_id: str) -> Path:
        """Return the directory of an expiry, whether or not it is there.

        Raises:
            ValueError: that is not a record's id.
        """
        if not _NAME.fullmatch(record_id):
            raise ValueError(f"not the id of an expiry: {record_id!r}")
        return self.directory / record_id

    def save(self, record: Record, stacks_text: str = "", tasks_text: str = "") -> bool:
        """Save what is known of an expiry, or replace what was.

        Args:
            record: shortened if it is long.
            stacks_text, tasks_text: cut if they are long; "" when they have been given before.

        Returns:
            Whether it could be saved; why not is logged once, until it can be again.
        """
        path = self.path_of(record.id)
        texts = {STACKS: stacks_text, TASKS: tasks_text}
        files = {RECORD: as_json(record.as_json(), JSON_BYTES).encode()} | {
            name: cut(text).encode(errors="backslashreplace") for name, text in texts.items()
        }
        return self._save(path, files)

    def save_run(self, record: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> bool:
        """Save the record of a roll call, or replace it.

        Args:
            record: all of it but its ``members``; shortened if it is long, as each of them is.
            members: see ``roll_call.Member.as_json``.

        Returns:
            Whether it could be saved, as :meth:`save`.
        """
        share = max(_LEAST_OF_MEMBER, RUN_BYTES // max(1, len(members)))
        # One by one: to turn megabytes into JSON at once would keep the server's loop from the GIL.
        texts = [_member_as_json(member, share) for member in members]
        head = as_json(record, JSON_BYTES)
        text = f'{head[:-1]}, "members": [{", ".join(texts)}]}}'
        return self._save(self.path_of(str(record["id"])), {RUN: text.encode()})

    def _save(self, path: Path, files: dict[str, bytes]) -> bool:
        try:
            self._write(path, files)
        except (OSError, UnsafePath) as error:
            if not self._told:
                reason = getattr(error, "strerror", None) or str(error)
                log.error("no evidence can be kept in %s: %s", shown(str(self.directory)), reason)
            self._told = True
            return False
        self._told = False
        return True

    def _write(self, path: Path, files: dict[str, bytes]) -> None:
        make_directories(self.directory)
        check_ours(self.directory)
        if self._saves % self._keep == 0:  # others may share the directory, or clean it up
            self._remove_unfinished()
            self._sizes = {kept: _size_of(kept) for kept in _entries(self.directory)}
        self._saves += 1
        size = max(sum(map(len, files.values())), self._sizes.get(path, 0))
        self._make_room(path, size)
        if path.is_dir():
            for name, data in files.items():
                if data:
                    _replace(path / name, data)
        else:
            self._create_whole(path, files)
        self._sizes[path] = size

    def _create_whole(self, path: Path, files: dict[str, bytes]) -> None:
        unfinished = self.directory / f".new-{os.getpid()}-{path.name}"
        shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier process with this pid
        try:
            unfinished.mkdir(mode=0o700)
            for name, data in files.items():
                _create(unfinished / name, data)
            unfinished.rename(path)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _make_room(self, path: Path, size: int) -> None:
        """Remove the oldest until one of that size fits beside the others."""
        others = [kept for kept in self._sizes if kept != path]
        size += sum(self._sizes[kept] for kept in others)
        while others and (len(others) >= self._keep or size > self._size):
            oldest = self._first_to_go(others)
            others.remove(oldest)
            size -= self._sizes.pop(oldest)
            shutil.rmtree(oldest, ignore_errors=True)

    def _first_to_go(self, kept: list[Path]) -> Path:
        """Return the oldest; of the worker that has the most, if that crowds out others."""
        ((whose, count),) = Counter(map(_pid_of, kept)).most_common(1)
        crowds = count > max(1, self._keep // 10)
        return next(path for path in kept if not crowds or _pid_of(path) == whose)

    def _remove_unfinished(self) -> None:
        """Remove what processes that are gone did not finish."""
        for path in list(self.directory.iterdir()):
            match = _UNFINISHED.fullmatch(path.name)
            if match and not is_taken(match[1]):
                shutil.rmtree(path, ignore_errors=True)


def entries(directory: Path) -> list[Path]:
    """Return the directories of expiries in a store, the oldest first; none if there is no store."""
    return [path for path in _entries(directory) if _pid_of(path) != _OF_RUN]


def runs(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of roll calls in a store, the newest first; what is no record is passed over."""
    for path in reversed(_entries(directory)):
        if _pid_of(path) == _OF_RUN:
            try:
                record = _read(path, RUN, 2 * RUN_BYTES + JSON_BYTES)
            except (OSError, ValueError, UnsafePath):
                continue
            yield record


def _entries(directory: Path) -> list[Path]:
    """Return the directories of expiries and of runs, the oldest first."""
    found: list[tuple[str, int, int, Path]] = []
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if match := _NAME.fullmatch(path.name):
                facts = path.lstat()
                if stat.S_ISDIR(facts.st_mode):  # of one second: by their last change, and then their number
                    found.append((match[1], facts.st_mtime_ns, int(match[3]), path))
    return [path for *_, path in sorted(found)]


def load(directory: Path) -> Record:
    """Return the record in an expiry's directory.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a record.
        UnsafePath: somebody else may have written it.
    """
    return Record.from_json(_read(directory, RECORD, 2 * JSON_BYTES))


def _read(directory: Path, name: str, most: int) -> dict[str, Any]:
    """Return the object in a file of an entry. Raises as :func:`load`."""
    check_ours(directory)
    descriptor = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        record = json.loads(file.read(most))
    if not isinstance(record, dict):
        raise ValueError(f"{directory / name} holds no object")
    return record


def cut(text: str, limit: int = TEXT_BYTES) -> str:
    """Return a text that takes at most so many bytes, with a line that says what is missing."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= limit:
        return text
    last = f"\n... {len(data)} bytes in all: cut here\n"
    return data[: limit - len(last)].decode(errors="ignore") + last


def as_json(value: Mapping[str, Any], limit: int) -> str:
    """Return an object as JSON of at most about so many bytes: its longest lists are shortened.

    What JSON has no word for becomes null (a number that is not finite) or a string.
    """
    reduced = {key: _plain(inner) for key, inner in value.items()}
    while len(text := json.dumps(reduced)) > limit:
        lists = (key for key, inner in reduced.items() if isinstance(inner, list))
        sizes = {key: len(json.dumps(reduced[key])) for key in lists}
        longest = max(sizes, key=sizes.__getitem__, default="")
        if longest and sizes[longest] > limit // 16:
            reduced[longest] = reduced[longest][: len(reduced[longest]) // 2]
        elif reduced.get("process"):
            reduced["process"] = {}
        else:
            reduced = {key: _short(value, limit // 32) for key, value in reduced.items()}
            return json.dumps(reduced)
    return text


def _member_as_json(member: Mapping[str, Any], limit: int) -> str:
    """Return a member of a run as JSON of at most about so many bytes; its evidence is what is long."""
    rest = as_json({key: value for key, value in member.items() if key != "evidence"}, limit // 4)
    evidence = as_json(member.get("evidence") or {}, limit - len(rest))
    return f'{rest[:-1]}, "evidence": {evidence}}}'


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value[:_ITEMS]]
    return str(value)


def _short(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return value[: limit // 6]  # six bytes for a character, at worst
    if isinstance(value, (list, dict)) and len(json.dumps(value)) > limit:
        return type(value)()
    return value


def _create(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)


def _replace(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        unfinished.unlink(missing_ok=True)
        _create(unfinished, data)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _pid_of(directory: Path) -> str:
    return directory.name.split("-")[1]


def _size_of(directory: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            total += path.lstat().st_size
    return total
