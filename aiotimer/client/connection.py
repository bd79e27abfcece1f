"""A connection of this process to one server, at the worker's end: the socket, and the table that they share.

The laws of this file:

* A process has one :class:`ClientConnection` per server and kind, shared by all its clients, threads and
  event loops.
* Only WELCOME means connected. The table outlives connections: whoever reconnects brings it along.
* The socket is used raw, from any thread: a ring is one ``send``. Before every use its inode is compared,
  because a program may close descriptors it does not own and the number may by now be somebody else's.
* Nothing here holds the caller longer than the budget it gave, but for a server that ``aiotimer run`` is just
  starting (``starting``).
* After a fork the child starts afresh: connections are reset, tables turn to private scratch.
* The last client to leave disarms what is left, in the table too: a server that is not there now may come.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import threading
import weakref
from math import inf
from time import monotonic
from types import CodeType
from typing import TYPE_CHECKING

from .._core import layout, wire
from .._core.ladder import NO_REQUEST
from .._core.table import Pool, TimerTable
from .._linux.environment import observes
from .._linux.procfs import time_namespace
from .._linux.table_files import allocate
from .._version import __version__
from ..errors import AiotimerError, ProtocolError, Refused, ServerUnavailable
from ..queue import RequestQueue, TableQueue
from . import waiting
from .control import ping
from .dump_signal import Stacks, allow_tracing, register
from .handshake import greet, reach
from .memory import close, immortal, is_open, scratch
from .reconnect import Hook, Reconnector
from .starting import starting_until
from .waiting import Steps, Turn, Turns, Wait, loop_is_running, within

if TYPE_CHECKING:
    from .soft_limit import CallLater

RETRY_EVERY = 1.0
"""Seconds between attempts to reach a server that did not answer."""

_MOST_CODES = 4096
"""Code objects whose call sites are remembered."""


class ClientConnection(Reconnector):
    """A connection with a shared table. See :class:`SocketOnlyConnection` for the kind without.

    Attributes:
        path: the server's socket, absolute.
        table: the shared table, None before the first WELCOME.
        watched: the same, while the server is known to be connected.
        pools: the pools of ``table``; empty while there is none. The dict is the same for ever.
        sites: the same pools by (code object's id, instruction) of the calls that use them.
        starting_until: when (``CLOCK_MONOTONIC``) a server that has just been started should be there;
            until then a missing socket is waited for.
        call_later: how soft limits are scheduled; None: by their loop, whose clock is the table's.
    """

    shared = True
    call_later: CallLater | None = None

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.pools: dict[str, Pool] = {}
        self.sites: dict[tuple[int, int], Pool] = {}
        self._codes: dict[int, CodeType] = {}
        self.starting_until = -inf
        self.users = 0
        self.reap_request = NO_REQUEST
        self.next_channel_attempt = -inf  # when the next attempt is made to open a channel
        self._turns = Turns()  # at connecting
        self._entering = threading.RLock()  # held while somebody enters or leaves
        self._resets = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new connection, or the child after a fork."""
        self.table: TimerTable | None = self._first_table()
        self.watched: TimerTable | None = None
        self.pools.clear()
        self.sites.clear()
        self._codes.clear()
        self.connected = False
        self._table_descriptor, self._table_inode = -1, 0
        self._stacks: Stacks | None = None
        self._socket: socket.socket | None = None
        self._socket_inode = 0
        self._resets += 1
        self._next_attempt = -inf
        self._silent_until = -inf  # a server has just let us wait in vain
        self._unwatched = self._logged = False

    def _first_table(self) -> TimerTable | None:
        """Return what to store in before a server has given us a table."""
        return None

    def ask_for(self, reap: str, *, observe: bool) -> None:
        """A client asks how this process is reaped: the first request holds until the last client leaves.

        Raises:
            TypeError, ValueError: it is no request, or not the one that holds.
        """
        with self._entering:
            request = self.reap_request.combined(self.path, reap, observe=observe)
            if request != self.reap_request and self.connected:
                self.disconnect()  # it stands in the next HELLO
            self.reap_request = request

    # -- connecting ------------------------------------------------------------------------------

    def connect(self, budget: float) -> None:
        """Connect, blocking this thread for at most ``budget`` seconds.

        Raises:
            ServerUnavailable: nobody answered.
            Refused: the server does not want this client.
        """
        try:
            waiting.run(self._connect(), budget)
        except TimeoutError as error:
            self._silent_until = monotonic() + RETRY_EVERY
            raise ServerUnavailable(self.path, str(error)) from None

    async def connect_async(self, budget: float) -> None:
        """Connect, suspending this task for at most ``budget`` seconds; raises as :meth:`connect`.

        A server that is just being started is waited for longer.
        """
        budget = max(budget, self.starting_until - monotonic())
        try:
            await waiting.run_async(self._connect(), budget)
        except TimeoutError as error:
            self._silent_until = monotonic() + RETRY_EVERY
            raise ServerUnavailable(self.path, str(error)) from None
        except (AiotimerError, OSError):
            raise
        except BaseException:  # cancelled: that says nothing about the server
            self._next_attempt = -inf
            raise

    def _connect(self) -> Steps[None]:
        turns, turn = self._turns, Turn()
        try:
            while not turns.take(turn):  # another thread or task of this process is at it
                yield Wait(seconds=0.001, until=starting_until(self.path))
            if not self.connected:
                self._next_attempt = monotonic() + RETRY_EVERY
                yield from self._connect_now(self._resets)
        finally:
            turn.over = True

    def _connect_now(self, resets: int) -> Steps[None]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        descriptor = -1
        try:
            until = yield from reach(sock, self.path, lambda: self.starting_until)
            offered = self._offer()
            hello = wire.encode(self._hello(offers_table=bool(offered)))
            welcome, descriptor = yield from greet(sock, self.path, hello, offered, until)
            yield from self._send_unlisted(sock, welcome)
            with self._entering:  # nobody leaves meanwhile
                if self._resets != resets:
                    raise ServerUnavailable(self.path, "the last client was closed meanwhile")
                self._settle(sock, welcome, descriptor)
        except BaseException:
            if self._socket is not sock:
                sock.close()
            if descriptor >= 0 and descriptor != self._table_descriptor:
                os.close(descriptor)
            raise

    def _hello(self, *, offers_table: bool) -> wire.Hello:
        return wire.Hello(
            version=wire.PROTOCOL_VERSION,
            release=__version__,
            pid=os.getpid(),
            shared=self.shared,
            time_namespace=time_namespace(),
            clock=monotonic(),
            offers_table=offers_table,
            reap=self.reap_request.reap,
            observe=self.reap_request.observe or observes(),
        )

    def _offer(self) -> list[int]:
        """Return the descriptor of the table this process has already."""
        if self.table is None or not is_open(self._table_descriptor, self._table_inode):
            return []
        return [self._table_descriptor]

    def _send_unlisted(self, sock: socket.socket, welcome: wire.Welcome) -> Steps[None]:
        """Send what HELLO had no room for: nothing, with a table."""
        yield from ()

    def _settle(self, sock: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        """Take the connection into use."""
        if welcome.has_table and self.table is None:
            if descriptor < 0:
                raise ProtocolError("a welcome without its table")
            self._map(descriptor, welcome.offset)
        elif descriptor >= 0:
            # The server does not know our table and could not take it over: it cannot protect us.
            raise Refused(self.path, "it does not accept the table this process has already")
        assert self.table is not None
        self._use(sock)
        self.table.forget_rings()

    def _use(self, sock: socket.socket) -> None:
        old, old_inode = self._socket, self._socket_inode
        self._socket = sock
        allow_tracing(sock)
        if "asyncio" in sys.modules:
            from . import inspection  # noqa: F401 - now, when it takes nobody's time
        self._socket_inode = os.fstat(sock.fileno()).st_ino
        self.connected, self.starting_until = True, -inf
        self.watched = self.table if self.shared else None
        if old is not None:
            close(old, old_inode)

    def _map(self, descriptor: int, offset: float) -> None:
        mapping = mmap.mmap(descriptor, layout.TABLE_SIZE)
        mapping.madvise(mmap.MADV_DONTFORK)
        self._table_descriptor = descriptor
        self._table_inode = os.fstat(descriptor).st_ino
        now = monotonic if offset == 0.0 else lambda: monotonic() + offset
        self.table = TimerTable(mapping, self._grow, self.pools, now=now, offset=offset).prepared()
        _mapped.add(self.table)
        self._stacks = register(self.table, descriptor, self._table_inode)

    def _grow(self, slots: int) -> None:
        if not is_open(self._table_descriptor, self._table_inode):
            raise OSError("the program closed the table's descriptor")
        allocate(self._table_descriptor, slots)

    def pool(self, scope: str, *, observed: bool = False) -> Pool:
        """Return the pool of a scope: in the table, or in scratch while there is no table."""
        return (self.table or scratch()).pool(scope, observed=observed)

    def remember_site(self, code: CodeType, instruction: int, pool: Pool) -> None:
        """Remember which pool a call without a scope uses. The code object is kept, so its id is its own."""
        codes = self._codes
        if len(codes) >= _MOST_CODES:  # a program that makes code for ever; it starts over
            self._codes = {}
            self.sites.clear()
            del codes  # only now: no site may outlive its code
        self.sites[id(code), instruction] = pool
        self._codes[id(code)] = code  # last: another thread may be starting over, and the site is gone then

    def requests(self) -> RequestQueue:
        """Return this process's end of the request queue.

        Raises:
            ServerUnavailable: it was never connected.
        """
        if self.table is None:
            raise ServerUnavailable(self.path, "never connected")
        return TableQueue(self.table, os.getpid(), self.ring)

    # -- sending ---------------------------------------------------------------------------------

    def ring(self, deadline: float) -> bool:
        """Tell the server of a deadline. Returns False if it is gone."""
        table = self.table
        if table is None or not self.connected:
            return False
        looks = table.looks()  # before the send: a look counted after it has seen our store
        if not self._send_frame(wire.encode(wire.Ring(deadline))):
            return False
        table.rang(looks, table.now())
        return True

    def send(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Send a stored deadline of which the table says that the server must be told: with a table, ring.

        If the server is gone, try to reconnect, at most once a second; on a running event loop, leave that
        to the next caller. Never raises: the timer is in the table, and the next server adopts it.

        Args:
            key: the timer's name (``layout.timer_key``); of no use here, see
                :class:`SocketOnlyConnection`.
            deadline: the stored deadline.
            budget: seconds this may take.
            word: where it is stored, of an entry's timer; of no use here either.
        """
        found_out_now = self.connected and loop_is_running()
        if not self.ring(deadline) and self.may_attempt() and not found_out_now:
            try:
                self.connect(within(budget))
            except (AiotimerError, OSError) as error:
                self.outage(str(error))
                return
        self.note_lateness()

    async def send_async(self, key: str, deadline: float, budget: float, word: int = 0) -> None:
        """Do what :meth:`send` does, suspending the task instead of blocking its thread."""
        if not self.ring(deadline) and self.may_attempt():
            try:
                await self.connect_async(budget)
            except (AiotimerError, OSError) as error:
                self.outage(str(error))
                return
        self.note_lateness()

    def send_release(self, key: str, budget: float, word: int = 0) -> None:
        """Send that a timer was released: with a table, nothing, as its store is all that it takes."""

    async def send_release_async(self, key: str, budget: float, word: int = 0) -> None:
        """Do what :meth:`send_release` does, suspending the task."""

    def send_release_nowait(self, key: str, word: int = 0) -> None:
        """Send a release without waiting for anything: safe in a finaliser."""

    @property
    def connecting(self) -> bool:
        """Whether an attempt to connect is under way."""
        return self._turns.taken

    def may_attempt(self) -> bool:
        """Whether an attempt to connect is under way, or the last one is a second ago."""
        return self.connecting or monotonic() >= self._next_attempt

    # -- outages ---------------------------------------------------------------------------------

    def note_lateness(self) -> None:
        """Say once that the server is late, and once that it is back."""
        if self._is_late():
            self.outage(f"the timer server at {self.path!r} has not looked for over {layout.LATE:g} s")
        elif self.connected:
            self.outage_over()

    def _is_late(self) -> bool:
        table = self.table
        return table is not None and table.is_late(table.now())

    def needs_reconnecting(self) -> bool:
        """Whether an outage has been noticed and is not over."""
        if self._unwatched and self.connected:
            self.note_lateness()
        return self._unwatched and self.users > 0

    def reconnect(self) -> None:
        """Ring a late server; find one if there is none.

        It is asked before it is greeted: whoever enters a block meanwhile would wait for the greeting's end.
        """
        table = self.table
        if table is None or not self.ring(table.now()):
            ping(self.path, trusted=True)
            self.connect(RETRY_EVERY)

    def _send_frame(self, frame: bytes) -> bool:
        sock = self._socket
        if sock is None:
            return False
        try:
            if not is_open(sock.fileno(), self._socket_inode):
                raise ConnectionError("the program closed the connection's descriptor")
            sock.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return True  # what the server has not read yet will make it look
        except OSError:
            self.connected, self.watched = False, None
            return False
        return True

    # -- the end ---------------------------------------------------------------------------------

    def enter(self, hook: Hook | None = None) -> None:
        """One more client uses this connection; ``hook`` wants to hear of outages."""
        with self._entering:
            self.users += 1
        if hook is not None:
            self.hooks.append(hook)

    def leave(self, hook: Hook | None = None) -> None:
        """A client is done; the last one says BYE, and the server forgets this process's timers."""
        if hook is not None:
            self.hooks.remove(hook)
        with self._entering:
            self.users -= 1
            if self.users <= 0:
                self._depart()
                self.reap_request = NO_REQUEST

    def _depart(self) -> None:
        """The last client has left: whoever enters next finds nothing of it."""
        if self.table is not None:
            self.table.disarm()
        if self.connected:
            self._send_frame(wire.encode(wire.Bye()))
        self._let_go()

    def disconnect(self) -> None:
        """Close the connection and nothing else: the timers stay armed."""
        sock, self._socket = self._socket, None
        self.connected, self.watched = False, None
        if sock is not None:
            close(sock, self._socket_inode)

    def fork(self) -> None:
        """In a forked child: let go of what is the parent's, and start afresh."""
        self._turns = Turns()
        self._entering = threading.RLock()
        self.start_afresh()
        self._let_go()

    def _let_go(self) -> None:
        """Close what is open. Entries that are active keep their table, and release in it."""
        self.disconnect()
        channels = sys.modules.get("aiotimer.client.inspection")
        if channels is not None:
            channels.close_channels(self.path)
        if self._stacks is not None:
            self._stacks.undo()
        if is_open(self._table_descriptor, self._table_inode):
            os.close(self._table_descriptor)
        if self.table is not None:
            self.table.pools = {}  # the dict goes on with the connection
        self.reset()


_mapped: weakref.WeakSet[TimerTable] = weakref.WeakSet()


def abandon_tables() -> None:
    """In a forked child, before connections are reset: no table that was mapped is there any more."""
    for table in list(_mapped):
        immortal(table.raw.obj)
        table.abandon(mmap.mmap(-1, layout.TABLE_SIZE))
    _mapped.clear()
