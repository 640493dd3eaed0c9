"""The grammar of CREATE TABLE.

Law: what this release can't keep (a type, an option, a constraint) is refused by name with what to use
instead; nothing is parsed and ignored.
"""

from dataclasses import replace

from upwell.engine.catalog import OnDelete, TableKind
from upwell.sql.column import NAME, Draft, Refused, not_enforced, read_column, read_on_delete, read_reference
from upwell.sql.lex import Tokens
from upwell.sql.option import (
    access_of,
    check_lifetime,
    check_synced,
    check_user_storage,
    flag,
    kind_of,
    read_option,
    read_ttl,
)
from upwell.sql.statements import ColumnDefinition, CompositeReference, CreateTable
from upwell.sql.tree import CreateTableTree
from upwell.types import SqlType


def parse_create_table(tokens: Tokens) -> CreateTableTree:
    """Read CREATE [USER|SHARED|STREAM] TABLE; raise `InvalidSql` for all that this release can't keep."""
    tokens.expect("CREATE")
    keyword = None if tokens.sees("TABLE") else tokens.take().word
    tokens.expect("TABLE")
    if_not_exists = tokens.accept("IF", "NOT", "EXISTS")
    namespace, name = tokens.qualified()
    if not NAME.fullmatch(name):
        raise Refused(f"table name '{name[:60]}' may only have letters, digits and _, 128 at most")
    draft = Draft()
    tokens.listed(lambda: _element(tokens, draft))
    if tokens.accept("USING") and tokens.name("a format") != "parquet":
        raise Refused("USING takes PARQUET: it is what cold rows are kept in")
    if tokens.accept("WITH"):
        tokens.listed(lambda: read_option(tokens, draft))
    if tokens.accept("TTL"):
        read_ttl(tokens, draft)
    kind = kind_of(keyword, draft.options.pop("TYPE", None))
    check_lifetime(draft, kind)
    check_user_storage(draft, kind)
    synced = flag(draft.options.pop("SYNC", "FALSE"))
    access = access_of(draft.options.pop("ACCESS_LEVEL", None), kind)
    options = tuple((key.lower(), value) for key, value in draft.options.items())
    columns = _columns(draft, kind)
    if synced:
        check_synced(columns, kind)
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
            read_reference(tokens, draft, columns[0])
        else:
            draft.composites.append(_composite(tokens, columns))
    elif tokens.peek().word in ("UNIQUE", "CHECK") and tokens.peek(1).word == "(":
        raise not_enforced(tokens.take().word)
    else:
        read_column(tokens, draft)


def _composite(tokens: Tokens, columns: list[str]) -> CompositeReference:
    namespace, name = tokens.qualified("the referenced table")
    if not tokens.sees("("):
        raise Refused(f"a FOREIGN KEY of {len(columns)} columns names those of {name} that they refer to")
    targets = tokens.listed(lambda: tokens.name("a column"))
    if not len(set(columns)) == len(set(targets)) == len(columns) == len(targets):
        raise Refused("a FOREIGN KEY pairs each of its columns with one column of the referenced table")
    return CompositeReference(tuple(columns), (namespace or "", name), tuple(targets), read_on_delete(tokens))


def _columns(draft: Draft, kind: TableKind | None) -> tuple[ColumnDefinition, ...]:
    """Return the columns with the table's keys and references put in."""
    names = {column.name for column in draft.columns}
    for name in (*draft.keys, *draft.parents, *(name for each in draft.composites for name in each.columns)):
        if name not in names:
            raise Refused(f"key column '{name}' is not a column of the table")
    if not draft.keys and kind is not TableKind.STREAM:
        owner = "User" if kind is TableKind.USER else "Shared"
        raise Refused(f"{owner} tables require a PRIMARY KEY column")
    if len(set(draft.keys)) > 1:
        raise Refused("Composite PRIMARY KEYs are not supported yet")
    columns = tuple(_completed(column, draft) for column in draft.columns)
    for composite in draft.composites:
        for column in columns:
            if column.name in composite.columns and composite.on_delete is OnDelete.SET_NULL:
                _check_nullable(column)
    return columns


def _completed(column: ColumnDefinition, draft: Draft) -> ColumnDefinition:
    if column.name in draft.keys:
        column = replace(column, primary_key=True, nullable=False)
        if column.type in (SqlType.JSON, SqlType.BYTES, SqlType.FLOAT, SqlType.DECIMAL):
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
