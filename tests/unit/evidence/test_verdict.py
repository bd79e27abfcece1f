"""The verdict: the right words and the right line, from whatever the probes found."""

from typing import Any

import pytest

import aiotimer
from aiotimer.evidence import proc
from aiotimer.evidence.findings import Frame, stack
from aiotimer.evidence.verdict import Verdict, is_users, verdict

STD = "/usr/lib/python3.11"
RUN: list[Frame] = [
    ["/app/train.py", 90, "<module>"],
    [f"{STD}/asyncio/runners.py", 190, "run"],
    [f"{STD}/asyncio/base_events.py", 607, "run_forever"],
]
IDLE: list[Frame] = [*RUN, [f"{STD}/selectors.py", 468, "select"]]
ROLLOUT: Frame = ["/app/train.py", 42, "rollout"]
STEP: Frame = ["/app/step.py", 7, "step"]
LOCK: Frame = [f"{STD}/threading.py", 320, "wait"]


def process(state: str = "S (sleeping)", **facts: Any) -> dict[str, Any]:
    return {**proc.nothing(), "state": state, "syscall": "futex", **facts}


def task(*frames: Frame, own: bool = False, waits_for: str = "a future") -> dict[str, Any]:
    return {
        "loop": "a loop",
        "thread": "MainThread",
        "name": "Task-1",
        "count": 1,
        "own": own,
        "frames": list(frames),
        "waits_for": waits_for,
    }


def thread(*frames: Frame, main: bool = False, **facts: Any) -> dict[str, Any]:
    return {**stack("", list(frames)), "main": main, **facts}


def main(*frames: Frame, **facts: Any) -> dict[str, Any]:
    return thread(*frames, main=True, **facts)


# --- what the kernel says comes first


@pytest.mark.parametrize("state", ["S (sleeping)", "T (stopped)", "Z (zombie)", ""])
def test_what_is_dead_is_gone(state: str) -> None:
    assert verdict(process(state), [task(ROLLOUT, own=True)], [main(STEP)], gone=True) == ("gone", "")


@pytest.mark.parametrize("state", ["Z (zombie)", "X (dead)"])
def test_a_zombie_is_gone(state: str) -> None:
    assert verdict(process(state), [], []) == ("gone", "")


@pytest.mark.parametrize("state", ["T (stopped)", "t (tracing stop)"])
def test_stopped(state: str) -> None:
    assert verdict(process(state), [], []) == ("stopped", "")
    assert verdict(process(state), [], [main(STEP)]) == ("stopped at step.py:7 in step", "step.py:7")


@pytest.mark.parametrize("state", ["S (sleeping)", "t (tracing stop)", "T (stopped)"])
def test_a_debugger_goes_before_being_stopped(state: str) -> None:
    traced = process(state, tracer=99, tracer_name="gdb")
    assert verdict(traced, [], []).text == "in a debugger (gdb, pid 99)"
    assert verdict(traced, [], [main(STEP)]).text == "in a debugger (gdb, pid 99) at step.py:7 in step"
    assert verdict({**traced, "tracer_name": ""}, [], []).text == "in a debugger (pid 99)"


def test_uninterruptible_sleep() -> None:
    sleeping = process("D (disk sleep)", wchan="nfs_wait")
    assert verdict(sleeping, [], []).text == "in uninterruptible sleep (nfs_wait)"
    assert verdict({**sleeping, "wchan": ""}, [], []).text == "in uninterruptible sleep"
    assert (
        verdict(sleeping, [], [main(STEP)]).text == "in uninterruptible sleep (nfs_wait) at step.py:7 in step"
    )
    asleep = main(STEP, state="D (disk sleep)")
    assert verdict(process(), [], [asleep]).text == "in uninterruptible sleep at step.py:7 in step"


# --- a loop that is alive


def test_the_block_s_own_task() -> None:
    tasks = [task(STEP), task(["/app/train.py", 90, "main"], ROLLOUT, LOCK, own=True)]
    said = Verdict("awaiting forever (loop alive) at train.py:42 in rollout", "train.py:42")
    assert verdict(process(), tasks, [main(*IDLE)], "train.py:40", asked=1, answered=1) == said
    assert verdict(process(), tasks, [], "else", asked=2, answered=1) == said  # another loop may hang


def test_of_a_task_without_frames_only_the_loop_is_known() -> None:
    said = verdict(process(), [task(own=True)], [], asked=1, answered=1)
    assert said == ("awaiting forever (loop alive)", "")


