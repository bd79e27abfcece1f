"""Twelve ways to hang, and what the evidence says of each: the right verdict, and the right line.

``python -m tests.hangs`` runs them and prints the table in ``docs/explanation/evidence.md``; the tests
compare both with what stands here. The programs are written as a user would write them. In each, the line
that hangs ends with ``# here``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import aiotimer
from aiotimer.evidence.pyspy import find_pyspy

PROGRAMS = Path(__file__).parent / "programs"

TAKES_AT_MOST = 90.0
"""Seconds for one program: starting Python twice, its limit of a second, the evidence, the end."""


class Hang(NamedTuple):
    """A way to hang.

    Attributes:
        program: its file, without ``.py``.
        what: in words, for the table.
        verdict: what the evidence says, without the line.
        needs: a module or program without which it cannot run.
    """

    program: str
    what: str
    verdict: str
    needs: str = ""

    @property
    def file(self) -> Path:
        """The program's file."""
        return PROGRAMS / f"{self.program}.py"

    def lines(self) -> list[str]:
        """Return ``file:line`` of every line that hangs."""
        lines = self.file.read_text().splitlines()
        return [f"{self.file.name}:{n}" for n, line in enumerate(lines, 1) if line.endswith("# here")]

    def missing(self) -> str:
        """Return what it needs and this machine does not have, "" if it can run."""
        found = find_pyspy() if self.needs == "py-spy" else not self.needs or find_spec(self.needs)
        return "" if found else self.needs


AWAITING = "awaiting forever (loop alive)"
BLOCKED_LOOP = "event loop blocked in Python"
BLOCKED = "blocked in Python"

HANGS = (
    Hang("await_future", "await a future that nobody sets", AWAITING),
    Hang("await_queue", "await a queue that nobody fills", AWAITING),
    Hang("lock_cycle", "two tasks wait for each other's lock", AWAITING),
    Hang("sleep_in_coroutine", "`time.sleep` in a coroutine", BLOCKED_LOOP),
    Hang("python_spin", "a loop in Python that never ends", BLOCKED_LOOP),
    Hang("gil_in_c", "a C call that holds the GIL", "holding the GIL in native code", needs="py-spy"),
    Hang("thread_lock", "a lock, in a thread", BLOCKED),
    Hang("wait_for_child", "`subprocess.run` that never ends", BLOCKED),
    Hang("read_pipe", "a read from a pipe", BLOCKED),
    Hang("stopped", "SIGSTOP", "stopped", needs="py-spy"),
    Hang("debugger", "a debugger", "in a debugger", needs="py-spy"),
    Hang("all_reduce", "gloo's `all_reduce` whose peer is missing", BLOCKED, needs="torch"),
)


_ENVIRONMENT = dict(os.environ)
"""As it was at first: pytest changes it while the threads that run these programs read it."""


def run(hang: Hang) -> dict[str, Any]:
    """Run a program under ``aiotimer run`` until it is reaped; return the record of its expiry.

    Raises:
        AssertionError: it was not reaped, or not for one expiry.
    """
    package = str(Path(aiotimer.__file__).parent.parent)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as runtime,
        tempfile.TemporaryDirectory() as kept,
        tempfile.TemporaryFile("w+") as printed,
    ):
        environment = {**_ENVIRONMENT, "PYTHONPATH": package, "PATH": _path(), "XDG_RUNTIME_DIR": runtime}
        environment.pop("AIOTIMER_SOCKET", None)
        command = [sys.executable, "-m", "aiotimer", "run", "--evidence-dir", kept, "--", sys.executable]
        with subprocess.Popen(
            [*command, str(hang.file)], env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                process.wait(TAKES_AT_MOST)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what the program started, and left
        printed.seek(0)
        output = printed.read()
        records = [json.loads(file.read_text()) for file in sorted(Path(kept).glob("*/expiry.json"))]
    assert process.returncode == 124, f"{hang.program}: exit status {process.returncode}\n{output}"
    assert len(records) == 1, f"{hang.program}: {len(records)} expiries\n{output}"
    record: dict[str, Any] = records[0]
    return record


def _path() -> str:
    """Return $PATH with this interpreter's programs on it: py-spy may be among them."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def table(records: dict[str, dict[str, Any]]) -> str:
    """Return the table of what was found, in Markdown; ``records`` by program."""
    rows = ["| the program hangs in | the verdict |", "|---|---|"]
    rows += [f"| {hang.what} | {records[hang.program]['verdict']} |" for hang in HANGS]
    return "\n".join(rows)
