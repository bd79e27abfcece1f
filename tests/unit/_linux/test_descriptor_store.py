"""A descriptor store: what is kept outlives who has kept it, in whatever moment that ends."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from aiotimer._linux.descriptor_store import DescriptorStore


@pytest.fixture
def store() -> Iterator[DescriptorStore]:
    store = DescriptorStore.make()
    yield store
    store.close()


def file_with(text: str) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, text.encode())
    return descriptor


def keep(store: DescriptorStore, *names: str) -> None:
    for name in names:
        descriptor = file_with(name)
        store.keep(name, descriptor)
        os.close(descriptor)


def contents(store: DescriptorStore) -> dict[str, str]:
    """Return what is kept: by name, what is in the file."""
    found = {}
    for name, descriptor in store.kept():
        found[name] = os.pread(descriptor, 100, 0).decode()
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    return found


def end(rounds: Iterator[None]) -> int:
    return sum(1 for _ in rounds)


def test_what_is_kept_can_be_read_again_and_again(store: DescriptorStore) -> None:
    assert contents(store) == {}
    keep(store, "a", "b", "c")
    assert contents(store) == {"a": "a", "b": "b", "c": "c"}
    assert contents(store) == {"a": "a", "b": "b", "c": "c"}


def test_only_what_is_wanted_stays(store: DescriptorStore) -> None:
    keep(store, "a", "b", "c")
    end(store.keep_only({"b"}.__contains__))
    assert contents(store) == {"b": "b"}
    end(store.keep_only(lambda _name: False))
    assert contents(store) == {}


def test_a_long_round_gives_others_a_turn_who_may_keep_more(store: DescriptorStore) -> None:
    names = {f"{n}" for n in range(100)}
    keep(store, *names)
    wanted = set(names)
    for turn in store.keep_only(wanted.__contains__):
        assert turn is None
        wanted.add(f"new {len(wanted)}")
        keep(store, f"new {len(wanted) - 1}")
    assert contents(store).keys() == wanted
    assert len(wanted) > 100


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_round_that_was_not_finished_loses_nothing(at: int, store: DescriptorStore) -> None:
    """It was its process that ended. What is left of it is a mark of its own."""
    names = {f"{n}" for n in range(100)}
    keep(store, *names)
    unfinished = store.keep_only(names.__contains__)
    for _ in range(at):
        next(unfinished, None)
    assert contents(store).keys() == names
    assert contents(store).keys() == names


def test_a_full_store_is_an_error_and_goes_round_all_the_same(store: DescriptorStore) -> None:
    descriptor, kept = file_with(""), 0
    with pytest.raises(OSError, match=r"temporarily unavailable|Too many references"):
        while True:
            store.keep(f"{kept}", descriptor)
            kept += 1
    assert kept > 100
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100
    assert len(contents(store)) >= min(kept, room)
    assert len(contents(store)) >= min(kept, room), "what there was no descriptor for is kept, too"
    end(store.keep_only(lambda name: name in {"5", "7"}))
    assert contents(store).keys() == {"5", "7"}
    store.keep("more", descriptor)
    os.close(descriptor)


def test_another_process_goes_on_with_it(store: DescriptorStore) -> None:
    keep(store, "a")
    ends = [os.dup(descriptor) for descriptor in store.descriptors]
    heir = DescriptorStore.inherit(ends[0], ends[1])
    store.close()
    assert contents(heir) == {"a": "a"}
    heir.close()
