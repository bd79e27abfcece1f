"""The command ``aiotimer ping``, as click parses it; ``ping_server`` carries it out."""

from __future__ import annotations

from .group import cli, socket_option
from .ping_server import ping as ping_server


@cli.command(short_help="Check that a server answers and looks on time.")
@socket_option
def ping(socket_path: str | None) -> None:
    """Exit with 0 when the server answers and looks on time, else with 69."""
    ping_server(socket_path)
