"""Refusals: the same server is asked again ever less often, another one at once."""

from aiotimer.client.reconnect import Refusals


def test_who_is_refused_asks_after_twice_as_long_up_to_a_minute() -> None:
    refusals, now = Refusals(), 100.0
    assert not refusals.hold(now)
    pauses = []
    for _ in range(9):
        refusals.add("server", now)
        pause = next(seconds for seconds in range(100) if not refusals.hold(now + seconds))
        assert refusals.hold(now + pause - 0.5)
        pauses.append(pause)
        now += pause
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    refusals.forget()
    assert not refusals.hold(now)


def test_another_server_has_not_refused() -> None:
    refusals = Refusals()
    for _ in range(5):
        refusals.add("server", 100.0)
    assert refusals.are_of("server")
    assert not refusals.are_of("another")
    refusals.add("another", 100.0)
    assert not refusals.hold(101.0), "its pauses begin anew"
