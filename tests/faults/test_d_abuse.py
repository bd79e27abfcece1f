"""Faults 24 to 31: too much of everything.

The laws of this file: what one worker does can harm only that worker. The protocol's faults, 24, 29 and 31,
and the flood of descriptors are in ``tests/integration/test_server.py``.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest

from tests.programs import PRELUDE
from tests.serving import ServerProcess, ended, line, number, serving
from tests.support import short_socket, spawn_worker

ARM_ALL = {
    "expires": """
blocks = []
def arm(number):
    blocks.append(expires(1000, "same" if number % 2 else f"scope {number}", client).__enter__())

def release_one():
    blocks.pop().__exit__(None, None, None)
""",
    "acquire": """
later = time.monotonic() + 1000
def arm(number):
    client.acquire(f"timer {number}", later)

def release_one():
    client.release("timer 77")
""",
}

TOO_MANY = """
from aiotimer import TableFull

client = TimerClient(unavailable=sys.argv[1], budget=30, shared=SHARED)
ARM_ALL
for number in range(COUNT):
    arm(number)
try:
    arm(COUNT)
except TableFull as error:
    say("full", error.armed)
sys.stdin.readline()
release_one()
arm(COUNT)
say("one more")
sys.stdin.readline()
"""


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize(("kind", "policy"), [("expires", "ignore"), ("acquire", "raise")])
async def test_fault_30_65537_timers(kind: str, policy: str) -> None:
    """The last one is an error whatever the client's policy; the others stand."""
    source = PRELUDE + TOO_MANY.replace("ARM_ALL", ARM_ALL[kind])
    source = source.replace("COUNT", "65_536").replace("SHARED", "True")
    async with serving() as server:
        with spawn_worker(source, server.socket_path, policy) as worker:
            assert await number(worker, "full") == 65_536
            assert len(server.armed(worker.pid)) == 65_536
            worker.say()
            await line(worker, "one more")
            assert len(server.armed(worker.pid)) == 65_536
            worker.say()
            assert await ended(worker) == 0


MANY_NAMES = (
    PRELUDE
    + """
client = TimerClient(unavailable="raise", budget=30)
client.acquire("kept", time.monotonic() + 1000)
for number in range(500_000):
    with expires(60, f"rollout-{number}", client):
        pass
for number in range(500_000):
    client.acquire(f"step-{number}", time.monotonic() + 60)
    client.release(f"step-{number}")
with expires(60, "rollout-0", client), expires(60, "new", client):
    say("slots", client.link.table.high_water)
    sys.stdin.readline()
"""
)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_fault_30_a_million_scopes_one_after_the_other() -> None:
    """Names do not use a table up: idle slots are given to new ones, and keep their own timers apart."""
    async with serving() as server:
        with spawn_worker(MANY_NAMES, server.socket_path) as worker:
            assert await number(worker, "slots") < 1000
            assert server.armed(worker.pid).keys() == {"kept", "rollout-0", "new"}
            worker.say()
            assert await ended(worker) == 0


VANDAL = (
    PRELUDE
    + """
import glob, random, struct
from aiotimer._core import layout

client = TimerClient(unavailable="raise", budget=30)
client.acquire("armed", time.monotonic() + 1000)
raw = client.link.table.raw
first = layout.deadline_offset(0)
chance = random.Random(28)
how, tables = sys.argv[1:]
(own,) = glob.glob(f"{tables}/*-{os.getpid()}-*.shared")
if how == "random":
    raw[:8192] = chance.randbytes(8192)
elif how in ("nan", "-inf"):
    raw[first:first + 8 * 64] = struct.pack("64d", *[float(how)] * 64)
else:
    if how == "unlink":
        os.unlink(own)
    else:
        os.truncate(own, int(how))
say("done")
sys.stdin.readline()
os._exit(0)
"""
)


@pytest.mark.parametrize(
    "how", ["random", "nan", "-inf", "unlink", "0", "1", "63", "4095", "4097", "100000", str(2**26)]
)
def test_fault_28_a_spoilt_table(how: str, runtime_directory: Path) -> None:
    """Whatever a worker does to its table while it is armed, the others stand, and the server looks on."""
    with short_socket() as path, ServerProcess(path, bound=0.2) as server:
        neighbour = PRELUDE + (
            "client = TimerClient(unavailable='raise', budget=30)\n"
            "client.acquire('stands', time.monotonic() + 1000)\nsay('armed')\nsys.stdin.readline()"
        )
        with spawn_worker(neighbour, path) as other:
            other.wait_line("armed")
            (tables,) = (runtime_directory / "aiotimer").iterdir()
            before = set(tables.iterdir())
            with spawn_worker(VANDAL, path, how, str(tables)) as vandal:
                vandal.wait_line("done")
                server.pass_by(monotonic() + 0.5)  # a few looks later
                assert server.armed(other.pid).keys() == {"stands"}
            server.pass_by(monotonic())
            assert server.armed(other.pid).keys() == {"stands"}
            assert before <= set(tables.iterdir())
