"""A finder of the roll calls that servers have recorded, for ``aiotimer why --run``; several are merged.

The laws of this file: no server has to be running; where others can write, nothing is believed; what is found
in several places counts once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from .._linux.paths import state_directories
from ..errors import HistoryUnreadable
from ..evidence import store
from ..evidence.merge import merge
from ..evidence.run_record import RunRecord
from ..server import recorded
from ..server.recorded import EXPIRIES
from .common import say, warn, write_page

_MOST_NAMED = 5
"""Runs that are named to somebody who asks for one that is not there."""


def run_record(socket_path: str | None, run: str, directories: Sequence[str] = ()) -> RunRecord:
    """Return what is known of a run.

    Args:
        socket_path: only what this server has recorded.
        run: its id; "" is the newest.
        directories: of evidence, each of one node or of several; none: those of this user's servers.
    """
    if directories and not run:
        raise click.UsageError("name the run whose evidence is in these directories: --run ID DIR...")
    if run and not directories and Path(run).is_dir():
        raise click.UsageError(f"{run} is a directory: name the run, too: --run ID {run}")
    stores = [_named(one) for one in directories] or _own(socket_path)
    records = [record for one in stores for record in _recorded(one)]
    records.sort(key=lambda record: record.time or 0.0, reverse=True)
    wanted = run or (records[0].run if records else "")
    of_run = {(one.host, one.boot_id, one.id, one.time): one for one in records if one.run == wanted}
    if not of_run:
        raise click.ClickException(_nothing(run, records, socket_path, directories))
    return merge(of_run.values())


def show(record: RunRecord, *, as_json: bool, full: bool, html: str | None) -> None:
    """Print a record as JSON, or as a page; or write that as HTML into a file."""
    if as_json:
        say(json.dumps(record.as_json()))
        return
    from .roll_page import print_roll, roll_as_html

    if html is not None:
        write_page(roll_as_html(record), html)
    else:
        print_roll(record, full=full)


def _recorded(directory: Path) -> Iterator[RunRecord]:
    yield from map(RunRecord.from_json, store.runs(directory))


def _named(name: str) -> Path:
    """Return the store in a directory that somebody has named, which may be the state directory around it."""
    path = Path(name).absolute()
    if not path.is_dir():
        raise click.BadParameter(f"{name} is no directory", param_hint="DIR")
    inner = path / "evidence"
    return inner if inner.is_dir() else path


def _own(socket_path: str | None) -> list[Path]:
    """Return the stores of this user's servers, which may be where ``--evidence-dir`` said."""
    found: dict[Path, None] = {}
    for directory in state_directories(socket_path):
        found[directory / "evidence"] = None
        try:
            known = recorded.expiries(directory, None, EXPIRIES)
        except HistoryUnreadable as error:
            warn(str(error))
            continue
        found.update((Path(record.evidence).parent, None) for record in known if record.evidence)
    return list(found)


def _nothing(
    run: str, records: Sequence[RunRecord], socket_path: str | None, directories: Sequence[str]
) -> str:
    where = f"by the server at {socket_path}" if socket_path is not None else "by a server of this user"
    words = f"no roll call of {f'run {run!r}' if run else 'a run'} "
    words += f"is in {', '.join(directories)}" if directories else f"has been recorded {where}"
    others = list(dict.fromkeys(record.run for record in records))[:_MOST_NAMED]
    return words + (f"; there is {', '.join(map(repr, others))}" if others else "")
