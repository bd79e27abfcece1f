"""``aiotimer run``: a server for one command and all that it starts.

The laws of this file: it is to the command what timeout(1) is, exit statuses included; the server is
restarted while the command runs, without the command noticing; nothing is left behind.

It waits in ``sigwaitinfo`` with all signals of interest blocked: none is lost between two waits, and the
kernel's word on where a signal came from tells a Ctrl-C, which the command got from the terminal as well,
from a signal that somebody sent to us for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time

from .._linux.environment import SOCKET_VARIABLE, check_socket_path
from .._linux.paths import RECORDED, base, state_directories
from ..client.launch import founder_argument
from ..errors import AiotimerError
from ..server.cleanup import discard
from .supervisor import SupervisedServer

REAPED, FAILED, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127
"""Exit statuses, as in timeout(1)."""

MOST_PAGES = 3
"""Pages that are printed at the end: a wrong limit reaps hundreds, for one reason."""

FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGWINCH, signal.SIGALRM,
)  # fmt: skip

_SI_KERNEL = 0x80
"""``si_code`` of a signal that the kernel itself sent, to a whole process group (sigaction(2))."""


def run(
    command: list[str],
    *,
    socket_path: str | None = None,
    policy: tuple[str, ...] = (),
    quiet: bool = False,
) -> int:
    """Run a command with a server of its own; return the exit status.

    Args:
        command: and its arguments.
        socket_path: where the server listens; None: at a private path.
        policy: further arguments of ``aiotimer serve``.
        quiet: do not say at the end why workers were reaped.
    """
    try:
        return _run(socket_path, policy, command, quiet=quiet)
    except (AiotimerError, OSError) as error:
        _complain(str(error))
        return FAILED


def _run(socket_path: str | None, policy: tuple[str, ...], command: list[str], *, quiet: bool) -> int:
    private = socket_path is None
    path = check_socket_path(socket_path or str(base() / f"run-{os.getpid()}.sock"))
    events, server_end = os.pipe()
    started = time.time()  # noqa: TID251 - to tell this run's records, which have wall times, from older ones
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGIO, *FORWARDED})
    reaped = _Reaped(events)
    arguments = ("--founder", founder_argument(), "--events-fd", str(server_end), *policy)
    server = SupervisedServer(path, arguments, (server_end,))
    try:
        server.start()
        pid = _spawn(command, {**os.environ, SOCKET_VARIABLE: path})
        if pid < 0:
            return -pid
        status = _wait(pid, server, reaped)
    finally:
        server.stop()
        if not quiet:
            _say_why(path, started)
        if private:
            discard(path)
    os.close(server_end)
    was_reaped = pid in reaped.read()
    os.close(events)
    return REAPED if was_reaped and status < 0 else status if status >= 0 else 128 - status


def _say_why(path: str, since: float) -> None:
    """Print the pages about the first workers that were reaped."""
    directories = state_directories(path)
    if not any((directory / name).exists() for directory in directories for name in RECORDED):
        return
    from ..server.history import EXPIRIES
    from .why import newest

    records = newest(directories, since=since, limit=EXPIRIES)
    ended = [record for record in records if record.get("outcome") in ("reaped", "unkillable")][::-1]
    if not ended:
        return
    from .page import print_page

    with contextlib.suppress(OSError):  # nobody reads it: the command's exit status still counts
        for record in ended[:MOST_PAGES]:
            sys.stderr.write("\n")
            print_page(record, sys.stderr)
        if len(ended) > MOST_PAGES:
            sys.stderr.write(f"\naiotimer: {len(ended) - MOST_PAGES} more: see aiotimer history and why\n")


def _complain(what: str) -> None:
    sys.stderr.write(f"aiotimer: {what}\n")
    sys.stderr.flush()


def _spawn(command: list[str], environment: dict[str, str]) -> int:
    """Start the command; return its pid, or minus the exit status that says why it cannot be."""
    restored = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them
    try:
        return os.posix_spawnp(command[0], command, environment, setsigmask=(), setsigdef=restored)
    except FileNotFoundError:
        _complain(f"{command[0]}: command not found")
        return -NOT_FOUND
    except OSError as error:
        _complain(f"{command[0]}: {error.strerror}")
        return -NOT_EXECUTABLE


def _wait(pid: int, server: SupervisedServer, reaped: _Reaped) -> int:
    """Wait for the command, forwarding signals and restarting the server; return its exit code."""
    while True:
        while (child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            code = os.waitstatus_to_exitcode(os.waitpid(child.si_pid, 0)[1])
            if child.si_pid == pid:
                return code
            if child.si_pid == server.pid and not server.reaped(code):
                _complain("the timer server cannot be restarted")
        caught = signal.sigwaitinfo({signal.SIGCHLD, signal.SIGIO, *FORWARDED})
        if caught.si_signo == signal.SIGIO:
            reaped.read()
        elif caught.si_signo != signal.SIGCHLD and caught.si_code != _SI_KERNEL:
            os.kill(pid, caught.si_signo)  # noqa: TID251 - our own child, not waited for yet


class _Reaped:
    """Whom the server says it has reaped.

    The pipe signals SIGIO when there is something to read (O_ASYNC): a pipe that is read only at the end is
    full by then, and the last event, which may be about the command itself, was dropped.

    Args:
        events: the reading end of the pipe.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self._pids: set[int] = set()
        self._unfinished = b""
        os.set_blocking(events, False)
        fcntl.fcntl(events, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(events, fcntl.F_SETFL, fcntl.fcntl(events, fcntl.F_GETFL) | os.O_ASYNC)

    def read(self) -> set[int]:
        """Read what there is; return the pids of everybody reaped so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._events, 65_536):
                import json  # most commands end without an event

                *lines, self._unfinished = (self._unfinished + data).split(b"\n")
                for event in map(json.loads, lines):
                    if event["event"] == "reaped":
                        self._pids.add(event["pid"])
        return self._pids
