"""A worker: whether it still runs the program that armed its timers; what a question to it puts off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aiotimer._core import wire
from aiotimer._core.membership import Membership
from aiotimer._core.requests import WorkerId
from aiotimer._core.watch import Due
from aiotimer.server.worker import Asking, Worker


class Process:
    """A process of which is known what a test says.

    Attributes:
        runs: what its mark tells.
        foreign: whether it is another user's.
    """

    id, name, pidfd = WorkerId(7, 7), "worker", 3

    def __init__(self, runs: bool | None, *, foreign: bool = False) -> None:
        self.runs, self.foreign = runs, foreign
        self.closed = False

    def close(self) -> None:
        """It is let go of."""
        self.closed = True

    def runs_program(self, program: int) -> bool | None:
        """What its mark tells."""
        assert program == 42
        return self.runs

    def is_foreign(self) -> bool:
        """Whether it is another user's."""
        return self.foreign


class Connection:
    """One whose other end may be closed."""

    def __init__(self, *, closed: bool) -> None:
        self.closed = closed

    def hung_up(self) -> bool:
        """Whether it is."""
        return self.closed


class File:
    """A table's file."""

    inode = 99

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Table:
    """A table of a kind, with a connection or without."""

    def __init__(self, kind: str, connection: Connection | None = None, program: int = 42) -> None:
        self.file = File(kind)
        self.connection = connection
        self.program = program


def verdict(process: Process, table: Table) -> bool | None:
    worker: Any = Worker(process)  # type: ignore[arg-type]
    return worker.runs_program_of(table)  # type: ignore[no-any-return]


CONNECTED, HUNG_UP = Connection(closed=False), Connection(closed=True)


@pytest.mark.parametrize("kind", ["shared", "socket"])
@pytest.mark.parametrize("connection", [None, CONNECTED, HUNG_UP])
@pytest.mark.parametrize("runs", [True, False])
def test_what_the_mark_tells_is_enough(runs: bool, connection: Connection | None, kind: str) -> None:
    assert verdict(Process(runs), Table(kind, connection)) is runs


@pytest.mark.parametrize("kind", ["shared", "socket"])
def test_without_a_mark_a_connection_that_is_open_tells(kind: str) -> None:
    assert verdict(Process(None), Table(kind, CONNECTED)) is True


@pytest.mark.parametrize("kind", ["shared", "socket"])
@pytest.mark.parametrize("connection", [None, HUNG_UP])
def test_not_known_is_not_the_same(connection: Connection | None, kind: str) -> None:
    assert verdict(Process(None), Table(kind, connection)) is None


@pytest.mark.parametrize("runs", [True, False, None])
def test_what_the_owner_armed_is_meant_for_the_process_whatever_it_runs(runs: bool | None) -> None:
    assert verdict(Process(runs), Table("owner")) is True


@pytest.mark.parametrize("runs", [True, False, None])
def test_but_not_for_another_users_program(runs: bool | None) -> None:
    assert verdict(Process(runs, foreign=True), Table("owner")) is runs
    assert verdict(Process(runs, foreign=True), Table("owner", program=0)) is False, (
        "nothing says it is the same"
    )


class Dropped(Table):
    """One that records that it has been dropped."""

    removed = False

    def remove(self) -> None:
        """Record it."""
        self.removed = True


def test_a_worker_is_buried_one_table_at_a_time_and_nothing_is_due_meanwhile() -> None:
    process: Any = Process(None)
    worker: Any = Worker(process)
    tables = worker.tables = [Dropped("shared") for _ in range(3)]
    assert not worker.closed
    steps = worker.bury()
    next(steps)
    assert worker.closed, "nobody expires for it any more"
    assert [table.removed for table in tables[:]] == [False, False]
    assert not process.closed
    assert list(steps) == [None, None]
    assert (worker.tables, process.closed) == ([], True)


class Loop:
    """A loop that keeps what is to be done later."""

    def __init__(self) -> None:
        self.later: list[Any] = []

    def call_later(self, delay: float, function: object, argument: object) -> None:
        """Keep it."""
        self.later.append((delay, function, argument))


def test_what_fell_due_while_a_worker_was_asked_is_put_off_even_if_that_is_found_later() -> None:
    """A server that stood still may take the answer before it looks."""
    loop: Any = Loop()
    table: Any = SimpleNamespace(look_again="look again")
    asking = Asking(loop, 10.0)
    asking.end(12.0, answered=True)
    before, meanwhile, after = (Due(slot, at, at) for slot, at in enumerate((9.9, 11.5, 12.0)))
    assert asking.put_off(table, (before, meanwhile, after), 12.1) == (before, after)
    assert loop.later == [(pytest.approx(1.4), "look again", (meanwhile,))]
    assert not asking.is_over(13.4)
    assert asking.put_off(table, (meanwhile,), 13.5) == (meanwhile,), "once"
    assert asking.is_over(14.0), "what fell due last has had its time"


def test_a_question_is_kept_until_it_puts_nothing_off_any_more() -> None:
    process: Any = Process(True)
    loop: Any = Loop()
    worker = Worker(process)
    first, second, third = (Asking(loop, since) for since in (0.0, 1.0, 5.0))
    worker.asks(first, 0.0)
    worker.asks(second, 1.0)
    first.end(2.0, answered=True)
    worker.asks(third, 5.0)
    assert worker.askings == [second, third], "one is over, one has not been answered"


def test_what_it_says_of_itself_is_taken_as_far_as_it_can_be_right() -> None:
    worker = Worker(Process(runs=True))  # type: ignore[arg-type]
    assert (worker.name, worker.account()) == ("worker", wire.Account())
    said = wire.Account("r" * 65, " train\x1b.py ", " 4711\n", 2, 4, 2, 2, ("/", "/usr/lib/", "x" * 251))
    worker.gives_account(said, 5.0)
    assert (worker.name, worker.membership) == ("train\\x1b.py", Membership("4711\\n", 2, 4, 2, 2))
    assert worker.account() == wire.Account("r" * 64, "train\\x1b.py", "4711\\n", 2, 4, 2, 2, ("/usr/lib/",))
    worker.gives_account(wire.Account(rank=3, size=4), 6.0)
    assert worker.membership == Membership(), "a rank of no run"


def test_it_has_been_a_member_since_it_first_said_so_of_that_run() -> None:
    worker = Worker(Process(runs=True))  # type: ignore[arg-type]
    for group, now, joined_at in (("a", 5.0, 5.0), ("a", 6.0, 5.0), ("b", 7.0, 7.0), ("", 8.0, 8.0)):
        worker.gives_account(wire.Account(group=group), now)
        assert worker.joined_at == joined_at
