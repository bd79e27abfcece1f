"""The recipes of systemd, containers and tmux: what their pages show, as far as it runs anywhere.

The laws of this file: what is run comes from the page; a container is a pid namespace. What is not there, or
not permitted, is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.pages import block_with, blocks_of, environment, inexact, normal, workplace
from tests.fakes.worker import SpawnedWorker

CONTAINERS = "docs/how-to/containers.md"
SYSTEMD = "docs/how-to/systemd.md"
TMUX = "docs/how-to/tmux.md"

PID_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
MOUNTS = 'mount -t tmpfs none /dev/shm; mount -t proc proc /proc; exec "$@"'
OWN_MEMORY = ["unshare", "--mount", "sh", "-c", MOUNTS, "sh"]
"""A mount namespace with a /dev/shm of its own, as a container of a pod has, and a /proc of its processes."""


def file_of(page: str, name: str) -> str:
    """Return a file that a page shows."""
    (found,) = [block.text for block in blocks_of(page) if block.file == name]
    return found


def started(directory: Path, *command: str, **env: str) -> SpawnedWorker:
    """Start a command in a page's directory."""
    return SpawnedWorker(
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=directory, env=environment(directory) | env,
        )
    )  # fmt: skip


def assert_printed(shown: str, printed: Sequence[str], directory: Path) -> None:
    """Check that each line which a page shows has been printed."""
    found = [f"{line}\n" for line in normal("\n".join(printed), directory)]
    for wanted in normal(shown, directory):
        assert any(re.fullmatch(inexact(wanted), line) for line in found), f"{wanted}\n\n{''.join(found)}"


def permitted(*prefix: str) -> None:
    """Skip the test if a command prefix is not permitted here."""
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"not permitted here: {' '.join(prefix)}")


# --- containers


@pytest.mark.parametrize(
    ("text", "prefix", "statuses"),
    [
        ("docker run IMAGE python", [], range(35, 64)),
        # What --init starts: a process 1 that waits for the command, and ends as it does.
        ("docker run --init", ["sh", "-c", '"$@"; exit $?', "sh"], range(137, 138)),
        ("docker run IMAGE aiotimer run", [], range(124, 125)),
    ],
    ids=["pid 1", "init", "aiotimer run"],
)
def test_a_container_ends_as_its_page_says(text: str, prefix: list[str], statuses: range) -> None:
    permitted(*PID_NAMESPACE)
    block = block_with(CONTAINERS, text)
    (command,) = block.commands
    with workplace(CONTAINERS) as directory:
        inside = command.partition(" IMAGE ")[2].split()
        with started(directory, *PID_NAMESPACE, *prefix, *inside) as container:
            assert container.wait() in statuses, container.output
            assert_printed(block.output, container.lines, directory)


@contextlib.contextmanager
def pod(*, shared: bool) -> Iterator[tuple[SpawnedWorker, SpawnedWorker, Path]]:
    """Yield the two containers of the page's pod, the server and the worker, and their directory."""
    permitted(*PID_NAMESPACE)
    permitted(*OWN_MEMORY)
    serve, train = (
        json.loads(found) for found in re.findall(r"command: (\[.*\])", file_of(CONTAINERS, "pod.yaml"))
    )
    assert "shareProcessNamespace: true" in file_of(CONTAINERS, "pod.yaml")
    with workplace(CONTAINERS) as directory, contextlib.ExitStack() as stack:
        path = str(directory / "s")
        serve = [path if word == "/timers/s" else word for word in serve]
        prefix = [*PID_NAMESPACE, *OWN_MEMORY]
        # A process 1 that both containers see, as that of a pod.
        server = stack.enter_context(started(directory, *prefix, *serve, XDG_RUNTIME_DIR=""))
        server.wait_line("serving on")
        child = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0]
        entered = ["nsenter", f"--pid=/proc/{child}/ns/pid"]
        worker = started(
            directory, *(entered if shared else PID_NAMESPACE), *OWN_MEMORY, *train,
            AIOTIMER_SOCKET=path, XDG_RUNTIME_DIR="",
        )  # fmt: skip
        yield server, stack.enter_context(worker), directory


