"""A membership: what of it can be right, and what a program is told that says something else."""

from typing import Any

import pytest

from aiotimer._core.membership import GROUP_LENGTH, MOST, SOME, Membership, check


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (("g", 2, 4), ("g", 2, 4)),
        (("g", 0, 1), ("g", 0, 1)),
        (("g",), ("g",)),
        (("g", -1, 4), ("g", -1, 4)),
        (("g", 4, 4), ("g", 4, 0)),
        (("g", -7, 0), ("g",)),
        (("g", MOST, MOST), ("g", -1, MOST)),
        (("g", 3, MOST + 1), ("g", 3)),
        (("g", 5, 8, 4, 4), ("g", 5, 8, 4, 4)),
        (("g", 5, 8, 6, 2), ("g", 5, 8, 0, SOME)),
        (("g", 5, 8, 4, 5), ("g", 5, 8, 0, SOME)),
        (("g", 5, 8, -1, 7), ("g", 5, 8, 0, SOME)),
        (("g", 5, 8, 0, SOME), ("g", 5, 8, 0, SOME)),
        (("g", 5, 8, 3, -9), ("g", 5, 8, 0, SOME)),
        (("g" * 200, 0), ("g" * GROUP_LENGTH, 0)),
    ],
)
def test_what_cannot_be_right_is_not_known(said: tuple[Any, ...], kept: tuple[Any, ...]) -> None:
    assert Membership(*said).checked() == Membership(*kept)


@pytest.mark.parametrize(
    ("membership", "ranks"),
    [
        (Membership("g", 1, 4), [0, 1, 2, 3]),
        (Membership("g", 5, 8, 4, 4), [4, 5, 6, 7]),
        (Membership("g", 5, 8, 0, SOME), []),
        (Membership("g", 1), []),
        (Membership(), []),
    ],
)
def test_which_ranks_are_to_be_on_its_node(membership: Membership, ranks: list[int]) -> None:
    assert list(membership.ranks_here()) == ranks


@pytest.mark.parametrize(
    "said", [("", None, None), ("g", 0, 1), ("run 4711", None, 8), ("x" * GROUP_LENGTH, MOST - 1, MOST)]
)
def test_a_program_may_say_that(said: tuple[Any, ...]) -> None:
    check(*said)
    assert Membership(said[0], said[1] or 0, said[2] or 0).checked().group == said[0]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ((4711, None, None), TypeError, "group must be a str, the id of the run, not int"),
        ((None, 0, 1), TypeError, "group must be a str"),
        (("x" * 129, None, None), ValueError, "at most 128 printable characters"),
        (("a\nb", None, None), ValueError, r"printable characters, not 'a\\nb'"),
        (("g", True, None), TypeError, "rank must be an int, not bool"),
        (("g", "3", None), TypeError, "rank must be an int, not str"),
        (("g", 0, 1.0), TypeError, "size must be an int, not float"),
        (("g", -1, None), ValueError, "rank must be 0 or more, and at most 1,048,576, not -1"),
        (("g", None, 0), ValueError, "size must be 1 or more"),
        (("g", None, MOST + 1), ValueError, "at most 1,048,576, not 1048577"),
        (("g", 8, 8), ValueError, "rank 8 is none of a run of 8: ranks begin with 0"),
    ],
)
def test_a_program_is_told_what_is_wrong(said: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check(*said)
