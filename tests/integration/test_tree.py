"""Trees of real processes: who is reaped with a worker, and who is not.

The laws of this file: a family is a session of its own, of which each process says who it is before anything
expires; who survives is ended by its test. That somebody is not signalled is shown when all that could have
been done is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from aiotimer import TimerRequest
from aiotimer._core.requests import WorkerId
from aiotimer._linux.process import pin, send_signal
from aiotimer._linux.procfs import members_of, start_time, states_of
from aiotimer.server import tree as trees
from aiotimer.server.pinned_process import PinnedProcess
from aiotimer.server.slices import finish
from aiotimer.server.tree import Tree
from tests.fakes.clock import PATIENCE
from tests.fakes.server import WatchfulServer, serving
from tests.fakes.worker import is_alive, spawn_worker, wait_dead
from tests.integration.test_ladder import due, during_evidence

STUBBORN = "bash -c 'trap \"\" TERM; echo $$; exec sleep 1000'"
"""It does not end at SIGTERM, which is ignored over an exec, too."""


@contextlib.contextmanager
def family(script: str, say: int, *, new_session: bool = True) -> Iterator[list[int]]:
    """Run a shell; yield its pid, and the pids that so many processes below it say."""
    with subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=new_session
    ) as shell:
        assert shell.stdout is not None
        pids = [shell.pid, *(int(shell.stdout.readline()) for _ in range(say))]
        pidfds = [os.pidfd_open(pid) for pid in pids]
        try:
            yield pids
        finally:
            for pidfd in pidfds:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)


async def dead(pid: int) -> None:
    """Wait until a process is dead, without blocking the loop."""
    await asyncio.to_thread(wait_dead, pid)


def tree_of(
    pid: int, spares: Callable[[int], bool] = lambda _pid: False, adopter: WorkerId | None = None
) -> Tree:
    return Tree(PinnedProcess(*pin(pid)), spares, adopter)


def pids_of(tree: Tree) -> set[int]:
    return {member.pid for member in tree._members}


def at_rest(server: WatchfulServer) -> bool:
    """Whether no tree is being killed, or to be killed."""
    return server._reaper._trees is not None and not server._reaper._trees._left


@contextlib.asynccontextmanager
async def reaped_with_tree(pid: int, **options: Any) -> AsyncIterator[WatchfulServer]:
    """Yield a server that has reaped a process, and what belonged to it."""
    async with serving(target="tree", **options) as server:
        server.register_timers([due(pid)])
        event = await server.told("reaped", pid)
        assert event.detail == ""
        yield server


# -- who belongs to it ---------------------------------------------------------------------------------


OFFSPRING = """
sleep 1000 & echo $!
(sleep 1000 & echo $!; wait) &
setsid bash -c 'echo $$; exec sleep 1000' &
(kill -STOP $BASHPID) & echo $!
sleep 0 & disown
exec sleep 1000
"""
"""A child, a grandchild, a session of its own, one that is stopped, and one that is dead by now."""


async def test_children_and_theirs_are_reaped() -> None:
    with family(OFFSPRING, 4) as pids:
        async with reaped_with_tree(pids[0]) as server:
            for pid in pids:
                await dead(pid)
            assert server.all_told("reaped") == server.all_told("reaped", pids[0]), "they are no workers"


async def test_who_has_lost_its_parent_is_known_by_its_session() -> None:
    """Of the two whose parent has died before anybody looked, one has left the session of the worker."""
    orphans = "(sleep 1000 & echo $!); (setsid bash -c 'echo $$; exec sleep 1000' &); exec sleep 1000"
    with family(orphans, 2) as (shell, stays, left):
        if os.getsid(left) == shell:  # the line was said first by the other one
            stays, left = left, stays
        async with reaped_with_tree(shell):
            await dead(stays)
        assert is_alive(left)


async def test_others_that_have_timers_armed_are_left_out() -> None:
    script = "sleep 1000 & echo $!; (echo $BASHPID; sleep 1000 & echo $!; wait) & wait"
    with family(script, 3) as (shell, child, watched, below):
        async with serving(target="tree") as server:
            server.register_timers([TimerRequest(watched, "its own", monotonic() + 1000), due(shell)])
            await server.told("reaped", shell)
            await dead(child)
            assert is_alive(watched)
            assert is_alive(below)


async def test_who_is_watched_and_has_nothing_armed_ends_with_the_tree() -> None:
    script = "(echo $BASHPID; sleep 1000 & echo $!; wait) & wait"
    with family(script, 2) as (shell, watched, below):
        async with serving(target="tree") as server:
            server.register_timers([TimerRequest(watched, "its own", monotonic() + 1000)])
            server.register_timers([TimerRequest(watched, "its own", -1.0)])
            assert [worker.id.pid for worker in server._registry.workers.values()] == [watched]
            server.register_timers([due(shell)])
            await server.told("reaped", shell)
            await dead(watched)
            await dead(below)
            assert not server.all_told("reaped", watched), "none of its timers has expired"


async def test_who_is_being_reaped_itself_is_left_out() -> None:
    """It has left its block at SIGTERM, and has the grace of its own ladder yet."""
    with family(f"{STUBBORN} & wait", 1) as (shell, child):
        async with serving(target="tree", reap="TERM:1000,KILL", max_grace=1000) as server:
            server.register_timers([due(child)])
            await server.told("expired", child)
            server.register_timers([TimerRequest(child, "s", -1.0)])
            server.register_timers([TimerRequest(shell, "s", monotonic() + 1000)])
            (worker,) = (one for one in server._registry.workers.values() if one.id.pid == shell)
            worker.reap_grant = server._policy.reap_grant("tree KILL", observe=False)
            server.register_timers([due(shell)])
            await server.told("reaped", shell)
        assert is_alive(child), "the server has ended, and with it all that was to be killed"


async def test_a_worker_may_ask_for_it() -> None:
    with family("sleep 1000 & echo $!; wait", 1) as (shell, child):
        async with serving() as server:
            server.register_timers([TimerRequest(shell, "s", monotonic() + 1000)])
            (worker,) = server._registry.workers.values()
            worker.reap_grant = server._policy.reap_grant("tree", observe=False)
            server.register_timers([due(shell)])
            assert (await server.told("reaped", shell)).detail == ""
            await dead(child)


PRIVATE = """
import os, subprocess, time, aiotimer
child = subprocess.Popen(["sleep", "1000"])
aiotimer.configure(unavailable="raise", target="tree")
print(child.pid, flush=True)
with aiotimer.expires(0.2, "hang"):
    time.sleep(1000)
