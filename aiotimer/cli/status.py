"""The commands ``aiotimer status``, ``ping`` and ``resume``: a question to a server, and its answer."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from .._linux.paths import known_sockets
from ..client import control
from ..errors import AiotimerError
from ..events import printable, shown
from .common import count, resolve_socket, seconds
from .entry import ping as ping_server
from .group import cli, socket_option


@cli.command(short_help="Show workers and their armed timers.")
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (with --all: a list).")
@click.option("--all", "every", is_flag=True, help="Every server of this user, private ones included.")
def status(socket_path: str | None, as_json: bool, every: bool) -> None:
    """Show the workers of a server and their armed timers, soonest first."""
    if every:
        reports = [report for path in known_sockets() if (report := _report_of(path))]
    else:
        reports = [control.status(resolve_socket(socket_path))]
    if as_json:
        click.echo(json.dumps(reports if every else reports[0]))
        return
    if not reports:
        click.echo("no timer server of this user is running")
    for report in reports:
        _print(report)


@cli.command(short_help="Check that a server answers and looks on time.")
@socket_option
def ping(socket_path: str | None) -> None:
    """Exit with 0 when the server answers and looks on time, else with 69."""
    ping_server(socket_path)


@cli.command(short_help="Reap again after too many reaps.")
@socket_option
def resume(socket_path: str | None) -> None:
    """Have a server reap again in the jobs in which its breaker has tripped.

    What it has observed meanwhile stays observed; what expires from now on is reaped.
    """
    jobs = control.resume(resolve_socket(socket_path))
    for job in jobs:
        click.echo(f"reaping again: {printable(job)}")
    if not jobs:
        click.echo("the breaker has not tripped")


def _report_of(path: str) -> dict[str, Any] | None:
    try:
        return control.status(path)
    except AiotimerError:
        return None  # a state directory whose server is gone


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    server, workers = report["server"], report["workers"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PID", "WORKER", "SCOPE", "REMAINING"):
        table.add_column(heading, justify="right" if heading in ("PID", "REMAINING") else "left")
    armed = 0
    for worker in workers:
        name = shown(worker["name"])[1:-1] + ("" if worker["connected"] else " (not connected)")
        timers = [(shown(row["scope"])[1:-1], seconds(row["remaining_s"])) for row in worker["timers"]]
        for scope, left in timers or [("-", "-")]:
            table.add_row(str(worker["pid"]), Text(name), Text(scope), left)
        armed += len(worker["timers"])
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(
        Text(
            f"server pid {server['pid']}, aiotimer {server['version']}, up {seconds(server['uptime_s'])}, "
            f"{server['socket']}"
        )
    )
    for broken in server.get("broken", ()):
        left = broken["resumes_in_s"]
        until = (
            "until `aiotimer resume`" if left is None else f"for {seconds(left)}, or until `aiotimer resume`"
        )
        console.print(Text(f"too many reaps in {printable(broken['job'])}: only observing {until}"))
    console.print(f"{count(len(workers), 'worker')}, {count(armed, 'timer')} armed")
    if workers:
        console.print(table)
