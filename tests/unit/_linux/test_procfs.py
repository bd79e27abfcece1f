"""What is read of ``/proc/PID``."""

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiotimer._linux import procfs


@contextmanager
def child(script: str = ":") -> Iterator[int]:
    """Run a shell script that prints a line and then waits for its input to end."""
    with subprocess.Popen(
        ["sh", "-c", f"{script}; echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process.pid
        process.communicate()


def gone() -> int:
    """Return a pid that no process can have."""
    return int(Path("/proc/sys/kernel/pid_max").read_text()) + 1


def test_this_process() -> None:
    pid, text = os.getpid(), Path("/proc/self/status").read_text()
    assert f"\nPid:\t{procfs.status(pid)['Pid']}\n" in text
    assert procfs.status(pid)["Name"] == procfs.name_of(pid)
    assert procfs.uids_of(pid) == os.getresuid()
    assert procfs.state_of(pid) in ("R (running)", "S (sleeping)", "D (disk sleep)")
    assert procfs.is_taken(pid)
    arguments = procfs.command_of(pid, 65_536)
    assert [Path(arguments[0]).name, *arguments[1:]] == [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    assert procfs.command_of(pid, 3) == [arguments[0][:3]]


def test_its_threads() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        tid = thread.native_id
        assert tid in procfs.tids_of(os.getpid()) == sorted(procfs.tids_of(os.getpid()))
        assert tid is not None
        assert procfs.status(os.getpid(), tid)["Pid"] == str(tid)
    finally:
        over.set()
        thread.join()
    with pytest.raises(ProcessLookupError):
        procfs.status(os.getpid(), gone())


def test_a_thread_is_found_by_its_name() -> None:
    over, named = threading.Event(), threading.Event()

    def name_itself() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("by its name")
        named.set()
        over.wait()

    thread = threading.Thread(target=name_itself)
    thread.start()
    try:
        assert named.wait(30)
        assert procfs.has_thread_named(os.getpid(), "by its name")
        assert not procfs.has_thread_named(os.getpid(), "by its")
        Path(f"/proc/self/task/{thread.native_id}/comm").write_text("by another")
        assert not procfs.has_thread_named(os.getpid(), "by its name")
    finally:
        over.set()
        thread.join()
    assert not procfs.has_thread_named(gone(), "by its name")


def test_its_children() -> None:
    with child() as pid:
        found = [one for tid in procfs.tids_of(os.getpid()) for one in procfs.children_of(os.getpid(), tid)]
        assert pid in found


def test_its_descriptors(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT)
    pidfd = os.pidfd_open(os.getpid())
    try:
        assert {descriptor, pidfd} <= set(procfs.descriptors_of(os.getpid()))
        assert procfs.link_of(os.getpid(), descriptor) == f"{tmp_path}/\\xff"
        found = os.fstat(descriptor)
        assert procfs.inode_of(os.getpid(), descriptor) == (found.st_dev, found.st_ino)
        assert (procfs.pinned_by(pidfd), procfs.pinned_by(descriptor)) == (os.getpid(), 0)
    finally:
        os.close(descriptor)
        os.close(pidfd)
    with pytest.raises(OSError, match="No such file"):
        procfs.pinned_by(descriptor)


def test_a_pidfd_of_who_has_been_waited_for_pins_nobody() -> None:
    with child() as pid:
        pidfd = os.pidfd_open(pid)
    try:
        assert procfs.pinned_by(pidfd) == -1
    finally:
        os.close(pidfd)


def test_nobody() -> None:
    pid = gone()
    assert (procfs.state_of(pid), procfs.name_of(pid), procfs.wchan(pid)) == ("", "?", "")
    assert not procfs.is_taken(pid)
    for read in (procfs.status, procfs.start_time, procfs.program_of, procfs.uids_of):
        with pytest.raises(ProcessLookupError, match=f"^no process {pid}$"):
            read(pid)


@pytest.mark.parametrize("end", [r"\013", r"\r", r"\034", r"\n"])
def test_a_name_adds_no_field(end: str) -> None:
    """A command name may be anything: what looks like the end of a line in it is none."""
    with child(f"printf 'x{end}Uid:7 7 7 7' > /proc/self/comm") as pid:
        assert "Uid:7" in procfs.status(pid)["Name"]
        assert procfs.uids_of(pid) == os.getresuid()
        assert "7 7 7 7" not in list(procfs.status(pid).values())


@pytest.mark.parametrize("name", ["plain", "a\rb", "a\x0bb\x1c", "a\nb"])
def test_what_is_mapped(name: str, tmp_path: Path) -> None:
    """Whatever its name is: that is the worker's choice."""
    with open(tmp_path / name, "wb+") as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE):
            assert os.fstat(file.fileno()).st_ino in procfs.mapped_inodes(os.getpid())
    assert 2**63 not in procfs.mapped_inodes(os.getpid())


def test_what_has_no_memory_maps_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert procfs.mapped_inodes(process.pid) == set()
        assert procfs.state_of(process.pid) == "Z (zombie)"
        with pytest.raises(ProcessLookupError, match="exiting"):
            procfs.program_of(process.pid)


def test_the_program_of_a_child_that_has_just_been_started_is_known_or_not_but_never_half_of_it() -> None:
    """Its parent goes on in the middle of the exec: two of three were read then."""
    for _ in range(50):
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            mark = procfs.program_of(process.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            assert mark in (procfs.program_of(process.pid), 0)
            process.communicate()


def test_cgroups() -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    assert [":".join(one) for one in procfs.cgroups_of(os.getpid())] == lines
    unified = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    assert procfs.cgroup_of("self") == (unified[0] if unified else None)


def test_a_path_that_is_no_text() -> None:
    assert procfs.escaped(os.fsdecode(b"/a\xff/\xc3\xa4")) == "/a\\xff/ä"


def test_the_executable_of_this_process_and_of_another() -> None:
    assert procfs.is_our_executable(os.getpid())
    assert not procfs.is_our_executable(1), "another program's, or not shown"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert procfs.is_our_executable(child.pid)
        child.kill()
    assert not procfs.is_our_executable(child.pid), "it is gone"
