"""A reconnector: it says that timers are armed and nobody looks at them (an outage), and ends that.

The laws of this file:

* An outage is said once, in the log and to every hook; that it is over is said once too.
* While an outage lasts, one thread tries to reconnect, at most four times a second. The same thread finishes
  a connection for which its caller had no time; if it cannot, that is an outage. It ends with the outage, or
  with the last client. Otherwise there is no thread.
* Who has been refused asks the same server again after a second, then after twice as long each time, up to a
  minute; and another one, which has another socket there, at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from _thread import LockType, allocate_lock, get_native_id, start_new_thread
from collections.abc import Callable, Iterator
from math import inf
from time import sleep
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias

from .._core.layout import encode_scope
from .._linux.procfs import UNSENT
from ..errors import AiotimerError
from .memory import scratch

if TYPE_CHECKING:
    from .._core.requests import TimerRequest
    from .._core.table import Pool, TimerTable

log = logging.getLogger("aiotimer")

Hook: TypeAlias = Callable[[str | None], object]
"""``on_unwatched``: called with the reason when timers are not being watched, and with None when they are."""

_NAMED_WITHIN = 1.0
"""Seconds that a new thread waits for its starter to have its name back."""

_FIRST_PAUSE, _LAST_PAUSE = 0.25, 1.0
"""Seconds between two attempts to reconnect. ``table_files.PEERS_RETURN_WITHIN`` must be longer: for so
long a restarted server waits to hear what a peer without a shared table released meanwhile."""


_FIRST_REFUSAL, _LAST_REFUSAL = 1.0, 60.0
"""Seconds for which a server that has refused this process is not asked again."""


class Refusals:
    """The refusals of one server in a row, and for how long it is not asked again."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nobody has refused."""
        self._pause, self._until = 0.0, -inf
        self._server: object = None

    def add(self, server: object, now: float) -> None:
        """A server has refused; ``server``: what tells it from another one."""
        again = self._pause if server == self._server else 0.0
        self._pause = min(max(_FIRST_REFUSAL, 2 * again), _LAST_REFUSAL)
        self._server, self._until = server, now + self._pause

    def hold(self, now: float) -> bool:
        """Whether it is too early to ask again whoever refused."""
        return now < self._until

    def are_of(self, server: object) -> bool:
        """Whether it was this server."""
        return server == self._server


class Unfinished(Protocol):
    """What reconnecting is for."""

    def needs_reconnecting(self) -> bool:
        """Whether there is anything left to do, or to wait for."""

    def reconnect(self) -> None:
        """Try once. Blocks this thread for a second or two; raises AiotimerError or OSError if in vain."""


