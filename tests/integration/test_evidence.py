"""Evidence of real processes: what they hang in is told, and telling does them no harm.

The laws of this file: a body prints its line and hangs in the same line, so that the line to be found is
that one however soon it is looked at; limits are as long as a test's patience, where nothing is to hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import queue
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiotimer import WorkerId
from aiotimer._core import layout, wire
from aiotimer._linux import procfs, signals
from aiotimer._linux.process import is_dead, pin
from aiotimer.evidence import Answers, Findings, Subject, calls, motion, proc, pyspy, stacks
from aiotimer.evidence.gather import gather
from aiotimer.evidence.stacks import NotSafe
from tests.fakes.clock import PATIENCE
from tests.fakes.server import serving
from tests.fakes.worker import SpawnedWorker, bystander, spawn_worker, stop

WORKER = """\
import asyncio, ctypes, faulthandler, os, signal, struct, subprocess, sys, threading, time
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: anybody
table = int(sys.argv[1])
signum = signal.SIGRTMIN + 7
own = os.open(f"/proc/self/fd/{table}", os.O_RDWR | os.O_APPEND)
faulthandler.register(signum, file=own, all_threads=False)
os.pwrite(table, struct.pack("=dd", signum, own), 8 * 26)
go = b"go\\n"
def run(step):
    step()
"""
"""A worker that registers its dump as the package's client does, by hand."""

LINE = len(WORKER.splitlines()) + 2
"""The line that the body of a :func:`hanging` worker hangs in."""

BODIES = {
    "spin": "os.write(1, go)\n    while True: pass",
    "sleep": "os.write(1, go); time.sleep(1000)",
    "lock": "lock = threading.Lock(); lock.acquire(); os.write(1, go); lock.acquire()",
    # Calls without letting go of the GIL; and unlike sleep() it goes on after a signal.
    "gil": "lock = ctypes.PyDLL(None).pthread_mutex_lock; m = bytes(64); lock(m); os.write(1, go); lock(m)",
    "pipe": "ends = os.pipe(); os.write(1, go); os.read(ends[0], 1)",
}
CALLS = {"sleep": "clock_nanosleep", "lock": "futex", "gil": "futex", "pipe": "read"}
WORDS = {
    "spin": r"(?:seen running,|blocked in Python) %s(?: \(.*\))?",
    "sleep": "sleeps %s",
    "lock": r"waits for a lock or a condition \(futex\) %s; no other thread is alive",
    "gil": r"waits for a lock or a condition \(futex\) %s; no other thread is alive",  # nobody looks at it
    "pipe": r"waits for a pipe \(read\) %s; its other end is held by the process itself",
}


