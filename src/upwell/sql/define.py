"""The grammar of CREATE TABLE.

Law: what this release can't keep (a type, an option, a constraint) is refused by name with what to use
instead; nothing is parsed and ignored.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from upwell.engine.catalog import Access, OnDelete, TableKind
from upwell.errors import InvalidSql, InvalidValue
from upwell.sql.lex import Tokens, string_value
from upwell.sql.scalar import CONTEXT_FUNCTIONS, SYSTEM_COLUMNS, number_value
from upwell.sql.statements import ColumnDefinition, CompositeReference, CreateTable
from upwell.sql.tree import CreateTableTree, TableName
from upwell.types import Column, Default, SqlType, coerce

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
_DEFAULT_HOLDERS = {
    "NOW": {SqlType.TIMESTAMP},
    "SNOWFLAKE_ID": {SqlType.BIGINT, SqlType.TEXT},
    "UUID_V7": {SqlType.UUID, SqlType.TEXT},
    "ULID": {SqlType.TEXT},
    "CURRENT_USER": {SqlType.TEXT},
}
_NAME = re.compile(r"[a-z0-9_]+")
_FLUSH_POLICY = re.compile(r"(rows|interval):0*[1-9][0-9]*(,(?!\1)(rows|interval):0*[1-9][0-9]*)?")
_STREAM = "STREAM tables are not supported yet by this server; use a USER or SHARED table"


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


def parse_create_table(tokens: Tokens) -> CreateTableTree:
    """Read CREATE [USER|SHARED] TABLE; raise `InvalidSql` for all that this release can't keep."""
    tokens.expect("CREATE")
    keyword = None if tokens.sees("TABLE") else tokens.take().word
    tokens.expect("TABLE")
    if_not_exists = tokens.accept("IF", "NOT", "EXISTS")
    namespace, name = tokens.qualified()
    if not _NAME.fullmatch(name):
        raise Refused(f"table name '{name[:60]}' may only have letters, digits and _")
    draft = Draft()
    tokens.listed(lambda: _element(tokens, draft))
    if tokens.accept("WITH"):
        tokens.listed(lambda: _option(tokens, draft))
    kind = _kind(keyword, draft.options.pop("TYPE", None))
    synced = _flag(draft.options.pop("SYNC", "FALSE"))
    access = _access(draft.options.pop("ACCESS_LEVEL", None), kind)
    options = tuple((key.lower(), value) for key, value in draft.options.items())
    columns = _columns(draft, kind)
    if synced:
        _check_synced(columns, kind)
    table = CreateTable(
        namespace or "", name, kind, columns, synced, access, options, if_not_exists, tuple(draft.composites)
    )
    return CreateTableTree(namespace, table, tuple((c, parent[1]) for c, parent in draft.parents.items()))


def _element(tokens: Tokens, draft: Draft) -> None:
    if tokens.sees("CONSTRAINT"):
        tokens.take()
        tokens.name("a constraint's name")
    if tokens.accept("PRIMARY", "KEY"):
        draft.keys += tokens.listed(lambda: tokens.name("a column"))
    elif tokens.accept("FOREIGN", "KEY"):
        columns = tokens.listed(lambda: tokens.name("a column"))
        tokens.expect("REFERENCES")
        if len(columns) == 1:
            _reference(tokens, draft, columns[0])
        else:
            draft.composites.append(_composite(tokens, columns))
    elif tokens.peek().word in ("UNIQUE", "CHECK") and tokens.peek(1).word == "(":
        raise _not_enforced(tokens.take().word)
    else:
        read_column(tokens, draft)


def _not_enforced(word: str) -> InvalidSql:
    return Refused(f"{word} is not supported yet; kept are PRIMARY KEY, NOT NULL and REFERENCES")


def read_column(tokens: Tokens, draft: Draft) -> None:
    """Read a column with its constraints, up to a comma, a closing parenthesis or the end, into `draft`."""
    name = tokens.name("a column name")
    if not _NAME.fullmatch(name):
        raise Refused(f"column name '{name[:60]}' may only have letters, digits and _")
    if name in SYSTEM_COLUMNS:
        raise Refused(f"Column name '{name}' is reserved for system columns")
    if any(column.name == name for column in draft.columns):
        raise Refused(f"Duplicate column name '{name}'. Column names are case-insensitive.")
    sql_type, serial = _type(tokens, name)
    column = ColumnDefinition(
        name, sql_type, True, False, _SNOWFLAKE if serial else None, None, OnDelete.RESTRICT
    )
    while not tokens.at_end and not tokens.sees(",") and not tokens.sees(")"):
        column = _constraint(tokens, draft, column)
    if column.primary_key:
        draft.keys.append(name)
    draft.columns.append(column)


