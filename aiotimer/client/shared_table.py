"""A request queue over a table that this process and its server share: the usual kind.

The laws of this file:

* A request is a store into the table, and a release is nothing more. A doorbell tells the server of a
  deadline earlier than it has promised to look: one ``send``, from any thread.
* The table is this process's from its first timer on, and goes along with every HELLO. So who connects, when,
  and from which thread, is nothing to a timer: what was armed before any server answered is looked at by the
  first that does, with the deadline that it has.
* What cannot be told is no error: the timer is in the table. Who could not ring says so, and whoever connects
  rings for all of them once it knows that it is connected: the server may have looked before they stored.
* The table stays the same through every outage, until the last client leaves. A forked child lets go of it.
"""

from __future__ import annotations

import contextlib
import socket
from math import nan

from .._core import layout, wire
from .._core.layout import PROMISE
from .._core.table import TimerTable
from ..errors import AiotimerError, ProtocolError, Refused
from .connection import Armed, WorkerQueue, reader_of
from .dump_signal import Stacks, register
from .mapped_table import MappedTable, TableDescriptor, unnamed_table
from .memory import make_private
from .reconnect import log
from .waiting import Steps


class SharedTableQueue(WorkerQueue):
    """A queue whose requests are stores, and whose server reads them."""

    shared = True

    def reset(self) -> None:
        """Forget everything: a new connection, or the child after a fork."""
        super().reset()
        self._made: dict[None, MappedTable] = {}  # the table: whoever comes first makes it
        self._unrung = False  # somebody could not ring, and nobody has for them
        self._stacks: Stacks | None = None

    # -- requests --------------------------------------------------------------------------------

    def make_table(self) -> TimerTable:
        """Return the table of this process, made now if there is none.

        Raises:
            OSError: there is no memory, descriptor or address space for it.
        """
        return self._mapped_table()

    def _mapped_table(self) -> MappedTable:
        made = self._made
        table = made.get(None)
        if table is None:
            new = unnamed_table(self.pools)
            table = made.setdefault(None, new)  # atomic: another thread or a handler may have been quicker
            if table is not new:
                new.descriptor.close()
        if made is self._made:
            self.table = table
        return table

    def ring(self, deadline: float) -> bool:
        """Tell the server of a deadline. Returns False if it is gone: whoever connects will ring."""
        if self._ring(deadline):
            return True
        self._unrung = True
        return self._ring(deadline)  # it may have been connected before it could see that

    def _ring(self, deadline: float) -> bool:
        table = self.table
        if table is None or not self.connection.connected:
            return False
        looks = table.looks()  # before the send: a look counted after it has seen our store
        if not self.connection.send_frame(wire.encode(wire.Ring(deadline))):
            return False
        table.rang(looks, table.now())
        return True

    def _sending(self, key: str, deadline: float, word: int, *, blocks_loop: bool) -> Steps[None] | None:
        """Ring. If the server is gone, try to reconnect, at most once a second.

        Who finds that out while it holds up a loop leaves it to the next caller; or to a thread, if the
        server is not gone.
        """
        connection = self.connection
        leave_it = connection.connected and blocks_loop
        if not self.ring(deadline):
            if leave_it:
                if connection.closed_by_program:
                    connection.reconnect_in_background()
            elif connection.may_attempt():
                return self._reconnecting()
        self.note_lateness()
        return None

    def _reconnecting(self) -> Steps[None]:
        try:
            yield from self.connection.connecting()
        except (AiotimerError, OSError) as error:
            self.connection.outage(str(error))
        else:
            self.note_lateness()

    def send_release_nowait(self, key: str, word: int = 0) -> None:
        """Do nothing: the store of a release is all that it takes."""

    # -- connecting ------------------------------------------------------------------------------

    def must_connect(self, *, insist: bool) -> bool:
        """Whether to connect before anything is stored: no server has this process's table yet."""
        return not self.connection.welcomed and (insist or self.connection.may_attempt())

    @property
    def descriptor(self) -> int:
        """The descriptor of the table's file, -1 if there is none."""
        table = self._made.get(None)
        return -1 if table is None else table.descriptor.number

    def introduce(self) -> tuple[list[int], Armed]:
        """Hand over the table, if its descriptor is there; if there can be none, the server makes one.

        Raises:
            OSError: there is no descriptor left.
        """
        try:
            descriptor = self._mapped_table().descriptor
        except OSError:
            return [], ()
        other = descriptor.duplicate()  # the last client may be closed before HELLO is on its way
        return [other] if other >= 0 else [], ()

    def settle(self, sock: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        """Take a connection into use.

        Raises:
            ProtocolError: there is no table.
            Refused: the server does not know our table and could not take it over, so it cannot protect us.
        """
        if welcome.has_table != (descriptor >= 0):
            raise ProtocolError("a welcome without its table")
        if welcome.has_table:
            self._go_over(descriptor, welcome.offset)
        table = self._mapped_table()
        table.descriptor.path = welcome.path
        if self._stacks is None:
            self._stacks = register(table, table.descriptor.number, table.descriptor.file)
        self.connection.use(sock)
        self.watched = table
        table.forget_rings()
        if self._unrung:
            self._unrung = False
            self.ring(table.now())

    def _go_over(self, descriptor: int, offset: float) -> None:
        """Go over to a table that the server has made, because it cannot use ours, or there is none.

        Ours may be on another clock, a time namespace's, or the program has closed its descriptor. Whoever is
        in there already stays there, unwatched, and is told.
        """
        former = self._made.get(None)
        if former is not None and self.connection.welcomed:
            raise Refused(self.path, "it does not accept the table this process has already")
        new = MappedTable(TableDescriptor(descriptor), self.pools, offset).prepared()
        self._made[None] = new
        if former is not None:
            former.pools = {}
            self.pools.clear()
            self.sites.clear()
            former.cells[PROMISE] = nan  # whoever is renewed there comes over
            former.descriptor.close()
            armed = len(reader_of(former).timers())
            if armed and (self.connection.aloud or self.connection.strict):
                log.warning(
                    "%d timers are not watched: they were armed before the timer server at %r answered, "
                    "and it cannot read the table that they are in",
                    armed,
                    self.path,
                )

    # -- outages, and the end --------------------------------------------------------------------

    def note_lateness(self) -> None:
        """Say once that the server is late, and once that it is back."""
        connection, table = self.connection, self.table
        if table is not None and table.is_late(table.now()):
            connection.outage(f"the timer server at {self.path!r} has not looked for over {layout.LATE:g} s")
        elif connection.connected:
            connection.outage_over()

    def needs_reconnecting(self) -> bool:
        """Whether an outage has been noticed and is not over, or the program has ended the connection."""
        connection = self.connection
        if connection.unwatched and connection.connected:
            self.note_lateness()
        to_do = connection.unwatched or connection.closed_by_program or connection.expected
        return to_do and connection.users > 0 and not self.ended

    def reconnect(self) -> None:
        """Ring a late server; find one if there is none."""
        table = self.table
        if table is None or not self.ring(table.now()):
            self.connection.find_server()

    def end(self) -> None:
        """Keep the timers of ``acquire``, in a table of their own on the same file; blocks lose theirs."""
        super().end()
        former, keyed = self._made.get(None), None
        if former is None:
            return
        with contextlib.suppress(OSError):
            if former.descriptor.is_there():
                keyed = MappedTable(former.descriptor, {}, former.offset)
        if keyed is None:  # they cannot be told apart any more
            former.disarm()
        make_private(former)
        if keyed is not None:
            timers = reader_of(keyed).timers()
            keyed.adopt_cells((t.slot, t.scope, 0) for t in timers if not t.key_ordinal)
            self.table = self._made[None] = keyed

    def depart(self) -> None:
        """Disarm what is left, and say BYE: the server forgets this process's timers."""
        if self.table is not None:
            self.table.disarm()
        if self.connection.connected:
            self.connection.send_frame(wire.encode(wire.Bye()))
        self.connection.let_go()

    def let_go(self) -> None:
        """Close the table's descriptors."""
        if self._stacks is not None:
            self._stacks.undo()
        table = self._made.get(None)
        if table is not None:
            table.descriptor.close()
        super().let_go()
