"""From the app's SQLite tables to the server's: types, defaults, references, as CREATE TABLE statements.

Law: a column gets a type that gives back each of its values as it is; where the declared type says too
little, the values in the file decide, and without any it is TEXT, which holds them all. What the server
doesn't enforce is named in a note.
"""

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from upwell.device.schema import Column, Reference, Tables, TableShape, quoted
from upwell.errors import InvalidValue
from upwell.types import Column as ServerColumn
from upwell.types import SqlType, coerce, parse_timestamp

TypeOf: TypeAlias = dict[tuple[str, str], SqlType]
"""From (table, column), both as on the wire, to the server's type."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_STRING = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
# What can stand around the word CHECK without being a constraint: strings, quoted names, comments.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_CHECK = re.compile(r"\bCHECK\s*\(", re.IGNORECASE)
_ACTIONS = ("CASCADE", "SET NULL")
# Values (not NULL) that a column of the type gives back exactly, as SQL about `{0}`.
_HOLDS = {
    SqlType.BIGINT: "typeof({0}) = 'integer'",
    SqlType.DOUBLE: "typeof({0}) = 'real' OR typeof({0}) = 'integer'"
    " AND {0} BETWEEN -9007199254740992 AND 9007199254740992",
    SqlType.BOOLEAN: "typeof({0}) = 'integer' AND {0} IN (0, 1)",
    SqlType.TIMESTAMP: "typeof({0}) = 'text' AND is_timestamp({0})",
    SqlType.TEXT: "true",
    SqlType.BYTES: "true",
}


class TableStatement(str):
    """CREATE TABLE as text, and what it defines; `keys` are the primary key and what refers to others'.

    `later` are references to tables that come after it, as they refer to it themselves.
    """

    __slots__ = ("columns", "keys", "later", "notes", "table")
    table: tuple[str, str]
    keys: Sequence[str]
    columns: Mapping[str, SqlType]
    notes: Sequence[str]
    later: Sequence["ReferenceStatement"]

    @classmethod
    def of(
        cls,
        table: tuple[str, str],
        keys: Sequence[str],
        columns: Mapping[str, SqlType],
        *,
        lines: Sequence[str],
        notes: Sequence[str],
        later: Sequence["ReferenceStatement"],
    ) -> Self:
        """Write the statement: the notes as comments, then one line for each of `lines`."""
        notes = [" ".join(note.split()) for note in notes]  # a name with a line break would end the comment
        comments = "".join(f"-- {note}\n" for note in notes)
        body = ",\n".join(f"    {line}" for line in lines)
        made = cls(
            f"{comments}CREATE TABLE IF NOT EXISTS {full_name(*table)} (\n{body}\n)"
            " WITH (TYPE = 'USER', SYNC = TRUE);"
        )
        made.table, made.keys, made.columns, made.notes = table, keys, columns, notes
        made.later = later
        return made


class ReferenceStatement(str):
    """ALTER TABLE … ADD FOREIGN KEY as text, and the table that it is about."""

    __slots__ = ("table",)
    table: tuple[str, str]

    @classmethod
    def of(cls, table: tuple[str, str], clause: str) -> Self:
        """Write the statement."""
        made = cls(f"ALTER TABLE {full_name(*table)} ADD {clause};")
        made.table = table
        return made


def has_row(connection: sqlite3.Connection, shape: TableShape, condition: str) -> bool:
    """Whether a table has a row that satisfies `condition`, an SQL expression."""
    question = f"SELECT EXISTS (SELECT 1 FROM {quoted(shape.name)} WHERE {condition})"
    return bool(connection.execute(question).fetchone()[0])


def define(connection: sqlite3.Connection, namespace: str, tables: Tables) -> dict[str, TableStatement]:
    """Return the statements for `tables` by their names on the wire, parents first; nothing is written."""
    connection.create_function("is_timestamp", 1, _is_timestamp, deterministic=True)
    types = _types(connection, tables)
    ordered = sorted(tables, key=lambda shape: tables.rank[shape.wire])
    return {shape.wire: _create(connection, namespace, shape, tables, types) for shape in ordered}


def _types(connection: sqlite3.Connection, tables: Tables) -> TypeOf:
    types: TypeOf = {}
    for shape in tables:
        for column in shape.columns:
            types[shape.wire, column.wire] = _type(connection, shape, column)
    for shape in tables:
        for reference in shape.references:
            for child, parent in _pairs(tables, shape, reference):
                if parent is tables.get(reference.parent).primary_key and child.is_blob == parent.is_blob:
                    types[shape.wire, child.wire] = types[reference.parent, parent.wire]
    return types


def _type(connection: sqlite3.Connection, shape: TableShape, column: Column) -> SqlType:
    if column is shape.primary_key:
        return SqlType.UUID if column.is_blob else SqlType.TEXT
    preferred, is_judged = _preferred(column)
    name = quoted(column.name)
    if is_judged and not has_row(connection, shape, f"{name} IS NOT NULL"):
        return SqlType.TEXT
    holding = (
        sql_type
        for sql_type in preferred
        if not has_row(connection, shape, f"{name} IS NOT NULL AND NOT ({_HOLDS[sql_type].format(name)})")
    )
    return next(holding)


def _preferred(column: Column) -> tuple[tuple[SqlType, ...], bool]:
    """Return types to try in this order, and whether only the values can tell; SQLite's rules of affinity."""
    kind = column.declared
    if column.is_blob:
        return (SqlType.BYTES,), False
    if column.is_text or not kind or kind == "ANY":
        return (SqlType.TEXT,), False
    if "INT" in kind:
        return (SqlType.BIGINT, SqlType.DOUBLE, SqlType.TEXT), False
    if any(word in kind for word in ("REAL", "FLOA", "DOUB")):
        return (SqlType.DOUBLE, SqlType.TEXT), False
    if "BOOL" in kind:
        return (SqlType.BOOLEAN, SqlType.BIGINT, SqlType.DOUBLE, SqlType.TEXT), False
    if "DATE" in kind or "TIME" in kind:
        return (SqlType.TIMESTAMP, SqlType.BIGINT, SqlType.DOUBLE, SqlType.TEXT), True
    return (SqlType.DOUBLE, SqlType.BIGINT, SqlType.TEXT), True


