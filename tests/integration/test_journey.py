"""One real deadline on its way through the rooms, call by call, as the architecture page tells it."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from types import CodeType, FrameType
from typing import Any

from aiotimer._linux.paths import state_directory
from aiotimer.cli.page import print_page
from aiotimer.cli.why import newest
from tests.fakes.places import short_socket
from tests.fakes.server import serving
from tests.fakes.worker import PRELUDE, ended, line, spawn_worker

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "explanation" / "architecture.md"

RECORD = """
def record(stations, say):
    import sys, time
    def profile(frame, event, _argument):
        code = frame.f_code
        if event == "call":
            for module, function in stations:
                if code.co_qualname == function and code.co_filename.endswith(f"/aiotimer/{module}.py"):
                    stations.remove((module, function))
                    say(f"call {module} {time.monotonic_ns()}")
                    return
    sys.setprofile(profile)
"""

WORKER = """
client = TimerClient(unavailable="raise", budget=30)
client.connect()
say("connected")
sys.stdin.readline()
record({stations!r}, say)
with expires(1, "step", client):
    while True:
        time.sleep(60)
"""

IN_WORKER = {"client/expires", "client/block", "_core/table", "client/shared_table"}


def stations() -> list[tuple[str, str]]:
    """Return the rooms of the page with the function that is named of each, in its order."""
    journey = PAGE.read_text().partition("\n## The journey of one deadline\n")[2]
    return re.findall(r"^\| `(\w+/\w+)` \| `([\w.]+)` \|", journey, re.MULTILINE)


class Recorder:
    """Notes when some functions are called, in whichever thread: ``CLOCK_MONOTONIC``, nanoseconds."""

    def __init__(self, stations: list[tuple[str, str]]) -> None:
        self._called: list[tuple[int, str]] = []
        self._known: dict[CodeType, str] = {}
        self._stations = {(function, f"/aiotimer/{module}.py"): module for module, function in stations}

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code not in self._known:
                ends = "/aiotimer/" + code.co_filename.rpartition("/aiotimer/")[2]
                self._known[code] = self._stations.get((code.co_qualname, ends), "")
            module = self._known[code]
            if module:
                self._called.append((monotonic_ns(), module))

    def called_since(self, moment: int) -> dict[str, int]:
        """Return when each module was first called from then on.

        What is called before is no part of the journey: there are looks before it, too.
        """
        return {module: at for at, module in sorted(self._called, reverse=True) if at >= moment}

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Record in this thread, and in those that begin meanwhile."""
        before = sys.getprofile(), threading.getprofile()
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(before[0])
            threading.setprofile(before[1])


def test_each_room_is_named_once() -> None:
    rooms = [module for module, _function in stations()]
    assert len(rooms) == len(set(rooms)) > 15


async def test_a_deadline_passes_through_the_rooms_in_their_order() -> None:
    rooms = stations()
    code = PRELUDE + RECORD + WORKER.format(stations=[one for one in rooms if one[0] in IN_WORKER])
    recorder = Recorder([one for one in rooms if one[0] not in IN_WORKER])
    with short_socket() as path, recorder.on():
        async with serving(path, reap="dump,KILL") as server:
            with spawn_worker(code, path) as worker:
                await line(worker, "connected")
                worker.say()
                await server.told("reaped", worker.pid)
                assert await ended(worker) == -signal.SIGKILL
                words = [found.split() for found in worker.lines if found.startswith("call ")]
        (record,) = newest([state_directory(path)], worker.pid)
        print_page(record, io.StringIO())
    in_worker = {module: int(at) for _call, module, at in words}
    rung = recorder.called_since(min(in_worker.values()))["server/connection"]
    called = in_worker | recorder.called_since(rung)
    assert sorted(called, key=called.__getitem__) == [module for module, _function in rooms]
