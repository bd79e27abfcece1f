"""What `expires` takes and what it refuses: at once, in the caller, and without a trace in the table.

The blocks here run against a table in memory. What needs a loop or a server is in tests/contract.
"""

import copy
import functools
import inspect
import pickle
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from math import inf, nan
from typing import Any, cast

import pytest

from aiotimer import NotConfigured, WorkerId, expires
from aiotimer._core.reader import TableReader
from aiotimer._core.table import TimerTable
from aiotimer._core.watch import Lifeline, Watch
from aiotimer.client.arguments import named_pool
from aiotimer.client.clients import default
from aiotimer.events import Event, shown
from tests.fakes.clock import Clock
from tests.fakes.memory import MemoryClient, acquisitions_of, memory_table, names_of, reading, timers_of

NOT_SECONDS: dict[str, Any] = {
    "nan": nan,
    "inf": inf,
    "-inf": -inf,
    "-1": -1,
    "0": 0,
    "0.0": 0.0,
    "-0.0": -0.0,
    "-5e-324": -5e-324,
    "more than 1e308": 1.01e308,
    "10**400": 10**400,
    "-10**400": -(10**400),
    "fraction": Fraction(-1, 2),
    "huge fraction": Fraction(10**400),
    "decimal infinity": Decimal("inf"),
    "decimal nan": Decimal("nan"),
}
NOT_NUMBERS: dict[str, Any] = {
    "True": True,
    "False": False,
    "str": "60",
    "bytes": b"60",
    "list": [60],
    "complex": 60j,
    "type": float,
}


@pytest.fixture
def client() -> MemoryClient:
    return MemoryClient(memory_table(now=Clock(1000.0)))


@pytest.fixture(params=["new", "known", "entered"])
def scope(request: pytest.FixtureRequest, client: MemoryClient) -> str:
    """Return a name that a client does not know yet, that it knows, or whose ``after`` it knows, too."""
    if request.param == "known":
        named_pool("s", client)
    elif request.param == "entered":
        expires(60, scope="s", client=client)
    return "s"


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("AIOTIMER_SOCKET", raising=False)
    former, default.client = default.client, None
    yield
    default.client = former


def assert_untouched(client: MemoryClient) -> None:
    assert timers_of(client.table) == []
    assert acquisitions_of(client.table) == 0
    assert client.rings == []


# --- after and grace


@pytest.mark.parametrize("name", NOT_SECONDS)
def test_what_is_no_time_to_wait_is_a_value_error(client: MemoryClient, scope: str, name: str) -> None:
    for _ in range(2):  # what was refused once is not known to be good
        with pytest.raises(ValueError, match="after must be a finite number of seconds greater than 0"):
            expires(NOT_SECONDS[name], scope=scope, client=client)
    with pytest.raises(ValueError, match="grace must be a finite number of seconds greater than 0"):
        expires(60, scope="s", client=client, grace=NOT_SECONDS[name])
    assert_untouched(client)


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_what_is_no_number_is_a_type_error(client: MemoryClient, scope: str, name: str) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match="after must be a number of seconds"):
            expires(NOT_NUMBERS[name], scope=scope, client=client)
    with pytest.raises(TypeError, match="grace must be a number of seconds"):
        expires(60, scope="s", client=client, grace=NOT_NUMBERS[name])
    assert_untouched(client)


def test_after_is_needed_and_is_not_none(client: MemoryClient, scope: str) -> None:
    with pytest.raises(TypeError, match="after must be a number"):
        expires(None, scope=scope, client=client)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'after'"):
        expires()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
        expires(timeout=60)  # type: ignore[call-arg]
    assert_untouched(client)


