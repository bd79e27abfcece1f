"""A registry: the workers of a server by identity, and the adoption of the tables of an earlier server.

The laws of this file: one :class:`Worker` per living process; when its pidfd is readable it is dead, and its
tables go with it, whatever is armed in them. A table of an earlier server is adopted if, and only if,
the process it names is alive and the same one: boot, pid, start time, and pidfd inode. A process of another
user's is watched for nobody: not for the server's owner, not on an earlier server's word.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import mmap
import os
import select
from collections.abc import Callable, Iterable
from math import inf
from operator import attrgetter
from pathlib import Path
from time import monotonic

from .._core import layout
from .._core.reader import TableReader
from .._core.requests import WorkerId
from .._core.table import TimerTable
from .._core.watch import Due, Lifeline, Watch
from .._linux import table_files
from .._linux.descriptor_store import DescriptorStore
from .._linux.process import is_dead, pin
from .._linux.procfs import foreign_uid, program_of
from ..errors import ForeignProcess, ServerError
from ..events import Event, log, shown
from .disposal import Disposal
from .pinned_process import PinnedProcess
from .policy import Policy
from .slices import Steps, WorkQueue
from .watched_table import WatchedTable
from .worker import Worker, drop_if_left, unmapped

_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Reasons why a table could not be adopted that say nothing about the table."""

_ADOPT_AGAIN = 1.0
"""Seconds after which those tables are tried again."""

_MOST_IN_VAIN = 16
"""Descriptors of tables that are gone, and are kept for a while: to look through them all takes long."""

_SLOT = layout.TABLE_SIZE // layout.SLOTS
"""Bytes of a table that each of its slots takes."""

OnDue = Callable[[Worker, WatchedTable, tuple[Due, ...]], None]


