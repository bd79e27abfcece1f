"""How long commands take, whole processes, in multiples of what Python takes to start and do nothing.

They are started as users start them, by the installed script and by ``python -m aiotimer``, with the
same interpreter. The bytecode is cached, as in ``imports``.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from ._report import Row
from ._server import serving
from ._timing import interleave

_ROUNDS = 15


def measure(quick: bool) -> Iterator[Row]:
    """Yield how long each command takes."""
    script = [str(Path(sysconfig.get_path("scripts"), "aiotimer"))]
    module = [sys.executable, "-m", "aiotimer"]
    with tempfile.TemporaryDirectory() as directory, serving() as server:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
        for variable in ("PYTHONDONTWRITEBYTECODE", "AIOTIMER_SOCKET"):
            environment.pop(variable, None)
        commands = {
            "aiotimer --version": (2.5, [*script, "--version"]),
            "aiotimer --help": (2.5, [*script, "--help"]),
            "aiotimer ping": (2.5, [*script, "ping", "--socket", server.path]),
            "python -m aiotimer ping": (2.5, [*module, "ping", "--socket", server.path]),
            "aiotimer run -- true": (5.0, [*script, "run", "--", "true"]),
            "aiotimer status": (None, [*script, "status", "--socket", server.path]),
        }
        candidates = {"": functools.partial(_run, [sys.executable, "-c", "pass"], environment)} | {
            name: functools.partial(_run, command, environment) for name, (_, command) in commands.items()
        }
        medians = interleave(candidates, 5 if quick else _ROUNDS)
    bare = medians[""]
    yield Row("starting bare Python", bare * 1e3, "ms")
    for name, (limit, _) in commands.items():
        note = f"{medians[name] * 1e3:.1f} ms"
        yield Row(f"{name}, per start of bare Python", medians[name] / bare, "x", limit, note=note)


def _run(command: list[str], environment: dict[str, str]) -> float:
    before = perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return perf_counter() - before
