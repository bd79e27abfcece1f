"""The environment of a process: the variables by which it finds its server, and what a socket's path must be.

The law of this file: it imports nothing but the errors, so that a command which asks one question of a
server does not load the files and tables of one (see ``paths.py``).
"""

from __future__ import annotations

import os

from ..errors import UnsafePath

SOCKET_VARIABLE = "AIOTIMER_SOCKET"
"""The path of the socket of the server that watches this process and those that it starts."""

STARTING_VARIABLE = "AIOTIMER_STARTING"
"""Set by ``aiotimer run`` for its command, see ``client/launch``."""

MAX_SOCKET_PATH = 107
"""Bytes in ``sockaddr_un.sun_path`` less the final NUL (unix(7))."""

OBSERVE_VARIABLE = "AIOTIMER_OBSERVE"
"""1: nobody is signalled for this process's timers; their expiry is recorded."""


def observes() -> bool:
    """Whether the environment says that nobody is to be signalled for this process's timers."""
    return os.environ.get(OBSERVE_VARIABLE) == "1"


def check_socket_path(path: str) -> str:
    """Return an absolute socket path that fits into a socket address.

    Raises:
        UnsafePath: it is too long, or empty.
    """
    if not path:
        raise UnsafePath("the socket path is empty")
    absolute = os.path.abspath(path)
    size = len(os.fsencode(absolute))
    if size > MAX_SOCKET_PATH:
        raise UnsafePath(
            f"the socket path is {size} bytes long, and the kernel takes {MAX_SOCKET_PATH}: {absolute}"
        )
    return absolute
