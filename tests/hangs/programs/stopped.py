"""A process that somebody has stopped."""

import os
import signal

from aiotimer import expires


def step() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)  # here


with expires(after=1):
    step()
