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
    said = Verdict("awaiting (loop alive) at train.py:42 in rollout", "train.py:42")
    assert verdict(process(), tasks, [main(*IDLE)], "train.py:40", asked=1, answered=1) == said
    assert verdict(process(), tasks, [], "else", asked=2, answered=1) == said  # another loop may hang


def test_the_block_s_task_was_cancelled_and_did_not_end() -> None:
    cancelled = task(ROLLOUT, own=True, waits_for="asyncio.sleep; cancelled after 0.5 s, and did not end")
    said = verdict(process(), [cancelled], [main(*IDLE)], asked=1, answered=1)
    assert said.text.endswith(" at train.py:42 in rollout; cancelled after 0.5 s, and did not end")
    said = verdict(process(), [{**cancelled, "own": False}], [main(*IDLE)], asked=1, answered=1)
    assert said.text.endswith(" at train.py:42 in rollout")


def test_what_became_of_the_soft_limit_is_said_once() -> None:
    said = verdict(process(), [], [main(*IDLE)], asked=1, cancelled="not cancelled after 2 s: its loop ...")
    assert said.text.endswith("; not cancelled after 2 s: its loop ...")
    cancelled = task(ROLLOUT, own=True, waits_for="asyncio.sleep; cancelled after 0.5 s, and did not end")
    told = "cancelled at its soft limit, and did not end"
    said = verdict(process(), [cancelled], [main(*IDLE)], asked=1, answered=1, cancelled=told)
    assert said.text.endswith(" in rollout; cancelled after 0.5 s, and did not end")
    assert verdict(process(), [], [], gone=True, cancelled=told) == ("gone", "")
    long = main(*RUN, ["/app/train.py", 42, "x" * 600])
    said = verdict(process(), [], [long], cancelled=told)
    assert said.text.endswith(f"xxx; {told}")
    assert len(said.text) == 500


def test_of_a_task_without_frames_only_the_loop_is_known() -> None:
    said = verdict(process(), [task(own=True)], [], asked=1, answered=1)
    assert said == ("awaiting (loop alive)", "")


def test_without_an_own_task_the_likeliest_one() -> None:
    named = task(["/app/train.py", 45, "main"], ["/app/train.py", 41, "inner"])
    far, running = task(["/app/train.py", 400, "far"]), task(STEP, waits_for="")
    tasks = [running, task(LOCK), far, named]
    elsewhere = task(STEP)
    said = verdict(process(), [elsewhere, named], [main(*IDLE)], "train.py:40", asked=1, answered=1)
    assert said == ("awaiting (loop alive) at train.py:41 in inner", "train.py:41")
    unknown = ("awaiting (loop alive); which of 4 tasks entered the block is not known", "")
    for scope in ("custom", "train.py:40"):
        assert verdict(process(), tasks, [], scope, asked=1, answered=1) == unknown, "it may be either"
    said = verdict(process(), tasks[:3], [], "custom", asked=1, answered=1)
    assert said.where == "train.py:400", "the only one that waits in the user's code"
    assert verdict(process(), tasks, [], "", asked=1, answered=1).where == "train.py:400", "there is no block"
    many = verdict(process(), tasks, [], "train.py:40", asked=1, answered=1, left_out=2996)
    assert many == ("awaiting (loop alive); which of 3,000 tasks entered the block is not known", "")
    assert verdict(process(), [running], [], "custom", asked=1, answered=1).where == "step.py:7"
    assert verdict(process(), [], [], asked=1, answered=1) == ("awaiting (loop alive)", "")


def test_a_thread_beside_a_loop_that_is_alive() -> None:
    stacks = [thread(["/app/train.py", 43, "work"], LOCK, syscall="futex"), main(*IDLE)]
    said = verdict(process(), [task(STEP)], stacks, "train.py:42", asked=1, answered=1)
    text = "waits for a condition at train.py:43 in work; other threads: train.py:90 in <module>"
    assert said == (text, "train.py:43")


# --- a loop that is not


