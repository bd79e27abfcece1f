"""Where expiries are told of: to whoever listens to events, and to whoever keeps records.

The law of this file: a record is kept before its event is told, so that whoever hears of it finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from .events import Event, Kind, log

if TYPE_CHECKING:
    from ._record import Expiry

Keep: TypeAlias = Callable[[dict[str, Any], str, str], object]
"""``keep(record, stacks_text, tasks_text)``: called when evidence has been gathered, and at every change."""

PathOf: TypeAlias = Callable[[str], str]
"""``path_of(record_id)``: the directory where a record will be kept, "" if it is not."""


class Teller:
    """Tells of expiries.

    Args:
        emit: takes events.
        keep: takes records, None: nobody does.
        path_of: see :data:`PathOf`.
    """

    def __init__(self, emit: Callable[[Event], None], keep: Keep | None, path_of: PathOf) -> None:
        self.emit = emit
        self.keeps = keep is not None
        self._keep = keep
        self._path_of = path_of

    def keep(self, expiry: Expiry) -> None:
        """Keep what is known of an expiry by now."""
        if self._keep is None:
            return
        try:
            expiry.evidence = self._path_of(expiry.id)
            stacks, tasks = ("", "") if expiry.findings is None else expiry.findings[-2:]
            self._keep(expiry.record(), stacks, tasks)
        except Exception:  # noqa: BLE001 - logged; what is not kept is still told
            log.exception("the record of an expiry could not be kept")

    def tell(self, expiry: Expiry, kind: Kind, outcome: str, detail: str = "") -> None:
        """Something has become of an expiry."""
        expiry.becomes(kind, outcome, detail)
        self.keep(expiry)
        self.emit(expiry.event())
