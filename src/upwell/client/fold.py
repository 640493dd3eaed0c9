"""A live query folded into a table: snapshot + deltas = SELECT.

Law: applying every change of a live query in order leaves exactly the rows that its SELECT returns. An
update's row has every column that is not NULL, so a column that it lacks is NULL now.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from upwell.client.steps import Change
from upwell.protocol.messages import FieldSchema

Key = Any
"""A row's primary key: the value, or a tuple of the values if there are several columns."""

_SYSTEM_COLUMNS = frozenset({"_seq", "_deleted"})


class LiveTable:
    """Rows by primary key, without the system columns; `seqs` has each row's `_seq`."""

    def __init__(self, key: Sequence[str], columns: Iterable[str] = ()) -> None:
        if not key:
            raise ValueError("a live table needs the primary key among the columns of its query")
        self.rows: dict[Key, dict[str, Any]] = {}
        self.seqs: dict[Key, int] = {}
        self._key = tuple(key)
        self._columns = tuple(name for name in columns if name not in _SYSTEM_COLUMNS)

    @classmethod
    def of(cls, schema: Iterable[FieldSchema]) -> "LiveTable":
        """Build an empty table for the schema of a live query, whose flags tell the primary key."""
        fields = tuple(schema)
        return cls([field.name for field in fields if "pk" in field.flags], [field.name for field in fields])

    def apply(self, change: Change) -> None:
        """Fold one change; one that is not newer than what the table has of its row is ignored."""
        key = self._key_of(change.row)
        if change.seq <= self.seqs.get(key, -1):
            return
        if change.kind == "delete":
            self.rows.pop(key, None)
            self.seqs.pop(key, None)
        else:
            self.rows[key] = self._complete(change.row, self.rows.get(key, {}))
            self.seqs[key] = change.seq

    def _complete(self, row: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        whole = dict.fromkeys((*self._columns, *before))
        whole |= {name: value for name, value in row.items() if name not in _SYSTEM_COLUMNS}
        return whole

    def _key_of(self, row: dict[str, Any]) -> Key:
        if len(self._key) == 1:
            return row[self._key[0]]
        return tuple(row[name] for name in self._key)
