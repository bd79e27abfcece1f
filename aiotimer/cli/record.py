"""A printer of records, those of expiries and of what a worker is doing, for programs or for people."""

from __future__ import annotations

import json

from ..evidence.record import Record
from .common import say


def show(record: Record, *, as_json: bool) -> None:
    """Print a record, for programs or for people."""
    if as_json:
        say(json.dumps(record.as_json()))
        return
    from .page import print_page

    print_page(record)
