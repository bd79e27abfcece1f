"""An executor's thread that never comes back."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from aiotimer import expires


def grade() -> None:
    time.sleep(1000)  # here


async def main() -> None:
    with ThreadPoolExecutor(4) as pool:
        async with expires(after=1):
            await asyncio.get_running_loop().run_in_executor(pool, grade)


asyncio.run(main())
