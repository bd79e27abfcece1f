"""The timer server: accepts workers, looks at their tables, reaps those whose timers expire.

The laws of this file:

* A worker is whom the kernel says it is: the peer's credentials and a pidfd. A pid in a message is shown to
  people and never acted upon.
* A connection is not a worker: workers end when their pidfd is readable, and tables outlive connections.
* A release stored before the first signal spares the worker, even after its deadline.

It keeps the verbs of ``torch.distributed.elastic.timer.TimerServer`` (``register_timers``, ``clear_timers``,
``get_expired_timers``, ``reap_worker``) and replaces its polling by one ``call_at`` per table.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._core.requests import TimerRequest, WorkerId
from .._core.watch import BEAT, BOUND
from .._linux import paths
from .._linux.descriptor_store import DescriptorStore
from .._linux.forks import in_child
from .._linux.paths import check_socket_path
from .._linux.process import let_go_of_stderr, pin_named
from .._linux.requirements import check_requirements
from .._version import __version__
from ..errors import AlreadyServing, ServerError
from ..events import Event, log, shown, write_to_log
from . import listener
from .connection import Acceptor
from .disposal import Disposal
from .garbage import GarbageCollector
from .handlers import HandlerContext, Session
from .history import History
from .inspector import Inspector
from .policy import Policy
from .reaper import Reaper
from .registry import Registry
from .reporter import Reporter, scopes_of
from .rights import raise_descriptor_limit
from .runs import Runs
from .sinks import CallbackSink
from .slices import Steps, WorkQueue, finish
from .tree import Trees
from .watched_table import WatchedTable
from .worker import Worker

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

SWITCH = 0.001
"""Seconds that the loop waits for a thread which finds something out, in a process of its own."""

_LAGS = 60.0
"""Seconds over which the worst lag is remembered."""

IDLE_BEFORE_END = 10.0
"""Seconds without a connected worker, after the owner has gone, before the server ends."""


class TimerServer:
    """A timer server, to be embedded in any running asyncio or uvloop loop.

    Use it as an asynchronous context manager, or call :meth:`start` and :meth:`stop`. Subclass it to reap
    workers in another way.

    Args:
        socket_path: where to listen; by default the per-user default socket.
        on_event: called with every :class:`~aiotimer.events.Event`, besides the log line it writes, from the
            loop and after whatever the event is about. A call that raises is logged and made once more; if a
            thousand events wait, further ones are dropped and counted.
        bound: seconds; the furthest ahead that the server promises its workers to look.
        reap: the ladder: in which steps a worker is reaped that asks for no other ones, such as
            ``dump,ABRT:2,TERM:10,KILL``. ``dump`` gathers evidence; a number is the grace, in seconds.
        target: who is signalled: ``process``, the worker; ``group``, its process group; ``cgroup``: the
            SIGKILL goes to all of its cgroup (version 2); ``tree``: the worker and its descendants, without
            this server, its owner, and others that have timers armed. A worker may ask for another one.
        observe: nobody is signalled; expiries, their evidence and their ends are recorded.
        stopped: what happens to a worker that is stopped, frozen or in a debugger: ``reap``, as any other;
            ``hold``: it is not reaped for so long.
        on_expiry: who is reaped: ``worker``, whose timer has expired; ``run``: with it all members of its run
            on this node, at once and each in the steps of its own ladder, so that nobody is left to wait for
            the others. Evidence of all is gathered before either way.
        evidence_budget: seconds that evidence may delay the first signal by; 0: none is gathered.
        max_grace: seconds; the longest that a worker's own ladder may take to SIGKILL.
        max_reaps: (N, seconds): after more than N reaps in one job within so many seconds its workers are
            only observed, until ``aiotimer resume``.
        evidence_dir: where evidence is kept; by default under the state directory.
        resume_after: seconds after which they are reaped again by itself; 0: never.

    Attributes:
        socket_path: where it listens.

    Raises:
        UnsafePath: the path cannot be a socket's.
        ValueError: one of the options is none.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        bound: float = BOUND,
        reap: str = Policy.reap,
        target: str = Policy.target,
        observe: bool = Policy.observe,
        stopped: str = Policy.stopped,
        evidence_budget: float = Policy.evidence_budget,
        max_grace: float = Policy.max_grace,
        max_reaps: tuple[int, float] = Policy.max_reaps,
        evidence_dir: str | os.PathLike[str] | None = Policy.evidence_dir,
        resume_after: float = Policy.resume_after,
        on_expiry: str = Policy.on_expiry,
    ) -> None:
        path = paths.default_socket() if socket_path is None else os.fspath(socket_path)
        self.socket_path = check_socket_path(path)
        self._on_event = on_event
        self._bound = bound
        self._policy = Policy(
            reap=reap, target=target, observe=observe, stopped=stopped, evidence_budget=evidence_budget,
            max_grace=max_grace, max_reaps=max_reaps, evidence_dir=evidence_dir, resume_after=resume_after,
            on_expiry=on_expiry,
        )  # fmt: skip
        self._lock: listener.SocketLock | None = None
        self._listener: socket.socket | None = None
        self._lost = False  # the path is not its own any more
        self._displaced: asyncio.Task[None] | None = None  # another server is at the path: this one stops
        self._beat: asyncio.TimerHandle | None = None
        self._next_beat = 0.0
        self._lags: list[tuple[float, float]] = []  # when, and how late the heartbeat was
        self._stopped: asyncio.Event | None = None
        self._started_at = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._started_registry: Registry | None = None
        self._store: DescriptorStore | None = None
        self._when_written: Callable[[Callable[[], object]], object] = lambda action: action()
        self._context: HandlerContext
        self._reporter: Reporter
        self._runs: Runs
        self._reaper: Reaper
        self._queue: WorkQueue
        self._disposal: Disposal
        self._acceptor: Acceptor | None = None
        self._collector: GarbageCollector | None = None

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and take over the tables that an earlier server of this socket left.

        Raises:
            AlreadyServing: another server lives there.
            UnsafePath: the socket or the state directory cannot be used.
            NewerLayout: the state directory belongs to a newer aiotimer.
            ServerError: the kernel lacks something, see ``_linux/requirements``.
            RuntimeError: this server is running.
        """
        if self._lock is not None:
            raise RuntimeError("this timer server is running already")
        check_requirements()
        self._loop = asyncio.get_running_loop()
        self._lock = self._take_lock()
        try:
            raise_descriptor_limit()
            self._listener = self._listen(self._lock)
            directory = paths.state_directory(self.socket_path)
            paths.take_over_tables(directory, self.socket_path)
            self._assemble(directory)
            adoption = self._registry.adopt()
        except BaseException:
            self._leave()
            raise
        self._stopped, self._lost, self._displaced = asyncio.Event(), False, None
        self._started_at = self._context.worker_left_at = monotonic()
        self._next_beat = monotonic() + BEAT
        self._beat = self._loop.call_later(BEAT, self._show_life)
        _running.add(self)
        await self._adopt(adoption)

    async def _adopt(self, adoption: Steps[None]) -> None:
        """Adopt, while what is due has its turn; then accept workers.

        They wait meanwhile: what has been released since is not to be brought back by an earlier table.
        """
        try:
            await self._queue.complete(adoption)
            if self._listener is not None:  # else it has been stopped meanwhile
                self._acceptor = Acceptor(self._listener, self._loop, self._connected, self._not_accepted)
        except BaseException:
            await self.stop()
            raise

    def _take_lock(self) -> listener.SocketLock:
        """Take the right to serve. Overridden where a server is given it."""
        return listener.SocketLock(self.socket_path)

    def _listen(self, lock: listener.SocketLock) -> socket.socket:
        """Listen. Overridden where somebody does so already."""
        return listener.bind(lock, listener.BACKLOG)

    def _assemble(self, directory: Path) -> None:
        """Put together what looks, reaps, reports and answers."""
        queue = self._queue = WorkQueue(self._loop)
        self._disposal = Disposal()
        reporter = self._reporter = self._new_reporter(queue, directory)
        inspector = Inspector(self._loop, self._policy.evidence_budget, queue)
        self._runs = Runs(
            self._loop, lambda: self._registry.workers.values(), lambda: self._registry.adopting, inspector,
            reporter,
        )  # fmt: skip
        trees = Trees(self._loop, queue, self._spares, self._adopter)
        self._reaper = Reaper(
            self._loop, self.reap_worker, reporter, self._policy, inspector, trees=trees,
            members=self._runs.members,
        )  # fmt: skip
        self._started_registry = Registry(
            directory, self._loop, self._bound, self._policy, self._reaper.expire, self._worker_died,
            reporter.emit, self._table_removed, queue, self._disposal, self._store,
        )  # fmt: skip
        self._context = HandlerContext(
            self._registry, self._loop, reporter.emit, reporter.refused, self._report, self._reaper.resume,
            lambda: self.lag_s, queue,
            self._owner_gone,
        )  # fmt: skip

    def _spares(self, pid: int) -> bool:
        """Whether a process is no part of a tree that is reaped: it has timers of its own, or they were due.

        Who has been watched once, and has nothing armed now, is nobody's to end: so it ends with its tree.
        """
        worker = self._registry.find(pid)
        return worker is not None and (worker.holds_timers() or self._reaper.is_reaping(worker))

    def _adopter(self, _worker: WorkerId) -> WorkerId | None:
        """Return who gets what loses its parent below a worker, and below nobody else; None: nobody does."""
        return None

    def _table_removed(self, worker: Worker, table: WatchedTable) -> None:
        """A table is about to be removed: what is to be said of it is said while it can be read."""
        self._reaper.table_removed(table)
        self._reporter.note_durations(table, worker.name)

    def _new_reporter(self, queue: WorkQueue, directory: Path) -> Reporter:
        """Make what is told of events and records. Overridden where they are watched."""
        callback = () if self._on_event is None else (CallbackSink(self._loop, self._on_event),)
        history = History(directory, self._policy.evidence_dir)
        return Reporter(
            queue, history, write_to_log, *callback,
            close=self._disposal.close_descriptor, when_written=self._when_written,
        )  # fmt: skip

    async def stop(self) -> None:
        """Stop serving. Tables of living workers stay for the next server; their timers stay armed."""
        if self._lock is None:
            return
        assert self._stopped is not None
        _running.discard(self)
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._beat is not None:
            self._beat.cancel()
        self._registry.unregister_the_dead()  # while the reaper still knows what is to be said of them
        self._reaper.stop()
        await self._queue.end_tasks()
        self._reporter.tell_refusals(all_of_them=True)
        self._queue.flush()
        try:
            for session in list(self._context.sessions):
                session.connection.close()
            self._registry.close()
            await self._queue.end_tasks()  # who left just now may still be asked for what it maps
            await self._reporter.close()
            await self._loop.run_in_executor(None, self._disposal.close)
        finally:
            self._leave()
            self._stopped.set()

    async def serve_forever(self) -> None:
        """Start if need be, and serve until :meth:`stop` or a cancellation."""
        if self._lock is None:
            await self.start()
        assert self._stopped is not None
        try:
            await self._stopped.wait()
        finally:
            await self.stop()
        if self._displaced is not None:
            raise AlreadyServing(f"another timer server is serving {self.socket_path}")

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_raised: object) -> None:
        """Stop."""
        await self.stop()

    # -- the ancestor's verbs --------------------------------------------------------------------

    def register_timers(self, requests: Iterable[TimerRequest]) -> None:
        """Arm and release timers on processes of the server's owner: a launcher's children, say.

        A process that is gone is passed over: its timers are moot. If a timer is to be armed on one of
        another user's, all requests are refused, before any of them is applied; by a server of root's too. A
        timer is dropped, with the event ``exec``, if its process becomes another user's by an exec.

        Args:
            requests: their ``worker_id`` is a :class:`WorkerId`, or the pid of a living process.

        Raises:
            ValueError, TypeError: a request's scope or expiration time cannot be used.
            TableFull: a worker has 65,536 timers armed.
            ForeignProcess: a timer was to be armed on a process of another user: its real, effective or saved
                user id is not the server's. It is a PermissionError.
        """
        batch = list(requests)
        registered = self._registry.register_for_owner(r.worker_id for r in batch if not r.is_release)
        for request in batch:
            whom = request.worker_id
            worker = self._registry.find(whom) if request.is_release else registered.get(whom)
            if worker is None:
                continue
            table, cells = self._registry.own_table(worker, "owner")
            if cells.set((request.scope_id, 0), request.expiration_time, monotonic()):
                table.rung(request.expiration_time)

    def clear_timers(self, worker_ids: Iterable[WorkerId | int]) -> None:
        """Deal with every timer these workers have armed: none of them is acted upon any more."""
        for worker_id in worker_ids:
            worker = self._registry.find(worker_id)
            if worker is not None:
                worker.clear()

    def get_expired_timers(self, deadline: float) -> dict[WorkerId, list[TimerRequest]]:
        """Return what has expired and has not been cleared.

        Args:
            deadline: ``CLOCK_MONOTONIC`` seconds; timers with ``expiration_time <= deadline``.

        Returns:
            The expired timers of each worker that has any, the longest overdue first in each table.
        """
        expired = {w.id: w.expired(deadline) for w in self._registry.workers.values()}
        return {worker_id: timers for worker_id, timers in expired.items() if timers}

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        """Reap a worker whose timer has expired. Override to do it in another way.

        By default in the steps of its ladder; those before the first wait are taken at once, and what is
        left is a coroutine.

        Args:
            worker_id: whom.

        Returns:
            True when that is done or under way, and its timers are cleared. False to be called again,
            after a pause that doubles from 0.1 s to 5 s. An override may be a coroutine function. One
            that raises is logged, and counts as having reaped.
        """
        worker = self._registry.find(worker_id)
        return worker is None or self._reaper.carry_out_ladder(worker)

    @property
    def _registry(self) -> Registry:
        if self._started_registry is None:
            raise RuntimeError("this timer server has not been started")
        return self._started_registry

    # -- what is going on ------------------------------------------------------------------------

    def status(self, *, scopes: bool = False) -> dict[str, Any]:
        """Return the object that ``aiotimer status --json`` prints.

        Args:
            scopes: add how long the blocks of the workers that are alive took: a list of objects with
                ``scope``, ``count``, ``limit_s`` and ``durations``.
        """
        return finish(self._report(scopes))

    def _report(self, scopes: bool, pack: Callable[[Any], Any] = lambda part: part) -> Steps[dict[str, Any]]:
        """Make the report of :meth:`status`, of parts that are packed one by one."""
        now = monotonic()
        server = {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": now - self._started_at,
            "socket": self.socket_path,
            "observing": self._reaper.observing,
            "broken": [{"job": j, "resumes_in_s": seconds} for j, seconds in self._reaper.broken().items()],
        }
        workers = []
        ran = []
        for worker in list(self._registry.workers.values()):
            soonest, told = yield from worker.status(now, pack)
            workers.append((soonest, pack(told)))
            for table in list(worker.tables) if scopes else ():
                for found in scopes_of(table.reader, worker.name):
                    ran += [pack(found)] if found else []
                    yield
        workers.sort(key=itemgetter(0))
        report: dict[str, Any] = {"server": server, "workers": [worker for _soonest, worker in workers]}
        return report | {"scopes": ran} if scopes else report

    @property
    def lag_s(self) -> float:
        """How late, at worst, the server's own heartbeat has been in the last minute; seconds."""
        return max([*(lag for _at, lag in self._lags), monotonic() - self._next_beat, 0.0])

    def idle_s(self) -> float:
        """Return for how many seconds no worker has been connected."""
        if any(worker.connections for worker in self._registry.workers.values()):
            self._context.worker_left_at = monotonic()
        return monotonic() - self._context.worker_left_at

    # -- connections -----------------------------------------------------------------------------

    def _connected(self, sock: socket.socket) -> None:
        """Begin a session with whoever has connected. Overridden where sessions are watched."""
        Session(self._context, sock)

    def _not_accepted(self, reason: str) -> None:
        self._reporter.refused(None, Event("refused", detail=reason))

    def _worker_died(self, worker: Worker) -> None:
        self._context.worker_left_at = monotonic()
        self._runs.died(worker)
        self._reaper.died(worker)

    def _owner_gone(self) -> None:
        """The owner of a private server is gone, or gives it up. Overridden where that means something."""

    def _due_in(self) -> float:
        """Return in how many seconds the next timer is due, as far as the latest looks have found it."""
        tables = (table for worker in self._registry.workers.values() for table in worker.tables)
        return min((table.watch.earliest for table in tables), default=inf) - monotonic()

    # -- signs of life ---------------------------------------------------------------------------

    def _show_life(self) -> None:
        now = monotonic()
        self._registry.lifeline.tick(now)
        for stalled in self._registry.lifeline.news():
            detail = f"this server stood still for {stalled:.1f} s; deadlines that passed meanwhile are moved"
            self._reporter.emit(Event("stalled", detail=detail))
        self._reporter.tell_refusals()
        self._check_place()
        beat = self._registry.lifeline.beat
        self._lags = [*(one for one in self._lags if one[0] > now - _LAGS), (now, now - self._next_beat)]
        self._next_beat = now + beat
        if self._collector is not None:
            self._collector.tick()
        self._beat = self._loop.call_later(beat, self._show_life)

    def _check_place(self) -> None:
        """See that this server can be found: listen anew if its socket is gone, leave if another is there.

        And that its lock is the one that others try: by that file its state directory is known, too.
        """
        assert self._lock is not None
        if self._displaced is not None:
            return
        if self._lock.owns_socket():
            if not self._lock.is_in_place():
                self._lock_anew()
            return
        try:
            if os.path.exists(self.socket_path):
                raise AlreadyServing
            self._listen_anew()
        except AlreadyServing:
            log.error("another timer server is at %s: this one ends", shown(self.socket_path))
            self._displaced = self._loop.create_task(self.stop())
        except (OSError, ServerError) as error:
            if not self._lost:
                log.error("%s is gone, and nobody can find this server: %s", shown(self.socket_path), error)
            self._lost = True
        else:
            log.warning("%s was gone: this server listens there again", shown(self.socket_path))
            self._lost = False

    def _lock_anew(self) -> None:
        """Somebody has removed the lock's file, and not the socket: make it again, and go on with that."""
        former = self._lock
        assert former is not None
        lock = None
        try:
            lock = listener.SocketLock(self.socket_path)
            lock.claim()
            self._registry.directory = paths.state_directory(self.socket_path)
        except AlreadyServing:  # who starts now finds our socket, and ends; its lock is to be had then
            return
        except (OSError, ServerError) as error:
            if lock is not None:
                lock.release()
            if not self._lost:
                log.error("%s is gone, and cannot be locked: %s", shown(f"{self.socket_path}.lock"), error)
            self._lost = True
            return
        self._lock, self._lost = lock, False
        former.release()
        log.warning("%s was gone: it is made and locked again", shown(f"{self.socket_path}.lock"))

    def _listen_anew(self) -> None:
        """Listen at the path once more: somebody has tidied up, the lock and the tables' directory perhaps.

        Raises:
            AlreadyServing: another server has begun there.
            OSError, UnsafePath: it cannot be done.
        """
        former = self._lock
        assert former is not None
        lock = former if former.is_in_place() else listener.SocketLock(self.socket_path)
        try:
            new = listener.bind(lock, listener.BACKLOG)
        except BaseException:
            if lock is not former:
                lock.release()
            raise
        if self._acceptor is not None:
            self._acceptor.close()
        if self._listener is not None:
            self._listener.close()
        self._lock, self._listener = lock, new
        self._acceptor = Acceptor(new, self._loop, self._connected, self._not_accepted)
        if lock is not former:
            former.release()
        paths.make_state_directory(self._registry.directory, self.socket_path)  # what is recorded goes there
        self._registry.directory = paths.state_directory(self.socket_path)  # and tables where they are found

    def _leave(self) -> None:
        """Close everything, and leave nothing behind but the tables of the living."""
        try:
            if self._started_registry is not None:
                self._started_registry.close()
                self._disposal.close()
                if self._lock is not None and self._lock.owns_socket():  # else it is another one's by now
                    paths.remove_if_empty(self._started_registry.directory)
            if self._lock is not None:
                self._lock.remove_socket()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _abandon(self) -> None:
        """In a forked child: the socket, its lock and the processes are the parent's."""
        for session in self._context.sessions:
            session.connection.socket.close()
        self._context.sessions.clear()
        if self._acceptor is not None:
            self._acceptor.abandon()
        self._registry.abandon()
        self._disposal.abandon()
        self._reporter.abandon()
        self._let_go()


