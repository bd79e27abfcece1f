"""What a hub of gevent's answers, of greenlets that are not real; of real ones see ``tests/hangs``."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType, GeneratorType, SimpleNamespace
from typing import Any

import pytest

import aiotimer
from aiotimer import expires
from aiotimer._core import layout, wire
from aiotimer._core.table import TimerTable
from aiotimer.client import greenlets, hub_channel
from aiotimer.testing import virtual


class Greenlet:
    """A greenlet that is switched out where a generator is suspended."""

    def __init__(self, at: Generator[None]) -> None:
        assert isinstance(at, GeneratorType)
        next(at, None)
        self._at = at

    @property
    def gr_frame(self) -> FrameType | None:
        """The innermost frame; None of one that runs, or has ended."""
        return self._at.gi_frame


def waits() -> Generator[None]:
    yield


def ends() -> Generator[None]:
    yield from ()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[Greenlet]:
    """The greenlet that runs is the last of these."""
    those: list[Greenlet] = []
    module = SimpleNamespace(getcurrent=lambda: those[-1], greenlet=Greenlet)
    monkeypatch.setitem(sys.modules, "greenlet", module)
    monkeypatch.setattr("aiotimer.client.block.entered_by", greenlets.note_greenlet)
    monkeypatch.setattr("aiotimer._core.table._THREADS_ARE_REAL", False)
    greenlets.known.clear()
    return those


class Loop:
    """A hub's loop: it notes who is called when something can be read."""

    def __init__(self) -> None:
        self.ready: Callable[[], None] | None = None

    def io(self, _descriptor: int, _events: int, *, ref: bool) -> Any:
        """Return a watcher."""
        assert not ref, "it would keep the hub running"
        return self

    def start(self, ready: Callable[[], None]) -> None:
        """Watch."""
        self.ready = ready

    def stop(self) -> None:
        """Watch no more."""
        self.ready = None

    def close(self) -> None:
        """Do nothing more."""

    def run_callback_threadsafe(self, callback: Callable[[], None]) -> None:
        """Run it at once."""
        callback()


class Hub:
    """A hub."""

    def __init__(self) -> None:
        self.loop = Loop()


def decoded(frame: bytes) -> wire.Tasks:
    (message,) = wire.server_decoder().feed(frame)
    assert isinstance(message, wire.Tasks)
    return message


def told(table: TimerTable | None, *slots: int, **handed_in: Any) -> wire.Tasks:
    handed_in = {"clock": lambda: 0.0, **handed_in}
    return decoded(hub_channel.answer(Hub(), wire.Inspect(7, slots), table, **handed_in))


def test_which_greenlet_entered_a_block_is_told_and_where_it_is(running: list[Greenlet]) -> None:
    one, other = Greenlet(waits()), Greenlet(waits())
    with virtual():
        running.append(one)
        first = expires(60, "slot").__enter__()
        running.append(other)
        again = expires(60, "slot").__enter__()
        again.__exit__(None, None, None)
        running.append(one)
        second = expires(60, "slot").__enter__()
        running.append(other)
        table, slots = first._pool.table, [block._slot for block in (first, second)]
        asked = [slot - layout.FIRST_DEADLINE for slot in slots if slot is not None]
        found = told(table, *asked)
        (own,) = [task for task in found.tasks if task.slots]
        assert own.slots == tuple(asked), "the second was the other one's before"
        assert own.name.endswith(f"Greenlet at {id(one):#x}")
        assert [function for _, _, function in own.frames] == ["waits"]
        assert found.tasks[0] == own
        assert len(found.tasks) == 2
        assert found.left_out == 0
        assert "test_which_greenlet" in found.stacks
        assert not any(task.slots for task in told(None, *asked).tasks)
        late = told(table, *asked, clock=iter((0.0, *[hub_channel.WITHIN] * 9)).__next__)
        assert (late.tasks, late.left_out) == ((own,), 1), "there is no time for more"
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)


def test_who_knows_threads_only_goes_by_what_was_noted_of_this_very_entry(
    running: list[Greenlet], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Greenlet(waits())
    running.append(one)
    number = greenlets.note_greenlet()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "greenlet", SimpleNamespace(greenlet=Greenlet))
    with virtual(), expires(60, "slot") as block:
        word = block._slot
        assert word is not None
        table, slot = block._pool.table, word - layout.FIRST_DEADLINE
        count = table.cells[word + layout.COUNT_OF]
        assert told(table, slot, entries={word: (count, number)}).tasks[0].slots == (slot,)
        assert not any(task.slots for task in told(table, slot, entries={word: (count - 1, number)}).tasks)


def test_of_greenlets_that_run_elsewhere_or_are_no_more_nothing_is_told(running: list[Greenlet]) -> None:
    before = len(told(None).tasks)
    running.append(Greenlet(ends()))
    greenlets.note_greenlet()
    assert len(told(None).tasks) == before
    running.append(Greenlet(waits()))
    greenlets.note_greenlet()
    assert len(told(None).tasks) == before + 1
    running.clear()
    gc.collect()
    assert len(told(None).tasks) == before


def test_a_channel_answers_from_inside_of_its_hub(
    tmp_path: Path, running: list[Greenlet], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    hubs = [None, hub, hub]
    monkeypatch.setitem(
        sys.modules, "gevent._hub_local", SimpleNamespace(get_hub_if_exists=lambda: hubs.pop(0))
    )
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "s")
        listener.bind(path)
        listener.listen()
        before = set(os.listdir("/proc/self/fd"))
        client = aiotimer.TimerClient(path)
        for _ in range(3):
            hub_channel.open_hub_channel(client._queue, None)
        peer, _ = listener.accept()
        with peer:
            (first,) = wire.server_decoder().feed(peer.recv(1000))
            assert first == wire.Attend(wire.PROTOCOL_VERSION)
            ready = hub.loop.ready
            assert ready is not None
            ready()  # in vain
            peer.send(wire.encode(wire.Inspect(7)))
            ready()
            assert decoded(peer.recv(65_536)).loop.endswith("Hub>")
            hub_channel.close_channels(path)
            assert peer.recv(10) == b""
            assert hub.loop.ready is None
        client.close()
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_channel_whose_server_is_gone_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "s")
        listener.bind(path)
        listener.listen()
        client = aiotimer.TimerClient(path)
        channel = hub_channel.HubChannel(hub, client._queue)
        channel.open()
        assert channel.is_open
        peer, _ = listener.accept()
        peer.close()
        assert hub.loop.ready is not None
        hub.loop.ready()
        assert not channel.is_open
        client.close()
