"""Fuzzing: small in the ordinary suite, long in the soak.

The law of this file: whatever bytes, shapes and descriptors a client sends, the server answers or closes,
and has as many descriptors open as before.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from aiotimer import AsyncTimerClient
from aiotimer._core import layout
from tests.fakes.places import open_descriptors
from tests.fakes.server import answer, raw_client, serving
from tests.fuzz.targets import TARGETS, bodies, frames, tables

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
)
TAGS = st.sampled_from(["hello", "ring", "bye", "acquire", "ping", "status?", "welcome", "refused", "ack"])


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    assert frames(data) <= len(data)
    assert bodies(data) <= 2  # one frame, read by both sides


@given(TAGS, st.lists(VALUES, max_size=9))
def test_any_values_are_a_message_or_an_error(tag: str, values: list[object]) -> None:
    assert bodies(msgspec.msgpack.encode([tag, *values])) <= 1  # no message is both sides'


@given(st.binary(max_size=3000))
def test_any_bytes_are_a_table(data: bytes) -> None:
    assert tables(data) <= len(data) // 8


def sealed() -> int:
    import fcntl

    descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, layout.TABLE_SIZE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    return descriptor


def truncated() -> int:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(100)
        return os.dup(file.fileno())


OFFERS: dict[str, Callable[[], int]] = {
    "pipe": lambda: os.pipe()[0],
    "directory": lambda: os.open("/", os.O_RDONLY),
    "null": lambda: os.open(os.devnull, os.O_RDWR),
    "memfd": lambda: os.memfd_create("x"),
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "sealed": sealed,
    "truncated": truncated,
}


@pytest.mark.parametrize("kind", OFFERS)
async def test_an_offer_that_is_no_table_is_refused(kind: str) -> None:
    hello = msgspec.msgpack.encode(["hello", 1, "x", 1, True, 0, 0.0, True, []])
    async with serving() as server, AsyncTimerClient(server.socket_path, unavailable="raise") as client:
        before = open_descriptors()
        offered = OFFERS[kind]()
        with raw_client(server.socket_path) as connection:
            socket.send_fds(connection, [len(hello).to_bytes(4, "big") + hello], [offered])
            os.close(offered)
            (refusal,) = await answer(connection)
        assert "table" in str(refusal)
        assert client.connected
        assert open_descriptors() <= before + (kind == "pipe")  # our own end of it


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_atheris(target: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (the extra `fuzz`)")
    seconds = int(float(os.environ.get("AIOTIMER_SOAK_S", "600")) / len(TARGETS)) + 1
    command = [sys.executable, "-m", "tests.fuzz.targets", target, f"-max_total_time={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
