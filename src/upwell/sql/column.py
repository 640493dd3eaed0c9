"""The grammar of one column: its type, default, constraints and references.

Law: what this release can't keep (a type, a constraint) is refused by name with what to use instead;
nothing is parsed and ignored.
"""

import re
from dataclasses import dataclass, field, replace

from upwell.engine.catalog import OnDelete
from upwell.errors import InvalidSql, InvalidValue
from upwell.sql.lex import Tokens, string_value
from upwell.sql.scalar import CONTEXT_FUNCTIONS, SYSTEM_COLUMNS, negative, number_value
from upwell.sql.statements import ColumnDefinition, CompositeReference
from upwell.sql.tree import TableName
from upwell.types import DECIMAL_DIGITS_MAX, Default, SqlType, fitted

_TYPES = {
    **dict.fromkeys(("BOOLEAN", "BOOL"), SqlType.BOOLEAN),
    **dict.fromkeys(("SMALLINT", "INT2", "SMALLSERIAL", "SERIAL2"), SqlType.SMALLINT),
    **dict.fromkeys(("INT", "INTEGER", "INT4"), SqlType.INT),
    **dict.fromkeys(("BIGINT", "INT8", "SERIAL", "SERIAL4", "BIGSERIAL", "SERIAL8"), SqlType.BIGINT),
    **dict.fromkeys(("SIGNED", "UNSIGNED"), SqlType.BIGINT),
    **dict.fromkeys(("FLOAT", "REAL", "FLOAT4"), SqlType.FLOAT),
    **dict.fromkeys(("DOUBLE", "FLOAT8"), SqlType.DOUBLE),
    **dict.fromkeys(("DECIMAL", "NUMERIC"), SqlType.DECIMAL),
    **dict.fromkeys(("TEXT", "VARCHAR", "CHAR", "CHARACTER", "STRING"), SqlType.TEXT),
    **dict.fromkeys(("JSON", "JSONB"), SqlType.JSON),
    **dict.fromkeys(("BYTES", "BYTEA", "BLOB", "BINARY", "VARBINARY"), SqlType.BYTES),
    **dict.fromkeys(("DATETIME", "TIMESTAMPTZ"), SqlType.DATETIME),
    "TIMESTAMP": SqlType.TIMESTAMP,
    "DATE": SqlType.DATE,
    "TIME": SqlType.TIME,
    "UUID": SqlType.UUID,
}
_NOT_YET = frozenset({"FILE", "EMBEDDING"})
_SERIAL = frozenset({"SMALLSERIAL", "SERIAL2", "SERIAL", "SERIAL4", "BIGSERIAL", "SERIAL8"})
_WITH_LENGTH = frozenset(
    {"VARCHAR", "CHAR", "CHARACTER", "TEXT", "STRING", "BINARY", "VARBINARY", "TIMESTAMP", "DATETIME", "TIME"}
    | {"TIMESTAMPTZ"}
)
_PRECISION, _SCALE = 38, 10
_LENGTH_DIGITS_MAX = 9
"""Of a DECIMAL that doesn't say."""
_SNOWFLAKE = Default("SNOWFLAKE_ID")
NAME = re.compile(r"[a-z0-9_]{1,128}")


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
    declared = read_type(tokens, name)
    column = ColumnDefinition(
        name, declared.type, True, False, None, None, OnDelete.RESTRICT, declared.precision, declared.scale
    )
    if declared.is_serial:
        column = replace(column, default=fit(column, _SNOWFLAKE))
    while not tokens.at_end and not tokens.sees(",") and not tokens.sees(")"):
        column = _constraint(tokens, draft, column)
    if column.primary_key:
        draft.keys.append(name)
    draft.columns.append(column)


def read_name(tokens: Tokens) -> str:
    """Return the name of a column that is to be."""
    name = tokens.name("a column name")
    if not NAME.fullmatch(name):
        raise Refused(f"column name '{name[:60]}' may only have letters, digits and _, 128 at most")
    if name in SYSTEM_COLUMNS:
        raise Refused(f"Column name '{name}' is reserved for system columns")
    return name


@dataclass(frozen=True, slots=True)
class DeclaredType:
    """A type as it was written; `precision` and `scale` are a DECIMAL's."""

    type: SqlType
    is_serial: bool = False
    precision: int = 0
    scale: int = 0


def read_type(tokens: Tokens, column: str) -> DeclaredType:
    """Read a type, with what follows its name."""
    word = tokens.name(f"the type of column '{column}'").upper()
    found = _TYPES.get(word)
    if word in _NOT_YET:
        raise Refused(f"type {word} of column '{column}' is not supported yet")
    if found is None:
        known = ", ".join(SqlType.__members__)
        raise Refused(f"type {word[:60]} of column '{column}' is not supported; use {known}")
    if found is SqlType.DECIMAL:
        return _decimal(tokens, column)
    if word == "DOUBLE":
        tokens.accept("PRECISION")
    if word == "CHARACTER":
        tokens.accept("VARYING")
    if word in _WITH_LENGTH and tokens.sees("("):
        _lengths(tokens, column)
    if word in ("TIMESTAMP", "TIME") and (tokens.accept("WITHOUT") or tokens.sees("WITH", "TIME")):
        if word == "TIME" and tokens.sees("WITH"):
            raise Refused(f"TIME WITH TIME ZONE of column '{column}' is not supported; use TIME or DATETIME")
        found = SqlType.DATETIME if tokens.accept("WITH") else found
        tokens.expect("TIME", "ZONE")
    return DeclaredType(found, word in _SERIAL)


def _decimal(tokens: Tokens, column: str) -> DeclaredType:
    numbers = _lengths(tokens, column) if tokens.sees("(") else [_PRECISION, _SCALE]
    precision, scale = (numbers[0], 0) if len(numbers) == 1 else numbers
    if not 1 <= precision <= DECIMAL_DIGITS_MAX or scale > precision:
        raise Refused(
            f"DECIMAL({precision},{scale}) of column '{column}' needs 1 to {DECIMAL_DIGITS_MAX} digits, "
            "and no more of them behind the point"
        )
    return DeclaredType(SqlType.DECIMAL, False, precision, scale)


def _lengths(tokens: Tokens, column: str) -> list[int]:
    numbers = tokens.listed(tokens.take)
    if len(numbers) > 2 or not all(
        each.kind == "number" and each.text.isdigit() and len(each.text) <= _LENGTH_DIGITS_MAX
        for each in numbers
    ):
        raise Refused(
            f"the length of column '{column}' must be a number of at most {_LENGTH_DIGITS_MAX} digits"
        )
    return [int(each.text) for each in numbers]


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
    is_negative = token.word == "-"
    if is_negative:
        token = tokens.take()
    if token.kind == "number":
        number = number_value(token.text)
        return Default(None, negative(number) if is_negative else number)
    if token.kind in ("string", "escaped", "dollar") and not is_negative:
        return Default(None, string_value(token))
    if token.word in ("TRUE", "FALSE") and not is_negative:
        return Default(None, token.word == "TRUE")
    if token.word == "NULL" and not is_negative:
        return None
    raise Refused(
        f"DEFAULT of column '{column}' must be a literal, NOW(), CURRENT_TIMESTAMP, "
        "SNOWFLAKE_ID(), UUID_V7(), ULID() or CURRENT_USER()"
    )


def fit(column: ColumnDefinition, default: Default) -> Default:
    """Return `default` as the column holds it; raise `Refused` if it can't."""
    try:
        return fitted(default, column.column(0))
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
