"""With whose rights a server that runs as root acts.

The laws of this file:

* A signal to another user's process is sent with that user's rights, so that the kernel refuses what the user
  could not have done: a set-uid program started meanwhile is not killed by proxy.
* That is done in a thread which gives up every other right for good, and ends. In Linux rights are a
  thread's, and the C library's ``setresuid`` would change all threads': hence the bare system call.
* ``aiotimer serve`` gives up the capabilities that it does not need before it does anything else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import threading

_CAP_KILL, _CAP_SETUID, _CAP_SYS_PTRACE = 5, 7, 19  # include/uapi/linux/capability.h

CAPABILITIES = (
    _CAP_KILL,  # a worker of root's may have changed to another uid since
    _CAP_SETUID,  # signals with another user's rights
    _CAP_SYS_PTRACE,  # /proc/PID/maps and the addresses in /proc/PID/stat of such a worker: has it executed?
)
"""What a server of root's keeps. Its files, its socket and their directories are root's own."""

_SETRESUID = {"x86_64": 117, "aarch64": 147, "riscv64": 147}
"""The number of that system call, by machine (64-bit)."""

_CAPABILITY_VERSION_3 = 0x20080522
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 3, 4, 24

_libc = ctypes.CDLL(None, use_errno=True)


def send_signal_as(uid: int, pidfd: int, signum: int, flags: int = 0) -> None:
    """Send a signal to a pinned process with the rights of a user.

    Raises:
        ProcessLookupError: it is dead.
        PermissionError: that user may not signal it, or this process may not become that user.
        BlockingIOError: there is no memory for a thread.
    """
    failures: list[OSError] = []

    def send() -> None:
        try:
            _become(uid)
            signal.pidfd_send_signal(pidfd, signum, None, flags)
        except OSError as error:
            failures.append(error)

    dumpable = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    thread = threading.Thread(target=send, name=f"aiotimer as uid {uid}")
    try:
        thread.start()
    except RuntimeError as error:
        raise BlockingIOError(errno.EAGAIN, str(error)) from None
    thread.join()
    if dumpable == 1:  # a change of uid has ended that, for the whole process
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    if failures:
        raise failures[0]


def drop_capabilities() -> None:
    """Keep :data:`CAPABILITIES`, as far as this process has them, and no way to get others back by an exec.

    To be called before there are other threads: capabilities are a thread's. Does nothing unless root.
    """
    if os.geteuid() != 0:
        return
    number = 0
    # Until the kernel does not know the number, or does not let us (without CAP_SETPCAP).
    while number in CAPABILITIES or _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    head = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)  # low words of effective, permitted, inheritable; high ones
    if _libc.capget(head, sets) == 0:
        mask = sum(1 << capability for capability in CAPABILITIES)
        effective, permitted = struct.unpack_from("=2I", sets.raw)
        _libc.capset(head, struct.pack("=6I", effective & mask, permitted & mask, 0, 0, 0, 0))


def _become(uid: int) -> None:
    """Let this thread be a user as a sender of signals, for good.

    The kernel compares the sender's real and effective uid with the receiver's real and saved one. The
    effective one alone is the user's: with the others, which are nobody's, this thread can neither signal
    anybody else nor be signalled by the user, whose SIGKILL would be for the whole process.

    Raises:
        PermissionError: it cannot.
    """
    number = _SETRESUID.get(platform.machine()) if sys.maxsize > 2**32 else None
    nobody = _last_uid()
    if number is None or nobody in (0, uid):
        raise PermissionError(errno.EPERM, "cannot act with another user's rights here")
    if _libc.syscall(number, nobody, uid, nobody) != 0:
        raise PermissionError(errno.EPERM, f"cannot act as uid {uid}: {os.strerror(ctypes.get_errno())}")


def _last_uid() -> int:
    """Return the highest uid of this user namespace, which by convention nobody has."""
    with open("/proc/self/uid_map") as file:
        ranges = [line.split() for line in file]
    return max(int(first) + int(count) - 1 for first, _outside, count in ranges)
