"""A child process that never ends."""

import subprocess

from aiotimer import expires


def evaluate() -> None:
    subprocess.run(["sleep", "1000"], check=True)  # here


with expires(after=1):
    evaluate()
