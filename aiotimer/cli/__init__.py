"""The command line: ``aiotimer serve | run | status | ping | why | history | suggest | dump | resume``."""

from .entry import main

__all__ = ["main"]