def test_without_an_own_task_the_likeliest_one() -> None:
    named = task(["/app/train.py", 45, "main"], ["/app/train.py", 41, "inner"])
    far, running = task(["/app/train.py", 400, "far"]), task(STEP, waits_for="")
    tasks = [running, task(LOCK), far, named]
    said = verdict(process(), tasks, [main(*IDLE)], "train.py:40", asked=1, answered=1)
    assert said == ("awaiting forever (loop alive) at train.py:41 in inner", "train.py:41")
    said = verdict(process(), tasks, [], "custom", asked=1, answered=1)
    assert said.where == "train.py:400"  # the first that waits in the user's code
    assert verdict(process(), [running], [], "custom", asked=1, answered=1).where == "step.py:7"
    assert verdict(process(), [], [], asked=1, answered=1) == ("awaiting forever (loop alive)", "")


def test_a_thread_beside_a_loop_that_is_alive() -> None:
    stacks = [thread(["/app/train.py", 43, "work"], LOCK, syscall="futex"), main(*IDLE)]
    said = verdict(process(), [task(STEP)], stacks, "train.py:42", asked=1, answered=1)
    assert said == ("blocked in Python at train.py:43 in work (in futex)", "train.py:43")


# --- a loop that is not


def test_a_blocked_loop_by_its_stack() -> None:
    stacks = [thread(LOCK), main(*RUN, ROLLOUT)]
    said = Verdict("event loop blocked in Python at train.py:42 in rollout", "train.py:42")
    assert verdict(process(), [], stacks) == said
    assert verdict(process(), [], stacks, asked=1) == said


def test_a_blocked_loop_by_its_silence() -> None:
    said = verdict(process(), [], [main(STEP)], asked=1)
    assert said == ("event loop blocked in Python at step.py:7 in step", "step.py:7")


def test_a_blocked_loop_in_a_thread() -> None:
    stacks = [thread(*RUN, ROLLOUT), main(["/app/train.py", 99, "<module>"], LOCK)]
    assert verdict(process(), [], stacks).text == "event loop blocked in Python at train.py:42 in rollout"


def test_an_idle_loop_that_nobody_asked() -> None:
    said = verdict(process(), [], [main(*IDLE)])
    assert said == ("awaiting forever (loop idle), run at train.py:90 in <module>", "train.py:90")


# --- no loop


@pytest.mark.parametrize(
    ("syscall", "words"),
    [("futex", " (in futex)"), ("running", " (running)"), ("no system call", " (running)"), ("", "")],
)
def test_synchronous_code(syscall: str, words: str) -> None:
    said = verdict(process(syscall=syscall), [], [main(STEP, LOCK)])
    assert said == (f"blocked in Python at step.py:7 in step{words}", "step.py:7")


def test_the_thread_that_the_scope_names() -> None:
    near = thread(["/app/train.py", 44, "near"], LOCK)
    far = thread(["/app/train.py", 142, "far"])
    before = main(["/app/train.py", 41, "before"])
    assert verdict(process(), [], [far, near, before], "train.py:42").where == "train.py:44"
    assert verdict(process(), [], [far, near, before], "train.py:42#2").where == "train.py:44"
    for other in ("other.py:42", "train", "train.py:x", "train.py:²", "train.py:" + "9" * 5000, ":1"):
        assert verdict(process(), [], [far, near, before], other).where == "train.py:41"


def test_a_main_thread_that_only_waits_for_another_one() -> None:
    waiting = main(["/app/train.py", 99, "<module>"], [f"{STD}/threading.py", 1112, "join"])
    work, idle = thread(STEP, LOCK), thread(LOCK)
    assert verdict(process(), [], [idle, work, waiting]).where == "step.py:7"
    assert verdict(process(), [], [work, work, waiting]).where == "train.py:99"
    assert verdict(process(), [], [idle, waiting]).where == "train.py:99"


def test_without_a_main_thread_the_current_one_else_the_last() -> None:
    one, two = thread(STEP), thread(ROLLOUT)
    assert verdict(process(), [], [{**one, "current": True}, two]).where == "step.py:7"
    assert verdict(process(), [], [one, two, thread()]).where == "train.py:42"


def test_code_that_is_no_user_s_is_better_than_none() -> None:
    assert verdict(process(), [], [main(LOCK)]).where == "threading.py:320"


# --- the GIL


def test_native_code_with_the_gil() -> None:
    holder = main(STEP, gil=True, native=["step (ext.so)", "sleep (libc.so.6)"])
    said = Verdict("holding the GIL in native code, called at step.py:7 in step", "step.py:7")
    assert verdict(process(), [], [holder]) == said
    assert verdict(process(), [], [holder], asked=1) == said


