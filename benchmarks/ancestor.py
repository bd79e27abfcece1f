"""The ancestor: ``torch.distributed.elastic.timer`` beside ``expires``, per entry and exit.

Its servers run in another process, as they need. ``LocalTimerClient`` only hands its requests to a feeder
thread, so the caller does not see all that it costs; what the thread still has to do after a round is waited
for, untimed, so that it troubles nobody else. Its default scope is found by ``inspect.stack()``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import repeat
from multiprocessing.synchronize import Event
from pathlib import Path
from time import perf_counter
from typing import Any

from aiotimer import TimerClient, expires

from ._report import Row
from ._server import serving
from ._timing import Candidate, interleave

_ENTRIES = 100
"""Per round: what fits into the ancestor's named pipe (64 KiB) even if its server sleeps."""


def measure(quick: bool) -> Iterator[Row]:
    """Yield torch's time per entry and ours, or nothing where there is no torch."""
    if importlib.util.find_spec("torch") is None:
        yield Row("torch is not installed: skipped", 0, exact=True)
        return
    logging.disable(logging.WARNING)
    try:
        yield from _beside_torch(3 if quick else 20)
    finally:
        logging.disable(logging.NOTSET)


def _beside_torch(rounds: int) -> Iterator[Row]:
    ancestor = _ancestor()
    context = multiprocessing.get_context("spawn")
    requests: Any = context.Queue()
    ready, stop = context.Event(), context.Event()
    with tempfile.TemporaryDirectory() as directory, serving() as server:
        pipe = str(Path(directory, "pipe"))
        process = context.Process(target=_serve, args=(requests, pipe, ready, stop))
        process.start()
        ready.wait()
        local, file = ancestor.LocalTimerClient(requests), ancestor.FileTimerClient(pipe)
        with TimerClient(server.path) as client:
            medians = interleave(
                {
                    "ours": _scoped(expires, client),
                    "ours, default scope": _unscoped(expires, client),
                    "local": _scoped(ancestor.expires, local),
                    "local, default scope": _unscoped(ancestor.expires, local),
                    "file": _scoped(ancestor.expires, file),
                },
                rounds,
            )
        stop.set()
        process.join()
    version = f"torch {importlib.metadata.version('torch')}"
    yield Row('ours: with expires(60, "s")', medians["ours"] * 1e6, "us")
    yield Row("ours: with expires(60)", medians["ours, default scope"] * 1e6, "us")
    for name, what, ours in (
        ("local", "LocalTimerClient", "ours"),
        ("local, default scope", "LocalTimerClient, default scope", "ours, default scope"),
        ("file", "FileTimerClient", "ours"),
    ):
        note = f"{medians[name] / medians[ours]:,.1f} x ours"
        yield Row(f"{version}: {what}", medians[name] * 1e6, "us", note=note)


def _ancestor() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses numpy, and does not need it for this
        from torch.distributed.elastic import timer
    return timer


def _serve(requests: Any, pipe: str, ready: Event, stop: Event) -> None:
    """Be the ancestor's servers, of both kinds."""
    ancestor = _ancestor()
    logging.disable(logging.WARNING)
    local = ancestor.LocalTimerServer(requests, max_interval=0.01)
    file = ancestor.FileTimerServer(pipe, run_id="bench", max_interval=0.01)
    local.start()
    file.start()
    ready.set()
    stop.wait()
    os._exit(0)  # its threads may be waiting for a client


def _scoped(enter: Callable[..., Any], client: Any) -> Candidate:
    def once() -> float:
        before = perf_counter()
        for _ in repeat(None, _ENTRIES):
            with enter(60, "s", client):
                pass
        spent = perf_counter() - before
        time.sleep(0.03)  # the ancestor's feeder thread and servers catch up
        return spent / _ENTRIES

    return once


def _unscoped(enter: Callable[..., Any], client: Any) -> Candidate:
    def once() -> float:
        before = perf_counter()
        for _ in repeat(None, _ENTRIES):
            with enter(60, client=client):
                pass
        spent = perf_counter() - before
        time.sleep(0.03)
        return spent / _ENTRIES

    return once