def test_a_blocked_loop_by_its_stack() -> None:
    stacks = [thread(LOCK), main(*RUN, ROLLOUT)]
    said = Verdict("event loop blocked in Python at train.py:42 in rollout", "train.py:42")
    running = process(syscall="running")
    assert verdict(running, [], stacks) == said
    assert verdict(running, [], stacks, asked=1) == said


def test_a_blocked_loop_by_its_silence() -> None:
    said = verdict(process(syscall="running"), [], [main(STEP)], asked=1)
    assert said == ("event loop blocked in Python at step.py:7 in step", "step.py:7")


def test_a_blocked_loop_in_a_thread() -> None:
    stacks = [thread(*RUN, ROLLOUT), main(["/app/train.py", 99, "<module>"], LOCK)]
    assert verdict(process(), [], stacks).text == "event loop blocked in Python at train.py:42 in rollout"


def test_an_idle_loop_that_nobody_asked() -> None:
    said = verdict(process(), [], [main(*IDLE)])
    assert said == ("awaiting (loop idle), run at train.py:90 in <module>", "train.py:90")


# --- no loop


@pytest.mark.parametrize(
    ("syscall", "words"),
    [("fstat", " (in fstat)"), ("no system call", " (running)"), ("", "")],
)
def test_synchronous_code(syscall: str, words: str) -> None:
    said = verdict(process(syscall=syscall), [], [main(STEP, LOCK)])
    assert said == (f"blocked in Python at step.py:7 in step{words}", "step.py:7")


def test_who_was_seen_running_is_not_said_to_be_blocked() -> None:
    said = verdict(process(syscall="running"), [], [main(STEP, LOCK)])
    assert said == ("seen running, at step.py:7 in step", "step.py:7")


def test_the_thread_that_the_scope_names() -> None:
    near = thread(["/app/train.py", 44, "near"], LOCK)
    far = thread(["/app/train.py", 142, "far"])
    before = main(["/app/train.py", 41, "before"])
    assert verdict(process(), [], [far, near, before], "train.py:42").where == "train.py:44"
    assert verdict(process(), [], [far, near, before], "train.py:42#2").where == "train.py:44"
    for other in ("other.py:42", "train", "train.py:x", "train.py:²", "train.py:" + "9" * 5000, ":1"):
        assert verdict(process(), [], [far, near, before], other).where == "train.py:41"


def test_the_thread_that_entered_the_block_whatever_the_others_do() -> None:
    waits = main(["/app/train.py", 90, "<module>"], LOCK)
    others = [thread(["/app/other.py", n, "works"]) for n in range(3)]
    guilty = thread(STEP, entered=True, syscall="recvfrom")
    found = verdict(process(), [], [*others, guilty, waits], "step")
    assert found == ("blocked in Python at step.py:7 in step (in recvfrom)", "step.py:7")
    named = verdict(process(), [], [*others, guilty, waits], "other.py:1")
    assert named == found, "a scope's line is a guess beside it"


def test_the_thread_that_entered_the_block_beside_a_loop_that_is_alive() -> None:
    found = verdict(
        process(), [task(ROLLOUT)], [main(*IDLE), thread(STEP, entered=True)], "step", asked=1, answered=1
    )
    assert found.where == "step.py:7"
    looping = [main(*IDLE, entered=True), thread(STEP)]
    assert verdict(process(), [task(ROLLOUT)], looping, "step", asked=1, answered=1).where == "train.py:42"


def test_without_stacks_it_is_the_call_of_the_thread_that_entered_the_block() -> None:
    threads = [
        {"tid": 1, "state": "S (sleeping)", "syscall": "futex"},
        {"tid": 2, "state": "S (sleeping)", "syscall": "recvfrom"},
    ]
    known = process(threads=threads, entered_by=2)
    assert verdict(known, [], []).text == "no Python stack; the block's thread is in recvfrom"
    for other in (0, 1, 3):
        unknown = process(threads=threads, entered_by=other)
        assert verdict(unknown, [], []).text == "no Python stack; the main thread is in futex"


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


