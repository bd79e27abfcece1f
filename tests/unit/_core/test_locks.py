"""A lock is one thread's at a time, its own thread's handlers go in, and no interruption leaves it held."""

import threading

import pytest

from aiotimer._core.locks import Lock
from tests.fakes.clock import PATIENCE
from tests.fakes.interruptions import interruptions


def is_free(lock: Lock) -> bool:
    """Whether another thread can take the lock."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join(PATIENCE)
    return found == [True]


def test_it_is_held_as_long_as_the_call_lasts() -> None:
    lock = Lock()
    seen = lock.holding(lambda *names: (lock.is_mine(), is_free(lock), names), "a", "b")
    assert seen == (True, False, ("a", "b"))
    assert not lock.is_mine()
    assert is_free(lock)


def test_its_own_thread_goes_in_again() -> None:
    lock = Lock()
    assert lock.holding(lambda: lock.holding(lock.is_mine))
    assert is_free(lock)


def test_an_error_gives_it_back() -> None:
    lock = Lock()
    with pytest.raises(ValueError, match="of the call"):
        lock.holding(_fails)
    assert is_free(lock)


def _fails() -> None:
    raise ValueError("of the call")


@pytest.mark.parametrize("how", ["at every bytecode", "by signals", "after calls"])
def test_no_interruption_leaves_it_held(how: str) -> None:
    lock = Lock()
    by_signals, after_calls = how == "by signals", how == "after calls"
    for interruption in interruptions(by_signals=by_signals, after_calls=after_calls):
        with interruption:
            lock.holding(lambda: lock.holding(int))
        assert not lock.is_mine(), f"interruption {interruption.number}"
    assert interruption.number >= 4, "it was hardly interrupted: the test is blind"


def test_who_is_interrupted_while_waiting_gives_back_nothing() -> None:
    class Interrupted(Lock):  # type: ignore[misc]
        __slots__ = ()

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Interrupted().holding(int)
