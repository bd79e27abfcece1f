"""The command line: ``aiotimer serve | run | status | ping | why | history | suggest | dump``."""

from .entry import main

__all__ = ["main"]
