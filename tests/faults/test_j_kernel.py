"""Fault 72: what a server requires of the kernel is not there.

The law of this file: it does not start, and says by name what is lacking; its program goes on, and was told
once.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer._core.layout import TABLE_SIZE
from tests.fakes.places import private_runtime
from tests.fakes.worker import AIOTIMER, PRELUDE, environment

REFUSES = """
import ctypes, os, struct, sys

def refuse(call, error):
    \"\"\"Install a seccomp filter: load the call's number; is it this one? The error; else as ever.\"\"\"
    program = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    given = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, given, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP

refuse(int(sys.argv[1]), int(sys.argv[2]))
os.execv(sys.argv[3], sys.argv[3:])
"""

PIDFD_SEND_SIGNAL, PIDFD_OPEN = 424, 434  # the same on every machine


def without(call: int, error: int) -> list[str]:
    return [sys.executable, "-c", REFUSES, str(call), str(error)]


def in_a_shell(script: str, *prefix: str) -> list[str]:
    return [*prefix, "sh", "-c", f'{script}; exec "$0" "$@"']


LACKS: dict[str, tuple[list[str], str]] = {
    "pidfd_open is not permitted": (without(PIDFD_OPEN, errno.EPERM), "the kernel refuses pidfd_open(2)"),
    "no pidfd_open": (
        without(PIDFD_OPEN, errno.ENOSYS),
        "implemented. A seccomp filter does that",
    ),
    "pidfd_send_signal": (without(PIDFD_SEND_SIGNAL, errno.EPERM), "the kernel refuses pidfd_send_signal(2)"),
    "ulimit -f": (in_a_shell("ulimit -f 20000"), "RLIMIT_FSIZE, `ulimit -f`"),
    "subset=pid": (
        in_a_shell("mount -t proc -o subset=pid proc /proc", "unshare", "--mount"),
        "Is /proc mounted with subset=pid",
    ),
    "no /proc": (in_a_shell("umount -l /proc", "unshare", "--mount"), "/proc cannot be read"),
}


@pytest.fixture(autouse=True)
def runtime() -> Iterator[Path]:
    with private_runtime() as path:
        yield path


def run(lack: str, *command: str) -> subprocess.CompletedProcess[str]:
    prefix = LACKS[lack][0]
    if "unshare" in prefix:
        try:
            subprocess.run(["unshare", "--mount", "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"unshare --mount is not permitted here: {getattr(error, 'stderr', error)}")
    return subprocess.run(
        [*prefix, *command], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )


@pytest.mark.parametrize("lack", LACKS)
def test_fault_72_a_server_does_not_start(lack: str, runtime: Path) -> None:
    done = run(lack, *AIOTIMER, "serve", "--socket", str(runtime / "s"))
    assert (done.returncode, done.stdout) == (70, "")
    (told,) = done.stderr.splitlines()
    assert LACKS[lack][1] in told


@pytest.mark.parametrize("lack", LACKS)
def test_fault_72_a_command_does_not_start(lack: str) -> None:
    done = run(lack, *AIOTIMER, "run", "--", "echo", "started")
    assert (done.returncode, done.stdout) == (125, "")
    (told,) = done.stderr.splitlines()
    assert LACKS[lack][1] in told


CONFIGURES = (
    PRELUDE
    + """
import aiotimer
aiotimer.configure()
for _ in range(3):
    with expires(0.1):
        time.sleep(0.2)
say("goes on")
"""
)


@pytest.mark.parametrize("lack", LACKS)
def test_fault_72_a_program_goes_on_and_is_told_once(lack: str) -> None:
    done = run(lack, sys.executable, "-c", CONFIGURES)
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
    assert done.stderr.count(LACKS[lack][1]) == 1
    assert done.stderr.count("timers are not being watched") == 1


HANGS = CONFIGURES.replace("sleep(0.2)", "sleep(1000)")


def test_fault_72_a_soft_limit_is_raised() -> None:
    limit = f"ulimit -S -f {TABLE_SIZE // 1024 - 1}"
    command = [*in_a_shell(limit), *AIOTIMER, "run", "--quiet", "--", sys.executable, "-c", HANGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 124, "its block was watched"
    assert "reaped" in done.stderr


def test_fault_72_only_the_worker_has_a_small_limit() -> None:
    """Then it has a table that the server makes."""
    worker = in_a_shell("ulimit -f 20000")
    command = [*AIOTIMER, "run", "--quiet", "--", *worker, sys.executable, "-c", HANGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 124, done.stderr
    assert "not being watched" not in done.stderr
