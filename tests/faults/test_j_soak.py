"""Fault 2, for as long as one likes: a server is killed and stopped at random, beside a crew of workers.

The laws of this file:

* Nothing is lost: a worker that hangs is killed, at the latest when a server has been undisturbed for
  ``WITHIN`` seconds since the deadline.
* Nobody is killed by mistake: a healthy worker ends with status 0, and so does each child of it; one that is
  going to hang is not killed before it does, nor before its deadline.
* Nothing piles up: a server's memory does not grow, and no server leaves tables of the dead behind.

The soak's length is ``AIOTIMER_SOAK_S`` seconds, the calm one's ``AIOTIMER_SOAK_CALM_S``. Everything random
comes from a seed, which is printed; ``AIOTIMER_SEED`` sets it.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import statistics
import subprocess
from collections.abc import Iterator
from itertools import cycle
from math import inf
from pathlib import Path
from time import monotonic

import pytest

from aiotimer._linux.paths import state_directory
from tests.fakes.clock import PATIENCE, clock_passes
from tests.fakes.crew import KINDS, NEVER, join_crew
from tests.fakes.places import short_directory
from tests.fakes.worker import AIOTIMER, SpawnedWorker, environment

SECONDS = float(os.environ.get("AIOTIMER_SOAK_S", "600"))
CALM_SECONDS = float(os.environ.get("AIOTIMER_SOAK_CALM_S", "3600"))

CREW = 24
"""Workers at any time: a healthy one of each kind, and others that hang, each replaced when it has died."""

PER_KILL, PER_STOP = 18.0, 30.0
"""Seconds: 600 have 33 kills and 20 stops."""

WITHIN = 15.0
"""Seconds for which a server must be undisturbed before whoever is overdue must be dead: it waits 2 s for
workers to return, 3 s for evidence, and the machine may be busy."""

GROWTH = 5.0
"""MB by which a server's memory may grow once it is warm, however long it runs: dead workers wait for the
collector, some 20,000 objects at a time (3 MB), and SQLite fills its cache (2 MB)."""


class Server:
    """``aiotimer serve``, which is killed, or stopped and continued, and started again.

    Attributes:
        process: that runs.
        undisturbed_since: when that began; inf while none runs, or stands still.
    """

    def __init__(self, path: str, log: Path) -> None:
        self.path = path
        self._log = log
        self.start()

    def start(self) -> None:
        """Start the next one, and return when it serves."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*AIOTIMER, "serve", "--socket", self.path, "--max-reaps", "1000000/60"],
                stdout=subprocess.PIPE, stderr=log, env=environment(),
            )  # fmt: skip
        assert self.process.stdout is not None
        assert self.path.encode() in self.process.stdout.readline(), self._log.read_text()
        self.undisturbed_since = monotonic()

    def end(self, signum: signal.Signals) -> int:
        """End it by a signal; return its exit status."""
        self.undisturbed_since = inf
        self.process.send_signal(signum)
        code = self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def freeze(self) -> None:
        """Stop it."""
        self.undisturbed_since = inf
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)
        self.undisturbed_since = monotonic()

    def told_of(self, worker: SpawnedWorker) -> str:
        """Return what a worker has said, and servers have logged of it."""
        logged = [line for line in self._log.read_text().splitlines() if f"pid={worker.pid} " in line]
        return "\n".join([f"pid {worker.pid}:", *worker.lines, *logged])

    def memory(self) -> float:
        """Return how much memory is its own, in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serve until the end of the block, on a socket of its own."""
    with short_directory() as directory:
        server = Server(str(directory / "s"), directory / "log")
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
                assert server.end(signal.SIGTERM) == 0


