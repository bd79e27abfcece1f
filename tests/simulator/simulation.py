"""A history: who takes the next step, what goes wrong, and how long everything takes.

The laws of this file:

* Everything follows from the seed. Nothing here reads a clock, or iterates over what has no order.
* One step at a time: of a thread, of the server, or a misfortune. Each costs some microseconds; time leaps
  only when the server has nothing to do.
* A server that runs freely gets its turn: after ``PATIENCE`` steps of others at the latest.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from dataclasses import dataclass
from math import inf

from aiotimer.events import log

from .laws import Laws
from .server import LADDERS, Client, Crashed, Server
from .worker import STORM, Worker
from .world import Broken, Line, Process, TableFile, World

PATIENCE = 12
"""Steps that others may take while the server could."""

COST = 2e-5
"""Seconds that a step takes at most."""

LEAPS = (1e-4, 2e-3, 0.05, 1.0, 8.0)
"""Seconds by which time leaps at most."""

FLOOD = 0.3
"""Seconds for which clients ask without end at most."""

TRACE = 80
"""Steps that are shown of a history that has broken a law."""

MOST_WORKERS = 3


@dataclass(frozen=True)
class Variant:
    """What takes part: the real thing, or one with a rule broken.

    Attributes:
        name: "" for the real thing.
        server: the class of servers.
        worker: the class of workers.
        only: the misfortunes that happen, by name; all if it is empty.
        seed: where to look for it first.
    """

    name: str = ""
    server: type[Server] = Server
    worker: type[Worker] = Worker
    only: tuple[str, ...] = ()
    seed: int = 0


class Failure(BaseException):
    """A history that broke a law, or an exception where there must be none. No real code catches it.

    Attributes:
        law: which law; "" for another exception.
        steps: how many steps it took.
    """

    def __init__(self, simulation: Simulation, error: BaseException) -> None:
        self.law = error.law if isinstance(error, Broken) else ""
        self.steps = simulation.world.steps
        lines = [f"{type(error).__name__}: {error}" if not self.law else str(error)]
        lines += [f"  after {self.steps} steps of the history of seed {simulation.seed}; the last of them:"]
        lines += [f"  {step:6d} {now:14.6f}  {who:18s} {what}" for step, now, who, what in simulation.trace]
        again = f"python -m tests.simulator {simulation.seed} {simulation.length} {simulation.variant.name}"
        lines += [f"  again: {again.rstrip()}"]
        super().__init__("\n".join(lines))


class Simulation:
    """One history.

    Attributes:
        seed, length: what it follows from: the number, and how many steps at most.
        variant: what takes part.
        trace: its last steps.
        happened: how often what has happened: misfortunes by name, the server's steps by their first word,
            its events.
    """

    def __init__(self, seed: int, length: int, variant: Variant | None = None) -> None:
        self.seed = seed
        self.length = length
        self.rng = rng = random.Random(seed)
        self.world = World(rng)
        self.laws = Laws(self.world)
        self.happened: Counter[str] = Counter()
        self.trace: deque[tuple[int, float, str, str]] = deque(maxlen=TRACE)
        self.variant = variant or Variant()
        self._bound = rng.choice((5.0, 5.0, 5.0, inf))
        self._misfortune = rng.choice((0.01, 0.03) if self.variant.only else (0.0, 0.002, 0.01, 0.03))
        self._eager = rng.choice((0.3, 0.6, 0.9))
        self._options = {
            "reap": rng.choice(LADDERS),
            "stopped": rng.choice(("reap", "hold")),
            "observe": rng.random() < 0.1,
            "max_reaps": rng.choice(((256, 60.0), (256, 60.0), (256, 60.0), (2, 5.0))),
        }
        self._server: Server | None = None
        self._restart_at = -inf
        self._hungry = 0
        self._stops: list[tuple[float, float]] = []  # (for how long the server runs, and stands still) again
        self._workers: list[Worker] = []

    def run(self) -> None:
        """Take all the steps.

        Raises:
            Failure: a law was broken.
        """
        log.addFilter(self._logged)
        try:
            while self.world.steps < self.length:
                if self._step() and self._server is not None:
                    try:
                        self._server.step()
                    except Crashed:
                        continue
                    self._step_is_over("server", "is done with that")
        except (Exception, Broken) as error:
            raise Failure(self, error) from error
        finally:
            log.removeFilter(self._logged)
            if self._server is not None:
                self._note_events(self._server)
                self._server.crash()

    def _logged(self, record: logging.LogRecord) -> bool:
        """Real code logs an error that it did not expect, and goes on; here it ends the history."""
        if record.exc_info and record.exc_info[1]:
            raise Failure(self, record.exc_info[1])
        return True

    # -- one step ----------------------------------------------------------------------------------

    def _others(self, server: Server, what: str) -> None:
        """A server has taken a step: let others take theirs until it has a turn again, or has crashed."""
        try:
            self.happened[what.partition(" ")[0]] += 1
            self._step_is_over("server", what)
            while self._server is server and self.world.steps < self.length:
                if self._step():
                    return
        except Exception as error:
            raise Failure(self, error) from error
        raise Crashed

    def _step(self) -> bool:
        """Begin a step; True: it is the server's, else it is over."""
        self.world.steps += 1
        step = self._act()
        if step is not None:
            self._step_is_over(*step)
        return step is None

    def _step_is_over(self, who: str, what: str) -> None:
        world = self.world
        self.trace.append((world.steps, world.now, who, what))
        world.now += self.rng.random() * COST
        for file in world.in_use:
            if file.held:
                file.land()
        self._thaw_and_die()
        self.laws.check()

    def _act(self) -> tuple[str, str] | None:
        """Take a step, and say whose and what it was; None: it is the server's."""
        rng, now, server = self.rng, self.world.now, self._server
        if rng.random() < self._misfortune:
            name = rng.choice(self.variant.only or MISFORTUNES)
            what = self._suffer(name)
            if what:
                self.happened[name] += 1
                return "misfortune", what
        ready = server is not None and now >= server.frozen_until and server.next_at() <= now
        if ready and (self._hungry >= PATIENCE or rng.random() < 0.35):
            self._hungry = 0
            return None
        if server is None and now >= self._restart_at:
            return "init", self._start_server()
        if len(self._workers) < MOST_WORKERS and rng.random() < 0.1:
            return "init", self._start_worker()
        threads = [
            t for w in self._workers if now >= w.process.frozen_until for t in w.threads if t.runnable(now)
        ]
        if threads and (ready or rng.random() < self._eager):
            self._hungry += ready
            thread = rng.choice(threads)
            return str(thread), thread.step(rng)
        if ready:
            self._hungry = 0
            return None
        return "time", self._pass()

    def _pass(self) -> str:
        """Let time pass, up to the next thing that happens."""
        world, server = self.world, self._server
        until = [file.next_landing() for file in world.in_use if file.held]
        if server is None:
            until.append(self._restart_at)
        else:
            until.append(max(server.next_at(), server.frozen_until))
            if self._stops:
                until.append(self._stop_at(server))
        for worker in self._workers:
            until += [worker.process.dies_at, worker.process.execs_at]
            until += [max(t.wakes_at(), worker.process.frozen_until) for t in worker.threads]
        leap = self.rng.choice(LEAPS) * self.rng.random()
        world.now = max(world.now, min(world.now + leap, min(until)))
        return f"passes: {leap:.6f} s, or up to the next event"

    def _thaw_and_die(self) -> None:
        now, server = self.world.now, self._server
        if (
            server is not None
            and server.started
            and now >= server.frozen_until
            and self.laws.free_since == inf
        ):
            self.laws.free()
        if server is not None and self._stops and now >= self._stop_at(server):
            server.frozen_until = now + self._stops.pop()[1]
            self.laws.unfree()
        for worker in list(self._workers):
            if worker.process.dies_at <= now:
                self._note_death(worker)
            elif worker.process.execs_at <= now:
                self._exec(worker)

    def _stop_at(self, server: Server) -> float:
        return server.frozen_until + self._stops[-1][0]

    # -- births and deaths -------------------------------------------------------------------------

    def _start_server(self) -> str:
        self.laws.born()
        self._server = self.laws.server = self.variant.server(
            self.world, self.laws, self._bound, self._options, self._others
        )
        return "a server starts"

    def _start_worker(self) -> str:
        process = self.world.start()
        if process is None:
            zombies = [p for p in self.world.processes.values() if not p.alive]
            if not zombies:
                return "has no pid to give"
            gone = self.rng.choice(zombies)
            del self.world.processes[gone.pid]
            return f"waits for {gone}"
        self._workers.append(self.variant.worker(self.world, process, self._reachable))
        return f"starts {process}"

    def _reachable(self) -> Server | None:
        return self._server

    def _note_death(self, worker: Worker) -> None:
        """A process is dead: the kernel closes what it had open."""
        process = worker.process
        process.alive = False
        self._workers.remove(worker)
        for file in self._files(process):
            file.disown()
        for line in self._lines(process):
            line.hang_up()
        if self.rng.random() < 0.7:
            self.world.processes.pop(process.pid, None)  # somebody waits for it at once
        self.trace.append((self.world.steps, self.world.now, "kernel", f"{process} is dead"))

    def _files(self, process: Process) -> list[TableFile]:
        return [file for file in self.world.in_use if file.owner is process]

    def _lines(self, process: Process) -> list[Line]:
        return [] if self._server is None else [li for li in self._server.lines if li.process is process]

    def _note_events(self, server: Server) -> None:
        self.happened.update(event.event for event in server.events)

    # -- misfortunes -------------------------------------------------------------------------------

    def _suffer(self, name: str) -> str:
        """Let something go wrong for the server, or for one of the workers; say what, "" if nothing can."""
        victims = self._workers if name in OF_A_WORKER else [self._server] if self._server is not None else []
        return str(getattr(self, f"_{name}")(self.rng.choice(victims))) if victims else ""

    def _crash(self, server: Server) -> str:
        self._note_events(server)
        server.crash()
        self._server = self.laws.server = None
        self._stops.clear()
        self.laws.unfree()
        for file in self.world.files:
            file.stable_since = inf
        down = self.rng.choice((0.0, 0.01, 0.5, 3.0)) * self.rng.random()
        self._restart_at = self.world.now + down
        return f"SIGKILL to the server; it comes back after {down:.3f} s"

    def _upgrade(self, server: Server) -> str:
        if not server.idle or self.world.now < server.frozen_until:
            return ""
        server.stop()
        return f"SIGTERM; {self._crash(server)}"

    def _stop_server(self, server: Server) -> str:
        server.frozen_until = self.world.now + self._while()
        self.laws.unfree()
        return f"SIGSTOP to the server until {server.frozen_until:.3f}"

    def _stop_and_go(self, server: Server) -> str:
        run, stop = self.rng.choice((0.001, 0.05, 0.2, 0.5)), self.rng.choice((1.0, 2.0, 5.0))
        self._stops = [(run * self.rng.random(), stop * self.rng.uniform(0.8, 1.2)) for _ in range(20)]
        return f"{self._stop_server(server)}, and again every {stop + run:.3f} s"

    def _flood(self, server: Server) -> str:
        if not server.started or self.rng.random() < 0.7:
            return ""
        until, clients = self.world.now + FLOOD * self.rng.random(), self.rng.randint(1, 4)
        for _ in range(clients):
            server.loop.call_soon(server.readable, Client(until))
        return f"{clients} clients ask without end until {until:.3f}"

    def _stop_everything(self, server: Server) -> str:
        what = self._stop_server(server)
        for worker in self._workers:
            worker.process.frozen_until = server.frozen_until
        return f"{what}, and to everything else"

    def _stop_worker(self, worker: Worker) -> str:
        worker.process.frozen_until = self.world.now + self._while()
        return f"SIGSTOP to {worker.process} until {worker.process.frozen_until:.3f}"

    def _while(self) -> float:
        return self.rng.choice((0.01, 1.0, 3.0, 20.0)) * self.rng.random()

    def _die(self, worker: Worker) -> str:
        self._note_death(worker)
        return f"{worker.process} dies by itself"

    def _exec(self, worker: Worker) -> str:
        process = worker.process
        process.execs_at = inf
        if process.killed:
            return ""  # it does nothing any more
        process.program += 1
        process.signalled, process.last_signal_at = False, inf
        for file in self._files(process):
            file.unmapped_at = self.world.steps
            file.disown()
        for line in self._lines(process):
            line.hang_up()
        self._workers.remove(worker)
        self._workers.append(self.variant.worker(self.world, process, self._reachable))
        return f"{process} runs another program"

    def _fork(self, worker: Worker) -> str:
        process = self.world.start()
        if process is None:
            return ""
        child = worker.forked(process)
        self._workers.append(child)
        return f"{worker.process} forks {process}, in {len(child.inherited)} blocks"

    def _interrupt(self, worker: Worker) -> str:
        busy = [thread for thread in worker.threads if thread.busy]
        if not busy or worker.inherited:
            return ""
        thread = self.rng.choice(busy)
        return f"{thread}: {thread.interrupt()}"

    def _storm(self, worker: Worker) -> str:
        idle = [thread for thread in worker.threads[:2] if not (thread.busy or thread.storm)]
        if not idle or worker.table is None or worker.hostile or worker.inherited or self.rng.random() < 0.7:
            return ""
        thread, after = self.rng.choice(idle), self.rng.choice((1e-9, 0.003, 0.3))
        thread.begin("storms", worker.storm(thread, after))
        return f"{thread} is about to enter {STORM} blocks for {after} s"

    def _ask(self, worker: Worker) -> str:
        server = self._server
        known = None if server is None else server.workers.get(worker.process.id)
        if server is None or known is None:
            return ""
        server.queue.put(known.id, server.ask, known)
        return f"somebody wants to know what {worker.process} is doing"

    def _break_line(self, worker: Worker) -> str:
        worker.drop_line()
        return f"a library of {worker.process} closes its connection"

    def _turn_hostile(self, worker: Worker) -> str:
        busy = any(thread.busy for thread in worker.threads)  # what it is at would find its own table damaged
        if worker.file is None or busy or self.rng.random() < 0.7:
            return ""
        worker.hostile = True
        worker.file.tame = False
        for thread in worker.threads:
            thread.entries.clear()
        return f"{worker.process} turns hostile"

    def _protect(self, worker: Worker) -> str:
        process = worker.process
        process.protected_until = self.world.now + 2 * self.rng.random()
        return f"{process} may not be signalled until {process.protected_until:.3f}"


OF_A_WORKER = (
    *("stop_worker", "die", "exec", "fork", "interrupt", "break_line"),
    *("turn_hostile", "protect", "storm", "ask"),
)
MISFORTUNES = ("crash", "upgrade", "stop_server", "stop_and_go", "flood", "stop_everything", *OF_A_WORKER)
