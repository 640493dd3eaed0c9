"""Conditions that only the query engine can decide, asked of rows that changed.

Law: a row matches if SELECT with that WHERE would return it, had it been alone in its table; the query engine
itself says so. A row for which it has no answer (1/0, a cast that fails) has that failure as its verdict, and
no other row is touched by it.
"""

from collections.abc import Mapping
from itertools import islice
from threading import Lock

import pyarrow as pa

from upwell.engine.catalog import Table
from upwell.engine.named_query import quoted
from upwell.engine.query import QueryEngine
from upwell.engine.view import View
from upwell.errors import QueryFailure
from upwell.storage.arrow import SEQ, row_batch
from upwell.types import Row

KEPT_MAX = 64
"""Verdicts that others may want, too: there can be a condition for each of many subscriptions."""

Verdicts = Mapping[int, bool | QueryFailure]
"""By the `_seq` of a version of a row: whether it matches, or why nobody can tell."""


class Condition:
    """A WHERE over one version of a table; thread-safe, and shared by all who ask the same.

    `names` are the columns that it reads. Verdicts on the newest versions are kept, so that each is asked for
    once, whoever follows it.
    """

    def __init__(self, query: QueryEngine, table: Table, where: str, names: frozenset[str]) -> None:
        self.columns = frozenset(table.index_of[name] for name in names)
        self._query = query
        self._names = names
        self._table = table
        self._where = where
        self._kept: dict[int, bool | QueryFailure] = {}
        self._deciding = Lock()
        self._next: Condition | None = None
        self._following = Lock()

    def on(self, table: Table) -> "Condition":
        """Return the condition on another version of the table, the same one for all who share this."""
        with self._following:
            if self._next is None or self._next._table.version != table.version:
                self._next = Condition(self._query, table, self._where, self._names)
            return self._next

    def check(self, view: View) -> None:
        """Raise what a SELECT with this WHERE raises, whatever the rows are; blocks its thread."""
        self._matching(view, {})

    def decide(self, view: View, rows: Mapping[int, Row]) -> Verdicts:
        """Return the verdicts on versions of rows, given by their `_seq`; blocks its thread."""
        with self._deciding:
            unknown = {seq: row for seq, row in rows.items() if seq not in self._kept}
            if unknown:
                self._kept.update(self._decided(view, unknown))
            found = {seq: self._kept[seq] for seq in rows}
            for seq in list(islice(self._kept, max(len(self._kept) - KEPT_MAX, 0))):
                del self._kept[seq]
        return found

    def _decided(self, view: View, rows: Mapping[int, Row]) -> dict[int, bool | QueryFailure]:
        try:
            matching = self._matching(view, rows)
        except QueryFailure as failure:
            if len(rows) == 1:
                return dict.fromkeys(rows, failure)
            half = dict(islice(rows.items(), len(rows) // 2))
            rest = {seq: row for seq, row in rows.items() if seq not in half}
            return self._decided(view, half) | self._decided(view, rest)
        return {seq: seq in matching for seq in rows}

    def _matching(self, view: View, rows: Mapping[int, Row]) -> set[int]:
        table = self._table
        given = pa.Table.from_batches([row_batch(list(rows.values()), list(rows), table.columns)])
        name = (table.namespace, table.name)
        # The line break ends a comment that the predicate may end with.
        text = f'SELECT "{SEQ}" FROM {quoted(name[0])}.{quoted(name[1])} WHERE ({self._where}\n)'
        found = self._query.run(view, text, table.namespace, [name], lambda *_: given)
        return set(found.column(0).to_pylist())
