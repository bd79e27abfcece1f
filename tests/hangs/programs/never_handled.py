"""A handler of SIGTERM that is never called, because C code waits."""

import ctypes
import signal

from aiotimer import expires

libc = ctypes.CDLL(None)
lock = bytes(64)


def save(*_: object) -> None:
    raise SystemExit


def synchronise() -> None:
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # here


signal.signal(signal.SIGTERM, save)
with expires(after=1):
    synchronise()
