"""What system calls wait for, in words."""

import struct
from typing import Any

import pytest

from aiotimer.evidence import calls
from aiotimer.evidence.calls import Call, Thing, Wait
from aiotimer.evidence.findings import Frame


@pytest.mark.parametrize(
    ("text", "machine", "words"),
    [
        ("202 0x7f 0x189", "x86_64", "futex"),
        ("98 0x7f 0x189", "aarch64", "futex"),
        ("230 0x0", "x86_64", "clock_nanosleep"),
        ("9999 0x0", "x86_64", "system call 9999"),
        ("0 0x0", "sparc", "system call 0"),
        ("-1 0x7ffe 0x7f", "x86_64", "no system call"),
        ("running", "x86_64", "running"),
        ("", "x86_64", ""),
        ("²", "x86_64", "²"),
    ],
)
def test_the_name_of_a_system_call(text: str, machine: str, words: str) -> None:
    assert calls.syscall_name(text, machine) == words


def call(name: str, *arguments: int) -> Call:
    return Call(name, (*arguments, *(0 for _ in range(6 - len(arguments)))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("45 0x3 0x7f 0x1000 0x0 0x0 0x0 0x7ffc 0x7f1", Call("recvfrom", (3, 0x7F, 0x1000, 0, 0, 0))),
        ("61 0xffffffff 0x0 0x0 0x0 0x0 0x0 0x1 0x2", Call("wait4", (0xFFFFFFFF, 0, 0, 0, 0, 0))),
        ("45 0x3", Call("recvfrom")),
        ("45 0x3 x 0x1000 0x0 0x0 0x0", Call("recvfrom")),
        ("-1 0x7ffe 0x7f", Call("no system call")),
        ("running", Call("running")),
        ("", Call("")),
    ],
)
def test_a_call_and_its_arguments(text: str, expected: Call) -> None:
    assert calls.parse(text, "x86_64") == expected


@pytest.mark.parametrize("name", ["read", "recvfrom", "accept4", "write", "fsync", "ioctl", "epoll_wait"])
def test_the_descriptor_of_a_call(name: str) -> None:
    assert call(name, 7).descriptor == 7
    assert call(name, 0xFFFFFFFF).descriptor == -1
    assert Call(name).descriptor is None


def test_calls_that_wait_for_no_descriptor() -> None:
    assert call("futex", 7).descriptor is None
    assert call("fcntl", 7, 6).descriptor is None  # F_SETLK does not wait
    assert call("fcntl", 7, 7).descriptor == call("fcntl", 7, 38).descriptor == 7
    assert call("read", 7).epoll is None
    assert call("epoll_pwait", 7).epoll == 7


def test_which_descriptors_are_polled() -> None:
    assert call("poll", 0x1000, 2).polls == (0x1000, 16)
    assert call("read", 0x1000, 2).polls is Call("poll").polls is None
    array = struct.pack("=ihHihHihH", 5, 1, 0, -1, 1, 0, 9, 1, 0)
    assert calls.polled(array) == calls.polled(array + b"cut") == [5, 9]
    assert call("select", 70, 0x10, 0, 0x30).selects == ((0x10, 0x30), 16)
    assert call("pselect6", 10**6, 0x10).selects == ((0x10,), 128)
    assert call("read", 70, 0x10).selects is Call("select").selects is None
    assert calls.selected([bytes([0b101]), bytes([0, 0b10])]) == [0, 2, 9]


def test_which_child_is_waited_for() -> None:
    assert call("wait4", 42).child == 42
    assert call("wait4", 0xFFFFFFFF).child == call("waitid", 0, 5).child == 0
    assert call("waitid", 1, 42).child == 42
    assert call("waitid", 3, 7).child is call("read", 3).child is Call("wait4").child is None
    assert call("waitid", 3, 7).pidfd == 7
    assert call("waitid", 1, 7).pidfd is Call("waitid").pidfd is None


def test_which_path_is_opened() -> None:
    assert call("openat", 0xFFFFFF9C, 0x1000).opens == call("open", 0x1000).opens == 0x1000
    assert call("read", 3).opens == Call("open").opens == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0100007F:0050", "127.0.0.1:80"),
        ("0000000000000000FFFF00000100007F:A10A", "127.0.0.1:41226"),
        ("00000000000000000000000001000000:0016", "[::1]:22"),
    ],
)
def test_an_address(text: str, words: str) -> None:
    assert calls.address(text) == words


