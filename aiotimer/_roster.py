"""Everybody a server watches: workers by identity, their tables, and what an earlier server left behind.

The laws of this file: one :class:`Worker` per living process; when its pidfd is readable it is dead, and its
tables go with it, whatever is armed in them. A table of an earlier server is adopted if, and only if,
the process it names is alive and the same one: boot, pid, start time, and pidfd inode.
"""

from __future__ import annotations

import asyncio
import functools
import mmap
import os
import select
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from . import runtime
from ._core import layout
from ._core.requests import WorkerId
from ._core.table import TimerTable
from ._core.watch import Due, Lifeline, Watch
from ._watched import WatchedTable
from ._worker import Worker
from .errors import ServerError
from .events import Event, log
from .process import pin

OnDue = Callable[[Worker, WatchedTable, tuple[Due, ...]], None]


class Roster:
    """The workers of a server.

    Args:
        directory: where table files lie.
        loop: the server's.
        bound: the furthest ahead that looks are promised, seconds.
        on_due: called with a worker, a table and the timers that have expired in it.
        on_dead: called with a worker that is dead, before its tables go.
        emit: takes events.
    """

    def __init__(
        self,
        directory: Path,
        loop: asyncio.AbstractEventLoop,
        bound: float,
        on_due: OnDue,
        on_dead: Callable[[Worker], None],
        emit: Callable[[Event], None],
    ) -> None:
        self.workers: dict[WorkerId, Worker] = {}
        self.directory = directory
        self.lifeline = Lifeline(monotonic())
        self._loop = loop
        self._bound = bound
        self._on_due = on_due
        self._on_dead = on_dead
        self._emit = emit

    def admit(self, worker_id: WorkerId, pidfd: int) -> Worker:
        """Return the worker of that identity, a new one if need be; takes over the pidfd."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            os.close(pidfd)
            return worker
        worker = self.workers[worker_id] = Worker(worker_id, pidfd, self._loop)
        self._loop.add_reader(pidfd, self._dead, worker)
        return worker

    def find(self, worker_id: WorkerId | int) -> Worker | None:
        """Return the worker of an identity, or the living one with a bare pid."""
        if isinstance(worker_id, WorkerId):
            return self.workers.get(worker_id)
        return next((w for w in self.workers.values() if w.id.pid == worker_id), None)

    def pinned(self, worker_id: WorkerId | int) -> Worker:
        """Return the worker of an identity, pinning its process if it is not known yet.

        Raises:
            ProcessLookupError: there is no such process (any more).
        """
        worker = self.find(worker_id)
        if worker is not None:
            return worker
        pid = worker_id.pid if isinstance(worker_id, WorkerId) else worker_id
        found, pidfd = pin(pid)
        if isinstance(worker_id, WorkerId) and found != worker_id:
            os.close(pidfd)
            raise ProcessLookupError(f"process {pid} is another one by now")
        return self.admit(found, pidfd)

    def new_table(self, worker: Worker, kind: runtime.Kind) -> WatchedTable:
        """Make a table for a worker.

        Raises:
            OSError: there is no memory or descriptor for it.
        """
        file = runtime.create_table(self.directory, worker.id, worker.pidfd_inode, kind)
        if os.geteuid() == 0 and os.fstat(file.descriptor).st_gid != worker.uid:
            # Whose process it is about: the next server must know with whose rights to act. It is kept as the
            # file's group, which has no rights on it.
            os.fchown(file.descriptor, -1, worker.uid)
        return self.watch(worker, file, connected=True)

    def own_table(self, worker: Worker, kind: runtime.Kind) -> tuple[WatchedTable, TimerTable]:
        """Return the table that the server itself keeps for a worker, with its storing side.

        Raises:
            OSError: there is no memory or descriptor for it.
        """
        own = worker.own_tables.get(kind)
        if own is None:
            watched = self.new_table(worker, kind)
            own = worker.own_tables[kind] = (watched, _stored_by_us(watched))
        return own

    def watch(self, worker: Worker, file: runtime.TableFile, *, connected: bool) -> WatchedTable:
        """Begin to watch a table."""
        watch = Watch(self.lifeline, connected=connected, bound=self._bound)
        table = WatchedTable(file, watch, self._loop, functools.partial(self._on_due, worker))
        worker.tables.append(table)
        return table

    def adopt(self) -> None:
        """Take over the tables of an earlier server; delete what is nobody's.

        Raises:
            NewerLayout: there is a table that this version must not touch.
        """
        found, strangers = runtime.find_tables(self.directory)
        for path in strangers:
            log.warning("ignoring %s: it is not a timer table of this boot", path)
        for entry in found:
            try:
                self._adopt_one(entry)
            except (ProcessLookupError, ServerError) as error:
                log.info("removing %s: %s", entry.path, error)
                entry.path.unlink(missing_ok=True)
        for worker in list(self.workers.values()):
            for table in worker.tables:
                if table.file.kind == "socket":
                    table.wake_by(monotonic() + runtime.PEERS_RETURN_WITHIN)
                else:
                    table.look()

    def _adopt_one(self, entry: runtime.Found) -> None:
        file = runtime.open_table(entry)
        try:
            worker_id, pidfd = pin(entry.worker.pid)
            if worker_id != entry.worker or os.fstat(pidfd).st_ino != entry.pidfd_inode:
                os.close(pidfd)
                raise ProcessLookupError(f"process {entry.worker.pid} is another one by now")
        except ProcessLookupError:
            reaped_at = layout.read_word(os.pread(file.descriptor, 8, 8 * layout.REAPED_AT))
            os.close(file.descriptor)
            if reaped_at > 0.0:  # the earlier server died between its signal and its report
                self._emit(Event("reaped", entry.worker, detail="by an earlier server"))
            raise
        worker = self.admit(worker_id, pidfd)
        if os.geteuid() == 0:
            worker.uid = os.fstat(file.descriptor).st_gid
        table = self.watch(worker, file, connected=entry.kind != "shared")
        if entry.kind != "shared":
            cells = _stored_by_us(table)
            cells.adopt_cells((t.slot, t.scope, t.ordinal) for t in table.reader.timers())
            worker.own_tables[entry.kind] = (table, cells)
        self._emit(Event("adopted", worker.id, worker.name, detail=str(entry.path.name)))

    def close(self) -> None:
        """Let go of every process; the tables of the living stay for the next server."""
        self._bury_the_dead()
        for worker in self.workers.values():
            self._loop.remove_reader(worker.pidfd)
            for table in worker.tables:
                table.suspend()
            worker.close()
        self.workers.clear()

    def _bury_the_dead(self) -> None:
        """Notice who has died since the loop last looked: its owner may be waiting to hear of it."""
        poll = select.poll()
        pidfds = {worker.pidfd: worker for worker in self.workers.values()}
        for pidfd in pidfds:
            poll.register(pidfd, select.POLLIN)
        for pidfd, _event in poll.poll(0):
            self._dead(pidfds[pidfd])

    def abandon(self) -> None:
        """In a forked child of the server's process: close its descriptors, touch nothing else."""
        for worker in self.workers.values():
            for table in worker.tables:
                os.close(table.file.descriptor)
            worker.unmap()
            os.close(worker.pidfd)
        self.workers.clear()

    def _dead(self, worker: Worker) -> None:
        self._loop.remove_reader(worker.pidfd)
        self._on_dead(worker)
        for table in list(worker.tables):
            worker.drop(table)
        worker.close()
        self.workers.pop(worker.id, None)


def _stored_by_us(table: WatchedTable) -> TimerTable:
    """Return the storing side of a table that no worker maps."""
    descriptor = table.file.descriptor
    mapping = mmap.mmap(descriptor, layout.TABLE_SIZE)
    return TimerTable(mapping, functools.partial(runtime.allocate, descriptor), now=monotonic)
