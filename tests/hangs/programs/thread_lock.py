"""A lock that a thread waits for, and whose holder waits for the thread."""

import threading

from aiotimer import expires

lock = threading.Lock()


def write() -> None:
    with expires(after=1, scope="write"):
        with lock:  # here
            pass


writer = threading.Thread(target=write)
with lock:
    writer.start()
    writer.join()