def test_of_greenlets_that_are_switched_out_nobody_s_line_is_told() -> None:
    hub: Frame = ["/venv/lib/python3.11/site-packages/gevent/hub.py", 647, "Hub.run"]
    said = verdict(process(syscall="epoll_wait"), [], [main(hub, entered=True, syscall="epoll_wait")], "s")
    assert said.where == ""
    assert said.text.endswith("switched out; which of them entered the block is not known")
    callback = verdict(process(syscall="running"), [], [main(hub, STEP)], "s", asked=1)
    assert callback == ("event loop blocked in Python at step.py:7 in step", "step.py:7")


# --- what it waits for


def test_what_a_thread_waits_for() -> None:
    recv = {"syscall": "recvfrom", "waits": "waits for a socket (recvfrom, 127.0.0.1:80)", "holder": ""}
    said = Verdict("waits for a socket (recvfrom, 127.0.0.1:80) at step.py:7 in step", "step.py:7")
    assert verdict(process(), [], [main(STEP, LOCK, **recv)]) == said
    assert verdict(process(**recv), [], [main(STEP, LOCK)]) == said  # the main thread, by the process
    said = verdict(process(), [], [main(*RUN, STEP, **recv)])
    assert said.text == "event loop blocked: waits for a socket (recvfrom, 127.0.0.1:80) at step.py:7 in step"
    read = {"syscall": "read", "waits": "waits for a pipe (read)", "holder": "child 7 has it"}
    said = verdict(process(), [], [main(STEP, **read)])
    assert said.text == "waits for a pipe (read) at step.py:7 in step; child 7 has it"


def test_who_else_might_end_its_wait() -> None:
    get = [f"{STD}/queue.py", 171, "get"]
    alone = verdict(process(thread_count=1), [], [main(STEP, get, LOCK)])
    assert alone.text == "waits for a queue at step.py:7 in step; no other thread is alive"
    stacks = [main(STEP, get, LOCK), thread(LOCK), thread(ROLLOUT, LOCK), thread(ROLLOUT)]
    said = verdict(process(thread_count=3), [], stacks)
    others = "train.py:42 in rollout (2 threads)"
    assert said.text == f"waits for a queue at step.py:7 in step; other threads: {others}"


def test_who_may_set_a_future() -> None:
    result: Frame = [f"{STD}/concurrent/futures/_base.py", 451, "Future.result"]
    pool: Frame = [f"{STD}/concurrent/futures/thread.py", 58, "_WorkItem.run"]
    waits = "waits for the result of a future at step.py:7 in step"
    stacks = [main(STEP, result, LOCK, entered=True), thread(pool, ROLLOUT, LOCK), thread(STEP, LOCK)]
    said = verdict(process(thread_count=3), [], stacks)
    assert said.text == f"{waits}; other threads: train.py:42 in rollout"
    said = verdict(process(thread_count=2), [], [stacks[0], stacks[2]])
    assert said.text == f"{waits}; other threads: step.py:7 in step", "it may be whoever"
    said = verdict(process(thread_count=1), [], stacks[:1])
    assert said.text == f"{waits}; no other thread is alive"


def test_a_proxy_of_a_manager_is_not_the_user_s_code() -> None:
    proxy, called = ["<string>", 2, "get"], [f"{STD}/multiprocessing/managers.py", 822, "_callmethod"]
    said = verdict(process(), [], [main(STEP, proxy, called, syscall="read")])
    assert said.where == "step.py:7"
    assert verdict(process(), [], [main(STEP, proxy, LOCK, syscall="read")]).where == "<string>:2"
    assert verdict(process(), [], [main(proxy, called, syscall="read")]).where == "managers.py:822"


def test_who_has_the_gil_waits_for_nothing_and_who_has_it_not_maybe_for_that() -> None:
    has, waits, spins = main(STEP, gil=True), main(STEP, gil=False), thread(ROLLOUT, gil=True)
    assert verdict(process(), [], [has]).text == "blocked in Python at step.py:7 in step (in futex)"
    assert verdict(process(), [], [waits, spins]).text == "blocked in Python at step.py:7 in step (in futex)"
    assert verdict(process(), [], [waits]).text.startswith(
        "waits for a lock or a condition (futex) at step.py:7"
    )


# --- the GIL


