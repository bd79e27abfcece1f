"""The command ``aiotimer dump``: what a living worker is doing."""

from __future__ import annotations

import os

import click

from .._linux.environment import SOCKET_VARIABLE
from .._linux.paths import known_sockets
from ..client import control
from ..errors import Refused, ServerUnavailable
from ..evidence.record import Record
from .common import resolve_socket
from .group import cli, socket_option
from .record import show


@cli.command(short_help="Say what a living worker is doing.")
@click.argument("pid", type=int)
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dump(pid: int, socket_path: str | None, as_json: bool) -> None:
    """Print what the worker PID is doing now, without harming it.

    Asks the server that watches it: any of this user's, unless --socket or $AIOTIMER_SOCKET names one.
    """
    if socket_path is not None or SOCKET_VARIABLE in os.environ:
        show(Record.from_json(control.dump(resolve_socket(socket_path), pid)), as_json=as_json)
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
        show(Record.from_json(found), as_json=as_json)
        return
    raise refusal or click.ClickException("no timer server of this user is running")
