"""A pinned process: what a server asks the kernel about one worker, and the signals that it sends to it.

The laws of this file: signals go through the pidfd (``_linux/signals`` tells to whom besides), and only a
readable pidfd means dead; what /proc says counts only if the process still lives when it has been read, for
else the pid may be another's. Signals go out with the server's own rights: the process was its user's when it
was pinned, and it counts as such as long as it runs the same program. Reading the state of a process that
does not die may block for ever: :func:`classified` has it done in a thread, for which nobody waits longer
than a second.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path

from .._core.requests import WorkerId
from .._linux import procfs
from .._linux.process import PID_1, how_it_ended, is_dead
from .._linux.signals import signal_target
from ..evidence.reasons import status_in_words
from ..evidence.threads import TooManyStuck, in_thread

_PATIENCE = 1.0
"""Seconds after which /proc itself counts as stuck."""

_ROOTS_V1 = ("/sys/fs/cgroup/freezer",)
_ROOTS_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_ICE = ("FROZEN", "FREEZING")


class PinnedProcess:
    """One process, pinned.

    Args:
        pidfd: the process; owned from here on.

    Attributes:
        pidfd: the process, -1 when it has been let go of.
        inode: of the pidfd: unique to the process since Linux 6.9 (pidfs), shared by all before.
        session: the number of its session when it was pinned, 0 if it is not shown.
    """

    def __init__(self, worker_id: WorkerId, pidfd: int) -> None:
        self.id = worker_id
        self.pidfd = pidfd
        self.inode = os.fstat(pidfd).st_ino
        self._name = procfs.name_of(worker_id.pid)
        try:
            self.session = os.getsid(worker_id.pid)
        except OSError:
            self.session = 0

    @property
    def name(self) -> str:
        """Its command name, "?" if it was gone before anybody asked."""
        if self._name == procfs.UNSENT:  # its main thread is just starting the one whose name this is
            self._name = procfs.name_of(self.id.pid)
        return self._name

    def is_dead(self) -> bool:
        """Whether it is dead, waited for or not; or let go of, which it is when it is dead."""
        return self.pidfd < 0 or is_dead(self.pidfd)

    def how_it_ended(self) -> str:
        """Return ``by SIGTERM`` or ``exit 3``, of a dead process; "" if that is not to be had."""
        status = how_it_ended(self.id, self.pidfd) if self.pidfd >= 0 else None
        if status is None:
            return ""
        return f"{'by ' if status & 0x7F else ''}{status_in_words(status)}"

    def is_child_of_init(self) -> bool:
        """Whether process 1 of this pid namespace has started it, or adopted it; not of the machine's own."""
        try:
            parent = procfs.parent_and_session(self.id.pid)[0]
        except OSError:
            return False
        return parent == PID_1 and not procfs.is_first_pid_namespace()

    def signal(self, target: str, number: int) -> str:
        """Signal it, and those that go with it: see ``_linux/signals``.

        Returns:
            Why only the process itself was signalled, "" if all that was wanted was.

        Raises:
            ProcessLookupError: it is dead. (A zombie would take the signal, and it would prove nothing.)
            OSError: the kernel does not let it be signalled.
        """
        if self.is_dead():
            raise ProcessLookupError
        return signal_target(target, self.id.pid, self.pidfd, number)

    def runs_program(self, program: int) -> bool | None:
        """Whether it still runs the program of a mark, see ``procfs.program_of``; None: nobody can tell."""
        known = procfs.runs_program(self.id.pid, program)
        return None if known is False and self.is_dead() else known

    async def mapped_inodes(self) -> set[int]:
        """Return the inodes of the files that it maps, in a second at most; none if that is not shown."""
        with contextlib.suppress(OSError, TimeoutError, TooManyStuck):
            read = partial(procfs.mapped_inodes, self.id.pid)
            mapped = await in_thread(read, _PATIENCE, give_up=lambda: None)
            return set() if self.is_dead() else mapped
        return set()

    async def has_unsent(self) -> bool:
        """Whether it has yet to say what it has armed and released, see ``procfs.UNSENT``.

        It counts as if it had if that is not found out in a second; to ask again is right then.
        """
        read = partial(procfs.has_thread_named, self.id.pid, procfs.UNSENT)
        try:
            return await in_thread(read, _PATIENCE, give_up=lambda: None)
        except TimeoutError:
            return True
        except (TooManyStuck, RuntimeError):  # there is no thread for it
            return read()

    def is_foreign(self) -> bool:
        """Whether it is another user's by now. That it has dropped its uid does not count."""
        try:
            return procfs.foreign_uid(self.id.pid) is not None and not self.is_dead()
        except OSError:  # it is gone; or there is no descriptor to look with
            return False

    def why_stopped(self) -> str:
        """Return why it cannot run, "" if it can: it is stopped or frozen, or somebody traces it."""
        return why_stopped(self.id.pid)

    def close(self) -> None:
        """Let go of it."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


async def classified(pid: int) -> str:
    """Return why a process does not die, in words. Takes a second at most."""
    try:
        return await in_thread(partial(classify, pid), _PATIENCE, give_up=lambda: None)
    except (TimeoutError, TooManyStuck):
        return "/proc does not answer either"
    except OSError as error:
        return f"its state is not shown: {error.strerror or error}"


def classify(pid: int) -> str:
    """Return why a process does not die, in words. May block.

    Raises:
        OSError: it is not shown, or gone.
    """
    status = procfs.status(pid)
    if pid == PID_1:
        return "it is pid 1 of this pid namespace, which the kernel lets nobody in there kill"
    if group := _frozen(pid):
        return _FROZEN.format(group)
    threads = [procfs.status(pid, tid) for tid in procfs.tids_of(pid)]
    for thread in threads:
        if thread["State"].startswith("D"):
            where = procfs.wchan(pid, int(thread["Pid"]))
            return f"it is in uninterruptible sleep (D) in {where or 'an unknown place'}"
    if "NSpid" in status and status["NSpid"].split()[1:] and status["NSpid"].split()[-1] == "1":
        return "it is pid 1 of its pid namespace, and ends when everybody in there has ended"
    if status["State"].startswith("Z") and len(threads) <= 1:
        return f"it is dead, a zombie that its parent {status['PPid']} does not wait for"
    return f"its state is {status['State']}"


def why_stopped(pid: int) -> str:
    """Return why a process cannot run, "" if it can: it is stopped or frozen, or somebody traces it."""
    try:
        status, group = procfs.status(pid), _frozen(pid)
    except OSError:
        return ""
    if group:
        return _FROZEN.format(group)
    if status["TracerPid"] != "0":
        return f"process {status['TracerPid']} debugs it"
    return "it is stopped" if status["State"].startswith("T") else ""


_FROZEN = "it is frozen, with its cgroup {}"


def _frozen(pid: int) -> str:
    """Return the cgroup with which a process is frozen, "" if it is not."""
    for number, controllers, path in procfs.cgroups_of(pid):
        if "freezer" in controllers.split(","):
            if any(_text(f"{root}{path}/freezer.state").strip() in _ICE for root in _ROOTS_V1):
                return procfs.escaped(path)
        elif number == "0" and any("frozen 1" in _text(f"{root}{path}/cgroup.events") for root in _ROOTS_V2):
            return procfs.escaped(path)
    return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="backslashreplace")
    except OSError:
        return ""
