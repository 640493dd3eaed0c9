"""`upwell devices register`: creates the synced tables that an app's SQLite file needs on the server.

Law: the file is only read, what can't be synced is refused by name before anything is created, and a table
that exists is never changed but for columns that it lacks.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from upwell.cli.define import ReferenceStatement, TableStatement, define, full_name, has_row
from upwell.client import Client
from upwell.device import TableRefused
from upwell.device.schema import Column, Tables, TableShape, quoted, read_shape
from upwell.errors import StartRefused
from upwell.types import SqlType

_NAME = re.compile(r"[a-z0-9_]+")
_TAKEN = frozenset({"_seq", "_deleted"})


@dataclass(frozen=True, slots=True)
class _Found:
    """A table as the server has it."""

    is_synced: bool
    key: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


def statements(file: Path, namespace: str, tables: list[str] | None) -> list[str]:
    """Return the SQL that creates the synced tables of `file`, parents first; `tables` limits to some.

    Raises `StartRefused` if the file can't be read, or names all tables that can't be synced.
    """
    namespace = namespace.lower()
    if not _NAME.fullmatch(namespace):
        raise StartRefused(f"namespace {namespace!r} may only have letters a–z, digits and _")
    with _reading(file) as connection:
        present = _present(connection)
        wanted = {name.lower(): name for name in tables or present.values()}
        if not wanted:
            raise StartRefused(f"{file} has no tables to sync: create the app's tables first")
        shapes, refusals = _judged(
            connection, [*present.values(), *(wanted[w] for w in wanted.keys() - present)]
        )
        refused = [line for wire in wanted for line in refusals.get(wire, ())]
        if refused:
            raise StartRefused(
                _refusal(file, refused, [shape.name for shape in shapes if shape.wire in wanted])
            )
        defined = define(connection, namespace, Tables(shapes))
    chosen = [statement for wire, statement in defined.items() if wire in wanted]
    later = [reference for statement in chosen for reference in statement.later]
    return [f"CREATE NAMESPACE IF NOT EXISTS {quoted(namespace)};", *chosen, *later]


def register(client: Client, statements: Sequence[str], out: TextIO) -> int:
    """Run `statements` and tell what became of each table; 0 if all fit the file, else 1."""
    warnings, created = 0, set()
    for statement in statements:
        if not isinstance(statement, TableStatement):
            if not isinstance(statement, ReferenceStatement) or statement.table in created:
                client.execute(str(statement))
            continue
        name = ".".join(statement.table)
        found = _find(client, statement.table)
        if found is None:
            client.execute(str(statement))
            created.add(statement.table)
            print(f"created {name} ({len(statement.columns)} columns)", file=out)
            out.writelines(f"  note: {note}\n" for note in statement.notes)
            continue
        misfits = list(_misfits(statement, found))
        if found.is_synced:
            _complete(client, statement, found, out)
        out.writelines(f"warning: {name} {misfit}\n" for misfit in misfits)
        warnings += len(misfits)
    return 1 if warnings else 0


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    if not file.is_file():
        raise StartRefused(f"{file} is no file: give the app's SQLite file")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        raise StartRefused(f"{file} can't be read as an SQLite database: {error}") from error


def _present(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the app's own tables, by lower-case name."""
    names = connection.execute(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY lower(name)"
    )
    return {name.lower(): name for (name,) in names if not _is_internal(name)}


def _judged(
    connection: sqlite3.Connection, names: Iterable[str]
) -> tuple[list[TableShape], dict[str, list[str]]]:
    """Return the tables that can be synced, and why the others can't, by lower-case name."""
    shapes: list[TableShape] = []
    refusals: dict[str, list[str]] = {}
    for name in names:
        reasons = _internal(connection, name)
        try:
            shape = read_shape(connection, name)
        except TableRefused as refused:
            refusals[name.lower()] = reasons or [str(refused)]
            continue
        reasons += _shape_refusals(connection, shape)
        if reasons:
            refusals[name.lower()] = reasons
        else:
            shapes.append(shape)
    return shapes, refusals


def _internal(connection: sqlite3.Connection, name: str) -> list[str]:
    found = connection.execute(
        "SELECT type FROM pragma_table_list WHERE schema = 'main' AND lower(name) = lower(?)", (name,)
    ).fetchone()
    if _is_internal(name):
        return [f"table {name!r} is internal: name the app's own tables"]
    if found is not None and found[0] != "table":
        kind = "view" if found[0] == "view" else f"{found[0]} table"
        return [f"{name!r} is a {kind}: name the tables that its rows come from"]
    return []


def _is_internal(name: str) -> bool:
    return name.lower().startswith(("sqlite_", "_sync_"))


