"""The shards of a data set, the first of which never come from where they are stored."""

import os

import torch

store, _nobody_writes = os.pipe()


def read_shard() -> bytes:
    return os.read(store, 1)


def batch() -> torch.Tensor:
    return torch.randn(16, 32)
