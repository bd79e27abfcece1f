"""gevent: a hub that is inspected is the program's as before.

What the evidence says of greenlets that hang is in ``tests/hangs``.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.clock import PATIENCE

pytest.importorskip("gevent", reason="gevent is not installed: make test-services")

PROGRAM = """\
from gevent import monkey
monkey.patch_all()
import gevent, os, sys
from aiotimer import configure, expires
configure()
def step():
    with expires(60, "step"):
        gevent.sleep(0)
gevent.joinall([gevent.spawn(step) for _ in range(3)])
channels = sys.modules["aiotimer.client.hub_channel"]._channels
print(sum(one.is_open for of_hub in channels.values() for one in of_hub.values()), flush=True)
child = gevent.os.fork()
if not child:
    print(len(channels), flush=True)
    gevent.spawn(step).join()
    print(sum(one.is_open for of_hub in channels.values() for one in of_hub.values()), flush=True)
    os._exit(0)
os.waitpid(child, 0)
gevent.spawn(step).join()
try:
    gevent.get_hub().join()
    gevent.event.Event().wait()
except gevent.exceptions.LoopExit:
    print("nothing keeps the hub running", "asyncio" in sys.modules, flush=True)
"""


def test_a_channel_keeps_no_hub_running_and_a_fork_has_its_own(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, "-m", "aiotimer", "run", "--", sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=True,
    )
    assert ran.stdout.splitlines() == ["1", "0", "1", "nothing keeps the hub running False"], ran
