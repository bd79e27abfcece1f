"""Any bytes as a table: no exception, bounded work, and nothing reported that nobody could have armed."""

from math import inf

import hypothesis.strategies as st
from hypothesis import given, settings

from aiotimer._core import layout
from aiotimer._core.layout import SLOTS
from aiotimer._core.reader import Read, TableReader
from aiotimer._core.watch import BLOCK, BOUND, SLOW, Lifeline, Watch

NOW = 1000.0
WORDS = st.one_of(
    st.floats(width=64).map(layout.word),  # NaN of all kinds, infinities, denormals
    st.floats(0.0, 2000.0).map(layout.word),
    st.binary(min_size=8, max_size=8),
)
MARKS = st.one_of(WORDS, st.integers(0, 70_000).map(lambda slots: layout.word(float(slots))))


@st.composite
def tables(draw: st.DrawFn) -> Read:
    """A file with a mark, some deadlines and labels, and something else around; cut off anywhere."""
    filler = draw(st.sampled_from([b"\0", b"\xff", b"\x7f"]))
    deadlines = draw(st.lists(WORDS, max_size=40))
    labels = draw(st.lists(st.binary(max_size=layout.LABEL_SIZE), max_size=5))
    first = layout.deadline_offset(0)
    head = filler * (8 * layout.HIGH_WATER) + draw(MARKS)
    page = head.ljust(first, filler) + b"".join(deadlines)
    size = draw(st.one_of(st.just(layout.TABLE_SIZE), st.integers(0, layout.TABLE_SIZE)))
    regions = {0: page} | {layout.label_offset(slot): label for slot, label in enumerate(labels)}

    def read(length: int, offset: int) -> bytes:
        assert 0 <= length <= layout.TABLE_SIZE
        length = max(0, min(length, size - offset))
        data = bytearray(filler * length)
        for start, content in regions.items():
            if start < offset + length and offset < start + len(content):
                piece = content[max(0, offset - start) : offset + length - start]
                data[max(0, start - offset) : max(0, start - offset) + len(piece)] = piece
        return bytes(data)

    return read


@given(tables())
def test_any_bytes_can_be_read_and_looked_at(read: Read) -> None:
    reader = TableReader(read)
    deadlines = reader.deadlines()
    assert len(deadlines) <= SLOTS
    watch = Watch(Lifeline(NOW), connected=True)
    looks = [watch.look(deadlines, NOW)]
    while looks[-1].wake_at == NOW:  # there is more than one look can judge
        looks.append(watch.look(deadlines, NOW))
        assert len(looks) <= SLOTS / BLOCK / SLOW
    assert NOW < looks[-1].wake_at <= NOW + BOUND
    assert all(look.promise == look.wake_at for look in looks)
    found = [due for look in looks for due in look.due]
    assert all(layout.is_armed(due.deadline) and due.deadline <= NOW for due in found)
    assert len(found) == sum(0.0 < deadline <= NOW for deadline in deadlines)
    look = looks[-1]
    assert not watch.overlooked(deadlines, look.wake_at)
    assert not watch.look(deadlines, NOW).due, "nothing is reported twice"


@settings(max_examples=50)
@given(tables())
def test_any_bytes_have_timers_with_names(read: Read) -> None:
    reader = TableReader(read)
    timers = reader.timers()
    assert len(timers) <= SLOTS
    assert [timer.deadline for timer in timers] == sorted(timer.deadline for timer in timers)
    for timer in timers[:50]:
        assert timer.name
        assert 0.0 < timer.deadline < inf
