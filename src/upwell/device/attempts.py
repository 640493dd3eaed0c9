"""Attempts: what one upload has tried, and what it needn't try again.

Laws: a change that was not applied is tried again after something else was, since that may have been its
parent; one in endless conflict, or of a table that the server lacks, waits for the next upload. Rows that
refer to each other in a circle only come or go together: in the end each group of them goes in one batch.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from upwell.device.groups import Group, GroupsOf
from upwell.device.outbox import Outgoing, RowKey
from upwell.protocol.sync import FK_MISSING, HAS_CHILDREN, UNREGISTERED_TABLE, Status

CONFLICT_ROUNDS_MAX = 5
PACK_CHANGES_MAX = 10_000
"""How many changes of several groups go in one batch; a group that is larger goes alone."""
_SETTLED = ("applied", "conflict")


class Attempts:
    """The rows to leave out of the next batch; `limit` is how many changes a batch may have.

    `oversized` is how many changes are in groups that the server didn't take.
    """

    def __init__(self, limit: int, groups_of: GroupsOf) -> None:
        self.limit = limit
        self.skip: set[RowKey] = set()
        self.oversized = 0
        self._groups_of = groups_of
        self._hopeless: set[RowKey] = set()
        self._held: set[RowKey] = set()
        self._conflicts: Counter[RowKey] = Counter()
        # While groups are tried: those of this batch, those that are left, and what a batch was limited to.
        self._pack: list[Group] = []
        self._packs: list[list[Group]] = []
        self._limit_alone: int | None = None
        self._has_applied = False

    def note(self, batch: Sequence[Outgoing], statuses: Sequence[Status]) -> None:
        """Learn from the answers to a batch."""
        if any(status.status == "applied" for status in statuses):
            self._has_applied = True
            if self._limit_alone is None:
                self._forget()
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

    def halve(self, count: int) -> bool:
        """A batch of `count` changes was too large; return whether a half of it may go instead."""
        if self._limit_alone is None:
            self.limit = max(1, count // 2)
            return True
        self.skip |= self._held
        if len(self._pack) == 1:
            self.oversized += count
        else:
            waiting = [*self._pack, *(group for pack in self._packs for group in pack)]
            self._packs = _packed(waiting, count // 2)
        return False

    def widen(self) -> bool:
        """When nothing is left to try: let a group go together; False if that has been done with all."""
        if self._limit_alone is None:
            if len(self._held) <= self.limit:
                return False
            self._limit_alone, self._has_applied, self.oversized = self.limit, False, 0
            self._packs = _packed(self._groups_of(self._held), PACK_CHANGES_MAX)
        if self._packs:
            self._pack = self._packs.pop(0)
            together = set().union(*self._pack)
            self.limit = len(together)
            self.skip = (self.skip | self._held) - together
            return True
        self.limit, self._limit_alone = self._limit_alone, None
        if self._has_applied:
            self._forget()
        return self._has_applied

    def _forget(self) -> None:
        self.skip = set(self._hopeless)
        self._held = set()


def _packed(groups: Iterable[Group], changes_max: int) -> list[list[Group]]:
    """Put groups together, small ones first, that have so many changes at most."""
    packs: list[list[Group]] = []
    room = 0
    for group in sorted(groups, key=len):
        if len(group) > room:
            packs.append([])
            room = max(changes_max, len(group))
        packs[-1].append(group)
        room -= len(group)
    return packs
