"""The rights of a server's process: the capabilities it gives up, the descriptors and the priority it takes.

The laws of this file: a server serves its own user only, root's too, so it needs no right to act as anybody
else; ``aiotimer serve`` gives up the capabilities that it does not need before it does anything else, but to
raise its priority, for which it needs one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct

_CAP_KILL, _CAP_SYS_PTRACE = 5, 19  # include/uapi/linux/capability.h

CAPABILITIES = (
    _CAP_KILL,  # a worker of root's may have dropped its uid since: to kill(2) it is another user's
    _CAP_SYS_PTRACE,  # /proc/PID/maps and the addresses in /proc/PID/stat of such a worker: has it executed?
)
"""What a server of root's keeps. Its files, its socket and their directories are root's own."""

PRIORITY = -10
"""The nice value of a server that may have it."""

_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24

_libc = ctypes.CDLL(None, use_errno=True)


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


def raise_priority() -> bool:
    """Have the kernel prefer this process to those that it watches, which may take all of the processors.

    To be called before there are other threads, and before :func:`drop_capabilities`.

    Returns:
        Whether the kernel lets it: of root, of who has CAP_SYS_NICE, or a limit (RLIMIT_NICE) for that.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, min(PRIORITY, os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError:
        return False
    if os.getsid(0) == os.getpid():  # else it would be for everybody in the session; see sched(7), autogroup
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
            autogroup.write(str(PRIORITY))
    return True


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: each worker takes three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
