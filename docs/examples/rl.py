"""A reinforcement learner in one event loop, two of whose parts hang: ``aiotimer run -- python rl.py``.

A policy learns to add. In each iteration an engine answers all questions, a few times each (rollouts); a pool
of threads scores the answers (rewards); one step changes the weights; and the engine gets them (weight sync).
One rollout never returns: its task is cancelled, and asks again. One reward holds the GIL, so that nothing in
this process runs any more: the process is reaped, and its launcher starts it again from the last checkpoint.
"""

import asyncio
import ctypes
import json
import math
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiotimer import configure, expires

QUESTIONS = [(a, b) for a in range(4) for b in range(4)]
SAMPLES = 8  # answers to each question in one iteration
ITERATIONS = 24
LOST = (6, 3, 5)  # the iteration, question and sample whose answer is lost on its way
KEEPS_GIL = (12, 7, 2)  # those whose reward hangs
LIVES = 5  # processes that the launcher starts at most


class Engine:
    """Answers questions by the weights that it was given last, some time after each was asked."""

    def __init__(self, weights):
        self.weights = weights
        self.answering = 0
        self.idle = asyncio.Event()

    async def answer(self, request, question, lost):
        """Return an answer to a question; or, if it is lost, never."""
        self.answering += 1
        self.idle.clear()
        try:
            await (asyncio.get_running_loop().create_future() if lost else asyncio.sleep(0.001))
            chances = softmax(self.weights[question])
            return random.Random(request).choices(range(len(chances)), chances)[0]
        finally:
            self.answering -= 1
            if not self.answering:
                self.idle.set()

    async def sync(self, weights):
        """Take other weights, once nothing is being answered."""
        await self.idle.wait()
        self.weights = weights


def softmax(logits):
    """Return the chance of each answer."""
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


async def rollout(engine, number):
    """Return the answer to one request, which is made again if there is none in time."""
    for attempt in range(1, 4):
        request = f"{number}, attempt {attempt}"
        try:
            async with expires(after=2, first=30, grace=5, scope="rollout") as timer:
                timer.note(request=request)
                return await engine.answer(request, number[1], lost=number == LOST and attempt == 1)
        except TimeoutError as error:
            print(f"request {request}: {error}", flush=True)
    raise RuntimeError(f"request {number} has not been answered three times")


def reward(number, answer, state):
    """Say whether an answer is right. This runs in a thread, which has a timer of its own."""
    with expires(after=3, scope="reward") as timer:
        timer.note(request=number, answer=answer)
        if number == KEEPS_GIL and not (state / "hung").exists():
            (state / "hung").touch()
            ctypes.PyDLL(None).sleep(3600)  # unlike CDLL, PyDLL keeps the GIL
        return float(answer == sum(QUESTIONS[number[1]]))


def learn(weights, answers, rewards):
    """Return weights by which the better one of two answers to a question is the likelier one."""
    changed = [list(logits) for logits in weights]
    for question, logits in enumerate(changed):
        chances = softmax(weights[question])
        mine = [number for number in answers if number[1] == question]
        usual = sum(rewards[number] for number in mine) / len(mine)
        for number in mine:
            for answer, chance in enumerate(chances):
                gradient = (answer == answers[number]) - chance
                logits[answer] += 0.8 * (rewards[number] - usual) * gradient
    return changed


async def iterate(engine, pool, iteration, state):
    """Make one iteration; return the share of right answers."""
    loop = asyncio.get_running_loop()
    numbers = [(iteration, q, sample) for q in range(len(QUESTIONS)) for sample in range(SAMPLES)]
    async with asyncio.TaskGroup() as tasks:
        rollouts = {number: tasks.create_task(rollout(engine, number)) for number in numbers}
    answers = {number: task.result() for number, task in rollouts.items()}
    scores = [loop.run_in_executor(pool, reward, number, answers[number], state) for number in numbers]
    rewards = dict(zip(numbers, await asyncio.gather(*scores), strict=True))
    with expires(after=3, first=30, scope="train step"):
        weights = learn(engine.weights, answers, rewards)
    async with expires(after=3, grace=2, scope="weight sync"):
        await engine.sync(weights)
    return sum(rewards.values()) / len(rewards)


async def train(state):
    """Train, from the last checkpoint on."""
    saved = state / "checkpoint.json"
    done, weights = json.loads(saved.read_text()) if saved.exists() else (0, [[0.0] * 7 for _ in QUESTIONS])
    engine = Engine(weights)
    with ThreadPoolExecutor(4) as pool:
        for iteration in range(done + 1, ITERATIONS + 1):
            async with expires(after=30, first=60, grace=5, scope="iteration") as timer:
                timer.note(iteration=iteration)
                right = await iterate(engine, pool, iteration, state)
                (state / "new").write_text(json.dumps([iteration, engine.weights]))
                (state / "new").replace(saved)
            if iteration % 6 == 0:
                print(f"iteration {iteration}: {right:.0%} right", flush=True)


def launch():
    """Start the trainer, and again when it has been killed."""
    with tempfile.TemporaryDirectory() as state:
        for life in range(1, LIVES + 1):
            status = subprocess.run([sys.executable, __file__, state]).returncode
            if status == 0:
                print(f"trained, in {life} processes", flush=True)
                return 0
            print(f"the trainer ended with {status}\n", end="", flush=True)
        return 1


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(launch())
    configure(name="trainer")
    asyncio.run(train(Path(sys.argv[1])))