def test_native_code_with_the_gil() -> None:
    holder = main(STEP, gil=True, native=["step (ext.so)", "sleep (libc.so.6)"])
    said = Verdict("holding the GIL in native code, called at step.py:7 in step", "step.py:7")
    assert verdict(process(), [], [holder]) == said
    assert verdict(process(), [], [holder], asked=1) == said


@pytest.mark.parametrize(
    "facts",
    [{"gil": None}, {"gil": False}, {"gil": True, "native": []}, {"gil": True, "native": [], "ran": 0.9}],
)
def test_no_claim_about_the_gil_that_nobody_saw(facts: dict[str, Any]) -> None:
    one = main(STEP, **{"native": ["sleep (libc.so.6)"], **facts})
    assert verdict(process(syscall="running"), [], [one]).text == "seen running, at step.py:7 in step"


def test_another_thread_with_the_gil() -> None:
    holder = thread(STEP, gil=True, ran=0.0, moves=-1, thread="plugin", syscall="clock_nanosleep")
    words = 'the GIL is held by thread "plugin" in `step` at step.py:7 (in clock_nanosleep)'
    said = (f"{words}; everything else waits for it", "step.py:7")
    for starved in (main(*RUN, ROLLOUT, ran=0.001), main(*RUN, ROLLOUT, syscall="futex", ran=0.001)):
        assert verdict(process(), [], [holder, starved]) == said
    was_idle = main(*IDLE, syscall="epoll_wait", ran=0.001)
    assert verdict(process(), [], [holder, was_idle], asked=1) == said
    assert verdict(process(), [], [holder, was_idle]).where == "train.py:90"
    for waiting in (main(STEP, ROLLOUT, syscall="read"), main(STEP, ROLLOUT, syscall="futex", ran=0.0)):
        assert verdict(process(), [], [holder, waiting]).where == "train.py:42"


def test_a_thread_that_joins_others_of_which_one_holds_the_gil() -> None:
    holder = thread(
        STEP, gil=True, ran=0.9, moves=-1, native=["x (y.so)"], thread="grader_0", syscall="running"
    )
    joining = main(ROLLOUT, LOCK, syscall="futex", ran=0.0, entered=True)
    words = 'the GIL is held by thread "grader_0" in `step` at step.py:7 (running)'
    said = verdict(process(), [], [holder, joining])
    assert said == (f"{words}; train.py:42 waits for a thread", "step.py:7")


def test_native_code_that_runs_with_the_gil() -> None:
    holder = main(STEP, gil=True, native=["sre_match (python)"], ran=0.9, moves=-1)
    said = verdict(process(), [], [holder])
    words = "stuck in one call, running (it holds the GIL), called at step.py:7 in step"
    assert said == (f"{words}, or calls it again and again", "step.py:7")
    starved = holder | {"ran": None, "awake": True}
    assert verdict(process(), [], [starved]) == said, "it had no processor, and never slept"
    assert verdict(process(), [], [starved | {"awake": False}]).text.startswith("holding the GIL in native")


# --- running, looping, going round


def test_a_loop_in_python() -> None:
    solve: Frame = ["/app/step.py", 10, "solve"]
    loop = {"moves": 1, "lines": [8, 10, 12], "ran": 0.9}
    said = Verdict("running: loops in `solve`, lines 8 to 12, now at step.py:10", "step.py:10")
    assert verdict(process(), [], [main(STEP, solve, **loop)]) == said
    assert verdict(process(), [], [main(STEP, solve, LOCK, **loop, gil=True, native=["x (y.so)"])]) == said
    slow = verdict(process(), [], [main(STEP, solve, **{**loop, "ran": 0.01})])
    assert slow.text == "loops in `solve`, lines 8 to 12, now at step.py:10"
    blocked = verdict(process(), [], [main(*RUN, solve, **{**loop, "moves": 3})], asked=1)
    assert blocked.text == "event loop blocked, running: loops in `solve`, lines 8 to 12, now at step.py:10"
    through = main(STEP, solve, LOCK, moves=2, lines=[319, 320], ran=0.9)
    assert verdict(process(), [], [through]).text == "running at step.py:10 in solve"
    assert verdict(process(), [], [main(STEP, moves=-1, ran=0.9)]).text == "running at step.py:7 in step"
    waiting = verdict(process(), [], [main(STEP, moves=-1, ran=0.0)])
    assert waiting.text == "waits for a lock or a condition (futex) at step.py:7 in step"
    elsewhere = verdict(process(), [], [main(STEP, LOCK, moves=0, ran=0.0)])
    assert elsewhere.text == "blocked in Python at step.py:7 in step (in futex)"