@pytest.fixture(autouse=True)
def patient_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No probe gives up before a test does; and nobody looks in from outside, unless a test wants it."""
    monkeypatch.setattr("aiotimer.evidence.gather.PROC_WITHIN", PATIENCE)
    monkeypatch.setattr("aiotimer.evidence.gather.STACKS_WITHIN", PATIENCE)
    monkeypatch.setattr(pyspy, "find_pyspy", lambda: None)
    monkeypatch.setattr(pyspy, "unwind_command", lambda _pid: None)


class Hanging:
    """A worker process that hangs, and its table."""

    def __init__(self, worker: SpawnedWorker, table: int) -> None:
        self.worker = worker
        self.pid = worker.pid
        self.table = table
        self.id, self.pidfd = pin(worker.pid)

    def subject(self, ask: Callable[[Answers], Awaitable[object]] | None = None, scope: str = "") -> Subject:
        """Return it as what evidence is gathered about, and what is killed next."""
        inode = os.fstat(self.table).st_ino
        return Subject(self.id, self.pidfd, "python", scope, (), self.table, inode, ask, kills_next=True)

    def announce(self, signum: float, descriptor: float) -> None:
        """Announce another dump signal."""
        os.pwrite(self.table, struct.pack("=dd", signum, descriptor), 8 * layout.DUMP_SIGNAL)

    def announced(self) -> tuple[int, int]:
        """Return what is announced."""
        signum, descriptor = struct.unpack("=dd", os.pread(self.table, 16, 8 * layout.DUMP_SIGNAL))
        return int(signum), int(descriptor)


@contextlib.contextmanager
def hanging(directory: Path, body: str, *, run: str = "run(step)", kind: str = "def") -> Iterator[Hanging]:
    """Run a worker that hangs in ``body``, the function ``step`` of ``app.py``; yield it then."""
    source = directory / "app.py"
    source.write_text(f"{WORKER}{kind} step():\n    {body}\n{run}\n")
    table = os.memfd_create("table")
    os.ftruncate(table, layout.TABLE_SIZE)
    try:
        with SpawnedWorker(
            subprocess.Popen(
                [sys.executable, str(source), str(table)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[table],
            )
        ) as worker:
            worker.wait_line("go")
            found = Hanging(worker, table)
            try:
                yield found
            finally:
                os.close(found.pidfd)
    finally:
        os.close(table)


def signals_waiting(pid: int) -> int:
    """Return which signals are on their way to a process, as a mask."""
    fields = procfs.status(pid)
    return int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16)


# -- stacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BODIES)
async def test_synchronous_code_that_hangs(name: str, tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES[name]) as it:
        if name in CALLS:
            await asyncio.to_thread(wait_for_syscall, it.pid, CALLS[name])
        found = await gather(it.subject(), PATIENCE)
        hangs_in = LINE + (name == "spin")
        # Of the spinning one, the line that it says it from may be seen too.
        assert found.where in (f"app.py:{hangs_in}", f"app.py:{LINE}" if name == "spin" else "")
        assert re.fullmatch(WORDS[name] % f"at {found.where} in step", found.verdict), found
        functions = [function for _file, _line, function in found.stacks[-1]["frames"]]
        assert functions[:3] == ["<module>", "run", "step"]
        assert found.stacks[-1]["main"]
        assert "in step\n" in found.stacks_text
        again = await gather(it.subject(), PATIENCE)  # it has not been harmed, and answers once more
        assert again.where == found.where or name == "spin"
        assert it.worker.process.poll() is None


async def test_a_coroutine_that_blocks_its_loop(tmp_path: Path) -> None:
    body = "os.write(1, go); time.sleep(1000)"
    with hanging(tmp_path, body, run="asyncio.run(step())", kind="async def") as it:
        await asyncio.to_thread(wait_for_syscall, it.pid, "clock_nanosleep")
        found = await gather(it.subject(), PATIENCE)
        assert found.verdict == f"event loop blocked: sleeps at app.py:{LINE} in step"


async def test_the_memory_of_what_has_been_read_is_given_back(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        found = await gather(it.subject(), PATIENCE)
        assert found.stacks
        size = os.fstat(it.table).st_size
        assert size > layout.STACKS_OFFSET
        assert not os.pread(it.table, size, layout.STACKS_OFFSET).strip(b"\0")
        await gather(it.subject(), PATIENCE)
        assert os.fstat(it.table).st_size > size


async def test_the_block_in_a_thread_by_its_scope(tmp_path: Path) -> None:
    body = "lock = threading.Lock(); lock.acquire(); os.write(1, go); lock.acquire()"
    run = "thread = threading.Thread(target=step); thread.start(); thread.join()"
    with hanging(tmp_path, body, run=run) as it:
        await asyncio.to_thread(wait_for_syscall, it.pid, "futex", max(procfs.tids_of(it.pid)))
        found = await gather(it.subject(scope=f"app.py:{LINE}"), PATIENCE)
        assert re.match(rf"waits for a lock .*at app.py:{LINE} in step", found.verdict), found
        assert [one["main"] for one in found.stacks] == [False, True]
        assert {one["tid"] for one in found.stacks} == set(procfs.tids_of(it.pid))
        assert found.process["thread_count"] == 2


async def test_proc(tmp_path: Path) -> None:
    with hanging(tmp_path, f"child = subprocess.Popen('cat', stdin=-1, stdout=-3); {BODIES['pipe']}") as it:
        await asyncio.to_thread(wait_for_syscall, it.pid, "read")
        (child_pid,) = procfs.children_of(it.pid, it.pid)
        await asyncio.to_thread(wait_for_syscall, child_pid, "read")  # its name changes late in its exec
        found = (await gather(it.subject(), PATIENCE)).process
        assert found["state"] == "S (sleeping)"
        assert found["rss_bytes"] > 1_000_000
        assert found["command"] == [sys.executable, str(tmp_path / "app.py"), str(it.table)]
        assert found["descriptor_count"] == len(found["descriptors"]) >= 5
        assert [name for _number, name in found["descriptors"] if name.startswith("/memfd:table")]
        (child,) = found["children"]
        assert child["name"] == "cat"
        assert [thread["tid"] for thread in found["threads"]] == [it.pid]
        assert found["tracer"] == 0
        assert set(found) == set(proc.nothing())


async def test_a_process_of_many_threads_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "MAX_THREADS", 2)
    monkeypatch.setattr(proc, "MAX_DESCRIPTORS", 2)
    start = "[threading.Thread(target=time.sleep, args=[1000]).start() for _ in '1234']"
    body = f"{start}; {BODIES['sleep']}"
    with hanging(tmp_path, body) as it:
        found = (await gather(it.subject(), PATIENCE)).process
        assert (len(found["threads"]), found["thread_count"]) == (2, 5)
        assert len(found["descriptors"]) == 2 < found["descriptor_count"]


TASKS = wire.Tasks(1, "a loop", "MainThread", (), 0, "")


async def test_the_stacks_of_a_worker_of_which_one_loop_did_not_answer(tmp_path: Path) -> None:
    async def one_of_two(answers: Answers) -> None:
        answers.asked = 2
        answers.append(TASKS)

    with hanging(tmp_path, BODIES["sleep"]) as it:
        await asyncio.to_thread(wait_for_syscall, it.pid, "clock_nanosleep")
        found = await gather(it.subject(one_of_two), PATIENCE)
        assert found.verdict == f"event loop blocked: sleeps at app.py:{LINE} in step"
        assert found.probes["tasks"] == "1 of 2 event loops did not answer"


async def test_who_answers_without_stacks_is_asked_for_them(tmp_path: Path) -> None:
    async def all_of_them(answers: Answers) -> None:
        answers += [TASKS, TASKS]

    with hanging(tmp_path, BODIES["sleep"]) as it:
        found = await gather(it.subject(all_of_them, f"app.py:{LINE}"), PATIENCE)
        assert found.where == f"app.py:{LINE}"
        assert found.probes["tasks"].endswith(" s")


async def test_tasks_that_are_left_out_are_counted(tmp_path: Path) -> None:
    async def some_of_them(answers: Answers) -> None:
        answers += [wire.Tasks(1, "a loop", "MainThread", (), left_out, "") for left_out in (5, -7, 2)]

    with hanging(tmp_path, BODIES["sleep"]) as it:
        found = await gather(it.subject(some_of_them), PATIENCE)
        assert found.probes["tasks"].endswith(" s; 7 tasks left out")
        assert found.tasks_text.startswith("and 7 tasks more: there was no room, or no time, for them\n")


async def test_a_process_is_looked_at_before_its_loops_are_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, order, collect = asyncio.get_running_loop(), list[str](), proc.collect

    async def a_turn() -> None:
        """The loop goes on, and could ask."""

    def looks(worker: WorkerId, found: dict[str, Any], thread: int) -> None:
        asyncio.run_coroutine_threadsafe(a_turn(), loop).result(PATIENCE)
        order.append("looked")
        collect(worker, found, thread)

    async def asks(_answers: Answers) -> None:
        order.append("asked")

    monkeypatch.setattr(proc, "collect", looks)
    with hanging(tmp_path, BODIES["sleep"]) as it:
        await gather(it.subject(asks), PATIENCE)
    assert order == ["looked", "asked"]


@pytest.mark.parametrize("body", ["sleep", "spin"])
async def test_a_loop_that_sleeps_or_has_run_for_long_is_not_waited_for(body: str, tmp_path: Path) -> None:
    async def for_ever(_answers: Answers) -> None:
        await asyncio.get_running_loop().create_future()

    with hanging(tmp_path, BODIES[body]) as it:
        if body == "sleep":
            await asyncio.to_thread(wait_for_syscall, it.pid, "clock_nanosleep")
        found = await gather(it.subject(for_ever), PATIENCE)
        assert found.probes["tasks"] == "the event loop did not answer"
        blocked = "event loop blocked: sleeps at " if body == "sleep" else "event loop blocked in Python at "
        assert found.verdict.startswith(blocked)


HANDLER = """\
faulthandler.unregister(signum)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)({handler})
    ctypes.CDLL(None).signal(signum, handler)
    """


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("lambda _: None", "no answer within "),
        ("lambda _: os.write(own, go) and None", "what the worker wrote is no dump"),
        ("lambda _: time.sleep(1000)", "no answer within "),
    ],
    ids=["it writes nothing", "it writes no stacks", "it never ends"],
)
async def test_a_worker_that_does_not_write_its_stacks(
    handler: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotimer.evidence.gather.STACKS_WITHIN", 0.1 if "sleep" in handler else PATIENCE)
    with hanging(tmp_path, HANDLER.format(handler=handler) + BODIES["sleep"]) as it:
        found = await gather(it.subject(), PATIENCE)
        assert found.probes["stacks"].startswith(words)
        assert found.stacks == []


async def test_a_thread_that_writes_nothing_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    """A thread of C code has no Python stack."""
    start = "ctypes.CDLL(None).pthread_create(bytes(8), None, ctypes.CDLL(None).pause, None)"
    with hanging(tmp_path, f"{start}; {BODIES['sleep']}") as it:
        assert len(procfs.tids_of(it.pid)) == 2
        found = await gather(it.subject(), PATIENCE)
        assert [one["tid"] for one in found.stacks] == [it.pid]
        assert found.where == f"app.py:{LINE}"


async def test_where_the_kernel_pins_no_thread_the_main_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(stacks, "pin_thread", refuse)
    start = "threading.Thread(target=time.sleep, args=[1000]).start()"
    with hanging(tmp_path, f"{start}; {BODIES['sleep']}") as it:
        found = await gather(it.subject(), PATIENCE)
        assert [one["tid"] for one in found.stacks] == [it.pid]
        assert found.where == f"app.py:{LINE}"


def test_a_thread_is_pinned_if_it_is_one_of_the_process(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it, bystander() as other:
        pinned = signals.pin_thread(it.pid, it.pidfd, it.pid)
        assert not is_dead(pinned)
        os.close(pinned)
        before = os.listdir("/proc/self/fd")
        for tid in (other, 4194305):  # the largest there can be is 4194304
            with pytest.raises(ProcessLookupError):
                signals.pin_thread(it.pid, it.pidfd, tid)
        assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_a_pyspy_that_sees_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyspy, "find_pyspy", lambda: "py-spy")
    monkeypatch.setattr(pyspy, "collect", lambda *_: [])
    with hanging(tmp_path, BODIES["sleep"]) as it:
        found = await gather(it.subject(), PATIENCE)
        assert found.where == f"app.py:{LINE}"


async def test_without_a_descriptor_to_spare_there_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duplicate, left = os.dup, [2, 1]

    def scarce(descriptor: int) -> int:
        if not left:
            raise OSError(errno.EMFILE, "Too many open files")
        left.pop()
        return duplicate(descriptor)

    with hanging(tmp_path, BODIES["sleep"]) as it:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            monkeypatch.setattr(os, "dup", scarce)
            found = await gather(it.subject(), PATIENCE)
            monkeypatch.setattr(os, "dup", duplicate)
            assert "Too many open files" in found.probes.values()
            left.append(1)
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_ends_while_it_is_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(pid: int, *_: object) -> bytes:
        raise ProcessLookupError(pid)

    worker, found = pin_self(), proc.nothing()
    monkeypatch.setattr(procfs, "start_time", lambda _pid: worker.started)
    monkeypatch.setattr(procfs, "_read", gone)
    proc.collect(worker, found)
    assert found["threads"] == found["children"] == found["command"] == []
    assert found["descriptors"]  # these are links
    assert procfs.state_of(os.getpid()) == ""
    found["threads"] = [{"tid": 1}]
    proc._children(os.getpid(), found)
    proc._syscall(os.getpid(), found)
    assert found["children"] == []


@pytest.mark.parametrize(
    ("ends", "waits"),
    [([1, 2, 2], "sleeps"), ([1, 2, 3, 4, 4], "sleeps"), ([0, 2, 2], "sleeps"), (range(1, 100), "")],
)
def test_what_a_thread_waits_for_is_known_though_it_wakes_meanwhile(
    ends: Sequence[int], waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps again and again, each time until another moment; if it never stays, nothing is said."""
    tid, texts, read = 4194305, iter([*ends, ends[-1]]), procfs.syscall  # no thread has that number

    def syscall(pid: int, asked: int) -> str:
        if asked != tid:
            return read(pid, asked)
        end = next(texts)
        return f"230 0x1 0x1 {end:#x} 0x0 0x0 0x0 0x0 0x0" if end else "running"

    monkeypatch.setattr(procfs, "syscall", syscall)
    found = {**proc.nothing(), "threads": [{"tid": tid, "syscall": "clock_nanosleep", "waits": ""}]}
    proc._waits(os.getpid(), found)
    assert found["threads"][0]["waits"] == waits


