"""A classifier of process states: why one that was sent SIGKILL is still there, why another cannot run.

The law of this file: only what ``/proc`` and the cgroup file systems show is said. Reading them may block for
ever: :func:`classified` has it done in a thread, for which nobody waits longer than a second.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .._linux import procfs
from ..evidence.threads import TooManyStuck, in_thread

_PATIENCE = 1.0
"""Seconds after which /proc itself counts as stuck."""

_ROOTS_V1 = ("/sys/fs/cgroup/freezer",)
_ROOTS_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


async def classified(pid: int) -> str:
    """Return why a process does not die, in words. Takes a second at most."""
    try:
        return await in_thread(partial(classify, pid), _PATIENCE, give_up=lambda: None)
    except (TimeoutError, TooManyStuck):
        return "/proc does not answer either"
    except OSError as error:
        return f"its state is not shown: {error.strerror or error}"


def classify(pid: int) -> str:
    """Return why a process does not die, in words. May block.

    Raises:
        OSError: it is not shown, or gone.
    """
    status = procfs.status(pid)
    if group := _frozen(pid):
        return f"it is frozen, with its cgroup {group}"
    threads = [procfs.status(pid, tid) for tid in procfs.tids_of(pid)]
    for thread in threads:
        if thread["State"].startswith("D"):
            where = procfs.wchan(pid, int(thread["Pid"]))
            return f"it is in uninterruptible sleep (D) in {where or 'an unknown place'}"
    if "NSpid" in status and status["NSpid"].split()[1:] and status["NSpid"].split()[-1] == "1":
        return "it is pid 1 of its pid namespace, and ends when everybody in there has ended"
    if status["State"].startswith("Z") and len(threads) <= 1:
        return f"it is dead, a zombie that its parent {status['PPid']} does not wait for"
    return f"its state is {status['State']}"


def why_stopped(pid: int) -> str:
    """Return why a process cannot run, "" if it can: it is stopped, or somebody traces it."""
    try:
        status = procfs.status(pid)
    except OSError:
        return ""
    if status["TracerPid"] != "0":
        return f"process {status['TracerPid']} debugs it"
    return "it is stopped" if status["State"].startswith("T") else ""


def _frozen(pid: int) -> str:
    """Return the cgroup with which a process is frozen, "" if it is not."""
    for number, controllers, path in procfs.cgroups_of(pid):
        if "freezer" in controllers.split(","):
            if any(_text(f"{root}{path}/freezer.state").strip() in _ICE for root in _ROOTS_V1):
                return procfs.escaped(path)
        elif number == "0" and any("frozen 1" in _text(f"{root}{path}/cgroup.events") for root in _ROOTS_V2):
            return procfs.escaped(path)
    return ""


_ICE = ("FROZEN", "FREEZING")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="backslashreplace")
    except OSError:
        return ""
