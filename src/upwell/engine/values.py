"""Values that have to be there: whether a column may become NOT NULL.

Law: the answer is that of one View, over all owners and both tiers.
"""

from dataclasses import dataclass

from upwell.engine.catalog import Table
from upwell.engine.query import QueryEngine
from upwell.engine.rows import Rows
from upwell.engine.schema import refuse_value
from upwell.engine.source import Source
from upwell.engine.view import View
from upwell.types import Column


@dataclass(frozen=True, slots=True)
class NullCheck:
    """Looks for NULL in a column; blocks its thread."""

    rows: Rows
    query: QueryEngine

    def __call__(self, view: View, table: Table, column: Column) -> None:
        """Raise `ConstraintViolation` if a row has NULL there; if the column is new, each row has."""
        where = f' WHERE "{column.name}" IS NULL' if column.name in table.index_of else ""
        text = f'SELECT 1 AS found FROM "{table.namespace}"."{table.name}"{where} LIMIT 1'
        name = (table.namespace, table.name)
        for owner in self.rows.owners(view.hot, table):
            source = Source(table, owner)
            found = self.query.run(view, text, table.namespace, [name], lambda *_, it=source: it)
            if found.num_rows:
                refuse_value(table, column, None)
