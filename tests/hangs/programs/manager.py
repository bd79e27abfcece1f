"""A queue of a manager's, which nobody fills."""

import multiprocessing

from aiotimer import expires

with multiprocessing.get_context("fork").Manager() as manager:
    queue = manager.Queue()
    with expires(after=1):
        queue.get()  # here
