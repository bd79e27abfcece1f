"""The messages on the socket, and an incremental codec of them.

A frame is a 4-byte big-endian length and a MessagePack array whose first element names the message. The
socket carries little: a worker that shares its table sends HELLO once, a RING when it arms a timer
earlier than the server's promise, and BYE. ``docs/reference/protocol.md`` describes each message.

The laws of this file: a decoder never holds more than one frame's limit of undecoded bytes beyond what it
was fed at once; whatever a peer sends ends in messages or in :class:`ProtocolError`, nothing else. Fields
may be added at the end of a message with a default; anything else needs a new ``PROTOCOL_VERSION``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from ..errors import ProtocolError

PROTOCOL_VERSION = 1

MAX_FRAME = 64 * 1024
"""The longest frame a server accepts. The longest a client needs is a HELLO that lists its armed timers in
socket-only mode; it lists at most as many as fit and sends the others as requests."""

MAX_REPLY = 64 * 1024 * 1024
"""The longest frame a client accepts: a status of thousands of workers is long."""

_LENGTH_BYTES = 4


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """Client to server, first and once per connection.

    Attributes:
        version: the client's ``PROTOCOL_VERSION``.
        release: the client's package version, for messages about a mismatch.
        pid: the client's pid as it sees it. Shown, never acted upon.
        shared: True to share a table; False to send each request as a message.
        time_namespace: inode of the client's time namespace, 0 if unknown.
        clock: the client's ``CLOCK_MONOTONIC`` at sending, seconds.
        offers_table: the descriptor of a table that the client has already comes with this message.
        armed: socket-only: every timer now armed, as (key, deadline); see :class:`Acquire`. Timers that
            an older connection of this client armed and that are not in this list are released.
        reap: its reap request, the ladder that it wants (see ``_core/ladder.py``); "" as the server does it.
        observe: nobody is to be signalled for this worker's timers; their expiry is recorded.
        run: the job that it belongs to; "" if it does not know.
        exit_signal: the signal at which it exits whatever it is doing, if it is pid 1; else 0.
        name: what people call it. Shown, never acted upon; "" as its command is called.
        libraries: how the paths of its interpreter's libraries begin; empty: it does not say.
        group, rank, size, first, here: which member of which run it is, see ``_core/membership``. Shown, and
            used to group the workers of one user; by it is signalled only who is due together with it, if
            the server's owner wants that.
    """

    version: int
    release: str
    pid: int
    shared: bool
    time_namespace: int
    clock: float
    offers_table: bool = False
    armed: tuple[tuple[str, float], ...] = ()
    reap: str = ""
    observe: bool = False
    run: str = ""
    exit_signal: int = 0
    name: str = ""
    libraries: tuple[str, ...] = ()
    group: str = ""
    rank: int = -1
    size: int = 0
    first: int = 0
    here: int = 0


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    """Server to client: the connection stands. Only this means *connected*.

    Attributes:
        version: the server's ``PROTOCOL_VERSION``.
        release: the server's package version.
        pid: the server's pid.
        offset: seconds to add to the client's clock (0.0 in the same time namespace).
        has_table: a new table's descriptor comes with this message.
        path: where the worker's table lies, to open it again should the program close its descriptor; "" if
            it has no name.
    """

    version: int
    release: str
    pid: int
    offset: float
    has_table: bool
    path: str = ""


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    """Server to client: no. The connection is closed after it."""

    reason: str


class Account(msgspec.Struct, array_like=True, frozen=True):
    """Server to the next server, in a worker's table: what that has said of itself, see :class:`Hello`.

    It is no message: nobody sends it.
    """

    run: str = ""
    name: str = ""
    group: str = ""
    rank: int = -1
    size: int = 0
    first: int = 0
    here: int = 0
    libraries: tuple[str, ...] = ()


class Ring(msgspec.Struct, tag="ring", array_like=True, frozen=True, gc=False):
    """Client to server: a deadline earlier than your promise has been stored. Look."""

    deadline: float


class Bye(msgspec.Struct, tag="bye", array_like=True, frozen=True):
    """Client to server: this process's last client is leaving; forget its timers."""


class Acquire(msgspec.Struct, tag="acquire", array_like=True, frozen=True, gc=False):
    """Client to server, socket-only: arm, move or (negative ``expiration_time``) release a timer.

    Attributes:
        number: 1 for the first request on a connection, then one more each.
        key: the scope; for the n-th concurrent entry of a scope, the scope, a NUL and n.
        expiration_time: seconds on the client's ``CLOCK_MONOTONIC``; the server adds the offset of another
            time namespace, here and in ``Hello.armed``.
    """

    number: int
    key: str
    expiration_time: float


class Ack(msgspec.Struct, tag="ack", array_like=True, frozen=True):
    """Server to client: all requests up to ``number`` are applied; ``error`` says why the last was not."""

    number: int
    error: str = ""


class Ping(msgspec.Struct, tag="ping", array_like=True, frozen=True):
    """Anyone to server: are you there?"""


class Pong(msgspec.Struct, tag="pong", array_like=True, frozen=True):
    """Server: yes.

    Attributes:
        pid: the server's pid.
        lag_s: how late, at worst, the server's own heartbeat has been in the last minute, seconds.
    """

    pid: int
    lag_s: float


class StatusRequest(msgspec.Struct, tag="status?", array_like=True, frozen=True):
    """Anyone to server: who is connected, and what is armed?

    Attributes:
        scopes: and how long did the blocks of the living take?
    """

    scopes: bool = False


class Status(msgspec.Struct, tag="status", array_like=True, frozen=True):
    """Server: the object that ``aiotimer status --json`` prints."""

    report: dict[str, Any]


