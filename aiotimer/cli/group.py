"""A group of commands, as click knows them, which imports a command when that is called.

The law of this file: a name stands in :data:`MODULES`, and what it needs is imported with its module only.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import click

from .._linux.paths import SOCKET_VARIABLE
from .._version import __version__
from .common import HELP, Failed

MODULES = {
    "run": "run", "serve": "serve", "status": "status", "ping": "status", "resume": "status", "why": "why",
    "history": "history", "suggest": "suggest", "dump": "why", "help": "help",
}  # fmt: skip
"""In which module of this package a command is, in the order of their use; importing it adds the command."""

SERVER = f"The server's socket [default: ${SOCKET_VARIABLE}, then the per-user default]."
RECORDED = "Only what the server at this path recorded [default: every server of this user]."


class Commands(click.Group):
    """The group. Its help is a text: :data:`~aiotimer.cli.common.HELP`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of their use."""
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it; None if there is none of that name."""
        if cmd_name in MODULES:
            import_module(f".{MODULES[cmd_name]}", __package__)
        return super().get_command(ctx, cmd_name)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help of the program."""
        return HELP.rstrip("\n")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="aiotimer")
def cli() -> None:
    """See ``HELP``."""


def socket_option(text: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """Return what adds ``--socket PATH`` to a command; the function gets ``socket_path``, a str or None."""
    return click.option("--socket", "socket_path", metavar="PATH", help=text)


def call(arguments: list[str]) -> int:
    """Have click parse a command line and call the command; return its exit status.

    Raises:
        Failed: the command line is wrong, or the command says that it has failed.
    """
    try:
        return cli.main(arguments, prog_name="aiotimer", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return error.exit_code
    except click.ClickException as error:
        raise Failed(error.format_message(), error.exit_code) from error
    except click.Abort:
        raise KeyboardInterrupt from None