def _is_timestamp(text: str) -> bool:
    try:
        coerce(parse_timestamp(text), ServerColumn(0, "", SqlType.TIMESTAMP))
    except (ValueError, InvalidValue):
        return False
    return True


def _pairs(tables: Tables, shape: TableShape, reference: Reference) -> list[tuple[Column, Column]]:
    """Return (child's, parent's) columns of a reference; none if one isn't there to be synced."""
    parent = tables.find(reference.parent)
    if parent is None:
        return []
    names = zip(reference.columns, reference.parent_columns, strict=True)
    pairs = [(shape.column(child.lower()), parent.column(target.lower())) for child, target in names]
    known = [(child, target) for child, target in pairs if child is not None and target is not None]
    return known if len(known) == len(pairs) else []


def _create(
    connection: sqlite3.Connection, namespace: str, shape: TableShape, tables: Tables, types: TypeOf
) -> TableStatement:
    notes = _type_notes(shape, types)
    references = _references(namespace, shape, tables, types, notes)
    inline = references.inline
    lines = [
        _column_line(column, types[shape.wire, column.wire], column is shape.primary_key, notes)
        + inline.get(column.wire, "")
        for column in shape.columns
    ]
    notes += _constraint_notes(connection, shape)
    return TableStatement.of(
        (namespace, shape.wire),
        (shape.primary_key.wire, *inline, *references.later),
        {column.wire: types[shape.wire, column.wire] for column in shape.columns},
        lines=lines + references.separate,
        notes=notes,
        later=[
            ReferenceStatement.of((namespace, shape.wire), clause) for clause in references.later.values()
        ],
    )


def _type_notes(shape: TableShape, types: TypeOf) -> list[str]:
    notes = []
    for column in shape.columns:
        sql_type = types[shape.wire, column.wire]
        (first, *_), is_judged = _preferred(column)
        if (
            column is not shape.primary_key
            and sql_type is not SqlType.UUID
            and (is_judged or sql_type is not first)
        ):
            reason = (
                "which holds whatever the app stores" if sql_type is SqlType.TEXT else "as its values are"
            )
            notes.append(f"{column.wire} ({column.declared}) is {sql_type.name} on the server, {reason}")
    return notes


def _column_line(column: Column, sql_type: SqlType, is_key: bool, notes: list[str]) -> str:
    line = f"{quoted(column.wire)} {sql_type.name}"
    if is_key:
        return f"{line} PRIMARY KEY"
    if column.is_required:
        line += " NOT NULL"
    if column.default is not None and column.default.upper() != "NULL":
        default = _default(column.default, sql_type)
        if default is None:
            notes.append(f"the DEFAULT of {column.wire} is the device's only")
        else:
            line += f" DEFAULT {default}"
    return line


