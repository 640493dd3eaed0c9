"""Values that rows have to have: whether a column may become NOT NULL, or a reference.

Law: the answer is that of one View, over all owners and both tiers.
"""

from dataclasses import dataclass

from upwell.engine.alter import Need
from upwell.engine.catalog import Table
from upwell.engine.query import QueryEngine
from upwell.engine.rows import Rows
from upwell.engine.schema import refuse_value
from upwell.engine.source import Source
from upwell.engine.view import View


@dataclass(frozen=True, slots=True)
class RowCheck:
    """Looks for rows that have not what is needed; blocks its thread."""

    rows: Rows
    query: QueryEngine

    def __call__(self, view: View, table: Table, need: Need) -> None:
        """Raise `ConstraintViolation` if there is one; if the column is new, each row has NULL."""
        name = need.column.name
        has_not = f' WHERE "{name}" IS {"" if need.is_value else "NOT "}NULL'
        where = has_not if name in table.index_of else ""
        text = f'SELECT 1 AS found FROM "{table.namespace}"."{table.name}"{where} LIMIT 1'
        place = (table.namespace, table.name)
        for owner in self.rows.owners(view.hot, table):
            source = Source(table, owner)
            found = self.query.run(view, text, table.namespace, [place], lambda *_, it=source: it)
            if found.num_rows:
                refuse_value(table, need, None if need.is_value else True)