def _type(tokens: Tokens, column: str) -> tuple[SqlType, bool]:
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
        return replace(column, default=_default(tokens, column))
    if _accept_identity(tokens):
        return replace(column, default=_generated(column, _SNOWFLAKE))
    if tokens.accept("REFERENCES"):
        _reference(tokens, draft, column.name)
        return column
    word = tokens.peek().word
    if word == "UNIQUE" and (column.primary_key or tokens.peek(1).word == "PRIMARY"):
        tokens.take()
        return column
    if word in ("UNIQUE", "CHECK"):
        raise _not_enforced(word)
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


def _default(tokens: Tokens, column: ColumnDefinition) -> Default | None:
    token = tokens.take()
    if token.word in CONTEXT_FUNCTIONS:
        if tokens.accept("("):
            tokens.expect(")")
        return _generated(column, Default(CONTEXT_FUNCTIONS[token.word][0]))
    negative = token.word == "-"
    if negative:
        token = tokens.take()
    value: bool | int | float | str
    if token.kind == "number":
        number = number_value(token.text)
        value = -number if negative else number
    elif token.kind in ("string", "escaped", "dollar") and not negative:
        value = string_value(token)
    elif token.word in ("TRUE", "FALSE") and not negative:
        value = token.word == "TRUE"
    elif token.word == "NULL" and not negative:
        return None
    else:
        raise Refused(
            f"DEFAULT of column '{column.name}' must be a literal, NOW(), CURRENT_TIMESTAMP, "
            "SNOWFLAKE_ID(), UUID_V7(), ULID() or CURRENT_USER()"
        )
    return _literal_default(column, value)


def _literal_default(column: ColumnDefinition, value: bool | int | float | str) -> Default:
    try:
        held = coerce(value, Column(0, column.name, column.type))
    except InvalidValue as error:
        raise Refused(f"DEFAULT does not fit: {error.args[0]}") from error
    # Bytes have no form in the catalog's JSON: their text stays, and is read when a row needs it.
    return Default(None, value if isinstance(held, bytes) else held)


def _generated(column: ColumnDefinition, default: Default) -> Default:
    holders = _DEFAULT_HOLDERS.get(default.function or "", set())
    if column.type not in holders:
        names = " or ".join(sorted(holder.name for holder in holders)) or "nothing"
        raise Refused(
            f"{default.function}() cannot be the DEFAULT of column '{column.name}' "
            f"({column.type.name}); it fits {names}"
        )
    return default


def _reference(tokens: Tokens, draft: Draft, column: str) -> None:
    """Read what follows REFERENCES; `NO ACTION` is RESTRICT, which is checked at the statement's end."""
    parent = tokens.qualified("the referenced table")
    target: str | None = None
    if tokens.sees("("):
        targets = tokens.listed(lambda: tokens.name("a column"))
        if len(targets) != 1:
            raise Refused(f"column '{column}' references one column; several need FOREIGN KEY (…)")
        target = targets[0]
    draft.parents[column] = (parent, target, _on_delete(tokens))


def _composite(tokens: Tokens, columns: list[str]) -> CompositeReference:
    namespace, name = tokens.qualified("the referenced table")
    if not tokens.sees("("):
        raise Refused(f"a FOREIGN KEY of {len(columns)} columns names those of {name} that they refer to")
    targets = tokens.listed(lambda: tokens.name("a column"))
    if not len(set(columns)) == len(set(targets)) == len(columns) == len(targets):
        raise Refused("a FOREIGN KEY pairs each of its columns with one column of the referenced table")
    return CompositeReference(tuple(columns), (namespace or "", name), tuple(targets), _on_delete(tokens))


def _on_delete(tokens: Tokens) -> OnDelete:
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


def _columns(draft: Draft, kind: TableKind | None) -> tuple[ColumnDefinition, ...]:
    """Return the columns with the table's keys and references put in."""
    names = {column.name for column in draft.columns}
    for name in (*draft.keys, *draft.parents, *(name for each in draft.composites for name in each.columns)):
        if name not in names:
            raise Refused(f"key column '{name}' is not a column of the table")
    if not draft.keys:
        owner = "User" if kind is TableKind.USER else "Shared"
        raise Refused(f"{owner} tables require a PRIMARY KEY column")
    if len(set(draft.keys)) != 1:
        raise Refused("Composite PRIMARY KEYs are not supported yet")
    columns = tuple(_completed(column, draft) for column in draft.columns)
    for composite in draft.composites:
        for column in columns:
            if column.name in composite.columns and composite.on_delete is OnDelete.SET_NULL:
                _check_nullable(column)
    return columns