"""


def test_a_private_server_outlives_its_worker_and_tells() -> None:
    """It and its supervisor are descendants of the worker that they serve."""
    with spawn_worker(PRIVATE, None) as worker:
        child = int(worker.wait_line(""))
        assert worker.wait() == -signal.SIGKILL
        wait_dead(child)
    assert "aiotimer: reaped" in worker.output


def test_what_is_shown_and_is_no_child_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid may be another process's when it is pinned."""
    with family("exec sleep 1000", 0) as (shell,), family("exec sleep 1000", 0) as (other,):
        monkeypatch.setattr("aiotimer._linux.procfs.children_of", lambda _pid, _tid: [other, 2**22 + 1])
        tree = tree_of(shell)
        assert finish(tree.grow()) == 0
        tree.kill_now()
        assert is_alive(other)


def test_what_an_adopter_has_got_belongs_to_the_one_that_it_has_started() -> None:
    """This process stands for the adopter: the worker is its child, and so is what has lost its parent."""
    with family("exec sleep 1000", 0) as (shell,), family("exec sleep 1000", 0) as (orphan,):
        with family("exec sleep 1000", 0) as (watched,):
            us = WorkerId(os.getpid(), start_time(os.getpid()))
            tree = tree_of(shell, lambda pid: pid == watched, us)
            finish(tree.grow())
            assert {orphan} <= pids_of(tree)
            assert not {shell, watched, us.pid} & pids_of(tree)
            tree.close()
            other = tree_of(shell, adopter=us._replace(started=us.started - 1))
            assert finish(other.grow()) == 0, "the adopter is another process by now"
            other.close()


