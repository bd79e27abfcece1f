"""A process that somebody looks at with a debugger."""

import os
import subprocess
import sys

from aiotimer import expires

ATTACH = """
import ctypes, os, sys
pid = int(sys.argv[1])
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert ptrace(16, pid, None, None) == 0, os.strerror(ctypes.get_errno())  # PTRACE_ATTACH: it stops
os.waitpid(pid, 0)
print(flush=True)
sys.stdin.read()
"""


def step() -> None:
    debugger.stdout.readline()  # type: ignore[union-attr]  # here


command = [sys.executable, "-c", ATTACH, str(os.getpid())]
with expires(after=1):
    debugger = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    step()
