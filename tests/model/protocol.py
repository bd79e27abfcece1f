"""The look and the ring, as a model small enough to try every interleaving of it.

The laws, which ``broken`` checks in every state that can be reached:

* *Nothing is lost.* When everything has come to rest, each armed timer has a look scheduled at or
  before its deadline. A thread that has stopped inside an operation is at rest too, perhaps for
  ever; only the timer that it was arming does not count as armed.
* *Nothing is late.* The later read is there for stores that a core still held back when the look
  ended. If none was, the look has seen every timer armed before its end, and none waits for the
  later read, which may come after its deadline.
* *Nobody is unheard.* Once a table without a connection has been adopted, its worker's next arming
  rings; so it fails, and the worker reconnects.

Theory of operation. A state is the table (slots, promise, look count), the connection, what the
worker remembers of its last ring, the server, two threads of the worker, and whoever connects: that
may be one of the two, which has nothing else to do then, or a third. A *move* is one indivisible step
of one of them: ``worker_moves``, ``connecting_moves`` and ``server_moves`` say which there are, given no
more than the mover can see. ``checker.py`` makes them all, in every order.

The table is the worker's from the start, whether a server has it yet or not (``Scope.connected``). What
is armed before, while and after somebody connects is one and the same case. (That the server looks before it
welcomes is for a worker which hangs by then, and never knows: no ring of its can be missed here.)

The model is worse than any machine:

* *Stores.* A store may wait in its core's buffer for any time, even across the ``send`` of a ring
  and a switch of threads, which drain it on real ones. Only stores of one thread into one slot
  stay in order (ARM keeps no more). A read of the header never waits for a store.
* *Time.* Deadlines are early or late and never pass; the promise has no bound. The server may look
  for no reason (``restless``), and promise an earlier time than it must (``generous``): the
  heartbeat, and the deadline of a ring kept until it has passed, are cases of these.
* *Crashes.* Any number of them, anywhere. One loses what waits in the socket.
* *Connecting.* WELCOME may take any time, and the look that it stands for be over long before the worker
  knows that it is connected.
* *Interrupts.* A thread may leave its operation at any step, releasing its timer: an exception
  between two bytecodes.
* *Full sockets.* One ring fills one; a further ring is lost (EAGAIN) and remembered as sent.

It is kinder in one thing: what the server has written is in memory when it reads again, because
system calls fence. Without that fence the second read would be worth nothing; and the test without
a second read shows that nothing is lost then, only late.

What is merged, and why that hides nothing:

* Nobody but the server reads slots. So a store lands just before the table is read, or not yet.
* The table is read in one step: a store that lands behind the reader's finger could have stayed in
  its buffer until the reading was over.
* A look's first read and its first write into the header are one step: what a worker does between
  the two it could have done before both, its store still in the buffer.
* A look count that is kept matters only while it may equal another one. So it is ``CURRENT``; or it
  is ``OLD`` and equal to another one that is kept; or it is as good as ``NONE``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import product
from typing import Literal, NamedTuple, TypeAlias, TypeVar, cast

EARLY, LATE, NEVER = 1, 2, 3
"""Deadlines and promises. A slot that holds ``NEVER`` is not armed."""

NAMES = {EARLY: "early", LATE: "late", NEVER: "never"}

NONE, CURRENT, OLD = -1, 0, 1
"""What is left of a look count that is kept: see the module's docstring."""

Word: TypeAlias = Literal["count", "promise"]
Order: TypeAlias = Literal["count first", "promise first", "either"]

ORDERS: dict[Order, tuple[Word, ...]] = {
    "count first": ("count",),
    "promise first": ("promise",),
    "either": ("count", "promise"),
}
"""Which of the header's two words may come first when it is read, or written."""

OTHER: dict[Word, Word] = {"count": "promise", "promise": "count"}


