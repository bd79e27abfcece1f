"""A launcher of private servers, which run this very package with the interpreter of their owner.

The laws of this file:

* It imports nothing of the server's, nor asyncio: a worker pays for what it uses.
* A private server is nobody's child: an intermediate process starts it and exits, so that its owner's
  ``os.wait()`` never sees it. It has its own session: a terminal's Ctrl-C does not end it.
* Starting it waits for that intermediate process only; whoever needs the server waits until it is ready.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from time import monotonic_ns

from .._linux import paths
from .._linux.environment import check_socket_path
from .._linux.procfs import start_time
from ..errors import ServerUnavailable
from .starting import READY_WITHIN

_FORK_AND_EXEC = "import os, sys; os.fork() or os.execve(sys.argv[1], sys.argv[1:], os.environ)"


def start_private_server(arguments: tuple[str, ...] = ()) -> tuple[str, int]:
    """Start a private server for this process and do not wait for it.

    Args:
        arguments: further ones of ``aiotimer serve``.

    Returns:
        Its socket, and a descriptor that becomes readable when it serves (or has failed: end of file).

    Raises:
        ServerUnavailable: it cannot be started.
        UnsafePath: there is no place for its socket.
    """
    name = f"private-{os.getpid()}-{monotonic_ns() % 10**9}.sock"
    socket_path = check_socket_path(str(paths.base() / name))
    ready, child_end = os.pipe()
    command = python_command(
        "watchdog", "--socket", socket_path, "--owner", owner_argument(), "--ready-fd", str(child_end),
        "--", *arguments,
    )  # fmt: skip
    try:
        subprocess.run(  # the intermediate is gone when this returns
            [sys.executable, "-I", "-S", "-c", _FORK_AND_EXEC, *command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=python_environment(),
            pass_fds=(child_end,),
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        os.close(ready)
        raise ServerUnavailable(socket_path, f"the private server cannot be started: {error}") from error
    finally:
        os.close(child_end)
    return socket_path, ready


def wait_ready(descriptor: int, socket_path: str, within: float = READY_WITHIN) -> None:
    """Wait until a starting server writes to the other end of a pipe.

    Raises:
        ServerUnavailable: it ended, or took too long.
    """
    if not select.select([descriptor], [], [], within)[0]:
        raise ServerUnavailable(socket_path, f"it did not start within {READY_WITHIN:g} s")
    if not os.read(descriptor, 1):
        raise ServerUnavailable(socket_path, "it ended while starting; its own message says why")


def python_command(*arguments: str) -> list[str]:
    """Return the command that runs ``aiotimer`` with this interpreter.

    ``-P`` keeps the current directory off the import path: a worker's directory may hold a ``queue.py``.
    """
    return [sys.executable, "-P", "-m", "aiotimer", *arguments]


def python_environment() -> dict[str, str]:
    """Return the environment for :func:`python_command`: this very package must be found."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{home}" if path else home}


def owner_argument() -> str:
    """Return how a server is told who its owner is, this process: pid and start time, to be pinned by."""
    pid = os.getpid()
    return f"{pid}:{start_time(pid)}"
