"""The codec under anything that can come in: the same messages however they are cut, else ProtocolError."""

import itertools
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import example, given

from aiotimer._core import wire
from aiotimer.errors import ProtocolError

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
SECONDS = st.floats(allow_nan=False)

TO_SERVER = st.one_of(
    st.builds(
        wire.Hello,
        version=INTEGERS,
        release=NAMES,
        pid=INTEGERS,
        shared=st.booleans(),
        time_namespace=INTEGERS,
        clock=SECONDS,
        offers_table=st.booleans(),
        armed=st.lists(st.tuples(NAMES, SECONDS), max_size=5).map(tuple),
    ),
    st.builds(wire.Ring, SECONDS),
    st.builds(wire.Acquire, INTEGERS, NAMES, SECONDS),
    st.just(wire.Bye()),
    st.just(wire.Ping()),
    st.just(wire.StatusRequest()),
    st.just(wire.Disown()),
)
NONSENSE = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), NAMES, st.binary(max_size=50)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(NAMES, inner, max_size=5)),
)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def drain(decoder: wire.Decoder[Any], data: list[bytes]) -> list[Any] | None:
    """Return the messages, None if it ended in a ProtocolError."""
    received: list[Any] = []
    for chunk in data:
        try:
            received += decoder.feed(chunk)
        except ProtocolError:
            return None
        assert len(decoder._buffer) < 4 + decoder._limit, "more is kept than one frame"
    return received


@given(st.lists(TO_SERVER, max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_messages_arrive_however_they_are_cut(messages: list[wire.ToServer], cuts: list[int]) -> None:
    data = b"".join(map(wire.encode, messages))
    decoder = wire.server_decoder()
    assert drain(decoder, chunks(data, cuts)) == messages
    assert not decoder.pending


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=5))
@example(b"\0\0\0\0", [])
@example(b"\0\1\0\0", [])
def test_any_bytes_end_in_messages_or_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    for decoder in (wire.server_decoder(), wire.client_decoder()):
        received = drain(decoder, chunks(data, cuts))
        assert received is None or all(isinstance(message, msgspec.Struct) for message in received)


@given(NONSENSE)
def test_any_object_is_a_message_or_a_protocol_error(nonsense: Any) -> None:
    body = msgspec.msgpack.encode(nonsense)
    frame = len(body).to_bytes(4, "big") + body
    for decoder in (wire.server_decoder(), wire.client_decoder()):
        received = drain(decoder, [frame])
        assert received is None or len(received) == 1


@given(TO_SERVER, st.data())
def test_a_damaged_message_is_another_one_or_a_protocol_error(
    message: wire.ToServer, data: st.DataObject
) -> None:
    frame = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    received = drain(wire.server_decoder(), [bytes(frame)])
    assert received is None or len(received) <= len(frame)
