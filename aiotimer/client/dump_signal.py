"""A signal handler that writes the stack of the thread that it reaches into the timer table.

The laws of this file: the signal is a spare one (``spare_signal``), and is handled to the end. The handler is
``faulthandler``'s, which needs neither the GIL nor memory, so that a worker stuck in C code writes too. A
thread writes its own stack only (``all_threads=False``): those of others move while it reads them, and it
would crash. What goes wrong here is nobody's trouble: then there is no such signal, and the table says so. A
descriptor that may not be ours any more is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import os
import socket
from pathlib import Path

from .._core import layout
from .._core.table import TimerTable
from .._linux.process import peer_of
from .memory import identity, is_open
from .spare_signal import spare_signal

VARIABLE = "AIOTIMER_DUMP_SIGNAL"
"""0: no signal; another number: that one."""

_OUT_OF_THE_WAY = 64
"""Descriptors below are what programs use, and close in bulk."""

_PR_SET_PTRACER = 0x59616D61


class Stacks:
    """The dump signal of this process, for one table. Made by :func:`register`."""

    def __init__(self, signum: int, descriptor: int, file: tuple[int, int]) -> None:
        self.signum = signum
        self.descriptor = descriptor
        self.file = file

    def undo(self) -> None:
        """Have them written to nowhere, and close the descriptor if it is still ours.

        The signal stays handled: the server may be about to send it, and it would kill.
        """
        global _nowhere
        with contextlib.suppress(Exception):
            if not is_open(_nowhere, identity(os.devnull)):
                _nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            faulthandler.register(self.signum, file=_nowhere, all_threads=False, chain=False)
            _idle.append(self.signum)
            if is_open(self.descriptor, self.file):
                os.close(self.descriptor)


_idle: list[int] = []  # signals that are ours, and whose stacks go nowhere
_nowhere = -1


def register(table: TimerTable, descriptor: int, file: tuple[int, int]) -> Stacks | None:
    """Make each thread of this process write its stack into a table's file when it is sent a signal.

    Args:
        table: where the signal is announced.
        descriptor: of its file.
        file: its identity.

    Returns:
        What undoes it, None if it cannot be.
    """
    ours = -1
    stacks = None
    try:
        signum = _idle.pop() if _idle else _signal()
        if not signum:
            return None
        ours = _opened_anew(descriptor)
        faulthandler.register(signum, file=ours, all_threads=False, chain=False)
        stacks = Stacks(signum, ours, file)
        table.cells[layout.DUMP_FILE] = float(ours)
        table.cells[layout.DUMP_SIGNAL] = float(signum)  # last: it says that the other holds
    except Exception:  # noqa: BLE001 - whatever it is, the worker's timers are none the worse for it
        if stacks is not None:
            stacks.undo()
        elif ours >= 0:
            with contextlib.suppress(OSError):
                os.close(ours)
        return None
    return stacks


def _opened_anew(descriptor: int) -> int:
    """Return a descriptor that writes at the end of a file: behind the table."""
    low = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    except OSError:
        return os.dup(low)  # a low limit of descriptors
    finally:
        os.close(low)


def _signal() -> int:
    """Return a spare signal, 0 if there is none or none is wanted."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return spare_signal()
    wanted = int(text)
    return spare_signal(wanted) if wanted else 0


def allow_tracing(sock: socket.socket) -> None:
    """Let the server look into this process, where the kernel asks for a permission (Yama)."""
    try:
        if Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip() != "1":
            return
        peer = peer_of(sock)[0]
        if peer > 0:
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(peer), 0, 0, 0)
    except Exception:  # noqa: BLE001 - then there is one probe less
        return
