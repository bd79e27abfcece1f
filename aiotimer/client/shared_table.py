"""A request queue over a table that this process and its server share: the usual kind.

The laws of this file:

* A request is a store into the table, and a release is nothing more. A doorbell tells the server of a
  deadline earlier than it has promised to look: one ``send``, from any thread.
* What cannot be told is no error: the timer is in the table, and the next server adopts it.
* The table is made by the first server that welcomes this process, and stays the same through every outage,
  until the last client leaves. A forked child lets go of it.
"""

from __future__ import annotations

import contextlib
import os
import socket

from .._core import layout, wire
from .._core.reader import TableReader
from .._linux.procfs import mapped_path
from .._linux.table_files import allocate
from ..errors import AiotimerError, ProtocolError, Refused
from .connection import Armed, WorkerQueue
from .dump_signal import Stacks, register
from .memory import NO_FILE, identity, is_open, make_private, mapped_table
from .waiting import Steps


class SharedTableQueue(WorkerQueue):
    """A queue whose requests are stores, and whose server reads them."""

    shared = True

    def reset(self) -> None:
        """Forget everything: a new connection, or the child after a fork."""
        super().reset()
        self._file = NO_FILE
        self._stacks: Stacks | None = None

    # -- requests --------------------------------------------------------------------------------

    def ring(self, deadline: float) -> bool:
        """Tell the server of a deadline. Returns False if it is gone."""
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

    def introduce(self) -> tuple[list[int], Armed]:
        """Offer the table that this process has already, if its descriptor is still there."""
        known = self.table is not None and self._has_descriptor()
        return [self.descriptor] if known else [], ()

    def _has_descriptor(self) -> bool:
        """Whether the table's descriptor is there; if the program has closed it, the file is opened anew."""
        if not is_open(self.descriptor, self._file):
            try:
                path = mapped_path(self._file[1])
                self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                if not is_open(self.descriptor, self._file):  # another mount namespace's path
                    os.close(self.descriptor)
                    self.descriptor = -1
            except OSError:
                self.descriptor = -1
        return self.descriptor >= 0

    def settle(self, sock: socket.socket, welcome: wire.Welcome, descriptor: int) -> None:
        """Take a connection into use; the first one brings the table.

        Raises:
            ProtocolError: it does not.
            Refused: the server does not know our table and could not take it over, so it cannot protect us.
        """
        if welcome.has_table and self.table is None:
            if descriptor < 0:
                raise ProtocolError("a welcome without its table")
            self._map(descriptor, welcome.offset)
        elif descriptor >= 0:
            raise Refused(self.path, "it does not accept the table this process has already")
        assert self.table is not None
        self.connection.use(sock)
        self.watched = self.table
        self.table.forget_rings()

    def _map(self, descriptor: int, offset: float) -> None:
        table = mapped_table(descriptor, self._grow, self.pools, offset)
        self.descriptor = descriptor
        self._file = identity(descriptor)
        self.table = table.prepared()
        self._stacks = register(self.table, descriptor, self._file)

    def _grow(self, slots: int) -> None:
        if not self._has_descriptor():
            raise OSError("the program closed the table's descriptor")
        allocate(self.descriptor, slots)

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
        to_do = connection.unwatched or connection.closed_by_program
        return to_do and connection.users > 0 and not self.ended

    def reconnect(self) -> None:
        """Ring a late server; find one if there is none."""
        table = self.table
        if table is None or not self.ring(table.now()):
            self.connection.find_server()

    def end(self) -> None:
        """Keep the timers of ``acquire``, in a table of their own on the same file; blocks lose theirs."""
        super().end()
        former, keyed = self.table, None
        if former is None or self._file == NO_FILE:
            return
        with contextlib.suppress(OSError):
            if self._has_descriptor():
                keyed = mapped_table(self.descriptor, self._grow, {}, former.offset)
        if keyed is None:  # they cannot be told apart any more
            former.disarm()
        make_private(former)
        if keyed is not None:
            timers = TableReader(lambda size, offset: bytes(keyed.raw[offset : offset + size])).timers()
            keyed.adopt_cells((t.slot, t.scope, 0) for t in timers if not t.key_ordinal)
            self.table = keyed

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
        if is_open(self.descriptor, self._file):
            os.close(self.descriptor)
        super().let_go()
