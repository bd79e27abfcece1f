"""A request that is cancelled, and blocks while it cleans up."""

import asyncio
import time

from aiotimer import expires


async def request() -> None:
    try:
        await asyncio.sleep(1000)
    finally:
        time.sleep(1000)  # here


async def main() -> None:
    async with expires(after=0.3, grace=0.7):
        await request()


asyncio.run(main())
