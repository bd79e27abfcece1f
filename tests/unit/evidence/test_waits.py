"""What is behind the descriptors of a call, and who has the other end: of this process, and of a child."""

import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiotimer._linux import procfs
from aiotimer.evidence import waits
from aiotimer.evidence.calls import Call, Wait

PID = os.getpid()


def wait_of(name: str, *arguments: int, children: tuple[dict[str, Any], ...] = ()) -> Wait:
    """Return what a thread of this process would wait for, if it were in a call."""
    seen = {1: Call(name, (*arguments, *(0 for _ in range(6 - len(arguments)))))}
    return dict(waits.of_threads(PID, seen, children)).get(1, Wait())


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_the_other_end_of_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = f"127.0.0.1:{server.getsockname()[1]}"
        assert wait_of("accept4", server.fileno()).waits == f"waits for a connection (accept4, {name})"
        with socket.create_connection(server.getsockname()) as client:
            assert wait_of("recvfrom", client.fileno()).waits == f"waits for a socket (recvfrom, {name})"
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        at = f"udp at 127.0.0.1:{datagrams.getsockname()[1]}"
        assert wait_of("recvfrom", datagrams.fileno()).waits == f"waits for a socket (recvfrom, {at})"
    with socket.socket(socket.AF_UNIX) as unix, tempfile.TemporaryDirectory() as folder:
        unix.bind(f"{folder}/s")
        assert wait_of("read", unix.fileno()).waits == f"waits for a socket (read, {folder}/s)"


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
def test_the_other_end_of_a_socket_of_ipv6() -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("there is no ::1")
    with server:
        at = f"[::1]:{server.getsockname()[1]}"
        assert wait_of("accept", server.fileno()).waits == f"waits for a connection (accept, {at})"


def test_what_is_polled(pipe: tuple[int, int]) -> None:
    polled = ctypes.create_string_buffer(struct.pack("=ihH", pipe[0], 1, 0))
    told = wait_of("poll", ctypes.addressof(polled), 1)
    assert told == ("waits for a pipe (poll)", "its other end is held by the process itself")
    bits = ctypes.create_string_buffer((1 << pipe[0] | 1 << pipe[1]).to_bytes(128, "little"))
    told = wait_of("select", pipe[1] + 1, ctypes.addressof(bits))
    assert told.waits == "waits for one of 2 descriptors (select: a pipe, a pipe)"
    with select.epoll() as poll:
        poll.register(pipe[0])
        assert wait_of("epoll_wait", poll.fileno()).waits == "waits for a pipe (epoll_wait)"
    assert wait_of("poll", 8, 1) == wait_of("poll", 2**64 - 8, 1) == wait_of("epoll_wait", 10**6) == Wait()


def test_files(tmp_path: Path, pipe: tuple[int, int]) -> None:
    with open(tmp_path / "file", "w") as file:
        assert wait_of("fsync", file.fileno()).waits == f"waits for a file (fsync, {tmp_path}/file)"
        assert wait_of("read", 10**6) == wait_of("fcntl", file.fileno(), 6) == Wait()
    os.mkfifo(tmp_path / "fifo")
    with open(os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as fifo:
        assert wait_of("read", fifo.fileno()).waits == f"waits for a named pipe (read, {tmp_path}/fifo)"
    with open("/dev/null") as null:
        assert wait_of("read", null.fileno()).waits == "waits for a device (read, /dev/null)"
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    assert wait_of("read", theirs).waits == f"waits for a terminal (read, {name})"
    path = ctypes.create_string_buffer(b"/some/fifo")
    assert wait_of("openat", 0, ctypes.addressof(path)).waits == "waits for /some/fifo to be opened (openat)"
    event, pidfd = os.eventfd(0), os.pidfd_open(PID)
    assert wait_of("read", event).waits == "waits for an eventfd (read)"
    assert wait_of("epoll_wait", event) == Wait()
    polled = ctypes.create_string_buffer(struct.pack("=ihH", pidfd, 1, 0))
    assert wait_of("poll", ctypes.addressof(polled), 1).waits == f"waits for a process (poll, pid {PID})"
    for descriptor in (ours, theirs, event, pidfd):
        os.close(descriptor)


HOLDER = """
import fcntl, os, sys
path, reading, writing = sys.argv[1], *map(int, sys.argv[2:])
whole, sqlite = open(path + "/flock", "w"), open(path + "/db", "w")
fcntl.flock(whole, fcntl.LOCK_EX)
fcntl.lockf(sqlite, fcntl.LOCK_EX, 1, 0x40000001)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path, pipe: tuple[int, int]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that holds locks of two files, and a pipe."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), *map(str, pipe)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=pipe[1:]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.communicate()


def test_what_a_child_holds(holder: subprocess.Popen[bytes], pipe: tuple[int, int], tmp_path: Path) -> None:
    command = f"{sys.executable} -c "
    child = {"pid": holder.pid, "name": "python", "command": command, "state": "S (sleeping)"}
    told = wait_of("read", pipe[0], children=(child,))
    assert told.waits == "waits for a pipe (read)"
    assert told.holder.startswith(f"its other end is held by child {holder.pid} ({command}"[:60])
    told = wait_of("wait4", holder.pid, children=(child,))
    assert told.waits.startswith(f"waits for child {holder.pid} ({command}"[:60])
    pidfd = os.pidfd_open(holder.pid)
    assert wait_of("waitid", 3, pidfd, children=(child,)) == told
    os.close(pidfd)
    assert wait_of("nanosleep") == ("sleeps in C code", "")  # it has the file not open
    with open(tmp_path / "db") as database:
        name = f"pid {holder.pid} ({procfs.name_of(holder.pid)})"
        held = f"SQLite's lock on {tmp_path}/db is held by {name}"
        assert wait_of("nanosleep") == ("sleeps in C code", held)
        assert wait_of("clock_nanosleep", 1, 1) == ("sleeps", "")
        with pytest.raises(BlockingIOError):
            fcntl.lockf(database, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 0x40000001)
    with open(tmp_path / "flock") as file:  # nobody waits for it, so that nothing says who is waited for
        assert wait_of("flock", file.fileno()) == (f"waits for a file lock on {tmp_path}/flock (flock)", "")
