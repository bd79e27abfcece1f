"""What is said of a signal that did not end a worker."""

import signal

import pytest

from aiotimer.server.expiry import outlived

TERM, KILL, INT = signal.SIGTERM, signal.SIGKILL, signal.SIGINT
CAUGHT = {"caught": 1 << TERM - 1, "ignored": 1 << INT - 1}


def test_a_signal_that_was_caught_and_did_not_end_it() -> None:
    said = outlived([(INT, 1.0), (TERM, 3.0), (KILL, 7.02), (KILL, 8.0)], CAUGHT)
    handler = "a handler in Python waits for C code to return"
    assert said == f"SIGTERM was caught, and did not end it within 4.0 s: {handler}"


def test_a_signal_that_is_ignored() -> None:
    assert outlived([(TERM, 1.0), (INT, 3.0), (KILL, 7.0)], CAUGHT) == "SIGINT is ignored by it"


@pytest.mark.parametrize(
    ("sent", "process"),
    [([], CAUGHT), ([(KILL, 1.0)], CAUGHT), ([(TERM, 1.0)], CAUGHT), ([(TERM, 1.0), (KILL, 2.0)], {}),
     ([(TERM, 1.0), (KILL, 2.0)], {"caught": 0, "ignored": 0})],
)  # fmt: skip
def test_nothing_is_said_that_is_not_known(sent: list[tuple[int, float]], process: dict[str, int]) -> None:
    assert outlived(sent, process) == ""