def _shape_refusals(connection: sqlite3.Connection, shape: TableShape) -> list[str]:
    refusals = [line for column in shape.columns for line in _column_refusals(connection, shape, column)]
    if not _NAME.fullmatch(shape.wire):
        refusals.append(
            f"table {shape.name!r} has a name that the server can't have, which takes letters a–z, digits and"
            f" _: ALTER TABLE {quoted(shape.name)} RENAME TO …"
        )
    key = quoted(shape.primary_key.name)
    is_key, form = f"typeof({key}) = 'text' AND {key} <> ''", "a text"
    if shape.primary_key.is_blob:
        is_key, form = f"typeof({key}) = 'blob' AND length({key}) = 16", "a BLOB of 16 bytes"
    if has_row(connection, shape, f"NOT ({is_key})"):
        refusals.append(
            f"table {shape.name!r} has rows whose primary key isn't {form}: give each row a UUID of its own"
        )
    return refusals


def _column_refusals(connection: sqlite3.Connection, shape: TableShape, column: Column) -> Iterator[str]:
    name = quoted(column.name)
    if not _NAME.fullmatch(column.wire) or column.wire in _TAKEN:
        yield (
            f"table {shape.name!r} has a column {column.name!r}, a name that the server can't have or keeps"
            f" for itself: ALTER TABLE {quoted(shape.name)} RENAME COLUMN {name} TO …"
        )
    if column is shape.primary_key:
        return
    if column.is_blob and has_row(connection, shape, f"typeof({name}) NOT IN ('blob', 'null')"):
        yield (
            f"table {shape.name!r} has values in its BLOB column {column.name!r} that are no BLOBs, and would"
            " come back as bytes: declare it TEXT, or store bytes"
        )
    if not column.is_blob and has_row(connection, shape, f"typeof({name}) = 'blob'"):
        yield (
            f"table {shape.name!r} has BLOBs in its column {column.name!r}, which would come back as"
            " hexadecimal text: declare it BLOB"
        )


def _refusal(file: Path, refusals: Iterable[str], others: Sequence[str]) -> str:
    lines = [f"some tables of {file} can't be synced, and nothing was registered:", *refusals]
    if others:
        lines.append(
            "to leave a table out, name the others: " + " ".join(f"--table {name}" for name in others)
        )
    return "\n  ".join(lines)


def _find(client: Client, table: tuple[str, str]) -> _Found | None:
    tables = client.query(
        "SELECT table_type, options FROM system.tables WHERE namespace_id = $1 AND table_name = $2", table
    )
    if not tables:
        return None
    columns = client.query(
        "SELECT column_name, data_type, primary_key FROM system.columns"
        " WHERE namespace_id = $1 AND table_name = $2",
        table,
    )
    return _Found(
        is_synced=tables[0]["table_type"] == "user" and '"SYNC":"true"' in (tables[0]["options"] or ""),
        key=next((column["column_name"] for column in columns if column["primary_key"]), None),
        columns={column["column_name"]: column["data_type"] for column in columns},
    )


def _misfits(statement: TableStatement, found: _Found) -> Iterator[str]:
    if not found.is_synced:
        yield "exists and isn't a synced USER table: drop it, or choose another namespace"
        return
    key = statement.keys[0]
    if found.key != key:
        yield f"has the primary key {found.key}, the file's is {key}: drop it, or rename the column"
    for name, wanted in statement.columns.items():
        there = found.columns.get(name)
        if there is not None and not _holds(there, wanted, is_key=name in statement.keys):
            yield f"has {name} as {there}, which may refuse values of the file: it needs {wanted.name}"


def _holds(there: str, wanted: SqlType, *, is_key: bool) -> bool:
    """Tell whether a column that exists as `there` holds the file's values; keys may be UUIDs as text."""
    if there == "TEXT":
        return wanted not in (SqlType.BYTES, SqlType.UUID)
    return there == wanted.name or (there == "UUID" and wanted is SqlType.TEXT and is_key)


def _complete(client: Client, statement: TableStatement, found: _Found, out: TextIO) -> None:
    """Add the columns that the server's table lacks: nullable, as older apps don't send them."""
    name = ".".join(statement.table)
    missing = [column for column in statement.columns if column not in found.columns]
    for column in missing:
        sql_type = statement.columns[column].name
        client.execute(
            f"ALTER TABLE {full_name(*statement.table)} ADD COLUMN IF NOT EXISTS {quoted(column)} {sql_type}"
        )
        print(f"added column {name}.{column} ({sql_type})", file=out)
    if not missing:
        print(f"exists {name}", file=out)
