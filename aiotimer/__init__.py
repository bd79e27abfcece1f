"""A watchdog for Python workers: reap a process that does not leave a block of code in time.

``expires`` puts a countdown around a block; another process, the timer server, reaps this one if the block
is not left. ``configure`` chooses the server. ``TimerServer`` is the server, to embed; ``TimerClient`` and
``AsyncTimerClient`` arm and release named timers by hand.

The law of this file: every name is imported when it is first used, and then stands here like any other. So a
command that needs none of them starts as quickly as Python does, and no worker pays for the server.

PYTEST_DONT_REWRITE: pytest rewrites the asserts of packages that have a plugin, and does not warn that this
one has been imported before.
"""

from ._version import __version__
from .errors import AiotimerError, NotConfigured, Refused, ServerUnavailable, TableFull

TYPE_CHECKING = False  # type checkers know the name; `typing` itself takes as long to import as all of this
if TYPE_CHECKING:
    from ._core.requests import TimerRequest, WorkerId
    from .client.block import Block
    from .client.clients import AsyncTimerClient, TimerClient
    from .client.configure import configure
    from .client.expires import expires
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

_LAZY = {
    "AsyncTimerClient": "client.clients",
    "Block": "client.block",
    "RequestQueue": "queue",
    "TimerClient": "client.clients",
    "TimerRequest": "_core.requests",
    "TimerServer": "server.server",
    "WorkerId": "_core.requests",
    "configure": "client.configure",
    "expires": "client.expires",
}


def __getattr__(name: str) -> object:
    """Import a name on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    """List what has not been imported yet, too."""
    return sorted({*globals(), *__all__})
