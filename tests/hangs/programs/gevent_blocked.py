"""A greenlet that keeps all others from running, by a call that gevent has not replaced."""

from gevent import monkey

monkey.patch_all(time=False)

import time

import gevent

from aiotimer import configure, expires

configure()
with expires(after=60, scope="warm-up"):  # it is connected after that
    pass


def wait() -> None:
    with expires(after=1, scope="wait"):
        gevent.sleep(1000)


def grade() -> None:
    time.sleep(1000)  # here


gevent.joinall([gevent.spawn(wait), gevent.spawn(grade)])
