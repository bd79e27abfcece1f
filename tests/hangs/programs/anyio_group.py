"""A task group of anyio's, one task of which never ends."""

import anyio

from aiotimer import expires


async def rollout(number: int, done: anyio.Event) -> None:
    if number == 1:
        await done.wait()  # here


async def main() -> None:
    async with expires(after=1), anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(rollout, number, anyio.Event(), name=f"rollout-{number}")


anyio.run(main)
