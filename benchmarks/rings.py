"""What it costs the socket: requests sent while blocks are entered in a tight loop.

Counted where they leave the worker: every request, ring or not, goes through
``ClientConnection.send_frame``. The server runs in another process and looks when it must, so the
counts hold what real looks cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from time import monotonic

from aiotimer import TimerClient, expires

from ._report import Row
from ._server import serving


def measure(quick: bool) -> Iterator[Row]:
    """Yield how many requests long and short timers cause."""
    entries = 100_000 if quick else 1_000_000
    with serving() as server, TimerClient(server.path) as client:
        sent = count_requests(client)

        before, began = sent(), monotonic()
        for _ in repeat(None, entries):
            with expires(60, "long", client):
                pass
        requests, elapsed = sent() - before, monotonic() - began
        what = f"requests for {entries:,} entries of a 60 s timer"
        yield Row(what, requests, "", 3, exact=True, note=f"in {elapsed:.2f} s")

        for after, limit in ((0.050, 1.5), (0.005, None)):
            before, began = sent(), monotonic()
            for _ in repeat(None, entries):
                with expires(after, "short", client):
                    pass
            requests, elapsed = sent() - before, monotonic() - began
            what = f"requests for entries of a {after * 1000:g} ms timer, per {after * 1000:g} ms"
            note = f"{requests:,} for {entries:,} entries in {elapsed:.2f} s"
            yield Row(what, requests / (elapsed / after), "", limit, exact=True, note=note)


def count_requests(client: TimerClient) -> Callable[[], int]:
    """Count what a client's process sends from now on; return what returns the count."""
    connection = client._queue.connection
    send = connection.send_frame
    count = 0

    def counting(frame: bytes) -> bool:
        nonlocal count
        count += 1
        return send(frame)

    connection.send_frame = counting  # type: ignore[method-assign]  # on this object only
    return lambda: count