class Reconnector:
    """The part of a connection that notices outages and reconnects.

    Attributes:
        path: the server's socket.
        queue: what travels on the connection.
        hooks: whom to tell, see :data:`Hook`.
        unwatched: whether there is an outage.
        aloud: whether a client of the connection wants its outages in the log, whoever meets them.
        strict: whether one wants them raised. What begins in the background is in the log then, too.
        expected: whether the thread is about to connect, and nobody needs to be told yet.
    """

    queue: Unfinished

    def __init__(self, path: str) -> None:
        self.path = path
        self.hooks: list[Hook] = []
        self.start_afresh()

    def start_afresh(self) -> None:
        """Forget the outage, and the thread: there is none of ours in a forked child."""
        self.unwatched = False
        self._logged = False
        self._reason = ""
        self._no_room = False
        self.aloud = self.strict = self.expected = False
        self._reconnecting = False

    # -- the beginning and the end of an outage --------------------------------------------------

    def outage(self, reason: str, *, aloud: bool = True) -> None:
        """Timers are not being watched: say so, once.

        Args:
            reason: why.
            aloud: whether to say it in the log; the hooks are told in any case.
        """
        self._reason, self.expected = reason, False
        # One statement without a call: no other thread, and no signal's handler, gets in between.
        begins, log_it, self.unwatched, self._logged = (
            not self.unwatched, aloud and not self._logged, True, self._logged or aloud,
        )  # fmt: skip
        if log_it:
            log.warning("timers are not being watched: %s", reason)
        if begins:
            self._call_hooks(reason, self.hooks)
        if log_it or begins:
            self.reconnect_in_background()

    def no_room(self, reason: str) -> None:
        """There is no memory for another timer, which is not watched then: say so, once."""
        if self.aloud and not self._no_room:
            self._no_room = True
            log.warning("not every timer is being watched: %s", reason)

    def outage_in_background(self, reason: str) -> None:
        """Timers are not being watched, and it is too late to raise that where they were armed."""
        self.outage(reason, aloud=self.aloud or self.strict)

    def outage_over(self) -> None:
        """They are being watched: say so if the contrary has been said."""
        if not self.unwatched:
            return
        ends, log_it, self.unwatched, self._logged = self.unwatched, self._logged, False, False  # as above
        if log_it:
            log.warning("the timer server at %r looks again", self.path)
        if ends:
            self._call_hooks(None, self.hooks)

    def listen(self, hooks: list[Hook], *, aloud: bool, strict: bool = False) -> None:
        """Hear of outages from now on; of one that lasts, at once: it may have begun for others only."""
        self.hooks += hooks
        self.aloud, self.strict = self.aloud or aloud, self.strict or strict
        if self.unwatched:
            self.outage(self._reason, aloud=aloud or strict)
            self._call_hooks(self._reason, hooks)

    def _call_hooks(self, reason: str | None, hooks: list[Hook]) -> None:
        for hook in list(hooks):
            try:
                hook(reason)
            except Exception:
                log.exception("on_unwatched failed")

    # -- the thread ------------------------------------------------------------------------------

    def connect_in_background(self) -> None:
        """Have the thread connect. If it cannot, or there is no thread to be had, nobody is expected."""
        self.expected = True
        self.reconnect_in_background()
        self.expected = self.expected and self._reconnecting

    def reconnect_in_background(self) -> None:
        """See that a thread reconnects. Waits for nothing: finalisers come here. Two threads do no harm.

        A server that is restarted sees by its name that there is one, whether or not it can run.
        When the interpreter ends, its timers end with it; a thread would not run any more.
        """
        if self._reconnecting or sys.is_finalizing():
            return
        self._reconnecting = True
        started = allocate_lock()
        started.acquire()
        try:
            # Not threading.Thread: its start() takes locks, and waits until the thread runs.
            naming = Naming()
            try:
                naming.begin(UNSENT)
                start_new_thread(self._keep_reconnecting, (started, naming))
            finally:
                try:
                    naming.end()
                finally:
                    started.release()
        except RuntimeError:  # no thread can be had
            self._reconnecting = False
        except BaseException:  # a signal's handler has raised
            self._reconnecting = False
            raise

    def nap(self, seconds: float) -> None:
        """Sleep between two attempts."""
        sleep(seconds)

    def _keep_reconnecting(self, started: LockType, naming: Naming) -> None:
        try:
            # Then its starter has its own name again, by which a server will know this process; but if a
            # signal's handler has kept it from that.
            started.acquire(timeout=_NAMED_WITHIN)
            naming.end_if_interrupted()
            with contextlib.suppress(OSError):
                _rename(get_native_id(), UNSENT)  # its starter may have had its name back before
            self._reconnect_until_done()
        finally:
            self._reconnecting = False  # however it ends: else there would never be another one

    def _reconnect_until_done(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            if not self.queue.needs_reconnecting():
                self._reconnecting = False
                if not self.queue.needs_reconnecting():  # or somebody came just now, and saw this thread
                    return
                self._reconnecting = True
            try:
                self.queue.reconnect()
                if not self.queue.needs_reconnecting():
                    continue
            except (AiotimerError, OSError) as error:
                if self.expected:
                    self.outage_in_background(str(error))
            self.nap(pause)
            pause = min(1.5 * pause, _LAST_PAUSE)


class NoServer(Reconnector):
    """A connection and its queue in an interpreter that cannot load the codec, as no sub-interpreter can.

    It says so once, and its blocks are in scratch.

    Args:
        path: the server's socket.
        reason: what importing the codec raised.
    """

    shared, connected, welcomed, ended = True, False, False, 0
    table = watched = call_later = None

    def __init__(self, path: str, reason: ImportError) -> None:
        super().__init__(path)
        self._error = reason
        self.queue = self.connection = self
        self.worker_id = os.getpid()
        self.pools: dict[str, Pool] = {}
        self.sites: dict[tuple[int, int], Pool] = {}

    def pool(self, scope: str, *, observed: bool = False) -> Pool:
        """Return a pool in scratch."""
        return scratch.pool(scope, observed=observed)

    def must_connect(self, *, insist: bool) -> bool:
        """Whether it has to be said that this is not possible."""
        return insist or not self.unwatched

    def may_attempt(self) -> bool:
        """Return False: no later attempt will succeed."""
        return False

    def make_table(self) -> TimerTable:
        """Return scratch."""
        return scratch

    def ring(self, deadline: float) -> bool:
        """Return True: there is nobody to be told."""
        return True

    def want_channel(self, block_type: type[object], slot: int | None) -> None:
        """Do nothing: nobody asks."""

    def attempt(self, budget: float) -> Exception:
        """Return why it is in vain."""
        return AiotimerError(f"this interpreter cannot talk to a timer server: {self._error}")

    async def attempt_async(self, budget: float) -> Exception:
        """Return why it is in vain."""
        return self.attempt(budget)

    def connect(self, budget: float) -> NoReturn:
        """Raise AiotimerError."""
        raise self.attempt(budget)

    async def connect_async(self, budget: float) -> NoReturn:
        """Raise ServerUnavailable."""
        self.connect(budget)

    def put(self, request: TimerRequest, budget: float = 0.0, *, insist: bool = True) -> bool:
        """Refuse a request, but for a release."""
        encode_scope(request.scope_id)
        if not request.is_release and self.must_connect(insist=insist):
            self.connect(budget)
        return False

    async def put_async(self, request: TimerRequest, budget: float = 0.0, *, insist: bool = True) -> bool:
        """Do what :meth:`put` does."""
        return self.put(request, budget, insist=insist)

    def put_nowait(self, request: TimerRequest) -> None:
        """Do nothing: there is nothing to release."""

    def ask_for(self, reap: str, *, observe: bool, target: str = "") -> None:
        """Do nothing: nobody reaps."""

    def enter(self, hook: Hook | None = None, *, aloud: bool = False, strict: bool = False) -> None:
        """One more client."""
        self.listen([] if hook is None else [hook], aloud=aloud, strict=strict)

    def leave(self, hook: Hook | None = None) -> None:
        """A client is done."""
        self.hooks = [other for other in self.hooks if other is not hook]

    def reconnect_in_background(self) -> None:
        """Do nothing: no thread can connect either."""

    def needs_reconnecting(self) -> bool:
        """Return False."""
        return False

    def reconnect(self) -> None:
        """Do nothing."""


_renamed: dict[int, Naming] = {}
"""The threads that are called otherwise for a while; by number."""


class Naming:
    """A while in which this thread has another name: a new thread begins with its starter's.

    A signal's handler may raise wherever its end is due, and may begin to reconnect in the middle of it.
    """

    def __init__(self) -> None:
        self._thread = get_native_id()
        self._own = b""

    def begin(self, name: str) -> None:
        """Give the thread that name, if that is possible."""
        with contextlib.suppress(OSError):
            interrupted = _renamed.get(self._thread)
            self._own = _name(self._thread) if interrupted is None else interrupted._own
            _renamed[self._thread] = self
            _rename(self._thread, name)

    def end(self) -> None:
        """Give it its own name back."""
        if self._own:
            with contextlib.suppress(OSError):
                _rename(self._thread, self._own)
        if _renamed.get(self._thread) is self:
            _renamed.pop(self._thread, None)

    def end_if_interrupted(self) -> None:
        """Do so if the thread could not. Its *next* naming is left alone: only it knows when that ends."""
        if _renamed.get(self._thread) is self:
            self.end()


def _name(thread: int) -> bytes:
    """Return what a thread of this process is called."""
    with _comm(thread, os.O_RDONLY) as descriptor:
        return os.read(descriptor, 64).rstrip(b"\n")


def _rename(thread: int, name: str | bytes) -> None:
    """Give a thread of this process another name, of which 15 bytes count."""
    with _comm(thread, os.O_WRONLY) as descriptor:
        os.write(descriptor, os.fsencode(name))


@contextlib.contextmanager
def _comm(thread: int, flags: int) -> Iterator[int]:
    """Have the file that is a thread's name. Not a file object: that complains if a handler raises."""
    descriptor = os.open(f"/proc/self/task/{thread}/comm", flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
