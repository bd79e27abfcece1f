"""A process pool of which one process ends in the middle of its work."""

import multiprocessing
import os
import time

from aiotimer import expires


def evaluate(number: int) -> int:
    if number == 3:
        time.sleep(0.3)
        os._exit(1)
    return number


with multiprocessing.get_context("fork").Pool(2) as pool, expires(after=1):
    pool.map(evaluate, range(8))  # here