def own_process(server: TimerServer) -> None:
    """Nothing but this server runs in this process: its garbage is collected while no timer is due."""
    server._collector = GarbageCollector(server._due_in)
    server._collector.take_over()
    sys.setswitchinterval(SWITCH)


class OwnedServer(TimerServer):
    """A private server: it ends after the process that it was started for, its owner.

    It serves its owner and all its descendants, which find it by ``$AIOTIMER_SOCKET``. It ends when its owner
    is gone and no worker has been connected for ten seconds. It writes to its owner's standard error, and
    lets go of that as soon as the owner is gone.

    Args:
        socket_path: where to listen.
        owner: that process, as ``pid:start-time``.
        on_event: see ``TimerServer``.
        when_written: calls what it is given as soon as all that has been logged is written.
        place: descriptors of the lock and of the listening socket, to take over; None: there is none yet.
        idle_before_end: seconds without a connected worker, after the owner has gone, before it ends.
        store: what the supervisor keeps for the next server.
        command: the descriptor of a file in which the owner, which adopts what loses its parent, says as
            ``pid:start-time`` what it has started besides this server; -1: it is none.
        policy: see ``TimerServer``.
    """

    def __init__(
        self,
        socket_path: str,
        owner: str,
        on_event: Callable[[Event], object] | None = None,
        when_written: Callable[[Callable[[], object]], object] = lambda action: action(),
        place: tuple[int, int | None] | None = None,
        idle_before_end: float = IDLE_BEFORE_END,
        store: DescriptorStore | None = None,
        command: int = -1,
        **policy: Any,
    ) -> None:
        super().__init__(socket_path, on_event=on_event, **policy)
        self._store = store
        self._when_written = when_written
        self._place = place
        self._idle_before_end = idle_before_end
        self._owner = WorkerId(*map(int, owner.split(":")))
        self._command = command
        self._owner_pidfd = pin_named(owner)
        self._ending: asyncio.TimerHandle | asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start, and watch the owner."""
        await super().start()
        if self._owner_pidfd is None:
            self._owner_gone()
        else:
            self._loop.add_reader(self._owner_pidfd, self._owner_gone)

    def _take_lock(self) -> listener.SocketLock:
        if self._place is None:
            return super()._take_lock()
        return listener.SocketLock.inherit(self.socket_path, self._place[0])

    def _listen(self, lock: listener.SocketLock) -> socket.socket:
        descriptor = None if self._place is None else self._place[1]
        self._place = None
        if descriptor is None:
            return super()._listen(lock)
        os.set_inheritable(descriptor, False)
        inherited = socket.socket(fileno=descriptor)
        inherited.setblocking(False)
        inherited.listen(listener.BACKLOG)  # anew: the kernel tells who connects that it is this process now
        lock.claim()
        return inherited

    async def stop(self) -> None:
        """Stop; if nobody is left, leave nothing behind."""
        if isinstance(self._ending, asyncio.TimerHandle):
            self._ending.cancel()
        last = self._owner_pidfd is None and self.idle_s() >= self._idle_before_end
        self._close_owner()
        await super().stop()
        if last:
            listener.clean_up(self.socket_path)

    def _spares(self, pid: int) -> bool:
        return (self._owner_pidfd is not None and pid == self._owner.pid) or super()._spares(pid)

    def _adopter(self, worker: WorkerId) -> WorkerId | None:
        if self._command < 0 or os.pread(self._command, 64, 0) != b"%d:%d" % worker:
            return None
        return self._owner

    def _owner_gone(self) -> None:
        """The owner is dead, or gives this server up."""
        self._close_owner()
        self._registry.unregister_the_dead()  # what is to be said of the owner is said while it can be read
        self._when_written(let_go_of_stderr)
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        left = self._idle_before_end - self.idle_s()
        if left > 0:
            self._ending = self._loop.call_later(left, self._end_when_idle)
        else:
            self._ending = self._loop.create_task(self.stop())

    def _close_owner(self) -> None:
        if self._owner_pidfd is not None:
            self._loop.remove_reader(self._owner_pidfd)
            os.close(self._owner_pidfd)
            self._owner_pidfd = None


_running: weakref.WeakSet[TimerServer] = weakref.WeakSet()


def _let_go_of_servers() -> None:
    for server in list(_running):
        server._abandon()
    _running.clear()


in_child(_let_go_of_servers)
