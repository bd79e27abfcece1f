"""Sixteen tasks, of which one never ends."""

import asyncio

from aiotimer import expires


async def rollout(number: int, lost: asyncio.Future[None]) -> None:
    if number == 11:
        await lost  # here


async def main() -> None:
    lost = asyncio.get_running_loop().create_future()
    async with expires(after=1):
        tasks = [asyncio.create_task(rollout(n, lost), name=f"rollout-{n}") for n in range(16)]
        await asyncio.gather(*tasks)


asyncio.run(main())
