"""A process tree: the descendants of a worker that is reaped with ``--target tree``, each of them pinned.

The laws of this file:

* *Pinned first, then believed.* A pid that ``/proc`` shows is pinned, and only then it is looked at whose
  child that process is, while its parent is pinned and there: a pid that another process has got meanwhile is
  another one's child, and is let go. No pid comes from a message.
* Descendants are looked for before the first signal, again at every signal, and at SIGKILL until none is new:
  then they are stopped first, because who is stopped starts no other one. The worker itself never is; whoever
  waits for it would hear of that.
* *Left out* are this server and its helpers, its owner, and every other process that has timers of its own
  armed when it is found, or is being reaped for one. What is below these is theirs. Who is watched and has
  nothing armed is not left out: nothing else would end it. Who has started this server is not signalled, but
  its other children are.
* A process whose parent has died belongs to the tree if it was pinned before; if it is in a session that a
  process of the tree leads, for a session is only left, and never joined; or if ``aiotimer run`` has got it,
  and the worker is the command itself, from which everything there descends.
* It is all done in slices: there may be thousands. What the kernel refuses is logged, and ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic

from .._core.ladder import CONT, KILL
from .._core.requests import WorkerId
from .._linux import procfs
from .._linux.process import is_dead, send_signal
from ..events import log
from .pinned_process import PinnedProcess
from .slices import Steps, WorkQueue, finish

MOST = 8192
"""Processes of a tree: each takes a descriptor of the server."""

AT_ONCE = 16
"""Processes that are pinned, or signalled, before others have a turn: a fifth of a millisecond."""

PIN_WITHIN = 0.5
"""Seconds that the first signal waits until all of a tree is pinned: there may always be new ones."""

CATCH_UP = 0.001
"""Seconds for which a worker is looked at just before it is signalled: then it loses its children."""

MOST_ROUNDS = 16
"""How often a signal is sent to whoever is new: SIGKILL is what ends those who start others all the time."""

STOP_WITHIN = 1.0
"""Seconds in which all of a tree have to have stopped before they are killed, stopped or not."""

_AGAIN = 0.001
"""Seconds until it is looked again whether they have."""

_MOST_ANCESTORS = 64

_RUNNING = frozenset("RS")
"""States in which a process may start another one, or is about to: it has not seen its SIGSTOP yet."""


class _Member:
    """A process of a tree.

    Attributes:
        pid: its pid.
        pidfd: it, pinned.
        leads: it leads a session: a process in there is a descendant of it.
        bystander: it is not signalled; what is below it is.
        reached: how many signals of the ladder it has been sent.
    """

    __slots__ = ("bystander", "leads", "pid", "pidfd", "reached")

    def __init__(self, pid: int, pidfd: int, *, leads: bool, bystander: bool = False) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.leads = leads
        self.bystander = bystander
        self.reached = 0


class Tree:
    """The descendants of one worker.

    Args:
        root: the worker.
        spares: whether a process of this pid is left out, with all that is below it.
        adopter: who gets what loses its parent below the worker, and nothing else but what is left out; None:
            nobody does.

    Attributes:
        signalled: signals of the ladder that were sent.
        kill_at: when SIGKILL is due to whoever is left, ``CLOCK_MONOTONIC``; ``inf``: it is not.
    """

    def __init__(
        self, root: PinnedProcess, spares: Callable[[int], bool], adopter: WorkerId | None = None
    ) -> None:
        pid = root.id.pid
        # A duplicate: it is still asked whether the worker is there when that has been buried.
        self._root = _Member(pid, os.dup(root.pidfd), leads=root.session == pid, bystander=True)
        self._members: list[_Member] = []
        self._by_pid = {pid: self._root}
        self._spares = spares
        self._adopter = self._adopting(adopter)
        self._ancestors = list(_ancestors(pid))
        self._above: frozenset[int] = frozenset()
        self._until = inf  # when to look no further
        self._stopping = False  # who is found is stopped at once
        self._unpinned = self._refused = ""
        self.signalled = 0
        self.kill_at = inf
        self.closed = False

    @property
    def shortfall(self) -> str:
        """Why not all of it was pinned and signalled, "" if all was."""
        return self._unpinned or self._refused

    # -- who belongs to it -----------------------------------------------------------------------

    def grow(self, within: float = inf) -> Steps[int]:
        """Look for descendants until none is new, for so many seconds; return how many were."""
        self._until = monotonic() + within
        new = 0
        while True:
            found = yield from self._look()
            new += found
            if not found or self._unpinned or self._is_over():
                return new

    def _is_over(self) -> bool:
        return self.closed or monotonic() >= self._until

    def catch_up(self) -> None:
        """Look for what the worker itself has started, for a millisecond at most: it is signalled next."""
        until = monotonic() + CATCH_UP
        self._above = _above_us()
        for _step in self._children(self._root):
            if monotonic() >= until:
                break

    def _look(self) -> Steps[int]:
        before = len(self._members)
        self._above, self._unpinned = _above_us(), ""
        yield from self._children(self._root)
        for member in self._members:  # which grows meanwhile
            if self._is_over():
                break
            yield from self._children(member)
        if self._adopter is not None:
            yield from self._children(self._adopter)
        yield from self._orphans()
        return len(self._members) - before

    def _children(self, parent: _Member) -> Steps[None]:
        """Take what a process has started, and is still its child."""
        with contextlib.suppress(OSError):  # it is gone
            for tid in procfs.each_tid(parent.pid):
                with contextlib.suppress(OSError):  # that thread has ended
                    for number, pid in enumerate(procfs.children_of(parent.pid, tid)):
                        self._consider(
                            pid, lambda its_parent, _session: parent if its_parent == parent.pid else None
                        )
                        if number % AT_ONCE == AT_ONCE - 1:
                            yield
                            if self._is_over():
                                return
                yield

    def _orphans(self) -> Steps[None]:
        """Take what has lost its parent, and is in a session that one of them leads."""
        leaders = {one.pid: one for one in (self._root, *self._members) if one.leads}
        for ancestor in self._ancestors if leaders else ():
            with contextlib.suppress(OSError):
                for tid in procfs.each_tid(ancestor):
                    for number, pid in enumerate(procfs.children_of(ancestor, tid)):
                        self._consider(pid, lambda _its_parent, session: leaders.get(session))
                        if number % AT_ONCE == AT_ONCE - 1:
                            yield
                            if self._is_over():
                                return
                    yield

    def _consider(self, pid: int, above: Callable[[int, int], _Member | None]) -> None:
        """Pin a process, and keep it if it belongs to the tree.

        Args:
            pid: that it had when it was shown.
            above: says, from its parent and its session, below whom of the tree it is; None: it is not.
        """
        known = self._by_pid.get(pid)
        if self.closed or (known is not None and not is_dead(known.pidfd)) or self._is_left_out(pid):
            return
        if len(self._members) >= MOST:
            self._unpinned = f"there are more than {MOST} processes"
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                self._unpinned = os.strerror(error.errno)
            return
        try:
            parent, session = procfs.parent_and_session(pid)
            one = above(parent, session)
            # In this order: they are there, so they were when that was read, and the numbers were theirs.
            belongs = one is not None and not is_dead(pidfd) and _is_there(one)
        except OSError:
            belongs = False
        if not belongs:
            os.close(pidfd)
            return
        member = _Member(pid, pidfd, leads=session == pid, bystander=pid in self._above)
        self._members.append(member)
        self._by_pid[pid] = member
        if self._stopping:
            self._send(member, signal.SIGSTOP)

    def _is_left_out(self, pid: int) -> bool:
        return pid in (os.getpid(), self._root.pid) or self._spares(pid)

    def _adopting(self, adopter: WorkerId | None) -> _Member | None:
        """Return who adopts what loses its parent here; None if that is nobody."""
        if adopter is None:
            return None
        try:
            pidfd = os.pidfd_open(adopter.pid)
        except OSError:
            return None
        member = _Member(adopter.pid, pidfd, leads=False, bystander=True)
        try:
            if procfs.start_time(adopter.pid) == adopter.started and not is_dead(pidfd):
                return member
        except OSError:
            pass
        os.close(pidfd)
        return None

    # -- signals ---------------------------------------------------------------------------------

    def send(self, number: int, *, with_cont: bool) -> Steps[None]:
        """Send a signal that is not SIGKILL to all of it, those included that come up meanwhile."""
        self.signalled += 1
        step = self.signalled
        for _round in range(MOST_ROUNDS):
            for count, member in enumerate(self._members):
                if member.reached < step == self.signalled:
                    member.reached = step
                    self._send(member, number)
                    if with_cont:
                        self._send(member, CONT)
                if count % AT_ONCE == AT_ONCE - 1:
                    yield
            if self.closed or not (yield from self.grow(STOP_WITHIN)):
                return

    async def kill(self, queue: WorkQueue) -> None:
        """Kill all of it. Whoever cancels this has it killed at once."""
        until = monotonic() + STOP_WITHIN
        try:
            while monotonic() < until:
                if await queue.complete(self._stop_all()):
                    break
                await asyncio.sleep(_AGAIN)
            await queue.complete(self._kill_all())
        finally:
            self.kill_now()

    def kill_now(self) -> None:
        """Kill all of it, and return when that is done: there is no time for slices."""
        until = monotonic() + STOP_WITHIN
        while not self.closed and monotonic() < until and not finish(self._stop_all()):
            os.sched_yield()
        finish(self._kill_all())

    def _stop_all(self) -> Steps[bool]:
        """Stop all of it; return whether they stand, and there was nobody new then."""
        if not self._stopping:
            self._stopping = True
            for count, member in enumerate(self._members):
                self._send(member, signal.SIGSTOP)
                if count % AT_ONCE == AT_ONCE - 1:
                    yield
            yield from self.grow(STOP_WITHIN)
        for member in self._members:
            if self.closed:
                break
            if not (member.bystander or is_dead(member.pidfd)):
                if not procfs.states_of(member.pid).isdisjoint(_RUNNING):
                    return False
                yield
        return not (yield from self.grow(STOP_WITHIN))

    def _kill_all(self) -> Steps[None]:
        """Kill all of it and let go of it; what others have begun with it ends here."""
        self.closed = True
        while self._members:
            for member in [self._members.pop() for _ in range(min(AT_ONCE, len(self._members)))]:
                self._signal(member, KILL)
                os.close(member.pidfd)
                member.pidfd = -1
            yield
        if self.shortfall and self._root.pidfd >= 0:
            log.warning("not all that process %d has started was killed: %s", self._root.pid, self.shortfall)
        self.close()

    def _send(self, member: _Member, number: int) -> None:
        if not self.closed:
            self._signal(member, number)

    def _signal(self, member: _Member, number: int) -> None:
        if member.bystander:
            return
        try:
            send_signal(member.pidfd, number)
        except ProcessLookupError:
            pass
        except OSError as error:
            self._refused = f"process {member.pid}: {error.strerror}"

    def close(self) -> None:
        """Let go of all of it."""
        self.closed = True
        for member in (*self._members, self._root, *([] if self._adopter is None else [self._adopter])):
            if member.pidfd >= 0:
                os.close(member.pidfd)
                member.pidfd = -1
        self._members.clear()


class Trees:
    """The trees of the workers that are being reaped.

    Args:
        queue: where they are looked at in slices.
        spares: whether a process of a pid is left out of all trees: it has timers armed, or is the server's
            owner.
        adopter: says for a worker who gets what loses its parent below it, and nothing else; None: nobody.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: WorkQueue,
        spares: Callable[[int], bool],
        adopter: Callable[[WorkerId], WorkerId | None] = lambda _worker: None,
    ) -> None:
        self._loop = loop
        self._queue = queue
        self._spares = spares
        self._adopter = adopter
        self._left: dict[Tree, asyncio.TimerHandle | None] = {}  # of workers that are dead

    async def pin(self, process: PinnedProcess) -> Tree | None:
        """Return the tree of a worker with all that it has started pinned; None: there is no descriptor."""
        try:
            tree = Tree(process, self._spares, self._adopter(process.id))
        except OSError as error:
            log.warning("what process %d has started is not reaped: %s", process.id.pid, error.strerror)
            return None
        try:
            await self._queue.complete(tree.grow(PIN_WITHIN))
        except BaseException:
            tree.close()
            raise
        return tree

    def signal(self, tree: Tree, number: int, kill_at: float, *, with_cont: bool) -> None:
        """The worker was sent a signal of its ladder; send it to the rest, soon.

        Args:
            tree: of that worker.
            number: the signal.
            kill_at: when the ladder comes to SIGKILL, ``CLOCK_MONOTONIC``.
            with_cont: send SIGCONT after it.
        """
        if number == KILL:
            self._kill(tree)
        else:
            tree.kill_at = kill_at
            self._queue.take_turn(tree.send(number, with_cont=with_cont))

    def died(self, tree: Tree, now: float) -> None:
        """The worker is dead. Who is left has as long as it would have had, had it been signalled at all."""
        if tree in self._left or tree.closed:
            return
        if tree.kill_at == inf:
            tree.close()
        else:
            self._left[tree] = self._loop.call_later(max(0.0, tree.kill_at - now), self._kill, tree)

    def _kill(self, tree: Tree) -> None:
        self._left[tree] = None
        self._queue.start(tree.kill(self._queue)).add_done_callback(lambda _task: self._left.pop(tree, None))

    def stop(self) -> None:
        """Kill who is left of workers that are dead or dying: no other server knows of them."""
        for tree, handle in list(self._left.items()):
            if handle is not None:
                handle.cancel()
            tree.kill_now()
        self._left.clear()


def _is_there(member: _Member) -> bool:
    """Whether a process has its pid yet: it lives, or nobody has waited for it."""
    try:
        send_signal(member.pidfd, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _ancestors(pid: int) -> Iterator[int]:
    """Yield the pids of a process's ancestors, as far as this pid namespace has them."""
    with contextlib.suppress(OSError):
        for _ in range(_MOST_ANCESTORS):
            pid, _session = procfs.parent_and_session(pid)
            if not pid:
                return
            yield pid


def _above_us() -> frozenset[int]:
    """Return the pids of those by whom this server was started."""
    return frozenset(_ancestors(os.getpid()))
