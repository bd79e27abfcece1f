"""The functions that all commands share: how they fail, what they print, and which server they are about.

The law of this file: it imports nothing that a quick command does not need anyway. The help of the program is
a text for that reason: what click makes of the commands on 80 columns, which a test compares.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys

from .._linux.paths import SOCKET_VARIABLE, check_socket_path, default_socket

EX_UNAVAILABLE = 69

HELP = """\
Usage: aiotimer [OPTIONS] COMMAND [ARGS]...

  A watchdog for Python workers.

  A worker puts a countdown around a block of code (`with
  aiotimer.expires(after=60):`); the timer server, another process, reaps the
  worker if the block is not left in time.

  Protect a program and everything it starts:
      aiotimer run -- python train.py
  See what is armed:
      aiotimer status
  See why a worker was reaped:
      aiotimer why

  Commands find the server by --socket, then $AIOTIMER_SOCKET, then the
  per-user default. Without any of these, status and dump look at every
  server of yours; why, history and suggest read what all have recorded.

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Commands:
  run      Run a command, protected by a server of its own.
  serve    Run the timer server.
  status   Show workers and their armed timers.
  ping     Check that a server answers and looks on time.
  resume   Reap again after too many reaps.
  why      Say why a worker was reaped.
  history  Show what has happened.
  suggest  Propose limits, from how long blocks took.
  dump     Say what a living worker is doing.
  help     Explain the program, or one command.
"""


class Failed(Exception):
    """A command has failed: what is to be said of it, and the exit status."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def resolve_socket(socket_path: str | None) -> str:
    """Return the socket that a command is about."""
    return check_socket_path(socket_path or os.environ.get(SOCKET_VARIABLE) or default_socket())


def say(line: str, end: str = "\n") -> None:
    """Print a line of the result."""
    if sys.stdout is not None:  # as print() has it: it was closed when Python started
        sys.stdout.write(line + end)
        sys.stdout.flush()


def write_page(page: str, name: str) -> None:
    """Write a page into a file; ``-`` is standard output."""
    if name == "-":
        say(page, end="")
    else:
        with open(name, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(page)


def reader_has_gone(within: float = 0.0) -> bool:
    """Whether nobody reads what we print any more: it is a pipe, or a socket, whose other end is closed.

    Args:
        within: seconds to wait for that.
    """
    poll = select.poll()
    with contextlib.suppress(AttributeError, OSError):  # there is no output, or it is no file
        poll.register(sys.stdout.fileno(), 0)  # these two are always told
    return any(events & (select.POLLERR | select.POLLHUP) for _descriptor, events in poll.poll(1000 * within))


def warn(message: str) -> None:
    """Say on standard error, in one line, what is wrong and does not keep a command from going on."""
    with contextlib.suppress(OSError, AttributeError):  # nobody reads that either
        sys.stderr.write("aiotimer: " + " ".join(message.split()) + "\n")


# -- numbers and moments, for people ----------------------------------------------------------------------


def count(number: int, noun: str) -> str:
    """Return how many there are of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def seconds(value: float) -> str:
    """Return a duration: milliseconds when it is short, minutes and hours when it is long."""
    if abs(value) < 0.0995:  # from here on two digits of milliseconds would be 1e+02
        return f"{1000 * value:.2g} ms" if value else "0 ms"
    if abs(value) < 10:
        return f"{value:.3f} s"
    if abs(value) < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def moment(wall_time: float) -> str:
    """Return a moment in local time, with the zone; "at an unknown time" if the clock cannot say."""
    from datetime import UTC, datetime

    try:
        return f"{datetime.fromtimestamp(wall_time, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"


def mebibytes(size: int) -> str:
    """Return a size."""
    return f"{size / 2**20:.0f} MiB"
