"""Ways to hang, and what the evidence says of each: the right verdict, and the right line.

``python -m tests.hangs`` runs them and prints the table in ``docs/explanation/evidence.md``; the tests
compare both with what stands here. The programs are written as a user would write them. In each, the line
that hangs ends with ``# here``. One that keeps a processor busy has a shorter limit than the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiotimer
from aiotimer.cli.run_command import RUN_TARGET
from aiotimer.client.launch import owner_argument
from aiotimer.evidence.pyspy import find_pyspy

PROGRAMS = Path(__file__).parent / "programs"

TAKES_AT_MOST = 90.0
"""Seconds for one program: starting Python, its limit of a second at most, the evidence, the end."""


class Hang(NamedTuple):
    """A way to hang.

    Attributes:
        program: its file, without ``.py``.
        what: in words, for the table.
        verdict: what the evidence says, without the line.
        besides: what it says after the line.
        reap: how it is reaped, by default as ever.
        detail: what else is said of how it was reaped.
        needs: a module or program without which it cannot run.
        without_symbols: what it says of an interpreter whose own native code cannot be told from Python.
    """

    program: str
    what: str
    verdict: str
    needs: str = ""
    without_symbols: str = ""
    besides: str = ""
    reap: str = "dump,KILL"
    detail: str = ""

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


AWAITING = "awaiting (loop alive)"
GIL_IN_C = "holding the GIL in native code"

HANGS = (
    Hang("await_future", "await a future that nobody sets", AWAITING),
    Hang("await_queue", "await a queue that nobody fills", AWAITING),
    Hang("lock_cycle", "two tasks wait for each other's lock", AWAITING),
    Hang("sleep_in_coroutine", "`time.sleep` in a coroutine", "event loop blocked: sleeps"),
    Hang(
        "python_spin",
        "a loop in Python that never ends",
        "event loop blocked, running",
        needs="py-spy",
    ),
    Hang("gil_in_c", "a C call that holds the GIL", GIL_IN_C, needs="py-spy"),
    Hang("gil_in_coroutine", "the same in a coroutine", GIL_IN_C, needs="py-spy"),
    Hang("gil_in_plugin", "the same in another thread", 'the GIL is held by thread "plugin"', needs="py-spy"),
    Hang(
        "regex", "a regular expression", "stuck in one call, running", "py-spy", without_symbols="running at"
    ),
    Hang("jit", "code made at run time", "stuck in one call, running", needs="py-spy"),
    Hang("python_loop", "an iteration that does not converge", "running", needs="py-spy"),
    Hang("starved", "await a future, beside 3,000 busy tasks", AWAITING),
    Hang("gather_one", "`gather` of 16, one of which never ends", f"{AWAITING} 1 of 16, task 'rollout-11'"),
    Hang(
        "task_group",
        "a `TaskGroup`, one task of which never ends",
        f"{AWAITING} 1 of a task group, task 'rollout-1'",
    ),
    Hang(
        "task_groups",
        "the same, of which many wait for a lock",
        f"{AWAITING} 70 of a task group, first task 'rollout-30'",
    ),
    Hang("await_task", "await a task that waits for a future", f"{AWAITING} task 'fetch'"),
    Hang("to_thread", "`asyncio.to_thread`, for a socket", f"{AWAITING}: `to_thread`; its thread is in"),
    Hang(
        "several_threads",
        "the same, three of them",
        f"{AWAITING} 3 of 3, first task 'shard-0': `to_thread`; 3 threads of pools are in `read_shard` at",
    ),
    Hang("process_pool", "a process of a pool", f"{AWAITING}: `run_in_executor`, at"),
    Hang("executor", "`run_in_executor`", f"{AWAITING}: `run_in_executor`; its thread is in"),
    Hang("wait_for", "`wait_for` with a longer limit, around a queue", AWAITING),
    Hang(
        "anyio_group",
        "a task group of anyio's",
        f"{AWAITING} 1 of a task group, task 'rollout-1', an event, at",
        needs="anyio",
    ),
    Hang(
        "async_child",
        "`communicate` with a child of asyncio's",
        f"{AWAITING} a child process, at",
        besides=" (sleep 1000, sleeping)",
    ),
    Hang("yields", "`await asyncio.sleep(0)` in a loop", "polling (loop alive)"),
    Hang("polling", "a job asked for again and again", "polling (loop alive)"),
    Hang(
        "thread_lock", "a lock, in a thread", "waits for a lock", besides="; other threads: thread_lock.py:"
    ),
    Hang("gevent_event", "an event, in a greenlet", AWAITING, needs="gevent"),
    Hang("gevent_late", "the same, imported before gevent patches", AWAITING, needs="gevent"),
    Hang(
        "gevent_blocked",
        "`time.sleep` in another greenlet, not patched",
        "event loop blocked: sleeps",
        needs="gevent",
    ),
    Hang("pool_thread", "a socket, in one of four threads of a pool", "waits for a socket (recvfrom"),
    Hang("lib/python3.11/train", "a queue, in a file below `lib/python3.11/`", "waits for a queue"),
    Hang(
        "wait_for_child",
        "`subprocess.run` that never ends",
        "waits for child ",
        besides=" (sleep 1000, sleeping) at ",
    ),
    Hang(
        "read_pipe",
        "a read from a pipe",
        "waits for a pipe (read)",
        besides="; its other end is held by the process",
    ),
    Hang("stopped", "SIGSTOP", "stopped", needs="py-spy"),
    Hang("debugger", "a debugger", "in a debugger", needs="py-spy"),
    Hang(
        "all_reduce",
        "gloo's `all_reduce` whose peer is missing",
        "waits for a lock or a condition",
        needs="torch",
    ),
    Hang(
        "swallowed",
        "a rollout that swallows its cancellation (`grace`)",
        "polling (loop alive)",
        besides="; cancelled after 0.3 s, and did not end",
    ),
    Hang(
        "blocked_with_grace",
        "`time.sleep` in a coroutine, in a block with `grace`",
        "event loop blocked: sleeps",
        besides="; not cancelled after 0.3 s: its loop has not got to that",
    ),
    Hang(
        "blocking_cleanup",
        "a cleanup that blocks, after a cancellation (`grace`)",
        "event loop blocked: sleeps",
        besides="; cancelled after 0.3 s, and did not end",
    ),
    Hang(
        "never_handled",
        "C code, and a handler of SIGTERM that is never called",
        "waits for a lock or a condition",
        needs="py-spy",
        reap="dump,TERM:0.3,KILL",
        detail="SIGTERM was caught, and did not end it within ",
    ),
    # What is waited for, by the system call.
    Hang(
        "own_pool",
        "a pool that waits for itself",
        "waits for the result of a future",
        besides="; other threads: own_pool.py:11 in grade",
    ),
    Hang("manager", "a queue of a manager's, that nobody fills", "waits for a socket (read, unix)"),
    Hang(
        "silent_server",
        "a request to a server that stays silent",
        "waits for a socket (recvfrom, 127.0.0.1:",
    ),
    Hang(
        "dead_producer",
        "a queue whose producer is dead",
        "waits for a queue",
        besides="; no other thread is alive",
    ),
    Hang(
        "dead_pool_worker",
        "`Pool.map`, and a process of the pool is dead",
        "waits for a result of a process pool",
        besides=" s after the others",
    ),
    Hang(
        "stuck_loader",
        "a pipe from a child that hangs itself",
        "waits for a pipe (read)",
        besides="; its other end is held by child ",
    ),
    Hang(
        "locked_database",
        "SQLite, and another process has the lock",
        "sleeps in C code",
        besides="/rewards.db is held by pid ",
    ),
    Hang(
        "file_lock",
        "`flock`, and another process has it",
        "waits for a file lock on ",
        besides="; it is held by pid ",
    ),
)


class Server:
    """A real server, as ``aiotimer run`` starts it: a process of its own, which ends with this one.

    Args:
        reap: how its workers are reaped.
        directory: an empty one, for its socket and what it records; on tmpfs.
    """

    def __init__(self, reap: str, directory: Path) -> None:
        self._directory = directory
        self._log = (directory / "log").open("w+")
        self._events, writing = os.pipe()
        ready, tells = os.pipe()
        command = [sys.executable, "-m", "aiotimer", "serve", "--socket", str(directory / "s")]
        command += ["--owner", owner_argument(), "--ready-fd", str(tells), "--events-fd", str(writing)]
        command += ["--target", RUN_TARGET, "--reap", reap, "--evidence-dir", str(directory / "kept")]
        self._process = subprocess.Popen(
            command, env=self.environment(), pass_fds=[tells, writing],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
        )  # fmt: skip
        os.close(writing)
        os.close(tells)
        is_ready = os.read(ready, 1)
        os.close(ready)
        assert is_ready, f"there is no server\n{self.said()}"

    def environment(self) -> dict[str, str]:
        """Return the environment of what it watches."""
        package = str(Path(aiotimer.__file__).parent.parent)
        places = {"AIOTIMER_SOCKET": str(self._directory / "s"), "XDG_RUNTIME_DIR": str(self._directory)}
        return {**os.environ, "PYTHONPATH": package, "PATH": _path(), **places}

    def said(self) -> str:
        """Return its log."""
        self._log.seek(0)
        return self._log.read()

    def record_of(self, pid: int) -> dict[str, Any]:
        """Return the record of the expiry for which a worker has been reaped, when it is known."""
        text, events = b"", self._events
        while select.select([events], [], [], TAKES_AT_MOST)[0] and (read := os.read(events, 65_536)):
            *lines, text = (text + read).split(b"\n")
            for event in map(json.loads, lines):
                if (event["pid"], event["event"]) == (pid, "reaped"):
                    return _written(Path(event["evidence"], "expiry.json"))
        raise AssertionError(f"process {pid} has not been reaped\n{self.said()}")

    def close(self) -> int:
        """End it; return how many expiries there have been."""
        self._process.terminate()
        self._process.wait(TAKES_AT_MOST)
        os.close(self._events)
        self._log.close()
        return len(list(self._directory.glob("kept/*/expiry.json")))


def _written(path: Path) -> dict[str, Any]:
    """Return a record when it says what has become of its expiry: a thread of the server writes it."""
    for _ in range(int(TAKES_AT_MOST / 0.01)):
        record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"outcome": "pending"}
        if record["outcome"] != "pending":
            return record
        signal.sigtimedwait([], 0.01)
    raise AssertionError(f"{path} is not written")


class Runs:
    """Programs that are run until they are reaped: one after the other, they share servers.

    To be used in ``with``. At its end none of them has expired twice.
    """

    def __init__(self) -> None:
        self._servers: dict[str, Server] = {}
        self._stack = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            expiries = sum([server.close() for server in self._servers.values()])
        assert expiries == self._count, f"{expiries} expiries of {self._count} programs"

    def run(self, hang: Hang) -> dict[str, Any]:
        """Run a program until it is reaped; return the record of its expiry.

        Raises:
            AssertionError: it was not reaped.
        """
        if hang.reap not in self._servers:
            directory = self._stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
            self._servers[hang.reap] = Server(hang.reap, Path(directory))
        server = self._servers[hang.reap]
        with (
            tempfile.TemporaryFile("w+") as printed,
            subprocess.Popen(
                [sys.executable, str(hang.file)], env=server.environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
            ) as process,
        ):  # fmt: skip
            self._count += 1
            try:
                process.wait(TAKES_AT_MOST)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what the program started, and left
            printed.seek(0)
            said = f"exit status {process.returncode}\n{printed.read()}\n{server.said()}"
        assert process.returncode == -signal.SIGKILL, f"{hang.program}: {said}"
        return server.record_of(process.pid)


def _path() -> str:
    """Return $PATH with this interpreter's programs on it: py-spy may be among them."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def table(records: dict[str, dict[str, Any]]) -> str:
    """Return the table of what was found, in Markdown; ``records`` by program."""
    rows = ["| the program hangs in | the verdict |", "|---|---|"]
    rows += [f"| {hang.what} | {escaped(records[hang.program]['verdict'])} |" for hang in HANGS]
    return "\n".join(rows)


def escaped(text: str) -> str:
    """Return a text whose ``<locals>``, outside of code, is no element of HTML: nobody would see it."""
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("<", r"\<") for number, part in enumerate(parts))
