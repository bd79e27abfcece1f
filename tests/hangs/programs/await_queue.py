"""A queue that nobody fills."""

import asyncio

from aiotimer import expires


async def collect(batches: asyncio.Queue[int]) -> int:
    return sum([await batches.get() for _ in range(3)])  # here


async def main() -> None:
    batches: asyncio.Queue[int] = asyncio.Queue()
    batches.put_nowait(1)
    async with expires(after=1, scope="collect"):
        await collect(batches)


asyncio.run(main())
