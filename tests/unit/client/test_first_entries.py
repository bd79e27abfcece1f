"""What ``expires(first=)`` takes and refuses, and which entries of a scope have the longer limit.

The blocks here run against a table in memory. What needs a loop or threads is in tests/contract.
"""

from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from math import inf
from typing import Any

import pytest

from aiotimer import TableFull, expires
from aiotimer._core.layout import row_of
from aiotimer._core.reader import TableReader
from aiotimer.client.block import Block
from aiotimer.client.first_entries import _MOST_SCOPES, Entries, entries
from aiotimer.testing import virtual
from tests.fakes.clock import Clock
from tests.fakes.memory import MemoryClient, acquisitions_of, memory_table, reading, timers_of
from tests.unit.client.test_expires import NOT_NUMBERS, NOT_SECONDS


@pytest.fixture(autouse=True)
def _nothing_entered_before() -> Iterator[None]:
    with entries.anew():
        yield


@pytest.fixture
def client() -> MemoryClient:
    return MemoryClient(memory_table(now=Clock(1000.0)))


def limit_of(block: Block) -> float:
    """Enter a block; return the seconds that it has, by its table, and leave it."""
    with block:
        (timer,) = timers_of(block._pool.table)
        assert timer.deadline == block.deadline
        assert block.remaining() == timer.deadline - 1000.0
    assert timers_of(block._pool.table) == []
    return timer.deadline - 1000.0


# --- which entries


