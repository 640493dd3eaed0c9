"""The grammar of one column: its type, default, constraints and references.

Law: what this release can't keep (a type, a constraint) is refused by name with what to use instead;
nothing is parsed and ignored.
"""

import re
from dataclasses import dataclass, field, replace

from upwell.engine.catalog import OnDelete
from upwell.errors import InvalidSql, InvalidValue
from upwell.sql.lex import Tokens, string_value
from upwell.sql.scalar import CONTEXT_FUNCTIONS, SYSTEM_COLUMNS, number_value
from upwell.sql.statements import ColumnDefinition, CompositeReference
from upwell.sql.tree import TableName
from upwell.types import Column, Default, SqlType, fitted

_TYPES = {
    **dict.fromkeys(("BOOLEAN", "BOOL"), SqlType.BOOLEAN),
    **dict.fromkeys(("SMALLINT", "INT2"), SqlType.SMALLINT),
    **dict.fromkeys(("INT", "INTEGER", "INT4"), SqlType.INT),
    **dict.fromkeys(("BIGINT", "INT8", "SERIAL", "BIGSERIAL"), SqlType.BIGINT),
    **dict.fromkeys(("DOUBLE", "FLOAT8"), SqlType.DOUBLE),
    **dict.fromkeys(("TEXT", "VARCHAR", "CHAR", "STRING"), SqlType.TEXT),
    **dict.fromkeys(("JSON", "JSONB"), SqlType.JSON),
    **dict.fromkeys(("BYTES", "BYTEA", "BLOB"), SqlType.BYTES),
    "TIMESTAMP": SqlType.TIMESTAMP,
    "UUID": SqlType.UUID,
}
_INSTEAD = {
    **dict.fromkeys(("FLOAT", "REAL", "FLOAT4"), "DOUBLE"),
    **dict.fromkeys(("DECIMAL", "NUMERIC"), "BIGINT in the smallest unit, TEXT or DOUBLE"),
    **dict.fromkeys(("DATE", "DATETIME", "TIMESTAMPTZ"), "TIMESTAMP"),
    **dict.fromkeys(("TIME", "INTERVAL"), "BIGINT of microseconds, or TEXT"),
    **dict.fromkeys(("BINARY", "VARBINARY", "FILE"), "BYTES"),
    **dict.fromkeys(("SMALLSERIAL", "SIGNED", "UNSIGNED"), "BIGINT"),
    "EMBEDDING": "JSON",
}
_SERIAL = frozenset({"SERIAL", "BIGSERIAL"})
_WITH_LENGTH = frozenset({"VARCHAR", "CHAR", "TIMESTAMP"})
_SNOWFLAKE = Default("SNOWFLAKE_ID")
NAME = re.compile(r"[a-z0-9_]+")


class Refused(InvalidSql):
    """A table that this release can't keep, or no table at all."""

    prefix = "Invalid SQL: Invalid CREATE TABLE statement: "


@dataclass(slots=True)
class Draft:
    """A table as far as it has been read; `parents` by column."""

    columns: list[ColumnDefinition] = field(default_factory=list)
    parents: dict[str, tuple[TableName, str | None, OnDelete]] = field(default_factory=dict)
    composites: list[CompositeReference] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


def read_column(tokens: Tokens, draft: Draft) -> None:
    """Read a column with its constraints, up to a comma, a closing parenthesis or the end, into `draft`."""
    name = read_name(tokens)
    if any(column.name == name for column in draft.columns):
        raise Refused(f"Duplicate column name '{name}'. Column names are case-insensitive.")
    sql_type, serial = read_type(tokens, name)
    column = ColumnDefinition(
        name, sql_type, True, False, _SNOWFLAKE if serial else None, None, OnDelete.RESTRICT
    )
    while not tokens.at_end and not tokens.sees(",") and not tokens.sees(")"):
        column = _constraint(tokens, draft, column)
    if column.primary_key:
        draft.keys.append(name)
    draft.columns.append(column)


def read_name(tokens: Tokens) -> str:
    """Return the name of a column that is to be."""
    name = tokens.name("a column name")
    if not NAME.fullmatch(name):
        raise Refused(f"column name '{name[:60]}' may only have letters, digits and _")
    if name in SYSTEM_COLUMNS:
        raise Refused(f"Column name '{name}' is reserved for system columns")
    return name


def read_type(tokens: Tokens, column: str) -> tuple[SqlType, bool]:
    """Return the type, and whether it is one that numbers its rows."""
    word = tokens.name(f"the type of column '{column}'").upper()
    found = _TYPES.get(word)
    if found is None:
        instead = _INSTEAD.get(word, ", ".join(SqlType.__members__))
        raise Refused(f"type {word[:60]} of column '{column}' is not supported; use {instead}")
    if word == "DOUBLE":
        tokens.accept("PRECISION")
    if word in _WITH_LENGTH and tokens.accept("("):
        if tokens.take().kind != "number":
            raise Refused(f"the length of column '{column}' must be a number")
        tokens.expect(")")
    if word == "TIMESTAMP" and (tokens.accept("WITH") or tokens.accept("WITHOUT")):
        tokens.expect("TIME", "ZONE")
    return found, word in _SERIAL


