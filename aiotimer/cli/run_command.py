"""A runner of one command, with a server for it and for all that it starts: what ``aiotimer run`` does.

The laws of this file: it is to the command what timeout(1) is, exit statuses included; the server is
restarted while the command runs, without the command noticing; nothing is left behind.

The command does not wait for its server: the socket is bound, locked and listened on here, the server takes
it over, and whoever connects meanwhile waits in the backlog (see ``client/launch.py``). If there is never a
server, the command is ended, as it would not have been started.

It waits in ``sigwaitinfo`` with all signals of interest blocked: none is lost between two waits, and the
kernel's word on where a signal came from tells a Ctrl-C, which the command got from the terminal as well,
from a signal that somebody sent to us for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from .._linux.paths import (
    SOCKET_VARIABLE,
    STARTING_VARIABLE,
    base,
    check_socket_path,
    state_directories,
    state_directory,
)
from .._linux.procfs import start_time
from .._linux.requirements import check_requirements
from .._linux.table_files import find_tables
from ..client.launch import READY_WITHIN, announcement, owner_argument, wait_ready
from ..errors import AiotimerError, ServerUnavailable
from ..server.listener import clean_up, tells_of_expiries
from .supervisor import Place, SupervisedServer, end_child
from .timer_file import TimerFile

REAPED, FAILED, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127
"""Exit statuses, as in timeout(1)."""

MOST_PAGES = 3
"""Pages that are printed at the end: a wrong limit reaps hundreds, for one reason."""

STOPPING = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
"""Signals of job control at which a process stops, unless it says otherwise. SIGSTOP cannot be waited for."""

FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGWINCH, signal.SIGALRM, signal.SIGCONT, *STOPPING,
)  # fmt: skip

AWAITED = frozenset({signal.SIGCHLD, signal.SIGIO, *FORWARDED})

_LONG = 86_400.0
"""Seconds that it waits at most: there are durations that no timespec holds."""

_SI_KERNEL = 0x80
"""``si_code`` of a signal that the kernel itself sent, to a whole process group (sigaction(2))."""


class Limits(NamedTuple):
    """How long a command may run.

    Attributes:
        after: seconds until it is sent SIGTERM; None: it may run for ever.
        kill_after: seconds from then until it is sent SIGKILL; None: it is not.
        preserve_status: the exit status is the command's own, also if it has been ended or reaped.
    """

    after: float | None = None
    kill_after: float | None = None
    preserve_status: bool = False


NO_LIMITS = Limits()

RUN_TARGET = "tree"
"""Whom signals are for, if the command line does not say: nothing of a reaped worker is left running."""

_PR_SET_CHILD_SUBREAPER = 36


def run(
    command: list[str],
    *,
    socket_path: str | None = None,
    policy: tuple[str, ...] = ("--target", RUN_TARGET),
    limits: Limits = NO_LIMITS,
    quiet: bool = False,
) -> int:
    """Run a command with a server of its own; return the exit status.

    Args:
        command: and its arguments.
        socket_path: where the server listens; None: at a private path.
        policy: further arguments of ``aiotimer serve``.
        limits: how long the command may run.
        quiet: do not say at the end why workers were reaped.
    """
    try:
        return _run(socket_path, policy, command, limits, quiet=quiet)
    except (AiotimerError, OSError) as error:
        _complain(str(error))
        return FAILED


def _run(
    socket_path: str | None, policy: tuple[str, ...], command: list[str], limits: Limits, *, quiet: bool
) -> int:
    name = f"run-{os.getpid()}.sock"
    path = check_socket_path(socket_path or str(base(socket_name=name) / name))
    check_requirements()
    with TimerFile(os.environ, path) as timer_file:
        return _run_at(path, policy, command, limits, timer_file, private=socket_path is None, quiet=quiet)


def _run_at(
    path: str,
    policy: tuple[str, ...],
    command: list[str],
    limits: Limits,
    timer_file: TimerFile,
    *,
    private: bool,
    quiet: bool,
) -> int:
    events, server_end = os.pipe()
    started = time.time()  # noqa: TID251 - to tell this run's records, which have wall times, from older ones
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    reaped = _Reaped(events)
    place = Place(path)
    told = os.memfd_create("aiotimer-command")
    arguments = (
        "--owner", owner_argument(), "--events-fd", str(server_end), "--command-fd", str(told), *policy,
    )  # fmt: skip
    descriptors: tuple[int, ...] = (server_end, told)
    if timer_file.descriptor is not None:
        arguments += ("--torch-timer-fd", str(timer_file.descriptor))
        descriptors += (timer_file.descriptor,)
    server = _Server(path, arguments, descriptors, place)
    try:
        if not private:
            find_tables(state_directory(path))  # or the server would refuse to start
        server.start()
        _adopt_orphans()
        pid = _spawn(command, server.environment() | timer_file.environment)
        if pid < 0:
            return -pid
        os.pwrite(told, b"%d:%d" % (pid, start_time(pid)), 0)  # our child, and not waited for: it is there
        ran = _Command(pid, limits)
        status = _wait(ran, server, reaped)
    finally:
        server.stop()
        if not quiet:
            _say_why(path, started)
        if private:
            clean_up(path)
    os.close(server_end)
    os.close(told)
    # Whichever way it ended: at the SIGTERM of its ladder it may have saved what it had, and exited with 0.
    was_reaped = pid in reaped.read()
    os.close(events)
    if not limits.preserve_status and (was_reaped or (ran.was_ended and status != -signal.SIGKILL)):
        return REAPED
    return status if status >= 0 else 128 - status


def _adopt_orphans() -> None:
    """Get what loses its parent from here on: what is left of a command that was reaped is found here.

    What a command that ends by itself leaves running is the next one's above when this process ends.
    """
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _say_why(path: str, since: float) -> None:
    """Print the pages about the first workers that were reaped."""
    directories = state_directories(path)
    if not any(map(tells_of_expiries, directories)):
        return
    from ..server.recorded import EXPIRIES
    from .why import newest

    records = newest(directories, since=since, limit=EXPIRIES)
    ended = [record for record in records if record.outcome in ("reaped", "unkillable")][::-1]
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


class _Command:
    """The command, while it runs.

    Args:
        pid: of a child that has not been waited for.
        limits: how long it may run.

    Attributes:
        was_ended: it has been sent a signal since it ran for too long.
    """

    def __init__(self, pid: int, limits: Limits) -> None:
        self.pid = pid
        self.was_ended = False
        self._limits = limits
        self._ends = [] if limits.after is None else [(monotonic() + limits.after, signal.SIGTERM)]
        self._stops = False

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)  # noqa: TID251 - our own child, not waited for yet

    def look_within(self) -> float | None:
        """Return within how many seconds to look at its limit; None: it has none any more."""
        return min(max(0.0, self._ends[0][0] - monotonic()), _LONG) if self._ends else None

    def look(self) -> None:
        """End it, if it has run for too long; stop with it, if we are to."""
        if self._ends and monotonic() >= self._ends[0][0]:
            _, number = self._ends.pop()
            _complain(f"the command has run for too long: it is sent {signal.Signals(number).name}")
            if not self.was_ended and self._limits.kill_after is not None:
                self._ends = [(monotonic() + self._limits.kill_after, signal.SIGKILL)]
            self.was_ended = True
            self.send(number)
            self.send(signal.SIGCONT)  # as timeout(1) does: one that is stopped is to have it, too
        stopped = os.WSTOPPED | os.WNOHANG
        if self._stops and os.waitid(os.P_PID, self.pid, stopped) is not None:
            self._stops = False
            signal.raise_signal(signal.SIGSTOP)  # a shell sees one job, and it stops

    def forward(self, caught: signal.struct_siginfo) -> None:
        """Let it have a signal that came for it; what the kernel sent has reached it as well as us."""
        if caught.si_code != _SI_KERNEL:
            self.send(caught.si_signo)
        if caught.si_signo in STOPPING:
            self._stops = True  # when it does
        elif caught.si_signo == signal.SIGCONT:
            self._stops = False


def _wait(command: _Command, server: _Server, reaped: _Reaped) -> int:
    """Wait for the command, forwarding signals and restarting the server; return its exit code.

    Raises:
        ServerUnavailable: there is no server, and the command has been ended.
    """
    try:
        return _wait_for_both(command, server, reaped)
    except ServerUnavailable:
        end_child(command.pid)
        raise


def _wait_for_both(command: _Command, server: _Server, reaped: _Reaped) -> int:
    while True:
        while (child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            code = os.waitstatus_to_exitcode(os.waitpid(child.si_pid, 0)[1])
            if child.si_pid == command.pid:
                return code
            if child.si_pid == server.pid and not server.reaped(code):
                _complain("the timer server cannot be restarted")
        server.look()
        command.look()
        within = min(
            (w for w in (server.look_within(), command.look_within()) if w is not None), default=None
        )
        caught = signal.sigwaitinfo(AWAITED) if within is None else signal.sigtimedwait(AWAITED, within)
        if caught is None:
            continue
        if caught.si_signo == signal.SIGIO:
            reaped.read()
        elif caught.si_signo != signal.SIGCHLD:
            command.forward(caught)


class _Server(SupervisedServer):
    """The server, which may not be there yet.

    Args:
        socket_path: where it listens.
        arguments: further arguments of ``aiotimer serve``.
        descriptors: the end of a pipe into which it writes events, and where it reads who the command is.
        place: what it takes over when it is there.
    """

    def __init__(
        self, socket_path: str, arguments: tuple[str, ...], descriptors: tuple[int, ...], place: Place
    ) -> None:
        super().__init__(socket_path, arguments, descriptors)
        self._place: Place | None = place  # until it is known whether it has taken it
        self._ready = -1
        self._until = 0.0

    def start(self) -> None:
        """Start it, and do not wait until it serves."""
        self._until = monotonic() + READY_WITHIN
        self._ready = self.launch({} if self._place is None else self._place.descriptors)
        _signal_input(self._ready)

    def environment(self) -> dict[str, str]:
        """Return the command's environment."""
        announced = announcement(self._until)
        return {**os.environ, SOCKET_VARIABLE: self.socket_path, STARTING_VARIABLE: announced}

    def look(self) -> None:
        """See whether it serves by now.

        Raises:
            ServerUnavailable: it has ended, or takes too long.
        """
        if self._ready < 0:
            return
        if select.select([self._ready], [], [], 0.0)[0] or monotonic() >= self._until:
            wait_ready(self._ready, self.socket_path, 0.0)
            self._settle(Place.hand_over)

    def look_within(self) -> float | None:
        """Return within how many seconds to look again if nothing happens; None: there is no need to."""
        return None if self._ready < 0 else max(0.0, self._until - monotonic())

    def reaped(self, status: int) -> bool:
        """It has been waited for; start it again. Returns whether it lives.

        Raises:
            ServerUnavailable: it has never served.
        """
        self.pid = 0
        self.look()
        return super().reaped(status)

    def stop(self) -> None:
        """Ask it to end, and wait until it has; leave nothing behind of one that has never served."""
        super().stop()
        self._settle(Place.give_up)

    def _settle(self, how: Callable[[Place], object]) -> None:
        """Look no more: it is known what has become of it, if it was not before."""
        place, self._place = self._place, None
        if place is not None:
            how(place)
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1


def _signal_input(pipe: int) -> None:
    """Have the kernel send SIGIO when there is something to read, or nobody writes any more."""
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


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
        _signal_input(events)

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
