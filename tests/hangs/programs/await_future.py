"""A future that nobody sets."""

import asyncio

from aiotimer import expires


async def answer(futures: dict[int, asyncio.Future[str]]) -> str:
    future = futures[1] = asyncio.get_running_loop().create_future()
    return await future  # here


async def main() -> None:
    async with expires(after=1):
        await answer({})


asyncio.run(main())
