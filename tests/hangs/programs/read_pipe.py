"""A read from a pipe into which nobody writes."""

import os

from aiotimer import expires

reading, writing = os.pipe()


def receive() -> bytes:
    return os.read(reading, 100)  # here


with expires(after=1):
    receive()
