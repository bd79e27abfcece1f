"""PING and PONG without the codec: the same bytes, and nothing read into others."""

import pytest

from aiotimer._core import wire
from aiotimer._core.ping import PING, read_pong


def test_a_ping_is_what_the_codec_writes() -> None:
    assert wire.encode(wire.Ping()) == PING


@pytest.mark.parametrize("pid", [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**22, 2**32 - 1])
@pytest.mark.parametrize("lag_s", [0.0, 1e-9, 0.25, 86_400.0])
def test_a_pong_is_read_as_the_codec_reads_it(pid: int, lag_s: float) -> None:
    frame = wire.encode(wire.Pong(pid, lag_s))
    assert read_pong(frame) == (pid, lag_s)


@pytest.mark.parametrize("pid", [1, 200, 300, 70_000])
def test_what_is_not_a_whole_pong_and_nothing_else_is_left_to_the_codec(pid: int) -> None:
    frame = wire.encode(wire.Pong(pid, 0.25))
    assert [read_pong(frame[:size]) for size in range(len(frame))] == [None] * len(frame)
    assert read_pong(frame + b"\0") is None
    # A frame may be whole, and its body not.
    bodies = [frame[4 : 4 + size] for size in range(len(frame) - 4)]
    assert [read_pong(len(body).to_bytes(4, "big") + body) for body in bodies] == [None] * len(bodies)


@pytest.mark.parametrize(
    "answer", [wire.Refused("no"), wire.Pong(2**32, 0.0), wire.Pong(-1, 0.0), wire.Ack(1), wire.Status({})]
)
def test_other_answers_are_left_to_the_codec(answer: wire.ToClient) -> None:
    assert read_pong(wire.encode(answer)) is None