def test_children_that_end_while_they_are_read_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "children_of", lambda *_: [os.getpid(), 4194305])
    found = {**proc.nothing(), "threads": [{"tid": 1}]}
    proc._children(1, found)  # the largest pid there can be is 4194304
    assert [child["pid"] for child in found["children"]] == [os.getpid()]


def test_a_process_that_becomes_another_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else asks meanwhile, as a look does that another test has given up, changes nothing."""
    worker, found = pin_self(), proc.nothing()
    monkeypatch.setattr(
        procfs, "start_time", lambda _pid: worker.started if found == proc.nothing() else worker.started + 1
    )
    with pytest.raises(ProcessLookupError):
        proc.collect(worker, found)
    assert found == proc.nothing()


def test_a_thread_is_known_by_the_number_that_python_has_for_it() -> None:
    """And by it alone: what names none, or two, or lies nowhere, is not known, and costs nothing else."""
    numbers: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    over = threading.Event()

    def works() -> None:
        numbers.put((threading.get_ident(), threading.get_native_id()))
        over.wait(PATIENCE)

    threads = [threading.Thread(target=works) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        known = [numbers.get(timeout=PATIENCE) for _ in threads]
        known.append((threading.get_ident(), threading.get_native_id()))
        worker = pin_self()

        def entered_by(ident: int) -> int:
            found = proc.nothing()
            proc.collect(worker, found, ident)
            assert found["command"]
            return int(found["entered_by"])

        assert [entered_by(ident) for ident, _tid in known] == [tid for _ident, tid in known]
        both = struct.pack("=256i", *(tid for _ident, tid in known), *[0] * 252)
        ambiguous = ctypes.create_string_buffer(both, len(both))
        nonsense = [0, 1, ctypes.addressof(ambiguous), 2**53, 2**63, 2**64 - 4096]
        assert [entered_by(ident) for ident in nonsense] == [0] * len(nonsense)
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_a_thread_is_known_though_another_one_ends_meanwhile() -> None:
    found: dict[str, Any] = {"threads": [{"tid": 4194305}, {"tid": threading.get_native_id()}]}
    proc._entered_by(os.getpid(), found, threading.get_ident())  # the largest tid there can be is 4194304
    assert found["entered_by"] == threading.get_native_id()


def pin_self() -> WorkerId:
    """Return who this process is."""
    worker, pidfd = pin(os.getpid())
    os.close(pidfd)
    return worker


# -- when the signal must not be sent ------------------------------------------------------------------


@pytest.mark.parametrize("signum", [0.0, float("nan"), float("inf"), -1.0, float(signal.SIGKILL), 65.0])
async def test_no_other_signal_is_sent_than_a_real_time_one(signum: float, tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        it.announce(signum, it.announced()[1])
        found = await gather(it.subject(), PATIENCE)
        assert found.probes["stacks"] == "the worker has no dump signal"
        assert found.verdict.startswith("no Python stack; the main thread is ")
        assert it.worker.process.poll() is None


@pytest.mark.parametrize(
    ("before", "change", "reason"),
    [
        ("", (1, 0), "does not catch"),
        ("", (0, -1), "another file"),
        ("", (0, 1000), "cannot be told"),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signum]); ", (0, 0), "the thread blocks"),
        ("faulthandler.unregister(signum); ", (0, 0), "does not catch"),
    ],
)
async def test_the_signal_is_not_sent_where_it_would_harm(
    before: str, change: tuple[int, int], reason: str, tmp_path: Path
) -> None:
    with hanging(tmp_path, before + BODIES["sleep"]) as it:
        signum, descriptor = it.announced()
        it.announce(signum + change[0], descriptor + change[1])
        found = await gather(it.subject(), PATIENCE)
        assert reason in found.probes["stacks"]
        assert signals_waiting(it.pid) == 0
        assert it.worker.process.poll() is None


async def test_the_signal_is_not_sent_to_who_may_live_on(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        found = await gather(it.subject()._replace(kills_next=False), PATIENCE)
        assert found.probes["stacks"] == "not sent, because SIGKILL is not what comes next"
        assert os.fstat(it.table).st_size == layout.TABLE_SIZE, "nothing has been written"


async def test_the_signal_is_not_sent_to_who_has_just_been_released(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        target = stacks.Target(
            it.pid, it.pidfd, it.table, it.subject().table_inode, connected=True, confirm=lambda: False
        )
        with pytest.raises(NotSafe, match="released just now"):
            stacks.collect(target, PATIENCE, threading.Event())
        assert os.fstat(it.table).st_size == layout.TABLE_SIZE, "nothing has been written"


async def test_a_stopped_worker_is_told_and_left_alone(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        stop(it.pid)
        found = await gather(it.subject(), PATIENCE)
        assert found.verdict == "stopped"
        assert "stopped" in found.probes["stacks"]
        assert signals_waiting(it.pid) == 0
        assert procfs.state_of(it.pid) == "T (stopped)"


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
seized = libc.ptrace(0x4206, int(sys.argv[1]), None, None)  # PTRACE_SEIZE: it goes on
print("traced" if seized == 0 else os.strerror(ctypes.get_errno()), flush=True)
sys.stdin.read()
"""


