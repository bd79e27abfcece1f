"""A task that another one waits for."""

import asyncio

from aiotimer import expires


async def fetch(reply: asyncio.Future[str]) -> str:
    return await reply  # here


async def main() -> None:
    async with expires(after=1):
        task = asyncio.create_task(fetch(asyncio.get_running_loop().create_future()), name="fetch")
        await task


asyncio.run(main())
