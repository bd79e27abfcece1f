"""What a server says when it starts, and when it does not."""

import logging
from typing import Any

import pytest

from aiotimer.cli.serve import NO_PRIORITY, serve_until_told
from aiotimer.errors import UnsafePath


class Place:
    """A server that starts if its place is safe, and ends at once."""

    socket_path = "/run/s"

    def __init__(self, *, safe: bool) -> None:
        self._safe = safe

    async def __aenter__(self) -> None:
        if not self._safe:
            raise UnsafePath("no place for a server")

    async def __aexit__(self, *_raised: object) -> None:
        pass

    async def serve_forever(self) -> None:
        pass


async def test_that_it_has_no_priority_is_said_by_a_server_that_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    server: Any = Place(safe=False)
    with pytest.raises(UnsafePath):
        await serve_until_told(server, "asyncio", None, NO_PRIORITY, quiet=False)
    assert not caplog.records, "an error is one line"
    server = Place(safe=True)
    await serve_until_told(server, "asyncio", None, NO_PRIORITY, quiet=True)
    assert not caplog.records
    await serve_until_told(server, "asyncio", None, NO_PRIORITY, quiet=False)
    assert [record.message for record in caplog.records] == [NO_PRIORITY]
