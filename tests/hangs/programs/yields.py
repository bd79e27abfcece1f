"""A coroutine that lets others run until something has been done, which nobody does."""

import asyncio

from aiotimer import expires

done = False


async def until_done() -> None:
    while not done:  # noqa: ASYNC110 - as users do
        await asyncio.sleep(0)  # here


async def main() -> None:
    async with expires(after=0.3):
        await until_done()


asyncio.run(main())
