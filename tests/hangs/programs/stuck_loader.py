"""A pipe from a loader process that hangs itself."""

import multiprocessing
import time

from aiotimer import expires


def load(answers) -> None:
    time.sleep(30)
    answers.send("shard")


answers, asked = multiprocessing.Pipe(duplex=False)
multiprocessing.get_context("fork").Process(target=load, args=(asked,), daemon=True).start()
asked.close()
with expires(after=1):
    answers.recv()  # here
