"""The help of the program, as it is printed: a text, so that nothing need be imported to show it.

The law of this file: it is what click makes of the commands and their short helps on 80 columns, which a test
compares.
"""

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
  per-user default.

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Commands:
  dump     Say what a living worker is doing.
  history  Show what has happened.
  ping     Check that a server answers and looks on time.
  run      Run a command, protected by a server of its own.
  serve    Run the timer server.
  status   Show workers and their armed timers.
  suggest  Propose limits, from how long blocks took.
  why      Say why a worker was reaped.
"""
