"""A trainer whose workers hang, and are reaped: ``aiotimer run -- python docs/examples/train.py``.

Four worker processes learn which package of the standard library five lines of source come from. Each has
an asyncio pipeline: a task reads files in a thread and queues batches, a loop takes them and trains. Two
workers then hang, one where asyncio could have helped and one where nothing inside the process can. The
timer server reaps both; the others finish, and the average of their models is tried on files nobody saw.

Only the two lines with ``expires`` and the one with ``configure`` are needed to be protected. All else is
the trainer, the two faults, and the launcher that measures how late the reaping was. Nothing is random:
the model starts at zero, and passages are shuffled by their checksums.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import math
import multiprocessing
import signal
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple, TypeAlias
from zlib import crc32

from aiotimer import Block, configure, expires

PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")
LINES = 5  # in a passage
GRAM = 4  # characters
BUCKETS = 2**14  # that n-grams are hashed into
RATE = 2.0  # of learning

WORKERS = 4
STEPS = 100
BATCH = 16  # passages
PROGRESS = 50  # steps between two reports

ROLLOUT_LIMIT = 2.0  # seconds for a batch to arrive: many times what it takes
STEP_LIMIT = 1.0  # seconds for one step
LOSES_ROLLOUT = (1, 60)  # the worker and step in which a rollout never returns
KEEPS_GIL = (3, 90)  # the worker and step in which C code hangs with the GIL held
GIVE_UP = 120.0  # seconds after which the launcher stops waiting for a reaping that does not come

Weights: TypeAlias = list[list[float]]  # BUCKETS rows, a number for each package


class Passage(NamedTuple):
    """Some lines of source, as the model sees them."""

    buckets: list[int]
    package: int


# -- the data ------------------------------------------------------------------------------------


class File(NamedTuple):
    """A source file and the index of its package."""

    path: Path
    package: int


def find_files() -> tuple[list[File], list[File]]:
    """Return the files to learn from, and every fifth of each package to be tested on."""
    library = Path(sysconfig.get_path("stdlib"))
    to_learn: list[File] = []
    held_out: list[File] = []
    for package, name in enumerate(PACKAGES):
        paths = sorted(path for path in (library / name).rglob("*.py") if "test" not in path.parts)
        for number, path in enumerate(paths):
            (held_out if number % 5 == 2 else to_learn).append(File(path, package))
    return to_learn, held_out


def read(file: File) -> list[Passage]:
    """Cut a file into passages."""
    lines = [line for line in file.path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = ("\n".join(lines[at : at + LINES]) for at in range(0, len(lines) - LINES + 1, LINES))
    return [Passage(hash_grams(text), file.package) for text in texts]


def hash_grams(text: str) -> list[int]:
    """Return the bucket of every n-gram in a text, each n-gram once."""
    grams = dict.fromkeys(text[at : at + GRAM] for at in range(len(text) - GRAM + 1))
    return [crc32(gram.encode()) % BUCKETS for gram in grams]


# -- the model -----------------------------------------------------------------------------------


def blank() -> Weights:
    """Return the weights that every worker starts with."""
    return [[0.0] * len(PACKAGES) for _ in range(BUCKETS)]


def predict(weights: Weights, passage: Passage) -> list[float]:
    """Return the probability of each package: a softmax over summed weights."""
    scale = len(passage.buckets) ** -0.5  # so that long passages do not shout
    scores = [scale * sum(column) for column in zip(*(weights[b] for b in passage.buckets), strict=True)]
    best = max(scores)
    powers = [math.exp(score - best) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def train_step(weights: Weights, batch: Sequence[Passage]) -> float:
    """Take one gradient step for each passage of a batch; return their mean loss."""
    loss = 0.0
    for passage in batch:
        error = predict(weights, passage)
        loss -= math.log(error[passage.package])
        error[passage.package] -= 1.0
        change = [RATE * e * len(passage.buckets) ** -0.5 for e in error]
        for bucket in passage.buckets:
            weights[bucket] = [w - c for w, c in zip(weights[bucket], change, strict=True)]
    return loss / len(batch)


def average(models: Sequence[Weights]) -> Weights:
    """Return the mean of several workers' weights."""
    return [[sum(w) / len(models) for w in zip(*rows, strict=True)] for rows in zip(*models, strict=True)]


