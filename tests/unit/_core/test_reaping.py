"""The state machine of a reaping: every transition of its table, its laws over random histories.

A :class:`Shell` stands for the server: it answers the machine's questions as a test wants, and keeps a list.
"""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotimer._core import reaping
from aiotimer._core.ladder import KILL, Ladder
from aiotimer._core.reaping import (
    Action,
    Answer,
    Armed,
    Begin,
    Break,
    Check,
    Checked,
    Clear,
    Confirm,
    Despair,
    Died,
    Done,
    End,
    Event,
    Expired,
    Fail,
    Forget,
    Gather,
    Gathered,
    Gone,
    Hold,
    Left,
    LookAgain,
    OutOfPlace,
    Read,
    ReadAgain,
    Reap,
    Reaping,
    Refused,
    Released,
    Sent,
    Signal,
    Spare,
    State,
    Woken,
)
from aiotimer._core.watch import Due

LONG = Ladder.parse("dump,ABRT:2,TERM:10,KILL")
TERM, ABRT = 15, 6


def due(slot: int = 0, deadline: float = 10.0) -> Due:
    return Due(slot, deadline, deadline)


class Shell:
    """A server that answers the questions of a machine.

    Attributes:
        machine: what is driven.
        did: what it was told to do.
        sent: the signals that reached the worker.
        read_in: in which states it wanted slots to be read.
        armed: the slots that are still armed.
        stopped: why the worker cannot run.
        signal: the answer to a signal.
        owner: what the owner does: ``"ladder"``: carries it out and waits; ``"leaves"``: carries it out and
            does not wait; ``"waits"``: the test has it carried out, and waits; True, False: something else,
            with that result; None: something that takes time.
        gathered: the evidence is there already.
    """

    def __init__(self, ladder: Ladder = LONG, *, allows: int = 100) -> None:
        self.did: list[Action] = []
        self.sent: list[int] = []
        self.read_in: list[str] = []
        self.armed = {0, 1, 2}
        self.stopped = ""
        self.signal: Event = Sent()
        self.owner: object = "ladder"
        self.gathered = False
        self.observes = False
        self.ladder = ladder
        self.now = 20.0
        self._allowed = allows
        self._waits = False  # the owner does, for the ladder
        self.machine = Reaping(self._allows)

    def _allows(self, now: float) -> bool:
        assert now == self.now
        self._allowed -= 1
        return self._allowed >= 0

    def tell(self, event: Event) -> list[Action]:
        """Tell an event, carry out what comes out; return what that was, the questions included."""
        before = len(self.did)
        if isinstance(event, Done):
            self._waits = False
        for action in self.machine.handle(event, self.now):
            self.did.append(action)
            answer = self._carry_out(action)
            if answer is not None:
                self.tell(answer)
        return self.did[before:]

    def _carry_out(self, action: Action) -> Event | None:
        match action:
            case ReadAgain(table, some):
                self.read_in.append(self.state)
                found = next((one for one in some if one.slot in self.armed and not self.observes), None)
                return Read(table, some, found, self.stopped)
            case Break():
                self.observes = True
            case Reap():
                return self._ask()
            case Confirm():
                reap = next(one for one in reversed(self.did) if isinstance(one, Reap))
                return Armed() if reap.due.slot in self.armed else Released()
            case Signal(number):
                if isinstance(self.signal, Sent):
                    self.sent.append(number)
                return self.signal
            case Check():
                assert self.machine.wakes_at == inf, "it was woken for this"
                return Checked(self.stopped)
            case Answer(done) if self._waits:
                return Done(done)
        return None

    def _ask(self) -> Event | None:
        if self.owner in ("ladder", "leaves"):
            if self.owner == "leaves":
                self.tell(Begin(self.ladder, self.gathered))
                return Done(True)
            self._waits = True
            return Begin(self.ladder, self.gathered)
        return None if self.owner in (None, "waits") else Done(bool(self.owner))

    def wake(self) -> list[Action]:
        """Let time pass until the machine wants to be woken."""
        assert self.machine.wakes_at < inf
        self.now = self.machine.wakes_at
        return self.tell(Woken())

    @property
    def state(self) -> str:
        return self.machine.state.value

    @property
    def signals(self) -> list[int]:
        return [one.number for one in self.did if isinstance(one, Signal)]