def test_a_sidecar_watches_a_worker_in_its_pid_namespace() -> None:
    with pod(shared=True) as (server, worker, _):
        assert 'scope="job.py:6"' in server.wait_line("reaped")
        assert worker.wait() == -9, worker.output  # nsenter ends as its command does


def test_a_sidecar_refuses_a_worker_that_it_does_not_see() -> None:
    (shown,) = [block.text for block in blocks_of(CONTAINERS) if "refused this client" in block.text]
    with pod(shared=False) as (server, worker, directory):
        said = [worker.wait_line("not being watched"), server.wait_line("refused")]
        assert_printed(shown.replace("/timers/s", str(directory / "s")), said, directory)


# --- systemd

UNITS = ["train.service", "timers.service", "worker.service"]


def command_of(unit: str, directory: Path) -> list[str]:
    """Return the command of a unit, which is installed in a directory."""
    (found,) = re.findall(r"^ExecStart=(.*)$", file_of(SYSTEMD, unit), re.MULTILINE)
    return [
        word.replace("/srv/train/bin", str(directory / ".bin")).replace("/run/timers", str(directory))
        for word in found.split()
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_units() -> None:
    with workplace(SYSTEMD) as directory:
        for unit in UNITS:
            text = file_of(SYSTEMD, unit).replace("/srv/train/bin", str(directory / ".bin"))
            (directory / unit).write_text(text.replace("/srv/train", str(directory)))
        done = subprocess.run(
            ["systemd-analyze", "verify", *(str(directory / unit) for unit in UNITS)],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        about_them = [line for line in done.stderr.splitlines() if any(unit in line for unit in UNITS)]
        assert not about_them, done.stderr
        assert done.returncode == 0, done.stderr


def test_the_command_of_one_unit_fails_and_says_why() -> None:
    with workplace(SYSTEMD) as directory:
        with started(directory, *command_of("train.service", directory)) as unit:
            assert unit.wait() == 124
            assert_printed(block_with(SYSTEMD, "journalctl").output, unit.lines, directory)


def test_the_commands_of_two_units_work_together() -> None:
    with workplace(SYSTEMD) as directory:
        with started(directory, *command_of("timers.service", directory)) as server:
            server.wait_line("serving on")
            command = command_of("worker.service", directory)
            with started(directory, *command, AIOTIMER_SOCKET=str(directory / "s")) as worker:
                assert worker.wait() == -9, worker.output
            assert 'scope="job.py:6"' in server.wait_line("reaped")


# --- tmux


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
@pytest.mark.parametrize("text", ['"aiotimer run', '"env -u XDG_RUNTIME_DIR'], ids=["linger", "elsewhere"])
def test_a_window_shows_why_its_program_was_reaped(text: str) -> None:
    (command,) = block_with(TMUX, text).commands
    (shown,) = [block.text for block in blocks_of(TMUX) if block.language == "text"]
    with workplace(TMUX) as directory:
        os.mkfifo(directory / "shown")
        # A server of tmux's own for this test, whose window goes to a fifo; what follows the command ends it.
        ours = command.replace("tmux ", "tmux -S tmux.sock -f /dev/null ").replace(
            "; exec bash", " >shown 2>&1"
        )
        prefix: list[str] = []
        if "-u XDG_RUNTIME_DIR" in text:
            permitted(*OWN_MEMORY)
            prefix = OWN_MEMORY  # what it leaves there goes with it
            (directory / ".bin" / "aiotimer").write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -P -m aiotimer "$@"\n'
            )
        subprocess.run(
            [*prefix, "bash", "-c", ours],
            cwd=directory, env=environment(directory), check=True, timeout=PATIENCE,
        )  # fmt: skip
        with (directory / "shown").open() as window:
            printed = window.read().splitlines()  # until everybody has closed it: the session has ended
        assert_printed(shown, printed, directory)
