"""The commands ``aiotimer why`` and ``dump``: what a worker was doing when its time was up, or does now."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from .._linux.paths import SOCKET_VARIABLE, check_socket_path, known_sockets, state_directories
from ..client import control
from ..errors import HistoryUnreadable, Refused, ServerUnavailable, UnsafePath
from ..evidence import store
from ..evidence.record import Record
from ..server import history
from .common import resolve_socket, say
from .group import cli, socket_option


@cli.command(short_help="Say why a worker was reaped.")
@click.argument("pid", type=int, required=False)
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def why(pid: int | None, socket_path: str | None, as_json: bool) -> None:
    """Print what is known of the newest expiry, or of that of the worker PID.

    Looks at everything this user's servers have recorded, living or not, unless --socket names one. The exit
    status is 1 if nothing was.
    """
    path = None if socket_path is None else check_socket_path(socket_path)
    found = next(newest(state_directories(path), pid), None)
    if found is None:
        whose = "no expiry" if pid is None else f"no expiry of process {pid}"
        where = "by a server of this user" if path is None else f"by the server at {path}"
        raise click.ClickException(f"{whose} has been recorded {where}")
    _show(found, as_json=as_json)


@cli.command(short_help="Say what a living worker is doing.")
@click.argument("pid", type=int)
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dump(pid: int, socket_path: str | None, as_json: bool) -> None:
    """Print what the worker PID is doing now, without harming it.

    Asks the server that watches it: any of this user's, unless --socket or $AIOTIMER_SOCKET names one.
    """
    if socket_path is not None or SOCKET_VARIABLE in os.environ:
        _show(Record.from_json(control.dump(resolve_socket(socket_path), pid)), as_json=as_json)
        return
    refusal: Refused | None = None
    for path in known_sockets():
        try:
            found = control.dump(path, pid)
        except ServerUnavailable:
            continue
        except Refused as error:
            refusal = error
            continue
        _show(Record.from_json(found), as_json=as_json)
        return
    raise refusal or click.ClickException("no timer server of this user is running")


def _show(record: Record, *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(record.as_json()))
        return
    from .page import print_page

    print_page(record)


def newest(
    directories: Iterable[Path], pid: int | None = None, since: float = 0.0, limit: int = 1
) -> Iterator[Record]:
    """Yield records, the newest first.

    Args:
        directories: of servers' states.
        pid: only that worker's.
        since: wall time; only those that are not older.
        limit: how many of each directory.
    """
    found: list[Record] = []
    for directory in directories:
        try:
            rows = history.expiries(directory, pid, limit)
        except HistoryUnreadable as error:
            click.echo(f"aiotimer: {error}", err=True)
            rows = []
        found += rows or list(_kept(directory / "evidence", pid, limit))
    for record in sorted(found, key=_began, reverse=True):
        if _began(record) >= since:
            yield _whole(record)


def _began(record: Record) -> float:
    return record.time or 0.0


def _kept(directory: Path, pid: int | None, limit: int) -> Iterator[Record]:
    """Yield what lies in a store whose history is lost, the newest first."""
    for path in reversed(store.entries(directory)):
        if limit and (pid is None or f"-{pid}-" in path.name):
            try:
                yield store.load(path)
            except (OSError, ValueError, UnsafePath):
                continue
            limit -= 1


def _whole(summary: Record) -> Record:
    """Return the record that a summary is of; the summary if that is not kept any more."""
    try:
        record = store.load(Path(summary.evidence))
    except UnsafePath as error:
        click.echo(f"aiotimer: what is kept of it is not believed: {error}", err=True)
        return summary
    except (OSError, ValueError):
        return summary
    if record.id != summary.id:
        return summary
    if record.outcome == "pending":  # or whoever dealt with it has ended: then the history knows
        record = record._replace(outcome=summary.outcome, detail=summary.detail)
    return record
