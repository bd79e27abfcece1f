"""A job that is asked for again and again, and is never done."""

import asyncio

from aiotimer import expires


async def status() -> str:
    return "pending"


async def main() -> None:
    async with expires(after=1):
        while True:
            if await status() == "done":
                break
            await asyncio.sleep(0.3)  # here


asyncio.run(main())
