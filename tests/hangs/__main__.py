"""``python -m tests.hangs``: run the programs, and print the table for the documentation.

It needs everything that one of them needs: torch, gevent, and py-spy.
"""

from __future__ import annotations

import sys

from . import HANGS, run, table

if missing := {hang.missing() for hang in HANGS} - {""}:
    sys.exit(f"not installed: {', '.join(sorted(missing))}")
sys.stdout.write(table({hang.program: run(hang) for hang in HANGS}) + "\n")
