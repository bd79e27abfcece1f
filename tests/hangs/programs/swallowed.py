"""A rollout that swallows its cancellation."""

import asyncio

from aiotimer import expires


async def rollout() -> None:
    while True:
        try:
            await asyncio.sleep(1000)  # here
        except asyncio.CancelledError:
            pass


async def main() -> None:
    async with expires(after=0.3, grace=0.7):
        await rollout()


asyncio.run(main())
