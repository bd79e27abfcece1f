"""Environment variables: what a process and its server are told by whoever started them."""

from __future__ import annotations

import os

SOCKET_VARIABLE = "AIOTIMER_SOCKET"
"""The path of the socket of the server that watches this process and those that it starts."""

OBSERVE_VARIABLE = "AIOTIMER_OBSERVE"
"""1: nobody is signalled for this process's timers; their expiry is recorded."""


def observes() -> bool:
    """Whether the environment says that nobody is to be signalled for this process's timers."""
    return os.environ.get(OBSERVE_VARIABLE) == "1"
