"""A call with a limit of its own, which is longer."""

import asyncio

from aiotimer import expires


async def answer(replies: asyncio.Queue[str]) -> str:
    return await replies.get()  # here


async def main() -> None:
    async with expires(after=1):
        await asyncio.wait_for(answer(asyncio.Queue()), timeout=60)


asyncio.run(main())
