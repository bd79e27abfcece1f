"""A greenlet that waits for an event that nobody sets, beside others that sleep and wake."""

from gevent import monkey

monkey.patch_all()

import time

import gevent
from gevent.event import Event

from aiotimer import expires


def answer(lost: Event) -> None:
    with expires(after=1, scope="answer"):
        lost.wait()  # here


def poll() -> None:
    while True:
        with expires(after=60, scope="poll"):
            time.sleep(0.05)


gevent.joinall([*(gevent.spawn(poll) for _ in range(5)), gevent.spawn(answer, Event())])