class Crew:
    """The workers, and what has become of them.

    Args:
        server: watches them.
        chance: for all that is random.
        hanging: how many of them hang.
        pause: of the healthy ones, see :func:`join_crew`.

    Attributes:
        reaped: how many of those that hang have been killed in time, by kind.
        worst: for how many seconds an undisturbed server let one of them live, at most, and its kind.
        lost: what was not reaped.
        false: what was killed by mistake, or ended otherwise.
    """

    def __init__(
        self,
        server: Server,
        chance: random.Random,
        stack: contextlib.ExitStack,
        *,
        hanging: int,
        pause: float,
    ) -> None:
        self._server = server
        self._chance = chance
        self._poll = select.poll()
        self._turns = cycle(KINDS)
        self._members: dict[int, tuple[str, bool, SpawnedWorker]] = {}  # by pidfd
        self._pause = pause
        stack.callback(self._leave)
        self.reaped = dict.fromkeys(KINDS, 0)
        self.worst = 0.0, ""
        self.lost: list[str] = []
        self.false: list[str] = []
        for number in range(CREW - hanging):
            self._join(KINDS[number % len(KINDS)], NEVER)
        for _ in range(hanging):
            self.hire()

    def hire(self) -> None:
        """Have somebody join who is going to hang."""
        self._join(next(self._turns), self._chance.uniform(3.0, 20.0))

    def watch(self, until: float, *, replace: bool) -> None:
        """See to the crew until a moment, or until nobody is left who hangs if they are not replaced."""
        while (left := until - monotonic()) > 0 and (replace or self.hanging()):
            for pidfd, _event in self._poll.poll(1000 * min(left, 1.0)):
                if not self._ended(pidfd) and replace:
                    self.hire()
            self._find_lost()

    def hanging(self) -> list[SpawnedWorker]:
        """Return those that hang, or are going to, and are alive."""
        return [worker for _kind, healthy, worker in self._members.values() if not healthy]

    def end(self) -> int:
        """Have the healthy ones end; return how many blocks they have left."""
        for _kind, _healthy, worker in self._members.values():
            assert worker.process.stdin is not None
            worker.process.stdin.close()
        entries = 0
        for kind, _healthy, worker in self._members.values():
            if worker.wait() != 0:
                self.false.append(
                    f"{kind} ended with {worker.process.returncode}: {self._server.told_of(worker)}"
                )
            entries += sum(int(line.split()[1]) for line in worker.lines if line.startswith("entries "))
        return entries

    def _join(self, kind: str, hangs_after: float) -> None:
        seed = self._chance.randrange(10**9)
        worker = join_crew(self._server.path, kind, seed, hangs_after=hangs_after, pause=self._pause)
        pidfd = os.pidfd_open(worker.pid)
        self._members[pidfd] = kind, hangs_after == NEVER, worker
        self._poll.register(pidfd, select.POLLIN)

    def _forget(self, pidfd: int) -> tuple[str, bool, SpawnedWorker]:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        return self._members.pop(pidfd)

    def _ended(self, pidfd: int) -> bool:
        """Somebody has ended: judge how. Return whether it was one of the healthy ones."""
        now = monotonic()
        kind, healthy, worker = self._forget(pidfd)
        with worker:
            code = worker.wait()
        deadline = _deadline(worker)
        meant_to = not healthy and "about to hang" in worker.lines
        if not meant_to or code != -signal.SIGKILL or now < deadline < inf:
            self.false.append(f"{kind} ended with {code} at {now:.3f}: {self._server.told_of(worker)}")
        else:
            self.reaped[kind] += 1
            self.worst = max(self.worst, (now - max(deadline, self._server.undisturbed_since), kind))
        return healthy

    def _find_lost(self) -> None:
        """Find whoever should be dead by now."""
        for pidfd, (kind, healthy, worker) in list(self._members.items()):
            deadline = _deadline(worker)
            if not healthy and monotonic() - max(deadline, self._server.undisturbed_since) > WITHIN:
                self.lost.append(f"{kind} lives at {monotonic():.3f}: {self._server.told_of(worker)}")
                self._forget(pidfd)
                worker.__exit__()

    def _leave(self) -> None:
        for pidfd in list(self._members):
            self._forget(pidfd)[2].__exit__()


def _deadline(worker: SpawnedWorker) -> float:
    """Return the deadline that somebody who hangs has named; inf: it has not yet."""
    told = [float(line.split()[1]) for line in list(worker.lines) if line.startswith("hung ")]
    return told[0] if told else inf