class Resume(msgspec.Struct, tag="resume", array_like=True, frozen=True):
    """Anyone to server: reap again, in every job for which the breaker is broken."""


class Resumed(msgspec.Struct, tag="resumed", array_like=True, frozen=True):
    """Server: done.

    Attributes:
        jobs: those for which that is new.
    """

    jobs: tuple[str, ...]


class Disown(msgspec.Struct, tag="disown", array_like=True, frozen=True):
    """Owner to its private server: end as if I had gone."""


class Attend(msgspec.Struct, tag="attend", array_like=True, frozen=True):
    """Client to server, instead of HELLO: this is an inspection channel of one of my event loops.

    Attributes:
        version: the client's ``PROTOCOL_VERSION``.
    """

    version: int


class Inspect(msgspec.Struct, tag="inspect", array_like=True, frozen=True):
    """Server to client, on an inspection channel: what are your tasks waiting for?

    Attributes:
        number: to be repeated in the answer.
        slots: the timers of interest, as slots of this process's table; empty: none in particular.
    """

    number: int
    slots: tuple[int, ...] = ()


class TaskReport(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One task of an event loop, or several that wait at the same place: in the same functions, for the same.

    Attributes:
        name: of the task (of the first one).
        count: how many tasks this is about.
        slots: which of the slots asked for belong to blocks that it has entered.
        frames: outermost first: (file, line, function) of every coroutine on the way to what it waits for.
        waits_for: that thing, in words; "" if it runs or is about to.
    """

    name: str
    count: int
    slots: tuple[int, ...]
    frames: tuple[tuple[str, int, str], ...]
    waits_for: str


class Tasks(msgspec.Struct, tag="tasks", array_like=True, frozen=True):
    """Client to server: the answer to :class:`Inspect`, given from inside the loop: so it is alive.

    Attributes:
        number: of the question.
        loop: the loop, in words.
        thread: the name of its thread.
        tasks: what its tasks wait for; those with slots first.
        left_out: how many tasks more there are, which did not fit or were not come to.
        stacks: the stacks of threads of the process, as ``faulthandler`` writes them, the main one last.
    """

    number: int
    loop: str
    thread: str
    tasks: tuple[TaskReport, ...]
    left_out: int
    stacks: str


class DumpRequest(msgspec.Struct, tag="dump?", array_like=True, frozen=True):
    """Anyone to server: what is this worker of yours doing? It is not harmed.

    Attributes:
        pid: which of the workers that the server has pinned.
    """

    pid: int


class Dump(msgspec.Struct, tag="dump", array_like=True, frozen=True):
    """Server: the object that ``aiotimer dump --json`` prints; ``error`` says why there is none."""

    report: dict[str, Any]
    error: str = ""


ToServer: TypeAlias = (
    Hello | Ring | Bye | Acquire | Ping | StatusRequest | Resume | Disown | Attend | Tasks | DumpRequest
)
ToClient: TypeAlias = Welcome | Refused | Ack | Pong | Status | Resumed | Inspect | Dump

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
_to_server = msgspec.msgpack.Decoder(ToServer)
_to_client = msgspec.msgpack.Decoder(ToClient)
_account = msgspec.msgpack.Decoder(Account)


def encode(message: ToServer | ToClient) -> bytes:
    """Return the frame of a message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def packed(part: Any) -> msgspec.Raw:
    """Return a part of a message as the bytes that it will be, so that a long one is not made in one go."""
    return msgspec.Raw(_encoder.encode(part))


def account(of: Account, room: int) -> bytes:
    """Return an account as it stands in a table: with as many libraries as fit; nothing if it cannot."""
    while len(body := _encoder.encode(of)) + _LENGTH_BYTES > room:
        if not of.libraries:
            return bytes(room)
        of = msgspec.structs.replace(of, libraries=of.libraries[:-1])
    return (len(body).to_bytes(_LENGTH_BYTES, "big") + body).ljust(room, b"\0")


def read_account(data: bytes) -> Account | None:
    """Return what :func:`account` gave, None if there is nothing; a worker may have written anything else."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    if not 0 < length <= len(data) - _LENGTH_BYTES:
        return None
    try:
        return _account.decode(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Decoder(Generic[M]):
    """Turns a stream of bytes into messages; see :func:`server_decoder` and :func:`client_decoder`."""

    __slots__ = ("_buffer", "_decode", "_limit")

    def __init__(self, decode: Callable[[bytes], M], limit: int) -> None:
        self._buffer = bytearray()
        self._decode = decode
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[M]:
        """Yield the messages that ``data`` completes; keep what is left for the next call.

        Raises:
            ProtocolError: the bytes are not the protocol's; the connection is of no more use.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while (body := start + _LENGTH_BYTES) <= len(buffer):
                length = int.from_bytes(buffer[start:body], "big")
                if not 0 < length <= self._limit:
                    raise ProtocolError(f"a frame of {length} bytes (1 to {self._limit} are allowed)")
                if body + length > len(buffer):
                    break
                start = body + length
                yield self._message(bytes(buffer[body:start]))
        finally:
            del buffer[:start]

    @property
    def pending(self) -> bool:
        """Whether a part of a frame is waiting for the rest."""
        return bool(self._buffer)

    def _message(self, frame: bytes) -> M:
        try:
            return self._decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a message: {error}") from error


def server_decoder() -> Decoder[ToServer]:
    """Return a decoder of what clients send."""
    return Decoder(_to_server.decode, MAX_FRAME)


def client_decoder() -> Decoder[ToClient]:
    """Return a decoder of what a server sends."""
    return Decoder(_to_client.decode, MAX_REPLY)
