"""Pending: how much of each partition is hot and not yet cold, and so which partitions are due for a flush.

Law: every committed change is counted once, at the price of an addition; a flush takes the count with it and
gives it back if it fails. After a start the rows found hot are counted instead of their changes, at most as
many as make a partition due.

Changed under the committer's lock only; read by any thread at any time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from upwell.engine.catalog import Table
from upwell.engine.flush_policy import NEVER, POLICY_OPTION, FlushPace, FlushPolicy, parse_policy
from upwell.ids import snowflake_ms
from upwell.storage.hot import Change
from upwell.types import Owner, TableId

NO_LIMIT = 1 << 62
WAITING_LOOK_S = 10.0
"""How long small partitions that wait are not looked at again."""


@dataclass(slots=True)
class Count:
    """The changes of one partition that are hot; `since` is the `_seq` of the first of them."""

    rows: int
    since: int
    limit: int

    def age_s(self, now_us: int) -> float:
        return now_us / 1_000_000 - snowflake_ms(self.since) / 1000


class Pending:
    """Counts by table and owner."""

    def __init__(self, pace: FlushPace) -> None:
        self._pace = pace
        self._policies: dict[int, FlushPolicy] = {}
        self._counts: dict[int, dict[str, Count]] = {}
        self._crossed: set[tuple[int, str]] = set()
        self._flushing: dict[tuple[int, str], Count] = {}
        self._look_at_us: dict[int, int] = {}

    def policy(self, table: Table) -> FlushPolicy:
        """Return what holds for a table: its own policy, or the server's; rows that expire stay hot."""
        if table.is_ephemeral:
            return NEVER
        text = table.options.get(POLICY_OPTION)
        return self._pace.default if text is None else parse_policy(text)

    def define(self, table: Table) -> None:
        """Take note of a table that is new, or has another policy."""
        policy = self.policy(table)
        if self._policies.get(table.id) != policy:
            self._policies[table.id] = policy
            self._look_at_us.pop(table.id, None)
            for owner, count in self._counts.get(table.id, {}).items():
                count.limit = policy.rows_max or NO_LIMIT
                (self._crossed.add if count.rows >= count.limit else self._crossed.discard)((table.id, owner))

    def forget(self, table: int) -> None:
        """A table was dropped."""
        self._policies.pop(table, None)
        self._counts.pop(table, None)
        self._look_at_us.pop(table, None)
        self._crossed = {each for each in self._crossed if each[0] != table}

    def note(self, changes: Sequence[Change]) -> None:
        """Count the changes of a commit."""
        table, owner, count = -1, "", None
        for change in changes:
            if change.table != table or change.owner != owner:
                table, owner = change.table, change.owner
                count = self._counts.get(table, {}).get(owner) or self._begin_count(change)
            if count is not None:
                count.rows += 1
                if count.rows == count.limit:
                    self._crossed.add((table, owner))

    def add(self, table: TableId, owner: Owner, rows: int, since: int) -> None:
        """Count rows that were hot before the first change was noted."""
        self._merge(table, owner, rows, since)

    def begin(self, table: TableId, owner: Owner) -> None:
        """A flush begins, and takes what has been counted with it."""
        count = self._counts.get(table, {}).pop(owner, None)
        self._crossed.discard((table, owner))
        if count is not None:
            self._flushing[table, owner] = count

    def end(self, table: TableId, owner: Owner, left: tuple[int, int] | None) -> None:
        """The flush has ended; `left` are rows, and since when, that it wasn't asked for; None: it failed."""
        taken = self._flushing.pop((table, owner), None)
        if left is None and taken is not None:
            left = taken.rows, taken.since
        if left is not None:
            self._merge(table, owner, *left)

    def due_tables(self, now_us: int) -> list[TableId]:
        """Return the tables that have partitions that are due, at a cost per table but for those due soon."""
        tables = {table for table, _ in list(self._crossed)}
        for table, policy in list(self._policies.items()):
            if policy.age_s_max is not None and table not in tables and self._is_aged(table, policy, now_us):
                tables.add(table)
        return [TableId(table) for table in sorted(tables)]

    def due_owners(self, table: TableId, now_us: int) -> list[Owner]:
        """Return the owners whose partitions are due now."""
        policy = self._policies.get(table, NEVER)
        counts = self._counts.get(table, {})
        full = [owner for each, owner in list(self._crossed) if each == table]
        aged = [] if policy.age_s_max is None else self._aged(table, policy.age_s_max, now_us)
        return [Owner(owner) for owner in dict.fromkeys((*full, *aged)) if owner in counts]

    def _begin_count(self, change: Change) -> Count | None:
        policy = self._policies.get(change.table, NEVER)
        if policy == NEVER:
            return None
        count = Count(0, change.seq, policy.rows_max or NO_LIMIT)
        self._counts.setdefault(change.table, {})[change.owner] = count
        return count

    def _merge(self, table: int, owner: str, rows: int, since: int) -> None:
        policy = self._policies.get(table, NEVER)
        if policy == NEVER or not rows:
            return
        counts = self._counts.setdefault(table, {})
        count = counts.setdefault(owner, Count(0, since, policy.rows_max or NO_LIMIT))
        count.rows, count.since = count.rows + rows, min(count.since, since)
        self._look_at_us.pop(table, None)
        if count.rows >= count.limit:
            self._crossed.add((table, owner))

    def _is_aged(self, table: int, policy: FlushPolicy, now_us: int) -> bool:
        """Look through a table's partitions, unless none of them can be due yet."""
        assert policy.age_s_max is not None, "asked only for tables with an interval"
        if self._counts.get(table) and self._look_at_us.get(table, 0) <= now_us:
            return bool(self._aged(table, policy.age_s_max, now_us))
        return False

    def _aged(self, table: int, age_s_max: int, now_us: int) -> list[str]:
        large: list[str] = []
        small: list[str] = []
        oldest_s = 0.0
        counts = self._counts.get(table, {})
        for owner in list(counts):
            count = counts.get(owner)
            if count is None:
                continue  # flushed at this moment
            age_s = count.age_s(now_us)
            if age_s < age_s_max:
                oldest_s = max(oldest_s, age_s)
            elif count.rows >= self._pace.small_rows or age_s >= self._pace.small_age_s:
                large.append(owner)
            else:
                small.append(owner)
        is_held = len(small) > self._pace.small_count_max
        due = large if is_held else large + small
        if not due:
            pause_s = min(age_s_max - oldest_s, WAITING_LOOK_S if is_held else age_s_max)
            self._look_at_us[table] = now_us + round(pause_s * 1_000_000)
        return due
