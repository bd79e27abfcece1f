"""Workers, as programs: every way to be under a timer, around any body.

The laws of this file: a program prints ``deadline X`` once its timer is armed, and then runs the body it was
given; lines are written whole, because parents and children share a stream. Where a test has something to do
between arming and the deadline, no process starts in between: the program is started first, and arms
``UNHURRIED`` seconds when it is told to.
"""

from __future__ import annotations

from tests.support import SpawnedWorker

PRELUDE = """
import asyncio, ctypes, logging, os, signal, sys, threading, time
from aiotimer import AsyncTimerClient, TimerClient, expires

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""

ENTRIES = {
    "with": """
client = TimerClient(unavailable="raise", shared=SHARED, budget=30)
with expires(AFTER, "victim", client) as block:
    say("deadline", block.deadline)
    BODY
say("left")
""",
    "async with": """
async def main():
    client = AsyncTimerClient(unavailable="raise", shared=SHARED, budget=30)
    async with expires(AFTER, "victim", client) as block:
        say("deadline", block.deadline)
        BODY
    say("left")
asyncio.run(main())
""",
    "with on a loop": """
async def main():
    client = AsyncTimerClient(unavailable="raise", shared=SHARED, budget=30)
    await client.connect()
    with expires(AFTER, "victim", client) as block:
        say("deadline", block.deadline)
        BODY
    say("left")
asyncio.run(main())
""",
    "acquire": """
client = TimerClient(unavailable="raise", shared=SHARED, budget=30)
deadline = time.monotonic() + AFTER
client.acquire("victim", deadline)
say("deadline", deadline)
BODY
client.release("victim")
say("left")
""",
    "async acquire": """
async def main():
    client = AsyncTimerClient(unavailable="raise", shared=SHARED, budget=30)
    deadline = time.monotonic() + AFTER
    await client.acquire("victim", deadline)
    say("deadline", deadline)
    BODY
    await client.release("victim")
    say("left")
asyncio.run(main())
""",
}
"""How to be under a timer when the body begins. Each says ``left`` when it is not any more."""

HANGS = {
    "lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    # PyDLL calls without letting go of the GIL: no other thread of the process runs again.
    "gil": "ctypes.PyDLL(None).sleep(1000)",
    "spin": "while True: pass",
    # The handler would be run by the interpreter, which does not come to it either way.
    "sigterm": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "ctypes.PyDLL(None).sleep(1000)"
    ),
}
"""Bodies that never end, in synchronous code."""


UNHURRIED = 4.0
"""Seconds from arming to a deadline before which a test has a few system calls to make, on any machine."""

READY = """
early = TimerClient(unavailable="raise", shared=SHARED, budget=30)
early.connect()
say("ready")
sys.stdin.readline()
"""


def program(
    entry: str, body: str, *, after: float = 0.3, shared: bool = True, told: bool = False, first: str = ""
) -> str:
    """Return a worker that runs a body inside a timer.

    Args:
        entry: one of :data:`ENTRIES`.
        body: Python statements; in an asynchronous entry they may await.
        after: seconds from arming to the deadline.
        shared: False for a client without shared memory.
        told: it connects, says ``ready``, and goes on when a line is said to it.
        first: a line of Python to begin with, before there is any timer.
    """
    source = (
        (first + READY * told + ENTRIES[entry]).replace("SHARED", repr(shared)).replace("AFTER", repr(after))
    )
    place = next(text for text in source.splitlines() if text.strip() == "BODY")
    indent = place.removesuffix("BODY")
    return PRELUDE + source.replace(place, "\n".join(indent + text for text in body.splitlines()))


def all_ready(*workers: SpawnedWorker) -> None:
    """Wait until they have started and connected."""
    for worker in workers:
        worker.wait_line("ready")


def arm_all(*workers: SpawnedWorker) -> list[float]:
    """Tell workers that are ready to arm; return their deadlines."""
    for worker in workers:
        worker.say()
    return [float(worker.wait_line("deadline ").split()[-1]) for worker in workers]
