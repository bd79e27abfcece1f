"""What clients of one process may ask for."""

import pytest

from aiotimer._wish import NOTHING, Wish


def test_the_first_wish_holds_and_the_same_one_again() -> None:
    wish = NOTHING.and_also("/s", "", observe=False).and_also("/s", "KILL", observe=True)
    assert wish == Wish("KILL", observe=True)
    assert wish.and_also("/s", "KILL", observe=True) == wish
    assert wish.and_also("/s", "", observe=False) == wish


def test_another_wish_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        Wish("KILL").and_also("/s", "TERM:1,KILL", observe=False)
    with pytest.raises(ValueError, match="already"):
        Wish("KILL").and_also("/s", "KILL", observe=True)


@pytest.mark.parametrize("reap", ["x" * 81, "é"])
def test_what_cannot_be_said_is_refused(reap: str) -> None:
    with pytest.raises(ValueError, match=r"fit|ascii"):
        NOTHING.and_also("/s", reap, observe=False)


def test_a_wish_is_a_text() -> None:
    with pytest.raises(TypeError, match="int"):
        NOTHING.and_also("/s", 7, observe=False)  # type: ignore[arg-type]


def test_the_environment_can_wish_to_observe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOTIMER_OBSERVE", raising=False)
    assert (NOTHING.observed, Wish(observe=True).observed) == (False, True)
    monkeypatch.setenv("AIOTIMER_OBSERVE", "1")
    assert NOTHING.observed
