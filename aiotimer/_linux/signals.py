"""A sender of signals to the worker alone, to its process group, to its cgroup, or to one thread of it.

The laws of this file:

* The worker itself is always asked for through its pidfd, and first: what the kernel says to that counts.
* A group or a cgroup is signalled only if it surely is the worker's, and the server is not in it. In all
  other cases the worker alone is, and the reason is returned.
* All of it goes out with the server's own rights, which are those of the user whose worker it is.
"""

from __future__ import annotations

import contextlib
import os

from .._core.ladder import KILL
from .process import is_dead, send_signal
from .procfs import cgroup_of, tids_of

PIDFD_SIGNAL_PROCESS_GROUP = 4
"""Linux >= 6.9 (include/uapi/linux/pidfd.h)."""

PIDFD_THREAD = os.O_EXCL
"""Linux >= 6.9: a pidfd of one thread, to which a signal then goes."""

CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
"""Where cgroup version 2 is mounted: alone, or beside version 1."""


def signal_group(pid: int, pidfd: int, number: int) -> str:
    """Signal the process group of a worker.

    Returns:
        Why it was not, "" if it was.

    Raises:
        OSError: the kernel says no.
    """
    try:
        group = os.getpgid(pid)
        if group == os.getpgrp():
            return "the server is in its process group"
        leader = pidfd if group == pid else os.pidfd_open(group)
    except OSError:
        return "its process group has no leader to reach it by"
    try:
        # While the worker lives its group cannot become another one; and the leader is pinned by now.
        if os.getpgid(pid) != group or is_dead(pidfd):
            return "it has just changed its process group"
        send_signal(leader, number, PIDFD_SIGNAL_PROCESS_GROUP)
    except ProcessLookupError:
        return "it is gone"
    except OSError as error:
        return f"its process group cannot be signalled: {error.strerror}"
    finally:
        if leader != pidfd:
            os.close(leader)
    return ""


def pin_thread(pid: int, pidfd: int, tid: int) -> int:
    """Return a pidfd of one thread of a pinned process, which the caller closes.

    Raises:
        ProcessLookupError: there is no such thread of it (any more).
        OSError: this kernel pins no threads (EINVAL).
    """
    thread = os.pidfd_open(tid, PIDFD_THREAD)
    try:
        # Pinned, it is still there, or the number is gone; and so is the process, or all of its numbers are.
        if tid not in tids_of(pid) or is_dead(thread) or is_dead(pidfd):
            raise ProcessLookupError(f"process {pid} has no thread {tid}")
    except BaseException:
        os.close(thread)
        raise
    return thread


def open_cgroup(pid: int, pidfd: int) -> int | str:
    """Open the ``cgroup.kill`` of a worker's cgroup, while it lives.

    Returns:
        A descriptor that the caller closes, or why there is none.
    """
    try:
        path, own = cgroup_of(pid), cgroup_of("self")
    except OSError as error:
        return f"its cgroup is not shown: {error.strerror}"
    if path is None or path == "/":
        return "it is in no cgroup of its own"
    if own is None or f"{own}/".startswith(f"{path.rstrip('/')}/"):
        return "the server is in its cgroup"
    for root in CGROUP_ROOTS:
        with contextlib.suppress(FileNotFoundError):
            try:
                descriptor = os.open(f"{root}{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
            except PermissionError:
                return "its cgroup is not delegated to this server"
            if is_dead(pidfd):  # then what was read may be another process's
                os.close(descriptor)
                return "it is gone"
            return descriptor
    return "its cgroup has no cgroup.kill (Linux >= 5.14)"


def signal_target(target: str, pid: int, pidfd: int, number: int) -> str:
    """Signal a worker, and those that go with it.

    Args:
        target: ``process``, ``group`` or ``cgroup``; of a ``tree`` it is the worker, see ``server/tree``.
        pid: the worker's.
        pidfd: the worker, pinned and alive.
        number: the signal.

    Returns:
        Why only the worker was, "" if what was wanted was done.

    Raises:
        OSError: the worker cannot be signalled.
    """
    others: int | str = ""
    if target == "group":
        send_signal(pidfd, 0)
        others = signal_group(pid, pidfd, number)
        if not others:
            return ""
    elif target == "cgroup" and number == KILL:
        others = open_cgroup(pid, pidfd)
    try:
        send_signal(pidfd, number)
        if isinstance(others, str):
            return others
        os.write(others, b"1")
    finally:
        if isinstance(others, int):
            os.close(others)
    return ""
