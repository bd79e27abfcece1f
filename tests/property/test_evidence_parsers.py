"""Whatever a worker writes or makes py-spy print: it is read or refused, and raises nothing else."""

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from aiotimer.evidence import proc, pyspy, stacks
from aiotimer.evidence.texts import stacks_text
from aiotimer.evidence.verdict import verdict

LINES = st.sampled_from(
    ["Thread 0x1 (most recent call first):", "Current thread 0xff [n] (most recent call first):", ""]
)
FRAMES = st.builds('  File "{}", line {} in {}'.format, st.text(), st.integers(), st.text())
DUMPS = st.lists(LINES | FRAMES | st.text()).map("\n".join)
SCOPES = st.text() | st.builds("{}:{}".format, st.text(), st.integers())
JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())
KEYS = ["name", "filename", "line", "module"]
FRAME = st.fixed_dictionaries(dict.fromkeys(KEYS, JSON))
TRACE = st.fixed_dictionaries(
    {"frames": st.lists(FRAME) | JSON}
    | dict.fromkeys(["os_thread_id", "thread_id", "thread_name", "owns_gil"], JSON)
)


@given(st.binary().map(lambda data: data.decode(errors="backslashreplace")) | DUMPS, SCOPES)
def test_any_bytes_as_a_dump(text: str, scope: str) -> None:
    found = stacks.parse(text)
    assert stacks_text(found, text).replace("\n", "").isprintable()
    assert verdict({**proc.nothing(), "state": "S (sleeping)"}, [], found, scope).text


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_the_output_of_pyspy(output: bytes) -> None:
    with contextlib.suppress(pyspy.HelperFailed):
        assert pyspy.parse(output, 1) == []


@given(st.lists(TRACE, max_size=3))
def test_any_traces_as_the_output_of_pyspy(traces: object) -> None:
    with contextlib.suppress(pyspy.HelperFailed):
        found = pyspy.parse(json.dumps(traces).encode(), 1)
        assert stacks_text(found, "").replace("\n", "").isprintable()
        assert verdict(proc.nothing(), [], found, "x.py:1").text
