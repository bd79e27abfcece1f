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
* Who has time sends PING, and nothing else before that is answered. Who has none sends its HELLO into the
  backlog, if a table comes with it: the program may be stopped next, or hold the GIL for ever, and is watched
  all the same as soon as there is a server. Without a table a HELLO says what may be wrong when it is read.
"""

from __future__ import annotations

import os
import random
import re
import select
import socket
import sys
from math import inf
from time import monotonic, monotonic_ns, sleep

from .._core.ping import PING
from .._linux import paths
from .._linux.paths import SOCKET_VARIABLE, STARTING_VARIABLE, check_socket_path
from .._linux.process import peer_of
from .._linux.procfs import check_proc, is_our_executable, start_time
from .._version import __version__
from ..errors import ServerError, ServerUnavailable
from .waiting import Steps, Wait

READY_WITHIN = 15.0
"""Seconds that a server may take to start: importing from a slow file system takes long."""


PYTHON_VARIABLE = "AIOTIMER_PYTHON"
"""The Python that runs a private server, by path or name, where that cannot be this program's own."""

_NAME_OF_PYTHON = re.compile(r"(python|pypy)[\d.]*[a-z]*$")

_FORK_AND_EXEC = "import os, sys; os.fork() or os.execve(sys.argv[1], sys.argv[1:], os.environ)"


def private_socket(*, shared: bool = True) -> str:
    """Return a path for the socket of a private server, the same for all processes of one tree.

    A child finds it in its environment. Siblings have no ancestor that could have told them, such as the
    workers that a master forked before anybody called ``configure()``: they meet at a name made of their
    parent, if that runs the same interpreter (a shell's children have nothing to do with one another).

    Args:
        shared: False: only this process and its children are to find it.

    Raises:
        UnsafePath: there is no place for it.
    """
    parent = os.getppid()
    if shared and parent > 1 and is_our_executable(parent):
        name = f"{parent}:{start_time(parent)}:{__version__}"
    else:
        name = f"{os.getpid()}-{monotonic_ns() % 10**9}"
    name = f"{paths.PRIVATE}{name}.sock"
    return check_socket_path(str(paths.base(socket_name=name) / name))


def found(socket_path: str) -> bool:
    """See that there is a private server, and wait until it serves; return whether this process is its owner.

    Raises:
        ServerUnavailable: it cannot be started.
        UnsafePath: there is no place for its socket.
    """
    if somebody_listens(socket_path):
        return False
    until = monotonic() + READY_WITHIN
    ready = start_private_server(socket_path)
    try:
        wait_ready(ready, socket_path)
    finally:
        os.close(ready)
    while not somebody_listens(socket_path):  # another process of the tree was quicker: its server comes
        if monotonic() > until:
            raise _too_late(socket_path)
        sleep(0.005)
    return True


def start_private_server(socket_path: str, arguments: tuple[str, ...] = ()) -> int:
    """Start a private server for this process and do not wait for it.

    Args:
        socket_path: where.
        arguments: further ones of ``aiotimer serve``.

    Returns:
        A descriptor that becomes readable when it serves (or has failed: end of file).

    Raises:
        ServerUnavailable: it cannot be started.
    """
    import subprocess  # only now: who waits for a server starts none

    ready, child_end = os.pipe()
    try:
        command = python_command(
            "watchdog", "--socket", socket_path, "--owner", owner_argument(), "--ready-fd", str(child_end),
            "--", *arguments,
        )  # fmt: skip
        subprocess.run(  # the intermediate is gone when this returns
            [command[0], "-I", "-S", "-c", _FORK_AND_EXEC, *command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=python_environment(),
            pass_fds=(child_end,),
            start_new_session=True,
        )
    except ServerUnavailable as error:
        os.close(ready)
        raise ServerUnavailable(socket_path, error.reason, error.advice) from None
    except (OSError, ServerError, subprocess.SubprocessError) as error:
        os.close(ready)
        raise ServerUnavailable(socket_path, f"the private server cannot be started: {error}") from error
    finally:
        os.close(child_end)
    return ready


def somebody_listens(socket_path: str) -> bool:
    """Whether there is a server at a socket, or one that is too busy to be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(socket_path)
        except BlockingIOError:
            pass
        except OSError:
            return False
    return True


def wait_ready(descriptor: int, socket_path: str, within: float = READY_WITHIN) -> None:
    """Wait until a starting server writes to the other end of a pipe.

    Raises:
        ServerUnavailable: it ended, or took too long.
    """
    if not select.select([descriptor], [], [], within)[0]:
        raise _too_late(socket_path)
    if not os.read(descriptor, 1):
        raise ServerUnavailable(socket_path, "it ended while starting; its own message says why")


def _too_late(socket_path: str) -> ServerUnavailable:
    return ServerUnavailable(socket_path, f"it did not start within {READY_WITHIN:g} s")


def python_command(*arguments: str) -> list[str]:
    """Return the command that runs ``aiotimer`` with this interpreter.

    ``-P`` keeps the current directory off the import path: a worker's directory may hold a ``queue.py``.

    Raises:
        ServerUnavailable: it is not known which program is a Python.
    """
    return [_python(), "-P", "-m", "aiotimer", *arguments]


def _python() -> str:
    """Return a Python to run. What is not known to be one is never started: it may be this very program.

    Where a program embeds Python, its word for the executable may be another environment's (uWSGI says what
    the environment's Python is a link to): the one in this environment comes first.
    """
    wanted = os.environ.get(PYTHON_VARIABLE)
    if wanted:
        from shutil import which  # only now: hardly anybody needs it

        return which(wanted) or wanted
    if not getattr(sys, "frozen", False):
        here = os.path.join(sys.exec_prefix, "bin", "")
        known = [sys.executable, f"{here}python{sys.version_info[0]}.{sys.version_info[1]}"]
        for program in sorted(filter(None, known), key=lambda program: not program.startswith(here)):
            if _NAME_OF_PYTHON.match(os.path.basename(program)) and os.access(program, os.X_OK):
                return program
    program = sys.executable or sys.argv[0] or "this program"
    raise ServerUnavailable(
        "a private server",
        f"it takes a Python to run one, and {program} is none that can be started",
        f"set ${PYTHON_VARIABLE} to one that has aiotimer installed, "
        f"or run `aiotimer serve` and set ${SOCKET_VARIABLE}",
    )


def python_environment() -> dict[str, str]:
    """Return the environment for :func:`python_command`: this very package must be found."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{home}" if path else home}
    if getattr(sys, "frozen", False):  # PyInstaller's own libraries are not for another Python
        environment.pop("LD_LIBRARY_PATH", None)
        original = environment.get("LD_LIBRARY_PATH_ORIG")
        if original is not None:
            environment["LD_LIBRARY_PATH"] = original
    return environment


def owner_argument() -> str:
    """Return how a server is told who its owner is, this process: pid and start time, to be pinned by.

    Raises:
        ServerError: that is not known without a /proc of our pid namespace.
    """
    check_proc()
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

    Raises:
        TimeoutError: it does not serve yet.
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
        except TimeoutError:
            raise
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
