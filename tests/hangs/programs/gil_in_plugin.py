"""A thread that calls into C and does not give the GIL back, beside a loop that only waits."""

import asyncio
import ctypes
import threading

from aiotimer import expires

library = ctypes.PyDLL(None)  # a CDLL would release the GIL


def plugin(started: threading.Event) -> None:
    started.wait()
    library.sleep(1000)  # here


async def main() -> None:
    started = threading.Event()
    threading.Thread(target=plugin, args=(started,), name="plugin", daemon=True).start()
    async with expires(after=1):
        asyncio.get_running_loop().call_later(0.2, started.set)
        await asyncio.sleep(1000)


asyncio.run(main())
