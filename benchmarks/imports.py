"""What importing aiotimer costs a synchronous worker, and what it must not bring along.

``import aiotimer`` by itself loads next to nothing; what counts is the names that a worker uses.

New interpreters, started in turn with and without the import; the difference of the medians is the cost. The
bytecode is cached, as it is in any installation from the second start on; in a place of its own, whatever the
environment says about caching.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from time import perf_counter

from ._report import Row
from ._server import serving
from ._timing import interleave

_NEVER = ("asyncio", "click", "rich", "uvloop")
_IMPORT = "from aiotimer import TimerClient, configure, expires"
_CONNECT = "from aiotimer import TimerClient; client = TimerClient({path!r}); client.connect()"
_ENTER = "from aiotimer import expires\nwith expires(60, client=client): pass"


def measure(quick: bool) -> Iterator[Row]:
    """Yield the cost of importing, and of importing what a connection needs."""
    programs = {
        "bare": "pass",
        "import": _IMPORT,
        "connecting": f"{_IMPORT}; TimerClient('socket')",
        "asyncio": "import asyncio",
    }
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        candidates = {name: functools.partial(_start, code, environment) for name, code in programs.items()}
        medians = interleave(candidates, 5 if quick else 40)
    bare = medians.pop("bare")
    yield Row("import aiotimer, over bare Python", (medians["import"] - bare) * 1e3, "ms", 30.0)
    what = "import aiotimer, and what connecting needs"
    yield Row(what, (medians["connecting"] - bare) * 1e3, "ms")
    yield Row("import asyncio, for comparison", (medians["asyncio"] - bare) * 1e3, "ms")
    yield Row("starting bare Python", bare * 1e3, "ms")

    loaded = _loaded(_IMPORT, (*_NEVER, "msgspec"))
    note = ", ".join(loaded) or f"none of {', '.join(_NEVER)}, msgspec"
    yield Row("unwanted modules after import aiotimer", len(loaded), "", 0, exact=True, note=note)
    with serving() as server:
        loaded = _loaded(f"{_CONNECT.format(path=server.path)}\n{_ENTER}", _NEVER)
    note = ", ".join(loaded) or f"none of {', '.join(_NEVER)}"
    yield Row("unwanted modules in a worker at work", len(loaded), "", 0, exact=True, note=note)


def _start(code: str, environment: dict[str, str]) -> float:
    before = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return perf_counter() - before


def _loaded(code: str, modules: tuple[str, ...]) -> list[str]:
    """Return which of some modules are there after running some code."""
    program = f"{code}\nimport sys\nprint(*(name for name in {modules!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()
