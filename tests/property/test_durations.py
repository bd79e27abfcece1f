"""Durations, whatever is stored."""

import json

from hypothesis import given
from hypothesis import strategies as st

from aiotimer._core import durations, layout
from aiotimer._core.durations import Durations


@given(st.binary(max_size=layout.ROW_SIZE * 3), st.floats(0, 1))
def test_any_bytes_are_rows(data: bytes, q: float) -> None:
    found = Durations(durations.rows_of(data))
    assert 0 <= found.quantile(q) <= found.maximum
    again = Durations.from_json(json.loads(json.dumps(found.as_json())))
    assert again.count <= found.count


@given(st.lists(st.floats(1e-5, 8000), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_within_a_bucket_of_the_truth(seconds: list[float], q: float) -> None:
    cells = memoryview(bytearray(layout.ROW_SIZE)).cast("d")
    for one in seconds:
        durations.leave(cells, 0, one)
    found = Durations([cells])
    assert found.count == len(seconds)
    assert found.maximum == max(seconds)
    told, there = found.quantile(q), sorted(seconds)
    assert any(told / 1.5 <= one <= told * 1.5 for one in there) or told <= durations.bounds(0)[1]
