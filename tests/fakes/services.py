"""Services: the real frameworks of the recipes, started by the commands that their pages show.

The laws of this file:

* The command, and the files that it needs, come from the page; what the page shows must have been printed.
* A service is ready when it says so. What is waited for is a line, an answer, or the end of a connection.
* A service has a session of its own, which ends with its ``with``, whoever has forked in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Self

from tests.fakes.clock import PATIENCE
from tests.fakes.pages import Block, block_with, environment, inexact, normal, workplace
from tests.fakes.worker import SpawnedWorker


class Session(SpawnedWorker):
    """A command that has been started, in a session of its own."""

    def __init__(self, command: Sequence[str], directory: Path, env: Mapping[str, str]) -> None:
        super().__init__(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                cwd=directory, env=env, start_new_session=True,
            )
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE / 3)
        with contextlib.suppress(ProcessLookupError):  # its session has its number, and is its own
            os.killpg(self.pid, signal.SIGKILL)
        super().__exit__()


class Service(Session):
    """A service that a page shows: its command has been started.

    Attributes:
        directory: where it runs; its socket is ``app.sock``.
    """

    def __init__(self, block: Block, directory: Path, env: Mapping[str, str]) -> None:
        self.directory = directory
        self._block = block
        [command] = block.commands
        super().__init__(["bash", "-c", f"exec {command}"], directory, env)
        self._printed: list[str] = []

    def wait_line(self, text: str, timeout: float = PATIENCE) -> str:
        """Read lines until one contains ``text``; return that one."""
        found = super().wait_line("", timeout)
        self._printed.append(found)
        while text not in found:
            found = super().wait_line("", timeout)
            self._printed.append(found)
        return found

    def wait_shown(self) -> None:
        """Read lines until there has been each that the page shows, in whatever order."""
        missing = [f"{line}\n" for line in normal(self._block.output, self.directory) if line != "..."]
        patterns = [inexact(line.rstrip("\n")) for line in missing]
        for printed in [*self._printed]:
            self._strike(patterns, printed)
        while patterns:
            self._strike(patterns, self.wait_line(""))

    def _strike(self, patterns: list[str], printed: str) -> None:
        for line in normal(printed, self.directory):
            for pattern in patterns:
                if re.fullmatch(pattern, f"{line}\n"):
                    patterns.remove(pattern)
                    return

    def get(self, path: str) -> bytes:
        """Ask for a path; return the answer, b"" if the connection was closed without one."""
        with self.ask(path) as connection:
            return read(connection)

    @contextlib.contextmanager
    def ask(self, path: str) -> Iterator[socket.socket]:
        """Yield a connection on which a path has been asked for."""
        with self._connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: recipe\r\n\r\n".encode())
            yield connection

    def _connect(self) -> socket.socket:
        # uvicorn says that it has started before it listens, and nothing when it does.
        until = monotonic() + PATIENCE
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(PATIENCE)
            try:
                connection.connect(str(self.directory / "app.sock"))
            except ConnectionRefusedError:
                connection.close()
                assert monotonic() < until, f"nobody listens:\n{self.output}"
                os.sched_yield()
            else:
                return connection


def read(connection: socket.socket) -> bytes:
    """Return what comes on a connection until its other end is closed."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # closed by a kill, with something unread
        while data := connection.recv(65_536):
            answer += data
    return answer


@contextlib.contextmanager
def service(page: str, command: str, **env: str) -> Iterator[Service]:
    """Start the command of a page that contains a text, in a directory with the page's files.

    Args:
        page: as ``docs/how-to/gunicorn.md``.
        command: a part of the command.
        env: more environment variables.
    """
    with workplace(page) as directory:
        directory.chmod(0o755)  # a service may drop its uid
        with Service(block_with(page, command), directory, service_environment(directory) | env) as started:
            yield started


def service_environment(directory: Path) -> dict[str, str]:
    """Return the environment of a page's services: with the frameworks of this interpreter."""
    found = environment(directory)
    scripts = str(Path(sys.executable).parent)
    first, _, rest = found["PATH"].partition(os.pathsep)
    return found | {"PATH": os.pathsep.join([first, scripts, rest])}
