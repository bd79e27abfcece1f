"""``time.sleep`` in a coroutine: the loop stands still."""

import asyncio
import time

from aiotimer import expires


async def retry() -> None:
    time.sleep(1000)  # here


async def main() -> None:
    async with expires(after=1):
        await retry()


asyncio.run(main())
