"""Attempts: what one upload has tried, and what it needn't try again.

Laws: a change that was not applied is tried again after something else was, since that may have been its
parent; one in endless conflict, or of a table that the server lacks, waits for the next upload. Rows that
refer to each other in a circle only come or go together: in the end what waits for others goes in one batch.
"""

from collections import Counter
from collections.abc import Sequence

from upwell.device.outbox import Outgoing, RowKey
from upwell.protocol.sync import FK_MISSING, HAS_CHILDREN, UNREGISTERED_TABLE, Status

CONFLICT_ROUNDS_MAX = 5
CIRCLE_CHANGES_MAX = 10_000
_SETTLED = ("applied", "conflict")


class Attempts:
    """The rows to leave out of the next batch; `limit` is how many changes a batch may have."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skip: set[RowKey] = set()
        self._hopeless: set[RowKey] = set()
        self._held: set[RowKey] = set()
        self._conflicts: Counter[RowKey] = Counter()
        self._is_widened = False

    def note(self, batch: Sequence[Outgoing], statuses: Sequence[Status]) -> None:
        """Learn from the answers to a batch."""
        if any(status.status == "applied" for status in statuses):
            self.skip = set()
            self._held = set()
        for sent, status in zip(batch, statuses, strict=True):
            reason = status.invalid.reason if status.invalid is not None else None
            if status.status not in _SETTLED:
                self.skip.add(sent.row)
            if reason in (FK_MISSING, HAS_CHILDREN):
                self._held.add(sent.row)
            if status.status == "conflict":
                self._conflicts[sent.row] += 1
            if reason == UNREGISTERED_TABLE or self._conflicts[sent.row] >= CONFLICT_ROUNDS_MAX:
                self._hopeless.add(sent.row)
        self.skip |= self._hopeless

    def halve(self, count: int) -> None:
        """A batch of `count` changes was too large."""
        self.limit = max(1, count // 2)

    def widen(self) -> bool:
        """Once, when nothing is left to try: let all go together that others hold, if it never did."""
        if self._is_widened or len(self._held) <= self.limit:
            return False
        self._is_widened = True
        self.limit = min(len(self._held), CIRCLE_CHANGES_MAX)
        self.skip -= self._held
        return True
