"""``time.sleep`` in a coroutine: nobody can cancel its task, whatever its block says."""

import asyncio
import time

from aiotimer import expires


async def retry() -> None:
    time.sleep(1000)  # here


async def main() -> None:
    async with expires(after=0.3, grace=0.7):
        await retry()


asyncio.run(main())
