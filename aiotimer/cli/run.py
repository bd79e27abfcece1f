"""The command ``aiotimer run``, as click parses it; ``run_command`` carries it out."""

from __future__ import annotations

import click

from .group import cli
from .options import as_arguments, run_options
from .run_command import run as run_command


@cli.command(
    short_help="Run a command, protected by a server of its own.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--socket", "socket_path", metavar="PATH", help="Where its server listens [default: private].")
@run_options
@click.option("--quiet", is_flag=True, help="Do not say at the end why workers were reaped.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.pass_context
def run(
    context: click.Context,
    socket_path: str | None,
    reap: str | None,
    observe: bool,
    evidence_dir: str | None,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with a timer server of its own, found by it and its children in $AIOTIMER_SOCKET.

    The server is restarted if it dies. Signals are forwarded. At the end, what is known of the workers that
    were reaped is printed on standard error, as by `aiotimer why`. The exit status is the command's own
    (128+N if signal N ended it); 124 if the command itself was reaped, 125 if aiotimer failed, 126 if the
    command cannot be run, 127 if it is not found.
    """
    policy = as_arguments(reap, observe, evidence_dir)
    context.exit(run_command([*command], socket_path=socket_path, policy=policy, quiet=quiet))
