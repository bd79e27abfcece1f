"""A group of three tasks, of which one never ends."""

import asyncio

from aiotimer import expires


async def rollout(number: int, lost: asyncio.Future[None]) -> None:
    if number == 1:
        await lost  # here


async def main() -> None:
    lost = asyncio.get_running_loop().create_future()
    async with expires(after=1), asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(rollout(number, lost), name=f"rollout-{number}")


asyncio.run(main())
