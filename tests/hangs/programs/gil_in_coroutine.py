"""A call into C that does not give the GIL back, in a coroutine."""

import asyncio
import ctypes

from aiotimer import expires


async def infer() -> None:
    ctypes.PyDLL(None).sleep(1000)  # here


async def main() -> None:
    async with expires(after=1):
        await infer()


asyncio.run(main())
