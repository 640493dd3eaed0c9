"""Renewal: what a commit expects, after its rows have changed tiers since it was evaluated.

Law: a flush and a compaction change no row. An expectation that only they have overtaken is put as the same
fact is written now; a row that anybody has changed since is left to fail. The log says who changed what.
"""

import msgspec

from upwell.engine.in_force import decode_manifest_record, partition_name, partition_named
from upwell.storage.hot import (
    NO_SEQ,
    Batch,
    Expectation,
    HotReader,
    Kind,
    RecordIs,
    RowIs,
    RowWrite,
    partition_floor,
)
from upwell.types import Key, Owner, TableId

CHANGES_MAX = 1_000
"""With more changes of a partition since, who evaluated before them does it again."""


class Renewal:
    """Judges the expectations of one batch in the newest state, whose lock is held."""

    def __init__(self, batch: Batch, newest: HotReader) -> None:
        self._batch = batch
        self._newest = newest
        self._changed: dict[tuple[TableId, Owner], frozenset[Key] | None] = {}

    def renew(self) -> bool:
        """Expect what the batch relied on as it is written now; whether anything is written otherwise."""
        batch = self._batch
        expectations = [self._renewed(each) for each in batch.expectations]
        rows = [self._renewed_row(each) for each in batch.rows]
        is_any = expectations != batch.expectations or any(
            new is not old for new, old in zip(rows, batch.rows, strict=True)
        )
        batch.expectations, batch.rows = expectations, rows
        return is_any

    def _renewed(self, each: Expectation) -> Expectation:
        match each:
            case RowIs(table, owner, key, seq) if self._has_become_cold(table, owner, key, seq):
                return RowIs(table, owner, key, NO_SEQ)
            case RecordIs(Kind.MANIFEST, name, value) if not self._writes(name):
                now = self._newest.find_record(Kind.MANIFEST, name)
                was_until = decode_manifest_record(value).flushed_until
                # What isn't hot was looked up in what is cold, and a compaction changes no answer.
                if was_until == decode_manifest_record(now).flushed_until or self._is_untouched(name):
                    return RecordIs(Kind.MANIFEST, name, now)
        return each

    def _renewed_row(self, row: RowWrite) -> RowWrite:
        if self._has_become_cold(row.table, row.owner, row.key, row.expect):
            return msgspec.structs.replace(row, expect=NO_SEQ)
        return row

    def _has_become_cold(self, table: TableId, owner: Owner, key: Key, seq: int) -> bool:
        """Whether the version `seq` of a key was hot, isn't any more, and is the newest nevertheless."""
        if seq == NO_SEQ or self._newest.find_seq(table, owner, key) != NO_SEQ:
            return False
        record = self._newest.find_record(Kind.MANIFEST, partition_name(table, owner))
        changed = self._keys_changed(table, owner)
        return (
            seq <= decode_manifest_record(record).flushed_until and changed is not None and key not in changed
        )

    def _is_untouched(self, name: str) -> bool:
        """Whether nobody has changed the rows of a partition that the batch is about."""
        table, owner = partition_named(name)
        changed = self._keys_changed(table, owner)
        return changed is not None and changed.isdisjoint(self._keys(table, owner))

    def _keys(self, table: TableId, owner: Owner) -> set[Key]:
        batch = self._batch
        rows = {row.key for row in batch.rows if (row.table, row.owner) == (table, owner)}
        return rows | {
            each.key
            for each in batch.expectations
            if isinstance(each, RowIs) and (each.table, each.owner) == (table, owner)
        }

    def _keys_changed(self, table: TableId, owner: Owner) -> frozenset[Key] | None:
        """Return the keys of a partition that were changed since the evaluation; None: nobody knows."""
        partition = (table, owner)
        if partition not in self._changed:
            self._changed[partition] = self._read_changed(table, owner)
        return self._changed[partition]

    def _read_changed(self, table: TableId, owner: Owner) -> frozenset[Key] | None:
        seen = self._batch.seen
        if not seen or partition_floor(self._newest, table, owner).seq > seen:
            return None
        changes = self._newest.read_log(table, owner, seen, None, CHANGES_MAX + 1)
        return None if len(changes) > CHANGES_MAX else frozenset(change.key for change in changes)

    def _writes(self, name: str) -> bool:
        return any(each.kind is Kind.MANIFEST and each.name == name for each in self._batch.records)