@pytest.mark.parametrize(
    "stack",
    [
        main(*RUN),
        main(*IDLE),
        main(*RUN, ROLLOUT, moves=2, ran=0.4),
        main(*RUN, ROLLOUT, moves=0, ran=0.4),
        main(*RUN, ROLLOUT, moves=3, ran=0.4),
    ],
    ids=["between two callbacks", "idle", "it goes round", "further out", "in another callback"],
)
def test_a_loop_that_goes_round_is_not_blocked(stack: dict[str, Any]) -> None:
    said = verdict(process(), [], [stack], asked=1)
    assert said.text.startswith("event loop too busy to answer, run at train.py:")


def test_a_loop_that_sleeps_in_nobody_s_code_does_not_answer() -> None:
    said = verdict(process(), [], [main(*IDLE, moves=-1, ran=0.0)], asked=1)
    assert said == ("event loop does not answer, run at train.py:90 in <module>", "train.py:90")


# --- what a task waits for


def test_a_task_that_waits_for_another_one() -> None:
    lost = task(ROLLOUT) | {"name": "rollout-11"}
    own = task(STEP, own=True, waits_for="gather of 16, of which 1 is not done: 'rollout-11'")
    said = verdict(process(), [own, task(), lost], [], asked=1, answered=1)
    assert said == (
        "awaiting (loop alive) 1 of 16, task 'rollout-11', at train.py:42 in rollout",
        "train.py:42",
    )
    direct = task(STEP, own=True, waits_for="task 'rollout-11'")
    said = verdict(process(), [direct, lost], [], asked=1, answered=1)
    assert said.text == "awaiting (loop alive) task 'rollout-11', at train.py:42 in rollout"
    two = verdict(process(), [direct, lost, lost], [], asked=1, answered=1)
    assert two.text == "awaiting (loop alive) at step.py:7 in step"
    ring = [
        task(STEP, own=True, waits_for="task 'b'") | {"name": "a"},
        task(STEP, waits_for="task 'a'") | {"name": "b"},
    ]
    assert verdict(process(), ring, [], asked=1, answered=1).where == "step.py:7"


def test_a_task_that_waits_for_its_group() -> None:
    lost = task(ROLLOUT) | {"name": "it's 'one'"}
    own = task(STEP, own=True, waits_for=f"task group, of which 1 is not done: {lost['name']!r}")
    said = verdict(process(), [own, task(), lost], [], asked=1, answered=1)
    text = f"awaiting (loop alive) 1 of a task group, task {lost['name']!r}, at train.py:42 in rollout"
    assert said == (text, "train.py:42")
    first = task(ROLLOUT) | {"name": "one-2"}
    several = own | {"waits_for": "task group, of which 12 are not done: 'one-2', 'one-11' and 10 more"}
    said = verdict(process(), [several, task() | {"name": "one-11"}, first], [], asked=1, answered=1)
    text = "awaiting (loop alive) 12 of a task group, first task 'one-2', at train.py:42 in rollout"
    assert said == (text, "train.py:42")
    left_out = verdict(process(), [several, task()], [], asked=1, answered=1)
    assert left_out == ("awaiting (loop alive) 12 of a task group, at step.py:7 in step", "step.py:7")


