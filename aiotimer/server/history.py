"""The history: every event, every expiry, and how long scopes took, in ``history.db`` (SQLite).

The laws of this file:

* The server's loop never waits for it and gets no error from it: one daemon thread writes, from a bounded
  queue. What does not fit is dropped, counted and logged; a database that cannot be written costs one line.
* One writer, any number of readers, in write-ahead mode: neither holds the other up.
* A process killed at any moment leaves a database that opens: SQLite's journal sees to that, and tmpfs
  outlives the process. One that is corrupt all the same is moved aside, with a line in the log.
* It is capped, in events, expiries and scopes: the oldest go; but first those of a worker that has more than
  a tenth of all. What is told about one worker never crowds out another's.
* Nothing is pending for ever: what an earlier server has not seen the end of is said to be unknown.
* What happened goes before how long scopes took, in the queue and if there is no room in it.
* A record is the store's, whole, in a directory of its own. A row has only a summary of it, which names the
  directory and outlives it; and the record itself if no directory could be made.
* ``sqlite3`` is imported by the thread that writes, never by a worker. For readers see ``recorded.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.durations import MOST, Durations
from .._linux.paths import make_directories
from ..events import log, shown
from ..evidence.record import Record
from ..evidence.store import Store, as_json, cut
from .recorded import BUSY_WITHIN, DATABASE, EVENTS, EXPIRIES, SCOPES, object_of
from .sinks import CAPACITY, Backlog, Rank, rank_of

if TYPE_CHECKING:
    import sqlite3

RECORD_BYTES = 32 * 1024
"""What one expiry takes in the database, at most."""

EVENT_BYTES = 4 * 1024

UNKNOWN = "its server ended before it was known what became of it"

_VERSION = 2

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS expiries (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, time REAL, pid INTEGER, scope TEXT, outcome TEXT,
    evidence TEXT, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS expiries_of_pid ON expiries (pid, number);
CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, time REAL, pid INTEGER, event TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS durations (
    number INTEGER PRIMARY KEY, program TEXT NOT NULL, scope TEXT NOT NULL, count INTEGER NOT NULL,
    limit_s REAL, durations TEXT NOT NULL, UNIQUE (program, scope));
{of_before}
PRAGMA user_version = 2;
COMMIT;
"""

_OF_VERSION_1 = """
INSERT INTO durations SELECT number, '', scope, count, limit_s, durations FROM scopes;
DROP TABLE scopes;
"""
"""It did not know of which program a scope was."""


