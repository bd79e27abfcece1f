"""Sinks of events: bounded, told at least once, never waited for."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from aiotimer._core.requests import WorkerId
from aiotimer._linux import procfs
from aiotimer.cli.group import cli
from aiotimer.cli.serve import command_sink, event_options
from aiotimer.cli.serve_command import EventSinks
from aiotimer.events import KINDS, Event, Kind
from aiotimer.server.sinks import Backlog, CallbackSink, CommandSink, LogSink, PipeSink, Rank
from tests.fakes.clock import PATIENCE
from tests.fakes.worker import FORKS

# -- the queue ------------------------------------------------------------------------------------------


class Sink:
    """Takes items when it is let.

    Attributes:
        taken: what it took.
    """

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.began = threading.Semaphore(0)
        self.may = threading.Semaphore(0)

    def __call__(self, item: int) -> None:
        self.began.release()
        assert self.may.acquire(timeout=PATIENCE)
        self.taken.append(item)


def test_what_does_not_fit_is_dropped_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    backlog = Backlog("things", sink, capacity=2)
    assert backlog.put(0)
    assert sink.began.acquire(timeout=PATIENCE)
    assert [backlog.put(n) for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert backlog.dropped == 2
    for _ in range(3):
        sink.may.release()
    assert backlog.close(PATIENCE)
    assert sink.taken == [0, 1, 2]
    assert caplog.messages == ["2 things dropped: they came faster than they were taken"]
    assert not backlog.put(5), "it is closed"


def test_what_is_about_one_worker_crowds_out_nothing_about_another(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    backlog = Backlog("things", sink, capacity=4)
    backlog.put(0)
    assert sink.began.acquire(timeout=PATIENCE)
    assert [backlog.put(n, "noisy") for n in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
    assert [backlog.put(n, "quiet") for n in (10, 11, 12)] == [True, True, False]
    assert backlog.put(20)
    assert backlog.put(30, "late")
    assert not backlog.put(40, "later"), "nobody has more than one"
    for _ in range(5):
        sink.may.release()
    assert backlog.close(PATIENCE)
    assert sink.taken == [0, 1, 10, 20, 30]
    assert caplog.messages == ["7 things dropped: they came faster than they were taken"]


def test_what_matters_less_makes_room_for_what_matters_more() -> None:
    sink = Sink()
    backlog = Backlog("things", sink, capacity=4)
    backlog.put(0)
    assert sink.began.acquire(timeout=PATIENCE)
    details = [backlog.put(n, rank=Rank.DETAIL) for n in (1, 2, 3, 4, 5)]
    assert details == [True] * 4 + [False]
    assert [backlog.put(n, "one") for n in (10, 11)] == [True] * 2
    assert [backlog.put(n, "two", Rank.OUTCOME) for n in (20, 21)] == [True] * 2
    assert not backlog.put(6, rank=Rank.DETAIL)
    assert backlog.put(22, "two", Rank.OUTCOME), "for which an event goes"
    assert not backlog.put(12, "three"), "nobody has more than one"
    assert backlog.put(30, "three", Rank.OUTCOME)
    assert not backlog.put(13, "three"), "no outcome goes for an event"
    assert not backlog.put(23, "two", Rank.OUTCOME)
    assert backlog.put(40, "four", Rank.OUTCOME), "of outcomes each worker has its share"
    for _ in range(5):
        sink.may.release()
    assert backlog.close(PATIENCE)
    assert sink.taken == [0, 20, 21, 30, 40]


def test_details_are_taken_when_nothing_else_waits() -> None:
    sink = Sink()
    backlog = Backlog("things", sink)
    backlog.put(0)
    assert sink.began.acquire(timeout=PATIENCE)
    for number, rank in enumerate((Rank.DETAIL, Rank.EVENT, Rank.DETAIL, Rank.OUTCOME), start=1):
        backlog.put(number, rank=rank)
    for _ in range(5):
        sink.may.release()
    assert backlog.close(PATIENCE)
    assert sink.taken == [0, 2, 4, 1, 3]


@pytest.mark.parametrize("noise", ["refused", "expired"])
def test_fault_85_no_noise_about_others_costs_a_pipe_an_outcome(noise: Kind) -> None:
    """Nobody reads at first: the pipe is full. Of none of the others there is more to tell."""
    reader, writer = os.pipe()
    sink = PipeSink(writer)
    for number in range(5000):
        sink(Event(noise, WorkerId(number + 10, 1), detail="x" * 1000).as_json())
    sink(Event("reaped", WorkerId(7, 8)).as_json())

    def end() -> None:
        sink.close(PATIENCE)
        os.close(writer)

    ending = threading.Thread(target=end)
    ending.start()
    with open(reader) as lines:
        told = [json.loads(line) for line in lines]
    ending.join()
    assert len(told) < 2000, "the noise was too much"
    assert [event["event"] for event in told if event["pid"] == 7] == ["reaped"]


def test_closing_waits_no_longer_than_it_may(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    backlog = Backlog("things", sink)
    backlog.put(0)
    backlog.put(1)
    assert sink.began.acquire(timeout=PATIENCE)
    assert not backlog.flush(0.0)
    assert not backlog.close(0.0)
    assert "1 things dropped" in caplog.text
    sink.may.release()
    assert backlog.flush(PATIENCE)
    assert sink.taken == [0]


def test_a_taker_that_raises_is_logged_and_the_next_item_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    taken = []

    def take(item: int) -> None:
        if item == 0:
            raise ZeroDivisionError
        taken.append(item)

    backlog = Backlog("things", take, finish=lambda: taken.append(-1))
    backlog.put(0)
    backlog.put(1)
    assert backlog.close(PATIENCE)
    assert taken == [1, -1]
    assert "lost one of the things" in caplog.text


def test_without_a_thread_items_are_dropped_and_nobody_is_bothered(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_: object) -> None:
        raise RuntimeError("can't start new thread")

    taken: list[int] = []
    backlog = Backlog("things", taken.append)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        assert not backlog.put(0)
    assert backlog.put(1)
    assert backlog.close(PATIENCE)
    assert taken == [1]


@FORKS
def test_a_forked_child_has_nothing_to_do_with_it() -> None:
    sink = Sink()
    backlog = Backlog("things", sink)
    backlog.put(0)
    assert sink.began.acquire(timeout=PATIENCE)
    pid = os.fork()
    if not pid:
        backlog.abandon()
        os._exit(0 if not backlog.put(1) and backlog.close(PATIENCE) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    sink.may.release()
    assert backlog.close(PATIENCE)
    assert sink.taken == [0]


# -- commands -------------------------------------------------------------------------------------------


def command(directory: Path, body: str) -> str:
    """Return a command that runs ``body``, which knows the event and the file that all runs may write to."""
    program = directory / "hook.py"
    program.write_text(
        "import json, os, sys, time\n"
        "event = json.loads(sys.stdin.readline())\n"
        f"file = open({str(directory / 'told')!r}, 'a+')\n" + body
    )
    return f"{sys.executable} -S '{program}'"


def told(directory: Path) -> list[str]:
    """What runs wrote."""
    return (directory / "told").read_text().splitlines()


def test_a_command_is_run_for_every_event_in_their_order(tmp_path: Path) -> None:
    sink = CommandSink(command(tmp_path, "print(event['event'], event['pid'], file=file)"))
    sink(Event("expired", WorkerId(7, 8)).as_json())
    sink(Event("reaped", WorkerId(7, 8)).as_json())
    assert sink.close(PATIENCE)
    assert told(tmp_path) == ["expired 7", "reaped 7"]
    assert sink.failed == 0


def test_a_run_that_fails_is_repeated(tmp_path: Path) -> None:
    body = "print('run', file=file, flush=True); file.seek(0); sys.exit(len(file.readlines()) < 3)"
    sink = CommandSink(command(tmp_path, body), retry_after=0.0)
    sink(Event("reaped").as_json())
    assert sink.close(PATIENCE)
    assert told(tmp_path) == ["run"] * 3
    assert sink.failed == 0


def test_a_command_that_always_fails_is_given_up_and_the_next_event_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = "print(event['event'], file=file); sys.exit(event['event'] == 'late')"
    sink = CommandSink(command(tmp_path, body), retry_after=0.0)
    sink(Event("late").as_json())
    sink(Event("reaped").as_json())
    assert sink.close(PATIENCE)
    assert told(tmp_path) == ["late", "late", "late", "reaped"]
    assert sink.failed == 1
    assert "was not told of late: its exit status was 1" in caplog.text


def test_a_command_that_takes_too_long_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It never reads what it is given either, which is more than a pipe holds."""
    program = tmp_path / "hang"
    program.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/told\nexec sleep 600\n")
    program.chmod(0o755)
    sink = CommandSink(str(program), timeout=0.2, retry_after=0.0)
    sink({"event": "reaped", "detail": "x" * 200_000})
    assert sink.close(PATIENCE)
    assert sink.failed == 1
    assert "it took longer than 0.2 s" in caplog.text
    if (tmp_path / "told").exists():  # else none came that far
        assert not [pid for pid in told(tmp_path) if Path("/proc", pid).exists()]


