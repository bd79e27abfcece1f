"""``python -m tests.hangs``: run the programs, and print the table for the documentation.

It needs everything that one of them needs: torch, gevent, and py-spy.
"""

from __future__ import annotations

import sys

from . import HANGS, Runs, table

if missing := {hang.missing() for hang in HANGS} - {""}:
    sys.exit(f"not installed: {', '.join(sorted(missing))}")
with Runs() as runs:
    sys.stdout.write(table({hang.program: runs.run(hang) for hang in HANGS}) + "\n")
