"""Requests in the pipe of torch's file timer: what is one, what is none, and what others leave in between."""

import json
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotimer._core.file_timer import (
    MOST,
    FileTimerRequest,
    LineDecoder,
    fitting_scope,
    monotonic_deadline,
)
from aiotimer._core.layout import SCOPE_BYTES, encode_scope

REQUEST = FileTimerRequest(4242, "epoch", 1_700_000_000.5, 9)


def line(**changed: Any) -> bytes:
    """A line as torch writes it, but for what is changed."""
    told = {"version": 1, "pid": 4242, "scope_id": "epoch", "expiration_time": 1_700_000_000.5, "signal": 9}
    return json.dumps(told | changed).encode() + b"\n"


def decoded(*pieces: bytes) -> list[FileTimerRequest | str]:
    decoder = LineDecoder()
    return [found for piece in pieces for found in decoder.feed(piece)]


# --- lines


def test_a_line_is_a_request() -> None:
    assert decoded(line()) == [REQUEST]


def test_a_release_is_a_negative_time() -> None:
    assert decoded(line(expiration_time=-1, signal=0)) == [FileTimerRequest(4242, "epoch", -1.0, 0)]


@given(st.lists(st.integers(1, 40)))
def test_it_does_not_matter_where_reading_is_cut(cuts: list[int]) -> None:
    data = line() + line(scope_id="ü\n{", pid=7) + line(signal=15)
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    found = decoded(*pieces, data)
    assert found == [REQUEST, REQUEST._replace(scope="ü\n{", pid=7), REQUEST._replace(signal=15)]


def test_empty_lines_are_nothing() -> None:
    assert decoded(b"\n \n" + line() + b"\n") == [REQUEST]


@pytest.mark.parametrize(
    "bad",
    [
        line(pid=0), line(pid=-3), line(pid=2**31), line(pid="4242"), line(pid=True), line(pid=1.0),
        line(pid=None), line(scope_id=None), line(scope_id=7), line(signal="9"), line(signal=None),
        line(expiration_time="soon"), line(expiration_time=None), line(expiration_time=True),
        line(expiration_time=nan), line(expiration_time=inf), line(expiration_time=10**400),
        line(version=2), line(version=None), b"[]\n", b"7\n", b"null\n", b"hello\n", b"{\n", b"\xff\xfe\n",
        b'{"version": 1' + b"[" * 9000 + b"\n", b'{"version": ' + b"9" * 5000 + b"}\n", b"\0" * 100 + b"\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_said_and_costs_no_other(bad: bytes) -> None:
    first, why, last = decoded(line() + bad + line())
    assert first == last == REQUEST
    assert isinstance(why, str)
    assert "is no request of a file timer: " in why
    assert len(why) < 1000


def test_a_release_may_be_as_far_back_as_it_likes() -> None:
    released = REQUEST._replace(expiration_time=-inf)
    assert decoded(line(expiration_time=-(10**400)) + line()) == [released, REQUEST]


@pytest.mark.parametrize("cut", range(1, len(line()) - 1))
def test_what_a_writer_left_unfinished_costs_no_request_of_the_next(cut: int) -> None:
    *refused, last = decoded(line()[:cut], line(pid=7))
    assert last == REQUEST._replace(pid=7)
    assert all(isinstance(why, str) for why in refused)


def test_a_request_that_only_lacks_its_line_end_counts() -> None:
    assert decoded(line().rstrip(b"\n"), line(pid=7)) == [REQUEST, REQUEST._replace(pid=7)]


def test_how_a_request_begins_can_stand_in_a_name() -> None:
    scope = '{"version": 1, "pid": 1}'
    assert decoded(line(scope_id=scope)) == [REQUEST._replace(scope=scope)]


def test_keys_may_come_in_another_order() -> None:
    told = json.loads(line())
    data = json.dumps(dict(reversed(told.items()))).encode() + b"\n"
    assert decoded(data) == [REQUEST]


def test_what_never_ends_is_not_kept() -> None:
    decoder = LineDecoder()
    for _ in range(100):
        assert list(decoder.feed(b"x" * 10_000)) == []
        assert len(decoder._unfinished) <= MOST
    assert list(decoder.feed(line()))[-1] == REQUEST


@given(st.binary())
def test_no_bytes_are_an_error(data: bytes) -> None:
    assert decoded(data, b"\n", line())[-1] == REQUEST


# --- names


@pytest.mark.parametrize(
    ("text", "name"),
    [("train.py#7", "train.py#7"), ("", "?"), ("a\0b", "a?b"), ("\udce4", "\\udce4"), ("ü" * 200, "ü" * 120)],
)
def test_every_text_has_a_name(text: str, name: str) -> None:
    assert fitting_scope(text) == name


@given(st.text(max_size=300))
def test_every_name_fits(text: str) -> None:
    assert len(encode_scope(fitting_scope(text))) <= SCOPE_BYTES


# --- clocks


@pytest.mark.parametrize(
    ("expiration_time", "deadline"),
    [
        (1060.0, 160.0),
        (1000, 100.0),
        (940.0, 40.0),
        (800.0, 0.0),
        (0, 0.0),
        (-1, -1.0),
        (-inf, -inf),
        (-(10**400), -inf),
    ],
)
def test_a_time_of_the_wall_clock_is_as_far_away_on_the_other(
    expiration_time: float, deadline: float
) -> None:
    """What expired before this machine was started has expired, and is no release."""
    assert monotonic_deadline(expiration_time, wall=1000.0, now=100.0) == deadline


@pytest.mark.parametrize("number", [nan, inf, 10**400])
def test_a_time_is_finite(number: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        monotonic_deadline(number, wall=1000.0, now=100.0)


@pytest.mark.parametrize("value", ["1000", None, True, b"1"])
def test_a_time_is_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match="must be a number, not"):
        monotonic_deadline(value, wall=1000.0, now=100.0)
