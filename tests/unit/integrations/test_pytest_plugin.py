"""The names of tests' timers, and which limits are limits."""

import pytest

from aiotimer._core.layout import SCOPE_BYTES, encode_scope
from aiotimer.integrations.pytest_plugin import _seconds, scope_of


@pytest.mark.parametrize("nodeid", ["tests/test_a.py::TestB::test_c[1-x]", "ü" * (SCOPE_BYTES // 2)])
def test_a_timer_is_named_after_its_test(nodeid: str) -> None:
    assert scope_of(nodeid) == nodeid


@pytest.mark.parametrize("letter", ["x", "ü", "€", "🙂"])
def test_of_a_long_name_the_end_is_kept(letter: str) -> None:
    ends = ["[1]", "[22]", "[333]", "[4444]"]  # wherever the cut is within a letter
    scopes = [scope_of(f"test_a.py::test_b{letter * SCOPE_BYTES}{end}") for end in ends]
    for scope, end in zip(scopes, ends, strict=True):
        assert scope.startswith(f"...{letter}")
        assert scope.endswith(f"{letter}{end}")
        assert SCOPE_BYTES - 3 <= len(encode_scope(scope)) <= SCOPE_BYTES
    assert len(set(scopes)) == len(ends)


@pytest.mark.parametrize(
    ("nodeid", "scope"), [("a\0b", "a?b"), ("a\udce4.py::test_b", "a\\udce4.py::test_b"), ("", "?")]
)
def test_what_cannot_be_a_name_is_made_one(nodeid: str, scope: str) -> None:
    assert scope_of(nodeid) == scope
    assert encode_scope(scope)


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5.0), (0.5, 0.5), ("90s", 90.0), (" 2h", 7200.0), (0, 0.0)]
)
def test_a_limit_is_a_number_or_a_duration(value: object, seconds: float) -> None:
    assert _seconds(value) == seconds


@pytest.mark.parametrize("value", ["soon", "", -1, "-1s", "nan", "inf", 1e300, True, None, [5]])
def test_what_is_no_limit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"no duration|no limit"):
        _seconds(value)