def _default(text: str, sql_type: SqlType) -> str | None:
    """Return a DEFAULT of SQLite as the server takes it; None unless it is a literal that the type holds."""
    value: int | float | str
    if _NUMBER.fullmatch(text):
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    elif text.upper() in ("TRUE", "FALSE"):
        value = int(text.upper() == "TRUE")
    elif _STRING.fullmatch(text):
        value = text[1:-1].replace(text[0] * 2, text[0])
    else:
        return None
    if sql_type in (SqlType.BYTES, SqlType.UUID):
        return None
    if sql_type is SqlType.TIMESTAMP and not isinstance(value, str):
        return None  # the server would read microseconds
    try:
        coerce(value, ServerColumn(0, "", sql_type))
    except InvalidValue:
        return None
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


@dataclass(frozen=True, slots=True)
class _References:
    """The clauses of columns that refer to a key, now or `later`, and the lines of composite references."""

    inline: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)
    separate: list[str] = field(default_factory=list)


def _references(
    namespace: str, shape: TableShape, tables: Tables, types: TypeOf, notes: list[str]
) -> _References:
    found = _References()
    for reference in shape.references:
        pairs = _pairs(tables, shape, reference)
        what = f"the reference ({', '.join(reference.columns)}) to {reference.parent}"
        refused = _why_no_reference(shape, reference, pairs, tables, types)
        if refused is None and len(pairs) == 1 and pairs[0][0].wire in found.inline | found.later:
            refused = "its column refers to another table already"
        if refused is not None:
            notes.append(f"{what} is enforced on the device only: {refused}")
            continue
        target = f"REFERENCES {full_name(namespace, reference.parent)} ({_listed(p for _, p in pairs)})"
        action = reference.on_delete if reference.on_delete in _ACTIONS else ""
        if action == "SET NULL" and any(child.is_required for child, _ in pairs):
            action = ""
            notes.append(f"{what} restricts on the server: SET NULL needs columns that may be NULL")
        clause = f"{target} ON DELETE {action}" if action else target
        whole = f"FOREIGN KEY ({_listed(c for c, _ in pairs)}) {clause}"
        if len(pairs) > 1:
            found.separate.append(whole)
        elif _comes_later(shape, reference, tables):
            found.later[pairs[0][0].wire] = whole
        else:
            found.inline[pairs[0][0].wire] = f" {clause}"
    return found


def _comes_later(shape: TableShape, reference: Reference, tables: Tables) -> bool:
    """Whether the parent is created after the table, as it refers to it itself, be it by way of others."""
    parent = tables.get(reference.parent)
    return parent is not shape and tables.rank[parent.wire] > tables.rank[shape.wire]


def _why_no_reference(
    shape: TableShape,
    reference: Reference,
    pairs: list[tuple[Column, Column]],
    tables: Tables,
    types: TypeOf,
) -> str | None:
    if not pairs:
        return "the referenced table isn't one that can be synced"
    parent = tables.get(reference.parent)
    if parent.primary_key not in [target for _, target in pairs]:
        return "it doesn't name the primary key"
    if any(types[shape.wire, c.wire] is not types[parent.wire, p.wire] for c, p in pairs):
        return "the columns have different types"
    if len(pairs) > 1 and _comes_later(shape, reference, tables):
        return "the tables refer to each other"
    return None


def _constraint_notes(connection: sqlite3.Connection, shape: TableShape) -> list[str]:
    notes = [f"{name} is a generated column, and the device's only" for name in shape.generated]
    for _, index, is_unique, origin, *_ in connection.execute(f"PRAGMA index_list({quoted(shape.name)})"):
        if is_unique and origin != "pk":
            columns = [row[2] for row in connection.execute(f"PRAGMA index_info({quoted(index)})")]
            what = index if None in columns else ", ".join(columns)
            notes.append(f"UNIQUE ({what}) is enforced on the device only")
    found = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (shape.name,))
    (definition,) = found.fetchone()
    if _CHECK.search(_QUOTED.sub("''", definition)):
        notes.append("CHECK is enforced on the device only")
    return notes


def full_name(namespace: str, table: str) -> str:
    """Return the quoted name of a table as SQL has it."""
    return f"{quoted(namespace)}.{quoted(table)}"


def _listed(columns: Iterable[Column]) -> str:
    return ", ".join(quoted(column.wire) for column in columns)
