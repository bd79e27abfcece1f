"""A worker's stacks, written by a signal: even while C code holds the GIL, no thread of Python's can run, and
nobody could be asked.

The laws of this file:

* The signal is a real-time one that the program neither handles, ignores nor blocks when it is chosen, and it
  stays handled to the end: it would kill a process that does not expect it. When nobody is to have the stacks
  any more they are written to ``/dev/null``.
* They go to the end of the table's file, behind the table, by a descriptor that can do nothing else. The
  server reads them there, and so does the one that comes after it.
* The server is told of both, signal and descriptor, in the worker's line of the table; last of all.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import os
import signal
import socket
import struct
from _thread import allocate_lock
from typing import TYPE_CHECKING

from ._core import layout
from ._descriptors import is_open

if TYPE_CHECKING:
    from ._core.table import TimerTable

SIGNAL_VARIABLE = "AIOTIMER_DUMP_SIGNAL"
"""0: no signal; a number: this one. Otherwise one that is free is taken."""

_CANDIDATES = (*range(50, 60), *range(49, 37, -1))
"""Real-time signals that are nobody's by custom: the C library has 32 and 33, others begin at either end."""

_OUT_OF_THE_WAY = 64
"""The lowest number for our descriptor, if there may be such: low ones are for the program."""

_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_PR_SET_PTRACER = 0x59616D61
_UCRED = struct.Struct("=iII")


def _read_yama() -> bool:
    try:
        with open(_YAMA) as file:
            return file.read().strip() == "1"
    except OSError:
        return False  # this kernel has no Yama


_yama_forbids = _read_yama()
_lock = allocate_lock()
_idle: list[int] = []  # signals that are ours, and write to /dev/null
_null = -1


class Dumps:
    """The stacks of this process, for one table. Whatever goes wrong, there are none; nothing is raised.

    Args:
        descriptor: of the table's file.
        table: the table.
    """

    def __init__(self, descriptor: int, table: TimerTable) -> None:
        self._signal = 0
        self._file = -1
        self._inode = 0
        self._table = table
        with contextlib.suppress(OSError, ValueError, RuntimeError), _lock:
            signum = _idle.pop() if _idle else _free_signal()
            if not signum:
                return
            self._file = _open_anew(descriptor)
            self._inode = os.fstat(self._file).st_ino
            faulthandler.register(signum, file=self._file, all_threads=True, chain=False)
            self._signal = signum
            table.cells[layout.DUMP_FILE] = float(self._file)
            table.cells[layout.DUMP_SIGNAL] = float(signum)

    def end(self) -> None:
        """Nobody is to have the stacks any more: this process lets go of its table, or is a forked child."""
        global _null
        if not self._signal:
            return
        self._table.cells[layout.DUMP_SIGNAL] = 0.0  # in a forked child that is scratch
        with contextlib.suppress(OSError, ValueError, RuntimeError), _lock:
            if not is_open(_null, _null_inode()):
                _null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            faulthandler.register(self._signal, file=_null, all_threads=True, chain=False)
            _idle.append(self._signal)
            self._signal = 0
            if is_open(self._file, self._inode):
                os.close(self._file)


def permit_tracing(connection: socket.socket) -> None:
    """Let the server look into this process with ptrace, where Yama forbids it to all but ancestors."""
    if not _yama_forbids:
        return
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _UCRED.unpack(credentials)[0], 0, 0, 0)
    except OSError:
        return


def _open_anew(descriptor: int) -> int:
    """Open a file again, to write at its end: behind the table."""
    file = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # no more than 64 descriptors are allowed
        high = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
        os.close(file)
        file = high
    return file


def _free_signal() -> int:
    """Return a signal that nobody uses, 0 if there is none or none is wanted."""
    wish = os.environ.get(SIGNAL_VARIABLE)
    if wish is not None:
        number = int(wish)
        return number if 0 < number < signal.NSIG and not _is_used(number) else 0
    return next((number for number in _CANDIDATES if not _is_used(number)), 0)


def _is_used(signum: int) -> bool:
    """Whether a signal is handled, by Python or by anybody, or ignored, blocked or pending."""
    if signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()) or signum in signal.sigpending():
        return True
    action = ctypes.create_string_buffer(512)  # struct sigaction begins with the handler; SIG_DFL is 0
    failed = ctypes.CDLL(None).sigaction(signum, None, action)
    return bool(failed) or any(action.raw[: ctypes.sizeof(ctypes.c_void_p)])


def _null_inode() -> int:
    try:
        return os.stat(os.devnull).st_ino
    except OSError:
        return 0


def _after_fork_in_child() -> None:
    global _lock
    _lock = allocate_lock()  # another thread of the parent's may have held the old one


os.register_at_fork(after_in_child=_after_fork_in_child)