def test_no_parameter_is_keyword_only_whose_default_would_cost_every_block() -> None:
    kinds = {parameter.kind for parameter in inspect.signature(expires).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize(
    "after",
    [1e-9, 60, 60.5, 1e308, 10**308, Fraction(1, 3), Decimal("0.5")],
    ids=str,
)
def test_any_positive_finite_number_will_do(client: MemoryClient, after: Any) -> None:
    with expires(after, scope="s", client=client) as block:
        (timer,) = timers_of(client.table)
        assert timer.deadline == block.deadline == 1000.0 + float(after)
        assert block.remaining() == timer.deadline - 1000.0
    assert timers_of(client.table) == []


def test_a_number_that_has_changed_is_read_again(client: MemoryClient) -> None:
    class Setting:
        value = 60.0

        def __float__(self) -> float:
            return self.value

    setting: Any = Setting()
    for value in (60.0, 30.0):
        Setting.value = value
        with expires(setting, scope="s", client=client) as block:
            assert block.remaining() == value
    Setting.value = nan
    with pytest.raises(ValueError, match="after must be a finite number"):
        expires(setting, scope="s", client=client)


def test_a_timedelta_will_do_wherever_seconds_do(client: MemoryClient) -> None:
    with expires(timedelta(minutes=1), scope="s", client=client) as block:
        assert block.deadline == 1060.0
        block.renew(timedelta(milliseconds=500))
        assert block.deadline == 1000.5
    graceful = expires(timedelta(seconds=1), scope="s", client=client, grace=timedelta(seconds=2))
    assert repr(graceful) == "<expires 's' after 1 s: not armed>"
    for nothing in (timedelta(0), timedelta(seconds=-1)):
        with pytest.raises(ValueError, match="after must be a finite number of seconds greater than 0"):
            expires(nothing, scope="s", client=client)


def test_after_and_grace_together_must_be_finite_too(client: MemoryClient) -> None:
    with pytest.raises(ValueError, match=r"after \+ grace must be a finite number"):
        expires(1e308, scope="s", client=client, grace=1e308)
    assert_untouched(client)


@pytest.mark.parametrize("name", NOT_SECONDS)
def test_renew_refuses_the_same_and_changes_nothing(client: MemoryClient, name: str) -> None:
    with expires(60, scope="s", client=client) as block:
        with pytest.raises(ValueError, match="after must be a finite number"):
            block.renew(NOT_SECONDS[name])
        with pytest.raises(TypeError, match="after must be a number"):
            block.renew("60")  # type: ignore[arg-type]
        assert block.deadline == timers_of(client.table)[0].deadline == 1060.0
        block.renew()
        assert block.deadline == 1060.0


def test_grace_in_a_plain_with_is_a_value_error(client: MemoryClient) -> None:
    with pytest.raises(ValueError, match="grace needs `async with`"):
        with expires(60, scope="s", client=client, grace=5):
            pytest.fail("the block was entered")
    assert_untouched(client)


# --- scopes

NOT_SCOPES = {
    "empty": "",
    "10 KiB": "x" * 10_240,
    "241 bytes": "x" * 241,
    "NUL": "a\0b",
    "surrogate": "a\udc80b",
}


@pytest.mark.parametrize("name", NOT_SCOPES)
def test_what_cannot_be_a_name_is_a_value_error(client: MemoryClient, name: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        expires(60, scope=NOT_SCOPES[name], client=client)
    with pytest.raises(ValueError, match="scope"):
        client.acquire(NOT_SCOPES[name], 1060.0)
    with pytest.raises(ValueError, match="scope"):
        client.release(NOT_SCOPES[name])
    assert_untouched(client)


@pytest.mark.parametrize("scope", [b"s", 7, ("s",)], ids=["bytes", "int", "tuple"])
def test_a_scope_that_is_no_str_is_a_type_error(client: MemoryClient, scope: Any) -> None:
    with pytest.raises(TypeError, match="scope must be a str"):
        expires(60, scope=scope, client=client)
    with pytest.raises(TypeError, match="scope must be a str"):
        client.acquire(scope, 1060.0)
    with pytest.raises(TypeError, match="scope must be a str"):
        client.release(scope)
    assert_untouched(client)


@pytest.mark.usefixtures("unconfigured")
@pytest.mark.parametrize("name", NOT_SCOPES)
def test_a_bad_scope_is_found_without_a_client_too(name: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        expires(60, scope=NOT_SCOPES[name])


HOSTILE = {
    "newline": "a\nb",
    "carriage return": "a\rb",
    "colour": "\x1b[31mred\x1b[0m",
    "CSI in one character": "\x9b31m",
    "title": "\x1b]0;title\x07",
    "right to left": "\u202egnp.exe",
    "line separator": "a\u2028b",
    "DEL": "a\x7fb",
    "tab and quote": 'a\t"b\\',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_control_characters_are_taken_and_shown_escaped(client: MemoryClient, name: str) -> None:
    scope = HOSTILE[name]
    with expires(60, scope=scope, client=client) as block:
        assert block.scope == scope
        assert names_of(client.table) == [scope]
    text = shown(scope)
    assert text.isprintable()
    assert text.startswith('"')
    assert text.endswith('"')
    assert shown("a") != shown(scope) != shown(text), "what is escaped can be told apart"
    event = Event("reaped", WorkerId(7, 100), name=scope, scope=scope, late_s=0.0012, detail=f"why: {scope}")
    line = str(event)
    assert line.isprintable()
    assert f"name={text} scope={text} late=1.2ms" in line
    assert event.as_json()["scope"] == scope, "in JSON, JSON escapes it"


def test_printable_text_is_shown_as_it_is() -> None:
    assert shown("train.py:42 Übung 🚀") == '"train.py:42 Übung 🚀"'
    assert shown("\ud800") == r'"\ud800"'
    event = Event("late", WorkerId(7, 100), "python", "train.py:42", 0.5, "released in time")
    assert str(event) == 'late pid=7 name="python" scope="train.py:42" late=500.0ms (released in time)'
    assert str(Event("stalled", detail="for 3 s")) == "stalled (for 3 s)"


def limited(client: MemoryClient, stacklevel: int = 2, *, observe: bool = False) -> Any:
    """What a library offers that wraps ``expires``."""
    return expires(60, client=client, stacklevel=stacklevel, observe=observe)


def test_a_wrapper_names_the_line_of_its_caller(client: MemoryClient) -> None:
    def line() -> int:
        return sys._getframe(1).f_lineno

    for _ in range(2):  # the second time its pool is known
        with limited(client) as first, limited(client) as second:
            assert (first.scope, second.scope) == (f"test_expires.py:{line() - 1}",) * 2
            assert names_of(client.table) == [first.scope, f"{first.scope}#2"]
    with limited(client, observe=True) as block:
        assert block.scope == f"test_expires.py:{line() - 1}"
    own = limited(client, 1)
    assert own.scope == f"test_expires.py:{limited.__code__.co_firstlineno + 2}"


@pytest.mark.parametrize("stacklevel", [0, -1, 10**6])
def test_there_is_no_caller_at_every_level(client: MemoryClient, stacklevel: int) -> None:
    for observe in (False, True):
        with pytest.raises(ValueError, match=r"stacklevel|call stack"):
            limited(client, stacklevel, observe=observe)
    assert_untouched(client)


# --- decorating


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Methods:
    def generator(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    "function",
    [generator, async_generator, functools.partial(generator), Methods().generator],
    ids=["generator", "async generator", "partial", "method"],
)
def test_a_generator_cannot_be_decorated(client: MemoryClient, function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="generator"):
        expires(60, scope="s", client=client)(function)
    assert_untouched(client)


def test_a_decorated_function_is_itself_and_a_block_per_call(client: MemoryClient) -> None:
    block = expires(60, scope="s", client=client)

    @block
    def down(depth: int, *, seen: list[list[str]]) -> str:
        """Count down."""
        seen.append(names_of(client.table))
        return "done" if depth == 0 else down(depth - 1, seen=seen)

    assert (down.__name__, down.__doc__) == ("down", "Count down.")
    for _ in range(2):
        seen: list[list[str]] = []
        assert down(2, seen=seen) == "done"
        assert seen == [["s"], ["s", "s#2"], ["s", "s#2", "s#3"]]
    assert timers_of(client.table) == []
    with pytest.raises(RuntimeError, match="inside the block"):
        _ = block.deadline  # the decorator itself is never entered


def test_a_decorated_function_that_raises_is_left(client: MemoryClient) -> None:
    @expires(60, scope="s", client=client)
    def fail() -> None:
        assert names_of(client.table) == ["s"]
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert timers_of(client.table) == []


# --- one block at a time


def test_an_active_block_cannot_be_entered_again(client: MemoryClient) -> None:
    block = expires(60, scope="s", client=client)
    with block:
        with pytest.raises(RuntimeError, match="make a new one for every block"):
            block.__enter__()
        assert names_of(client.table) == ["s"], "and goes on as it was"
        assert block.remaining() == 60.0
    assert timers_of(client.table) == []
    with block:
        assert names_of(client.table) == ["s"], "left, it may be entered again"


def test_outside_the_block_there_is_no_time(client: MemoryClient) -> None:
    block = expires(60, scope="s", client=client)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside the block"):
            _ = block.deadline
        with pytest.raises(RuntimeError, match="inside the block"):
            block.remaining()
        with pytest.raises(RuntimeError, match="active"):
            block.renew()
        with block:
            assert block.deadline == 1060.0
    assert acquisitions_of(client.table) == 2


def test_a_block_shows_what_it_is(client: MemoryClient) -> None:
    block = expires(60, scope="a\nb", client=client)
    assert repr(block) == r"<expires 'a\nb' after 60 s: not armed>"
    with block:
        assert repr(block) == r"<expires 'a\nb' after 60 s: 60.000 s left>"
        block.renew(0.25)
        assert repr(block) == r"<expires 'a\nb' after 0.25 s: 0.250 s left>"
    assert repr(block).endswith("not armed>")
    assert repr(type(block)()).startswith("<aiotimer.client.block.Block object at "), "not made by expires"


class Watched:
    """A table's cells, looked at after every store: a thread may lose its processor anywhere."""

    def __init__(self, table: TimerTable, look: Callable[[], object]) -> None:
        self._cells = table.cells
        self._look = look

    def __getitem__(self, word: int) -> float:
        return self._cells[word]

    def __setitem__(self, word: int, value: float) -> None:
        self._cells[word] = value
        self._look()


def test_an_entry_that_is_overdue_when_it_is_stored_is_reported_once(client: MemoryClient) -> None:
    reader = TableReader(reading(client.table))
    watch = Watch(Lifeline(2000.0, beat=inf), connected=True, armings=reader.armings)
    due: list[float] = []
    block = expires(60, scope="s", client=client)
    with block:
        pass  # from here on its scope has a slot
    client.table.pool("s").cells = cast(
        "memoryview[float]",
        Watched(
            client.table,
            lambda: due.extend(timer.deadline for timer in watch.look(reader.deadlines(), 2000.0).due),
        ),
    )
    for _ in range(2):
        with block:
            assert due == [1060.0]
        due.clear()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_block_cannot_be_copied(client: MemoryClient, copied: Callable[[Any], Any]) -> None:
    with expires(60, scope="s", client=client) as block:
        with pytest.raises(TypeError, match="expires"):
            copied(block)
        assert names_of(client.table) == ["s"], "a copy that is dropped must not release the timer"


# --- notes


def noted(client: MemoryClient) -> list[dict[str, str]]:
    reader = TableReader(reading(client.table))
    return [reader.note(timer.slot) for timer in reader.timers()]


def test_a_note_is_of_one_entry_and_no_other(client: MemoryClient) -> None:
    block = expires(60, scope="s", client=client)
    for number in range(2):
        with block:
            assert noted(client) == [{}]
            block.note(uid=number, step=3)
            assert noted(client) == [{"uid": str(number), "step": "3"}]
            with expires(90, scope="s", client=client):
                assert noted(client) == [{"uid": str(number), "step": "3"}, {}]
            block.renew(30)
            assert noted(client) == [{"uid": str(number), "step": "3"}], "it is the same entry"
        assert (timers_of(client.table), names_of(client.table)) == ([], [])


def test_a_note_can_be_changed_and_taken_back(client: MemoryClient) -> None:
    with expires(60, scope="s", client=client) as block:
        block.note(uid=17, step=3)
        block.note(step=4, shard="a=b\0c")
        assert noted(client) == [{"uid": "17", "step": "4", "shard": "a=b?c"}]
        block.note(uid=None, step=None)
        assert noted(client) == [{"shard": "a=b?c"}]
        block.note(shard=None)
        assert noted(client) == [{}]


def test_a_note_is_cut_off_where_there_is_no_room(client: MemoryClient) -> None:
    with expires(60, scope="s" * 200, client=client) as block:
        block.note(uid="ü" * 99)
        assert noted(client) == [{"uid": "ü" * 13}], "30 bytes are left"
        assert block.scope == names_of(client.table)[0] == "s" * 200
    for length in (225, 239, 240):
        with expires(60, scope="s" * length, client=client) as block:
            block.note(uid=17)
            assert noted(client) == [{}]
            assert names_of(client.table) == ["s" * length]
    with expires(60, scope="s", client=client) as block:
        block.note(prompt="x" * 1000, empty="", bad="\ud800")
        assert noted(client) == [{"prompt": "x" * 100, "bad": "?"}]


def test_only_an_active_block_has_a_note(client: MemoryClient) -> None:
    block = expires(60, scope="s", client=client)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="active"):
            block.note(uid=17)
        with block:
            block.note()
    assert timers_of(client.table) == []


def test_a_slot_that_gets_another_name_has_no_note(client: MemoryClient) -> None:
    """However often it had been armed, and though what was said before still stands there."""
    for number in range(200):
        with expires(60, scope=f"scope {number}", client=client) as block:
            assert noted(client) == [{}]
            block.note(number=number)
            assert noted(client) == [{"number": str(number)}]


# --- nothing configured


@pytest.mark.usefixtures("unconfigured")
def test_with_nothing_configured_the_error_says_what_to_do() -> None:
    block = expires(60, scope="s")
    for _ in range(2):
        with pytest.raises(NotConfigured, match=r"aiotimer\.configure\(\)"):
            block.__enter__()
        with pytest.raises(RuntimeError, match="inside the block"):
            _ = block.deadline
    with pytest.raises(RuntimeError, match="AIOTIMER_SOCKET"):
        expires(60).__enter__()


@pytest.mark.usefixtures("unconfigured")
def test_a_block_made_before_configuring_uses_what_is_configured_later(client: MemoryClient) -> None:
    block = expires(60, scope="s")
    default.client = client
    with block:
        assert names_of(client.table) == ["s"]
    assert timers_of(client.table) == []