@pytest.mark.parametrize(
    ("first", "limits"),
    [
        (60, [60.0, 1.0, 1.0]),
        (60.5, [60.5, 1.0, 1.0]),
        (Fraction(121, 2), [60.5, 1.0, 1.0]),
        (timedelta(minutes=1), [60.0, 1.0, 1.0]),
        ((60, 1), [60.0, 1.0, 1.0]),
        ((60, 2), [60.0, 60.0, 1.0]),
        ((timedelta(minutes=1), 3), [60.0, 60.0, 60.0, 1.0]),
        (1, [1.0, 1.0]),  # no longer, and allowed
        (None, [1.0, 1.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("scope", ["step", None])
def test_the_first_entries_have_the_longer_limit(
    client: MemoryClient, first: Any, limits: list[float], scope: str | None
) -> None:
    assert [limit_of(expires(1, scope, client, first=first)) for _ in limits] == limits


def test_after_may_be_a_timedelta_too(client: MemoryClient) -> None:
    for limit in (60.0, 1.0):
        assert limit_of(expires(timedelta(seconds=1), "s", client, first=timedelta(minutes=1))) == limit


def test_each_scope_has_a_first_entry(client: MemoryClient) -> None:
    for scope in ("a", "b"):
        assert [limit_of(expires(1, scope, client, first=60)) for _ in range(2)] == [60.0, 1.0]


def test_a_scope_is_the_same_at_another_table_and_observed_or_not(client: MemoryClient) -> None:
    assert limit_of(expires(1, "s", client, first=60)) == 60.0
    assert limit_of(expires(1, "s", client, first=60, observe=True)) == 1.0
    other = MemoryClient(memory_table(now=Clock(1000.0)))
    assert limit_of(expires(1, "s", other, first=60)) == 1.0


def test_entries_without_first_do_not_count(client: MemoryClient) -> None:
    assert limit_of(expires(1, "s", client)) == 1.0
    assert limit_of(expires(1, "s", client, first=60)) == 60.0


def test_of_two_lines_that_want_it_of_one_scope_each_has_what_it_asks_for(client: MemoryClient) -> None:
    """Only an entry that had the longer limit is counted; another one costs nothing, so it says nothing."""
    limits = []
    for _ in range(4):
        limits.append(limit_of(expires(1, "s", client, first=60)))
        limits.append(limit_of(expires(2, "s", client, first=(90, 4))))
    assert limits == [60.0, 90.0, 1.0, 90.0, 1.0, 90.0, 1.0, 2.0]


def test_what_is_not_entered_is_no_entry(client: MemoryClient) -> None:
    for _ in range(3):
        assert type(expires(1, "s", client, first=60)) is not Block
    assert limit_of(expires(1, "s", client, first=60)) == 60.0


def test_who_could_not_enter_has_not_entered() -> None:
    def no_memory(_slots: int) -> None:
        raise OSError(28, "No space left on device")

    full = MemoryClient(memory_table(now=Clock(1000.0), grow=no_memory))
    block = expires(1, "s", full, first=60)
    for _ in range(2):
        with pytest.raises(TableFull):
            block.__enter__()
    other = MemoryClient(memory_table(now=Clock(1000.0)))
    assert limit_of(expires(1, "s", other, first=60)) == 60.0
    with pytest.raises(TableFull):
        block.__enter__()
    assert type(block) is Block


def test_entries_side_by_side_are_counted_one_by_one(client: MemoryClient) -> None:
    with expires(1, "s", client, first=(60, 2)), expires(1, "s", client, first=(60, 2)):
        with expires(1, "s", client, first=(60, 2)):
            found = {timer.name: timer.deadline - 1000.0 for timer in timers_of(client.table)}
    assert found == {"s": 60.0, "s#2": 60.0, "s#3": 1.0}


# --- one object


def test_one_object_is_an_ordinary_block_from_the_later_entries_on(client: MemoryClient) -> None:
    block = expires(1, "s", client, first=(60, 2))
    assert [limit_of(block) for _ in range(2)] == [60.0, 60.0]
    assert limit_of(block) == 1.0
    assert type(block) is Block
    assert repr(block) == "<expires 's' after 1 s: not armed>"


def test_a_later_call_makes_an_ordinary_block_at_once(client: MemoryClient) -> None:
    assert limit_of(expires(1, "s", client, first=60)) == 60.0
    later = expires(1, "s", client, first=60)
    assert type(later) is Block
    assert later._pool.first_over == 60


def test_a_decorated_function_has_it_in_its_first_calls(client: MemoryClient) -> None:
    @expires(1, "s", client, first=(60, 2))
    def left() -> float:
        return timers_of(client.table)[-1].deadline - 1000.0

    assert [left() for _ in range(4)] == [60.0, 60.0, 1.0, 1.0]

    @expires(1, "recursive", client, first=60)
    def down(depth: int) -> list[float]:
        if depth:
            return down(depth - 1)
        return sorted(timer.deadline - 1000.0 for timer in timers_of(client.table))

    assert down(2) == [1.0, 1.0, 60.0]


def test_it_is_refused_while_it_is_in_use_and_goes_on(client: MemoryClient) -> None:
    block = expires(1, "s", client, first=60)
    with block:
        with pytest.raises(RuntimeError, match="make a new one for every block"):
            block.__enter__()
        assert [timer.deadline for timer in timers_of(client.table)] == [1060.0]
        assert block.remaining() == 60.0
    assert timers_of(client.table) == []
    assert limit_of(block) == 1.0


def test_renewed_it_has_the_limit_of_this_entry_again(client: MemoryClient) -> None:
    clock: Any = client.table.now
    block = expires(1, "s", client, first=60)
    with block:
        clock.now += 50.0
        block.renew()
        assert block.remaining() == 60.0
    with block:
        assert block.remaining() == 1.0
        block.renew()
        assert block.remaining() == 1.0


def test_a_limit_given_to_renew_is_the_objects_from_then_on_as_of_any_block(client: MemoryClient) -> None:
    block = expires(1, "s", client, first=(60, 3))
    with block:
        block.renew(5)
        assert block.remaining() == 5.0
    assert limit_of(block) == 5.0
    assert limit_of(expires(1, "s", client, first=(60, 3))) == 60.0, "the scope goes on"


# --- what is refused


@pytest.mark.parametrize("name", NOT_SECONDS)
def test_what_is_no_time_is_a_value_error(client: MemoryClient, name: str) -> None:
    for first in (NOT_SECONDS[name], (NOT_SECONDS[name], 3)):
        with pytest.raises(ValueError, match="first must be a finite number of seconds greater than 0"):
            expires(0.5, "s", client, first=first)
    assert acquisitions_of(client.table) == 0


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_what_is_no_number_is_a_type_error(client: MemoryClient, name: str) -> None:
    for first in (NOT_NUMBERS[name], (NOT_NUMBERS[name], 3)):
        with pytest.raises(TypeError, match="first must be a number of seconds"):
            expires(0.5, "s", client, first=first)
    assert acquisitions_of(client.table) == 0


@pytest.mark.parametrize("many", [True, 1.0, "3", None, inf])
def test_what_is_no_number_of_entries_is_a_type_error(client: MemoryClient, many: Any) -> None:
    with pytest.raises(TypeError, match="first must be for a whole number of entries, not"):
        expires(1, "s", client, first=(60, many))


@pytest.mark.parametrize("many", [0, -1, -(10**400)])
def test_first_is_for_one_entry_at_least(client: MemoryClient, many: int) -> None:
    with pytest.raises(ValueError, match="first must be for 1 entry or more, not"):
        expires(1, "s", client, first=(60, many))


@pytest.mark.parametrize("first", [(), (60,), (60, 3, 1)], ids=str)
def test_a_tuple_is_a_limit_and_a_number_of_entries(client: MemoryClient, first: Any) -> None:
    with pytest.raises(
        ValueError, match="first must be a number of seconds, or that and a number of entries"
    ):
        expires(1, "s", client, first=first)


def test_the_first_limit_is_not_less_than_the_other(client: MemoryClient) -> None:
    with pytest.raises(ValueError, match=r"first must not be less than after \(10 s\), but is 9.5 s"):
        expires(10, "s", client, first=9.5)
    with pytest.raises(ValueError, match="first must not be less than after"):
        expires(timedelta(seconds=10), "s", client, first=(timedelta(seconds=9), 3))


def test_what_is_refused_is_refused_in_later_entries_too(client: MemoryClient) -> None:
    limit_of(expires(1, "s", client, first=60))
    with pytest.raises(TypeError, match="first must be a number of seconds"):
        expires(1, "s", client, first="60")  # type: ignore[arg-type]


def test_grace_needs_async_with_here_too(client: MemoryClient) -> None:
    with pytest.raises(ValueError, match="grace needs `async with`"):
        with expires(1, "s", client, first=60, grace=5):
            pytest.fail("the block was entered")
    assert acquisitions_of(client.table) == 0


# --- what is told of it


def test_its_row_says_that_its_limit_was_of_a_first_entry(client: MemoryClient) -> None:
    clock: Any = client.table.now
    pool = expires(1, "s", client, first=60)._pool
    pool.sample_at = inf  # an entry has just been sampled
    with expires(1, "s", client, first=60) as block:
        assert block._slot is not None
        row = row_of(block._slot)
        assert list(pool.cells[row : row + 3]) == [1000.0, -60.0, 1060.0]
        clock.now += 20.0
        block.renew()
        assert list(pool.cells[row : row + 3]) == [1000.0, -60.0, 1080.0]
    with expires(1, "s", client, first=60) as block:
        assert list(pool.cells[row : row + 3]) == [1020.0, 1.0, 1021.0], "the next one is sampled, too"


def test_how_long_first_entries_took_is_told_apart(client: MemoryClient) -> None:
    clock: Any = client.table.now
    for seconds in (40.0, 41.0, *[0.5] * 20):
        with expires(1, "s", client, first=(60, 2)):
            clock.now += seconds
    steps = TableReader(reading(client.table)).durations()
    with pytest.raises(StopIteration) as done:
        while True:
            next(steps)
    ran = done.value.value["s"]
    firsts, others = ran.durations.parted()
    assert (ran.count, firsts.count, firsts.maximum) == (22, 2, 41.0)
    assert (others.count, ran.limit) == (20, 1.0)
    assert 0.5 <= others.maximum < 1.0


# --- the memory of a process


def test_as_many_scopes_are_remembered_as_a_program_needs_and_no_more() -> None:
    some = Entries()
    for number in range(_MOST_SCOPES):
        assert some.add(f"rollout-{number}") == 1
    assert some.add("rollout-0") == 2, "now it is the latest"
    some.add("another")
    assert [some.of(scope) for scope in ("rollout-0", "rollout-1", "another")] == [2, 0, 1]


def test_virtual_timers_begin_anew(client: MemoryClient) -> None:
    limits = []
    for _ in range(2):
        with virtual():
            for _ in range(2):
                with expires(1, "s", first=60) as block:
                    limits.append(block.remaining())
    assert limits == [60.0, 1.0] * 2
    assert entries.of("s") == 0
