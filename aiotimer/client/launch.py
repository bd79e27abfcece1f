"""A launcher of private servers, and a probe for a server that is only being started.

The laws of this file:

* It imports nothing of the server's, nor asyncio: a worker pays for what it uses. A private server runs this
  very package with the interpreter of its owner.
* A private server is nobody's child: an intermediate process starts it and exits, so that its owner's
  ``os.wait()`` never sees it. It has its own session: a terminal's Ctrl-C does not end it.
* Starting it waits for that intermediate process only; whoever needs the server waits until it is ready.

``aiotimer run`` listens itself and starts its command at once; the server takes the socket over as soon as it
is there. Whoever connects before stands in the backlog:

* ``$AIOTIMER_STARTING`` says who listens meanwhile, and until when that may last (:func:`announcement`).
* Who listens at the moment is the kernel's word: the server, when it takes over, listens anew. So a server
  that is stuck is not taken for one that is starting.
* What is waited for a starting server does not count as waited for an answer: its command's blocks are
  watched from the first one on, as if it had been started after its server.
* Nothing is sent into the backlog but PING. A HELLO would be older, and of another peer, than the server
  believes.
"""

from __future__ import annotations

import os
import random
import select
import socket
import sys
from math import inf
from time import monotonic, monotonic_ns

from .._core.ping import PING
from .._linux import paths
from .._linux.paths import SOCKET_VARIABLE, STARTING_VARIABLE, check_socket_path
from .._linux.process import peer_of
from .._linux.procfs import start_time
from ..errors import ServerUnavailable
from .waiting import Steps, Wait

READY_WITHIN = 15.0
"""Seconds that a server may take to start: importing from a slow file system takes long."""


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
    import subprocess  # only now: who waits for a server starts none

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


# -- a server that is being started ---------------------------------------------------------------


def announcement(until: float) -> str:
    """Return the value of the variable: this process listens in a server's place until then."""
    return f"{os.getpid()}:{until}"


def starting_until(path: str) -> float:
    """Return until when (``CLOCK_MONOTONIC``) a server may be starting there; -inf if it has to be there."""
    return _announced(path)[1]


def until_it_serves(path: str) -> Steps[float]:
    """Wait for a server that is being started there, and for no other one.

    Returns:
        Until when it may be busy with its start; -inf if it has not been waited for.
    """
    listener, until = _announced(path)
    if monotonic() >= until:
        return -inf
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            while True:
                try:
                    sock.connect(path)
                    break
                except BlockingIOError:  # the backlog is full
                    yield Wait(seconds=random.uniform(0.001, 0.01), until=until)
            if peer_of(sock)[0] not in (listener, 0):  # 0: from here, neither of the two can be seen
                return -inf
            sock.send(PING, socket.MSG_NOSIGNAL)
        except OSError:
            return -inf
        yield Wait(sock.fileno(), until=until)
    return until


def _announced(path: str) -> tuple[int, float]:
    """Return who listens at a path, and until when; -inf if it is not announced."""
    text = os.environ.get(STARTING_VARIABLE)
    if not text or os.environ.get(SOCKET_VARIABLE) != path:
        return 0, -inf
    try:
        listener, until = text.split(":")
        found = int(listener), float(until)
    except ValueError:
        return 0, -inf
    # Further ahead than it can be: another time namespace's clock.
    return found if found[1] <= monotonic() + READY_WITHIN else (0, -inf)