def _completed(column: ColumnDefinition, draft: Draft) -> ColumnDefinition:
    if column.name == draft.keys[0]:
        column = replace(column, primary_key=True, nullable=False)
        if column.type in (SqlType.JSON, SqlType.BYTES):
            raise Refused(f"PRIMARY KEY column '{column.name}' cannot be {column.type.name}")
    if column.name in draft.parents:
        (namespace, name), _, on_delete = draft.parents[column.name]
        if on_delete is OnDelete.SET_NULL:
            _check_nullable(column)
        column = replace(column, references=(namespace or "", name), on_delete=on_delete)
    return column


def _check_nullable(column: ColumnDefinition) -> None:
    if not column.nullable:
        raise Refused(f"ON DELETE SET NULL needs column '{column.name}' to be nullable")


def _option(tokens: Tokens, draft: Draft) -> None:
    key = tokens.name("an option").upper()
    tokens.expect("=")
    token = tokens.take()
    if token.kind not in ("word", "number", "string", "escaped", "dollar", "quoted"):
        raise Refused(f"option {key} needs a value")
    value = string_value(token) if "'" in token.text[:2] else token.text.strip('"')
    check = _OPTIONS.get(key)
    if check is None:
        raise Refused(f"Unknown table option '{key}'")
    check(value)
    if key in draft.options:
        raise Refused(f"option {key} is given twice")
    draft.options[key] = value


def _check_storage(value: str) -> None:
    if value != "local":
        raise Refused(f"Storage '{value}' does not exist")


def _check_flush_policy(value: str) -> None:
    if not _FLUSH_POLICY.fullmatch(value.replace(" ", "")):
        raise Refused("FLUSH_POLICY must be 'rows:N', 'interval:SECONDS' or both with a comma, above 0")


def _check_retention(value: str) -> None:
    if not (value.isascii() and value.isdigit()):
        raise Refused("DELETED_RETENTION_HOURS must be a whole number of hours")


def _refuse_ttl(value: str) -> None:
    raise Refused("TTL_SECONDS is only supported for STREAM tables")


def _flag(value: str) -> bool:
    if value.upper() not in ("TRUE", "FALSE"):
        raise Refused("SYNC must be TRUE or FALSE")
    return value.upper() == "TRUE"


def _any(value: str) -> None:
    """Checked later, when the whole statement is known."""


_OPTIONS: dict[str, Callable[[str], object]] = {
    "TYPE": _any,
    "ACCESS_LEVEL": _any,
    "SYNC": _flag,
    "STORAGE_ID": _check_storage,
    "FLUSH_POLICY": _check_flush_policy,
    "DELETED_RETENTION_HOURS": _check_retention,
    "TTL_SECONDS": _refuse_ttl,
}


def _kind(keyword: str | None, option: str | None) -> TableKind | None:
    written = option.upper() if option is not None else None
    if keyword == "STREAM" or written == "STREAM":
        raise InvalidSql(_STREAM)
    if keyword is not None and written is not None and keyword != written:
        raise Refused(f"Conflicting table type definitions: {keyword} TABLE and TYPE='{option}'")
    name = keyword or written
    if name is None:
        return None
    if name not in ("USER", "SHARED"):
        raise Refused(f"TYPE must be 'USER' or 'SHARED', not '{name[:60]}'")
    return TableKind(name.lower())


def _access(written: str | None, kind: TableKind | None) -> Access:
    if written is None:
        return Access.PRIVATE
    if kind is TableKind.USER:
        raise Refused("ACCESS_LEVEL is only supported for SHARED tables")
    if written.upper() not in Access.__members__:
        raise Refused("ACCESS_LEVEL must be PUBLIC, PRIVATE, RESTRICTED or DBA")
    return Access[written.upper()]


def _check_synced(columns: tuple[ColumnDefinition, ...], kind: TableKind | None) -> None:
    if kind is not TableKind.USER:
        raise Refused("SYNC = TRUE is only supported for USER tables; write CREATE USER TABLE")
    key = next(column for column in columns if column.primary_key)
    if key.type not in (SqlType.UUID, SqlType.TEXT):
        raise Refused(
            f"SYNC = TRUE needs a primary key of type UUID or TEXT, made by the device; "
            f"'{key.name}' is {key.type.name}"
        )
