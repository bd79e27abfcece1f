"""The codec: however the bytes are cut, the same messages come out; from garbage, only ProtocolError."""

import struct
from collections.abc import Iterator
from math import inf, nan
from typing import Any

import msgspec
import pytest

from aiotimer._core import wire
from aiotimer.errors import ProtocolError

TO_SERVER: list[wire.ToServer] = [
    wire.Hello(1, "0.1", 42, True, 4026531834, 12.5),
    wire.Hello(1, "0.1", 42, True, 0, 12.5, libraries=("/usr/lib/python3.11/",)),
    wire.Hello(1, "0.1", 42, True, 0, 12.5, group="4711", rank=5, size=8, first=4, here=4),
    wire.Hello(2, "0.2", 42, False, 0, 12.5, True, (("s", 3.0), ("s\x002", 4.0))),
    wire.Ring(12.5),
    wire.Acquire(1, "train.py:42", 60.0),
    wire.Acquire(2**40, "ü\x001", -1.0),
    wire.Bye(),
    wire.Ping(),
    wire.StatusRequest(),
    wire.Disown(),
]
TO_CLIENT: list[wire.ToClient] = [
    wire.Welcome(1, "0.1", 7, 0.0, True),
    wire.Refused("no"),
    wire.Ack(3),
    wire.Ack(4, "full"),
    wire.Pong(7, 0.25),
    wire.Status({"server": {"pid": 7}, "workers": [{"scope": "\n\x1b[31m", "deadline": 1.5}]}),
]


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def frames(messages: list[Any]) -> bytes:
    return b"".join(map(wire.encode, messages))


# --- the same messages, however they are cut


def test_messages_to_a_server_arrive() -> None:
    assert list(wire.server_decoder().feed(frames(TO_SERVER))) == TO_SERVER


def test_messages_to_a_client_arrive() -> None:
    assert list(wire.client_decoder().feed(frames(TO_CLIENT))) == TO_CLIENT


def test_half_a_frame_is_pending_until_its_rest_comes() -> None:
    decoder = wire.server_decoder()
    data = wire.encode(wire.Ring(5.0))
    assert not decoder.pending
    for cut in (1, 4, len(data) - 1):
        assert not list(decoder.feed(data[:cut]))
        assert decoder.pending
        assert list(decoder.feed(data[cut:])) == [wire.Ring(5.0)]
        assert not decoder.pending


def test_a_reader_that_stops_early_loses_nothing() -> None:
    decoder = wire.server_decoder()
    messages: Iterator[wire.ToServer] = decoder.feed(frames([wire.Ring(1.0), wire.Ring(2.0)]))
    assert next(messages) == wire.Ring(1.0)
    del messages
    assert list(decoder.feed(b"")) == [wire.Ring(2.0)]


@pytest.mark.parametrize("deadline", [0.0, -1.0, 1e308, inf, -inf, nan])
def test_any_double_may_be_rung(deadline: float) -> None:
    (ring,) = wire.server_decoder().feed(wire.encode(wire.Ring(deadline)))
    assert isinstance(ring, wire.Ring)
    assert struct.pack("d", ring.deadline) == struct.pack("d", deadline)


def test_a_hello_of_an_earlier_version_has_no_name() -> None:
    hello = wire.Hello(1, "0.1", 42, True, 0, 12.5, exit_signal=34, name="train.py rank 3/8")
    assert list(wire.server_decoder().feed(wire.encode(hello))) == [hello]
    body = msgspec.msgpack.encode(msgspec.to_builtins(hello)[:13])
    (earlier,) = wire.server_decoder().feed(len(body).to_bytes(4, "big") + body)
    assert isinstance(earlier, wire.Hello)
    assert (earlier.exit_signal, earlier.name) == (34, "")
    assert (earlier.group, earlier.rank, earlier.size) == ("", -1, 0)


def test_a_hello_takes_a_list_of_armed_timers() -> None:
    hello = wire.Hello(1, "0.1", 42, False, 0, 12.5, armed=(("s", 3.0),))
    assert list(wire.server_decoder().feed(wire.encode(hello))) == [hello]


# --- lengths


def test_a_frame_of_length_zero_is_refused() -> None:
    with pytest.raises(ProtocolError, match="0 bytes"):
        list(wire.server_decoder().feed(frame(b"")))


def test_a_frame_at_the_limit_is_taken_and_one_byte_more_refused() -> None:
    head = len(wire.encode(wire.Acquire(1, "k" * 60_000, 1.0))) - 60_000 - 4
    longest = wire.Acquire(1, "k" * (wire.MAX_FRAME - head), 1.0)
    assert len(wire.encode(longest)) == 4 + wire.MAX_FRAME
    assert list(wire.server_decoder().feed(wire.encode(longest))) == [longest]
    longer = wire.Acquire(1, longest.key + "k", 1.0)
    with pytest.raises(ProtocolError, match=f"{wire.MAX_FRAME + 1} bytes"):
        list(wire.server_decoder().feed(wire.encode(longer)))


def test_a_client_takes_longer_frames_than_a_server() -> None:
    status = wire.Status({"workers": ["x" * wire.MAX_FRAME] * 3})
    assert list(wire.client_decoder().feed(wire.encode(status))) == [status]
    with pytest.raises(ProtocolError, match=f"{wire.MAX_REPLY + 1} bytes"):
        list(wire.client_decoder().feed(struct.pack(">I", wire.MAX_REPLY + 1)))


