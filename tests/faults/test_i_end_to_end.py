"""Faults 54 to 57: a whole job, from its launcher to its second attempt.

The laws of this file: the launcher knows nothing of aiotimer; what it sees is a worker that died, and what it
does then is its own affair.

54 to 56 need torch, which the suite does not install: they run where it is (``pip install torch`` beside the
package). A launcher of our own does what 54 asks of torch's, everywhere. 57, ``aiotimer run`` itself, is in
``tests/integration/test_cli.py``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiotimer
from tests.fakes.places import private_runtime

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")

LASTS = 240.0
"""Seconds that a job may take: importing torch takes long on a machine with something else to do."""


@pytest.fixture(autouse=True)
def _own_runtime() -> Iterator[None]:
    with private_runtime():
        yield


@contextlib.contextmanager
def job(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command under ``aiotimer run``, with a server of its own; at the end nothing of it is left."""
    root = str(Path(aiotimer.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("AIOTIMER_SOCKET", None)
    with subprocess.Popen(
        [sys.executable, "-m", "aiotimer", "run", "--", sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.terminate()  # torch's agent kills its workers, which have sessions of their own
                process.wait(30)


def outcome(process: subprocess.Popen[str]) -> str:
    """Wait for a job's end; return its output if all is well."""
    try:
        output, _ = process.communicate(timeout=LASTS)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=30)
        pytest.fail(f"it did not end:\n{output}")
    assert process.returncode == 0, output
    return output


def script(directory: Path, source: str) -> str:
    path = directory / "job.py"
    path.write_text(textwrap.dedent(source))
    return str(path)


# -- 54, with a launcher of our own ------------------------------------------------------------------------

LAUNCHER = """
    import os, socket, subprocess, sys

    def rank(number, attempt, port):
        from aiotimer import TimerClient, expires

        client = TimerClient(unavailable="raise", budget=30)
        if number == 1 and attempt == 0:
            sys.stdin.read()  # it never joins in
        with socket.socket() as listener:
            with expires(1.0 if attempt == 0 else 60.0, "all_reduce", client):
                if number == 0:
                    listener.bind(("127.0.0.1", port))
                    listener.listen()
                    listener.accept()[0].sendall(b"x")
                else:
                    while True:
                        try:
                            socket.create_connection(("127.0.0.1", port)).recv(1)
                            break
                        except ConnectionRefusedError:
                            pass
        os.write(1, f"rank {number} has finished attempt {attempt}\\n".encode())

    def launch():
        for attempt in range(3):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = [sys.executable, __file__]
            arguments = [[str(n), str(attempt), str(port)] for n in range(2)]
            ranks = [subprocess.Popen(command + more, stdin=subprocess.PIPE) for more in arguments]
            pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                sys.exit(max(rank.wait() for rank in ranks if rank.pid != pid))
            number = [rank.pid for rank in ranks].index(pid)
            os.write(1, f"rank {number} ended with {code}: all over again\\n".encode())
            ranks[1 - number].kill()
            ranks[1 - number].wait()

    if len(sys.argv) > 1:
        rank(*map(int, sys.argv[1:]))
    else:
        launch()
"""


def test_fault_54_a_launcher_restarts_all_when_one_was_reaped(tmp_path: Path) -> None:
    with job(script(tmp_path, LAUNCHER)) as process:
        output = outcome(process)
    lines = [line for line in output.splitlines() if line.startswith("rank ")]
    assert lines[0] == "rank 0 ended with -9: all over again"
    assert sorted(lines[1:]) == [f"rank {n} has finished attempt 1" for n in range(2)]
    assert output.count("reaped pid=") == 1
    assert 'scope="all_reduce"' in output


# -- with torch's -------------------------------------------------------------------------------------------

RESTARTS = "--max-restarts=10"
"""One is for the worker that is reaped. The others are for gloo's ranks: they may fail to meet again."""

HANGS_ONCE = """
    import os, time
    import torch
    import torch.distributed as dist
    from aiotimer import expires

    # Each agent counts the restarts of its own workers only: the job's first attempt leaves a file behind.
    note = __file__ + ".second"
    attempt = int(os.path.exists(note))
    with expires(after=20, scope="meeting"):
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        ones = torch.ones(1)
        dist.all_reduce(ones)  # everybody has looked for the file
    if rank == 1 and attempt == 0:
        open(note, "w").close()
        time.sleep(1000)
    with expires(after=2 if attempt == 0 else 120, scope="all_reduce"):
        dist.all_reduce(ones)
    os.write(1, f"rank {rank} has finished attempt {attempt}\\n".encode())
    dist.barrier()
    dist.destroy_process_group()
"""


def assert_second_attempt_finished(output: str) -> None:
    finished = [line for line in output.splitlines() if "has finished attempt" in line]
    assert all(line.endswith("attempt 1") for line in finished), output
    assert sorted(line.split("rank ")[1][0] for line in finished) == ["0", "1"], output
    assert 'scope="all_reduce"' in output


@needs_torch
@pytest.mark.timeout(400)
def test_fault_54_torchrun_restarts_both_ranks(tmp_path: Path) -> None:
    options = ("--standalone", "--nproc-per-node=2", RESTARTS)
    with job("-m", "torch.distributed.run", *options, script(tmp_path, HANGS_ONCE)) as process:
        output = outcome(process)
    assert_second_attempt_finished(output)


@needs_torch
@pytest.mark.timeout(400)
def test_fault_55_two_agents_with_a_server_each(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    path = script(tmp_path, HANGS_ONCE)
    options = ("--nnodes=2", "--nproc-per-node=1", RESTARTS, "--rdzv-backend=c10d", "--rdzv-id=job")
    command = ("-m", "torch.distributed.run", *options, f"--rdzv-endpoint={endpoint}", path)
    with job(*command) as one, job(*command) as other:
        outputs = [outcome(one), outcome(other)]
    assert_second_attempt_finished("\n".join(outputs))


TORCHS_OWN = """
    import time
    from time import monotonic
    import torch.distributed.elastic.timer as timer
    from aiotimer import TimerClient

    class OnOurServer(timer.TimerClient):
        # torch's expiration times are time.time()'s; ours are time.monotonic()'s.
        def __init__(self):
            self.client = TimerClient(unavailable="raise")

        def acquire(self, scope_id, expiration_time):
            self.client.acquire(scope_id, expiration_time - time.time() + monotonic())

        def release(self, scope_id):
            self.client.release(scope_id)

    timer.configure(OnOurServer())

    # from here on, it is torch's documentation
    with timer.expires(after=60, scope="left in time"):
        pass
    with timer.expires(after=1, scope="stuck"):
        print("armed", flush=True)
        time.sleep(1000)
"""


@needs_torch
@pytest.mark.timeout(400)
def test_fault_56_torchs_own_timer_code(tmp_path: Path) -> None:
    with job(script(tmp_path, TORCHS_OWN)) as process:
        output, _ = process.communicate(timeout=LASTS)
    assert process.returncode == 124, output
    assert output.startswith("armed")
    assert output.count("reaped pid=") == 1
    assert 'scope="stuck"' in output