def test_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with family("sleep 1000 & echo $!; wait", 1) as (shell, child):
        tree = tree_of(shell)

        def none_is_left(_pid: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as played:
            played.setattr(os, "pidfd_open", none_is_left)
            assert finish(tree.grow()) == 0
            assert tree.shortfall == os.strerror(errno.EMFILE)
        finish(tree.grow())
        assert (tree.shortfall, pids_of(tree)) == ("", {child})
        tree.close()


def test_a_tree_is_no_larger_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MOST", 2)
    with family("for i in 1 2 3; do sleep 1000 & echo $!; done; wait", 3) as (shell, *_children):
        tree = tree_of(shell)
        assert finish(tree.grow()) == 2
        assert tree.shortfall == "there are more than 2 processes"
        tree.close()


def test_hundreds_of_children_are_pinned_and_killed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    many = 300
    script = f"for i in $(seq {many}); do sleep 1000 & done; echo $!; wait"
    with family(script, 1) as (shell, _last):
        tree = tree_of(shell)
        pinned, pidfd_open = 0, os.pidfd_open

        def counts(pid: int) -> int:
            nonlocal pinned
            pinned += 1
            return pidfd_open(pid)

        monkeypatch.setattr(os, "pidfd_open", counts)
        for _step in tree.grow():
            assert pinned <= trees.AT_ONCE
            pinned = 0
        monkeypatch.undo()
        pids = pids_of(tree)
        assert len(pids) == many
        tree.kill_now()
        for pid in pids:
            wait_dead(pid)


# -- how it is signalled -------------------------------------------------------------------------------


@pytest.mark.parametrize("stormy", ["the worker", "a child of it"])
async def test_who_starts_others_all_the_time_is_killed_with_all_of_them(stormy: str) -> None:
    storm = "for i in $(seq 3000); do (sleep 30 & wait) & sleep 0.005; done"
    script = storm if stormy == "the worker" else f"bash -c '{storm}' & exec sleep 1000"
    with family(f"echo $$; {script}", 1) as (shell, _itself):
        async with reaped_with_tree(shell):
            while left := members_of(shell):
                for pid in left:
                    await dead(pid)
            assert not is_alive(shell)


async def test_who_ignores_a_signal_has_the_grace_of_the_ladder_and_is_killed() -> None:
    """The worker itself dies of SIGTERM at once."""
    with family(f"{STUBBORN} & sleep 1000 & echo $!; wait", 2) as (shell, *children):
        async with reaped_with_tree(shell, reap="TERM:0.5,KILL"):
            for child in children:
                await dead(child)
        assert not any(map(is_alive, children))


async def test_whoever_is_left_is_killed_when_the_server_ends() -> None:
    with family(f"{STUBBORN} & wait", 1) as (shell, child):
        async with reaped_with_tree(shell, reap="TERM:1000,KILL", max_grace=1000):
            assert is_alive(child)
        await dead(child)


@pytest.mark.parametrize("dies", [False, True])
async def test_of_a_worker_that_was_not_signalled_nobody_is(
    dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is released, or dies, while it is found out what it does."""
    with family("sleep 1000 & echo $!; wait", 1) as (shell, child):
        async with serving(target="tree", reap="dump,KILL") as server:

            def meanwhile(_subject: object) -> None:
                if dies:
                    os.kill(shell, signal.SIGKILL)
                    os.waitid(os.P_PID, shell, os.WEXITED | os.WNOWAIT)
                else:
                    server.register_timers([TimerRequest(shell, "s", -1.0)])

            during_evidence(monkeypatch, meanwhile)
            server.register_timers([due(shell)])
            await server.told("worker_gone" if dies else "late", shell)
            assert at_rest(server)
        assert is_alive(child)


def test_a_process_of_another_user_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with family("sleep 1000 & echo $!; wait", 1) as (shell, child):
        tree = tree_of(shell)
        finish(tree.grow())

        def refuses(_pidfd: int, number: int) -> None:
            if number:
                raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(trees, "send_signal", refuses)
        finish(tree.send(signal.SIGTERM, with_cont=True))
        assert tree.shortfall == f"process {child}: Operation not permitted"
        tree.close()


def test_they_stand_before_they_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is stopped starts nobody any more."""
    with family("while :; do :; done & echo $!; wait", 1) as (shell, child):
        tree = tree_of(shell)
        states: list[set[str]] = []

        def notes(pidfd: int, number: int) -> None:
            if number == signal.SIGKILL:
                states.append(states_of(child))
            send_signal(pidfd, number)

        monkeypatch.setattr(trees, "send_signal", notes)
        finish(tree.grow())
        tree.kill_now()
        assert states == [{"T"}]
        wait_dead(child)


# -- aiotimer run --------------------------------------------------------------------------------------


def run(options: tuple[str, ...], code: str) -> tuple[int, list[int]]:
    """Run a program; return the exit status, and the pids that it has printed."""
    command = [sys.executable, "-m", "aiotimer", "run", "--quiet", *options, "--", sys.executable, "-c", code]
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=PATIENCE, check=False
    )
    return ended.returncode, [int(line) for line in ended.stdout.splitlines()]


ORPHANS = """
import subprocess, sys, time
from aiotimer import expires
for script in ("echo $BASHPID; (setsid bash -c 'echo $$; exec sleep 1000 >&-' &); exec sleep 1000 >&-",
               "(bash -c 'echo $$; trap \\"\\" TERM; exec sleep 1000 >&-' &)"):
    child = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    for _ in range(script.count("echo")):
        print(child.stdout.readline(), end="", flush=True)
"""
HANG = "with expires(0.2, 'hang'):\n    time.sleep(1000)\n"


@pytest.mark.parametrize("reap", ["KILL", "TERM:1000,KILL"])
def test_nothing_of_a_command_that_was_reaped_is_left(reap: str) -> None:
    status, pids = run(("--reap", reap), ORPHANS + HANG)
    assert (status, len(pids)) == (124, 3)
    for pid in pids:
        wait_dead(pid)


@pytest.mark.parametrize(("options", "rest"), [((), ""), (("--target", "process"), HANG)])
def test_what_a_command_leaves_running_is_not_touched(options: tuple[str, ...], rest: str) -> None:
    """Neither if it ends by itself, nor if only the process was to be reaped."""
    status, pids = run(options, ORPHANS + rest)
    try:
        assert (status, len(pids)) == (124 if rest else 0, 3)
        assert all(map(is_alive, pids))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
