"""Forks that run no hook: what a child is told by memory alone."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable

import pytest

from aiotimer._linux.forks import Forks


def in_a_child(check: Callable[[], bool]) -> bool:
    """Return what a check says in a child."""
    pid = int(ctypes.PyDLL(None).fork())
    if not pid:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def mapping() -> memoryview[float]:
    """Return memory that a child does not have."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory.madvise(mmap.MADV_DONTFORK)
    return memoryview(memory).cast("B").cast("d")


@pytest.fixture
def forks() -> Forks:
    return Forks()


def test_nothing_is_noticed_where_there_was_no_fork(forks: Forks) -> None:
    forks.in_child(lambda: pytest.fail("this is no child"))
    assert not forks.notice()


@pytest.mark.parametrize("first", ["notice", "after_fork_in_child"])
def test_a_child_does_once_what_is_to_be_done(first: str, forks: Forks) -> None:
    done: list[int] = []
    forks.in_child(lambda: done.append(os.getpid()))

    def check() -> bool:
        noticed = getattr(forks, first)()
        forks.after_fork_in_child()
        return (noticed, forks.notice(), done) == (first == "notice" or None, False, [os.getpid()])

    assert in_a_child(check)
    assert done == [], "this process is no child"


def test_a_child_of_a_child_is_one(forks: Forks) -> None:
    assert in_a_child(lambda: forks.notice() and in_a_child(forks.notice))
    assert in_a_child(lambda: in_a_child(forks.notice))


def test_everything_is_done_whatever_something_raises(forks: Forks) -> None:
    done: list[None] = []
    forks.in_child(lambda: [][0])
    forks.in_child(lambda: done.append(None))

    def check() -> bool:
        with pytest.raises(IndexError):
            forks.notice()
        return done == [None] and not forks.notice()

    assert in_a_child(check)


def test_threads_of_a_child_wait_for_the_one_that_is_at_it(forks: Forks) -> None:
    done: list[bool] = []
    others: list[threading.Thread] = []

    def hook() -> None:
        others.append(threading.Thread(target=lambda: done.append(forks.notice())))
        others[0].start()
        others[0].join(0.05)  # were it not to wait, it would be done by then
        done.append(False)

    forks.in_child(hook)

    def check() -> bool:
        forks.notice()
        others[0].join()
        return done == [False, True]

    assert in_a_child(check)


def test_a_claim_of_a_thread_of_the_parent_does_not_keep_a_child_waiting() -> None:
    """Of a parent that was a child itself, and had not done yet what is to be done."""
    forks = Forks(within=0.01)
    at_it, done = threading.Event(), threading.Event()

    def hook() -> None:
        at_it.set()
        done.wait()

    forks.in_child(hook)

    def check() -> bool:
        threading.Thread(target=forks.notice).start()
        at_it.wait()
        lives = in_a_child(forks.notice)
        done.set()
        return lives

    assert in_a_child(check)


# -- views ---------------------------------------------------------------------------------------------


def test_a_view_ends_at_a_fork(forks: Forks) -> None:
    view = mapping()
    assert forks.end_at_fork(view)
    view[5] = 1.5
    assert (len(view), view[5], view[-1], view[4:6].tolist()) == (512, 1.5, 0.0, [0.0, 1.5])

    def check() -> bool:
        with pytest.raises(IndexError):
            view[5]
        with pytest.raises(IndexError):
            view[5] = 2.5
        forks.notice()
        return len(view) == 0  # for ever, while views that this child makes are its own

    assert in_a_child(check)
    assert view[5] == 1.5


def test_a_view_that_a_child_makes_ends_at_its_own_forks(forks: Forks) -> None:
    def check() -> bool:
        forks.notice()
        view = mapping()
        return forks.end_at_fork(view) and len(view) == 512 and in_a_child(lambda: len(view) == 0)

    assert in_a_child(check)


def test_views_of_many_lengths_have_a_page_for_them_all(forks: Forks) -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    views = [memoryview(memory)[:length] for length in range(1, 200)]
    assert all(map(forks.end_at_fork, views))
    assert list(map(len, views)) == list(range(1, 200))
    assert in_a_child(lambda: not any(map(len, views)))


NO_SUCH_PAGE, NO_SUCH_POINTER, THE_WRONG_POINTER = {"advice": 9999}, {"shape": 3}, {"shape": 7}


@pytest.mark.parametrize("lack", [NO_SUCH_PAGE, NO_SUCH_POINTER, THE_WRONG_POINTER])
def test_where_that_cannot_be_a_view_is_left_as_it_was(lack: dict[str, int]) -> None:
    view = memoryview(bytearray(range(80))).cast("d")
    before = view.tolist()
    assert not Forks(**lack).end_at_fork(view)
    assert (len(view), view.tolist(), view[9:].tolist()) == (10, before, before[9:])


def test_without_such_a_page_a_child_is_known_by_its_pid() -> None:
    forks = Forks(**NO_SUCH_PAGE)
    assert not forks.notice()
    assert in_a_child(forks.notice)


def test_without_such_a_page_a_hook_takes_every_child_for_one() -> None:
    forks = Forks(**NO_SUCH_PAGE)
    done: list[None] = []
    forks.in_child(lambda: done.append(None))
    forks.after_fork_in_child()
    assert done == [None]
