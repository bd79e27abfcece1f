"""Memory: what a connected, idle worker costs the server.

The workers are real processes, welcomed and silent, each with a table and no timer armed. The resident set
is the kernel's own sum over the server's mappings (``Rss`` in ``smaps_rollup``), taken with some workers
connected and again with many more. The cost is the difference per worker that came between: what the first
workers made the server load is not in it, and nothing hides in memory that earlier workers had given back.
The tables are files on tmpfs, which the server reads and never maps; their pages are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aiotimer._linux.paths import state_directory

from ._report import Row
from ._server import serving
from ._workers import workers


def measure(quick: bool) -> Iterator[Row]:
    """Yield the resident set per worker, on both loops."""
    first, more = (20, 100) if quick else (100, 500)
    for loop in ("uvloop", "asyncio"):
        with serving(loop) as server, workers(server.path) as group:
            group.add(first)
            before = resident_kib(server.pid)
            group.add(more)
            after = resident_kib(server.pid)
            tables = _tables_kib(server.path)
        note = f"{before / 1024:.1f} MiB with {first}, {after / 1024:.1f} MiB with {first + more}"
        what = f"server memory per connected idle worker, {loop}"
        yield Row(what, (after - before) / more, "KiB", 12.0, note=note)
        yield Row(f"table on tmpfs per idle worker, {loop}", tables / (first + more), "KiB")


def _tables_kib(path: str) -> float:
    """Return what the tables of a server's workers occupy, in KiB."""
    return sum(file.stat().st_blocks for file in state_directory(path).glob("*.shared")) / 2


def resident_kib(pid: int) -> int:
    """Return the resident set of a process in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise ProcessLookupError(pid)
