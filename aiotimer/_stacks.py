"""How a worker can be made to write its stacks: a signal, on which they are written into its table.

The laws of this file: it takes only a real-time signal that nobody in this process catches, ignores or
blocks; ``faulthandler``'s handler needs neither the GIL nor memory, so that a worker stuck in C code writes
too; what goes wrong here is nobody's trouble: then there is no such signal, and the table says so. A
descriptor that may not be ours any more is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
from pathlib import Path

from ._core import layout
from ._core.table import TimerTable
from ._descriptors import is_open

VARIABLE = "AIOTIMER_DUMP_SIGNAL"
"""0: no signal; another number: that one."""

_OUT_OF_THE_WAY = 64
"""Descriptors below are what programs use, and close in bulk."""

_PR_SET_PTRACER = 0x59616D61


class Stacks:
    """The dump signal of this process, for one table. Made by :func:`register`."""

    def __init__(self, signum: int, descriptor: int, inode: int) -> None:
        self.signum = signum
        self.descriptor = descriptor
        self.inode = inode

    def undo(self) -> None:
        """Give the signal back, and the descriptor if it is still ours."""
        import faulthandler

        _taken.discard(self.signum)
        with contextlib.suppress(Exception):
            faulthandler.unregister(self.signum)
        if is_open(self.descriptor, self.inode):
            os.close(self.descriptor)


_taken: set[int] = set()  # by other tables of this process


def register(table: TimerTable, descriptor: int, inode: int) -> Stacks | None:
    """Make this process write its stacks into a table's file when it is sent a signal.

    Args:
        table: where the signal is announced.
        descriptor: of its file.
        inode: of that file.

    Returns:
        What undoes it, None if it cannot be.
    """
    ours = -1
    stacks = None
    try:
        signum = _free_signal()
        if not signum:
            return None
        import faulthandler

        ours = _opened_anew(descriptor)
        os.lseek(ours, layout.STACKS_OFFSET, os.SEEK_SET)
        faulthandler.register(signum, file=ours, all_threads=True, chain=False)
        _taken.add(signum)
        stacks = Stacks(signum, ours, inode)
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
    """Return another open file description of a file, so that its position is its own."""
    low = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    except OSError:
        return os.dup(low)  # a low limit of descriptors
    finally:
        os.close(low)


def _free_signal() -> int:
    """Return a signal that nobody uses, 0 if there is none or none is wanted."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted:
        number = int(wanted)
        candidates = [number] if signal.SIGRTMIN < number < signal.SIGRTMAX else []
    else:
        middle = (signal.SIGRTMIN + signal.SIGRTMAX) // 2
        usual = range(signal.SIGRTMIN + 3, signal.SIGRTMAX - 2)
        candidates = sorted(usual, key=lambda number: abs(number - middle))
    used = _used()
    for number in candidates:
        if not used >> (number - 1) & 1 and number not in _taken and _is_default(number):
            return number
    return 0


def _used() -> int:
    """Return the set of signals that this process catches or ignores, or that this thread blocks."""
    used = 0
    for line in Path("/proc/thread-self/status").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name in ("SigCgt", "SigIgn", "SigBlk"):
            used |= int(value, 16)
    return used


def _is_default(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_DFL


def allow_tracing(connection: socket.socket) -> None:
    """Let the server look into this process (py-spy), where the kernel asks for a permission (Yama)."""
    try:
        if Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip() != "1":
            return
        size = struct.calcsize("3i")
        peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
        if peer > 0:
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(peer), 0, 0, 0)
    except Exception:  # noqa: BLE001 - then there is one probe less
        return
