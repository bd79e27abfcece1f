"""A script that hangs: aiotimer ends it after one second."""

import time

from aiotimer import configure, expires

configure()
print("hanging; in one second this process is reaped", flush=True)  # a killed process flushes nothing
with expires(after=1):
    time.sleep(3600)
print("never printed")
