"""Workers of the tests are forked, and find what a program finds that ``python -c`` has started.

The law of this file: what it compares is what the two say of themselves.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_socket
from tests.fakes.server import ServerProcess
from tests.fakes.worker import PRELUDE, program, spawn_worker

SAYS = (
    PRELUDE
    + """
import json
USES
with expires(60):  # it imports what connecting takes
    pass
here = {
    "modules": sorted(sys.modules),
    "arguments": sys.argv,
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "names": sorted(globals()),
    "main": repr(sys.modules["__main__"]),
    "streams": [(s.name, s.encoding, s.errors, s.line_buffering, s.write_through, s.seekable())
        for s in (sys.stdin, sys.stdout, sys.stderr)],
    "files": [os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).split(":")[0] for fd in range(3)],
    "descriptors": len(os.listdir("/proc/self/fd")),
    "handlers": [getattr(signal.getsignal(n), "__name__", str(signal.getsignal(n))) for n in (2, 15, 17)],
    "masked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "parent": os.getppid(),
    "session": [os.getsid(0), os.getpgid(0)],
    "threads": threading.active_count(),
}
print(json.dumps(here), flush=True)
sys.exit(int(sys.stdin.readline()))
"""
)


@pytest.mark.parametrize("uses", ["", "asyncio.run(asyncio.sleep(0))"], ids=["threads", "asyncio"])
def test_a_forked_worker_finds_what_a_started_one_finds(
    uses: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = SAYS.replace("USES", uses)
    said = []
    with short_socket() as path, ServerProcess(path):
        for options in ((), ("-X", "utf8=0")):  # with options it is started
            with spawn_worker(code, path, "one", "two", env={"THIS": "is new"}, options=options) as worker:
                said.append(json.loads(worker.wait_line('{"modules"')))
                worker.say("7")
                assert worker.wait() == 7
    forked, started = said
    assert forked == started
    assert forked["parent"] == os.getpid()
    assert forked["environment"]["THIS"] == "is new"


def test_a_forked_worker_is_waited_for_as_any_other_child_is() -> None:
    with spawn_worker(program("with", "pass", first="sys.stdin.readline()"), None) as worker:
        assert worker.process.poll() is None
        worker.process.send_signal(signal.SIGSTOP)
        assert os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT) is not None
        worker.process.kill()
        assert os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT) is not None
        assert worker.process.wait(PATIENCE) == worker.process.returncode == -signal.SIGKILL
        worker.process.kill()  # it is gone: nobody else gets it


def test_what_is_wrong_in_a_forked_worker_is_printed() -> None:
    with spawn_worker("def f():\n    return 1 / 0\nf()", None) as worker:
        assert worker.wait() == 1
    assert "in f" in worker.output
    assert worker.lines[-1] == "ZeroDivisionError: division by zero"
