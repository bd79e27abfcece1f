"""The functions that all commands share: how they fail, what they print, and which server they are about.

The law of this file: it imports nothing that a quick command does not need anyway.
"""

from __future__ import annotations

import os
import sys

from .._linux.environment import SOCKET_VARIABLE, check_socket_path

EX_UNAVAILABLE = 69


class Failed(Exception):
    """A command has failed: what is to be said of it, and the exit status."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def resolve_socket(socket_path: str | None) -> str:
    """Return the socket that a command is about."""
    path = socket_path or os.environ.get(SOCKET_VARIABLE)
    if not path:
        from .._linux.paths import default_socket

        path = default_socket()
    return check_socket_path(path)


def say(line: str, end: str = "\n") -> None:
    """Print a line of the result."""
    sys.stdout.write(line + end)
    sys.stdout.flush()
