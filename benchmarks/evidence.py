"""Evidence: how much longer a hung worker lives because it is looked at before it is killed.

A program in plain Python, as a user would write it, hangs in a block; in turn under a server that only sends
SIGKILL and under one that gathers evidence first. What counts is the time from its deadline to its death. A
program that has torch loaded, where that is installed, and eight programs at once are measured as well.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from statistics import median
from time import monotonic

from ._report import Row
from ._server import serving

LADDERS = ("KILL", "dump,KILL")
LIMIT_MS, LIMIT_WITH_TORCH_MS = 150.0, 500.0
AT_ONCE = 8

_PATIENCE_MS = 30_000

_PROGRAM = """
import sys, time
{imports}
from aiotimer import TimerClient, expires

def step():
    time.sleep(1000)

client = TimerClient(unavailable="raise", budget=30)
client.connect()
with expires(0.5, "step", client) as block:
    print(block.deadline, flush=True)
    step()
"""


def measure(quick: bool) -> Iterator[Row]:
    """Yield by how much evidence puts off the death of one worker, and of the last of several."""
    rounds = 3 if quick else 11
    yield from _compared("plain Python", "", 1, rounds, LIMIT_MS)
    yield from _compared(f"{AT_ONCE} at once, plain Python: the last one", "", AT_ONCE, rounds, None)
    if find_spec("torch"):
        yield from _compared("with torch loaded", "import torch", 1, rounds, LIMIT_WITH_TORCH_MS)


def _compared(what: str, imports: str, workers: int, rounds: int, limit: float | None) -> Iterator[Row]:
    took: dict[str, list[float]] = {ladder: [] for ladder in LADDERS}
    for _ in range(rounds):
        for ladder in LADDERS:
            took[ladder].append(1e3 * _last_death(ladder, _PROGRAM.format(imports=imports), workers))
    bare, looked_at = (median(took[ladder]) for ladder in LADDERS)
    note = f"from deadline to death: {looked_at:.1f} ms, with KILL alone {bare:.1f} ms (medians of {rounds})"
    yield Row(f"{what}: later because of its evidence", looked_at - bare, "ms", limit, note=note)


def _last_death(ladder: str, program: str, workers: int) -> float:
    """Return how long after its deadline the last worker is dead, seconds."""
    with serving("uvloop", ladder) as server:
        environment = {**os.environ, "AIOTIMER_SOCKET": server.path}
        started = [
            subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
            for _ in range(workers)
        ]
        late = 0.0
        for process in started:
            with process:
                pidfd = os.pidfd_open(process.pid)
                assert process.stdout is not None
                deadline = float(process.stdout.readline())
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if not poll.poll(_PATIENCE_MS):
                    process.kill()
                    raise RuntimeError("a worker was not reaped")
                late = max(late, monotonic() - deadline)
                os.close(pidfd)
    return late
