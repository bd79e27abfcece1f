"""A disposal: what is large waits for its thread, what is little does not, and nothing is closed twice."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotimer.server.disposal import LITTLE, Disposal


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.fixture
def held() -> Iterator[Disposal]:
    """A disposal whose thread is kept busy until the test is over, or closes it."""
    disposal = Disposal()
    reading, writing = os.pipe()
    disposal._thread.submit(os.read, reading, 1)
    close = disposal.close

    def let_go_and_close() -> None:
        os.write(writing, b".")
        close()

    disposal.close = let_go_and_close  # type: ignore[method-assign]  # it waits for the thread
    yield disposal
    disposal.close()
    os.close(reading)
    os.close(writing)


def file_of(size: int) -> int:
    """Return a descriptor of a file in memory that has no name, of so many bytes."""
    descriptor = os.memfd_create("table")
    os.posix_fallocate(descriptor, 0, size)
    return descriptor


def test_little_is_given_back_at_once(held: Disposal) -> None:
    little = file_of(LITTLE)
    held.close_descriptor(little)
    assert not is_open(little)
    mapping = mmap.mmap(-1, LITTLE)
    held.close_mapping(mapping, LITTLE)
    assert mapping.closed


def test_what_the_kernel_takes_long_for_is_given_back_by_the_thread(held: Disposal) -> None:
    large, mapping = file_of(2 * LITTLE), mmap.mmap(-1, 2 * LITTLE)
    held.close_descriptor(large)
    held.close_mapping(mapping, 2 * LITTLE)
    assert is_open(large), "nobody has waited for it"
    assert not mapping.closed
    held.close()
    assert not is_open(large), "a disposal that is closed has finished"
    assert mapping.closed


def test_a_file_that_has_a_name_keeps_its_memory_and_is_closed_at_once(
    held: Disposal, tmp_path: Path
) -> None:
    descriptor = os.open(tmp_path / "table", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 2 * LITTLE)
    held.close_descriptor(descriptor)
    assert not is_open(descriptor)


def test_a_file_that_is_removed_loses_its_name_at_once(held: Disposal, tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"x")
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * LITTLE)
    for _ in range(2):
        held.remove(path)
        assert not path.exists()
    assert len(held._waiting) == 1, "its memory has not been waited for"
    held.close()
    assert not held._waiting


def test_what_comes_after_the_end_is_given_back_at_once() -> None:
    disposal = Disposal()
    disposal.close()
    large = file_of(2 * LITTLE)
    disposal.close_descriptor(large)
    assert not is_open(large)
    disposal.close()


def test_a_forked_child_gives_back_what_waits(held: Disposal) -> None:
    large = file_of(2 * LITTLE)
    held.close_descriptor(large)
    held.abandon()
    assert not is_open(large)
    other = file_of(1)
    held.close()
    assert is_open(other), "its number may be another file's by now: it is closed once"
    os.close(other)