# -- a worker ------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """A worker's report: it has come this far."""

    step: int
    loss: float


class Hanging(NamedTuple):
    """A worker's report: it is about to hang, and will be reaped at ``deadline`` (``time.monotonic()``)."""

    step: int
    scope: str
    deadline: float
    how: str


class Trained(NamedTuple):
    """A worker's report: it has finished."""

    weights: Weights


Report: TypeAlias = Progress | Hanging | Trained


def work(rank: int, reports: Connection[Report, None]) -> None:
    """Be a worker: the first thing to run in its process."""
    configure()  # the server that `aiotimer run` started, or a private one
    reports.send(Trained(asyncio.run(train(rank, reports))))


async def train(rank: int, reports: Connection[Report, None]) -> Weights:
    """Train on this worker's share of the files, and hang if it is told to."""
    weights = blank()
    batches: asyncio.Queue[list[Passage]] = asyncio.Queue(maxsize=8)
    to_learn, _ = find_files()
    async with asyncio.TaskGroup() as tasks:
        producer = tasks.create_task(produce(to_learn[rank::WORKERS], batches))
        for step in range(1, STEPS + 1):
            async with expires(after=ROLLOUT_LIMIT, scope="rollout") as timer:
                if (rank, step) == LOSES_ROLLOUT:
                    await lose_rollout(step, timer, reports)
                batch = await batches.get()
            with expires(after=STEP_LIMIT, scope="step") as timer:
                if (rank, step) == KEEPS_GIL:
                    keep_gil(step, timer, reports)
                loss = train_step(weights, batch)
            if step % PROGRESS == 0:
                reports.send(Progress(step, loss))
        producer.cancel()
    return weights


async def produce(share: Sequence[File], batches: asyncio.Queue[list[Passage]]) -> None:
    """Queue batches from these files, over and over, until cancelled."""
    waiting: list[Passage] = []
    for files in itertools.cycle(interleave(share)):
        waiting += await asyncio.to_thread(read_shuffled, files)
        while len(waiting) >= BATCH:
            await batches.put(waiting[:BATCH])
            del waiting[:BATCH]


def interleave(share: Sequence[File]) -> Iterator[list[File]]:
    """Yield a few files at a time, one of each package while there are any."""
    by_package = [[file for file in share if file.package == package] for package in range(len(PACKAGES))]
    for files in itertools.zip_longest(*by_package):
        yield [file for file in files if file is not None]


def read_shuffled(files: Sequence[File]) -> list[Passage]:
    """Read files and mix their passages, in the same way every time."""
    passages = [passage for file in files for passage in read(file)]
    return sorted(passages, key=lambda passage: crc32(repr(passage.buckets).encode()))


async def lose_rollout(step: int, timer: Block, reports: Connection[Report, None]) -> None:
    """Await a result that nobody will set, as after a lost reply. The event loop runs on, idle."""
    reports.send(Hanging(step, timer.scope, timer.deadline, "awaits a rollout that never returns"))
    await asyncio.get_running_loop().create_future()


def keep_gil(step: int, timer: Block, reports: Connection[Report, None]) -> None:
    """Hang in C with the GIL held: no thread, signal handler or event loop of this process runs again."""
    reports.send(Hanging(step, timer.scope, timer.deadline, "holds the GIL in C code that hangs"))
    ctypes.PyDLL(None).sleep(3600)  # PyDLL, unlike CDLL, does not release the GIL around the call


# -- the launcher --------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of a worker: one of the two, or neither if it failed."""

    weights: Weights | None
    reaped: bool


