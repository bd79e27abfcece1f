"""The command line: ``aiotimer serve | run | status | ping | why | history | suggest | dump``.

The laws of this package: an error is one line on standard error, never a traceback; what a command prints on
standard output is its result; exit statuses are those of sysexits(3), and of timeout(1) for ``run``.
"""

from __future__ import annotations

import os
import sys

import click

from .._linux.environment import SOCKET_VARIABLE
from .._linux.paths import check_socket_path, default_socket
from .._version import __version__
from ..errors import AiotimerError, Refused, ServerError, ServerUnavailable

EX_UNAVAILABLE = 69

HELP = """A watchdog for Python workers.

A worker puts a countdown around a block of code (`with aiotimer.expires(after=60):`); the timer server,
another process, reaps the worker if the block is not left in time.

\b
Protect a program and everything it starts:
    aiotimer run -- python train.py
See what is armed:
    aiotimer status
See why a worker was reaped:
    aiotimer why

Commands find the server by --socket, then $AIOTIMER_SOCKET, then the per-user default.
"""


@click.group(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="aiotimer")
def cli() -> None:
    """See ``HELP``."""


def socket_option(command: click.decorators.FC) -> click.decorators.FC:
    """Add ``--socket PATH`` to a command; the function gets ``socket_path``, a str or None."""
    text = f"The server's socket [default: ${SOCKET_VARIABLE}, then the per-user default]."
    return click.option("--socket", "socket_path", metavar="PATH", help=text)(command)


def resolve_socket(socket_path: str | None) -> str:
    """Return the socket that a command is about."""
    return check_socket_path(socket_path or os.environ.get(SOCKET_VARIABLE) or default_socket())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    from . import dump, history, run, serve, status, suggest, why  # noqa: F401 - each adds its commands

    try:
        code = cli.main(arguments, prog_name="aiotimer", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except ServerError as error:
        code = _complain(str(error), error.exit_code)
    except (Refused, ServerUnavailable) as error:
        code = _complain(str(error), EX_UNAVAILABLE)
    except AiotimerError as error:
        code = _complain(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the flush at exit would complain
        code = 141
    except OSError as error:
        code = _complain(str(error), 71)  # EX_OSERR
    sys.exit(code or 0)


def _complain(message: str, code: int) -> int:
    click.echo("aiotimer: " + " ".join(message.split()), err=True)
    return code
