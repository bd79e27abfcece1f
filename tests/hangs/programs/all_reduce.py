"""A collective operation whose peer never comes."""

import os
import signal
import tempfile

import torch
import torch.distributed as dist

from aiotimer import expires


def join(rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)


def synchronise(gradient: torch.Tensor) -> None:
    dist.all_reduce(gradient)  # here


meeting_point = os.path.join(tempfile.mkdtemp(), "store")
if os.fork() == 0:
    join(1)
    signal.pause()
join(0)
with expires(after=1):
    synchronise(torch.ones(3))