@dataclass(frozen=True)
class Protocol:
    """The protocol, guard by guard. With all of them it keeps the laws.

    Attributes:
        second_read: a look reads the table again after writing the header, and may start over.
        third_read: the table is read once more a little later: after every look, after a look that
            had to start over (``conditional``), or never.
        remember_after_send: a ring is remembered when ``send`` has returned, not before.
        look_at_orphans: a table without a connection is looked at every second.
        adopt_at_hangup: a table whose connection ends while the server lives is adopted at once.
        release_orphans: an adopted table is promised ``NEVER``.
        count_orphans: the adoption is counted like a look.
        forget_on_reconnect: no ring is remembered across a reconnect.
        ring_when_connected: who has connected rings, if somebody could not.
        ask_again: who could not ring says so, and then asks once more whether it can.
        recount: the count to remember is read again just before ``send``.
        header_reads: the worker's order; ``either`` decides every time anew.
        header_writes: the server's order; ``either`` decides every time anew.
    """

    second_read: bool = True
    third_read: Literal["always", "conditional", "never"] = "always"
    remember_after_send: bool = True
    look_at_orphans: bool = True
    adopt_at_hangup: bool = True
    release_orphans: bool = True
    count_orphans: bool = True
    forget_on_reconnect: bool = True
    ring_when_connected: bool = True
    ask_again: bool = True
    recount: bool = False
    header_reads: Order = "count first"
    header_writes: Order = "promise first"


@dataclass(frozen=True)
class Scope:
    """What is tried.

    Attributes:
        operations: how many a program has at most, both threads together.
        slots: how many slots it uses at most.
        restless: the server may look for no reason.
        generous: the server may promise an earlier time than it must.
        crashes: the server may crash and restart, and connections may end.
        interrupts: threads may leave their operations.
        fenced_sends: a ``send`` drains its thread's buffer, as it does on every machine we know.
        connected: the worker is, at the start; else no server has heard of it yet.
        connects: somebody may connect though nobody has had to ring in vain.
    """

    operations: int = 3
    slots: int = 2
    restless: bool = False
    generous: bool = False
    crashes: bool = False
    interrupts: bool = False
    fenced_sends: bool = False
    connected: bool = True
    connects: bool = False


class Law(Enum):
    """The laws, by what is the case when one is broken."""

    LOST = "a timer is armed and no look is scheduled for it"
    LATE = "a timer is armed and only the later read will find it"
    UNHEARD = "a worker has no connection and its next arming will not ring"


# --- the state

K = TypeVar("K", bound=type[tuple[object, ...]])


def by_identity(kind: K) -> K:
    """Have a kind of named tuples compared and hashed by identity: see :func:`same`."""
    kind.__eq__ = object.__eq__  # type: ignore[method-assign]
    kind.__hash__ = object.__hash__  # type: ignore[method-assign]
    return kind


class Store(NamedTuple):
    """A store in a core's buffer. ``owed``: it waited when a look ended; the later read sees it."""

    deadline: int
    owed: bool = False


Buffer: TypeAlias = tuple[Store, ...]


class Slot(NamedTuple):
    """What memory holds, and what the two threads' cores hold back from it, oldest first."""

    deadline: int = NEVER
    buffers: tuple[Buffer, Buffer] = ((), ())


Slots: TypeAlias = tuple[Slot, ...]

ThreadAt: TypeAlias = Literal[
    "idle", "header", "count", "promise", "compare", "recount", "send", "remember",
    "say so", "ask again", "send again",
]  # fmt: skip


class Thread(NamedTuple):
    """A thread of the worker: what it does next, and what it has in hand.

    ``at`` is ``idle``; or what is still to be read, the whole ``header`` or a word of it; or
    ``compare`` (the count with the one kept), ``recount``, ``send``, ``remember``; or, if it could not
    ring: ``say so``, ``ask again`` whether it can, ``send again``.
    """

    at: ThreadAt = "idle"
    slot: int = -1
    deadline: int = NEVER
    looks: int = NONE


Threads: TypeAlias = tuple[Thread, Thread]


