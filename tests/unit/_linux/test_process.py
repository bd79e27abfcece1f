"""What is asked of a pinned process."""

import os
import signal
import subprocess

import pytest

from aiotimer._linux.process import how_it_ended, pin

KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3 << 8), ("kill -TERM $$", signal.SIGTERM)])
def test_how_a_process_ended_is_seen_before_and_after_it_is_waited_for(script: str, status: int) -> None:
    with subprocess.Popen(["sh", "-c", f"read line; {script}"], stdin=subprocess.PIPE) as process:
        worker, pidfd = pin(process.pid)
        assert how_it_ended(worker, pidfd) is None
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert how_it_ended(worker, pidfd) == status
        process.wait()
        assert how_it_ended(worker, pidfd) == (status if KERNEL >= (6, 15) else None)
        os.close(pidfd)
