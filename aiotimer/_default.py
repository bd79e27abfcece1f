"""The default client: the one that blocks use which name none.

The law of this file: it is looked up when a block is made or entered, never kept by one.
"""

from __future__ import annotations

import os

from ._client import SOCKET_VARIABLE, BaseClient
from .errors import NotConfigured


class Default:
    """The place where the default client stands."""

    __slots__ = ("client",)

    client: BaseClient | None

    def __init__(self) -> None:
        self.client = None


default = Default()


def default_client() -> BaseClient | None:
    """Return the default client; the first time, make one for ``$AIOTIMER_SOCKET`` if that is set."""
    if default.client is None and os.environ.get(SOCKET_VARIABLE):
        from .sync import TimerClient

        client = TimerClient()
        if default.client is None:
            default.client = client  # CPython runs no other thread, and no handler, between these two lines
        else:  # one of those has been quicker
            client.close()
    return default.client


def configured() -> BaseClient:
    """Return the default client.

    Raises:
        NotConfigured: there is none.
    """
    client = default_client()
    if client is None:
        raise NotConfigured
    return client