@by_identity
class Line(NamedTuple):
    """The connection.

    ``up``: the worker takes itself for connected, and its end is any good. ``ringing``: a ring waits in it.
    ``hello``: how far who connects has got; ``settled`` is connected already, and has still to look whether
    anybody was ``unrung``: had to ring, and could not.
    """

    up: bool = True
    ringing: bool = False
    hello: Literal["none", "sent", "welcomed", "settled"] = "none"
    unrung: bool = False

    def lost(self) -> Line:
        """Return what is left when the connection is gone."""
        return Line(up=False, unrung=self.unrung)


@by_identity
class Server(NamedTuple):
    """The server: what it does next, and what it has in hand.

    ``at`` is ``idle``, ``down``, or what a look does next: write the ``count`` or the ``promise``
    (``plan``), having written the other, or ``read again``. ``later`` is the later read: ``owed``
    if a store was held back when the look ended. A server that has not heard of the worker does not know
    the table (``unknown``).
    """

    at: Literal["idle", "down", "count", "promise", "read again"] = "idle"
    owner: Literal["connected", "lost", "adopted", "unknown"] = "connected"
    plan: int = NEVER
    later: Literal["none", "booked", "owed"] = "none"
    started_over: bool = False


# --- memory

T = TypeVar("T", bound=tuple[object, ...])


class _One(tuple[object, ...]):
    """A tuple that is compared and hashed by identity: fast, and the checker does little else."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def one(value: T) -> T:
    """Return the one object that stands for all tuples equal to this one."""
    return cast(T, _one(value))


_one = cache(_One)

_same: dict[tuple[object, ...], tuple[object, ...]] = {}


def same(value: T) -> T:
    """Return the one named tuple that stands for all that hold the same: see :func:`by_identity`."""
    return cast(T, _same.setdefault((type(value), *value), value))


@cache
def hold_back(slots: Slots, slot: int, thread: int, deadline: int) -> Slots:
    """Return the slots after a thread's store: its core's buffer has it."""
    a, b = slots[slot].buffers
    store = (Store(deadline),)
    buffers = (a, b + store) if thread else (a + store, b)
    return one((*slots[:slot], Slot(slots[slot].deadline, buffers), *slots[slot + 1 :]))


@cache
def drained(slots: Slots, thread: int) -> Slots:
    """Return the slots after everything that a thread's core held back has landed."""

    def drain(slot: Slot) -> Slot:
        a, b = slot.buffers
        buffer, buffers = (b, (a, ())) if thread else (a, ((), b))
        return Slot(buffer[-1].deadline, buffers) if buffer else slot

    return one(tuple(map(drain, slots)))


@cache
def landings(slots: Slots) -> tuple[Slots, ...]:
    """Return all that the slots may be when some of the waiting stores have landed, or none."""

    def land(slot: Slot) -> set[Slot]:
        a, b = slot.buffers
        found = {slot}
        if a:
            found |= land(Slot(a[0].deadline, (a[1:], b)))
        if b:
            found |= land(Slot(b[0].deadline, (a, b[1:])))
        return found

    return tuple(map(one, product(*(sorted(land(slot)) for slot in slots))))


@cache
def marked(slots: Slots, owed: bool) -> Slots:
    """Return the slots with every waiting store marked."""

    def mark(buffer: Buffer) -> Buffer:
        return tuple(Store(store.deadline, owed) for store in buffer)

    return one(tuple(Slot(s.deadline, (mark(s.buffers[0]), mark(s.buffers[1]))) for s in slots))


def waiting(slots: Slots) -> list[Store]:
    """Return the stores that wait in buffers."""
    return [store for slot in slots for buffer in slot.buffers for store in buffer]


def earliest(slots: Slots) -> int:
    """Return the earliest deadline in memory."""
    return min(slot.deadline for slot in slots)


@cache
def counted(rung: int, threads: Threads, looks: int) -> tuple[int, Threads]:
    """Return what is left of the counts that are kept, after ``looks`` more looks (0 or 1)."""
    a, b = threads
    kept = [NONE if count == NONE else count + looks for count in (rung, a.looks, b.looks)]
    left = [count if count < OLD else OLD if kept.count(count) > 1 else NONE for count in kept]
    return left[0], one((a._replace(looks=left[1]), b._replace(looks=left[2])))


