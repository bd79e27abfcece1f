"""Refusals, which are counted."""

from __future__ import annotations

import pytest

from aiotimer.events import Event
from aiotimer.server.reporter import PEERS, Refusals


class Refused(Refusals):
    """Counts on a clock that is set.

    Attributes:
        told: what was told.
        now: the time.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.now = 0.0
        super().__init__(lambda event: self.told.append(event.detail), lambda: self.now)

    def refuse(self, peer: object, *reasons: str) -> None:
        """Refuse a peer so many times."""
        for reason in reasons:
            self.add(peer, Event("refused", detail=reason))

    def tell_at(self, now: float) -> list[str]:
        """Return what is told at a time that has not been told before."""
        self.now, self.told = now, []
        self.tell()
        return self.told


@pytest.fixture
def refused() -> Refused:
    """Nobody has been refused."""
    return Refused()


def test_the_first_refusal_is_told_at_once_and_the_others_once_a_minute(refused: Refused) -> None:
    refused.refuse("a", "one", *["two"] * 500, "three")
    refused.refuse("b", "one")
    assert refused.told == ["one", "one"], "each peer's"
    assert refused.tell_at(59.9) == []
    assert refused.tell_at(60.0) == ["501 more refusals within 60 s: two; three"]
    refused.refuse("a", "four")
    refused.refuse("b", "four")
    assert refused.told == ["501 more refusals within 60 s: two; three", "four"], (
        "b has kept quiet for a minute"
    )
    assert refused.tell_at(120.0) == ["1 more refusals within 60 s: four"]
    assert refused.tell_at(180.0) == []
    refused.refuse("a", "five")
    assert refused.told == ["five"]


def test_reasons_are_told_up_to_a_number(refused: Refused) -> None:
    refused.refuse("a", "first", *(f"a frame of {number} bytes" for number in range(7)))
    frames = "; ".join(f"a frame of {number} bytes" for number in range(5))
    assert refused.tell_at(60.0) == [f"7 more refusals within 60 s: {frames}; other reasons"]


def test_more_peers_than_a_number_are_put_together(refused: Refused) -> None:
    for number in range(10_000):
        refused.refuse(number, "no")
    assert len(refused.told) == PEERS + 1
    assert refused.tell_at(60.0) == [f"{10_000 - PEERS - 1} more refusals of many peers within 60 s: no"]
    refused.refuse(0, "no")
    assert len(refused.told) == 2, "the others are forgotten"


def test_at_the_end_all_of_them_are_told(refused: Refused) -> None:
    refused.refuse("a", "no", "no")
    refused.tell(all_of_them=True)
    assert refused.told == ["no", "1 more refusals within 0 s: no"]