class Registry:
    """The workers of a server, by identity.

    Args:
        bound: the furthest ahead that looks are promised, seconds.
        on_due: called with a worker, a table and the timers that have expired in it.
        on_dead: called with a worker that is dead, before its tables go.
        before_removal: called with a worker and a table of it that is about to be deleted.
        queue: where looks come first, and a death waits until everything noted before it is described.
        disposal: gives back the memory of tables.
        store: keeps the descriptors of tables that can have no name; None: nothing does.
    """

    def __init__(
        self,
        directory: Path,
        loop: asyncio.AbstractEventLoop,
        bound: float,
        policy: Policy,
        on_due: OnDue,
        on_dead: Callable[[Worker], None],
        emit: Callable[[Event], None],
        before_removal: Callable[[Worker, WatchedTable], object],
        queue: WorkQueue,
        disposal: Disposal,
        store: DescriptorStore | None,
    ) -> None:
        self.workers: dict[WorkerId, Worker] = {}
        self._by_pid: dict[int, Worker] = {}  # the newest with each pid: older ones are dead
        self.directory = directory
        self.lifeline = Lifeline(monotonic())
        self._loop = loop
        self._bound = bound
        self.policy = policy
        self._on_due = on_due
        self._on_dead = on_dead
        self._emit = emit
        self._before_removal = before_removal
        self._queue = queue
        self._disposal = disposal
        self._adoption: Steps[None] | None = None
        self._adopt_again: asyncio.TimerHandle | None = None
        self._store = store
        self._kept: set[str] = set()  # of the tables that there are, the names under which they are kept
        self._kept_in_vain, self._lets_go = 0, False

    def register(self, worker_id: WorkerId, pidfd: int) -> Worker:
        """Return the worker of that identity, a new one if need be; takes over the pidfd."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            os.close(pidfd)
            return worker
        worker = self.workers[worker_id] = Worker(PinnedProcess(worker_id, pidfd), self._let_go)
        self._by_pid[worker_id.pid] = worker
        self._loop.add_reader(pidfd, self._dead, worker)
        return worker

    def unregister(self, worker: Worker) -> None:
        """Take out a worker that turned out to be none: it has neither tables nor connections."""
        if not worker.tables and not worker.connections and not worker.closed:
            self._loop.remove_reader(worker.process.pidfd)
            worker.close()
            self._remove(worker)

    def find(self, worker_id: WorkerId | int) -> Worker | None:
        """Return the worker of an identity, or the living one with a bare pid."""
        if isinstance(worker_id, WorkerId):
            return self.workers.get(worker_id)
        return self._by_pid.get(worker_id)

    def register_for_owner(self, worker_ids: Iterable[WorkerId | int]) -> dict[WorkerId | int, Worker]:
        """Return the workers on which the server's owner arms timers, pinned and with tables for that.

        Those of processes that are gone are left out, which is logged.

        Raises:
            ForeignProcess: one of them is another user's. Then nothing has become of any of them.
            OSError: there is no memory or descriptor for one of them.
        """
        registered: dict[WorkerId | int, tuple[Worker, int]] = {}
        new: list[Worker] = []
        try:
            for worker_id in dict.fromkeys(worker_ids):
                try:
                    worker = self.find(worker_id)
                    if worker is None:
                        worker = self._pinned(worker_id)
                        new.append(worker)
                    registered[worker_id] = worker, _program_of_ours(worker)
                except ProcessLookupError as error:
                    log.info("no timers are armed: %s", error)
        except BaseException:
            for worker in new:
                self.unregister(worker)
            raise
        for worker, program in registered.values():
            self.own_table(worker, "owner")[0].note_program(program)
        return {worker_id: worker for worker_id, (worker, _program) in registered.items()}

    def _pinned(self, worker_id: WorkerId | int) -> Worker:
        pid = worker_id.pid if isinstance(worker_id, WorkerId) else worker_id
        found, pidfd = pin(pid)
        if isinstance(worker_id, WorkerId) and found != worker_id:
            os.close(pidfd)
            raise ProcessLookupError(f"process {pid} is another one by now")
        return self.register(found, pidfd)

    def new_table(self, worker: Worker, kind: table_files.Kind) -> WatchedTable:
        """Make a table for a worker.

        Raises:
            OSError: there is no memory or descriptor for it.
        """
        file = table_files.create_table(
            self.directory, worker.id, worker.process.inode, kind, len(worker.tables)
        )
        if file.path is None:
            self._keep(worker, file)
        return self.watch(worker, file, connected=True)

    def give_name(self, worker: Worker, table: WatchedTable) -> None:
        """Give a table that a worker has brought along a name, by which the next server finds it.

        For one that cannot have a name the supervisor keeps the descriptor. Where that cannot be, the
        table is watched all the same; after a crash its worker has to bring it again.
        """
        try:
            table_files.give_name(
                table.file, self.directory, worker.id, worker.process.inode, len(worker.tables) - 1
            )
        except OSError as error:
            if self._keep(worker, table.file):
                return
            log.warning(
                "the table of process %d is not kept for another server, should this one crash: %s",
                worker.id.pid,
                error.strerror,
            )

    def _keep(self, worker: Worker, file: table_files.TableFile) -> bool:
        """Have the supervisor keep a table's descriptor; return whether it does."""
        if self._store is None:
            return False
        name = table_files.name_of(worker.id, worker.process.inode, file.kind, file.inode)
        try:
            self._store.keep(name, file.descriptor)
        except OSError:
            self._queue.take_turn(self._let_go_of_descriptors())
            return False
        file.kept_as = name
        self._kept.add(name)
        return True

    def _let_go_of_descriptors(self) -> Steps[None]:
        """Have those not kept any more whose tables are gone."""
        if self._store is None or self._lets_go:
            return
        self._kept_in_vain, self._lets_go = 0, True
        try:
            yield from self._store.keep_only(self._kept.__contains__)
        finally:
            self._lets_go = False

    def _removed(self, worker: Worker, table: WatchedTable) -> None:
        self._before_removal(worker, table)
        if table.file.kept_as:
            self._kept.discard(table.file.kept_as)
            self._kept_in_vain += 1
            if self._kept_in_vain == _MOST_IN_VAIN:
                self._queue.take_turn(self._let_go_of_descriptors())

    def own_table(self, worker: Worker, kind: table_files.Kind) -> tuple[WatchedTable, TimerTable]:
        """Return the table that the server itself keeps for a worker, with its storing side.

        Raises:
            OSError: there is no memory or descriptor for it.
        """
        own = worker.own_tables.get(kind)
        if own is None:
            watched = self.new_table(worker, kind)
            own = worker.own_tables[kind] = (watched, _stored_by_us(watched.file.descriptor))
        return own

    def watch(self, worker: Worker, file: table_files.TableFile, *, connected: bool) -> WatchedTable:
        """Begin to watch a table."""
        armings = TableReader(file.read).armings
        watch = Watch(self.lifeline, connected=connected, bound=self._bound, armings=armings)
        on_due = functools.partial(self._expired, worker)
        table = WatchedTable(
            file, watch, self._loop, on_due,
            do_first=self._queue.do_first, close=self._disposal.close_descriptor,
        )  # fmt: skip
        table.before_removal = functools.partial(self._removed, worker)
        if file.kind == "socket":
            table.ask_peer = functools.partial(self._ask_peer, worker)
        worker.tables.append(table)
        return table

    def _ask_peer(self, worker: Worker, answered: Callable[[bool], None]) -> None:
        async def ask() -> None:
            answered(await worker.process.has_unsent())

        self._queue.spawn(ask())

    def adopt(self) -> Steps[None]:
        """Take over the tables of an earlier server, in steps; delete what is nobody's.

        Raises:
            NewerLayout: there is a table that this version must not touch.
        """
        found, strangers = table_files.find_tables(self.directory)
        for path, reason in strangers:
            log.warning("ignoring %s: %s", shown(str(path)), reason)
        if self._store is not None:
            kept = (table_files.named(self.directory / name, number) for name, number in self._store.kept())
            found = sorted(
                [*found, *(entry for entry in kept if entry is not None)], key=attrgetter("worker")
            )
        self._adoption = self._adopt_all(found)
        return self._adoption

    @property
    def adopting(self) -> bool:
        """Whether there may be workers of an earlier server's that are not known yet."""
        return self._adoption is not None

    def _adopt_all(self, entries: Iterable[table_files.Found]) -> Steps[None]:
        """Adopt, and say when that is over; until then :meth:`close` can end it."""
        try:
            yield from self._adopt(entries)
        finally:
            self._adoption = None

    def _adopt(self, entries: Iterable[table_files.Found]) -> Steps[None]:
        """Adopt one table after the other, and look at those of a worker when all of them are there."""
        postponed: list[table_files.Found] = []
        for _worker_id, of_one_worker in itertools.groupby(entries, key=attrgetter("worker")):
            adopted: list[WatchedTable] = []
            for entry in of_one_worker:
                table = yield from self._adopted(entry, postponed)
                adopted += () if table is None else (table,)
                yield
            for table in adopted:
                if table.file.kind == "socket":
                    table.wake_by(monotonic() + table_files.PEERS_RETURN_WITHIN)
                elif not table.closed:
                    table.look()
                yield
        self._kept.update(entry.path.name for entry in postponed)
        yield from self._let_go_of_descriptors()
        if postponed:
            self._adopt_again = self._loop.call_later(_ADOPT_AGAIN, self._adopt_postponed, postponed)

    def _adopt_postponed(self, entries: list[table_files.Found]) -> None:
        self._adoption = self._adopt_all(entries)
        self._queue.take_turn(self._adoption)

    def _adopted(
        self, entry: table_files.Found, postponed: list[table_files.Found]
    ) -> Steps[WatchedTable | None]:
        """Adopt a table if it can be; remove what is nobody's, and postpone what can be adopted later."""
        try:
            table = yield from self._adopt_one(entry)
            entry.close()
            return table
        except (ProcessLookupError, ServerError) as error:
            log.info("removing %s: %s", entry.path, error)
            if entry.descriptor < 0:
                self._disposal.remove(entry.path)
        except OSError as error:
            if error.errno in _PASSING:
                postponed.append(entry)
                log.error("cannot adopt %s yet: %s", entry.path, error.strerror)
                return None
            log.error("ignoring %s: %s", entry.path, error.strerror)
        except Exception:  # noqa: BLE001 - logged: one table is no reason to leave the others unwatched
            log.exception("ignoring %s", entry.path)
        entry.close()
        return None

    def _adopt_one(self, entry: table_files.Found) -> Steps[WatchedTable | None]:
        if not entry.of_this_boot:
            raise ServerError("it is of another boot")
        file = table_files.open_table(entry)
        try:
            worker = self._pin_worker(entry, file)
            cells = None
            if file.kind != "shared":
                try:
                    cells = yield from _restored(file.descriptor)
                except BaseException:
                    self.unregister(worker)
                    raise
                worker = self._pin_worker(entry, file)  # it may be gone by now
            return self._take_over(worker, file, cells)
        except BaseException:
            os.close(file.descriptor)
            raise

    def _pin_worker(self, entry: table_files.Found, file: table_files.TableFile) -> Worker:
        try:
            worker_id, pidfd = pin(entry.worker.pid)
            if worker_id != entry.worker or os.fstat(pidfd).st_ino != entry.pidfd_inode:
                os.close(pidfd)
                raise ProcessLookupError(f"process {entry.worker.pid} is another one by now")
        except ProcessLookupError:
            reaped_at = os.pread(file.descriptor, 8, 8 * layout.REAPED_AT)
            if layout.read_word(reaped_at) > 0.0:  # the earlier server died between its signal and its report
                self._emit(Event("reaped", entry.worker, detail="by an earlier server"))
            raise
        return self.register(worker_id, pidfd)

    def _take_over(
        self, worker: Worker, file: table_files.TableFile, cells: TimerTable | None
    ) -> WatchedTable | None:
        known = worker.table_of(file.inode)
        if known is not None:  # its worker was faster, and has brought it along
            known.file.path, known.file.kept_as = file.path, file.kept_as
            self._kept.add(file.kept_as)
            os.close(file.descriptor)
            return None
        if file.kind == "socket" and worker.heard_at > -inf:  # the table was postponed
            raise ServerError("its worker has said by now what is armed")
        table = self.watch(worker, file, connected=file.kind != "shared")
        self._kept.add(file.kept_as)
        if file.kind != "owner" and not worker.connections:
            worker.reap_grant = self.policy.read_reap_grant(table.reap_grant())
            if (said := table.account()) is not None:
                worker.gives_account(said, monotonic())
        if cells is not None:
            worker.own_tables[file.kind] = (table, cells)
        if drop_if_left(worker, table, self._emit):  # while no server ran
            self.unregister(worker)
            return None
        self._emit(Event("adopted", worker.id, worker.name, detail=file.name))
        return table

    def close(self) -> None:
        """Let go of every process; the tables of the living stay for the next server."""
        if self._adoption is not None:
            self._adoption.close()
            self._adoption = None
        if self._adopt_again is not None:
            self._adopt_again.cancel()
            self._adopt_again = None
        self.unregister_the_dead()
        for worker in self.workers.values():
            self._loop.remove_reader(worker.process.pidfd)
            for table in worker.tables:
                table.suspend()
            worker.close()
        self.workers.clear()
        self._by_pid.clear()

    def unregister_the_dead(self) -> None:
        """Notice who has died since the loop last looked: the server's owner may be waiting to hear of it."""
        poll = select.poll()
        pidfds = {worker.process.pidfd: worker for worker in self.workers.values()}
        for pidfd in pidfds:
            poll.register(pidfd, select.POLLIN)
        for pidfd, _event in poll.poll(0):
            self._dead(pidfds[pidfd])
        self._queue.flush()

    def abandon(self) -> None:
        """In a forked child of the server's process: close its descriptors, touch nothing else."""
        for worker in self.workers.values():
            for table in worker.tables:
                os.close(table.file.descriptor)
            for _own, cells in worker.own_tables.values():
                unmapped(cells).close()
            os.close(worker.process.pidfd)
        self.workers.clear()
        self._by_pid.clear()

    def _dead(self, worker: Worker) -> None:
        self._loop.remove_reader(worker.process.pidfd)
        worker.has_died()
        self._queue.put(worker.id, self._bury, worker)

    def _bury(self, worker: Worker) -> Steps[None]:
        if worker.closed:  # it was noticed twice
            return
        self._on_dead(worker)
        yield from worker.bury()
        self._remove(worker)

    def _expired(self, worker: Worker, table: WatchedTable, due: tuple[Due, ...]) -> None:
        if not worker.closed:
            self._on_due(worker, table, due)

    def _let_go(self, cells: TimerTable) -> None:
        """Give back what the storing side of a table takes: its memory elsewhere, and its cells in steps."""
        used = cells.high_water * _SLOT
        self._disposal.close_mapping(unmapped(cells), used)
        self._queue.take_turn(cells.forget_cells())

    def _remove(self, worker: Worker) -> None:
        self.workers.pop(worker.id, None)
        if self._by_pid.get(worker.id.pid) is worker:
            del self._by_pid[worker.id.pid]


