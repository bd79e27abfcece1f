"""A watchdog for Python workers: reap a process that does not leave a block of code in time.

``expires`` puts a countdown around a block; another process, the timer server, reaps this one if the block
is not left. ``configure`` chooses the server. ``TimerServer`` is the server, to embed; ``TimerClient`` and
``AsyncTimerClient`` arm and release named timers by hand.
"""

from typing import TYPE_CHECKING

from ._core.requests import TimerRequest, WorkerId
from ._version import __version__
from .client.block import Block
from .client.clients import AsyncTimerClient, TimerClient
from .client.configure import configure
from .client.expires import expires
from .errors import AiotimerError, NotConfigured, Refused, ServerUnavailable, TableFull

if TYPE_CHECKING:
    from .queue import RequestQueue
    from .server.server import TimerServer

__all__ = [
    "AiotimerError",
    "AsyncTimerClient",
    "Block",
    "NotConfigured",
    "Refused",
    "RequestQueue",
    "ServerUnavailable",
    "TableFull",
    "TimerClient",
    "TimerRequest",
    "TimerServer",
    "WorkerId",
    "__version__",
    "configure",
    "expires",
]

_LAZY = {"RequestQueue": "queue", "TimerServer": "server.server"}


def __getattr__(name: str) -> object:
    """Import on first use what a worker does not need, and what would cost it tens of milliseconds."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value