SOCKETS = [
    ("tcp", "3: 0100007F:A10A 0100007F:0050 01 0 0 0 0 0", Thing("socket", "127.0.0.1:80")),
    ("tcp", "3: 0100007F:A10A 00000000:0000 0A 0 0 0 0 0", Thing("socket", "127.0.0.1:41226", listens=True)),
    ("udp", "3: 0100007F:A10A 00000000:0000 07 0 0 0 0 0", Thing("socket", "udp at 127.0.0.1:41226")),
    ("udp", "3: 0100007F:A10A 0100007F:0035 01 0 0 0 0 0", Thing("socket", "127.0.0.1:53")),
    ("unix", "ffff: 00000003 00000000 00000000 0001 03 77", Thing("socket", "unix")),
    ("unix", "ffff: 00000003 00000000 00000000 0001 03 77 /run/x", Thing("socket", "/run/x")),
    ("unix", "ffff: 2 0 00010000 0001 01 77 @x", Thing("socket", "@x", listens=True)),
]


@pytest.mark.parametrize(("table", "line", "expected"), SOCKETS)
def test_a_line_of_a_table_of_sockets(table: str, line: str, expected: Thing) -> None:
    assert calls.socket_of(table, line.split()) == expected


PEER = Thing("socket", "127.0.0.1:80")
PIPE = Thing("pipe")

