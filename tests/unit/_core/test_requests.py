"""Requests: values with the ancestor's meaning. Strictly negative is a release, zero has already expired."""

import copy
import pickle
from math import inf, nan

import pytest

from aiotimer import TimerRequest, WorkerId
from aiotimer._core.requests import RELEASE


@pytest.mark.parametrize("expiration_time", [RELEASE, -1, -1e-300, -5e-324, -inf])
def test_strictly_negative_is_a_release(expiration_time: float) -> None:
    assert TimerRequest(1, "s", expiration_time).is_release


@pytest.mark.parametrize("expiration_time", [0, 0.0, -0.0, 5e-324, 1, 1e308, inf, nan])
def test_anything_else_is_an_acquire(expiration_time: float) -> None:
    assert not TimerRequest(1, "s", expiration_time).is_release


def test_requests_are_equal_by_value() -> None:
    request = TimerRequest(WorkerId(7, 100), "train.py:42", 12.5)
    assert request == TimerRequest(WorkerId(7, 100), "train.py:42", 12.5)
    assert len({request, TimerRequest(WorkerId(7, 100), "train.py:42", 12.5)}) == 1
    assert request != request._replace(worker_id=WorkerId(7, 101))
    assert request != request._replace(scope_id="train.py:43")
    assert request != request._replace(expiration_time=13.0)


@pytest.mark.parametrize("field", ["worker_id", "scope_id", "expiration_time"])
def test_requests_are_immutable(field: str) -> None:
    request = TimerRequest(7, "s", 1.0)
    with pytest.raises(AttributeError):
        setattr(request, field, 8)


@pytest.mark.parametrize("value", [TimerRequest(WorkerId(7, 100), "s\n", 0.0), WorkerId(7, 100)])
def test_requests_survive_pickling_and_copying(value: object) -> None:
    twins = [pickle.loads(pickle.dumps(value, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in (*twins, copy.copy(value), copy.deepcopy(value)):
        assert twin == value
        assert type(twin) is type(value)


def test_a_worker_is_more_than_its_pid() -> None:
    assert WorkerId(7, 100) != WorkerId(7, 101)
    assert str(WorkerId(7, 100)) == "7", "people know it by its pid"
