"""Spare signals: real-time signals that nobody in this process uses, and what two of them are taken for.

The laws of this file: taken is only what nobody catches, ignores, blocks or has pending; and it stays taken.
The server may be about to send it, and left to itself it would kill.

One of them has pid 1 exit. The kernel lets nobody in a pid namespace kill its pid 1, not even with SIGKILL
(pid_namespaces(7)); a container whose program is pid 1 would hang for ever. But a signal that it handles it
gets, and the handler need not be Python's: here it is the C library's ``_exit``, which needs neither the GIL
nor an interpreter that can run. It is called with the signal's number, which becomes the exit status.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable

from .._linux.process import PID_1


def spare_signal(wanted: int = 0) -> int:
    """Return a signal that nobody uses, 0 if there is none.

    Args:
        wanted: this one or none; 0: any.
    """
    candidates: Iterable[int]
    if wanted:
        candidates = [wanted] if signal.SIGRTMIN < wanted < signal.SIGRTMAX else []
    else:
        middle = (signal.SIGRTMIN + signal.SIGRTMAX) // 2
        usual = range(signal.SIGRTMIN + 3, signal.SIGRTMAX - 2)
        candidates = sorted(usual, key=lambda number: abs(number - middle))
    return next((number for number in candidates if not _is_used(number)), 0)


def _is_used(number: int) -> bool:
    """Whether a signal is handled, by Python or by anybody, or ignored; or blocked or pending here."""
    if number in signal.pthread_sigmask(signal.SIG_BLOCK, ()) or number in signal.sigpending():
        return True
    action = ctypes.create_string_buffer(512)  # a struct sigaction begins with the handler; SIG_DFL is 0
    failed = ctypes.CDLL(None).sigaction(number, None, action)
    return bool(failed) or any(action.raw[: ctypes.sizeof(ctypes.c_void_p)])


class ExitSignal:
    """The signal at which a process exits whatever it is doing.

    Attributes:
        told: this process has been told that it has none.
    """

    def __init__(self) -> None:
        self._number = 0
        self.told = False

    def take(self) -> int:
        """Return its number, 0 if there is none: this process is not pid 1, or there is no spare signal."""
        if os.getpid() != PID_1:
            return 0
        if not self._number:
            number = spare_signal()
            if number and _exit_at(number):
                self._number = number
        return self._number


def _exit_at(number: int) -> bool:
    """Have this process exit at a signal; return whether it was nobody's."""
    libc = ctypes.CDLL(None)
    handle = libc.signal
    handle.restype = ctypes.c_void_p
    handle.argtypes = [ctypes.c_int, ctypes.c_void_p]
    former = handle(number, ctypes.cast(libc._exit, ctypes.c_void_p))
    return former is None  # SIG_DFL, a null pointer


exit_signal = ExitSignal()
