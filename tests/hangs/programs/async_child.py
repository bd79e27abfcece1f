"""The output of a child that never ends."""

import asyncio

from aiotimer import expires


async def output_of(tests: asyncio.subprocess.Process) -> bytes:
    output, _ = await tests.communicate()  # here
    return output


async def main() -> None:
    tests = await asyncio.create_subprocess_exec("sleep", "1000", stdout=asyncio.subprocess.PIPE)
    async with expires(after=1):
        await output_of(tests)


asyncio.run(main())
