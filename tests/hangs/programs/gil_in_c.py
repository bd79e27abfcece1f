"""A call into C that does not give the GIL back."""

import ctypes

from aiotimer import expires

library = ctypes.PyDLL(None)  # a CDLL would release the GIL


def step() -> None:
    library.sleep(1000)  # here


with expires(after=1):
    step()
