"""A health check of a server, which is what ``aiotimer ping`` does.

The law of this file: it imports nothing that a ping does not need.
"""

from __future__ import annotations

from .._core.layout import LATE
from ..client import control
from .common import EX_UNAVAILABLE, Failed, resolve_socket, say


def ping(socket_path: str | None = None) -> None:
    """Say that a server answers and looks on time.

    Raises:
        Failed: it does not look on time.
        AiotimerError: it does not answer.
    """
    path = resolve_socket(socket_path)
    pong = control.ping(path)
    late = f"its heartbeat was at most {pong.lag_s * 1000:.0f} ms late in the last minute"
    if pong.lag_s > LATE:
        raise Failed(f"the timer server at {path} is alive but slow: {late}", EX_UNAVAILABLE)
    say(f"the timer server at {path} (pid {pong.pid}) is fine: {late}")