def expired(*slots: int, table: str = "t") -> Expired:
    return Expired(table, tuple(due(slot) for slot in slots or (0,)))


# -- events and actions ----------------------------------------------------------------------------------


def test_what_holds_nothing_is_told_by_its_kind() -> None:
    assert Gathered() == Gathered()
    assert Gathered() != Gone()
    assert repr([Gathered(), Confirm()]) == "[Gathered(), Confirm()]"


# -- the ladder ----------------------------------------------------------------------------------------


def test_a_ladder_to_its_last_step() -> None:
    shell = Shell()
    assert shell.tell(expired()) == [ReadAgain("t", (due(),)), Reap("t", due(), False), Gather(False)]
    assert (shell.state, shell.machine.wakes_at, shell.machine.untouched) == ("gathering", inf, True)
    assert shell.tell(Gathered()) == [Confirm(), Signal(ABRT, True)]
    assert (shell.state, shell.machine.wakes_at, shell.machine.untouched) == ("signalled", 22.0, False)
    assert shell.wake() == [Signal(TERM, True)]
    assert (shell.state, shell.machine.wakes_at) == ("signalled", 32.0)
    assert shell.wake() == [Signal(KILL, False), Answer(True), Clear()]
    assert (shell.state, shell.machine.wakes_at) == ("killed", 42.0)
    assert shell.wake() == [Despair()]
    assert (shell.state, shell.machine.wakes_at) == ("unkillable", inf)
    assert shell.tell(Died()) == [End(True)]
    assert shell.state == "dead"


def test_kill_at_once_reads_again_all_the_same() -> None:
    shell = Shell(Ladder.parse("KILL"))
    did = shell.tell(expired())
    assert did[2:] == [Confirm(), Signal(KILL, False), Answer(True), Clear()]


def test_evidence_is_gathered_knowing_what_comes_next() -> None:
    assert Gather(True) in Shell(Ladder.parse("dump,KILL")).tell(expired())


def test_evidence_that_is_known_is_not_gathered_again() -> None:
    shell = Shell()
    shell.gathered = True
    shell.tell(expired())
    assert not any(isinstance(action, Gather) for action in shell.did)
    assert shell.signals == [ABRT]


def test_sigcont_needs_no_sigcont() -> None:
    shell = Shell(Ladder.parse("CONT:1,HUP:1,KILL"))
    shell.tell(expired())
    shell.wake()
    assert [one for one in shell.did if isinstance(one, Signal)] == [Signal(18, False), Signal(1, True)]


def test_too_early_is_not_yet() -> None:
    shell = Shell()
    shell.tell(expired())
    shell.tell(Gathered())
    shell.now = 21.999
    assert shell.tell(Woken()) == []
    assert shell.machine.wakes_at == 22.0


def test_after_the_first_signal_there_is_no_way_back() -> None:
    shell = Shell()
    shell.tell(expired())
    shell.tell(Gathered())
    shell.armed.clear()
    shell.wake()
    shell.wake()
    assert shell.signals == [ABRT, TERM, KILL]


def test_a_release_before_the_first_signal_spares() -> None:
    shell = Shell()
    shell.tell(expired())
    shell.armed.clear()
    assert shell.tell(Gathered()) == [Confirm(), Answer(True), Spare()]
    assert (shell.state, shell.signals, shell.machine.postponed) == ("watched", [], [])


def test_a_release_before_the_reading_needs_nothing() -> None:
    shell = Shell()
    shell.armed.clear()
    assert shell.tell(expired()) == [ReadAgain("t", (due(),))]
    assert shell.state == "watched"


@pytest.mark.parametrize("steps", [0, 1], ids=["while evidence is gathered", "in its grace"])
def test_who_dies_ends_the_ladder(steps: int) -> None:
    shell = Shell()
    shell.tell(expired())
    for _ in range(steps):
        shell.tell(Gathered())
    assert shell.tell(Died()) == [Answer(True), End(bool(steps))], "only a signal makes it reaped"
    assert shell.machine.wakes_at == inf
    assert shell.tell(Gathered()) == [], "the evidence comes too late"
    assert shell.tell(expired()) == [Clear()]