@pytest.mark.parametrize("facts", [{"gil": None}, {"gil": False}, {"gil": True, "native": []}])
def test_no_claim_about_the_gil_that_nobody_saw(facts: dict[str, Any]) -> None:
    one = main(STEP, **{"native": ["sleep (libc.so.6)"], **facts})
    assert verdict(process(), [], [one]).text.startswith("blocked in Python at step.py:7")


def test_another_thread_with_the_gil() -> None:
    holder = thread(STEP, gil=True, native=["compute (ext.so)"])
    starved = main(*RUN, ROLLOUT, native=["futex (libc.so.6)", "take_gil (python3.11)"])
    waiting = main(*RUN, ROLLOUT, native=["read (libc.so.6)"])
    assert verdict(process(), [], [holder, starved]).where == "step.py:7"
    assert verdict(process(), [], [holder, waiting]).where == "train.py:42"


# --- nearly nothing


def test_from_proc_alone() -> None:
    for stacks in ([], [main()]):
        said = verdict(process(), [], stacks)
        assert said == ("no Python stack; the main thread is in futex", "")
    assert verdict(process(syscall="running"), [], []).text.endswith("is running")
    assert verdict(process(syscall=""), [], []).text.endswith("is S (sleeping)")
    assert verdict(proc.nothing(), [], []) == ("nothing is known", "")


def test_a_verdict_is_not_longer_than_a_line_or_five() -> None:
    said = verdict(process(), [], [main(["/" + "x" * 1000, 1, "y" * 1000])])
    assert len(said.text) <= 500
    assert len(said.where) <= 500


# -- whose file it is ------------------------------------------------------------------------------------

USERS = [
    "/app/train.py",
    "train.py",
    "jobs/train.py",
    "./train.py",
    "<string>",
    "<stdin>",
    "?",
    "/srv/lib/python3-jobs/train.py",
    "/srv/lib/python3/train.py",
    "/home/x/python3.11/train.py",
    "/home/x/mylib/python3.11/train.py",
    "/home/x/aiotimer/train.py",
    "/home/x/uvloop/train.py",
    "/home/x/site-packages-of-mine/train.py",
    "/home/x/<frozen runpy>/train.py",
    "/home/x/fast.pyx.py",
    "/app/jobs.zip/train.py",
    "/app/jobs.pyz/__main__.py",
    "/venv/bin/train",
    "/home/x/.pyenv/train.py",
    "/opt/conda/train.py",
]

LIBRARIES = [
    "/usr/lib/python3.11/queue.py",
    "/usr/lib64/python3.9/threading.py",
    "/usr/local/lib/python3.12/asyncio/runners.py",
    "/opt/lib64/python3.13t/asyncio/queues.py",
    "/home/x/.pyenv/versions/3.11.7/lib/python3.11/selectors.py",
    "/home/x/.local/share/uv/python/cpython-3.12.3-linux-x86_64-gnu/lib/python3.12/queue.py",
    "/opt/conda/lib/python3.10/concurrent/futures/thread.py",
    "/opt/conda/envs/rl/lib/python3.10/site-packages/torch/x.py",
    "/home/x/.local/lib/python3.11/site-packages/x.py",
    "/venv/lib/python3.11/site-packages/torch/x.py",
    "/venv/lib64/python3.11/site-packages/torch/x.py",
    ".venv/lib/python3.11/site-packages/torch/x.py",
    "lib/python3.11/queue.py",
    "site-packages/x.py",
    "/usr/lib/python3/dist-packages/x.py",
    "/usr/local/lib/python3.12/dist-packages/x.py",
    "/usr/lib/python311.zip/queue.py",
    "/venv/lib/python3.11/site-packages/x-1.0-py3.11.egg/x/y.py",
    "/app/jobs.pyz/site-packages/x.py",
    "<frozen runpy>",
    "<frozen importlib._bootstrap>",
    "<frozen zipimport>",
    "uvloop/loop.pyx",
    "uvloop/handles/poll.pyx",
    "uvloop/includes/uv.pxd",
    "sklearn/tree/_criterion.pxi",
    "/project/numpy/random/mtrand.pyx",
    "/venv/lib/python3.11/site-packages/aiotimer/client/block.py",
    aiotimer.__file__,
    aiotimer.expires.__code__.co_filename,
    "/usr/lib/python3.11/a\nb.py",
    "/a\nb/site-packages/x.py",
]


@pytest.mark.parametrize("file", USERS)
def test_the_user_s_files(file: str) -> None:
    assert is_users(file)


@pytest.mark.parametrize("file", LIBRARIES)
def test_the_files_of_libraries(file: str) -> None:
    assert not is_users(file)
