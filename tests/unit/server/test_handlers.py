"""The table of handlers: which message may come on which connection."""

from __future__ import annotations

from typing import get_args

from aiotimer._core import wire
from aiotimer.server.handlers import HANDLERS, State

QUESTIONS = "Ping StatusRequest Resume Disown"
MAY_COME = {
    State.STRANGER: f"Hello Attend DumpRequest {QUESTIONS}",
    State.SHARING: f"Ring Bye {QUESTIONS}",
    State.SOCKET_ONLY: f"Ring Acquire Bye {QUESTIONS}",
    State.CHANNEL: "Tasks",
    State.REPORT: QUESTIONS,
}


def test_every_message_has_a_handler_and_no_two_have_the_same() -> None:
    assert HANDLERS.keys() == set(get_args(wire.ToServer))
    assert len({handler for handler, _states in HANDLERS.values()}) == len(HANDLERS)


def test_what_may_come_when() -> None:
    found = {state: {kind.__name__ for kind, (_, at) in HANDLERS.items() if state in at} for state in State}
    assert found == {state: set(kinds.split()) for state, kinds in MAY_COME.items()}
