"""The command ``aiotimer help``: the program explained, or one command."""

from __future__ import annotations

import click

from .common import say
from .group import cli


@cli.command(name="help", short_help="Explain the program, or one command.")
@click.argument("name", metavar="[COMMAND]", required=False)
@click.pass_context
def explain(context: click.Context, name: str | None) -> None:
    """Explain the program, or COMMAND, as --help does."""
    command = cli if name is None else cli.get_command(context, name)
    if command is None:
        raise click.UsageError(f"No such command {name!r}.")
    parent, called = (context.parent, name) if name else (None, "aiotimer")
    settings = command.context_settings
    say(command.get_help(click.Context(command, info_name=called, parent=parent, **settings)))
