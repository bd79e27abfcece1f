"""A queue that nobody fills, waited for by a file whose path looks like the standard library's."""

import queue

from aiotimer import expires


def next_batch(batches: queue.Queue[int]) -> int:
    return batches.get()  # here


with expires(after=1):
    next_batch(queue.Queue())