# --- the worker


class WorkerMove(NamedTuple):
    """What a thread did: in words, and what it changed."""

    text: str
    thread: Thread
    rung: int
    line: Line


def worker_moves(
    protocol: Protocol, thread: Thread, promise: int, rung: int, line: Line
) -> Iterator[WorkerMove]:
    """Yield every move of a thread that has stored a deadline. It sees only the arguments."""
    here = WorkerMove("", thread, rung, line)
    match thread.at:
        case "header":
            for word in ORDERS[protocol.header_reads]:
                yield read_header(here, word, OTHER[word], promise)
        case "count" | "promise":
            yield read_header(here, thread.at, "compare", promise)
        case "compare":
            yield compare(protocol, here)
        case "recount":
            then = thread._replace(at="send", looks=CURRENT)
            yield here._replace(text="reads the look count again", thread=then)
        case "send":
            yield send(protocol, here)
        case "remember":
            yield here._replace(text="remembers that it rang", thread=Thread(), rung=thread.looks)
        case "say so":
            then = thread._replace(at="ask again") if protocol.ask_again else Thread()
            yield here._replace(text="says that it could not", thread=then, line=line._replace(unrung=True))
        case "ask again":
            then = thread._replace(at="send again", looks=CURRENT) if line.up else Thread()
            yield here._replace(text="asks again, and reads the look count", thread=then)
        case "send again":
            yield send(protocol, here)


def read_header(here: WorkerMove, word: Word, then: ThreadAt, promise: int) -> WorkerMove:
    """Read one word of the header. A promise that is early enough ends the operation."""
    thread = here.thread._replace(at=then)
    if word == "count":
        return here._replace(text="reads the look count", thread=thread._replace(looks=CURRENT))
    text = f"reads the promise: {NAMES[promise]}"
    if thread.deadline < promise:
        return here._replace(text=text, thread=thread._replace(deadline=NEVER))
    return here._replace(text=f"{text}, early enough", thread=Thread())


def compare(protocol: Protocol, here: WorkerMove) -> WorkerMove:
    """Compare the look count that was read with the one remembered."""
    thread = here.thread
    if here.rung == thread.looks != NONE:
        return here._replace(text="has rung since the last look", thread=Thread())
    if not protocol.remember_after_send:
        then = thread._replace(at="send")
        return here._replace(text="remembers a ring", thread=then, rung=thread.looks)
    then = thread._replace(at="recount" if protocol.recount else "send")
    return here._replace(text="has to ring", thread=then)


def send(protocol: Protocol, here: WorkerMove) -> WorkerMove:
    """Send a ring, or find that the connection is gone."""
    thread, line = here.thread, here.line
    if line.up:
        then = thread._replace(at="remember") if protocol.remember_after_send else Thread()
        return here._replace(text="rings", thread=then, line=line._replace(ringing=True))
    then = thread._replace(at="say so", looks=NONE) if thread.at == "send" else Thread()
    return here._replace(text="rings in vain", thread=then)


class ConnectingMove(NamedTuple):
    """What whoever connects did: in words, and what it changed."""

    text: str
    rung: int
    line: Line


def connecting_moves(
    protocol: Protocol, scope: Scope, rung: int, line: Line, server_is_up: bool
) -> Iterator[ConnectingMove]:
    """Yield every move of whoever connects, which somebody does once there is one who could not ring."""
    here = ConnectingMove("", rung, line)
    match line.hello:
        case "none" if server_is_up and not line.up and (line.unrung or scope.connects):
            yield here._replace(text="HELLO is said", line=line._replace(hello="sent"))
        case "welcomed":
            left = NONE if protocol.forget_on_reconnect else rung
            then = line._replace(up=True, hello="settled")
            yield here._replace(text="WELCOME is read: connected", rung=left, line=then)
        case "settled" if line.up and line.unrung and protocol.ring_when_connected:
            then = line._replace(hello="none", unrung=False, ringing=True)
            yield here._replace(text="who has connected rings for another one", rung=CURRENT, line=then)
        case "settled":
            yield here._replace(text="who has connected is done", line=line._replace(hello="none"))


