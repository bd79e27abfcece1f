"""A queue whose only producer has died of an error."""

import queue
import threading

from aiotimer import expires


def produce() -> None:
    raise OSError("no such shard")


threading.excepthook = print  # it is in a log that nobody reads
shards: queue.Queue[str] = queue.Queue()
threading.Thread(target=produce).start()
with expires(after=1):
    shards.get()  # here
