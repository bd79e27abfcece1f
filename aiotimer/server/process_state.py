"""A reader of process states: why one that was sent SIGKILL is still there, why another cannot run.

The laws of this file: only what ``/proc`` and the cgroup file systems show is said; reads that may block are
made in a thread of their own, which nobody waits for longer than a second, not even the interpreter's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

_PATIENCE = 1.0
"""Seconds after which /proc itself counts as stuck."""

_ROOTS_V1 = ("/sys/fs/cgroup/freezer",)
_ROOTS_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


async def classified(pid: int) -> str:
    """Return why a process does not die, in words. Takes a second at most."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    threading.Thread(target=_answer, args=(loop, answer, pid), name="aiotimer looks", daemon=True).start()
    done, _ = await asyncio.wait({answer}, timeout=_PATIENCE)
    return answer.result() if done else "/proc does not answer either"


def _answer(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[str], pid: int) -> None:
    try:
        text = classify(pid)
    except OSError as error:
        text = f"its state is not shown: {error.strerror}"
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        loop.call_soon_threadsafe(_set, answer, text)


def _set(answer: asyncio.Future[str], text: str) -> None:
    if not answer.done():
        answer.set_result(text)


def classify(pid: int) -> str:
    """Return why a process does not die, in words. May block.

    Raises:
        OSError: it is not shown, or gone.
    """
    status = _status(f"/proc/{pid}")
    if group := _frozen(pid):
        return f"it is frozen, with its cgroup {group}"
    threads = [_status(str(thread)) for thread in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        if thread["State"].startswith("D"):
            where = _text(f"/proc/{pid}/task/{thread['Pid']}/wchan")
            return f"it is in uninterruptible sleep (D) in {where.strip() or 'an unknown place'}"
    if "NSpid" in status and status["NSpid"].split()[1:] and status["NSpid"].split()[-1] == "1":
        return "it is pid 1 of its pid namespace, and ends when everybody in there has ended"
    if status["State"].startswith("Z") and len(threads) <= 1:
        return f"it is dead, a zombie that its parent {status['PPid']} does not wait for"
    return f"its state is {status['State']}"


def why_stopped(pid: int) -> str:
    """Return why a process cannot run, "" if it can: it is stopped, or somebody traces it."""
    try:
        status = _status(f"/proc/{pid}")
    except OSError:
        return ""
    if status["TracerPid"] != "0":
        return f"process {status['TracerPid']} debugs it"
    return "it is stopped" if status["State"].startswith("T") else ""


def _frozen(pid: int) -> str:
    """Return the cgroup with which a process is frozen, "" if it is not."""
    for line in _text(f"/proc/{pid}/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            if any(_text(f"{root}{path}/freezer.state").strip() in _ICE for root in _ROOTS_V1):
                return path
        elif number == "0" and any("frozen 1" in _text(f"{root}{path}/cgroup.events") for root in _ROOTS_V2):
            return path
    return ""


_ICE = ("FROZEN", "FREEZING")


def _status(directory: str) -> dict[str, str]:
    with open(f"{directory}/status", errors="backslashreplace") as file:
        fields = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in fields}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="backslashreplace")
    except OSError:
        return ""