# --- the server


class ServerMove(NamedTuple):
    """What the server did, or suffered: in words, and what changed by it."""

    text: str
    server: Server
    slots: Slots
    promise: int
    line: Line
    looks: int = 0  # by how much the look count was incremented


def server_moves(
    protocol: Protocol, scope: Scope, server: Server, slots: Slots, promise: int, line: Line
) -> Iterator[ServerMove]:
    """Yield every move of the server. It sees nothing but the arguments."""
    here = ServerMove("", server, slots, promise, line)
    if scope.crashes and server.at != "down":
        down = Server("down", owner="unknown" if server.owner == "unknown" else "lost")
        yield ServerMove("crashes", down, marked(slots, False), promise, line.lost())
    match server.at:
        case "idle" if line.hello == "sent":
            welcome = line._replace(hello="welcomed")
            greeting = here._replace(server=server._replace(owner="connected"), line=welcome)
            yield from look(protocol, scope, greeting, "welcomes the worker and looks")
        case "idle" if server.owner not in ("adopted", "unknown"):
            yield from wake(protocol, scope, here)
        case "count" | "promise":
            yield from write_the_other(protocol, here, server.at)
        case "read again":
            yield from read_again(protocol, scope, here)
        case "down" if server.owner == "unknown":
            yield here._replace(text="restarts", server=Server(owner="unknown"))
        case "down":
            yield from adopt(protocol, here, "restarts")


def wake(protocol: Protocol, scope: Scope, here: ServerMove) -> Iterator[ServerMove]:
    """Yield what may happen to a server that waits."""
    if here.line.ringing:
        yield from look(
            protocol, scope, here._replace(line=here.line._replace(ringing=False)), "is rung and looks"
        )
    if scope.restless:
        yield from look(protocol, scope, here, "looks for no reason")
    if here.server.later != "none":
        yield from read_later(protocol, scope, here)
    if scope.crashes and (here.line.up or here.line.hello == "welcomed"):
        lost = here._replace(server=here.server._replace(owner="lost"), line=here.line.lost())
        if protocol.adopt_at_hangup:
            yield from adopt(protocol, lost, "loses the connection")
        else:
            yield lost._replace(text="loses the connection")


def look(protocol: Protocol, scope: Scope, here: ServerMove, text: str) -> Iterator[ServerMove]:
    """Begin a look: read the table, whatever it holds by now."""
    for slots in landings(here.slots):
        yield from go_on(protocol, scope, here._replace(slots=slots), text)


def go_on(protocol: Protocol, scope: Scope, here: ServerMove, text: str) -> Iterator[ServerMove]:
    """Go on with a look at slots that have been read: make a promise, write the first word."""
    if protocol.third_read == "always":  # this look will book its own
        server = here.server._replace(later="none")
        here = here._replace(slots=marked(here.slots, False), server=server)
    text, must = f"{text}: {found(here.slots)}", earliest(here.slots)
    for plan in (EARLY, LATE, NEVER):
        if plan == must or (plan < must and scope.generous):
            for word in ORDERS[protocol.header_writes]:
                server = here.server._replace(at=OTHER[word], plan=plan)
                yield write(here._replace(text=text, server=server), word)


def write(here: ServerMove, word: Word) -> ServerMove:
    """Write one word of the header."""
    if word == "count":
        return here._replace(text=f"{here.text}; counts a look", looks=1)
    plan, server = here.server.plan, here.server._replace(plan=NEVER)
    return here._replace(text=f"{here.text}; promises {NAMES[plan]}", promise=plan, server=server)


