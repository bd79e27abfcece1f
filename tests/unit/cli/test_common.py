"""Durations and sizes, for people."""

import pytest

from aiotimer.cli.common import count, mebibytes, seconds


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 ms"),
        (0.000_094, "0.094 ms"),
        (0.001_3, "1.3 ms"),
        (0.024, "24 ms"),
        (0.099_4, "99 ms"),
        (0.099_5, "0.100 s"),  # and not 1e+02 ms
        (0.099_99, "0.100 s"),
        (0.1, "0.100 s"),
        (-0.099_7, "-0.100 s"),
        (-0.002, "-2 ms"),
        (2.001_4, "2.001 s"),
        (45.67, "45.7 s"),
        (120.0, "2 min 00 s"),
        (3599.4, "59 min 59 s"),
        (7261.0, "2 h 01 min"),
    ],
)
def test_a_duration_is_shown_in_its_unit(value: float, shown: str) -> None:
    assert seconds(value) == shown


def test_one_is_no_plural() -> None:
    assert [count(number, "timer") for number in (0, 1, 2)] == ["0 timers", "1 timer", "2 timers"]


def test_a_size_is_shown_in_mebibytes() -> None:
    assert mebibytes(35 * 2**20 + 100) == "35 MiB"
