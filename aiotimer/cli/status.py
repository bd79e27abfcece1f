"""The commands ``aiotimer status``, ``ping`` and ``resume``: a question to a server, and its answer."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from .._linux.paths import SOCKET_VARIABLE, known_sockets
from ..client import control
from ..errors import ServerUnavailable
from ..events import printable, shown
from .common import count, resolve_socket, say, seconds
from .entry import ping as ping_server
from .group import SERVER, cli, socket_option
from .servers import pass_over, reports_of


@cli.command(short_help="Show workers and their armed timers.")
@socket_option(
    f"The server's socket [default: ${SOCKET_VARIABLE}, then the per-user default, then as --all]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --all, a list of them.")
@click.option("--all", "every", is_flag=True, help="Every server of this user, private ones included.")
def status(socket_path: str | None, as_json: bool, every: bool) -> None:
    """Show the workers of a server and their armed timers, soonest first.

    If no server is named, and there is none at the per-user default, every server of this user is shown.
    """
    found = reports_of(known_sockets()) if every else _status(resolve_socket(socket_path), socket_path)
    if as_json:
        say(json.dumps(found))
        return
    reports = found if isinstance(found, list) else [found]
    if not reports:
        say("no timer server of this user is running")
    for report in reports:
        _print(report)


def _status(path: str, named: str | None) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the report of a server; if none was named and none is there, those of all that are."""
    try:
        return control.status(path)
    except ServerUnavailable as error:
        if named is None and SOCKET_VARIABLE not in os.environ:
            others = reports_of(other for other in known_sockets() if other != path)
            if others:
                pass_over(path, error)
                return others
        raise


@cli.command(short_help="Check that a server answers and looks on time.")
@socket_option(SERVER)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ping(socket_path: str | None, as_json: bool) -> None:
    """Exit with 0 when the server answers and looks on time, else with 69."""
    ping_server(socket_path, as_json=as_json)


@cli.command(short_help="Reap again after too many reaps.")
@socket_option(SERVER)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def resume(socket_path: str | None, as_json: bool) -> None:
    """Have a server reap again in the jobs in which its breaker has tripped.

    What it has observed meanwhile stays observed; what expires from now on is reaped.
    """
    jobs = control.resume(resolve_socket(socket_path))
    if as_json:
        say(json.dumps({"jobs": jobs}))
        return
    for job in jobs:
        say(f"reaping again: {printable(job)}")
    if not jobs:
        say("the breaker has not tripped")


def _rank(worker: dict[str, Any]) -> str:
    rank, size = worker.get("rank"), worker.get("size")
    known = "-" if rank is None else str(rank)
    return f"{known}/{size}" if size else known


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .page import console

    server, workers = report["server"], report["workers"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    with_runs = any(worker.get("group") for worker in workers)
    for heading in ("PID", "WORKER", *(("RUN", "RANK") if with_runs else ()), "SCOPE", "REMAINING"):
        table.add_column(heading, justify="right" if heading in ("PID", "RANK", "REMAINING") else "left")
    armed = 0
    for worker in workers:
        name = shown(worker["name"])[1:-1] + ("" if worker["connected"] else " (not connected)")
        timers = [(shown(row["scope"])[1:-1], seconds(row["remaining_s"])) for row in worker["timers"]]
        member = (Text(printable(worker.get("group") or "-")), _rank(worker)) if with_runs else ()
        for scope, left in timers or [("-", "-")]:
            table.add_row(str(worker["pid"]), Text(name), *member, Text(scope), left)
        armed += len(worker["timers"])
    printer = console()
    printer.print(
        Text(
            f"server pid {server['pid']}, aiotimer {server['version']}, up {seconds(server['uptime_s'])}, "
            f"{server['socket']}"
        ),
        soft_wrap=True,
    )
    for broken in server.get("broken", ()):
        left = broken["resumes_in_s"]
        until = (
            "until `aiotimer resume`" if left is None else f"for {seconds(left)}, or until `aiotimer resume`"
        )
        told = f"too many reaps in {printable(broken['job'])}: only observing {until}"
        printer.print(Text(told), soft_wrap=True)
    printer.print(f"{count(len(workers), 'worker')}, {count(armed, 'timer')} armed")
    if workers:
        printer.print(table, soft_wrap=True)
