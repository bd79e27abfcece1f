"""A list of where this process's interpreter has its libraries: what lies elsewhere is the user's own code.

The laws of this file: nothing is imported for it, which would take longer than connecting does; no more is
said than a HELLO has room for; and whatever the program has done to ``sys.path``, nothing is raised.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

MOST, LONGEST = 24, 250
"""Paths that are said, and the bytes of each: 6 KiB of a frame of 64."""

_PACKAGES = "site-packages", "dist-packages"

_FROZEN = ("asyncio/", "concurrent/", "multiprocessing/", "queue.py", "selectors.py", "socket.py", "ssl.py",
           "subprocess.py", "threading.py")  # fmt: skip
"""Of the standard library, what threads wait in: a frozen program (PyInstaller) has no directories."""


def library_paths(path: Sequence[str] | None = None, *, frozen: bool | None = None) -> tuple[str, ...]:
    """Return how the paths of this interpreter's libraries begin, and of this package's files.

    They are those of its ``sysconfig``, without the milliseconds that it takes; and directories of packages
    that are on ``sys.path`` as well. Nothing of an editable install is in them, which is the user's own.

    Args:
        path: ``sys.path`` if it is not given.
        frozen: whether the program is; ``sys.frozen`` if it is not given.
    """
    try:
        beginnings = [f"{one}/" for one in _directories(sys.path if path is None else path) if len(one) > 1]
        if getattr(sys, "frozen", False) if frozen is None else frozen:
            beginnings += ["aiotimer/", *_FROZEN]
        return tuple(one for one in dict.fromkeys(beginnings) if len(one.encode()) <= LONGEST)[:MOST]
    except Exception:  # noqa: BLE001 - sys.path and site are the program's; paths may be no UTF-8
        return ()


def _directories(path: Sequence[str]) -> list[str]:
    found = [os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(__file__))]
    site = sys.modules.get("site")  # unless it was started with -S
    if site is not None:
        found += [*site.getsitepackages(), site.USER_SITE or ""]
    zipped = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    return found + [one for one in list(path) if os.path.basename(one) in (*_PACKAGES, zipped)]
