"""The command ``aiotimer run``, as click parses it; ``run_command`` carries it out."""

from __future__ import annotations

from math import inf

import click

from .group import cli
from .options import Duration, as_arguments, run_options
from .run_command import Limits
from .run_command import run as run_command


@cli.command(
    short_help="Run a command, protected by a server of its own.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--socket", "socket_path", metavar="PATH", help="Where its server listens [default: private].")
@run_options
@click.option(
    "--after", type=Duration(), metavar="DURATION",
    help="End COMMAND with SIGTERM if it runs longer than that, as timeout(1) does.",
)  # fmt: skip
@click.option(
    "--kill-after", type=Duration(), metavar="DURATION",
    help="With SIGKILL, if it still runs so long after that.",
)  # fmt: skip
@click.option(
    "--preserve-status", is_flag=True,
    help="Exit with COMMAND's own status, also if it was reaped or ran too long.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="Do not say at the end why workers were reaped.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.pass_context
def run(
    context: click.Context,
    socket_path: str | None,
    reap: str | None,
    target: str,
    on_expiry: str,
    observe: bool,
    evidence_dir: str | None,
    after: float | None,
    kill_after: float | None,
    preserve_status: bool,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with a timer server of its own, found by it and its children in $AIOTIMER_SOCKET.

    The server is restarted if it dies. Signals are forwarded. At the end, what is known of the workers that
    were reaped is printed on standard error, as by `aiotimer why`. The exit status is the command's own
    (128+N if signal N ended it); 124 if the command itself was reaped, however it ended then, or ran longer
    than --after (--preserve-status: its own then, too), 125 if aiotimer failed, 126 if the command cannot be
    run, 127 if it is not found.
    """
    for option, value in (("--after", after), ("--kill-after", kill_after)):
        if value is not None and not 0.0 < value < inf:
            raise click.BadParameter("it must be above 0", param_hint=option)
    if kill_after is not None and after is None:
        raise click.UsageError("--kill-after counts from the end of --after: give that too")
    policy = as_arguments(reap, target, on_expiry, observe, evidence_dir)
    limits = Limits(after, kill_after, preserve_status)
    context.exit(run_command([*command], socket_path=socket_path, policy=policy, limits=limits, quiet=quiet))