def test_who_dies_by_itself() -> None:
    assert Shell().tell(Died()) == [End(False)]


def test_who_was_dead_already_has_died_by_itself() -> None:
    shell = Shell(Ladder.parse("KILL"))
    shell.signal = Gone()
    assert shell.tell(expired())[-3:] == [Signal(KILL, False), Answer(True), Clear()]
    assert shell.state == "dead"
    assert shell.tell(Died()) == [End(False)]


def test_who_dies_of_an_earlier_signal_was_reaped() -> None:
    shell = Shell(Ladder.parse("TERM:1,KILL"))
    shell.tell(expired())
    shell.signal = Gone()
    shell.wake()
    assert shell.tell(Died()) == [End(True)]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_another_program_is_not_signalled_for_what_an_earlier_one_has_armed(steps: int) -> None:
    shell = Shell()
    shell.tell(expired())
    shell.tell(expired(1, table="owner"))
    for number in range(steps):
        shell.wake() if number else shell.tell(Gathered())
    shell.signal = Left()
    shell.armed.clear()  # its table is gone
    if not steps:
        shell.armed = {0}
    did = shell.wake() if steps else shell.tell(Gathered())
    assert did[-3:] == [Answer(True), Forget(), ReadAgain("owner", (due(1),))]
    assert (shell.state, shell.machine.wakes_at) == ("watched", inf)
    assert len(shell.signals) == steps + 1, "the last one was asked for, and not sent"
    shell.signal, shell.gathered, shell.armed = Sent(), True, {2}
    shell.tell(expired(2))
    assert (shell.state, shell.signals[steps + 1 :]) == ("signalled", [ABRT]), "its own timers are reaped for"
    assert shell.tell(Died())[-1] == End(True)


def test_another_program_that_dies_has_died_by_itself() -> None:
    shell = Shell(Ladder.parse("TERM:1,KILL"))
    shell.tell(expired())
    shell.signal = Left()
    shell.wake()
    assert shell.tell(Died()) == [End(False)]


def test_another_program_that_was_in_time_is_spared_like_any() -> None:
    shell = Shell()
    shell.signal = Left()
    shell.tell(expired())
    assert shell.tell(Gathered())[-1] == Forget()
    shell.tell(expired(1))
    shell.armed.clear()
    assert shell.tell(Gathered())[-1] == Spare()


def test_the_owner_is_told_that_another_program_runs_before_anything_else_happens() -> None:
    shell = Shell(Ladder.parse("TERM:1,KILL"))
    shell.owner = "waits"
    shell.tell(expired())
    shell.tell(Begin(shell.ladder, True))
    shell.signal = Left()
    assert shell.wake() == [Signal(KILL, False), Answer(True)]
    assert shell.state == "spared"
    assert shell.tell(Done(True)) == [Forget()]


@pytest.mark.parametrize("state", ["killed", "unkillable"])
def test_who_is_dying_is_left_alone(state: str) -> None:
    shell = Shell(Ladder.parse("KILL"))
    shell.tell(expired())
    if state == "unkillable":
        shell.wake()
    assert shell.state == state
    assert shell.tell(expired(1)) == [Clear()]
    assert shell.tell(Begin(LONG, False)) == [Answer(True)]
    assert shell.signals == [KILL]


# -- what expires meanwhile ----------------------------------------------------------------------------


def test_what_expires_meanwhile_is_postponed_until_the_worker_is_spared() -> None:
    shell = Shell()
    shell.tell(expired(0))
    assert shell.tell(expired(1, table="u")) == [ReadAgain("u", (due(1),))]
    shell.tell(expired(2, table="u"))
    shell.armed -= {0, 2}
    shell.gathered = True  # what was gathered serves for the next one
    did = shell.tell(Gathered())
    assert did[2:5] == [Spare(), ReadAgain("u", (due(1),)), Reap("u", due(1), False)]
    assert did[-1] == ReadAgain("u", (due(2),))
    assert shell.signals == [ABRT]


