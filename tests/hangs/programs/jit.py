"""Code that a compiler made at run time, and that never returns."""

import ctypes
import mmap
import platform

from aiotimer import expires

JUMP_TO_ITSELF = {"x86_64": b"\xeb\xfe", "aarch64": b"\x00\x00\x00\x14"}

memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(JUMP_TO_ITSELF[platform.machine()])
kernel = ctypes.PYFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))


def launch() -> None:
    kernel()  # here


with expires(after=0.3):
    launch()