def _program_of_ours(worker: Worker) -> int:
    """Return the mark of the program that a worker of this server's user runs.

    Raises:
        ForeignProcess: it is another user's.
        ProcessLookupError: it is gone.
    """
    # In this order: had it executed a set-uid program before it is looked at, it would be foreign by now.
    program = program_of(worker.id.pid)
    uid = foreign_uid(worker.id.pid)
    if is_dead(worker.process.pidfd):  # then the pid may be another's by now
        raise ProcessLookupError(f"process {worker.id.pid} is gone")
    if uid is not None:
        raise ForeignProcess(worker.id.pid, uid, os.geteuid())
    return program


def _stored_by_us(descriptor: int) -> TimerTable:
    """Return the storing side of a table that no worker maps."""
    mapping = mmap.mmap(descriptor, layout.TABLE_SIZE)
    allocated = 0

    def grow(slots: int) -> None:
        nonlocal allocated
        table_files.allocate(descriptor, slots, min(allocated, slots - 1))
        allocated = slots

    return TimerTable(mapping, grow, now=monotonic)


def _restored(descriptor: int) -> Steps[TimerTable]:
    """Return the storing side of a table that an earlier server kept, with what is armed in it.

    Raises:
        ServerError: it is not as a server leaves it.
        OSError: there is no memory for it.
    """
    reader = TableReader(functools.partial(os.pread, descriptor))
    snapshot = reader.snapshot()
    if layout.read_word(snapshot) != layout.high_water(snapshot):
        raise ServerError("it is damaged: its number of slots is none")
    table_files.allocate(descriptor, max(1, len(reader.deadlines())))  # a hole in it would be SIGBUS, for us
    cells = _stored_by_us(descriptor)
    yield from cells.adopt_batches(
        [(timer.slot, timer.scope, timer.key_ordinal) for timer in batch] for batch in reader.batches()
    )
    return cells