def test_of_what_was_found_with_it_the_rest_is_read_again() -> None:
    shell = Shell()
    shell.tell(expired(0, 1))
    shell.armed -= {0}
    did = shell.tell(Gathered())
    assert did[2:] == [Spare(), ReadAgain("t", (due(1),)), Reap("t", due(1), False), Gather(False)]
    assert shell.read_in == ["due", "due"]


def test_of_several_that_were_postponed_the_kill_clears_all() -> None:
    shell = Shell(Ladder.parse("dump,KILL"))
    shell.tell(expired(0))
    shell.tell(expired(1, table="u"))
    shell.tell(expired(2, table="v"))
    shell.armed -= {0}
    shell.gathered = True
    shell.tell(Gathered())
    assert shell.signals == [KILL]
    assert shell.did[-2:] == [ReadAgain("v", (due(2),)), Clear()]


# -- the owner -----------------------------------------------------------------------------------------


def test_an_owner_that_reaps_in_its_own_way() -> None:
    shell = Shell()
    shell.owner = True
    assert shell.tell(expired()) == [ReadAgain("t", (due(),)), Reap("t", due(), False), Clear()]
    assert shell.state == "watched"
    assert shell.tell(Died()) == [End(True)], "it was the owner's doing"


def test_an_owner_that_takes_its_time() -> None:
    shell = Shell()
    shell.owner = None
    shell.tell(expired())
    assert shell.state == "asked"
    assert shell.tell(expired(1)) == [ReadAgain("t", (due(1),))]
    assert shell.tell(Done(True)) == [Clear()]
    assert shell.machine.postponed == []


def test_an_owner_that_does_not_wait_for_the_ladder() -> None:
    shell = Shell()
    shell.owner = "leaves"
    shell.tell(expired())
    assert shell.state == "gathering", "it goes on all the same"
    shell.armed.clear()
    assert shell.tell(Gathered()) == [Confirm(), Answer(True), Spare()], "nobody has to be waited for"
    assert shell.state == "watched"


def test_a_refusal_that_no_owner_waits_for() -> None:
    shell = Shell()
    shell.owner = "leaves"
    shell.tell(expired())
    shell.signal = Refused("no")
    assert shell.tell(Gathered())[1:] == [Signal(ABRT, True), Answer(False), Fail("no", True)]
    assert shell.state == "refused"


def test_a_ladder_for_its_own_sake() -> None:
    """The owner reaps a worker of which nothing has expired."""
    shell = Shell()
    assert shell.tell(Begin(LONG, False)) == [Signal(ABRT, True)], "there is no expiry to explain"
    assert shell.tell(Begin(LONG, False)) == [], "it is being carried out"
    shell.wake()
    assert shell.wake() == [Signal(KILL, False), Answer(True)], "there is nothing that it was reaped for"
    assert shell.signals == [ABRT, TERM, KILL]


def test_a_ladder_for_its_own_sake_of_a_worker_that_was_spared() -> None:
    shell = Shell(Ladder.parse("dump,KILL"))
    shell.tell(expired())
    shell.armed.clear()
    shell.tell(Gathered())
    assert shell.tell(Begin(shell.ladder, False)) == [Signal(KILL, False), Answer(True)]


def test_a_refusal_of_a_ladder_for_its_own_sake() -> None:
    shell = Shell()
    shell.owner = "nobody"
    shell.signal = Refused("no")
    assert shell.tell(Begin(LONG, False)) == [Signal(ABRT, True), Answer(False)]
    assert (shell.state, shell.machine.wakes_at) == ("watched", inf)


# -- retries -------------------------------------------------------------------------------------------


def test_a_refusal_is_reported_once_and_tried_again_ever_more_slowly() -> None:
    shell = Shell(Ladder.parse("KILL"))
    shell.signal = Refused("not permitted")
    assert shell.tell(expired())[-2:] == [Answer(False), Fail("not permitted", True)]
    pauses = []
    for _ in range(8):
        assert shell.state == "refused"
        pauses.append(shell.machine.wakes_at - shell.now)
        assert shell.wake() == [LookAgain("t", (due(),))]
        assert shell.state == "watched"
        did = shell.tell(expired())
        assert did[1] == Reap("t", due(), True)
        assert did[-1] == Fail("not permitted", False)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert shell.tell(Died()) == [End(False)], "nothing could be done to it"


