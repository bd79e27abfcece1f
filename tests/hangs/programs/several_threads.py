"""Three threads that a coroutine waits for, and that wait for data."""

import asyncio
import socket
import threading

from aiotimer import expires

shards, _server = socket.socketpair()
reads = threading.Semaphore(0)


def read_shard() -> bytes:
    reads.release()
    return shards.recv(100)  # here


async def main() -> None:
    tasks = [asyncio.create_task(asyncio.to_thread(read_shard), name=f"shard-{n}") for n in range(3)]
    await asyncio.sleep(0)
    for _ in tasks:
        reads.acquire()
    async with expires(after=1):
        await asyncio.gather(*tasks)


asyncio.run(main())
