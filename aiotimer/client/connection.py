"""A connection of this process to one server, at the worker's end, and what travels on it: a request queue.

The laws of this file:

* A process has one :class:`ClientConnection` per server and kind of queue (:func:`connection_to`), shared by
  all its clients, threads and event loops. The connection connects, notices outages, counts its users and
  ends; what is asked for, what HELLO lists, what is left to do is the business of its :class:`WorkerQueue`.
* Only WELCOME means connected. The table outlives connections: whoever reconnects brings it along.
* The socket is used raw, from any thread. Before every use its inode is compared, because a program may close
  descriptors it does not own and the number may by now be somebody else's.
* Nothing here holds the caller longer than the budget it gave, but for who asks for a connection itself while
  its server is being started (``launch``); and a synchronous caller on a running event loop no longer than
  ``BUDGET_ON_LOOP``. What that was too short for, a thread of ours finishes.
* Who has said HELLO and got no answer in time leaves the question where it is: a server that was stopped
  finds the table in it, whether or not this process can run Python by then.
* After a fork the child starts afresh: connections are reset, tables turn to private scratch.
* When the interpreter ends, blocks are armed no more: its threads have been stopped wherever they are, and
  nothing can leave a block. What was armed by ``acquire`` stays.
* The last client to leave disarms what is left, in the table too: a server that is not there now may come.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import weakref
from _thread import get_ident, start_new_thread
from abc import abstractmethod
from collections.abc import Callable
from math import inf, nan
from time import monotonic, sleep
from types import CodeType
from typing import Any, Protocol, TypeAlias

from .._core import wire
from .._core.ladder import NO_REQUEST
from .._core.layout import PROMISE, as_stored, encode_scope, shifted
from .._core.locks import Lock
from .._core.reader import TableReader
from .._core.requests import RELEASE, TimerRequest
from .._core.table import Pool, TimerTable
from .._linux.forks import in_child, notice
from .._linux.paths import check_socket_path, is_private, observes, run_name
from .._linux.process import PID_1
from .._linux.procfs import time_namespace
from .._version import __version__
from ..errors import AiotimerError, Refused, ServerUnavailable
from ..queue import RequestQueue
from . import waiting
from .control import ping
from .dump_signal import allow_tracing
from .handshake import Greeting, greet, reach
from .launch import READY_WITHIN, found, somebody_listens, starting_until, until_it_serves
from .libraries import library_paths
from .membership import membership_of_this_process
from .memory import NO_FILE, close, identity, is_open, scratch
from .reconnect import Hook, Reconnector, Refusals, log
from .spare_signal import exit_signal
from .waiting import BUDGET, Steps, Turn, Turns, Wait, loop_is_running, within
from .worker_name import name_of_this_process

RETRY_EVERY = 1.0
"""Seconds between attempts to reach a server that did not answer."""

CONNECT_WITHIN = 5.0
"""Seconds for a thread to connect to a server that has just answered: on a busy machine thousands of timers
that are listed one by one, for want of a table, take longer than an attempt that somebody waits for."""

FOUND_EVERY = 60.0
"""Seconds between two private servers that this process starts: it has another one when its own has gone."""

_MOST_CODES = 4096
"""Code objects whose call sites are remembered."""

Armed: TypeAlias = "tuple[tuple[str, float], ...]"
"""Timers as (key, deadline), see ``wire.Hello``."""


class Cancellable(Protocol):
    """What has been scheduled."""

    def cancel(self) -> None:
        """Do not do it."""


CallLater: TypeAlias = "Callable[[float, Callable[[], None]], Cancellable]"
"""``call_later(seconds, callback)``, in a loop's thread."""