def test_a_task_that_waits_for_a_thread() -> None:
    pool: Frame = [f"{STD}/concurrent/futures/thread.py", 58, "_WorkItem.run"]
    own = task(STEP, [f"{STD}/asyncio/threads.py", 25, "to_thread"], own=True, waits_for="asyncio.to_thread")
    busy, idle = thread(pool, ROLLOUT, syscall="recvfrom"), thread(pool, LOCK)
    said = verdict(process(), [own], [busy, idle, main(*IDLE)], asked=1, answered=1)
    text = "awaiting (loop alive): `to_thread`; its thread is in `rollout` at train.py:42 (in recvfrom)"
    assert said == (text, "train.py:42")
    several = verdict(process(), [own], [busy, busy, main(*IDLE)], asked=1, answered=1)
    text = "awaiting (loop alive): `to_thread`; 2 threads of pools are in `rollout` at train.py:42"
    assert several == (text, "train.py:42")
    elsewhere = thread(pool, ["/app/train.py", 50, "score"])
    apart = verdict(process(), [own], [busy, elsewhere, busy], asked=1, answered=1)
    assert apart.where == "step.py:7"
    assert apart.text == (
        "awaiting (loop alive): `to_thread`, at step.py:7 in step; "
        "threads of pools: train.py:42 in rollout (2 threads) and train.py:50 in score"
    )


def test_a_task_that_waits_for_a_thread_of_anyio_s() -> None:
    anyio = "/venv/lib/python3.11/site-packages/anyio"
    call: Frame = [f"{anyio}/to_thread.py", 65, "run_sync"]
    own = task(STEP, call, own=True, waits_for="<Future pending>")
    worker: Frame = [f"{anyio}/_backends/_asyncio.py", 986, "WorkerThread.run"]
    said = verdict(process(), [own], [thread(worker, ROLLOUT), main(*IDLE)], asked=1, answered=1)
    text = "awaiting (loop alive): `to_thread.run_sync`; its thread is in `rollout` at train.py:42"
    assert said == (text, "train.py:42")


def test_a_task_that_waits_for_a_process_of_a_pool() -> None:
    own = task(STEP, own=True, waits_for="run_in_executor")
    children = [child(7, role="pool worker", line="in read_shard at data.py:15", stack=[SHARD])]
    said = verdict(process(children=children), [own], [main(*IDLE)], asked=1, answered=1)
    assert said.text == (
        "awaiting (loop alive): `run_in_executor`, at step.py:7 in step; "
        "child 7 (pool worker, sleeping): in read_shard at data.py:15"
    )
    idle = verdict(process(), [own], [main(*IDLE)], asked=1, answered=1)
    assert idle == ("awaiting (loop alive): `run_in_executor`, at step.py:7 in step", "step.py:7")


def test_what_a_task_awaits() -> None:
    get: Frame = [f"{STD}/asyncio/queues.py", 158, "Queue.get"]
    own = task(STEP, get, own=True, waits_for="asyncio.Queue.get")
    said = verdict(process(), [own], [], asked=1, answered=1)
    assert said == ("awaiting (loop alive) a queue, at step.py:7 in step", "step.py:7")
    lost = task(ROLLOUT, get) | {"name": "rollout-2"}
    own = task(STEP, own=True, waits_for="gather of 3, of which 2 are not done: 'rollout-2', 'rollout-25'")
    said = verdict(process(), [own, lost], [], asked=1, answered=1)
    assert said.text == (
        "awaiting (loop alive) 2 of 3, first task 'rollout-2', a queue, at train.py:42 in rollout"
    )
    own = task(STEP, own=True, waits_for="wait of 3, of which 1 is not done: 'rollout-2'")
    said = verdict(process(), [own, lost], [], asked=1, answered=1)
    assert said.text == "awaiting (loop alive) 1 of 3, task 'rollout-2', a queue, at train.py:42 in rollout"