def _constraint(tokens: Tokens, draft: Draft, column: ColumnDefinition) -> ColumnDefinition:
    if tokens.accept("PRIMARY", "KEY"):
        return replace(column, primary_key=True, nullable=False)
    if tokens.accept("NOT", "NULL"):
        return replace(column, nullable=False)
    if tokens.accept("NULL"):
        return column
    if tokens.accept("DEFAULT"):
        default = read_default(tokens, column.name)
        return replace(column, default=None if default is None else fit(column, default))
    if _accept_identity(tokens):
        return replace(column, default=fit(column, _SNOWFLAKE))
    if tokens.accept("REFERENCES"):
        read_reference(tokens, draft, column.name)
        return column
    word = tokens.peek().word
    if word == "UNIQUE" and (column.primary_key or tokens.peek(1).word == "PRIMARY"):
        tokens.take()
        return column
    if word in ("UNIQUE", "CHECK"):
        raise not_enforced(word)
    raise tokens.unexpected(f"a constraint of column '{column.name}', ',' or ')'")


def _accept_identity(tokens: Tokens) -> bool:
    if tokens.accept("AUTO_INCREMENT") or tokens.accept("AUTO", "INCREMENT"):
        return True
    if not tokens.accept("GENERATED"):
        return tokens.accept("IDENTITY")
    if not tokens.accept("ALWAYS"):
        tokens.expect("BY", "DEFAULT")
    tokens.expect("AS", "IDENTITY")
    return True


def read_default(tokens: Tokens, column: str) -> Default | None:
    """Read a literal or a function as it stands, whatever the column's type; NULL is no DEFAULT."""
    token = tokens.take()
    if token.word in CONTEXT_FUNCTIONS:
        if tokens.accept("("):
            tokens.expect(")")
        return Default(CONTEXT_FUNCTIONS[token.word][0])
    negative = token.word == "-"
    if negative:
        token = tokens.take()
    if token.kind == "number":
        number = number_value(token.text)
        return Default(None, -number if negative else number)
    if token.kind in ("string", "escaped", "dollar") and not negative:
        return Default(None, string_value(token))
    if token.word in ("TRUE", "FALSE") and not negative:
        return Default(None, token.word == "TRUE")
    if token.word == "NULL" and not negative:
        return None
    raise Refused(
        f"DEFAULT of column '{column}' must be a literal, NOW(), CURRENT_TIMESTAMP, "
        "SNOWFLAKE_ID(), UUID_V7(), ULID() or CURRENT_USER()"
    )


def fit(column: ColumnDefinition, default: Default) -> Default:
    """Return `default` as the column holds it; raise `Refused` if it can't."""
    try:
        return fitted(default, Column(0, column.name, column.type))
    except InvalidValue as error:
        raise Refused(error.args[0]) from error


def read_reference(tokens: Tokens, draft: Draft, column: str) -> None:
    """Read what follows REFERENCES; `NO ACTION` is RESTRICT, which is checked at the statement's end."""
    parent = tokens.qualified("the referenced table")
    target: str | None = None
    if tokens.sees("("):
        targets = tokens.listed(lambda: tokens.name("a column"))
        if len(targets) != 1:
            raise Refused(f"column '{column}' references one column; several need FOREIGN KEY (…)")
        target = targets[0]
    draft.parents[column] = (parent, target, read_on_delete(tokens))


def read_on_delete(tokens: Tokens) -> OnDelete:
    on_delete = OnDelete.RESTRICT
    while tokens.accept("ON"):
        event = tokens.take().word
        action = _action(tokens)
        if event == "DELETE":
            on_delete = action
        elif event != "UPDATE" or action is not OnDelete.RESTRICT:
            raise Refused("REFERENCES takes ON DELETE RESTRICT, CASCADE, SET NULL or NO ACTION")
    return on_delete


def _action(tokens: Tokens) -> OnDelete:
    if tokens.accept("CASCADE"):
        return OnDelete.CASCADE
    if tokens.accept("SET", "NULL"):
        return OnDelete.SET_NULL
    if tokens.accept("RESTRICT") or tokens.accept("NO", "ACTION"):
        return OnDelete.RESTRICT
    raise tokens.unexpected("RESTRICT, CASCADE, SET NULL or NO ACTION")


def not_enforced(word: str) -> InvalidSql:
    return Refused(f"{word} is not supported yet; kept are PRIMARY KEY, NOT NULL and REFERENCES")