class WorkerQueue(RequestQueue):
    """The worker's end of a request queue: what clients and blocks stand on.

    Requests are stored in a table of this process, where the newest is found at any time; the kinds differ in
    how the server gets to know them. What is put here comes out at the server's end, and nowhere else.

    Attributes:
        connection: to the server.
        table: where requests are stored, None before there is a place.
        watched: the same, while a server reads it and is known to be connected.
        pools: the pools of ``table``; empty while there is none. The dict is the same for ever.
        sites: the same pools by (code object's id, instruction) of the calls that use them.
        call_later: how soft limits are scheduled; None: by their loop, whose clock is the table's.
        next_channel_attempt: when the next attempt is made to open an inspection channel.
        ended: the thread in which the interpreter ends, 0 before: blocks arm nothing any more.
    """

    shared: bool
    """Whether the server reads the table itself. If not, every request is sent to it and acknowledged."""

    call_later: CallLater | None = None

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.pools: dict[str, Pool] = {}
        self.sites: dict[tuple[int, int], Pool] = {}
        self._codes: dict[int, CodeType] = {}
        self.next_channel_attempt = -inf
        self._channels_wanted: list[tuple[Callable[[], Any], type[object], dict[int, Callable[[], Any]]]] = []
        self.ended = 0

    def reset(self) -> None:
        """Forget everything: a new connection, or the child after a fork."""
        self._worker_id = os.getpid()
        self._channels_wanted.clear()
        self.table: TimerTable | None = self._first_table()
        self.watched: TimerTable | None = None
        self.pools.clear()
        self.sites.clear()
        self._codes.clear()

    @property
    def worker_id(self) -> int:
        """This process, which all requests are on."""
        notice()
        return self._worker_id

    @property
    def path(self) -> str:
        """The server's socket."""
        return self.connection.path

    @property
    def descriptor(self) -> int:
        """The descriptor of the table's file, -1 if it has none."""
        return -1

    def pool(self, scope: str, *, observed: bool = False) -> Pool:
        """Return the pool of a scope: in the table, or in scratch while there is no table."""
        return ((not self.ended and self.table) or scratch).pool(scope, observed=observed)

    def remember_site(self, code: CodeType, instruction: int, pool: Pool) -> None:
        """Remember which pool a call without a scope uses. The code object is kept, so its id is its own."""
        codes = self._codes
        if len(codes) >= _MOST_CODES:  # a program that makes code for ever; it starts over
            self._codes = {}
            self.sites.clear()
            del codes  # only now: no site may outlive its code
        self.sites[id(code), instruction] = pool
        self._codes[id(code)] = code  # last: another thread may be starting over, and the site is gone then

    def want_channel(self, block_type: type[object], slot: int | None) -> None:
        """Have the server inspect the running event loop, if there is one, as soon as it is connected.

        Args:
            block_type: what is entered.
            slot: which slot the current task has just taken, as a word index: it is known by then, too.
        """
        events, tasks = sys.modules.get("asyncio.events"), sys.modules.get("asyncio.tasks")
        loop = None if events is None else events._get_running_loop()
        if loop is None or tasks is None:
            return
        entries = next((noted for known, _type, noted in self._channels_wanted if known() is loop), None)
        if entries is None:
            entries = {}
            self._channels_wanted.append((weakref.ref(loop), block_type, entries))
        task = tasks.current_task(loop)
        if slot is not None and task is not None:
            entries[slot] = weakref.ref(task)

    def open_channels(self) -> None:
        """Open the inspection channels that are wanted, each in its loop's thread."""
        from .inspection import open_inspection_channel

        while self._channels_wanted:
            known, block_type, entries = self._channels_wanted.pop()
            loop = known()
            if loop is not None:
                with contextlib.suppress(RuntimeError):  # it has been closed
                    loop.call_soon_threadsafe(open_inspection_channel, self, block_type, None, entries)

    # -- the contract ----------------------------------------------------------------------------

    def put(self, request: TimerRequest, budget: float = BUDGET, *, insist: bool = True) -> bool:
        """Store a request, and tell the server if it must be told, blocking this thread.

        Args:
            request: on this process.
            budget: seconds that this may take; less on a running event loop.
            insist: look for a server even if one has been looked for in vain a moment ago.

        Raises:
            TypeError, ValueError: it cannot be stored, and nothing has been.
            AiotimerError, OSError: the server does not know of it, and has to. It is stored all the same, if
                there is a place for it.
        """
        absent = None
        if self.watched is None and _arms(request) and self.must_connect(insist=insist):
            absent = self.connection.attempt(budget)
        deadline = self._store_although(request, absent)
        if deadline is None:
            return False
        self.send(request.scope_id, deadline, budget)
        return True

    async def put_async(self, request: TimerRequest, budget: float = BUDGET, *, insist: bool = True) -> bool:
        """Do what :meth:`put` does, suspending the task."""
        absent = None
        if self.watched is None and _arms(request) and self.must_connect(insist=insist):
            absent = await self.connection.attempt_async(budget)
        deadline = self._store_although(request, absent)
        if deadline is None:
            return False
        await self.send_async(request.scope_id, deadline, budget)
        return True

    def put_nowait(self, request: TimerRequest) -> None:
        """Store a release, and wait for nothing: what is left to do is done in the background."""
        self._store(request)
        self.send_release_nowait(request.scope_id)

    def size(self) -> int:
        """Return 0: at this end nothing comes out."""
        return 0

    def get(self, size: int, timeout: float = 0.0) -> list[TimerRequest]:
        """Return nothing, at once: nothing will come out at this end."""
        return []

    def must_connect(self, *, insist: bool) -> bool:
        """Whether to connect before anything is stored."""
        return False

    def make_table(self) -> TimerTable:
        """Return the table of this process, made now if there is none.

        Raises:
            OSError: there is no memory, descriptor or address space for it.
        """
        assert self.table is not None
        return self.table

    def ring(self, deadline: float) -> bool:
        """Tell the server of a deadline that it finds in the table; True: done, or not needed."""
        return True

    def _store_although(self, request: TimerRequest, absent: Exception | None) -> float | None:
        """Store a request, and then raise the reason why nobody will watch it, if there is one."""
        deadline = None
        try:
            deadline = self._store(request)
        except OSError as error:  # there is no place for it
            absent = absent or error
        if absent is not None:
            raise absent
        return deadline

    def _store(self, request: TimerRequest) -> float | None:
        """Store a request; return the stored deadline if the server must be told of it."""
        worker_id, scope_id, deadline = request
        if worker_id != self.worker_id:
            raise ValueError(f"a request on {worker_id!r} in the queue of {self.worker_id!r}")
        table = self.table
        if table is None:
            if deadline < 0:
                return None
            as_stored(deadline)  # before anything is made for it
            table = self.make_table()
        if table.offset:
            deadline = shifted(deadline, table.offset)
        now = 0.0 if deadline < 0 else table.now()  # of no use to a release
        if table.set((scope_id, 0), deadline, now) or not self.shared:
            return deadline
        return None

    # -- what is stored already ------------------------------------------------------------------

    def send(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Let the server know of a deadline that has been stored, and of which it must be told.

        Args:
            key: the timer's name (``layout.timer_key``).
            deadline: the stored deadline.
            budget: seconds that this may take; less on a running event loop.
            word: where it is stored, of an entry's timer.

        Raises:
            AiotimerError, OSError: the server does not know it, and has to.
        """
        steps = self._sending(key, deadline, word, blocks_loop=loop_is_running())
        if steps is not None:
            waiting.run(steps, within(budget))

    async def send_async(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Do what :meth:`send` does, suspending the task instead of blocking its thread."""
        steps = self._sending(key, deadline, word, blocks_loop=False)
        if steps is not None:
            await waiting.run_async(steps, budget)

    def send_release(self, key: str, budget: float, word: int = 0) -> None:
        """Let the server know that a timer was released. Never fails: what cannot be sent now is pending."""
        with contextlib.suppress(AiotimerError, OSError):
            self.send(key, RELEASE, budget, word)

    async def send_release_async(self, key: str, budget: float, word: int = 0) -> None:
        """Do what :meth:`send_release` does, suspending the task."""
        with contextlib.suppress(AiotimerError, OSError):
            await self.send_async(key, RELEASE, budget, word)

    # -- what the kinds differ in ----------------------------------------------------------------

    def _first_table(self) -> TimerTable | None:
        """Return what to store in before a server has given us a table."""
        return None

    @abstractmethod
    def _sending(self, key: str, deadline: float, word: int, *, blocks_loop: bool) -> Steps[None] | None:
        """Do at once what :meth:`send` can, and return what is left; ``blocks_loop``: it holds up a loop."""

    @abstractmethod
    def send_release_nowait(self, key: str, word: int = 0) -> None:
        """Send a release without waiting for anything: safe in a finaliser."""

    @abstractmethod
    def introduce(self) -> tuple[list[int], Armed]:
        """Return what comes with HELLO: a descriptor of the table, to be closed then; or what is armed."""

    def follow_up(self, sock: socket.socket, welcome: wire.Welcome) -> Steps[None]:
        """Send what HELLO had no room for."""
        yield from ()

    @abstractmethod
    def settle(self, sock: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        """Take a connection into use."""

    def disconnected(self) -> None:
        """The connection is gone: nobody is known to watch."""
        self.watched = None

    @abstractmethod
    def needs_reconnecting(self) -> bool:
        """Whether there is anything left to do, or to wait for."""

    @abstractmethod
    def reconnect(self) -> None:
        """Try once. Blocks this thread for a second or two; raises AiotimerError or OSError if in vain."""

    @abstractmethod
    def depart(self) -> None:
        """The last client leaves. Whoever enters next, which nobody can meanwhile, finds nothing of it."""

    def end(self) -> None:
        """The interpreter ends: whatever blocks have armed is released, and they arm nothing any more."""
        self.ended = get_ident()
        self.watched = None
        self.pools.clear()
        self.sites.clear()

    def say_bye(self) -> None:
        """The last client has left: tell the server now, if that had to wait."""

    def let_go(self) -> None:
        """Give up what is open. Entries that are active keep their table, and release in it."""
        if self.table is not None:
            self.table.pools = {}  # the dict goes on with the queue
            self.table.cells[PROMISE] = nan  # a block that was made before finds another table


def reader_of(table: TimerTable) -> TableReader:
    """Return a reader of a table of this process."""
    return TableReader(lambda size, offset: bytes(table.raw[offset : offset + size]))


def _arms(request: TimerRequest) -> bool:
    """Whether a request needs a table; one that is none is refused."""
    encode_scope(request.scope_id)
    return not request.is_release


class ClientConnection(Reconnector):
    """A connection, and the queue that is its.

    Args:
        path: the server's socket, absolute.
        kind: makes the queue.

    Attributes:
        queue: the queue.
        connected: whether a server has welcomed this process and is not known to have gone since.
        welcomed: whether one ever has.
        users: how many clients use it.
        entering: held while somebody enters or leaves.
        closed_by_program: whether it was lost because its descriptor was closed: the server is still there.
        starting_until: when (``CLOCK_MONOTONIC``) a server that has just been started should be there;
            until then a missing socket is waited for.
    """

    def __init__(self, path: str, kind: Callable[[ClientConnection], WorkerQueue]) -> None:
        super().__init__(path)
        self.starting_until = self._found_again_at = -inf
        self.users = 0
        self.reap_request = NO_REQUEST
        self.entering = Lock()
        self._turns = Turns()  # at connecting
        self._resets = 0
        self._refusals = Refusals()
        self.queue: WorkerQueue = kind(self)
        self.reset()
        _every_connection.add(self)

    def reset(self) -> None:
        """Forget everything: a new connection, or the child after a fork."""
        self.queue.reset()
        self.connected = self.welcomed = False
        self._socket: socket.socket | None = None
        self._socket_file = NO_FILE
        self.closed_by_program = False
        self._resets += 1
        self._next_attempt = -inf
        self._silent_until = -inf  # a server has just let us wait in vain
        self._greeting: Greeting | None = None  # that has not been answered
        self._refusals.forget()
        self.unwatched = self._logged = self.aloud = self.strict = self.expected = False

    def ask_for(self, reap: str, *, observe: bool, target: str = "") -> None:
        """A client asks how this process is reaped: the first request holds until the last client leaves.

        Raises:
            TypeError, ValueError: it is no request, or not the one that holds.
        """
        self.entering.holding(self._ask_for, reap, observe=observe, target=target)

    def _ask_for(self, reap: str, *, observe: bool, target: str) -> None:
        request = self.reap_request.combined(self.path, reap, observe=observe, target=target)
        if request != self.reap_request:
            self.disconnect()  # it stands in the next HELLO
        self.reap_request = request

    # -- connecting ------------------------------------------------------------------------------

    def connect(self, budget: float) -> None:
        """Connect, blocking this thread for at most ``budget`` seconds, longer while the server is started.

        Raises as :meth:`connecting`.
        """
        waiting.run(self.connecting(), self._patience(budget))

    async def connect_async(self, budget: float) -> None:
        """Do what :meth:`connect` does, suspending this task."""
        await waiting.run_async(self.connecting(), self._patience(budget))

    def _patience(self, budget: float) -> float:
        return max(budget, self.starting_until - monotonic())

    def attempt(self, budget: float) -> Exception | None:
        """Connect for the sake of a request, within its budget; less on a running event loop.

        Returns:
            Why nobody will watch it. None: somebody does; or will, a thread sees to that.
        """
        try:
            waiting.run(self.connecting(), within(budget), patient=False)
        except (AiotimerError, OSError) as error:
            return self._absence(error, hurried=within(budget) < budget)
        return None

    async def attempt_async(self, budget: float) -> Exception | None:
        """Do what :meth:`attempt` does, suspending the task."""
        try:
            await waiting.run_async(self.connecting(), budget, patient=False)
        except (AiotimerError, OSError) as error:
            return self._absence(error, hurried=False)
        return None

    def _absence(self, error: Exception, *, hurried: bool) -> Exception | None:
        """Leave it to the thread if the server had no time, or is being started; else it is an error."""
        if self._is_starting() or (hurried and monotonic() < self._silent_until):
            self.connect_in_background()
            return None if self.expected else error
        return error

    def found_server(self) -> bool:
        """See that there is a private server here; in the background, in a running event loop.

        Returns:
            Whether this process is its owner.

        Raises:
            ServerUnavailable: it cannot be started.
            UnsafePath: there is no place for its socket.
        """
        self.starting_until = monotonic() + READY_WITHIN
        if loop_is_running() and self._found_in_background():
            return True
        try:
            return found(self.path)
        except BaseException:
            self._not_found()
            raise

    def _not_found(self) -> None:
        """A private server cannot be started: that is not tried again, and told again, at the first block."""
        self.starting_until, self._found_again_at = -inf, monotonic() + FOUND_EVERY

    def _found_in_background(self) -> bool:
        """Do it in a thread, which is not waited for; return whether there is one."""

        def start() -> None:
            try:
                found(self.path)
            except (AiotimerError, OSError) as error:
                self._not_found()
                self.outage_in_background(str(error))

        try:
            start_new_thread(start, ())
        except RuntimeError:
            return False
        return True

    def _awaited_until(self) -> float:
        """Nobody listens: return until when to wait. Whose private server has gone has another one."""
        if monotonic() >= max(self.starting_until, self._found_again_at) and is_private(self.path):
            self._found_again_at = monotonic() + FOUND_EVERY
            self.starting_until = monotonic() + READY_WITHIN
            if not self._found_in_background():
                self.starting_until = -inf
        return self.starting_until

    def connecting(self) -> Steps[None]:
        """Connect, if this process is not connected yet.

        Raises:
            ServerUnavailable: nobody answered.
            Refused: the server does not want this client.
        """
        notice()
        turns, turn = self._turns, Turn()
        try:
            while not turns.take(turn):  # another thread or task of this process is at it
                yield Wait(seconds=0.001, until=starting_until(self.path))
            if not self.connected:
                self._next_attempt = monotonic() + RETRY_EVERY
                kept = self._greeting is not None
                try:
                    yield from self._connect_now(self._resets)
                except ServerUnavailable:
                    if not kept or self._greeting is not None:
                        raise
                    yield from self._connect_now(self._resets)  # whom it was said to is gone
        except TimeoutError as error:
            self._silent_until = monotonic() + RETRY_EVERY
            raise ServerUnavailable(self.path, str(error)) from None
        except Refused:
            self._refusals.add(self._server(), monotonic())
            raise
        except (AiotimerError, OSError):
            raise
        except BaseException:  # cancelled: that says nothing about the server
            self._next_attempt = -inf
            raise
        finally:
            turn.over = True

    def _connect_now(self, resets: int) -> Steps[None]:
        queue, descriptor = self.queue, -1
        greeting = self._greeting
        sock = (
            greeting.socket
            if greeting
            else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        )
        try:
            if greeting is None:
                until = yield from reach(sock, self.path, self._awaited_until, in_vain=queue.shared)
                hello, offered = self._hello()
                files = [identity(number) for number in offered]
                try:
                    yield from greet(sock, wire.encode(hello), offered, until)
                finally:
                    for number, file in zip(offered, files, strict=True):
                        if is_open(number, file):
                            os.close(number)
                greeting = Greeting(sock, self.path, until)
                if queue.shared:  # what else HELLO says, another one may have to contradict
                    self._greeting = greeting
            welcome, descriptor = yield from greeting.answer()
            self._greeting = None
            yield from queue.follow_up(sock, welcome)
            self.entering.holding(self._settle, resets, sock, welcome, descriptor)  # nobody leaves meanwhile
        except BaseException as error:
            if isinstance(error, TimeoutError) and self._greeting is not None:
                raise  # it may yet be answered
            self._greeting = None
            if self._socket is not sock:
                sock.close()
            if descriptor >= 0 and descriptor != queue.descriptor:
                os.close(descriptor)
            raise

    def _settle(self, resets: int, sock: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        if self._resets != resets:
            raise ServerUnavailable(self.path, "the last client was closed meanwhile")
        self.queue.settle(sock, welcome, descriptor)

    def _hello(self) -> tuple[wire.Hello, list[int]]:
        """Return HELLO, and the descriptors that go with it, to be closed."""
        clock = monotonic()  # before the rest: of two HELLOs the later one must not know less
        offered, armed = self.queue.introduce()
        hello = wire.Hello(
            version=wire.PROTOCOL_VERSION,
            release=__version__,
            pid=os.getpid(),
            shared=self.queue.shared,
            time_namespace=time_namespace(),
            clock=clock,
            offers_table=bool(offered),
            armed=armed,
            reap=self.reap_request.text,
            observe=self.reap_request.observe or observes(),
            run=run_name(),
            exit_signal=self._exit_signal(),
            name=name_of_this_process(),
            libraries=library_paths(),
            **membership_of_this_process()._asdict(),
        )
        return hello, offered

    def _exit_signal(self) -> int:
        number = exit_signal.take()
        if os.getpid() == PID_1 and not number and not exit_signal.told and (self.aloud or self.strict):
            exit_signal.told = True
            log.warning(
                "this process is pid 1 of its pid namespace, which nobody in there can kill, and it has no "
                "signal to spare at which it could exit: start it under an init (`docker run --init`, tini)"
            )
        return number

    def use(self, sock: socket.socket) -> None:
        """Use a socket on which this process has been welcomed."""
        old, old_file = self._socket, self._socket_file
        self._socket = sock
        allow_tracing(sock)
        self._socket_file = identity(sock.fileno())
        self.connected, self.starting_until, self._next_attempt = True, -inf, -inf
        self.expected = False
        self.closed_by_program = False
        self.welcomed = True
        self._refusals.forget()
        if old is not None:
            close(old, old_file)
        if "asyncio" in sys.modules:
            self.queue.open_channels()  # and import what that takes now, when it takes nobody's time

    def may_attempt(self) -> bool:
        """Whether somebody is connecting, or has been answered, or has tried a second ago or more.

        Who has been refused waits for longer, see ``Refusals``.
        """
        if self._is_refused():
            return False
        greeting = self._greeting
        if self._turns.taken or monotonic() >= self._next_attempt:
            return True
        return greeting is not None and greeting.is_answered()

    def _is_refused(self) -> bool:
        """Whether the server that is there has just refused this process."""
        return self._refusals.hold(monotonic()) and self._refusals.are_of(self._server())

    def _server(self) -> tuple[int, ...]:
        """Return what tells the server at the path from another one: its socket."""
        try:
            found = os.stat(self.path)
        except OSError:
            return NO_FILE
        return found.st_dev, found.st_ino, found.st_mtime_ns  # a number may be given again at once

    def check_silence(self) -> None:
        """Raise ServerUnavailable if a server has just let somebody wait in vain: not everybody has to."""
        if monotonic() < self._silent_until:
            raise ServerUnavailable(self.path, "it did not answer a moment ago")

    def send_frame(self, frame: bytes) -> bool:
        """Send a message. Returns False if the server is gone."""
        notice()
        sock = self._socket
        if sock is None:
            return False
        try:
            self.closed_by_program = not is_open(sock.fileno(), self._socket_file)
            if self.closed_by_program:
                raise ConnectionError("the program closed the connection's descriptor")
            sock.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return True  # what the server has not read yet will make it look
        except OSError:
            self.connected = False
            self.queue.disconnected()
            return False
        return True

    def find_server(self) -> None:
        """Connect, in a thread that has time; not if it is too early to ask again whoever has refused.

        One that is being started is waited for, any other is asked before it is greeted, and its answer to a
        greeting awaited before that is read: who enters a block meanwhile would wait for the end of it all.
        """
        if self._is_refused():
            return
        while self._is_starting() and not somebody_listens(self.path):
            sleep(0.005)
        try:
            waiting.run(until_it_serves(self.path), RETRY_EVERY)  # another one listens in its place
        except TimeoutError as error:
            raise ServerUnavailable(self.path, str(error)) from None
        greeting = self._greeting
        if greeting is not None:
            if not greeting.is_answered(RETRY_EVERY):
                raise ServerUnavailable(self.path, f"no answer within {RETRY_EVERY:g} s")
        elif not is_private(self.path) or somebody_listens(self.path):
            ping(self.path, trusted=True)
        self.connect(CONNECT_WITHIN)

    def nap(self, seconds: float) -> None:
        """Sleep; no longer than until a greeting is answered."""
        greeting = self._greeting
        if greeting is None:
            super().nap(seconds)
        else:
            greeting.is_answered(seconds)

    def _is_starting(self) -> bool:
        return monotonic() < max(self.starting_until, starting_until(self.path))

    # -- the end ---------------------------------------------------------------------------------

    def enter(self, hook: Hook | None = None, *, aloud: bool = False, strict: bool = False) -> None:
        """One more client uses this connection.

        Args:
            hook: wants to hear of outages, and of one that has begun already.
            aloud: whether the client wants them in the log.
            strict: whether it wants them raised.
        """
        self.entering.holding(self._count, 1)
        self.listen([] if hook is None else [hook], aloud=aloud, strict=strict)

    def leave(self, hook: Hook | None = None) -> None:
        """A client is done; with the last one the server forgets this process's timers, if need be later."""
        notice()
        if hook is not None:
            self.hooks.remove(hook)
        if self.entering.holding(self._count, -1) <= 0:
            self.queue.say_bye()

    def _count(self, more: int) -> int:
        """Count the users; with the last one all of it departs."""
        self.users += more
        if more < 0 and self.users <= 0:
            self.queue.depart()
            self.reap_request = NO_REQUEST
        return self.users

    def disconnect(self) -> None:
        """Close the connection and nothing else: the timers stay armed."""
        self.queue.disconnected()
        sock, self._socket = self._socket, None
        greeting, self._greeting = self._greeting, None
        self.connected = False
        if sock is not None:
            close(sock, self._socket_file)
        if greeting is not None:
            greeting.close()

    def fork(self) -> None:
        """In a forked child: let go of what is the parent's, and start afresh."""
        self._turns = Turns()
        self.entering = Lock()
        self.starting_until = self._found_again_at = -inf  # that is the parent's thread's business
        wanted = self.aloud, self.strict
        self.start_afresh()
        self.let_go()
        self.aloud, self.strict = wanted  # its clients are the child's, too

    def let_go(self) -> None:
        """Close what is open, and forget it."""
        self.disconnect()
        for name in ("inspection", "hub_channel"):
            module = sys.modules.get(f"aiotimer.client.{name}")
            close_channels = getattr(module, "close_channels", None)  # another thread may be importing it:
            if close_channels is not None:  # then there is no channel yet
                close_channels(self.path)
        self.queue.let_go()
        self.reset()


_connections: dict[tuple[str, Callable[[ClientConnection], WorkerQueue]], ClientConnection] = {}
_every_connection: weakref.WeakSet[ClientConnection] = weakref.WeakSet()


def connection_to(path: str, kind: Callable[[ClientConnection], WorkerQueue]) -> ClientConnection:
    """Return this process's connection to a server, with that kind of queue, connected or not.

    Raises:
        UnsafePath: the path cannot be a socket's.
    """
    notice()
    path = check_socket_path(path)
    connection = _connections.get((path, kind))
    return connection or _connections.setdefault((path, kind), ClientConnection(path, kind))


def _let_go_of_connections() -> None:  # ``memory`` has let go of the parent's tables before
    for connection in list(_every_connection):
        connection.fork()


in_child(_let_go_of_connections)


def _at_exit() -> None:  # the program's own handlers that are registered from here on run before
    notice()
    for connection in list(_every_connection):
        connection.queue.end()


atexit.register(_at_exit)
