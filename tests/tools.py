"""The ``aiotimer`` command, for suites that start it."""

from __future__ import annotations

import os
import sys

AIOTIMER = [sys.executable, "-m", "aiotimer"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a server, plus what is given."""
    return {k: v for k, v in os.environ.items() if k != "AIOTIMER_SOCKET"} | more
