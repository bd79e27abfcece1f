"""Library files: which files of a stack are the user's, by the text of their paths."""

import pytest

import aiotimer
from aiotimer.evidence.libraries import is_users

USERS = [
    "/app/train.py",
    "train.py",
    "jobs/train.py",
    "./train.py",
    "<string>",
    "<stdin>",
    "?",
    "/srv/lib/python3-jobs/train.py",
    "/srv/lib/python3/train.py",
    "/home/x/python3.11/train.py",
    "/home/x/mylib/python3.11/train.py",
    "/home/x/aiotimer/train.py",
    "/home/x/uvloop/train.py",
    "/home/x/site-packages-of-mine/train.py",
    "/home/x/<frozen runpy>/train.py",
    "/home/x/fast.pyx.py",
    "/app/jobs.zip/train.py",
    "/app/jobs.pyz/__main__.py",
    "/venv/bin/train",
    "/home/x/.pyenv/train.py",
    "/opt/conda/train.py",
]

LIBRARIES = [
    "/usr/lib/python3.11/queue.py",
    "/usr/lib64/python3.9/threading.py",
    "/usr/local/lib/python3.12/asyncio/runners.py",
    "/opt/lib64/python3.13t/asyncio/queues.py",
    "/home/x/.pyenv/versions/3.11.7/lib/python3.11/selectors.py",
    "/home/x/.local/share/uv/python/cpython-3.12.3-linux-x86_64-gnu/lib/python3.12/queue.py",
    "/opt/conda/lib/python3.10/concurrent/futures/thread.py",
    "/opt/conda/envs/rl/lib/python3.10/site-packages/torch/x.py",
    "/home/x/.local/lib/python3.11/site-packages/x.py",
    "/venv/lib/python3.11/site-packages/torch/x.py",
    "/venv/lib64/python3.11/site-packages/torch/x.py",
    ".venv/lib/python3.11/site-packages/torch/x.py",
    "lib/python3.11/queue.py",
    "site-packages/x.py",
    "/usr/lib/python3/dist-packages/x.py",
    "/usr/local/lib/python3.12/dist-packages/x.py",
    "/usr/lib/python311.zip/queue.py",
    "/venv/lib/python3.11/site-packages/x-1.0-py3.11.egg/x/y.py",
    "/app/jobs.pyz/site-packages/x.py",
    "<frozen runpy>",
    "<frozen importlib._bootstrap>",
    "<frozen zipimport>",
    "uvloop/loop.pyx",
    "uvloop/handles/poll.pyx",
    "uvloop/includes/uv.pxd",
    "sklearn/tree/_criterion.pxi",
    "/project/numpy/random/mtrand.pyx",
    "/venv/lib/python3.11/site-packages/aiotimer/client/block.py",
    aiotimer.__file__,
    aiotimer.expires.__code__.co_filename,
    "/usr/lib/python3.11/a\nb.py",
    "/a\nb/site-packages/x.py",
]


@pytest.mark.parametrize("file", USERS)
def test_the_user_s_files(file: str) -> None:
    assert is_users(file)


@pytest.mark.parametrize("file", LIBRARIES)
def test_the_files_of_libraries(file: str) -> None:
    assert not is_users(file)
