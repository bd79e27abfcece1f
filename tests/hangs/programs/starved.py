"""Three thousand tasks that are busy, and one that waits for what nobody sets."""

import asyncio

from aiotimer import expires

over = asyncio.Event()


async def answer(lost: asyncio.Future[None]) -> None:
    await lost  # here


async def rollout() -> None:
    while not over.is_set():
        sum(range(200))
        await asyncio.sleep(0)


async def main() -> None:
    rollouts = [asyncio.create_task(rollout()) for _ in range(3000)]
    async with expires(after=0.5):
        await answer(asyncio.get_running_loop().create_future())
    await asyncio.gather(*rollouts)


asyncio.run(main())