def new_seed() -> int:
    """Return the seed, and print it for the report of a failure."""
    seed = int(os.environ.get("AIOTIMER_SEED", random.randrange(10**9)))
    print(f"AIOTIMER_SEED={seed}")  # noqa: T201
    return seed


def disturb(server: Server, crew: Crew, chance: random.Random, until: float) -> None:
    """Kill the server, or stop it, at random moments until some time."""
    seconds = until - monotonic()
    kinds = ["kill"] * round(seconds / PER_KILL) + ["stop"] * round(seconds / PER_STOP)
    chance.shuffle(kinds)
    moments = sorted(until - chance.uniform(0.0, seconds) for _ in kinds)
    for moment, kind in zip(moments, kinds, strict=True):
        crew.watch(moment, replace=True)
        if kind == "kill":
            assert server.end(signal.SIGKILL) == -signal.SIGKILL, "it has ended by itself"
            crew.watch(monotonic() + chance.choice((0.0, chance.uniform(0.0, 5.0))), replace=True)
            server.start()
        else:
            server.freeze()
            crew.watch(monotonic() + chance.uniform(0.05, 8.0), replace=True)
            server.thaw()
    crew.watch(until, replace=True)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
def test_fault_02_a_soak_of_kills_and_stops_beside_every_kind_of_worker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = new_seed()
    chance = random.Random(seed)
    with serving() as server, contextlib.ExitStack() as stack:
        crew = Crew(server, chance, stack, hanging=CREW - len(KINDS), pause=0.02)
        disturb(server, crew, chance, monotonic() + SECONDS)
        crew.watch(monotonic() + 20.0 + PATIENCE + WITHIN, replace=False)
        left = [server.told_of(worker) for worker in crew.hanging()]
        entries = crew.end()
        assert server.end(signal.SIGTERM) == 0
        remains = sorted(path.name for path in state_directory(server.path).iterdir())
        (late, kind), hung = crew.worst, sum(crew.reaped.values())
        with capsys.disabled():
            print(  # noqa: T201 - figures are to be seen
                f"\nsoak of {SECONDS:g} s, seed {seed}: {entries} blocks left in time, "
                f"{hung} workers hung and were reaped, at most {late:.1f} s after the deadline and "
                f"the server's return ({kind}); lost {len(crew.lost) + len(left)}, false {len(crew.false)}"
            )
    assert crew.lost + left == []
    assert crew.false == [], "\n\n".join(crew.false)
    assert remains == ["evidence", "history.db", "socket"]
    if SECONDS >= 300:
        assert min(crew.reaped.values()) > 0, crew.reaped


@pytest.mark.soak
@pytest.mark.timeout(CALM_SECONDS + 300)
def test_fault_02_memory_of_a_server_is_flat_beside_calm_workers(capsys: pytest.CaptureFixture[str]) -> None:
    seed = new_seed()
    with serving() as server, contextlib.ExitStack() as stack:
        crew = Crew(server, random.Random(seed), stack, hanging=0, pause=1.0)
        began = monotonic()
        minutes, memory = [], []
        while (now := monotonic()) < began + CALM_SECONDS:
            if now > began + CALM_SECONDS / 5:  # it is warm: each kind of thing has happened to it
                minutes.append((now - began) / 60)
                memory.append(server.memory())
            clock_passes(now + CALM_SECONDS / 360)
        entries = crew.end()
        per_minute = statistics.linear_regression(minutes, memory).slope
        with capsys.disabled():
            print(  # noqa: T201 - figures are to be seen
                f"\ncalm for {CALM_SECONDS:g} s, seed {seed}: {entries} blocks left in time; memory from "
                f"{memory[0]:.2f} to {memory[-1]:.2f} MB, {per_minute:+.3f} a minute; false {len(crew.false)}"
            )
    assert crew.false == [], "\n\n".join(crew.false)
    assert per_minute * (minutes[-1] - minutes[0]) < GROWTH  # the fit's: no single sample decides
