"""A thread that a coroutine waits for, and that waits for data."""

import asyncio
import socket

from aiotimer import expires

shards, _server = socket.socketpair()


def read_shard() -> bytes:
    return shards.recv(100)  # here


async def main() -> None:
    async with expires(after=1):
        await asyncio.to_thread(read_shard)


asyncio.run(main())
