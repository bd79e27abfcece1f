"""A pinned process: what a server asks the kernel about one worker, and the signals that it sends to it.

The laws of this file: signals go through the pidfd (``_linux/signals`` tells to whom besides), and only a
readable pidfd means dead; what /proc says counts only if the process still lives when it has been read, for
else the pid may be another's. Signals go out with the server's own rights: the process was its user's when it
was pinned, and it counts as such as long as it runs the same program.
"""

from __future__ import annotations

import contextlib
import os

from .._core.requests import WorkerId
from .._linux.process import is_dead
from .._linux.procfs import foreign_uid, maps_file, name_of, runs_another_program
from .._linux.signals import signal_target
from .process_state import why_stopped


class PinnedProcess:
    """One process, pinned.

    Args:
        worker_id: who it is.
        pidfd: the process; owned from here on.

    Attributes:
        id: who it is.
        pidfd: the process, -1 when it has been let go of.
        inode: of the pidfd: unique to the process since Linux 6.9 (pidfs), shared by all before.
        name: its command name.
    """

    def __init__(self, worker_id: WorkerId, pidfd: int) -> None:
        self.id = worker_id
        self.pidfd = pidfd
        self.inode = os.fstat(pidfd).st_ino
        self.name = name_of(worker_id.pid)

    def is_dead(self) -> bool:
        """Whether it is dead, waited for or not."""
        return is_dead(self.pidfd)

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

    def runs_another_program(self, program: int) -> bool:
        """Whether it runs another program by now than the one with this mark, see ``procfs.program_of``."""
        return runs_another_program(self.id.pid, program) and not self.is_dead()

    def has_unmapped(self, inode: int) -> bool:
        """Whether it surely does not map a file any more; this can take a while."""
        with contextlib.suppress(OSError):  # it is not shown
            return maps_file(self.id.pid, inode) is False and not self.is_dead()
        return False

    def is_foreign(self) -> bool:
        """Whether it is another user's by now. That it has dropped its uid does not count."""
        try:
            return foreign_uid(self.id.pid) is not None and not self.is_dead()
        except OSError:  # it is gone; or there is no descriptor to look with
            return False

    def why_stopped(self) -> str:
        """Return why it cannot run, "" if it can: it is stopped, or somebody traces it."""
        return why_stopped(self.id.pid)

    def close(self) -> None:
        """Let go of it."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
