"""``python -m aiotimer`` is the command line."""

from .cli import main

main()
