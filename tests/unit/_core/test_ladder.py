"""The ladder as text, and its run step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotimer._core.ladder import (
    DUMP,
    NO_REQUEST,
    SIGNALS,
    Ladder,
    ReapGrant,
    ReapRequest,
    Step,
    name_of,
    read_reap_grant,
    reap_grant,
    seconds,
)

LONG = Ladder.parse("dump,ABRT:2,TERM:10,KILL")

# -- parse and str -----------------------------------------------------------------------------------


def test_a_ladder_is_its_steps() -> None:
    assert list(LONG) == [DUMP, Step(6, 2.0), Step(15, 10.0), Step(9, 0.0)]
    assert DUMP == (0, 0.0)
    assert str(LONG) == "dump,ABRT:2,TERM:10,KILL"
    assert LONG.total_grace == 12.0
    assert Ladder.parse("KILL").total_grace == 0.0


@pytest.mark.parametrize(
    ("ladder", "at_once"),
    [("dump,KILL", True), ("KILL", True), ("dump,ABRT:2,TERM:10,KILL", False), ("CONT:1,KILL", False)],
)
def test_where_sigkill_is_all_there_is(ladder: str, at_once: bool) -> None:
    assert Ladder.parse(ladder).kills_at_once is at_once


def test_names_are_taken_as_people_write_them() -> None:
    assert Ladder.parse(" Dump , sigabrt:2,term : 10, Kill ") == LONG
    assert str(Ladder.parse("term,SIGKILL")) == "TERM:5,KILL", "five seconds if it does not say"
    assert str(Ladder.parse("INT:0.25,KILL")) == "INT:0.25,KILL"


def test_signals_are_linux_s() -> None:
    assert (SIGNALS["HUP"], SIGNALS["QUIT"], SIGNALS["USR1"], SIGNALS["CONT"]) == (1, 3, 10, 18)
    assert name_of(9) == "SIGKILL"
    assert name_of(15) == "SIGTERM"


@pytest.mark.parametrize(
    "name", ["STOP", "TSTP", "TTIN", "TTOU", "CHLD", "RTMIN", "9", "", "SIG", "SIGSIGTERM"]
)
def test_what_ends_nobody_is_no_step(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^'{name}' is no step: write 'dump', or a signal .* such as TERM:10$"
    ):
        Ladder.parse(f"{name},KILL")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TERM:2", r"^a ladder ends with KILL, and 'TERM:2' does not: add ',KILL'$"),
        ("dump", r"^a ladder ends with KILL, and 'dump' does not: add ',KILL'$"),
        ("KILL,KILL", r"^nothing comes after KILL: leave out what follows it in 'KILL,KILL'$"),
        (
            "TERM,dump,KILL",
            r"^dump comes first, and once: write it at the beginning of 'TERM,dump,KILL' only$",
        ),
        ("dump,dump,KILL", r"^dump comes first, and once"),
        ("dump:3,KILL", r"^dump has no grace: the evidence budget is its limit; write 'dump'$"),
        ("TERM,KILL:3", r"^nothing comes after KILL, so it has no grace: write 'KILL'$"),
        ("", r"^'' is no step"),
    ],
)
def test_what_is_no_ladder(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ladder.parse(text)


@pytest.mark.parametrize("grace", ["0", "-1", "nan", "inf", "x", "", "1:2"])
def test_what_is_no_grace(grace: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^the grace in 'TERM:{grace}' is no number of seconds above 0, such as 2.5, or 2m$",
    ):
        Ladder.parse(f"TERM:{grace},KILL")


@pytest.mark.parametrize(
    ("text", "found"),
    [("90", 90.0), ("90s", 90.0), (" 1.5m ", 90.0), ("2H", 7200.0), ("1d", 86_400.0), ("1e3", 1000.0)],
)
def test_durations_are_seconds_or_have_a_unit(text: str, found: float) -> None:
    assert seconds(text) == found


@pytest.mark.parametrize("text", ["", "s", "5x", "1h30", "1h30m", "m5", "--"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{text}' is no duration: write 90, 90s, 5m or 2h$"):
        seconds(text)


def test_a_grace_with_a_unit_is_told_in_seconds() -> None:
    assert str(Ladder.parse("TERM:1.5m,KILL")) == "TERM:90,KILL"


steps = st.builds(
    Step,
    st.sampled_from(sorted(set(SIGNALS.values()) - {9})),
    st.floats(min_value=1e-300, allow_infinity=False),
)
ladders = st.builds(
    lambda dump, middle: Ladder([DUMP] * dump + middle + [Step(9)]),
    st.booleans(),
    st.lists(steps, max_size=4),
)


@given(ladders)
def test_what_is_printed_is_parsed(ladder: Ladder) -> None:
    assert Ladder.parse(str(ladder)) == ladder
    assert str(ladder).isascii()


@given(st.text(max_size=40))
def test_any_text_is_a_ladder_or_a_value_error(text: str) -> None:
    try:
        ladder = Ladder.parse(text)
    except ValueError:
        return
    assert ladder[-1] == (9, 0.0)


# -- reap grants -------------------------------------------------------------------------------------


def test_what_a_worker_wants_is_stored_as_text() -> None:
    for one in (ReapGrant(), ReapGrant(None, True), ReapGrant(LONG), ReapGrant(LONG, True)):
        assert read_reap_grant(str(one), max_grace=12.0) == one
    assert [str(one) for one in (ReapGrant(), ReapGrant(None, True), ReapGrant(LONG, True))] == [
        "",
        "observe",
        f"observe {LONG}",
    ]
    assert reap_grant("", observe=True, max_grace=0.0) == ReapGrant(None, True)
    assert reap_grant("", observe=False, max_grace=0.0) == ReapGrant()
    assert reap_grant("KILL", observe=False, max_grace=0.0) == ReapGrant(Ladder.parse("KILL"))


def test_a_worker_chooses_whom_its_signals_are_for() -> None:
    request = NO_REQUEST.combined("/s", "TERM:1,KILL", observe=True, target="tree")
    assert request.text == "tree TERM:1,KILL"
    grant = reap_grant(request.text, observe=True, max_grace=1.0)
    assert grant == ReapGrant(Ladder.parse("TERM:1,KILL"), True, "tree")
    assert str(grant) == "observe tree TERM:1,KILL"
    assert read_reap_grant(str(grant), max_grace=1.0) == grant
    assert ReapRequest(target="group").text == str(read_reap_grant("group", max_grace=0.0)) == "group"
    with pytest.raises(ValueError, match=r"^target must be one of process, group, cgroup, tree, not 'all'$"):
        NO_REQUEST.combined("/s", "", observe=False, target="all")
    with pytest.raises(ValueError, match=r"observe=False, target='tree' already, and cannot ask for"):
        ReapRequest(target="tree").combined("/s", "", observe=False, target="group")


@pytest.mark.parametrize("text", ["", "observe "])
def test_a_ladder_that_takes_too_long_is_not_allowed(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"^the ladder 'TERM:61,KILL' takes 61 s to reach KILL, and this server allows 60 s "
        r"\(--max-grace\)$",
    ):
        read_reap_grant(text + "TERM:61,KILL", max_grace=60.0)
    assert read_reap_grant(text + "TERM:60,KILL", max_grace=60.0).observe is bool(text)


@pytest.mark.parametrize("text", ["Observe", "observes KILL", "KILL observe", "\ufffd"])
def test_nonsense_is_no_grant(text: str) -> None:
    with pytest.raises(ValueError, match="is no step"):
        read_reap_grant(text, max_grace=60.0)


# --- what a worker asks for


def test_the_first_request_holds_and_the_same_one_again() -> None:
    request = NO_REQUEST.combined("/s", "", observe=False).combined("/s", "KILL", observe=True)
    assert request == ReapRequest("KILL", observe=True)
    assert request.combined("/s", "KILL", observe=True) == request
    assert request.combined("/s", "", observe=False) == request


def test_another_request_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        ReapRequest("KILL").combined("/s", "TERM:1,KILL", observe=False)
    with pytest.raises(ValueError, match="already"):
        ReapRequest("KILL").combined("/s", "KILL", observe=True)


@pytest.mark.parametrize("reap", ["x" * 81, "é"])
def test_what_cannot_be_said_is_refused(reap: str) -> None:
    with pytest.raises(ValueError, match=r"fit|ascii"):
        NO_REQUEST.combined("/s", reap, observe=False)


def test_a_request_is_a_text() -> None:
    with pytest.raises(TypeError, match="int"):
        NO_REQUEST.combined("/s", 7, observe=False)  # type: ignore[arg-type]
