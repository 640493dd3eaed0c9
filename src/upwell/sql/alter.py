"""The grammar of ALTER TABLE: one operation, ADD COLUMN.

Law: what this release can't do to a table, or to a column that rows have to get at once, is refused by
name with what to use instead.
"""

from upwell.errors import InvalidSql
from upwell.sql.column import Draft, Refused, read_column
from upwell.sql.lex import Tokens
from upwell.sql.statements import ColumnDefinition
from upwell.sql.tree import AddColumnTree


class _Refused(InvalidSql):
    prefix = "Invalid SQL: Invalid ALTER TABLE statement: "


def parse_add_column(tokens: Tokens) -> AddColumnTree:
    """Read ALTER [USER|SHARED|STREAM] TABLE t ADD [COLUMN] [IF NOT EXISTS] c type [NOT NULL] [DEFAULT v]."""
    tokens.expect("ALTER")
    if not tokens.sees("TABLE"):
        tokens.take()
    tokens.expect("TABLE")
    table = tokens.qualified()
    if tokens.at_end:
        raise tokens.unexpected("ADD COLUMN")
    if not tokens.accept("ADD"):
        operation = tokens.peek().text.upper()[:60]
        raise InvalidSql(
            f"Unsupported statement type: ALTER TABLE … {operation}; this release has ADD COLUMN only"
        )
    tokens.accept("COLUMN")
    if_not_exists = tokens.accept("IF", "NOT", "EXISTS")
    return AddColumnTree(table, _added_column(tokens), if_not_exists)


def _added_column(tokens: Tokens) -> ColumnDefinition:
    draft = Draft()
    try:
        read_column(tokens, draft)
    except Refused as refusal:
        raise _Refused(refusal.args[0]) from refusal
    (column,) = draft.columns
    name = column.name
    if column.primary_key:
        raise _Refused(f"column '{name}' cannot become the PRIMARY KEY; a table keeps the one it has")
    if draft.parents:
        raise _Refused(f"column '{name}' cannot have REFERENCES; only CREATE TABLE can declare them")
    if column.default is not None and column.default.function is not None:
        raise _Refused(
            f"DEFAULT of column '{name}' must be a literal, which existing rows show too; "
            "add the column without it and UPDATE the rows"
        )
    if not column.nullable and column.default is None:
        raise _Refused(f"column '{name}' is NOT NULL and needs a DEFAULT for the rows that exist")
    return column
