"""A job of DistributedDataParallel, one rank of which hangs after three steps: ddp.py KIND GUARDED RANK.

What is guarded is each whole ``step``, or only its ``collective``: the backward pass, in which ranks wait for
one another. The first steps import what is slow to import, and have a limit that is never reached.
"""

import asyncio
import ctypes
import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import shards
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from aiotimer import expires

KIND, GUARDED, CULPRIT = sys.argv[1], sys.argv[2], int(sys.argv[3])
WARM_UP = 3
LIMIT_S = 15


def guard(what: str) -> AbstractContextManager[object]:
    if what != GUARDED:
        return nullcontext()
    return expires(after=LIMIT_S, first=(900, WARM_UP), scope=what)


def augment(batch: torch.Tensor) -> torch.Tensor:
    crops = 0
    while crops >= 0:  # for ever
        crops = (crops + 1) % 4096
    return batch


def decode() -> None:
    ctypes.PyDLL(None).sleep(3600)  # unlike CDLL, it keeps the GIL


def prefetch() -> None:
    try:
        raise ValueError("a shard of no known format")
    except ValueError:
        while True:  # somebody will look at it
            time.sleep(5)


def validate() -> None:
    dist.barrier()


def prepare(batch: torch.Tensor) -> torch.Tensor:
    match KIND:
        case "loader":
            shards.read_shard()
        case "loop":
            return augment(batch)
        case "gil":
            decode()
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "swallow":
            prefetch()
        case "other":
            validate()
    return batch


async def rollout(hangs: bool) -> torch.Tensor:
    reward: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if not hangs:
        reward.set_result(None)
    await reward
    return shards.batch()


class Trainer:
    def __init__(self) -> None:
        layers = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        self.model = DistributedDataParallel(layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def learn(self, batch: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.model(batch).square().mean()
        with guard("collective"):
            loss.backward()
        self.optimizer.step()

    def step(self, hangs: bool) -> None:
        with guard("step"):
            batch = shards.batch()
            if hangs:
                batch = prepare(batch)
            self.learn(batch)

    async def async_step(self, hangs: bool) -> None:
        with guard("step"):
            self.learn(await rollout(hangs))


async def train_async(trainer: Trainer) -> None:
    for number in range(WARM_UP + 1):
        await trainer.async_step(number == WARM_UP and dist.get_rank() == CULPRIT)


def train(trainer: Trainer) -> None:
    for number in range(WARM_UP + 1):
        trainer.step(number == WARM_UP and dist.get_rank() == CULPRIT)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    trainer = Trainer()
    if KIND == "future":
        asyncio.run(train_async(trainer))
    else:
        train(trainer)


main()
