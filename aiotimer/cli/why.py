"""The commands ``aiotimer why`` and ``dump``: what a worker was doing when its time was up, or does now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click

from .._linux.paths import SOCKET_VARIABLE, check_socket_path, known_sockets, state_directories
from ..client import control
from ..errors import HistoryUnreadable, UnsafePath
from ..evidence import store
from ..evidence.record import Record
from ..server import recorded
from ..server.recorded import EXPIRIES
from .common import resolve_socket, say, warn, write_page
from .filters import EVERYTHING, Wanted, filter_options
from .group import RECORDED, cli, socket_option
from .servers import dump_of


@cli.command(short_help="Say why a worker was reaped.")
@click.argument("about", metavar="[PID | DIR...]", nargs=-1)
@socket_option(RECORDED)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --list, a list of them.")
@click.option("--list", "as_list", is_flag=True, help="Print one line for each expiry, the newest first.")
@click.option("--full", is_flag=True, help="Print all of the page, not one screen of it.")
@click.option(
    "--html",
    "html",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the page as one HTML file, to be attached to a ticket; - is standard output.",
)
@click.option(
    "--run",
    "run",
    metavar="[ID]",
    is_flag=False,
    flag_value="",
    help="Name the culprit among the ranks of a run: of the newest, or of this one; each DIR is evidence "
    "of one or more of its nodes.",
)
@filter_options
def why(
    about: tuple[str, ...],
    socket_path: str | None,
    as_json: bool,
    as_list: bool,
    full: bool,
    html: str | None,
    run: str | None,
    **wanted: Any,
) -> None:
    """Print what is known of the newest expiry, or of that of the worker PID.

    Looks at everything this user's servers have recorded, living or not, unless --socket names one. The exit
    status is 1 if nothing was.
    """
    path = None if socket_path is None else check_socket_path(socket_path)
    if html is not None and (as_json or as_list):
        raise click.UsageError("--html is a page of one expiry: it goes without --json and --list")
    if run is not None:
        if as_list or Wanted(None, **wanted) != EVERYTHING:
            raise click.UsageError("--run is about one run: it goes without --list, and without filters")
        from .runs import run_record, show

        show(run_record(path, run, about), as_json=as_json, full=full, html=html)
        return
    _why(path, Wanted(_pid_of(about), **wanted), as_json=as_json, as_list=as_list, full=full, html=html)


def _pid_of(about: tuple[str, ...]) -> int | None:
    try:
        pids = [int(one) for one in about]
    except ValueError:
        raise click.BadParameter("it is a number; directories go with --run ID", param_hint="PID") from None
    if len(pids) > 1:
        raise click.UsageError("there is one PID at most")
    return pids[0] if pids else None


def _why(
    path: str | None, asked: Wanted, *, as_json: bool, as_list: bool, full: bool, html: str | None
) -> None:
    pid = asked.pid
    is_plain = not as_list and asked._replace(pid=None) == EVERYTHING
    limit = 1 if is_plain else EXPIRIES
    found = summaries(state_directories(path), pid, limit, lambda record: asked.takes(record.as_json()))
    if not found:
        whose = "no expiry" if pid is None else f"no expiry of process {pid}"
        where = "by a server of this user" if path is None else f"by the server at {path}"
        what = " that you ask for" if asked._replace(pid=None) != EVERYTHING else ""
        raise click.ClickException(f"{whose}{what} has been recorded {where}")
    if as_list:
        _list(found, as_json=as_json)
    elif html is not None:
        from .html_page import html_page
        from .page import rows_of

        write_page(html_page(*rows_of(_whole(found[0]))), html)
    else:
        _show(_whole(found[0]), as_json=as_json, full=full)


def _list(found: list[Record], *, as_json: bool) -> None:
    records = [record.as_json() for record in found]
    if as_json:
        say(json.dumps(records))
        return
    from .rows import lines

    for line in lines(
        [record | {"event": record["outcome"]} for record in records], get_terminal_size().columns
    ):
        say(line)


@cli.command(short_help="Say what a living worker is doing.")
@click.argument("pid", type=int)
@socket_option(
    f"Ask only the server at this path [default: ${SOCKET_VARIABLE}, then every server of this user]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--full", is_flag=True, help="Print all of the page, not one screen of it.")
def dump(pid: int, socket_path: str | None, as_json: bool, full: bool) -> None:
    """Print what the worker PID is doing now, without harming it.

    Asks the server that watches it: the one that --socket names, else any of this user's.
    """
    if socket_path is None:
        found = dump_of(pid, dict.fromkeys([resolve_socket(None), *known_sockets()]))
    else:
        found = control.dump(resolve_socket(socket_path), pid)
    _show(Record.from_json(found), as_json=as_json, full=full)


def _show(record: Record, *, as_json: bool, full: bool) -> None:
    if as_json:
        say(json.dumps(record.as_json()))
        return
    from .page import print_page

    print_page(record, full=full)


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
    for record in summaries(directories, pid, limit):
        if _began(record) >= since:
            yield _whole(record)


def summaries(
    directories: Iterable[Path],
    pid: int | None,
    limit: int,
    takes: Callable[[Record], bool] = lambda _record: True,
) -> list[Record]:
    """Return the summaries of those records that are taken, the newest first: see :func:`newest`."""
    found: list[Record] = []
    for directory in directories:
        try:
            known = recorded.expiries(directory, pid, limit)
        except HistoryUnreadable as error:
            warn(str(error))
            known = []
        found += filter(takes, known or _kept(directory / "evidence", pid, limit))
    return sorted(found, key=_began, reverse=True)


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
        warn(f"what is kept of it is not believed: {error}")
        return summary
    except (OSError, ValueError):
        return summary
    if record.id != summary.id:
        return summary
    if record.outcome == "pending":  # or whoever dealt with it has ended: then the history knows
        record = record._replace(outcome=summary.outcome, detail=summary.detail)
    return record
