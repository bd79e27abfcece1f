"""A look at what a server requires of the kernel, before it starts: what is lacking is said by its name.

The law of this file: nothing here is found out by the first worker, or by the first hang.
"""

from __future__ import annotations

import contextlib
import os
import resource

from .._core.layout import TABLE_SIZE
from ..errors import ServerError
from .process import send_signal
from .procfs import check_proc


def check_requirements() -> None:
    """Check that workers can be found, pinned and signalled, and that a table can be made.

    Raises:
        ServerError: something is lacking.
    """
    check_proc()
    _check_pidfds()
    _check_file_size()


def _check_pidfds() -> None:
    """Pin this process, and send it the signal that is none."""
    call = "pidfd_open"
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            call = "pidfd_send_signal"
            send_signal(pidfd, 0)
        finally:
            os.close(pidfd)
    except OSError as error:
        raise ServerError(
            f"the kernel refuses {call}(2), by which a worker is signalled and never another process: "
            f"{error.strerror}. A seccomp filter does that, of an old container runtime, snap or gVisor: "
            "have it allow pidfd_open and pidfd_send_signal (Linux has both since 5.3)"
        ) from None


def _check_file_size() -> None:
    """Have files as large as this process may, and large enough for a table."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if _is_enough(soft):
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    soft, _hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not _is_enough(soft):
        raise ServerError(
            f"files may have {soft:,} bytes here (RLIMIT_FSIZE, `ulimit -f`), and a timer table has up to "
            f"{TABLE_SIZE:,}, of which only those take memory that are in use: raise the limit"
        )


def _is_enough(limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= TABLE_SIZE
