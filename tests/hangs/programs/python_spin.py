"""A loop in Python that never ends."""

import asyncio

from aiotimer import expires


def converge(error: float) -> float:
    while error > 0:  # here
        error = abs(error) or 1.0  # here
    return error


async def main() -> None:
    async with expires(after=0.3):
        converge(1.0)


asyncio.run(main())
