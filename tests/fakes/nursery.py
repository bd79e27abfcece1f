"""A nursery: a process that forks Python programs, so that the start of an interpreter is paid once.

The laws of this file: a program finds itself in an interpreter that has just been started by ``python -c``
(its arguments, its environment, its streams, a ``__main__`` of its own), except that modules which it is
going to import anyway have been imported already; of those of a worker none is this package's. It is a child
of whoever has it started: the nursery forks twice, and of the two the first ends.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import marshal
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping

MODULES = "ctypes, faulthandler, fcntl, logging, msgspec, mmap, random, socket, threading, uuid"
"""What every worker imports in order to connect, and what that imports."""

_USES_ASYNCIO = re.compile(r"\basyncio\.|\bimport .*\basyncio\b")

_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None)

_MOST_BYTES = 200_000
"""Of one order: what a socket's buffer takes by default is a little more."""

_NURSERY = """
given = {**globals()}
import gc, marshal, os, socket, sys
gc.disable()
import MODULES
gc.freeze()  # at the end of a program the collector does not go through, and copy, what is here
gc.enable()
del sys.modules["gc"]

orders = socket.socket(fileno=int(sys.argv[1]))
while True:
    order, descriptors, _, _ = socket.recv_fds(orders, MOST_BYTES, 2)
    if not order:
        os._exit(0)
    between = os.fork()
    if not between:
        pid = os.fork()
        if not pid:
            break
        orders.send(b"%d" % pid)
        os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)
    os.waitpid(between, 0)
    orders.send(b"has lost its parent")

orders.close()
source, arguments, environment, folder = marshal.loads(order)
for descriptor, places in zip(descriptors, ((0,), (1, 2))):
    for place in places:
        os.dup2(descriptor, place)
    os.close(descriptor)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
sys.argv[:] = ["-c", *arguments]
sys.modules["__main__"] = main = type(sys)("__main__")
main.__dict__.update(given)
exec(compile(source, "<string>", "exec"), main.__dict__)
"""


class Nursery:
    """A process that forks programs. It is started at once, and ends with this one.

    Args:
        modules: what it has imported, separated by commas.
        environment: in which it finds them.
    """

    def __init__(self, modules: str, environment: Mapping[str, str]) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        code = _NURSERY.replace("MODULES", modules).replace("MOST_BYTES", str(_MOST_BYTES))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.PIPE,  # as a program has it, or streams over it would be of another kind
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        atexit.register(self._end)

    def start(self, source: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> Program:
        """Start a program, with a pipe as its input and another one for its output and its errors."""
        given, stdin = os.pipe()
        stdout, told = os.pipe()
        order = marshal.dumps((source, arguments, dict(environment), os.getcwd()))
        try:
            with self._lock, _adopting():
                socket.send_fds(self._orders, [order], (given, told))
                pid = int(self._orders.recv(32))
                self._orders.recv(32)
        finally:
            os.close(given)
            os.close(told)
        return Program(pid, stdin, stdout)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._orders.close()


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """What loses its parent meanwhile becomes this process's child, if it is a descendant."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Program:
    """A program that has been forked: a child of this process, as :class:`subprocess.Popen` is of one.

    Attributes:
        pid: its process id.
        stdin, stdout: its streams, as text.
        returncode: its exit code (-N: died of signal N); None until it has been waited for.
    """

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.stdin = os.fdopen(stdin, "w")
        self.stdout = os.fdopen(stdout)
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._pidfd)  # not before: a thread may be waiting for it
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit code if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended within so many seconds.
        """
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"program {self.pid}", timeout or 0)
        with self._lock:
            if self.returncode is None:
                try:
                    self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                except ChildProcessError:
                    self.returncode = 0  # somebody else has waited for it; Popen says the same
            return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send it a signal, if it has not ended."""
        with self._lock:
            if self.returncode is None:
                signal.pidfd_send_signal(self._pidfd, signum)

    def terminate(self) -> None:
        """SIGTERM it."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL it."""
        self.send_signal(signal.SIGKILL)


_nurseries: dict[tuple[object, ...], Nursery] = {}
"""By the modules, and what the interpreter has seen at its start."""


def start(
    source: str, arguments: tuple[str, ...], environment: Mapping[str, str], modules: str = ""
) -> Program:
    """Start a program in the nursery that fits it.

    Args:
        source: the program.
        arguments: become ``sys.argv[1:]``.
        environment: all of it.
        modules: that have been imported, separated by commas; by default those that a worker imports.
    """
    modules = modules or MODULES + ", asyncio" * bool(_USES_ASYNCIO.search(source))
    key = (modules, *_seen_at_start(environment))
    if key not in _nurseries:
        _nurseries[key] = Nursery(modules, environment)
    return _nurseries[key].start(source, arguments, environment)


def _seen_at_start(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return what only the start of an interpreter sees of an environment."""
    return tuple(sorted(pair for pair in environment.items() if pair[0].startswith(("PYTHON", "LD_"))))
