"""A group of a hundred tasks, of which most wait for one lock that is never released."""

import asyncio

from aiotimer import expires


async def rollout(number: int, lock: asyncio.Lock) -> None:
    if number >= 30:
        await lock.acquire()  # here


async def main() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    async with expires(after=1), asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(rollout(number, lock), name=f"rollout-{number}")


asyncio.run(main())
