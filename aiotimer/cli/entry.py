"""The entry point of the command line: what is plain is done at once, and click parses the rest.

The laws of this file:

* An error is one line on standard error, never a traceback; what a command prints on standard output is its
  result; exit statuses are those of sysexits(3), and of timeout(1) for ``run``.
* Whoever reads may go, as ``head`` does, or have an encoding that lacks a character: the first ends the
  command as SIGPIPE would, with 141, and the second is shown its escape.
* A command imports what it needs, when it is called. What people or programs call often is done without
  click where it is plain what is meant: click takes three times as long to import as Python to start.
  Whatever is not plain is click's, and so is every mistake.
* The collector of garbage would take a fifth of the time: while a command imports what it needs, which stays,
  and at the end, when all goes anyway. It is spared both.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys

from .._version import __version__
from ..errors import AiotimerError, Refused, ServerError, ServerUnavailable
from .common import EX_UNAVAILABLE, HELP, Failed, reader_has_gone, resolve_socket, say, warn

COLLECTED_AFTER = 100_000
"""Objects made, and not freed, from which on garbage is worth looking for. Few commands make more."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    gc.set_threshold(COLLECTED_AFTER)
    try:
        sys.exit(_run(sys.argv[1:] if arguments is None else arguments))
    finally:
        gc.freeze()


def _run(arguments: list[str]) -> int:
    """Run a command line; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _call(arguments)
    except Failed as error:
        code = _complain(str(error), error.exit_code)
    except ServerError as error:
        code = _complain(str(error), error.exit_code)
    except (Refused, ServerUnavailable) as error:
        code = _complain(str(error), EX_UNAVAILABLE)
    except AiotimerError as error:
        code = _complain(str(error), 1)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
    except SystemExit as error:  # click's, which has another status for it
        if error.code != 1 or not reader_has_gone():
            raise
        code = 141
    except OSError as error:
        code = _complain(str(error), 71)  # EX_OSERR
    _flush()
    return code


def _flush() -> None:
    """Give up what cannot be written: Python would complain of it when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _call(arguments: list[str]) -> int:
    """Do what the command line says and return the exit status; with click, unless it is plain."""
    match arguments:
        case ["--version"]:
            say(f"aiotimer, version {__version__}")
        case ["-h" | "--help" | "help"]:
            say(HELP, end="")
        case ["ping"] | ["ping", "--socket", _]:
            ping(*arguments[2:])
        case ["run", "--", _, *_]:
            from .run_command import run

            return run(arguments[2:])
        case ["serve", *options]:
            from .serve_command import plain, serve

            given = plain(options)
            if given is None:
                return _call_with_click(arguments)
            serve(**given)
        case ["watchdog", "--socket", path, "--owner", owner, "--ready-fd", ready, "--", *options]:
            from .._linux.requirements import check_requirements
            from .supervisor import supervise

            check_requirements()
            return supervise(path, owner, int(ready), tuple(options))
        case _:
            return _call_with_click(arguments)
    return 0


def _call_with_click(arguments: list[str]) -> int:
    from .group import call

    return call(arguments)


def ping(socket_path: str | None = None, *, as_json: bool = False) -> None:
    """Say that a server answers and looks on time.

    Raises:
        Failed: it does not look on time.
        AiotimerError: it does not answer.
    """
    from .._core.layout import LATE
    from ..client import control

    path = resolve_socket(socket_path)
    pong = control.ping(path)
    late = f"its heartbeat was at most {pong.lag_s * 1000:.0f} ms late in the last minute"
    if as_json:
        import json

        say(json.dumps({"socket": path, "pid": pong.pid, "lag_s": pong.lag_s}))
    if pong.lag_s > LATE:
        raise Failed(f"the timer server at {path} is alive but slow: {late}", EX_UNAVAILABLE)
    if not as_json:
        say(f"the timer server at {path} (pid {pong.pid}) is fine: {late}")


def _complain(message: str, code: int) -> int:
    warn(message)
    return code