class Launcher:
    """Starts workers, prints what becomes of them, and keeps none alive after ``GIVE_UP`` seconds."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._started_at = time.monotonic()

    def say(self, rank: int, text: str) -> None:
        """Print a line about a worker, with the time since the start."""
        seconds = time.monotonic() - self._started_at
        # One write, newline and all: the timer server logs to the same terminal.
        print(f"{seconds:6.2f} s  worker {rank}  {text}\n", end="", flush=True)

    async def run_all(self) -> list[Outcome]:
        """Run all workers to their ends."""
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(self.run(rank)) for rank in range(WORKERS)]
        return [run.result() for run in runs]

    async def run(self, rank: int) -> Outcome:
        """Run one worker to its end, whatever that is."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(rank, sender), daemon=True)
        process.start()
        sender.close()  # the worker's copy is the only one now: when it dies, the pipe ends
        death = asyncio.create_task(wait_for_death(process))
        try:
            async with asyncio.timeout(GIVE_UP):
                return await self.follow(rank, process, receiver, death)
        except TimeoutError:
            self.say(rank, f"not done after {GIVE_UP:.0f} s, and nobody reaped it")
            return Outcome(None, reaped=False)
        finally:
            process.kill()  # a no-op unless we gave up or were interrupted

    async def follow(
        self, rank: int, process: SpawnProcess, receiver: Connection[None, Report], death: asyncio.Task[float]
    ) -> Outcome:
        """Print a worker's reports; return what became of it."""
        self.say(rank, f"is process {process.pid}")
        hanging: Hanging | None = None
        weights: Weights | None = None
        async for report in receive(receiver):
            match report:
                case Progress(step, loss):
                    self.say(rank, f"step {step:3}, loss {loss:.3f}")
                case Hanging(step, scope, deadline, how):
                    hanging = report
                    left = deadline - time.monotonic()
                    self.say(rank, f'step {step:3}, {how}: scope "{scope}" ends in {left:.2f} s')
                case Trained():
                    weights = report.weights
        died_at = await death
        await asyncio.to_thread(process.join)
        reaped = hanging is not None and process.exitcode == -signal.SIGKILL
        if hanging is not None and reaped:
            late_ms = 1000 * (died_at - hanging.deadline)
            self.say(rank, f'reaped in scope "{hanging.scope}", dead {late_ms:.1f} ms after its deadline')
        else:
            self.say(rank, "finished" if weights else f"failed: exit code {process.exitcode}")
        return Outcome(weights, reaped)


async def wait_for_death(process: SpawnProcess) -> float:
    """Return when a process died, from ``time.monotonic()``."""
    loop = asyncio.get_running_loop()
    dead = asyncio.Event()
    loop.add_reader(process.sentinel, dead.set)
    try:
        await dead.wait()
        return time.monotonic()
    finally:
        loop.remove_reader(process.sentinel)


async def receive(receiver: Connection[None, Report]) -> AsyncIterator[Report]:
    """Yield a worker's reports until it is dead."""
    try:
        while True:
            yield await asyncio.to_thread(receiver.recv)
    except EOFError:
        receiver.close()


# -- the whole -----------------------------------------------------------------------------------


def accuracy(weights: Weights, held_out: Sequence[Passage]) -> float:
    """Return the share of passages whose package the model names."""
    hits = 0
    for passage in held_out:
        chances = predict(weights, passage)
        hits += chances.index(max(chances)) == passage.package
    return hits / len(held_out)


def main() -> int:
    """Train, and print the result; return the exit code."""
    to_learn, held_out = find_files()
    print(f"{WORKERS} workers learn which package {LINES} lines of source come from:")
    print(f"  {', '.join(PACKAGES)}; {len(to_learn)} files to learn from, {len(held_out)} held out\n")
    outcomes = asyncio.run(Launcher().run_all())
    models = [outcome.weights for outcome in outcomes if outcome.weights]
    reaped = sum(outcome.reaped for outcome in outcomes)
    if reaped != 2 or len(models) != WORKERS - 2:
        print(f"\nnot as promised: {reaped} workers reaped, {len(models)} finished")
        return 1
    passages = [passage for file in held_out for passage in read(file)]
    [(usual, count)] = Counter(passage.package for passage in passages).most_common(1)
    print(f"\n{len(models)} models averaged, tried on {len(passages):,} passages from the files held out:")
    print(f"  {accuracy(average(models), passages):6.1%} right")
    print(f'  {count / len(passages):6.1%} by always answering "{PACKAGES[usual]}"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