WAITS = [
    (call("recvfrom", 3), [PEER], "waits for a socket (recvfrom, 127.0.0.1:80)", ""),
    (call("read", 3), [Thing("socket")], "waits for a socket (read)", ""),
    (call("sendto", 3), [PEER], "waits for room in a socket (sendto, 127.0.0.1:80)", ""),
    (call("connect", 3), [PEER], "waits for a connection (connect, 127.0.0.1:80)", ""),
    (call("accept", 3), [Thing("socket", "/x", listens=True)], "waits for a connection (accept, /x)", ""),
    (call("poll", 1, 1), [PEER], "waits for a socket (poll, 127.0.0.1:80)", ""),
    (call("poll", 1, 2), [PEER, PIPE], "waits for one of 2 descriptors (poll: 127.0.0.1:80, a pipe)", ""),
    (call("poll", 1, 2), [Thing(), Thing()], "waits for one of 2 descriptors (poll)", ""),
    (call("epoll_wait", 3), [PEER] * 4,
     "waits for one of 4 descriptors (epoll_wait: 127.0.0.1:80, 127.0.0.1:80, 127.0.0.1:80 ...)", ""),
    (call("poll", 0, 0), [], "sleeps", ""),
    (call("select", 0), [], "sleeps", ""),
    (call("poll", 1, 1), [], "", ""),
    (call("read", 3), [PIPE], "waits for a pipe (read)", ""),
    (call("read", 3), [Thing("pipe", own=True)], "waits for a pipe (read)",
     "its other end is held by the process itself"),
    (call("read", 3), [Thing("pipe", holders=("child 1", "child 2"), own=True)], "waits for a pipe (read)",
     "its other end is held by child 1 and child 2"),
    (call("read", 3), [Thing("pipe", holders=("a", "b", "c", "d", "e"))], "waits for a pipe (read)",
     "its other end is held by a, b, c and 2 more"),
    (call("write", 1), [PIPE], "waits for room in a pipe (write)", ""),
    (call("read", 0), [Thing("terminal", "/dev/pts/3")],
     "waits for standard input, a terminal (read, /dev/pts/3)", ""),
    (call("write", 0), [PIPE], "waits for room in a pipe (write)", ""),
    (call("ioctl", 9), [Thing("device", "/dev/gpu0")], "waits for a device (ioctl, /dev/gpu0)", ""),
    (call("read", 9), [Thing("file", "/mnt/x on nfs4")], "waits for a file (read, /mnt/x on nfs4)", ""),
    (call("read", 9), [Thing("eventfd")], "waits for an eventfd (read)", ""),
    (call("read", 9), [Thing()], "", ""),
    (call("clock_nanosleep", 1, 1), [], "sleeps", ""),
    (call("clock_nanosleep", 0, 0), [], "sleeps in C code", ""),
    (call("nanosleep", 0x10), [], "sleeps in C code", ""),
    (Call("clock_nanosleep"), [], "sleeps", ""),
    (call("pause"), [], "waits for a signal (pause)", ""),
    (call("semop"), [], "waits for a semaphore (semop)", ""),
    (call("sched_yield"), [], "", ""),
    (Call("running"), [], "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("which", "things", "words", "holder"), WAITS)
def test_what_a_call_waits_for(which: Call, things: list[Thing], words: str, holder: str) -> None:
    assert calls.of_call(which, things) == Wait(words, holder)


def test_files_of_other_machines() -> None:
    assert all(map(calls.is_elsewhere, ["nfs4", "cifs", "fuse.sshfs", "9p"]))
    assert not any(map(calls.is_elsewhere, ["ext4", "tmpfs", "overlay", ""]))


def test_a_path_that_is_opened() -> None:
    assert calls.of_call(call("openat", 1, 2), [], "/x").waits == "waits for /x to be opened (openat)"


def test_a_file_lock_and_its_holders() -> None:
    assert calls.of_file_lock(call("flock", 3), "/x") == Wait("waits for a file lock on /x (flock)")
    assert calls.of_file_lock(call("fcntl", 3), "/x", ["pid 7 (sh)"]).holder == "it is held by pid 7 (sh)"


SLEEP: dict[str, Any] = {"pid": 42, "name": "sleep", "command": "sleep 1000", "state": "S (sleeping)"}
DEAD: dict[str, Any] = {"pid": 43, "name": "python", "state": "Z (zombie)", "exit": "SIGKILL"}


def test_children_that_are_waited_for() -> None:
    wait4 = call("wait4", 42)
    assert calls.of_children(wait4, [SLEEP, DEAD], 42) == Wait("waits for child 42 (sleep 1000, sleeping)")
    assert calls.of_children(wait4, [], 42).waits == "waits for child 42"
    assert calls.of_children(wait4, [SLEEP], 0).waits == "waits for child 42 (sleep 1000, sleeping)"
    assert calls.of_children(wait4, [SLEEP, DEAD], 0).waits == "waits for one of 2 children (wait4)"
    assert calls.of_children(wait4, [], 0) == Wait()


STD = "/usr/lib/python3.11"


def library(*places: str) -> list[Frame]:
    """Return frames of libraries: ``queue.py get``."""
    return [[f"{STD}/{place.split()[0]}", 1, place.split()[1]] for place in places]


FUTEXES = [
    (library("queue.py get", "threading.py wait"), "waits for a queue"),
    (library("queue.py Queue.get", "threading.py Condition.wait"), "waits for a queue"),
    (library("queue.py put", "threading.py wait"), "waits for room in a queue"),
    (library("multiprocessing/queues.py get", "multiprocessing/synchronize.py acquire"), "waits for a queue"),
    (library("threading.py join", "threading.py _wait_for_tstate_lock"), "waits for a thread to end"),
    (library("threading.py Thread.join"), "waits for a thread to end"),
    (library("threading.py acquire", "threading.py wait"), "waits for a semaphore"),
    (library("threading.py wait", "threading.py wait"), "waits for an event"),
    (library("threading.py Event.wait", "threading.py Condition.wait"), "waits for an event"),
    (library("threading.py wait"), "waits for a condition"),
    (library("threading.py wait_for", "threading.py wait"), "waits for a condition"),
    (library("threading.py wait", "threading.py _wait", "threading.py wait_for", "threading.py wait"),
     "waits for a barrier"),
    (library("concurrent/futures/_base.py result", "threading.py wait"), "waits for the result of a future"),
    (library("concurrent/futures/thread.py shutdown", "threading.py join"), "waits for a pool to end"),
    (library("multiprocessing/pool.py map", "multiprocessing/pool.py get", "threading.py wait"),
     "waits for a result of a process pool"),
    (library("multiprocessing/synchronize.py __enter__"), "waits for a lock that processes share"),
    (library("multiprocessing/synchronize.py wait"), "waits for a condition that processes share"),
    (library("logging/__init__.py handle"), "waits for a lock of logging"),
    ([["<frozen importlib._bootstrap>", 1, "acquire"]], "waits for another thread to import"),
    (library("site-packages/torch/distributed.py all_reduce"), "waits for a lock or a condition (futex)"),
    ([], "waits for a lock or a condition (futex)"),
]  # fmt: skip


@pytest.mark.parametrize(("frames", "words"), FUTEXES)
def test_what_a_futex_is(frames: list[Frame], words: str) -> None:
    assert calls.in_words("futex", "", frames) == words


def test_a_futex_that_c_shows_to_be_a_lock() -> None:
    native = ["sem_wait (libc.so.6)", "PyThread_acquire_lock_timed (python3.11)"]
    assert calls.in_words("futex", "", [], native) == "waits for a lock"
    assert calls.in_words("futex", "", [], ["pthread_cond_wait (libc.so.6)"]).endswith("(futex)")


def test_a_wait_with_a_limit_that_asks_again_and_again() -> None:
    frames = library("subprocess.py Popen.wait", "subprocess.py Popen._wait")
    assert calls.in_words("clock_nanosleep", "sleeps", frames) == "waits for a child to end"
    assert calls.in_words("clock_nanosleep", "sleeps", []) == "sleeps"
    assert calls.in_words("read", "", frames) == ""


def test_a_prompt_of_pdb() -> None:
    frames = library("bdb.py trace_dispatch", "pdb.py interaction", "cmd.py cmdloop")
    waits = "waits for standard input, a terminal (read, /dev/pts/3)"
    assert calls.in_words("read", waits, frames) == f"at a prompt of pdb: {waits}"
    assert calls.in_words("read", "", frames) == ""
