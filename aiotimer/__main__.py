"""The command line, as ``python -m aiotimer`` calls it."""

from .cli import main

main()