@pytest.mark.parametrize("length", [wire.MAX_FRAME + 1, 2**31, 2**32 - 1])
def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come(length: int) -> None:
    decoder = wire.server_decoder()
    with pytest.raises(ProtocolError, match=f"{length} bytes"):
        list(decoder.feed(struct.pack(">I", length)))


def test_what_came_before_the_garbage_is_delivered() -> None:
    received: list[wire.ToServer] = []
    messages = wire.server_decoder().feed(wire.encode(wire.Ping()) + frame(b"\xc1"))
    with pytest.raises(ProtocolError):
        received.extend(messages)
    assert received == [wire.Ping()]


# --- what a worker has said of itself, in its table

LIBRARIES = tuple(f"/srv/libraries/{number}/" for number in range(9))
SAID = wire.Account("job-7", "train.py rank 2/4", "4711", 2, 4, 2, 2, LIBRARIES)


def test_an_account_is_read_as_it_was_noted() -> None:
    noted = wire.account(SAID, 3840)
    assert len(noted) == 3840
    assert wire.read_account(noted) == SAID
    assert wire.read_account(wire.account(wire.Account(), 3840)) == wire.Account()


def test_of_libraries_an_account_has_as_many_as_fit() -> None:
    whole = len(wire.account(SAID, 3840).rstrip(b"\0"))
    for room, count in ((whole, 9), (whole - 1, 8), (whole - 18, 8), (whole - 19, 7)):
        noted = wire.account(SAID, room)
        assert len(noted) == room
        assert wire.read_account(noted) == msgspec.structs.replace(SAID, libraries=LIBRARIES[:count])


def test_an_account_without_room_is_none() -> None:
    bare = msgspec.structs.replace(SAID, libraries=())
    least = len(wire.account(bare, 3840).rstrip(b"\0"))
    assert wire.read_account(wire.account(bare, least)) == bare
    assert wire.account(SAID, least - 1) == bytes(least - 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(3),
        bytes(3840),
        b"\xff" * 3840,
        struct.pack(">I", 3837) + bytes(3836),
        frame(b"\xc1"),
        frame(msgspec.msgpack.encode(["job", 7])),
        frame(msgspec.msgpack.encode({"run": "job"})),
        frame(b"\x91\xa2\xff\xff"),
        frame(b"\x91" * 3000),
    ],
)
def test_what_is_no_account_says_nothing(data: bytes) -> None:
    assert wire.read_account(data) is None


def test_an_account_may_be_of_another_version() -> None:
    assert wire.read_account(frame(msgspec.msgpack.encode(["job"]))) == wire.Account("job")
    more = ["job", "name", "4711", 2, 4, 2, 2, [], "what is to come"]
    assert wire.read_account(frame(msgspec.msgpack.encode(more))) == msgspec.structs.replace(
        SAID, run="job", name="name", libraries=()
    )


# --- garbage

GARBAGE: dict[str, bytes] = {
    "reserved byte": b"\xc1",
    "nil": b"\xc0",
    "not an array": msgspec.msgpack.encode({"tag": "ring"}),
    "no tag": msgspec.msgpack.encode([]),
    "unknown tag": msgspec.msgpack.encode(["rung", 1.0]),
    "tag is a number": msgspec.msgpack.encode([1, 1.0]),
    "a field missing": msgspec.msgpack.encode(["ring"]),
    "a field of another type": msgspec.msgpack.encode(["ring", "soon"]),
    "null for a number": msgspec.msgpack.encode(["ring", None]),
    "two messages in a frame": msgspec.msgpack.encode(["ping"]) * 2,
    "truncated": msgspec.msgpack.encode(["ring", 1.0])[:-1],
    "an array of 4 billion": b"\xdd\xff\xff\xff\xff\xa4ring",
    "4 billion timers": msgspec.msgpack.encode(["hello", 1, "r", 1, False, 0, 0.0, False])[1:].join(
        [b"\x99", b"\xdd\xff\xff\xff\xff"]
    ),
    "invalid UTF-8": b"\x94\xa7acquire\x01\xa1\xff\xcb" + bytes(8),
    "nested 20,000 deep": b"\x91" * 20_000,
    "a map nested 20,000 deep": b"\x92\xa6status" + b"\x81\xa1a" * 20_000,
    "a timestamp of year 10^11": b"\xc7\x0c\xff" + b"\xff" * 12,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_a_protocol_error(name: str) -> None:
    for decoder in (wire.server_decoder(), wire.client_decoder()):
        with pytest.raises(ProtocolError):
            list(decoder.feed(frame(GARBAGE[name])))


def test_a_message_to_the_other_side_is_a_protocol_error() -> None:
    for message in TO_SERVER:
        with pytest.raises(ProtocolError):
            list(wire.client_decoder().feed(wire.encode(message)))
    for reply in TO_CLIENT:
        with pytest.raises(ProtocolError):
            list(wire.server_decoder().feed(wire.encode(reply)))


def test_fields_that_a_later_version_adds_are_passed_over() -> None:
    later = msgspec.msgpack.encode(["ring", 5.0, "why", {"more": 1}])
    assert list(wire.server_decoder().feed(frame(later))) == [wire.Ring(5.0)]
