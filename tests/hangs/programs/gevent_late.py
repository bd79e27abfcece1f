"""A greenlet that waits for an event that nobody sets, in a program that is patched when it is late."""

from aiotimer import configure, expires

configure()

from gevent import monkey

monkey.patch_all()

import gevent
from gevent.event import Event


def answer(lost: Event) -> None:
    with expires(after=1, scope="answer"):
        lost.wait()  # here


gevent.joinall([gevent.spawn(answer, Event()), gevent.spawn(gevent.sleep, 1000)])
