"""A timer server in a process of its own.

``python -m benchmarks._server SOCKET LOOP LADDER`` serves until its standard input ends, then writes one JSON
object: when it first acted on each worker (``acted_at``, by pid, ``CLOCK_MONOTONIC`` seconds), and how late
its events say it was (``late_s``, by pid).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiotimer._core.requests import WorkerId
    from aiotimer.events import Event


@dataclass
class Reaps:
    """What a server did: see the module. Filled in when it has stopped."""

    acted_at: dict[int, float]
    late_s: dict[int, float]


@dataclass
class Served:
    """A running server.

    Attributes:
        path: its socket.
        pid: its process.
        reaps: what it did, once it has been stopped.
    """

    path: str
    pid: int
    reaps: Reaps


@contextlib.contextmanager
def serving(loop: str = "uvloop", reap: str = "dump,KILL") -> Iterator[Served]:
    """Run a server; on leaving, stop it and read what it did.

    Args:
        loop: ``uvloop`` or ``asyncio``.
        reap: the server's ladder.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "socket"))
        command = [sys.executable, "-m", "benchmarks._server", path, loop, reap]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the server did not start")
            served = Served(path, process.pid, Reaps({}, {}))
            yield served
            report = json.loads(process.communicate()[0])
        served.reaps.acted_at = {int(pid): at for pid, at in report["acted_at"].items()}
        served.reaps.late_s = {int(pid): late for pid, late in report["late_s"].items()}


async def _serve(path: str, reap: str) -> None:
    from aiotimer.server.server import TimerServer, own_process

    acted_at: dict[int, float] = {}
    late_s: dict[int, float] = {}

    class Server(TimerServer):
        def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
            acted_at.setdefault(worker_id.pid, monotonic())
            return super().reap_worker(worker_id)

    def note(event: Event) -> None:
        if event.event == "reaped" and event.worker_id is not None and event.late_s is not None:
            late_s[event.worker_id.pid] = event.late_s

    told_to_stop = asyncio.Event()
    server = Server(path, on_event=note, reap=reap, max_reaps=(10**6, 1.0))
    own_process(server)
    async with server:
        asyncio.get_running_loop().add_reader(0, told_to_stop.set)
        print("ready", flush=True)
        await told_to_stop.wait()
        asyncio.get_running_loop().remove_reader(0)
        await asyncio.sleep(0.2)  # deaths that are being reported
    json.dump({"acted_at": acted_at, "late_s": late_s}, sys.stdout)


def _main(path: str, loop: str, reap: str) -> None:
    import logging

    from aiotimer.server.rights import raise_priority

    raise_priority()  # as ``aiotimer serve`` does
    logging.disable(logging.ERROR)  # a line per reap would be measured along
    if loop == "uvloop":
        import uvloop

        uvloop.run(_serve(path, reap))
    else:
        asyncio.run(_serve(path, reap))


if __name__ == "__main__":
    _main(*sys.argv[1:])
