"""SHOW STATS FOR TABLE: how much there is of a table, and who watches it.

Law: administrators count all owners' rows, everybody else their own.
"""

from dataclasses import dataclass

import pyarrow as pa

from upwell.engine.catalog import Table
from upwell.engine.query import QueryEngine
from upwell.engine.result import result_rows
from upwell.engine.rows import Rows
from upwell.engine.source import Source
from upwell.engine.stop import Stop
from upwell.engine.view import View
from upwell.feeds.live import LiveFeed
from upwell.session.fleet import Layout
from upwell.session.policy import Action, Principal, require_table
from upwell.session.system import made
from upwell.types import Owner, SqlType

_LAYOUT: Layout = [
    ("table_name", SqlType.TEXT), ("namespace", SqlType.TEXT), ("schema_version", SqlType.INT),
    ("logical_rows", SqlType.BIGINT), ("flushed_segments", SqlType.BIGINT),
    ("active_streams", SqlType.BIGINT), ("memory_bytes", SqlType.BIGINT),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableStats:
    """Counts; blocks its thread."""

    rows: Rows
    query: QueryEngine
    feed: LiveFeed

    def show(self, view: View, principal: Principal, table: Table, stop: Stop) -> pa.Table:
        """Return one row; raise `PermissionDenied` for a table that the principal may not read."""
        require_table(principal, Action.READ, table)
        everybody = principal.is_admin
        owners = self.rows.owners(view.hot, table) if everybody else [table.owner_for(principal.user)]
        watching = [
            found
            for found in self.feed.subscriptions()
            if (found.namespace, found.table_name) == (table.namespace, table.name)
            if everybody or found.user == principal.user
        ]
        row = (
            table.name, table.namespace, table.version,
            sum(self._count(view, table, owner, stop) for owner in owners),
            sum(self._segments(view, table, owner) for owner in owners), len(watching),
            sum(self.query.kept_bytes(table, owner) for owner in owners),
        )  # fmt: skip
        return made(_LAYOUT, [row])

    def _count(self, view: View, table: Table, owner: Owner, stop: Stop) -> int:
        text = f'SELECT COUNT(*) FROM "{table.namespace}"."{table.name}"'
        name, source = (table.namespace, table.name), Source(table, owner)
        found = self.query.run(view, text, table.namespace, [name], lambda *_: source, stop=stop)
        ((count,),) = result_rows(found)
        assert isinstance(count, int), "a count is a number"
        return count

    def _segments(self, view: View, table: Table, owner: Owner) -> int:
        partition = self.rows.cold_partition(view.hot, table, owner)
        return 0 if partition is None else len(partition.manifest.segments)