def test_a_task_of_a_library_s_own_gives_way_to_the_user_s_line() -> None:
    read: Frame = [f"{STD}/asyncio/streams.py", 540, "StreamReader._wait_for_data"]
    communicate: Frame = [f"{STD}/asyncio/subprocess.py", 200, "Process.communicate"]
    inner = task(read) | {"name": "Task-4"}
    waits = "gather of 3, of which 1 is not done: 'Task-4'"
    own = task(STEP, communicate, own=True, waits_for=waits)
    children = [child(7)]
    said = verdict(process(children=children), [own, inner], [], asked=1, answered=1)
    assert said == (
        "awaiting (loop alive) a child process, at step.py:7 in step; child 7 (python, sleeping)",
        "step.py:7",
    )
    both = verdict(process(children=[child(7), child(8)]), [own, inner], [], asked=1, answered=1)
    assert both.text == "awaiting (loop alive) a child process, at step.py:7 in step", (
        "which one is not known"
    )
    own = task(STEP, own=True, waits_for=waits)
    said = verdict(process(), [own, inner], [], asked=1, answered=1)
    assert said.text == (
        "awaiting (loop alive) 1 of 3, task 'Task-4', data of a stream, at step.py:7 in step"
    )


def test_a_task_that_polls() -> None:
    own = task(STEP, own=True, waits_for="asyncio.sleep in a loop")
    assert (
        verdict(process(), [own], [], asked=1, answered=1).text == "polling (loop alive) at step.py:7 in step"
    )


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


NAMED = ("/usr/lib/python3.11/", "/src/cpython/Lib/", "/project/.venv/lib/python3.11/site-packages/")


@pytest.mark.parametrize(
    ("file", "users"),
    [
        ("/src/cpython/Lib/asyncio/taskgroups.py", False),
        ("/home/x/lib/python3.11/train.py", True),
        ("/project/train.py", True),
        ("/project/.venv/lib/python3.11/site-packages/torch/x.py", False),
        ("/project/src/package/x.py", True),
        ("/app/jobs.pyz/__main__.py", True),
        ("/elsewhere/site-packages/x.py", True),
        ("<frozen runpy>", False),
        ("uvloop/loop.pyx", False),
        ("<string>", True),
        (aiotimer.__file__, False),
    ],
)
def test_whose_a_file_is_says_the_worker(file: str, users: bool) -> None:
    assert is_users(file, NAMED) is users


def test_the_verdict_goes_by_what_the_worker_has_said() -> None:
    stack = main(
        ROLLOUT, ["/src/cpython/Lib/asyncio/taskgroups.py", 7, "f"], ["/usr/lib/python3.11/x.py", 1, "g"]
    )
    assert verdict(process(), [], [stack]).where == "taskgroups.py:7"
    assert verdict(process(libraries=list(NAMED)), [], [stack]).where == "train.py:42"


@pytest.mark.parametrize("file", LIBRARIES)
def test_the_files_of_libraries(file: str) -> None:
    assert not is_users(file)


# --- children


SHARD: Frame = ["/app/data.py", 15, "read_shard"]
GET: Frame = [f"{STD}/multiprocessing/queues.py", 103, "get"]


def child(pid: int, state: str = "S (sleeping)", **facts: Any) -> dict[str, Any]:
    return {"pid": pid, "name": "python", "state": state, "line": "", "exit": "", "stack": [], **facts}


def test_the_children_of_who_may_wait_for_them_are_named() -> None:
    busy = child(7, line="in read_shard at data.py:15", stack=[SHARD])
    idle = child(9, line="in get at queues.py:103", stack=[GET])
    dead = child(8, "Z (zombie)", exit="exit 9")
    said = verdict(process(syscall="read", children=[idle, busy, dead]), [], [main(STEP)])
    assert said.where == "step.py:7"
    assert said.text == (
        "blocked in Python at step.py:7 in step (in read); child 8 (python, dead: zombie, exit 9); "
        "child 7 (python, sleeping): in read_shard at data.py:15"
    )
    waits = "waits for child 7 (python data.py, sleeping)"
    waiting = process(syscall="wait4", waits=waits, children=[busy])
    said = verdict(waiting, [], [main(STEP)])
    assert said.text == f"{waits} at step.py:7 in step; child 7: in read_shard at data.py:15"
    others = verdict(process(syscall="running", children=[busy, dead]), [], [main(STEP)])
    assert others.text == "seen running, at step.py:7 in step"


def test_nothing_is_said_of_children_where_there_is_no_line() -> None:
    dead = child(8, "Z (zombie)")
    assert "child" not in verdict(process(syscall="wait4", children=[dead]), [], []).text