def write_the_other(protocol: Protocol, here: ServerMove, word: Word) -> Iterator[ServerMove]:
    """Write the header's second word. An adoption ends here, and a look without a second read."""
    here = write(here._replace(text="goes on"), word)
    if here.server.owner == "adopted":
        yield here._replace(server=here.server._replace(at="idle"))
    elif protocol.second_read:
        yield here._replace(server=here.server._replace(at="read again"))
    else:
        for slots in landings(here.slots):
            yield end(protocol, here._replace(slots=slots))


def read_again(protocol: Protocol, scope: Scope, here: ServerMove) -> Iterator[ServerMove]:
    """Make the second read: start over, or end the look."""
    for slots in landings(here.slots):
        seen = here._replace(slots=slots)
        if earliest(slots) < here.promise:
            over = here.server._replace(started_over=protocol.third_read == "conditional")
            again = seen._replace(server=over)
            yield from go_on(protocol, scope, again, "reads again and starts over")
        else:
            yield end(protocol, seen._replace(text=f"reads again: {found(slots)}"))


def end(protocol: Protocol, here: ServerMove) -> ServerMove:
    """End a look: book the later read. (``call_at(promise)`` is what the promise stands for.)"""
    book = {"always": True, "conditional": here.server.started_over, "never": False}
    server = here.server._replace(at="idle", started_over=False)
    if not book[protocol.third_read]:
        return here._replace(server=server)
    server = server._replace(later="owed" if waiting(here.slots) else "booked")
    return here._replace(server=server, slots=marked(here.slots, True))


def read_later(protocol: Protocol, scope: Scope, here: ServerMove) -> Iterator[ServerMove]:
    """Make the third read, when everything that waited at the end of the look has landed."""
    for slots in landings(here.slots):
        if any(store.owed for store in waiting(slots)):
            continue
        seen = here._replace(slots=slots)
        if earliest(slots) < here.promise:
            yield from go_on(protocol, scope, seen, "reads later and looks")
        else:
            server = here.server._replace(later="none")
            yield seen._replace(text=f"reads later: {found(slots)}", server=server)


def adopt(protocol: Protocol, here: ServerMove, text: str) -> Iterator[ServerMove]:
    """Adopt a table without a connection. It is looked at every second: no need to model that."""
    plan = NEVER if protocol.release_orphans else here.promise
    here = here._replace(text=f"{text} and adopts the table", slots=marked(here.slots, False))
    if protocol.count_orphans:
        for word in ORDERS[protocol.header_writes]:
            yield write(here._replace(server=Server(OTHER[word], "adopted", plan)), word)
    else:
        yield write(here._replace(server=Server("idle", "adopted", plan)), "promise")


def found(slots: Slots) -> str:
    """Return in words what a read of the table found."""
    return ", ".join(NAMES[slot.deadline] for slot in slots)


# --- the laws


def broken(
    protocol: Protocol,
    slots: Slots,
    promise: int,
    rung: int,
    line: Line,
    server: Server,
    threads: Threads,
) -> Law | None:
    """Return the law that a state breaks, if any. Only states at rest can."""
    if server.at != "idle" or line.ringing or line.hello != "none":
        return None
    if server.owner == "unknown" or (line.unrung and not line.up):
        return None  # the first to arm a timer connects, and so does somebody now
    being_armed = (threads[0].slot, threads[1].slot)
    if server.owner == "adopted":
        if promise != NEVER or rung == CURRENT:
            return Law.UNHEARD
        unseen = not protocol.look_at_orphans and overlooked(slots, NEVER, being_armed)
        return Law.LOST if unseen else None
    if server.later == "owed" or not overlooked(slots, promise, being_armed):
        return None
    return Law.LATE if server.later == "booked" else Law.LOST


@cache
def overlooked(slots: Slots, promise: int, being_armed: tuple[int, int]) -> bool:
    """Whether a timer is armed for a time before the promise, when all stores have landed."""
    return any(
        slot.deadline < promise and number not in being_armed
        for landed in landings(slots)
        if not waiting(landed)
        for number, slot in enumerate(landed)
    )