def test_a_refusal_after_a_reap_that_worked_is_reported_again() -> None:
    shell = Shell(Ladder.parse("KILL"))
    shell.signal = Refused("not permitted")
    assert shell.tell(expired())[-1] == Fail("not permitted", True)
    shell.wake()
    shell.owner = True
    shell.tell(expired())
    shell.owner = "ladder"
    assert shell.tell(expired(1))[-1] == Fail("not permitted", True)
    shell.wake()
    shell.owner = True
    shell.tell(expired(1))
    shell.owner = False
    assert shell.tell(expired(2))[-1] == Fail("", True), "the kernel had no part in this one"


def test_a_reap_that_worked_starts_the_count_again() -> None:
    shell = Shell()
    shell.owner = False
    shell.tell(expired())
    shell.wake()
    shell.owner = True
    shell.tell(expired())
    shell.owner = False
    shell.tell(expired(1))
    assert shell.machine.wakes_at == pytest.approx(shell.now + 0.1)


def test_an_owner_that_fails_is_reported_each_time() -> None:
    shell = Shell()
    shell.owner = False
    for _ in range(3):
        assert shell.tell(expired())[-1] == Fail("", True)
        shell.wake()


def test_one_retry_whatever_falls_due() -> None:
    shell = Shell()
    shell.owner = False
    shell.tell(expired(0))
    assert shell.tell(expired(1)) == [ReadAgain("t", (due(1),))]
    assert shell.wake() == [LookAgain("t", (due(0),)), LookAgain("t", (due(1),))]


def test_a_retry_is_no_new_reap_for_the_breaker() -> None:
    shell = Shell(allows=1)
    shell.owner = False
    for _ in range(5):
        shell.tell(expired())
        shell.wake()
    assert Break() not in shell.did


def test_too_many_reaps() -> None:
    shell = Shell(allows=0)
    assert shell.tell(expired()) == [
        ReadAgain("t", (due(),)), Break(), ReadAgain("t", (due(),)),
    ]  # fmt: skip
    assert shell.state == "watched"


# -- holds ---------------------------------------------------------------------------------------------


def test_a_hold_lasts_while_it_is_stopped_and_ten_seconds_more() -> None:
    shell = Shell()
    shell.stopped = "it is stopped"
    assert shell.tell(expired()) == [ReadAgain("t", (due(),)), Hold("it is stopped")]
    assert (shell.state, shell.machine.wakes_at) == ("held", 21.0)
    assert shell.tell(expired(1)) == [ReadAgain("t", (due(1),))], "it is reported once"
    assert shell.wake() == [Check()]
    assert (shell.state, shell.machine.wakes_at) == ("held", 22.0)
    shell.stopped = ""
    shell.wake()
    assert (shell.state, shell.machine.wakes_at) == ("resumed", 32.0)
    did = shell.wake()
    assert did[:3] == [Check(), ReadAgain("t", (due(0),)), Reap("t", due(0), False)]
    assert did[-1] == ReadAgain("t", (due(1),))
    assert shell.state == "gathering"


def test_a_hold_goes_on_if_it_stops_again() -> None:
    shell = Shell()
    shell.stopped = "it is stopped"
    shell.tell(expired())
    shell.stopped = ""
    shell.wake()
    shell.stopped = "process 7 debugs it"
    shell.wake()
    assert (shell.state, shell.machine.wakes_at) == ("held", 32.0)
    assert not any(isinstance(one, Reap) for one in shell.did)


def test_who_leaves_its_block_after_a_hold_is_spared() -> None:
    shell = Shell()
    shell.stopped = "it is stopped"
    shell.tell(expired())
    shell.stopped = ""
    shell.wake()
    shell.armed.clear()
    assert shell.wake() == [Check(), ReadAgain("t", (due(),))]
    assert (shell.state, shell.machine.wakes_at) == ("watched", inf)