class History(Backlog[Callable[[], object]]):
    """Writes the history of one server: a queue of what is to be written.

    Nothing is made before there is something to write.

    Args:
        directory: of the server's state; ``history.db`` is in it.
        evidence_dir: where records and their texts go; by default ``evidence/`` beside the database.
        capacity: how many things to write may wait.
    """

    def __init__(
        self, directory: Path, evidence_dir: str | os.PathLike[str] | None = None, capacity: int = CAPACITY
    ) -> None:
        self.store = Store(directory / "evidence" if evidence_dir is None else Path(evidence_dir))
        if evidence_dir is not None:
            self.store.check_writable()
        self._writer = _Writer(directory / DATABASE)
        super().__init__("history", lambda write: write(), finish=self._writer.close, capacity=capacity)

    def path_of(self, record_id: str) -> str:
        """Return the directory where a record is going to be kept."""
        return str(self.store.path_of(record_id))

    def record(self, record: Record, stacks_text: str = "", tasks_text: str = "") -> None:
        """Write what is known of an expiry; again, with the same id, when more is.

        Args:
            record: what it holds must not be changed afterwards.
            stacks_text, tasks_text: see :meth:`Store.save`.
        """
        texts = cut(stacks_text), cut(tasks_text)  # what waits in the queue is bounded
        rank = Rank.EVENT if record.outcome == "pending" else Rank.OUTCOME
        self.put(partial(self._record, record, *texts), record.pid, rank)

    def run(self, record: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> None:
        """Keep the record of a roll call, or replace it. Its row is that of its event.

        Args:
            record, members: see :meth:`Store.save_run`; what they hold must not be changed afterwards.
        """
        self.put(partial(self.store.save_run, record, members), rank=Rank.OUTCOME)

    def event(self, event: Mapping[str, Any]) -> None:
        """Write an event, as :meth:`Event.as_json` returns it."""
        action = partial(self._writer.event, dict(event))
        self.put(partial(self._writer.attempt, action), event.get("pid"), rank_of(event["event"]))

    def durations(self, scopes: Sequence[Mapping[str, Any]]) -> None:
        """Add what a worker has done in scopes to what is known: once per worker, when it is gone.

        Args:
            scopes: objects as :func:`scopes` returns them. They are written all at once.
        """
        action = partial(self._writer.durations, scopes)
        self.put(partial(self._writer.attempt, action), rank=Rank.DETAIL)

    def abandon(self) -> None:
        """In a forked child: the thread and the database are the parent's."""
        super().abandon()
        _abandoned.append(self._writer)  # SQLite must not close in a child what its parent opened

    def _record(self, record: Record, stacks_text: str, tasks_text: str) -> None:
        record = record._replace(evidence=self.path_of(record.id))
        kept = self.store.save(record, stacks_text, tasks_text)
        row = record.summary() if kept else record._replace(evidence="")
        self._writer.attempt(partial(self._writer.expiry, row))


_abandoned: list[_Writer] = []


class _Writer:
    """The database, as the writing thread sees it.

    Args:
        path: of the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._rows: dict[str, Counter[int | None]] = {}  # of each table, by worker
        self._pending_is_known = False  # what is pending is this server's
        self._told = False
        self._newer = False

    def attempt(self, action: Callable[[], object]) -> None:
        """Do something with the database; what is wrong with it is said once, until it is right again."""
        import sqlite3

        for moved_aside in (False, True):
            if self._newer:
                return
            try:
                action()
            except (sqlite3.Error, OSError) as error:
                self.close()
                if _is_corrupt(error) and not moved_aside:
                    self._move_aside(error)
                    continue
                if not self._told:
                    log.error("no history can be written to %s: %s", shown(str(self._path)), error)
                self._told = True
            else:
                self._told = False
            return

    def close(self) -> None:
        """Close the database; it is opened again when needed."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(Exception):  # it was of no use any more
                connection.close()

    def event(self, event: Mapping[str, Any]) -> None:
        """Add an event."""
        text = as_json({key: _shortened(value) for key, value in event.items()}, EVENT_BYTES)
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO events (time, pid, event) VALUES (?, ?, ?)",
                (event.get("time"), event.get("pid"), text),
            )
            self._make_room(connection, "events", EVENTS, event.get("pid"))

    def expiry(self, record: Record) -> None:
        """Add an expiry, or replace what was known of it."""
        text = as_json(record.as_json(), RECORD_BYTES)
        words = [_text(word) for word in (record.scope, record.outcome, record.evidence)]
        with self._transaction() as connection:
            updated = connection.execute(
                "UPDATE expiries SET scope = ?, outcome = ?, evidence = ?, record = ? WHERE id = ?",
                (*words, text, record.id),
            )
            if not updated.rowcount:
                connection.execute(
                    "INSERT INTO expiries (scope, outcome, evidence, record, id, time, pid)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*words, text, record.id, record.time, record.pid),
                )
                self._make_room(connection, "expiries", EXPIRIES, record.pid)

    def durations(self, scopes: Sequence[Mapping[str, Any]]) -> None:
        """Add durations to those of scopes."""
        with self._transaction() as connection:
            for found in scopes:
                _add(connection, found)
            connection.execute(
                "DELETE FROM durations WHERE number <="
                " (SELECT number FROM durations ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (SCOPES,),
            )

    def _make_room(self, connection: sqlite3.Connection, table: str, most: int, pid: int | None) -> None:
        """A row about a worker has been added: if there are too many, the oldest goes."""
        rows = self._rows[table]
        rows[pid] += 1
        while rows.total() > most:
            greatest = max(rows, key=rows.__getitem__)
            crowds = rows[greatest] > max(1, most // 10)
            query = f"SELECT number, pid FROM {table}{' WHERE pid IS ?' * crowds} ORDER BY number LIMIT 1"  # noqa: S608
            number, whose = connection.execute(query, (greatest,) * crowds).fetchone() or (0, greatest)
            connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))  # noqa: S608
            rows[whose] -= 1
            if not rows[whose]:
                del rows[whose]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._opened()
        with connection:  # commits, or rolls back
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _opened(self) -> sqlite3.Connection:
        """Return the open database: the one that is there now, if somebody has cleaned up under us."""
        if self._connection is not None and _inode(self._path) == self._inode:
            return self._connection
        self.close()
        make_directories(self._path.parent)
        with contextlib.suppress(FileExistsError):  # SQLite would make it with the process's umask
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._connection = connection = self._connect()
        self._inode = _inode(self._path)
        if not self._pending_is_known:
            self._end_pending(connection)
        for table in ("events", "expiries"):
            by_worker = f"SELECT pid, COUNT(*) FROM {table} GROUP BY pid"  # noqa: S608 - constants
            self._rows[table] = Counter(dict(connection.execute(by_worker).fetchall()))
        return self._connection

    def _end_pending(self, connection: sqlite3.Connection) -> None:
        """Whoever dealt with what is pending has ended."""
        pending = "SELECT number, record FROM expiries WHERE outcome = 'pending'"
        for number, text in connection.execute(pending).fetchall():
            record = Record.from_json(object_of(text))._replace(outcome="unknown", detail=UNKNOWN)
            connection.execute(
                "UPDATE expiries SET outcome = ?, record = ? WHERE number = ?",
                (record.outcome, as_json(record.as_json(), RECORD_BYTES), number),
            )
        self._pending_is_known = True

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        connection = sqlite3.connect(self._path, timeout=BUSY_WITHIN, isolation_level=None)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                self._newer = True
                raise sqlite3.OperationalError("it is of a newer aiotimer")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")  # tmpfs: there is no disk to wait for
            connection.execute("PRAGMA wal_autocheckpoint = 100")
            connection.execute("PRAGMA journal_size_limit = 1048576")
            if version < _VERSION:
                connection.executescript(_SCHEMA.format(of_before=_OF_VERSION_1 if version == 1 else ""))
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, error: Exception) -> None:
        aside = self._path.with_name(DATABASE + ".corrupt")
        log.error("%s is corrupt (%s): moved to %s", shown(str(self._path)), error, aside.name)
        with contextlib.suppress(OSError):
            self._path.replace(aside)
        for suffix in ("-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                self._path.with_name(DATABASE + suffix).unlink()


def _add(connection: sqlite3.Connection, found: Mapping[str, Any]) -> None:
    """Add durations to those of a scope."""
    program, scope, durations = _text(found.get("program", "")), _text(found["scope"]), found["durations"]
    count, limit = found["count"], found["limit_s"]
    known = connection.execute(
        "SELECT count, limit_s, durations FROM durations WHERE program = ? AND scope = ?", (program, scope)
    ).fetchone()
    if known is not None:
        count = min(count + known[0], MOST)
        limit = known[1] if limit is None else limit
        together = Durations.from_json(object_of(known[2]).get(""))
        together.add(Durations.from_json(durations))
        durations = together.as_json()
        connection.execute("DELETE FROM durations WHERE program = ? AND scope = ?", (program, scope))
    connection.execute(
        "INSERT INTO durations (program, scope, count, limit_s, durations, number)"  # it becomes the newest
        " VALUES (?, ?, ?, ?, ?, (SELECT COALESCE(MAX(number), 0) + 1 FROM durations))",
        (program, scope, count, limit, as_json({"": durations}, EVENT_BYTES)),
    )


def _shortened(value: Any) -> Any:
    return cut(value, EVENT_BYTES // 4) if isinstance(value, str) else value


def _text(value: str) -> str:
    """Return text that SQLite takes: a lone surrogate cannot be stored."""
    return value.encode(errors="backslashreplace").decode()


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _is_corrupt(error: Exception) -> bool:
    import sqlite3

    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
