"""A process of a pool that a coroutine waits for."""

import asyncio
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from aiotimer import expires


def grade() -> None:
    time.sleep(1000)


async def main() -> None:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    async with expires(after=1):
        await asyncio.get_running_loop().run_in_executor(pool, grade)  # here


asyncio.run(main())