# -- the table -----------------------------------------------------------------------------------------


def test_what_has_no_place_is_an_error() -> None:
    shell = Shell()
    with pytest.raises(OutOfPlace, match=r"^Sent of a worker that is watched$"):
        shell.tell(Sent())
    assert shell.state == "watched"


def test_a_step_beside_the_table_is_an_error() -> None:
    class Confused(Reaping):
        def _go_to(self, state: State, wakes_at: float = inf) -> None:
            super()._go_to(State.DEAD if state is State.CONFIRMING else state, wakes_at)

    with pytest.raises(OutOfPlace, match=r"^Begin led from watched to dead$"):
        Confused(lambda _now: True).handle(Begin(LONG, gathered=True), 0.0)


def test_every_state_is_in_the_table() -> None:
    assert set(reaping.TRANSITIONS) == set(State)
    reached = {after for moves in reaping.MOVES.values() for states in moves.values() for after in states}
    assert reached | {State.WATCHED} == set(State) | {State.DEAD}


EVENTS = st.sampled_from(["expired", "expired too", "gathered", "woken", "done", "failed", "begin", "died"])


@given(
    st.lists(
        st.tuples(
            EVENTS,
            st.sets(st.integers(0, 2)),
            st.sampled_from([Sent(), Sent(), Sent(), Gone(), Left(), Refused("no")]),
            st.sampled_from(["ladder", "ladder", "leaves", True, False, None]),
            st.sampled_from(["", "", "stopped"]),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.sampled_from([LONG, Ladder.parse("KILL"), Ladder.parse("dump,KILL"), Ladder.parse("TERM:1,KILL")]),
    st.integers(0, 5),
)
def test_the_laws_over_random_histories(history: list[Any], ladder: Ladder, allows: int) -> None:
    shell = Shell(ladder, allows=allows)
    seen: set[tuple[State, type]] = set()
    for what, armed, signal, owner, stopped, gathered in history:
        shell.armed, shell.signal, shell.stopped, shell.gathered = armed, signal, stopped, gathered
        if shell.state == "watched":
            shell.owner = owner
        before = shell.machine.state
        events: dict[str, Event] = {
            "expired": expired(0, 1), "expired too": expired(2, table="u"), "gathered": Gathered(),
            "woken": Woken(), "done": Done(True), "failed": Done(False), "begin": Begin(ladder, gathered),
            "died": Died(),
        }  # fmt: skip
        event = events[what]
        possible = type(event) in reaping.TRANSITIONS[before] or isinstance(event, Died)
        if isinstance(event, Gathered) and before is State.GATHERING:
            pass
        elif isinstance(event, Woken):
            if shell.machine.wakes_at == inf:
                continue
            shell.now = max(shell.now, shell.machine.wakes_at)
        elif not possible:
            continue
        started = len(shell.did)
        shell.tell(event)
        seen.add((before, type(event)))
        _check(shell, started)
        if isinstance(event, Died):
            assert shell.state == "dead"
            break
    assert shell.sent.count(KILL) <= 1, "one SIGKILL, not a stream"


def _check(shell: Shell, started: int) -> None:
    """What holds after every event."""
    machine, did = shell.machine, shell.did
    for number in range(started, len(did)):
        if isinstance(did[number], Reap):
            assert isinstance(did[number - 1], ReadAgain), "nobody is reaped without a reading just before"
    waits = machine.wakes_at < inf
    always = {State.HELD, State.RESUMED, State.SIGNALLED, State.REFUSED, State.KILLED}
    assert waits == (machine.state in always), f"{machine.state} wakes at {machine.wakes_at}"
    assert machine.state not in (State.DUE, State.CONFIRMING), "questions are answered at once"
    if machine.state in (State.HELD, State.RESUMED, State.REFUSED):
        assert machine.postponed, "there is something to come back to"
    if machine.state in (State.WATCHED, State.KILLED, State.UNKILLABLE, State.DEAD):
        assert not machine.postponed, "nothing is forgotten"
