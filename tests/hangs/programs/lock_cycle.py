"""Two tasks, each of which waits for the other one's lock."""

import asyncio

from aiotimer import expires


async def both(first: asyncio.Lock, second: asyncio.Lock, met: asyncio.Barrier) -> None:
    async with first:
        await met.wait()
        async with second:  # here
            pass


async def main() -> None:
    weights, optimizer, met = asyncio.Lock(), asyncio.Lock(), asyncio.Barrier(2)
    other = asyncio.create_task(both(optimizer, weights, met), name="other")
    async with expires(after=1):
        await both(weights, optimizer, met)
    await other


asyncio.run(main())