def test_all_that_a_command_has_started_ends_with_it(tmp_path: Path) -> None:
    """Whatever group it is in; what is in another session goes on."""
    program = tmp_path / "hang"
    program.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/told ] && exit 1\n"  # it is tried three times
        "set -m\n"  # each job in a group of its own
        f"sleep 600 & echo $! > {tmp_path}/told.new\n"
        f"setsid sleep 600 & echo $! >> {tmp_path}/told.new\n"
        f"mv {tmp_path}/told.new {tmp_path}/told; wait\n"
    )
    program.chmod(0o755)
    sink = CommandSink(str(program), timeout=1.0, retry_after=0.0)
    sink(Event("reaped").as_json())
    assert sink.close(PATIENCE)
    assert sink.failed == 1
    member, stranger = map(int, told(tmp_path))
    assert not alive(member)
    assert alive(stranger)
    os.kill(stranger, signal.SIGKILL)


def test_a_command_that_runs_when_its_server_ends_is_ended_with_all_that_it_has_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program, fifo = tmp_path / "hang", tmp_path / "fifo"
    os.mkfifo(fifo)
    program.write_text(f"#!/bin/sh\nsleep 600 & echo $$ $! > {fifo}; wait\n")
    program.chmod(0o755)
    sink = CommandSink(str(program), timeout=600.0, retry_after=0.0)
    for _ in range(2):
        sink(Event("reaped").as_json())
    pidfds = [os.pidfd_open(int(pid)) for pid in fifo.read_text().split()]
    assert not sink.close(0.0)
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], PATIENCE)[0], "it lives"
        os.close(pidfd)
    assert sink.flush(PATIENCE)
    assert sink.failed == 1, "it is not tried again"
    assert "was not told of reaped: the server has ended" in caplog.text


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody waits for."""
    return procfs.state_of(pid)[:1] not in ("", "Z", "X")


def test_a_command_that_is_not_there_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    sink = CommandSink("/no/such/program --x", retry_after=0.0)
    sink(Event("reaped").as_json())
    assert sink.close(PATIENCE)
    assert "/no/such/program --x was not told of reaped: No such file" in caplog.text


@pytest.mark.parametrize("bad", ["", "  ", "x 'y"])
def test_a_command_must_be_one(bad: str) -> None:
    with pytest.raises(ValueError, match=r"empty|quotation"):
        CommandSink(bad)


# -- callbacks ------------------------------------------------------------------------------------------


async def test_a_callback_is_called_after_the_current_one_and_in_order() -> None:
    called: list[str] = []
    sink = CallbackSink(asyncio.get_running_loop(), lambda event: called.append(event.event))
    sink(Event("expired"))
    sink(Event("reaped"))
    assert called == []
    await asyncio.sleep(0)
    assert called == ["expired"], "others have their turn between two"
    await asyncio.sleep(0)
    assert called == ["expired", "reaped"]
    sink(Event("late"))
    sink.flush()
    assert called == ["expired", "reaped", "late"]
    await asyncio.sleep(0)
    assert called == ["expired", "reaped", "late"]


async def test_a_callback_that_raises_is_called_once_more(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def callback(event: Event) -> None:
        called.append(event.event)
        if event.event == "expired" or called.count("late") == 1:
            raise ZeroDivisionError

    sink = CallbackSink(asyncio.get_running_loop(), callback)
    for event in (Event("expired"), Event("late"), Event("reaped")):
        sink(event)
    sink.flush()
    assert called == ["expired", "expired", "late", "late", "reaped"]
    assert caplog.messages == ["on_event failed for expired"] * 2 + ["on_event failed for late"]


async def test_a_callback_that_emits_does_not_hold_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    called: list[Event] = []

    def callback(event: Event) -> None:
        called.append(event)
        sink(event)

    sink = CallbackSink(asyncio.get_running_loop(), callback)
    sink(Event("reaped"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(called) == 3
    sink.flush()
    assert len(called) == 4


# -- the server's command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (None, ["expired ", "unkillable frozen", "refused "]),
        ({"unkillable"}, ["unkillable frozen"]),
        ({"unkillable", "refused"}, ["unkillable frozen", "refused "]),
    ],
)
def test_the_server_tells_everybody_what_they_asked_for(
    events: set[str] | None, expected: list[str], tmp_path: Path
) -> None:
    """The command gets the events that were chosen for it, the pipe gets all of them."""
    body = "print(event['event'], event['verdict'], file=file)"
    reader, writer = os.pipe()
    sinks = EventSinks(writer, CommandSink(command(tmp_path, body)), events)
    sinks(Event("expired", WorkerId(7, 8)))
    sinks(Event("unkillable", WorkerId(7, 8), verdict="frozen"))
    sinks(Event("refused"))
    sinks.close(PATIENCE)
    os.close(writer)
    with open(reader) as lines:
        assert [json.loads(line)["event"] for line in lines] == ["expired", "unkillable", "refused"]
    assert told(tmp_path) == expected


def test_nobody_is_told_if_nobody_wants_to_know() -> None:
    for name in (None, ""):
        assert command_sink(name, "--on-event") is None
    for nobody in (EventSinks(None, None), EventSinks(None, None, {"unkillable"})):
        nobody(Event("unkillable"))
        nobody.close()
        assert nobody._on_event is None


@pytest.mark.parametrize("bad", ["'", " "])
def test_a_command_that_is_none_is_an_error_of_the_command_line(bad: str) -> None:
    with pytest.raises(click.BadParameter) as raised:
        command_sink(bad, "--on-event")
    assert raised.value.param_hint == "--on-event"


def test_events_without_a_command_are_an_error_of_the_command_line() -> None:
    with pytest.raises(click.UsageError, match="--on-event"):
        cli.main(["serve", "--events", "unkillable"], standalone_mode=False)


def parsed(*arguments: str) -> dict[str, object]:
    """Return what the options are for the function of a command."""

    @click.command()
    @event_options
    def serve(**given: object) -> dict[str, object]:
        return given

    found = serve.main(list(arguments), standalone_mode=False, **cli.context_settings)
    assert isinstance(found, dict)
    return found


def test_the_options_are_those_of_the_sinks() -> None:
    assert parsed() == {"on_event": None, "events": None}
    assert parsed("--on-event", "a b") == {"on_event": "a b", "events": None}
    assert parsed("--events", ",".join(KINDS))["events"] == set(KINDS)
    assert parsed("--events", "exec, late")["events"] == {"exec", "late"}


@pytest.mark.parametrize(
    ("given", "named"),
    [("unkilable", "'unkilable'"), ("late,Late,x", "'Late', 'x'"), ("late,", "''"), ("", "''")],
)
def test_an_event_that_there_is_not_is_an_error_that_lists_what_there_is(given: str, named: str) -> None:
    with pytest.raises(click.BadParameter) as raised:
        parsed("--events", given)
    message = raised.value.format_message()
    assert "'--events'" in message
    assert f"no such event: {named}; there are {', '.join(KINDS)}" in message


@pytest.mark.parametrize("given", [("--events", "nonsense"), ("--events", "late"), ("--on-unkillable", "x")])
def test_the_server_does_not_start_with_options_that_are_wrong(given: tuple[str, ...]) -> None:
    command_line = [sys.executable, "-m", "aiotimer", "serve", "--socket", "/nowhere/at/all", *given]
    ended = subprocess.run(
        command_line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert given[0] in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_line_in_the_pipe_is_never_longer_than_is_written_at_once() -> None:
    reader, writer = os.pipe()
    sink = PipeSink(writer)
    long = Event("reaped", WorkerId(7, 8), detail="x" * 5000, verdict="y" * 5000, scope="s" * 250)
    sink(long.as_json())
    assert sink.close(PATIENCE)
    os.close(writer)
    with open(reader) as lines:
        (line,) = lines
    assert json.loads(line)["scope"] == "s" * 250


def test_a_pipe_that_nobody_reads_any_more_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sink = PipeSink(writer)
    sink(Event("reaped").as_json())
    assert sink.close(PATIENCE)
    assert caplog.messages == []
    os.close(writer)


# -- the log ------------------------------------------------------------------------------------------------


def test_a_log_that_was_blocked_says_how_much_is_missing() -> None:
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * size)
    os.set_blocking(writer, False)  # whoever shares it may
    sink = LogSink(writer, capacity=2)
    done = threading.Event()

    def say(what: str) -> None:
        sink.handle(logging.makeLogRecord({"msg": what}))

    sink.then(done.set)
    assert done.is_set(), "nothing is to be written before"
    done.clear()
    for number in range(9):
        say(f"line {number}")
    sink.then(done.set)
    assert not sink.leave(0.0)
    assert not done.is_set()
    assert len(os.read(reader, size)) == size
    assert sink.leave(PATIENCE)
    assert done.is_set()
    os.close(writer)
    with open(reader) as lines:
        told = lines.read()
    dropped = re.findall(r"^aiotimer: (\d) log lines dropped", told, re.MULTILINE)
    assert sum(map(int, dropped)) + told.count("line ") == 9
    assert dropped