async def test_a_worker_in_a_debugger(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it, spawn_worker(TRACER, None, str(it.pid)) as tracer:
        assert tracer.wait_line("") == "traced"
        found = await gather(it.subject(), PATIENCE)
        assert found.verdict == f"in a debugger ({found.process['tracer_name']}, pid {tracer.pid})"
        assert "traced" in found.probes["stacks"]
        assert signals_waiting(it.pid) == 0


async def test_a_worker_in_uninterruptible_sleep_is_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = procfs.status
    monkeypatch.setattr(
        procfs, "status", lambda pid, tid=None: {**fields(pid, tid), "State": "D (disk sleep)"}
    )
    with hanging(tmp_path, BODIES["sleep"]) as it:
        found = await gather(it.subject(), PATIENCE)
        assert "uninterruptible" in found.probes["stacks"]


@pytest.mark.parametrize("waited_for", [False, True])
async def test_a_dead_worker_is_gone(waited_for: bool, tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        it.worker.process.kill()
        os.waitid(os.P_PID, it.pid, os.WEXITED | (0 if waited_for else os.WNOWAIT))
        found = await gather(it.subject(), PATIENCE)
        assert (found.verdict, found.stacks) == ("gone", [])
        with pytest.raises(NotSafe):
            target = stacks.Target(it.pid, it.pidfd, it.table, it.subject().table_inode, connected=True)
            stacks.check_safe(target, it.pid, *it.announced())
        with pytest.raises(ProcessLookupError) if waited_for else contextlib.nullcontext():
            proc.collect(it.id, proc.nothing())


async def test_a_pid_that_is_another_s_by_now(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        subject = it.subject()
        found = await gather(subject._replace(id=subject.id._replace(started=1)), PATIENCE)
        assert found.probes["proc"] == "the process is gone"
        assert found.process == proc.nothing()


async def test_a_pidfd_that_is_closed_already(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it:
        found = await gather(it.subject()._replace(pidfd=-1), PATIENCE)
        assert found.verdict == "nothing is known"


async def test_a_pidfd_that_is_another_process_s_by_now(tmp_path: Path) -> None:
    with hanging(tmp_path, BODIES["sleep"]) as it, bystander() as other:
        pidfd = os.pidfd_open(other)
        for wrong in (pidfd, it.table):
            found = await gather(it.subject()._replace(pidfd=wrong), PATIENCE)
            assert (found.verdict, found.probes) == ("gone", {})
        os.close(pidfd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can signal another user's process")
async def test_a_worker_that_has_become_another_user(tmp_path: Path) -> None:
    body = f"os.setresuid(65534, 65534, 65534); {BODIES['sleep']}"
    with hanging(tmp_path, body) as it:
        found = await gather(it.subject(), PATIENCE)
        assert found.where == f"app.py:{LINE}"


# -- from outside ----------------------------------------------------------------------------------------

HELPERS = ["py-spy", "unwinder"] if sys.version_info >= (3, 14) else ["py-spy"]
"""What looks into a worker from outside."""


def use(helper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one of the helpers, if it is installed."""
    monkeypatch.undo()
    monkeypatch.setattr("aiotimer.evidence.gather.PROC_WITHIN", PATIENCE)
    monkeypatch.setattr("aiotimer.evidence.gather.HELPER_WITHIN", PATIENCE)
    if helper == "py-spy":
        monkeypatch.setattr(pyspy, "unwind_command", lambda _pid: None)
        if pyspy.find_pyspy() is None:
            pytest.skip("py-spy is not installed")
    else:
        monkeypatch.setattr(pyspy, "find_pyspy", lambda: None)


def succeeded(found: Findings, helper: str) -> None:
    """It did deliver; skip the test where the machine lets nobody trace."""
    if "ermission" in found.probes[helper] or "not permitted" in found.probes[helper]:
        pytest.skip("this machine does not let us trace our own processes")
    assert found.probes[helper].endswith(" s"), found.probes
    assert "stacks" not in found.probes


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("name", BODIES)
async def test_synchronous_code_is_seen_from_outside(
    name: str, helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(helper, monkeypatch)
    with hanging(tmp_path, BODIES[name]) as it:
        found = await gather(it.subject()._replace(kills_next=False), PATIENCE)
        succeeded(found, helper)
        assert found.where in (f"app.py:{LINE + (name == 'spin')}", f"app.py:{LINE}")
        assert found.stacks[-1]["main"]
        assert it.worker.process.poll() is None


@pytest.mark.parametrize("helper", HELPERS)
async def test_who_holds_the_gil_is_seen_from_outside(
    helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(helper, monkeypatch)
    with hanging(tmp_path, BODIES["gil"]) as it:
        await asyncio.to_thread(wait_for_syscall, it.pid, "futex")
        found = await gather(it.subject(), PATIENCE)
        succeeded(found, helper)
        in_c = f"holding the GIL in native code, called at app.py:{LINE} in step (in futex)"
        assert found.verdict == in_c
        (one,) = found.stacks
        assert (one["gil"], one["main"], one["state"]) == (True, True, "S (sleeping)")
        assert it.pid == one["tid"]
        assert it.worker.process.poll() is None


@pytest.mark.parametrize("helper", HELPERS)
async def test_what_a_stopped_worker_did_is_seen_from_outside(
    helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(helper, monkeypatch)
    with hanging(tmp_path, BODIES["sleep"]) as it:
        stop(it.pid)
        found = await gather(it.subject(), PATIENCE)
        succeeded(found, helper)
        assert found.verdict == f"stopped at app.py:{LINE} in step"
        assert procfs.state_of(it.pid) == "T (stopped)"


def wait_for_syscall(pid: int, name: str, tid: int = 0) -> None:
    """Wait until a process, or a thread of it, is in a system call."""
    for _ in range(int(PATIENCE / 0.01)):
        if calls.syscall_name(procfs.syscall(pid, tid or pid)) == name:
            return
        signal.sigtimedwait([], 0.01)
    raise AssertionError(f"process {pid} is not in {name}")


# -- no probe kills what it looks at -----------------------------------------------------------------------

BUSY = """\
import os, sys, threading
from aiotimer import configure, expires

def f(n):
    return f(n - 1) if n else 0

def healthy():
    while True:
        f(20); [g() for g in [lambda: f(3)] * 5]

os.nice(10)  # it is to be busy, and not to keep others waiting who look at it
configure(os.environ["AIOTIMER_SOCKET"])
sys.setswitchinterval(0.0005)  # or the main thread would wait for its turn most of the time
for _ in range(4):
    threading.Thread(target=healthy, daemon=True).start()
for number in range(int(sys.argv[1])):
    with expires(after=0.01, scope="slow", observe=True):
        sys.stdin.readline()
    print("left", number, flush=True)
os._exit(0)
"""
"""A worker of which four threads push and pop frames as fast as they can, while its blocks are observed."""

BETWEEN = 0.005
"""Seconds between a helper's first look and its next ones: here nobody has to be seen to move."""


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("_worker", range(3))
@pytest.mark.parametrize(
    ("permitted", "expiries"),
    [pytest.param(True, 10, id="ptrace is permitted"), pytest.param(False, 20, id="ptrace is refused")],
)
async def test_a_busy_worker_that_is_looked_at_again_and_again_is_alive(
    permitted: bool, expiries: int, _worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three workers, each in a test: busy ones make a look long. A helper has up to four looks an expiry."""
    monkeypatch.undo()
    monkeypatch.setattr(motion, "BETWEEN", BETWEEN)
    if not permitted:
        refuse = "echo 'Error: Permission denied (os error 13)' >&2; exit 1"
        monkeypatch.setattr(pyspy, "unwind_command", lambda _pid: ["sh", "-c", refuse])
        monkeypatch.setattr(pyspy, "find_pyspy", lambda: None)
    async with serving() as server:
        with spawn_worker(BUSY, server.socket_path, str(expiries)) as worker:
            for number in range(expiries):
                enough = partial(lambda n: len(server.all_told("observed")) > n, number)
                await server.until(enough, f"number {number}")
                worker.say("go on")
                await asyncio.to_thread(worker.wait_line, f"left {number}")
            assert await asyncio.to_thread(worker.process.wait, PATIENCE) == 0
